"""All heads of a model at a glance: what each is worth, and which attend in a known way.

A deep model has too many heads to read one by one. This says where to look first.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from gated_interp.analysis.heads import all_heads, head_counts, intervened
from gated_interp.analysis.induction import (
    attention_in,
    bos_of_model,
    followers,
    repeated_random_tokens,
)
from gated_interp.analysis.rest import Rest
from gated_interp.analysis.text_pairs import own_text
from gated_interp.anatomy.batch import Batch, Mask, Tokens, logit_rows
from gated_interp.core.errors import GatedInterpError
from gated_interp.core.precision import wide
from gated_interp.metrics.predictions import losses_by_position
from gated_interp.models.toy import HookedTransformer
from gated_interp.replacements.splice import originals

SEQUENCES, REPEATED = 16, 8
# A head is marked where this share of its attention goes where the mark says.
MARKED = 0.4
# Heads times tokens times weights: below it every head is ablated (a minute or less).
EXACT = 2**40
MARKS = {
    "prefix_matching": "induction",
    "previous_token": "previous token",
    "first_token": "first token",
}
"""What a head is marked as, by the column of its score."""


@dataclasses.dataclass(frozen=True, eq=False)
class HeadOverview:
    """Every head of a model. Made by :func:`head_overview`.

    Attributes:
        table: one row per head: ``layer``, ``head``, ``effect`` (by how many nats per token the
            loss on the text rises without it), ``effect_repeats`` (the same where random tokens are
            repeated), ``prefix_matching`` (there), ``previous_token`` and ``first_token`` (on the
            text), each the mean share of the head's attention, 0 to 1, and ``replaced``, whether a
            block is spliced into its layer. Of a model without room for repeats, or without a token
            to begin with, what they would say is missing.
        exact: whether effects are measured by ablating each head, or estimated.
        loss, loss_repeats: of the model as it is, in nats per token.
        spliced: the layers that hold a replacement.
    """

    table: pd.DataFrame
    exact: bool
    loss: float
    loss_repeats: float
    spliced: list[int]

    @property
    def layers(self) -> pd.DataFrame:
        """``effect`` and ``effect_repeats`` by layer: the sums over its heads."""
        return self.table.groupby("layer")[["effect", "effect_repeats"]].sum(min_count=1)

    @property
    def marks(self) -> list[list[str]]:
        """Of each row, what the head is marked as, of :data:`MARKS`."""
        scores = self.table[[*MARKS]].to_numpy(float)
        return [
            [word for word, score in zip(MARKS.values(), row, strict=True) if score >= MARKED]
            for row in scores
        ]

    @property
    def layer(self) -> int:
        """The layer to look at first: see :attr:`why`."""
        return self._chosen[0]

    @property
    def why(self) -> str:
        """Why that one, in a sentence."""
        return self._chosen[1]

    @property
    def _chosen(self) -> tuple[int, str]:
        if self.spliced:
            return self.spliced[0], f"Layer {self.spliced[0]} holds a replacement."
        inducing = [i for i, marks in enumerate(self.marks) if MARKS["prefix_matching"] in marks]
        column, where = "effect", "text"
        layers = self.layers
        if inducing:
            column, where = "effect_repeats", "repeated tokens"
            layers = self.table.iloc[inducing].groupby("layer")[[column]].sum()
        best = int(layers[column].idxmax())
        how = "" if self.exact else ", as estimated"
        which = "induction heads of all layers" if inducing else "heads of all layers"
        return best, (
            f"Layer {best} has the {which} without which the loss on {where} rises most"
            f" ({layers[column][best]:+.2g} nats in all{how})."
        )


def head_overview(
    model: HookedTransformer,
    tokens: Tokens | None = None,
    *,
    n: int = REPEATED,
    seed: int = 0,
    bos: int | None = None,
    exact: bool | None = None,
    attention_mask: Mask | None = None,
) -> HeadOverview:
    """What every head of every layer is worth, and which attend in a known way.

    A head is worth what the loss rises by when its output is replaced by its mean over the same
    sequences (mean ablation). In a large model this takes a pass for each head, so there it is
    estimated, to first order, from one backward pass: the gradient of the loss, times what the
    ablation would change (attribution patching; Syed et al., *Attribution Patching Outperforms
    Automated Circuit Discovery*, 2023). The estimate finds the heads that matter. It misses what a
    norm or a saturated softmax makes of a large change, so measure the heads that you write about
    with :func:`~gated_interp.analysis.ablation.ablate`.

    Args:
        tokens: text; 16 sequences of the ``test`` part of the model's own unless given.
        n: sequences of repeated random tokens.
        seed: of these.
        bos: the token they begin with; that of the model's task unless given.
        exact: whether each head is ablated; by the size of the model unless given.
        attention_mask: of ``tokens``, 1 at tokens and 0 at padding.

    Raises:
        GatedInterpError: no text, tokens the model cannot read, a model that predicts no tokens, or
            a layer without attention.

    Examples:
        >>> from gated_interp.models.analytic_tasks import induction_model
        >>> truth = induction_model()
        >>> found = head_overview(truth.model, truth.task.sample(20, seed=0).tokens, bos=0)
        >>> found.marks, found.layer, found.exact
        ([['previous token'], ['induction']], 1, True)
    """
    text = own_text(model, tokens, "test", SEQUENCES, seed, attention_mask)
    text.require_loss()
    repeated = _repeated(model, n, seed, bos)
    if exact is None:
        read = text.tokens.numel() + (0 if repeated is None else repeated.tokens.numel())
        weights = sum(p.numel() for p in model.parameters())
        exact = len(all_heads(model)) * read * weights < EXACT
    table = pd.DataFrame(all_heads(model), columns=["layer", "head"])
    loss, effect, scores = _of(model, text, text.predicts, exact, _on_text)
    table["effect"] = effect
    loss_repeats, effect, seen = float("nan"), float("nan"), {"prefix_matching": float("nan")}
    if repeated is not None:
        after = followers(repeated)
        known = repeated.predicts & after[:, :-1].any(-1)
        loss_repeats, effect, seen = _of(model, repeated, known, exact, _on_repeats)
    table["effect_repeats"] = effect
    for name in MARKS:
        table[name] = (scores | seen)[name]
    spliced = sorted(originals(model))
    table["replaced"] = table["layer"].isin(spliced)
    return HeadOverview(table, exact, loss, loss_repeats, spliced)


def _repeated(model: HookedTransformer, n: int, seed: int, bos: int | None) -> Batch | None:
    """Repeated random tokens; ``None`` where the model has no room or no token to begin with."""
    try:
        bos = bos_of_model(model, bos)
        return Batch.of(model, repeated_random_tokens(model, n, seed=seed, bos=bos))
    except GatedInterpError as error:
        if error.code in ("no-first-token", "context-too-short-for-repeats"):
            return None
        raise


Scores = dict[str, Any]
Score = Callable[[Float[Tensor, "batch head query_pos key_pos"], Batch], dict[str, Tensor]]


def _on_text(pattern: Tensor, batch: Batch) -> dict[str, Tensor]:
    """Attention to the token before and to the first, at every position but the first two."""
    asked = batch.later[:, 1:] & batch.later[:, :-1]
    first = batch.counted.long().argmax(1)  # padding may stand before it
    sink = pattern.gather(3, first[:, None, None, None].expand(*pattern.shape[:3], 1))[..., 0]
    before = pattern.diagonal(-1, 2, 3)
    n = asked.sum().clamp(min=1)
    return {
        "previous_token": (before * asked[:, None]).sum((0, 2)) / n,
        "first_token": (sink[:, :, 1:] * asked[:, None]).sum((0, 2)) / n,
    }


def _on_repeats(pattern: Tensor, batch: Batch) -> dict[str, Tensor]:
    """Attention to the keys that follow an earlier copy of the query's token."""
    after = followers(batch)
    return {"prefix_matching": (pattern * after[:, None]).sum((0, 2, 3)) / after.any(-1).sum()}


def _of(
    model: HookedTransformer,
    batch: Batch,
    known: Bool[Tensor, "batch next_pos"],
    exact: bool,
    score: Score,
) -> tuple[float, list[float], Scores]:
    """The loss at the ``known`` positions, the effect of each head on it, and its scores."""
    found = _estimated(model, batch, known, score, gradients=not exact)
    if exact:
        return found[0], _ablated(model, batch, known, found[0]), found[2]
    return found


def _estimated(
    model: HookedTransformer,
    batch: Batch,
    known: Bool[Tensor, "batch next_pos"],
    score: Score,
    *,
    gradients: bool,
) -> tuple[float, list[float], Scores]:
    """One pass forward and, for the ``gradients``, one back."""
    counts, n = head_counts(model), int(known.sum())
    loss = 0.0
    # Per layer: of z and its gradient, over all positions, what a mean ablation needs.
    sums = [[0.0, 0.0, 0.0] for _ in counts]
    scores: dict[str, list[Any]] = {}
    weight = 0
    for part, mine in _parts(model, batch, known):
        z: dict[int, Tensor] = {}
        patterns: dict[str, Tensor] = {}
        edits: dict[str, Callable[[Tensor], Tensor | None]] = {}
        for layer in range(len(counts)):
            edits[f"blocks.{layer}.attn.hook_z"] = _held(z, layer, gradients)
            for name in ("hook_pattern", "hook_gated_pattern"):
                if (hook := f"blocks.{layer}.attn.{name}") in model.hook_dict:
                    edits[hook] = _seen(patterns, hook)
        with torch.set_grad_enabled(gradients), intervened(model, edits):
            losses = losses_by_position(part.logits(model), part.tokens)[mine].sum()
        loss += float(losses.detach()) / n
        if gradients:
            given = torch.autograd.grad(losses / n, list(z.values()))
            for layer, (held, slope) in enumerate(zip(z.values(), given, strict=True)):
                there = part.counted[..., None, None]
                held, slope = wide(held.detach()) * there, wide(slope)
                new = (held * slope).sum((0, 1, 3)), slope.sum((0, 1)), held.sum((0, 1))
                sums[layer] = [a + b for a, b in zip(sums[layer], new, strict=True)]
        weight += len(part)
        for layer, heads in enumerate(counts):
            for name, value in score(attention_in(_Cache(patterns), layer, heads), part).items():
                layers = scores.setdefault(name, [0.0] * len(counts))
                layers[layer] = layers[layer] + len(part) * value.double().cpu()
    total = batch.counted.sum()
    effects: list[float] = []
    for own, slope, held in sums if gradients else ():
        change = (slope * held / total).sum(-1) - own  # type: ignore[attr-defined]
        effects += change.double().tolist()
    each = {name: (torch.cat(layers) / weight).tolist() for name, layers in scores.items()}
    return loss, effects, each


@torch.no_grad()
def _ablated(
    model: HookedTransformer, batch: Batch, known: Bool[Tensor, "batch next_pos"], loss: float
) -> list[float]:
    """By how much the loss rises with each head's z at its mean, head by head."""
    effects = []
    for layer, heads in enumerate(head_counts(model)):
        rest = Rest(model, layer, batch)
        mean = batch.mean(wide(rest.z)).to(rest.z)
        step = rest.rows_at_once()
        for head in range(heads):
            total = 0.0
            for first in range(0, len(batch), step):
                rows = slice(first, first + step)
                z = rest.z[rows].clone()
                z[:, :, head] = mean[head]
                losses = losses_by_position(rest.logits(z, rows=rows), batch.tokens[rows])
                total += float(losses[known[rows]].double().sum())
            effects.append(total / int(known.sum()) - loss)
    return effects


def _parts(
    model: HookedTransformer, batch: Batch, known: Tensor
) -> list[tuple[Batch, Bool[Tensor, "batch next_pos"]]]:
    rows = logit_rows(batch, model.cfg.d_vocab_out)
    return list(zip(batch.split(rows), known.split(rows), strict=True))


def _held(z: dict[int, Tensor], layer: int, gradients: bool) -> Callable[[Tensor], Tensor | None]:
    """Keeps a layer's z, as what a gradient can be asked of."""

    def keep(value: Tensor) -> Tensor | None:
        if gradients and not value.requires_grad:
            value = value.detach().requires_grad_()
        z[layer] = value
        return value if gradients else None

    return keep


def _seen(patterns: dict[str, Tensor], hook: str) -> Callable[[Tensor], None]:
    def keep(value: Tensor) -> None:
        patterns[hook] = value.detach()

    return keep


@dataclasses.dataclass(frozen=True)
class _Cache:
    """Activations by their hook points, as :func:`attention_in` takes them."""

    cache_dict: dict[str, Tensor]
