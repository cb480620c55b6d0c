"""Where the attention layers come from that blocks stand in for: toys, or weights written down."""

import dataclasses
import re
from collections.abc import Callable, Sequence
from functools import partial

from gated_interp.analysis.verdict import verdict
from gated_interp.checkpoints.known import known_circuits
from gated_interp.core.errors import GatedInterpError
from gated_interp.experiments.behaviour import firm_lead
from gated_interp.experiments.recipes import Recipe
from gated_interp.experiments.seeds import HELD_OUT_SEED, ToyOutcome, train_toy_seeds
from gated_interp.models.analytic import (
    AnalyticModel,
    coherent_head,
    manual_model,
    two_readers,
)
from gated_interp.models.analytic_tasks import (
    conditional_heads,
    induction_model,
    marked_relay,
    wide_pairs,
)
from gated_interp.models.toy import HookedTransformer, ToyConfig, build_toy
from gated_interp.tasks.skip_trigrams import SkipTrigramTask
from gated_interp.tasks.task import ProbedTask


@dataclasses.dataclass(frozen=True)
class Toys:
    """Toys for skip trigrams, trained as the recipe says: one for each seed.

    Examples:
        >>> Toys(2, 3).name
        '2H3ST'
    """

    heads: int
    trigrams: int

    @property
    def name(self) -> str:
        """The post's name for the shape."""
        return f"{self.heads}H{self.trigrams}ST"

    @property
    def layer(self) -> int:
        """Whose attention blocks stand in for."""
        return 0

    @property
    def task(self) -> SkipTrigramTask:
        """Skip trigrams."""
        return SkipTrigramTask(self.trigrams)

    def example(self) -> HookedTransformer:
        """An untrained toy."""
        return build_toy(ToyConfig(n_trigrams=self.trigrams, n_heads=self.heads))

    def outcomes(self, recipe: Recipe, seeds: Sequence[int]) -> list[ToyOutcome]:
        """Trained, stacked."""
        return train_toy_seeds(self.heads, self.task, recipe, seeds)


@dataclasses.dataclass(frozen=True)
class Known:
    """A model whose weights are written down, the same for every seed.

    Attributes:
        name: on the command line.
        build: the model and the truth about it.
        parts: whether blocks should come out clean: each case held by one head, and no foil
            answered.
        why: what makes it so, in a sentence.
    """

    name: str
    build: Callable[[], AnalyticModel] = dataclasses.field(compare=False, repr=False)
    parts: bool
    why: str

    @property
    def heads(self) -> int:
        """Heads of the layer."""
        return int(self.example().cfg.n_heads)

    @property
    def task(self) -> ProbedTask:
        """What the model does."""
        found: ProbedTask = self.build().task
        return found

    @property
    def layer(self) -> int:
        """Whose attention blocks stand in for."""
        return self.build().layer

    def example(self) -> HookedTransformer:
        """The model."""
        return self.build().model

    def outcomes(self, recipe: Recipe, seeds: Sequence[int]) -> list[ToyOutcome]:
        """The model, for every seed."""
        truth = self.build()
        found = verdict(truth.model, truth.task, layer=truth.layer)
        lead = firm_lead(truth.model, truth.task, seed=HELD_OUT_SEED)
        return [
            ToyOutcome(seed, truth.model, found, lead, loss=0.0, layer=truth.layer)
            for seed in seeds
        ]


Originals = Toys | Known
"""Models of one shape, one for each seed."""

BENCHMARKS = {
    each.name: each
    for each in (
        Known(
            "skip-trigrams",
            partial(manual_model, 2, 3),
            True,
            "two heads hold three trigrams together, and each trigram can have a head of its own",
        ),
        Known(
            "conditional",
            conditional_heads,
            True,
            "each answer can have a head of its own; in the model one head says them all and one "
            "takes them back unless A came, so what is parted was not superposed",
        ),
        Known(
            "ov-coherent",
            coherent_head,
            False,
            "every answer adds up from two sources that the same head reads, so no head of one "
            "source holds an answer",
        ),
        Known(
            "two-sources",
            two_readers,
            False,
            "a head that reads one of the two sources answers where the other is missing (one that "
            "reads both can tell them from one by how much attention they leave for BOS)",
        ),
        Known(
            "wide-content",
            wide_pairs,
            False,
            "a question has four answers, and a head of one dimension writes two at most",
        ),
        Known(
            "two-layers",
            marked_relay,
            False,
            "without positions one layer sees which tokens came, not their order, so no layer "
            "tells the two signals apart without the other",
        ),
        Known(
            "repeated-tokens",
            induction_model,
            False,
            "an induction head reads what the layer below it wrote, so no head holds a token "
            "without that layer, and one head copies them all",
        ),
    )
}
"""Models whose answers are known, by name."""


def originals_named(name: str) -> Originals:
    """The benchmark of that name, or toys of that shape.

    Examples:
        >>> originals_named("3H4ST"), originals_named("two-sources").parts
        (Toys(heads=3, trigrams=4), False)

    Raises:
        GatedInterpError: it is neither; of a known circuit, why it cannot be one.
    """
    if name in BENCHMARKS:
        return BENCHMARKS[name]
    if name in known_circuits():
        raise GatedInterpError("known-circuit-in-frontier", name=name)
    shape = re.fullmatch(r"([1-9]\d*)H([1-9]\d*)ST", name)
    if shape is None:
        raise GatedInterpError("no-such-original", name=name, choices=[*BENCHMARKS])
    return Toys(int(shape[1]), int(shape[2]))
