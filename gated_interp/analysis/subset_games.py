"""The value of subsets of heads: in closed form where logits are linear in them, else by hooks."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from gated_interp.analysis.heads import (
    Head,
    HeadLike,
    chosen_layer,
    heads_of,
    intervened,
    require_heads,
)
from gated_interp.analysis.logits import (
    MetricFunction,
    Outcome,
    metric_name,
    metric_values,
    together,
)
from gated_interp.analysis.replacements import Method, Reference, constants
from gated_interp.analysis.writes import ProbeWrites, is_linear, probe_writes
from gated_interp.anatomy.batch import (
    Batch,
    Mask,
    Tokens,
    logit_rows,
    logits_at_once,
    token_vocabulary,
)
from gated_interp.core.errors import GatedInterpError
from gated_interp.metrics.predictions import leads, next_token_loss
from gated_interp.models.toy import HookedTransformer
from gated_interp.tasks.task import ProbedTask, Probes, Task, probes_for

Values = dict[str, Float[Tensor, "case subset"]]

MOST = 2**36
"""Logits that are made at most by intervention: minutes of a small model."""


@runtime_checkable
class Game(Protocol):
    """What subsets of some heads are worth, where the others are ablated.

    Attributes:
        heads: whose subsets.
        cases: of the task, each with a value of its own; ``None`` where there is one value.
    """

    @property
    def heads(self) -> list[Head]: ...

    @property
    def cases(self) -> list[int] | None: ...

    def values(self, keep: Float[Tensor, "subset head_index"]) -> Values:
        """By metric, the value of each subset (a row: 1 where the head stays, else 0)."""
        ...


@dataclasses.dataclass(frozen=True)
class LinearGame:
    """Heads of a last layer that add up to the logits: sums in the place of forward passes."""

    heads: list[Head]
    cases: list[int] | None
    examples: "list[Examples]"

    def values(self, keep: Float[Tensor, "subset head_index"]) -> Values:
        """See :class:`Game`."""
        each = [example.values(keep) for example in self.examples]
        return {metric: torch.stack([value[metric] for value in each]) for metric in each[0]}


@dataclasses.dataclass(frozen=True)
class HookedGame:
    """Any heads of any model: a forward pass for each subset, several at once.

    Attributes:
        batch: what the model reads.
        measure: what a subset's logits are worth on some of its rows: from logits ``[row pos
            d_vocab]``, the first row, and how many, to each metric's and case's values.
        rows: sequences that are measured at a time.
        constants: the z of each head that is ablated.
    """

    heads: list[Head]
    cases: list[int] | None
    model: HookedTransformer
    batch: Batch
    measure: Callable[[Tensor, int, int], Outcome]
    rows: int
    constants: dict[Head, Float[Tensor, " d_head"]]

    @torch.no_grad()
    def values(self, keep: Float[Tensor, "subset head_index"]) -> Values:
        """See :class:`Game`."""
        distinct, index = torch.unique(keep, dim=0, return_inverse=True)
        each = self.batch.tokens.numel() * self.model.cfg.d_vocab_out
        if len(distinct) * each > MOST:
            raise GatedInterpError(
                "too-many-subsets", subsets=len(distinct), sequences=len(self.batch)
            )
        found: list[Outcome] = []
        fitting = logits_at_once(self.model.cfg.d_vocab_out)
        at_once = max(1, fitting // (each * self.rows // len(self.batch)))
        for part in torch.split(distinct, at_once):
            measured: list[list[Outcome]] = [[] for _ in part]
            for first in range(0, len(self.batch), self.rows):
                here = self.batch[first : first + self.rows]
                for of_subset, logits in zip(measured, self._logits(part, here), strict=True):
                    of_subset.append(self.measure(logits, first, self.rows))
            found += map(together, measured)
        means = [{name: value.mean().cpu() for name, value in f.items()} for f in found]
        by_metric = {metric: [n for n in means[0] if n[0] == metric] for metric, _ in means[0]}
        return {
            metric: torch.stack([torch.stack([m[name] for m in means]) for name in names])[:, index]
            for metric, names in by_metric.items()
        }

    def _logits(
        self, keep: Float[Tensor, "subset head_index"], part: Batch
    ) -> Float[Tensor, "subset batch pos d_vocab"]:
        batch = len(part)
        stays = (keep > 0).repeat_interleave(batch, 0).to(self.batch.tokens.device)

        def edit_of(layer: int) -> Callable[[Tensor], Tensor | None]:
            members = [(i, head) for i, head in enumerate(self.heads) if head[0] == layer]

            def edit(z: Tensor) -> Tensor:
                z = z.clone()
                for i, head in members:
                    z[~stays[:, i], :, head[1]] = self.constants[head].to(z)
                return z

            return edit

        edits = {f"blocks.{i}.attn.hook_z": edit_of(i) for i in {layer for layer, _ in self.heads}}
        with intervened(self.model, edits):
            logits = part.repeated(len(keep)).logits(self.model)
        return logits.view(len(keep), batch, *logits.shape[1:])


def game_of(
    model: HookedTransformer,
    data: Task | Tokens,
    *,
    layer: int | None,
    heads: Sequence[HeadLike] | None,
    metric: MetricFunction | None,
    method: Method,
    reference_tokens: Tokens | None,
    n: int,
    seed: int,
    attention_mask: Mask | None = None,
    reference_mask: Mask | None = None,
) -> Game:
    """The game that :func:`~gated_interp.analysis.subsets.subset_values` describes."""
    if heads is not None and layer is not None:
        raise GatedInterpError("heads-and-layer")
    if method not in ("zero", "mean"):
        raise GatedInterpError("no-such-subset-method", method=method)
    task = data if isinstance(data, ProbedTask) and metric is None else None
    if heads is None:
        layer = chosen_layer(model, layer)
        named = heads_of(model, layer)
        if task is not None and method == "zero" and is_linear(model, layer):
            return linear_game(probe_writes(model, task, n, seed, layer), named)
    else:
        named = require_heads(model, heads)
    batch, probes = _batch_of(model, data, n, seed, attention_mask)
    # A metric of one's own may be of all logits together, so it gets all of them at once.
    rows = len(batch) if metric is not None else logit_rows(batch, model.cfg.d_vocab_out)
    held = constants(model, named, method, Reference(model, reference_tokens, reference_mask))
    if task is not None and probes is not None:
        return HookedGame(named, probes.cases, model, batch, _answers(probes), rows, held)
    return HookedGame(named, None, model, batch, _measured_by(metric, batch), rows, held)


def _batch_of(
    model: HookedTransformer, data: Task | Tokens, n: int, seed: int, attention_mask: Mask | None
) -> tuple[Batch, Probes | None]:
    device, probes = model.embed.W_E.device, None
    if isinstance(data, ProbedTask):
        probes = probes_for(data, token_vocabulary(model), n, seed).to(device)
        data = probes.tokens
    tokens = data.sample(n, seed).tokens.to(device) if isinstance(data, Task) else data
    return Batch.of(model, tokens, attention_mask), probes


def _answers(probes: Probes) -> Callable[[Tensor, int, int], Outcome]:
    """Logit, lead and accuracy of each case's answer."""

    def measure(logits: Tensor, first: int, rows: int) -> Outcome:
        here = probes.in_rows(first, rows)
        at = logits[here.row, here.position].double()
        lead = leads(at, here.target)
        each = {
            "logit": at.gather(-1, here.target[:, None])[:, 0],
            "lead": lead,
            "accuracy": (lead > 0).double(),
        }
        return {(m, b): value[here.case == b] for m, value in each.items() for b in probes.cases}

    return measure


def _measured_by(
    metric: MetricFunction | None, batch: Batch
) -> Callable[[Tensor, int, int], Outcome]:
    if metric is None:
        batch.require_loss()

    def measure(logits: Tensor, first: int, rows: int) -> Outcome:
        part = batch[first : first + rows]
        if metric is not None:
            values = metric_values(metric, logits, part)
            return {(metric_name(metric), None): values.double()}
        loss = next_token_loss(logits, part.tokens, part.known)
        return {("loss", None): loss.double()}

    return measure


@dataclasses.dataclass(frozen=True)
class Examples:
    """One trigram's examples: what C's logit and its lead over each other token are made of."""

    logit: Float[Tensor, " example"]  # without any head
    logit_writes: Float[Tensor, "example head_index"]
    lead: Float[Tensor, "example other"]  # without any head
    lead_writes: Float[Tensor, "example head_index other"]

    def values(self, keep: Float[Tensor, "subset head_index"]) -> dict[str, Tensor]:
        """Mean logit, lead and accuracy of each subset, ``[subset]``."""
        logit = self.logit.mean() + keep @ self.logit_writes.mean(0)
        e, h, v = self.lead_writes.shape
        flat = self.lead_writes.transpose(0, 1).reshape(h, e * v)
        lead, accuracy = [], []
        for part in torch.split(keep, max(1, 2**22 // (e * v))):
            least = (part @ flat).view(-1, e, v).add_(self.lead).amin(-1)
            lead.append(least.mean(-1))
            accuracy.append((least > 0).double().mean(-1))
        return {"logit": logit, "lead": torch.cat(lead), "accuracy": torch.cat(accuracy)}


def linear_game(probed: ProbeWrites, heads: list[Head]) -> LinearGame:
    """The game of the heads of a last layer, from what each writes at each probe."""
    examples = dict(examples_of(probed.double()))
    return LinearGame(heads, list(examples), list(examples.values()))


def examples_of(found: ProbeWrites) -> Iterator[tuple[int, Examples]]:
    """Each case and what its examples are made of."""
    writes, probes = found.writes, found.probes
    base = found.logits - writes.sum(1)
    for b in probes.cases:
        mine = probes.case == b
        c = probes.target[mine, None]
        other = torch.arange(writes.shape[-1]) != c  # [example d_vocab]
        e, heads, v = writes[mine].shape
        logit = base[mine].gather(1, c)
        written = writes[mine].gather(2, c[:, None].expand(-1, heads, 1))
        yield (
            b,
            Examples(
                logit=logit[:, 0],
                logit_writes=written[..., 0],
                lead=(logit - base[mine])[other].view(e, v - 1),
                lead_writes=(written - writes[mine])[other[:, None].expand(-1, heads, -1)].view(
                    e, heads, v - 1
                ),
            ),
        )
