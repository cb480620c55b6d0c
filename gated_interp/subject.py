"""What is looked at: a model, what it was before, and its sequences; each thing measured once."""

import dataclasses
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from gated_interp.analysis.ablation import Method, ablate_sets, sets_of
from gated_interp.analysis.circuit_tables import circuits_of
from gated_interp.analysis.circuits import Circuit
from gated_interp.analysis.example import Example, example_of
from gated_interp.analysis.heads import head_name, heads_of
from gated_interp.analysis.holders import Holders, holders
from gated_interp.analysis.overview import DEEP, HeadOverview, head_overview
from gated_interp.analysis.read_heads import Readings, readings
from gated_interp.analysis.subset_games import Game, game_of, linear_game
from gated_interp.analysis.subsets import MAX_EXACT, interactions_of, shapley_of
from gated_interp.analysis.superposition import loading_from_writes
from gated_interp.analysis.text_holders import TextHolders, text_holders
from gated_interp.analysis.text_pairs import names_for, own_text
from gated_interp.analysis.verdict import EXAMPLES, SEED, Verdict, verdict_from_writes
from gated_interp.analysis.writes import ProbeWrites, is_linear, probe_writes, require_linear
from gated_interp.anatomy.batch import Batch, Mask, Tokens, token_vocabulary
from gated_interp.core.errors import GatedInterpError
from gated_interp.core.seeds import derive
from gated_interp.core.streams import Stream
from gated_interp.models.toy import HookedTransformer
from gated_interp.replacements.splice import originals, require_layer, unsplice
from gated_interp.tasks.skip_trigrams import SkipTrigramTask
from gated_interp.tasks.task import ProbedTask, probes_for
from gated_interp.tasks.text import TextTask

# Sequences that a language model is read on: two minutes of one core for 32 heads. Of a model with
# many weights they are fewer, down to some.
SEQUENCES, FEWEST, WEIGHTS = 32, 8, 2**25
REPLICATES = 500
METHODS: tuple[Method, ...] = ("zero", "mean", "resample", "optimal")
# Orders of arrival, where a layer has too many heads for every subset of them.
PERMUTATIONS = 200
# Sequences that constants come from: of a task with known answers, and of text. They are fewer of a
# model with many weights.
REFERENCE, REFERENCE_TEXT = 250, 50


@dataclasses.dataclass(frozen=True, eq=False)
class Side:
    """One model and one of its layers; what is measured of it is measured when first asked for.

    Attributes:
        name: which model: ``original``, ``block``, or ``model`` where there is one only.
        layer: whose heads.
        subject: what it belongs to.
    """

    name: str
    model: HookedTransformer
    layer: int
    subject: "Subject" = dataclasses.field(repr=False)

    @property
    def label(self) -> str:
        """What the model is called in titles."""
        return self.subject.label(self.name)

    @cached_property
    def heads(self) -> list[str]:
        """The names of the layer's heads."""
        return [head_name(head) for head in heads_of(self.model, self.layer)]

    @cached_property
    def linear(self) -> bool:
        """Whether the logits are a sum over the layer's heads."""
        return is_linear(self.model, self.layer)

    @cached_property
    def writes(self) -> ProbeWrites:
        """What each head writes to the logits where the task's answers are known."""
        return probe_writes(
            self.model, self.subject.task, EXAMPLES, SEED, self.layer, direct=not self.linear
        )

    @cached_property
    def verdict(self) -> Verdict:
        """Who holds and who owns what; of a layer that is linear in its heads.

        Raises:
            GatedInterpError: any other layer.
        """
        require_linear(self.model, self.layer)
        found = verdict_from_writes(self.writes.writes, self.writes.logits, self.writes.probes)
        if self.model.cfg.n_layers == 1:
            return found
        return dataclasses.replace(found, holders=self.holders.holders)

    @cached_property
    def holders(self) -> Holders:
        """Who holds what, by ablation."""
        return holders(self.model, self.subject.task, layer=self.layer)

    @cached_property
    def given(self) -> Holders:
        """Who holds what while the other layers stay as they are."""
        return holders(self.model, self.subject.task, layer=self.layer, rest="intact")

    @cached_property
    def loadings(self) -> Float[Tensor, "representation head_index"]:
        """How much each head carries of each case."""
        return loading_from_writes(self.writes).cpu()

    @cached_property
    def game(self) -> Game:
        """What subsets of the layer's heads are worth."""
        if self.linear:
            return linear_game(self.writes, heads_of(self.model, self.layer))
        return game_of(
            self.model, self.subject.task, layer=self.layer, heads=None, metric=None,
            method="zero", reference_tokens=None, n=EXAMPLES, seed=SEED,
        )  # fmt: skip

    @cached_property
    def shapley(self) -> pd.DataFrame:
        """Shapley values: exact up to 16 heads, beyond from 200 orders of arrival."""
        if len(self.heads) <= MAX_EXACT:
            return shapley_of(self.game)
        return shapley_of(self.game, PERMUTATIONS, derive(SEED, Stream.SHOWN_ORDERS))

    @cached_property
    def interactions(self) -> Float[Tensor, "case head_index head_index"]:
        """What each pair of heads adds to the lead of each case's answer beyond the two alone."""
        return interactions_of(self.game)["lead"]

    @cached_property
    def circuits(self) -> dict[str, list[Circuit]]:
        """By kind, the circuit of each head."""
        return circuits_of(self.model, self.layer)

    @cached_property
    def example(self) -> Example:
        """One sequence that asks for the subject's case, and what the heads do there."""
        return example_of(self.model, self.subject.task, self.subject.case(self.layer), self.layer)

    @cached_property
    def text_holders(self) -> TextHolders:
        """At which positions one head alone holds what the layer writes."""
        return text_holders(self.model, self.layer, self.subject.batch)

    @cached_property
    def readings(self) -> Readings:
        """What each head reads, and what it says."""
        batch, names = self.subject.batch, self.subject.names
        effects = None if self.subject.known else self.effects
        return readings(
            self.model, self.layer, batch, names, held=self.text_holders, effects=effects
        )

    @cached_property
    def effects(self) -> pd.DataFrame:
        """By how much the loss on the text rises without each head (zero ablation)."""
        found = self.subject.ablations[self.name].query("method == 'zero' and metric == 'loss'")
        ends = {"change": "effect", "low": "effect_low", "high": "effect_high"}
        mine = found.set_index("heads").loc[self.heads, [*ends]].rename(columns=ends)
        return mine.reset_index(drop=True).rename_axis("head").reset_index()

    @property
    def held(self) -> dict[int, list[int]]:
        """By case, the heads that hold it; without ablating where the verdict can do without."""
        return (self.verdict if self.linear else self.holders).holders

    @property
    def marks(self) -> dict[int, str]:
        """By head, the answers of the cases that it holds: ``{5: "C1"}``."""
        return marks_of(self.held, self.subject.task)


@dataclasses.dataclass(frozen=True, eq=False)
class Subject:
    """A model with what it was before and what it is read on. Made by :meth:`of`.

    Attributes:
        name: of the model.
        model: the model.
        original: the same before blocks were spliced into ``layers``; ``None`` where none were.
        layers: whose heads are looked at.
        sides: the models that are measured, by name.
        names: of tokens.
        seed: the sequences and the bootstrap are drawn from it.
        given: sequences to read and their mask; where there are none, they are drawn.
        sequences: how many are drawn; ``None`` for the usual number.
        trigram: the case that examples are of; ``None`` for one that is distributed.
        method: of ablation, in tables that show one.
        beside: what else reached which place, to be drawn beside the block.
        made_by: the command or call that asked.
        prompts: whether the given sequences are what a behaviour is looked for in.
        listeners: told (done, of how many) while something long is measured.
    """

    name: str
    model: HookedTransformer
    original: HookedTransformer | None
    layers: list[int]
    sides: dict[str, HookedTransformer]
    names: Sequence[str]
    seed: int = 0
    given: tuple[Tokens | None, Mask | None] = (None, None)
    sequences: int | None = None
    trigram: int | None = None
    method: str = "zero"
    beside: pd.DataFrame | None = None
    made_by: str = ""
    prompts: bool = False
    listeners: list[Callable[[int, int], None]] = dataclasses.field(default_factory=list)

    @classmethod
    def of(
        cls,
        model: HookedTransformer,
        layer: int | None = None,
        tokens: Tokens | None = None,
        *,
        attention_mask: Mask | None = None,
        names: Sequence[str] | None = None,
        sequences: int | None = None,
        seed: int = 0,
        name: str | None = None,
        alone: bool = False,
        trigram: int | None = None,
        **options: Any,
    ) -> "Subject":
        """Look at ``model``.

        Args:
            layer: whose heads; those of every layer that something was spliced into unless given,
                or else of all.
            tokens: sequences to read; of the model's own task or text unless given.
            attention_mask: of these, 1 at tokens and 0 at padding.
            names: of tokens; the task's unless given.
            sequences: how many are drawn; 1,000 of a task with known answers, else 32.
            seed: they, and the bootstrap, are drawn from it.
            name: of the model in titles and files; its own unless given.
            alone: look at the model as it is, at all its layers, and leave its original aside.
            trigram: the case that examples are of.
            options: the other attributes.
        """
        if sequences is not None and sequences < 2:
            raise GatedInterpError("too-small", name="sequences", value=sequences, least=2)
        if layer is not None:
            require_layer(model, layer)
        if trigram is not None:
            _require_case(model, trigram)
        spliced = sorted(originals(model))
        every = list(range(model.cfg.n_layers))
        layers = [layer] if layer is not None else (not alone and spliced) or every
        original: HookedTransformer | None = None
        for i in layers:
            if i in spliced:
                original = unsplice(model if original is None else original, i)
        before = None if alone else original
        return cls(
            name=name or getattr(model, "model_name", None) or model.cfg.model_name or "the model",
            model=model,
            original=original,
            layers=layers,
            sides={"model": model} if before is None else {"original": before, "block": model},
            names=names_for(model, names),
            seed=seed,
            given=(tokens, attention_mask),
            sequences=sequences,
            trigram=trigram,
            **options,
        )

    @property
    def task(self) -> Any:
        """What the model is for; ``None`` of a model that does not say."""
        return getattr(self.model, "task", None)

    @property
    def known(self) -> bool:
        """Whether the task's right answers are known."""
        return isinstance(self.task, ProbedTask)

    @cached_property
    def at(self) -> dict[int, dict[str, Side]]:
        """What is measured, by layer and side."""
        return {
            layer: {name: Side(name, model, layer, self) for name, model in self.sides.items()}
            for layer in self.layers
        }

    @property
    def measured(self) -> list[Side]:
        """Every layer of every side."""
        return [side for sides in self.at.values() for side in sides.values()]

    @property
    def after(self) -> list[Side]:
        """Every layer of the model itself, without its original."""
        return [list(sides.values())[-1] for sides in self.at.values()]

    @property
    def heads(self) -> dict[str, list[str]]:
        """By side, the names of the heads of the layers."""
        return {
            side: [head for sides in self.at.values() for head in sides[side].heads]
            for side in self.sides
        }

    @property
    def one_layer(self) -> bool:
        """Whether answers are known and the logits are a sum over all heads of the model."""
        return self.known and self.model.cfg.n_layers == 1 and self.after[0].linear

    @property
    def has_overview(self) -> bool:
        """Whether there are several layers of heads that a text can be read on."""
        return not self.known and self.model.cfg.n_layers > 1 and self.batch.next_token

    @cached_property
    def overview(self) -> HeadOverview:
        """Every head of the model, whichever layers are looked at."""
        return head_overview(self.model, self.batch, seed=self.seed, bos=self.first_token)

    @property
    def first_token(self) -> int | None:
        """What begins repeated random tokens: ``None`` where the model's text says it, else what
        the first of the sequences begins with."""
        named = isinstance(self.task, TextTask) and self.task.bos is not None
        return None if named else int(self.batch.tokens[0, 0])

    @property
    def layer_shown(self) -> int | None:
        """The one layer that is looked at, of several."""
        one = len(self.layers) == 1 < self.model.cfg.n_layers
        return self.layers[0] if one else None

    @property
    def too_deep(self) -> bool:
        """Whether one of the layers has to be chosen: there are many, and none was named."""
        return self.has_overview and len(self.layers) > DEEP

    def narrowed(self, layer: int | None = None) -> "Subject":
        """The same with one layer alone; what is measured is kept.

        Args:
            layer: the one that the overview puts first unless given.
        """
        first = self.overview.spliced or [self.overview.layer]
        chosen = dataclasses.replace(self, layers=first if layer is None else [layer])
        for name in ("overview", "batch"):
            chosen.__dict__[name] = getattr(self, name)
        return chosen

    @cached_property
    def batch(self) -> Batch:
        """The ordinary sequences."""
        (tokens, mask), seed = self.given, derive(self.seed, Stream.SHOWN_SEQUENCES)
        if tokens is None and self.known:
            tokens = self.task.sample(self.sequences or EXAMPLES, seed).tokens
        n = self.sequences or usual_sequences(self.model)
        return own_text(self.model, tokens, "test", n, seed, mask)

    @property
    def size(self) -> str:
        """How much is read, in words."""
        n, length = self.batch.tokens.shape
        return f"{n:,} sequences of {'' if self.batch.real is None else 'up to '}{length} positions"

    @cached_property
    def bootstrap(self) -> Float[Tensor, "replicate sequence"]:
        """How often each sequence is drawn in each of some replicates."""
        n = len(self.batch)
        source = torch.Generator().manual_seed(derive(self.seed, Stream.SHOWN_REPLICATES))
        drawn = torch.randint(n, (REPLICATES, n), generator=source)
        ones = torch.ones_like(drawn, dtype=torch.double)
        return torch.zeros(REPLICATES, n, dtype=torch.double).scatter_add_(1, drawn, ones)

    @cached_property
    def ablations(self) -> dict[str, pd.DataFrame]:
        """By side, what is lost without each head (of every layer of a task with known answers)."""
        effects: dict[str, pd.DataFrame] = {}
        layers, tokens = (None, None) if self.known else (self.layers, self.batch)
        for side, model in self.sides.items():
            self.tell(len(effects), len(self.sides))
            effects[side] = ablations(model, layers, tokens)
        return effects

    def tell(self, done: int, total: int) -> None:
        """Say how far something is that takes long."""
        for listener in self.listeners:
            listener(done, total)

    def case(self, layer: int) -> int:
        """The case that examples are of: the one asked for, a distributed one, or the first."""
        if self.trigram is not None:
            return self.trigram
        first = next(iter(self.at[layer].values()))
        return next(iter([*(first.verdict.distributed if first.linear else []), *self.task.cases]))

    def label(self, side: str) -> str:
        """What a side is called in titles."""
        if side != "original":
            return self.name
        return f"{self.name} {'toy' if isinstance(self.task, SkipTrigramTask) else side}"

    def said(self, side: str, words: str) -> str:
        """Words on a side, which is named where there is another."""
        return f"The {side}: {words}" if len(self.sides) > 1 else words[0].upper() + words[1:]

    def stem(self, side: str) -> str:
        """How the files of a side begin, where they stand beside other models'."""
        return self.name + self.label(side).removeprefix(self.name).replace(" ", "-")

    def which(self, layer: int) -> tuple[str, str]:
        """``-L0`` and ``, layer 0``, where several layers have to be told apart."""
        return (f"-L{layer}", f", layer {layer}") if len(self.layers) > 1 else ("", "")


def usual_sequences(model: HookedTransformer) -> int:
    """How many sequences of text a model is read on, unless somebody says.

    Examples:
        >>> from gated_interp.checkpoints.checkpoint import load
        >>> usual_sequences(load("austen-1l"))
        32
    """
    weights = sum(parameter.numel() for parameter in model.parameters())
    return max(FEWEST, min(SEQUENCES, SEQUENCES * WEIGHTS // weights))


def usual_reference(model: HookedTransformer) -> int:
    """How many sequences of text the means of an ablation are of, unless somebody says."""
    return REFERENCE_TEXT * usual_sequences(model) // SEQUENCES


def ablations(
    model: HookedTransformer,
    layers: Sequence[int] | None = None,
    tokens: Batch | None = None,
    *,
    n: int = EXAMPLES,
    n_reference: int | None = None,
) -> pd.DataFrame:
    """Every head (of some ``layers``) alone and all at once, by each method of ablation.

    Constants and resampled rows come from ordinary sequences: of the task, or of the validation
    part of a text; a model without either takes them from ``tokens``.

    Args:
        tokens: what is measured on; the probes of the model's task unless given.
        n: sequences of the probes.
        n_reference: sequences that constants come from.

    Returns:
        As :func:`~gated_interp.analysis.ablation.ablate`.
    """
    task: Any = getattr(model, "task", None)
    methods, seed = list(METHODS), SEED if tokens is None else 0
    data: Any = tokens
    reference: Tokens
    if tokens is None:
        data = probes_for(task, token_vocabulary(model), n, SEED)
        reference = task.sample(
            n_reference or REFERENCE, derive(SEED, Stream.SHOWN_REFERENCE)
        ).tokens
    else:
        reference = tokens
        if isinstance(task, TextTask):
            n_reference = n_reference or usual_reference(model)
            drawn = task.part("validation").sample(n_reference, seed)
            reference = Batch(drawn.tokens)  # a document may end where a sequence does
        methods.remove("optimal")
        # A padded row has nothing to take another's place; and of a model with many weights, a
        # third method takes long and says little that the others do not.
        if Batch.of(model, reference).real is not None or usual_sequences(model) < SEQUENCES:
            methods.remove("resample")
    each: list[int | None] = [None] if layers is None else [*layers]
    asked = [
        (method, *some)
        for layer in each
        for method in methods
        for some in sets_of(model, heads_of(model, layer))
        # All heads of the model are ablated once, not with each layer.
        if some[0] != "all" or layer == each[-1]
    ]
    return ablate_sets(
        model,
        data,
        asked,
        task=task if tokens is None else None,
        reference_tokens=reference,
        seed=derive(seed, Stream.SHOWN_RESAMPLE),
    )


def answer_word(task: ProbedTask) -> str:
    """What is said of the right answer in titles and on axes: a trigram's is its C."""
    return "C" if isinstance(task, SkipTrigramTask) else "the answer"


def marks_of(found: dict[int, list[int]], task: ProbedTask) -> dict[int, str]:
    """By head, the answers of what it holds; the names of the cases where answers are shared."""
    answers = {b: name.rpartition("→")[2] for b, name in task.cases.items()}
    words = answers if len(set(answers.values())) == len(answers) else task.cases
    marks: dict[int, str] = {}
    for b, heads in found.items():
        for h in heads:
            marks[h] = f"{marks.get(h, '')} {words[b]}".strip()
    return marks


def _require_case(model: HookedTransformer, trigram: int) -> None:
    task = getattr(model, "task", None)
    if not isinstance(task, ProbedTask):
        name = getattr(model, "model_name", "the model")
        raise GatedInterpError("no-trigrams-in-text", model=name)
    if trigram not in task.cases:
        raise GatedInterpError(
            "no-such-case", word=task.case_word, case=trigram, last=len(task.cases)
        )
