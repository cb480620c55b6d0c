"""Every way to replace attention, each one entry of one registry, for toys and any other model.

A method that :func:`register` adds is there for :func:`~gated_interp.training.fit.fit_gated`, for
``decompose``, and for the studies of toys (``frontier``, ``benchmarks``).

On toys each was given :data:`BUDGET` settings, named in its ``tried``, on the seeds and shape of
:func:`gated_interp.experiments.frontier.run_tuning`. The one with the most clean runs was chosen,
ties by the lower FVU (``figures/frontier-tuning.csv``).
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from gated_interp.core.errors import GatedInterpError

Settings = Mapping[str, Any]
BUDGET = 8
FVU_TARGETS = (0.01, 0.02, 0.04)
HEADS_AT_ONCE = (1, 3, 6)


@dataclasses.dataclass(frozen=True)
class Method:
    """A way to replace an attention layer, and how its sparsity is turned up and down.

    Attributes:
        name: on the command line, in tables and in figures.
        source: where it is from.
        kind: see :data:`~gated_interp.replacements.replacement.KINDS`.
        block: fields of the kind's config.
        train: fields of :class:`~gated_interp.training.config.TrainConfig`.
        fit: further fields of the block in ``fit_gated``, and how it starts there.
        expansion, width: heads, and dimensions of a head, for each of the layer's in ``fit_gated``.
        toy: further changes to the reliable recipe on toys.
        knob: what decides how sparse it is on toys, a field of the recipe or of the kind's config.
        values: of the knob, from dense to sparse or from exact to loose; the one in the middle is
            what it was tuned at. A single one where there is no knob.
        tried: changes on toys that it was tuned with; the first is none.
        chosen: which of ``tried`` won.
        alias: another name.
    """

    name: str
    source: str
    kind: str = "gated"
    block: Settings = dataclasses.field(default_factory=dict)
    train: Settings = dataclasses.field(default_factory=dict)
    fit: Settings = dataclasses.field(default_factory=dict)
    expansion: int = 2
    width: int = 2
    toy: Settings = dataclasses.field(default_factory=dict)
    knob: str = "-"
    values: tuple[float | int, ...] = (0,)
    tried: tuple[Settings, ...] = ({},)
    chosen: int = 0
    alias: str = ""


METHODS: dict[str, Method] = {}
"""Every method, by name."""


def register(method: Method) -> Method:
    """Add ``method``; it replaces one of the same name.

    Examples:
        >>> mine = register(Method("mine", "a doctest", block={"gate": "binary"}))
        >>> method_named("mine").block
        {'gate': 'binary'}
        >>> METHODS.pop("mine") is mine
        True
    """
    METHODS[method.name] = method
    return method


def method_named(name: str) -> Method:
    """The method of that name, or of that alias.

    Examples:
        >>> method_named("topk").knob
        'k'
    """
    for method in METHODS.values():
        if name and name in (method.name, method.alias):
            return method
    raise GatedInterpError("unknown-name", what="method", name=name, choices=[*METHODS])


def tuned() -> tuple[str, ...]:
    """The names of the methods that were tuned on toys, which ``frontier`` compares."""
    return tuple(method.name for method in METHODS.values() if len(method.tried) > 1)


# Copies of the layer's own heads are exact but for their noise; what trains is how they part.
# Wider than they were, one of them can say what several said: as many weights as four copies.
COPIES: Settings = {"init": "duplicate"}
GATES: Settings = {**COPIES, "d_gate": 8}
NO_OVERLAP: Settings = {"overlap": 0.0}
NO_PENALTY: Settings = {"alpha": 0.0, "overlap": 0.0}
# On toys, no floor under the penalties: that is ours. What picks heads itself needs no target.
PLAIN: Settings = {"overlap_power": 1.0, "factor_floor": 1e-3}
PICKED: Settings = {**PLAIN, "fvu_target": None}
RATES: tuple[Settings, ...] = (
    {},
    {"lr": 0.005},
    {"lr": 0.01},
    {"lr": 0.03},
    {"lr_decay": 0.8},
)
DRAWN: tuple[Settings, ...] = (
    {},
    {"lr": 0.01},
    {"alpha": 0.03},
    {"alpha": 0.3},
    {"gate_bias_init": 0.5},
    {"gate_bias_init": 2.0},
    {"normalize_weights": False},
    {"d_gate": 4},
)

# One entry each; settings tried go in as many lines as they need.
# fmt: off
for _method in (
    Method(
        "gated", "this package", fit=GATES, knob="fvu_target", values=FVU_TARGETS,
        tried=({}, {"lr": 0.01}, {"alpha": 0.3}, {"d_gate": 1}, {"d_gate": 4},
               {"overlap": 1.0, "overlap_power": 1.0}, {"overlap": 10.0},
               {"factor_floor": 0.005}), chosen=7
    ),
    Method(
        "gated (post)", "the 2024 post",
        block={"d_gate": 1, "value_bias": True, "penalty_pairs": "all"},
        train={**NO_OVERLAP, "alpha_unit": "absolute", "penalty_ramp": 0.0}, fit=COPIES,
        toy={**PICKED, "scale_output": False}, knob="alpha", values=(0.1, 0.3, 1.0),
        tried=({}, {"lr": 0.001, "lr_decay": 0.0}, {"lr": 0.005, "lr_decay": 0.0},
               {"lr": 0.01, "lr_decay": 0.0}, {"lr": 0.01}, {"lr": 0.03},
               {"penalty_off": 0.2, "penalty_ramp": 0.2}, {"penalty_ramp": 0.8}), chosen=7
    ),
    Method(
        "query-key gates", "arXiv 2512.05865",
        block={"gate": "bernoulli", "penalty": "expected"}, train=NO_OVERLAP, fit=GATES,
        toy={**PLAIN, "gate_bias_init": 1.0}, knob="fvu_target", values=FVU_TARGETS, tried=DRAWN,
        chosen=6
    ),
    Method(
        "hard-concrete gates", "arXiv 1712.01312, a gate per pair",
        block={"gate": "hard_concrete", "penalty": "expected"}, train=NO_OVERLAP, fit=GATES,
        toy={**PLAIN, "gate_bias_init": 1.0}, knob="fvu_target", values=FVU_TARGETS, tried=DRAWN,
        chosen=7
    ),
    Method(
        "head gates", "arXiv 1905.09418, a hard-concrete gate per head",
        block={"gate": "hard_concrete", "penalty": "expected", "gate_per": "head"},
        train=NO_OVERLAP, fit=GATES, toy={**PLAIN, "gate_bias_init": 2.0}, knob="fvu_target",
        values=FVU_TARGETS,
        tried=(*RATES, {"alpha": 0.3}, {"alpha": 0.03}, {"normalize_weights": False}), chosen=7
    ),
    Method(
        "topk", "Lorsa, arXiv 2504.20938", kind="topk", train=NO_PENALTY,
        fit={"k": 8, "normalize_weights": False}, expansion=64, width=1,
        toy={**PICKED, "from_original": True}, knob="k", values=HEADS_AT_ONCE,
        tried=(*RATES, {"normalize_weights": False}, {"value_bias": True},
               {"from_original": False}), chosen=7
    ),
    Method(
        "topk copies", "TopK of copies of the layer's own heads", kind="topk", train=NO_PENALTY,
        fit={**COPIES, "k": 2, "noise": 0.01}, width=1
    ),
    Method(
        "top1", "Progress on attention (Transformer Circuits, 2025)", kind="topk",
        block={"k": 1}, train=NO_PENALTY, fit={"normalize_weights": False}, expansion=4, width=1,
        toy=PICKED, knob="k", values=(1,),
        tried=(*RATES, {"normalize_weights": False}, {"value_bias": True},
               {"lr": 0.01, "lr_decay": 0.8}), chosen=5
    ),
    Method(
        "ungated", "the same heads without gates", block={"gate": "open"}, train=NO_PENALTY,
        fit=COPIES, toy=PICKED,
        tried=(*RATES, {"normalize_weights": False}, {"value_bias": True},
               {"lr": 0.01, "lr_decay": 0.8}), chosen=3
    ),
    Method(
        "ungated + overlap", "our overlap penalty without gates", block={"gate": "open"},
        train={"alpha": 0.0}, fit=COPIES, knob="fvu_target", values=FVU_TARGETS,
        alias="overlap alone",
        tried=(*RATES, {"overlap": 10.0}, {"overlap": 1.0, "overlap_power": 1.0},
               {"factor_floor": 0.005}), chosen=3
    ),
    Method(
        "sae on output", "arXiv 2406.17759, TopK", kind="sae", train=NO_PENALTY, fit={"k": 8},
        expansion=64, width=1, toy=PICKED, knob="k", values=HEADS_AT_ONCE,
        tried=(*RATES, {"lr": 0.002}, {"lr": 0.01, "lr_decay": 0.8},
               {"lr": 0.03, "lr_decay": 0.8}), chosen=3
    ),
    Method(
        "gates alone", "our gates without the overlap penalty", train=NO_OVERLAP, fit=GATES,
        toy=PLAIN
    ),
):
    register(_method)
# fmt: on
