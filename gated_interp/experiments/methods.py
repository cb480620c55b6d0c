"""Every method that claims to part heads, as a recipe with a knob, tuned with the same budget.

A method is a line of :data:`METHODS`. Each was given :data:`BUDGET` settings, named in its
``tried``, on the seeds and shape of :func:`gated_interp.experiments.frontier.run_tuning`; its
recipe is the one with the most clean runs, ties by the lower FVU
(``figures/frontier-tuning.csv``). Blocks get as many heads as fit into the parameters of the gated
block with four heads per original head, and the same number of steps.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from gated_interp.core.errors import GatedInterpError
from gated_interp.experiments.originals import Originals
from gated_interp.experiments.recipes import RELIABLE, Recipe

BUDGET = 8
FVU_TARGETS = (0.01, 0.02, 0.04)
HEADS_AT_ONCE = (1, 3, 6)


@dataclasses.dataclass(frozen=True)
class Method:
    """A way to replace an attention layer, and how its sparsity is turned up and down.

    Attributes:
        name: on the command line and in figures.
        source: where it is from.
        recipe: as it was before it was tuned.
        knob: the recipe's field, or the field of the kind's config, that decides how sparse it is.
        values: of the knob, from dense to sparse or from exact to loose; the one in the middle is
            what it was tuned at. A single one where there is no knob.
        tried: changes to ``recipe``; the first is none.
        chosen: which of ``tried`` won.
    """

    name: str
    source: str
    recipe: Recipe
    knob: str
    values: tuple[float | int, ...]
    tried: tuple[Mapping[str, Any], ...]
    chosen: int = 0

    def at(self, value: float | int, tried: int | None = None) -> Recipe:
        """The recipe with the knob at ``value``, tuned, or with another of the settings tried."""
        recipe = self.recipe.replace(**self.tried[self.chosen if tried is None else tried])
        return recipe.replace(**{self.knob: value}) if len(self.values) > 1 else recipe


def matched(recipe: Recipe, originals: Originals, reference: Recipe = RELIABLE) -> Recipe:
    """``recipe`` with as many heads as fit into the parameters of the ``reference``'s block."""
    most = parameters(reference, originals)
    expansion = 1
    while parameters(recipe.replace(expansion=expansion + 1), originals) <= most:
        expansion += 1
    return recipe.replace(expansion=expansion)


def parameters(recipe: Recipe, originals: Originals) -> int:
    """How many numbers train in the block of ``recipe`` for such an original."""
    config = {n: v for n, v in recipe.block.config.items() if n != "k"}  # of few heads K is more
    plain = recipe.block.replace(scale_output=False, config=config)
    block = plain(originals.example(), originals.task, 0, originals.layer)
    return sum(p.numel() for p in block.parameters() if p.requires_grad)


def method_named(name: str) -> Method:
    """The method called ``name``.

    Raises:
        GatedInterpError: naming the methods there are.

    Examples:
        >>> method_named("topk").knob
        'k'
    """
    if name not in METHODS:
        raise GatedInterpError(f"there is no method {name!r}; there are {', '.join(METHODS)}.")
    return METHODS[name]


OURS = RELIABLE.replace(attempts=1)
# No overlap penalty and no floor under the penalties: those are ours.
PLAIN = OURS.replace(overlap=0.0, overlap_power=1.0, factor_floor=1e-3)
PICKED = PLAIN.replace(alpha=0.0, fvu_target=None)
RATES: tuple[Mapping[str, Any], ...] = (
    {},
    {"lr": 0.005},
    {"lr": 0.01},
    {"lr": 0.03},
    {"lr_decay": 0.8},
)
DRAWN: tuple[Mapping[str, Any], ...] = (
    {},
    {"lr": 0.01},
    {"alpha": 0.03},
    {"alpha": 0.3},
    {"gate_bias_init": 0.5},
    {"gate_bias_init": 2.0},
    {"normalize_weights": False},
    {"d_gate": 4},
)

METHODS = {
    method.name: method
    for method in (
        Method(
            "gated",
            "this package",
            OURS,
            "fvu_target",
            FVU_TARGETS,
            (
                {},
                {"lr": 0.01},
                {"alpha": 0.3},
                {"d_gate": 1},
                {"d_gate": 4},
                {"overlap": 1.0, "overlap_power": 1.0},
                {"overlap": 10.0},
                {"factor_floor": 0.005},
            ),
            chosen=7,
        ),
        Method(
            "gated (post)",
            "the 2024 post",
            PLAIN.replace(
                d_gate=1,
                value_bias=True,
                scale_output=False,
                penalty_pairs="all",
                alpha_unit="absolute",
                fvu_target=None,
                penalty_ramp=0.0,
            ),
            "alpha",
            (0.1, 0.3, 1.0),
            (
                {},
                {"lr": 0.001, "lr_decay": 0.0},
                {"lr": 0.005, "lr_decay": 0.0},
                {"lr": 0.01, "lr_decay": 0.0},
                {"lr": 0.01},
                {"lr": 0.03},
                {"penalty_off": 0.2, "penalty_ramp": 0.2},
                {"penalty_ramp": 0.8},
            ),
            chosen=7,
        ),
        Method(
            "query-key gates",
            "arXiv 2512.05865",
            PLAIN.replace(gate="bernoulli", gate_bias_init=1.0, penalty="expected"),
            "fvu_target",
            FVU_TARGETS,
            DRAWN,
            chosen=6,
        ),
        Method(
            "hard-concrete gates",
            "arXiv 1712.01312, a gate per pair",
            PLAIN.replace(gate="hard_concrete", gate_bias_init=1.0, penalty="expected"),
            "fvu_target",
            FVU_TARGETS,
            DRAWN,
            chosen=7,
        ),
        Method(
            "head gates",
            "arXiv 1905.09418, a hard-concrete gate per head",
            PLAIN.replace(
                gate="hard_concrete",
                gate_bias_init=2.0,
                penalty="expected",
                gate_per="head",
            ),
            "fvu_target",
            FVU_TARGETS,
            (
                *RATES,
                {"alpha": 0.3},
                {"alpha": 0.03},
                {"normalize_weights": False},
            ),
            chosen=7,
        ),
        Method(
            "topk",
            "Lorsa, arXiv 2504.20938",
            PICKED.replace(kind="topk", from_original=True),
            "k",
            HEADS_AT_ONCE,
            (
                *RATES,
                {"normalize_weights": False},
                {"value_bias": True},
                {"from_original": False},
            ),
            chosen=7,
        ),
        Method(
            "top1",
            "Progress on attention (Transformer Circuits, 2025)",
            PICKED.replace(kind="topk", k=1),
            "k",
            (1,),
            (
                *RATES,
                {"normalize_weights": False},
                {"value_bias": True},
                {"lr": 0.01, "lr_decay": 0.8},
            ),
            chosen=5,
        ),
        Method(
            "ungated",
            "the same heads without gates",
            PICKED.replace(gate="open"),
            "-",
            (0,),
            (
                *RATES,
                {"normalize_weights": False},
                {"value_bias": True},
                {"lr": 0.01, "lr_decay": 0.8},
            ),
            chosen=3,
        ),
        Method(
            "ungated + overlap",
            "our overlap penalty without gates",
            OURS.replace(gate="open", alpha=0.0),
            "fvu_target",
            FVU_TARGETS,
            (
                *RATES,
                {"overlap": 10.0},
                {"overlap": 1.0, "overlap_power": 1.0},
                {"factor_floor": 0.005},
            ),
            chosen=3,
        ),
        Method(
            "sae on output",
            "arXiv 2406.17759, TopK",
            PICKED.replace(kind="sae"),
            "k",
            HEADS_AT_ONCE,
            (
                *RATES,
                {"lr": 0.002},
                {"lr": 0.01, "lr_decay": 0.8},
                {"lr": 0.03, "lr_decay": 0.8},
            ),
            chosen=3,
        ),
    )
}
