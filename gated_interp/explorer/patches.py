"""Two prompts on the bench: what each head, and each path, carries of their difference."""

import dataclasses
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from gated_interp.analysis.ablation import Method
from gated_interp.analysis.heads import Head
from gated_interp.analysis.patching import Paths
from gated_interp.analysis.rest import Rest
from gated_interp.anatomy.stream import logits_of
from gated_interp.core.errors import GatedInterpError
from gated_interp.explorer.asked import Asked
from gated_interp.explorer.bench import AT_ONCE, Bench, kept

PARTS = ("query", "key", "value", "gate score")
"""What a head receives; a gate's score is what its gate's query and key make together."""
HOOKS = dict(zip(PARTS, ("hook_q", "hook_k", "hook_v", "hook_gate_scores"), strict=True))
# Answers that differ by less count as the same: a share of the larger, and nats or logits.
LEAST, LEAST_NATS = 1e-3, 1e-3


@dataclasses.dataclass(frozen=True)
class Pair:
    """Two prompts, and what is asked of them.

    Attributes:
        tokens: the first prompt, whose run is changed.
        other: the second, whose activations are put in.
        off, method: the heads that are off in both runs, and how.
        position, asked: the question, with the first prompt's tokens also for the second.
    """

    tokens: tuple[int, ...]
    other: tuple[int, ...]
    off: frozenset[Head]
    method: Method
    position: int
    asked: Asked

    @property
    def runs(self) -> tuple[object, ...]:
        """What the two runs depend on, whatever is asked."""
        return self.tokens, self.other, self.off, self.method if self.off else "zero"


@dataclasses.dataclass(frozen=True)
class Receiver:
    """Where a path ends.

    Attributes:
        head: a head, or ``None`` for the logits.
        part: what it receives, one of :data:`PARTS`.
    """

    head: Head | None = None
    part: str = PARTS[0]


class Patches:
    """Patching on one model, for the pairs of prompts that were asked for.

    A *share* is how far the answer moves from the first prompt's to the second's: ``(patched -
    first) / (second - first)``. 0 moves nothing, 1 moves it all the way.

    Args:
        bench: of the model.
    """

    def __init__(self, bench: Bench):
        self.bench = bench
        self._answers: dict[tuple[object, ...], tuple[float, float]] = {}
        self._ends: dict[tuple[object, ...], Tensor] = {}
        self._streams: dict[tuple[object, ...], Tensor] = {}
        self._shares: dict[tuple[object, ...], list[float]] = {}
        self._paths: dict[tuple[object, ...], Paths] = {}
        self._along: dict[tuple[object, ...], list[float]] = {}

    def answers(self, pair: Pair) -> tuple[float, float]:
        """What is asked, of the first prompt and of the second.

        Raises:
            GatedInterpError: the prompts differ in length, or their answers do not differ.
        """
        if len(pair.tokens) != len(pair.other):
            raise GatedInterpError(
                "prompts-differ-in-length", first=len(pair.tokens), second=len(pair.other)
            )

        def found() -> tuple[float, float]:
            where = pair.asked.where(pair.position)
            first, second = self._asked(
                pair, logits_of(self.bench.model, self._both(pair)[:, where])
            )
            return first, second

        first, second = kept(self._answers, (*pair.runs, pair.position, pair.asked), found)
        least, limit = LEAST * max(abs(first), abs(second)), f"{LEAST:.1%} of the larger"
        if pair.asked.metric is None and least < LEAST_NATS:
            least, limit = LEAST_NATS, f"{LEAST_NATS:g}"
        if not abs(second - first) > least:
            raise GatedInterpError(
                "prompts-answer-alike",
                asked=pair.asked.name,
                first=first,
                second=second,
                difference=abs(second - first),
                limit=limit,
            )
        return first, second

    def heads(self, pair: Pair, layer: int) -> list[float]:
        """The share of each head of ``layer``: what it writes is taken from the second prompt."""
        first, second = self.answers(pair)

        def found() -> list[float]:
            where = pair.asked.where(pair.position)
            changed: list[float] = []
            for stream in self._without(pair, layer):
                changed += self._asked(pair, logits_of(self.bench.model, stream[None, where]))
            return [(value - first) / (second - first) for value in changed]

        key = (*pair.runs, pair.position, pair.asked, layer)
        return kept(self._shares, key, found, 256)

    def unmeasured(self, pair: Pair) -> list[int]:
        """The layers whose :meth:`heads` are not known yet."""
        key = (*pair.runs, pair.position, pair.asked)
        return [at for at in range(len(self.bench.counts)) if (*key, at) not in self._shares]

    def paths(self, pair: Pair, receiver: Receiver, layer: int) -> list[float]:
        """The share of the path from each head of ``layer`` to ``receiver`` alone."""
        first, second = self.answers(pair)

        @torch.no_grad()
        def found() -> list[float]:
            changed: list[float] = []
            with self.bench.ablated(pair.off, pair.method):
                paths = kept(
                    self._paths, (*pair.runs, receiver), lambda: self._to(pair, receiver), 2
                )
                for head in range(self.bench.counts[layer]):
                    logits = paths.patched((layer, head))[:, pair.asked.where(pair.position)]
                    changed += self._asked(pair, logits)
            return [(value - first) / (second - first) for value in changed]

        key = (*pair.runs, pair.position, pair.asked, receiver, layer)
        return kept(self._along, key, found, 256)

    def unmeasured_paths(self, pair: Pair, receiver: Receiver) -> list[int]:
        """The layers before ``receiver`` whose :meth:`paths` are not known yet."""
        key = (*pair.runs, pair.position, pair.asked, receiver)
        return [at for at in range(self.before(receiver)) if (*key, at) not in self._along]

    def before(self, receiver: Receiver) -> int:
        """How many layers have heads whose paths may end at ``receiver``."""
        return len(self.bench.counts) if receiver.head is None else receiver.head[0]

    def parts(self, head: Head) -> tuple[str, ...]:
        """What ``head`` receives."""
        hooks = self.bench.model.hook_dict
        return tuple(p for p in PARTS if f"blocks.{head[0]}.attn.{HOOKS[p]}" in hooks)

    def _both(self, pair: Pair) -> Float[Tensor, "2 pos d_model"]:
        """The stream behind the last layer, of each prompt."""

        @torch.no_grad()
        def found() -> Tensor:
            bench, last = self.bench, len(self.bench.counts)
            with bench.ablated(pair.off, pair.method):
                each = [
                    bench.row(tokens).logits(bench.model, stop_at_layer=last)
                    for tokens in (pair.tokens, pair.other)
                ]
            return torch.cat(each)

        return kept(self._ends, pair.runs, found, 4)

    def _to(self, pair: Pair, receiver: Receiver) -> Paths:
        model, row = self.bench.model, self.bench.row
        name, head = f"blocks.{len(self.bench.counts) - 1}.hook_resid_post", None
        if receiver.head is not None:
            layer, head = receiver.head
            name = f"blocks.{layer}.attn.{HOOKS[receiver.part]}"
        return Paths(model, row(pair.tokens), row(pair.other), name, head)

    def _without(self, pair: Pair, layer: int) -> Float[Tensor, "head_index pos d_model"]:
        """The stream behind the last layer with each head's ``z`` from the second prompt."""
        # Drawn anew for each row of a batch, so one row is run at a time.
        few = 1 if pair.off and pair.method == "resample" else AT_ONCE

        @torch.no_grad()
        def found() -> Tensor:
            bench, streams = self.bench, []
            with bench.ablated(pair.off, pair.method):
                rest, other = (
                    Rest(bench.model, layer, bench.row(tokens))
                    for tokens in (pair.tokens, pair.other)
                )
                for heads in torch.split(torch.arange(rest.z.shape[2], device=rest.z.device), few):
                    z = rest.z.repeat(len(heads), 1, 1, 1)
                    rows = torch.arange(len(heads), device=z.device)
                    z[rows, :, heads] = other.z[0].transpose(0, 1)[heads]
                    streams.append(rest.stream(z, torch.zeros_like(heads)))
            return torch.cat(streams)

        return kept(self._streams, (*pair.runs, layer), found, 4)

    def _asked(
        self, pair: Pair, logits: Float[Tensor, "batch some_pos d_vocab"]
    ) -> Sequence[float]:
        """What is asked, of each row; the question is the first prompt's."""
        where = pair.asked.where(pair.position)
        intact = self.bench.intact(pair.tokens)[where]
        rows = self.bench.row(pair.tokens).tokens.repeat(len(logits), 1)
        found: list[float] = pair.asked.of(logits, rows, pair.position, intact).tolist()
        return found
