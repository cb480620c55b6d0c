"""What a report is about: a model, what it was before, and what it is read on."""

import dataclasses
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, TypeGuard

import pandas as pd
import torch
from torch import Tensor

from gated_interp.analysis.heads import head_counts, head_name
from gated_interp.analysis.read_heads import Readings, read_heads
from gated_interp.analysis.text_pairs import names_for, own_text
from gated_interp.analysis.verdict import EXAMPLES
from gated_interp.analysis.writes import is_linear
from gated_interp.anatomy.batch import Batch, Mask, Tokens
from gated_interp.core.errors import GatedInterpError
from gated_interp.core.seeds import derive
from gated_interp.core.streams import Stream
from gated_interp.models.toy import HookedTransformer
from gated_interp.replacements.splice import originals, require_layer, unsplice
from gated_interp.tasks.task import ProbedTask

# Sequences that a language model is read on: two minutes of one core for 32 heads.
SEQUENCES = 32
REPLICATES = 500


@dataclasses.dataclass(frozen=True)
class Subject:
    """A model and what its report is measured on.

    Attributes:
        name: of the model.
        model: the model.
        original: the same before blocks were spliced into ``layers``; ``None`` where none were.
        layers: whose heads the report is about.
        batch: ordinary sequences.
        names: of tokens.
        seed: the sequences and the bootstrap are drawn from it.
    """

    name: str
    model: HookedTransformer
    original: HookedTransformer | None
    layers: list[int]
    batch: Batch
    names: Sequence[str]
    seed: int

    @property
    def task(self) -> Any:
        """What the model is for; ``None`` of a model that does not say."""
        return getattr(self.model, "task", None)

    @property
    def sides(self) -> dict[str, HookedTransformer]:
        """Before and after; of a model without a block the model alone."""
        if self.original is None:
            return {"model": self.model}
        return {"original": self.original, "block": self.model}

    @cached_property
    def readings(self) -> dict[int, dict[str, Readings]]:
        """By layer and side, what the heads do on the sequences.

        Raises:
            GatedInterpError: what stands at a layer has no attention.
        """
        return {
            layer: {
                side: read_heads(one, layer, self.batch, names=self.names)
                for side, one in self.sides.items()
            }
            for layer in self.layers
        }

    def heads(self, model: HookedTransformer) -> int:
        """Heads of the layers in one of the sides."""
        return sum(head_counts(model)[layer] for layer in self.layers)

    @property
    def bootstrap(self) -> Tensor:
        """How often each sequence is drawn in each of some replicates, ``[replicate sequence]``."""
        n = len(self.batch)
        source = torch.Generator().manual_seed(derive(self.seed, Stream.SHOWN_REPLICATES))
        drawn = torch.randint(n, (REPLICATES, n), generator=source)
        ones = torch.ones_like(drawn, dtype=torch.double)
        return torch.zeros(REPLICATES, n, dtype=torch.double).scatter_add_(1, drawn, ones)


def subject_of(
    model: HookedTransformer,
    layer: int | None,
    tokens: Tokens | None,
    names: Sequence[str] | None,
    sequences: int | None,
    seed: int,
    attention_mask: Mask | None = None,
) -> Subject:
    """A model with its sequences drawn; see :func:`~gated_interp.experiments.report.report`.

    Raises:
        GatedInterpError: no such layer, no tokens and no task, tokens the model cannot read.
    """
    if sequences is not None and sequences < 2:
        raise GatedInterpError(f"sequences is {sequences}; at least 2 are needed for an interval.")
    if layer is not None:
        require_layer(model, layer)
    spliced = sorted(originals(model))
    layers = [layer] if layer is not None else spliced or list(range(model.cfg.n_layers))
    task = getattr(model, "task", None)
    drawn = derive(seed, Stream.SHOWN_SEQUENCES)
    if tokens is None and is_known(task):
        tokens = task.sample(sequences or EXAMPLES, drawn).tokens
    batch = own_text(model, tokens, "test", sequences or SEQUENCES, drawn, attention_mask)
    before = [i for i in layers if i in spliced]
    original: HookedTransformer | None = None
    for i in before:
        original = unsplice(model if original is None else original, i)
    return Subject(
        name=getattr(model, "model_name", None) or model.cfg.model_name or "the model",
        model=model,
        original=original,
        layers=layers,
        batch=batch,
        names=names_for(model, names),
        seed=seed,
    )


def is_known(task: object) -> TypeGuard[ProbedTask]:
    """Whether the right answers of a task are known."""
    return isinstance(task, ProbedTask)


def is_toy(subject: Subject) -> TypeGuard[Any]:
    """Whether the figures of known answers can be drawn: logits are a sum over all heads."""
    one_layer = subject.model.cfg.n_layers == 1
    return is_known(subject.task) and one_layer and is_linear(subject.model, 0)


def listed(heads: Sequence[int], layer: int) -> str:
    """Heads of a layer by name, or a dash."""
    return ", ".join(head_name((layer, h)) for h in heads) or "—"


def signed(value: float) -> str:
    """A change; nothing where there is none."""
    return "—" if value != value else f"{value:+.3f}" if abs(value) >= 5e-4 else "0"


def between(low: float, high: float, form: str = ".3g") -> str:
    """An interval that no line ends in, or a dash where there is none."""
    return (
        f"{low:{form}} to {high:{form}}".replace(" ", "\N{NO-BREAK SPACE}") if low == low else "—"
    )


def change(value: float, low: float, high: float) -> str:
    """A change with its interval: ``+0.012 (+0.010 to +0.014)``."""
    ends = f"({signed(low)} to {signed(high)})".replace(" ", "\N{NO-BREAK SPACE}")
    return f"{signed(value)} {ends}" if low == low else signed(value)


def together(tables: Mapping[str, pd.DataFrame], column: str = "model") -> pd.DataFrame:
    """Tables below each other, a first column saying which each row is of."""
    return pd.concat(
        [table.assign(**{column: name}) for name, table in tables.items()], ignore_index=True
    )[[column, *next(iter(tables.values())).columns]]
