"""Whose work a logit is: direct attributions that add up to the logit they split.

The final logit is a sum over everything written to the residual stream. With a final
normalisation the sum is exact once its scale is frozen at its value in the same forward pass, as
in TransformerLens' ``ActivationCache``. Every function checks its own sum.
"""

import dataclasses

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens import ActivationCache

from gated_interp.analysis.heads import all_heads, head_name
from gated_interp.analysis.writes import require_tokens
from gated_interp.core.errors import GatedInterpError
from gated_interp.models.toy import HookedTransformer
from gated_interp.tasks.skip_trigrams import SkipTrigramTask, TrigramBatch

# How far a sum of float32 parts may be from its whole, relative to the size of the parts.
TOLERANCE = 1e-4


@dataclasses.dataclass(frozen=True)
class Attribution:
    """A logit at some positions, split into what wrote it.

    Attributes:
        components: ``embed``, ``pos_embed`` (where there is one), ``L0H0``.., ``L0 b_O``..,
            ``bias`` (of the final normalisation and the unembedding).
        values: ``[example component]``, each component's share of the logit.
        logits: ``[example]``, the model's own logit; the sum of its row of ``values``.
    """

    components: list[str]
    values: Float[Tensor, "example component"] = dataclasses.field(repr=False)
    logits: Float[Tensor, " example"] = dataclasses.field(repr=False)

    def to_frame(self) -> pd.DataFrame:
        """One row per example and component: ``example``, ``component``, ``value``."""
        n, c = self.values.shape
        return pd.DataFrame(
            {
                "example": torch.arange(n).repeat_interleave(c).numpy(),
                "component": self.components * n,
                "value": self.values.flatten().cpu().numpy(),
            }
        )


@dataclasses.dataclass(frozen=True)
class EdgeLoadings:
    """How much of each trigram's C logit comes over each (head, source token) edge.

    Attributes:
        heads: the head names, in order.
        values: ``[trigram head_index d_vocab]``, mean over the trigram's occurrences of what the
            head writes to the logit of C from all keys that hold the token.
        direct: ``[trigram]``, mean of what no head writes (embeddings and biases).
        logits: ``[trigram]``, mean logit of C: ``direct`` plus the sum of ``values``.
    """

    heads: list[str]
    values: Float[Tensor, "trigram head_index d_vocab"] = dataclasses.field(repr=False)
    direct: Float[Tensor, " trigram"] = dataclasses.field(repr=False)
    logits: Float[Tensor, " trigram"] = dataclasses.field(repr=False)

    def to_frame(self, token_names: list[str]) -> pd.DataFrame:
        """One row per trigram, head and source token."""
        rows = [
            {
                "trigram": b + 1,
                "head": head,
                "source": name,
                "value": self.values[b, h, t].item(),
            }
            for b in range(self.values.shape[0])
            for h, head in enumerate(self.heads)
            for t, name in enumerate(token_names)
        ]
        return pd.DataFrame(rows)


@torch.no_grad()
def logit_attribution(
    model: HookedTransformer,
    tokens: Int[Tensor, "batch pos"],
    rows: Int[Tensor, " example"],
    positions: Int[Tensor, " example"],
    targets: Int[Tensor, " example"],
) -> Attribution:
    """Split the logit of ``targets`` at some positions over embeddings, heads and biases.

    Args:
        rows, positions: which row and position of ``tokens`` each example is.
        targets: the token whose logit is split.

    Raises:
        GatedInterpError: a model with MLPs, tokens it cannot read, targets or positions that are
            not there, or parts that do not add up (an architecture this does not cover).

    Examples:
        >>> from gated_interp.models.analytic import manual_model
        >>> truth = manual_model(2, 3)  # trigram 1 is held by head 0, 2 by head 1, 3 by both
        >>> tokens, row, pos, c1 = torch.tensor([[7, 0, 1]]), *torch.tensor([[0], [2], [4]])
        >>> split = logit_attribution(truth.model, tokens, row, pos, c1)
        >>> dict(zip(split.components, split.values[0].tolist(), strict=True))["L0H0"]
        2.0
    """
    cache, logits = _run(model, tokens, rows, positions, targets)
    direction, bias = _logit_direction(model, cache, rows, positions, targets)
    names, direct = _direct(model, cache, rows, positions, direction)
    head_values = torch.cat(
        [
            torch.einsum(
                "ehd,hdm,em->eh",
                cache[f"blocks.{layer}.attn.hook_z"][rows, positions],
                block.attn.W_O,
                direction,
            )
            for layer, block in enumerate(model.blocks)
        ],
        1,
    )
    values = torch.cat([torch.stack(direct, 1), head_values, bias[:, None]], 1)
    _check_sum(values, logits)
    heads = [head_name(head) for head in all_heads(model)]
    return Attribution([*names, *heads, "bias"], values, logits)


@torch.no_grad()
def source_attribution(
    model: HookedTransformer,
    tokens: Int[Tensor, "batch pos"],
    rows: Int[Tensor, " example"],
    positions: Int[Tensor, " example"],
    targets: Int[Tensor, " example"],
) -> Float[Tensor, "example head_index pos"]:
    """What each head writes to a logit from each source position, ``[example head_index pos]``.

    Heads of all layers, layer by layer. Summed over positions this is the head's share in
    :func:`logit_attribution`; b_V counts where the head attends.

    Raises:
        GatedInterpError: as :func:`logit_attribution`.

    Examples:
        >>> from gated_interp.models.analytic import manual_model
        >>> truth = manual_model(2, 3)  # trigram 1 is held by head 0, 2 by head 1, 3 by both
        >>> tokens, row, pos, c1 = torch.tensor([[7, 0, 1]]), *torch.tensor([[0], [2], [4]])
        >>> source_attribution(truth.model, tokens, row, pos, c1)[0, 0].tolist()  # all from A
        [0.0, 2.0, 0.0]
    """
    cache, _ = _run(model, tokens, rows, positions, targets)
    direction, _ = _logit_direction(model, cache, rows, positions, targets)
    return _by_source(model, cache, rows, positions, direction)


@torch.no_grad()
def edge_loadings(
    model: HookedTransformer, batch: TrigramBatch, task: SkipTrigramTask
) -> EdgeLoadings:
    """Each trigram's C logit at its B, split over (head, source token) edges.

    Raises:
        GatedInterpError: as :func:`logit_attribution`, or a trigram that never occurs.

    Examples:
        >>> from gated_interp.models.analytic import manual_model
        >>> truth = manual_model(2, 3)  # trigram 1 is held by head 0, 2 by head 1, 3 by both
        >>> edges = edge_loadings(truth.model, truth.task.sample_single(100, seed=0), truth.task)
        >>> edges.values[:, :, 0].tolist()  # from A, over each head
        [[2.0, 0.0], [0.0, 2.0], [1.0, 1.0]]
    """
    at = batch.example, batch.destination_pos
    targets = batch.trigram + task.n_trigrams
    cache, logits = _run(model, batch.tokens, *at, targets)
    direction, bias = _logit_direction(model, cache, *at, targets)
    _, direct = _direct(model, cache, *at, direction)
    edges = _by_source(model, cache, *at, direction)
    one_hot = torch.nn.functional.one_hot(batch.tokens[batch.example], task.d_vocab)
    by_token = torch.einsum("ehk,ekv->ehv", edges, one_hot.to(edges))
    parts = torch.cat([by_token.flatten(1), torch.stack([*direct, bias], 1)], 1)
    _check_sum(parts, logits)
    task.require_each(batch.trigram)
    mean: list[list[Tensor]] = []
    for b in task.trigrams:
        mine = batch.trigram == b
        rest = torch.stack([*direct, bias], 1)[mine].sum(1)
        mean.append([by_token[mine].mean(0), rest.mean(0), logits[mine].mean(0)])
    values, rests, wholes = (torch.stack(part) for part in zip(*mean, strict=True))
    return EdgeLoadings([head_name(h) for h in all_heads(model)], values, rests, wholes)


def _run(
    model: HookedTransformer, tokens: Tensor, rows: Tensor, positions: Tensor, targets: Tensor
) -> tuple[ActivationCache, Float[Tensor, " example"]]:
    if not model.cfg.attn_only:
        raise GatedInterpError("attribution needs an attention-only model; this one has MLPs.")
    require_tokens(model, tokens)
    _require_within("row", rows, tokens.shape[0])
    _require_within("position", positions, tokens.shape[1])
    _require_within("target token", targets, model.cfg.d_vocab)
    logits, cache = model.run_with_cache(tokens)
    return cache, logits[rows, positions, targets]


def _require_within(what: str, index: Tensor, size: int) -> None:
    if index.numel() == 0:
        raise GatedInterpError(f"no {what} is named; name at least one example.")
    low, high = int(index.min()), int(index.max())
    if low < 0 or high >= size:
        raise GatedInterpError(
            f"{what} {low if low < 0 else high} is not there; it must be 0 to {size - 1}."
        )


def _logit_direction(
    model: HookedTransformer,
    cache: ActivationCache,
    rows: Tensor,
    positions: Tensor,
    targets: Tensor,
) -> tuple[Float[Tensor, "example d_model"], Float[Tensor, " example"]]:
    """The vector whose dot product with the residual stream is the logit, and what it leaves out.

    Centring is its own transpose, so the final normalisation at a frozen scale can be moved from
    the residual stream onto the column of W_U.
    """
    column = model.unembed.W_U[:, targets].T
    bias = model.unembed.b_U[targets]
    kind = model.cfg.normalization_type
    if kind is None:
        return column, bias
    final = model.ln_final
    if kind == "LN":
        bias = bias + column @ final.b
    if kind in ("LN", "RMS"):
        column = column * final.w
    if kind in ("LN", "LNPre"):
        column = column - column.mean(-1, keepdim=True)
    return column / cache["ln_final.hook_scale"][rows, positions], bias


def _direct(
    model: HookedTransformer,
    cache: ActivationCache,
    rows: Tensor,
    positions: Tensor,
    direction: Float[Tensor, "example d_model"],
) -> tuple[list[str], list[Float[Tensor, " example"]]]:
    """What reaches the logit without a head: embeddings and each layer's b_O."""
    names, values = ["embed"], [(cache["hook_embed"][rows, positions] * direction).sum(-1)]
    if "hook_pos_embed" in cache:
        names.append("pos_embed")
        values.append((cache["hook_pos_embed"][rows, positions] * direction).sum(-1))
    for layer, block in enumerate(model.blocks):
        names.append(f"L{layer} b_O")
        values.append(direction @ block.attn.b_O)
    return names, values


def _by_source(
    model: HookedTransformer,
    cache: ActivationCache,
    rows: Tensor,
    positions: Tensor,
    direction: Float[Tensor, "example d_model"],
) -> Float[Tensor, "example head_index pos"]:
    layers = []
    for layer, block in enumerate(model.blocks):
        prefix = f"blocks.{layer}.attn."
        if prefix + "hook_v" not in cache:
            raise GatedInterpError(
                f"layer {layer} holds a {type(block.attn).__name__}, which has no source "
                "positions; look at a layer of heads."
            )
        gated = prefix + "hook_gated_pattern"
        pattern = cache[gated if gated in cache else prefix + "hook_pattern"]
        pattern = pattern[rows, :, positions]  # [example head_index key_pos]
        v = cache[prefix + "hook_v"][rows]
        # Grouped queries: several heads read one value head.
        v = v.repeat_interleave(pattern.shape[1] // v.shape[2], 2)
        along = torch.einsum("hdm,em->ehd", block.attn.W_O, direction)
        # A head that was not picked wrote nothing, wherever it looked.
        wrote = (cache[prefix + "hook_z"][rows, positions] != 0).any(-1)
        layers.append(pattern * torch.einsum("ekhd,ehd->ehk", v, along) * wrote[..., None])
    return torch.cat(layers, 1)


def _check_sum(parts: Float[Tensor, "example part"], whole: Float[Tensor, " example"]) -> None:
    miss = (parts.sum(1) - whole).abs()
    size = parts.abs().sum(1).clamp(min=1)
    if bool((miss > TOLERANCE * size).any()):
        raise GatedInterpError(
            f"the parts miss the logit by up to {miss.max().item():.2g}; attribution covers "
            "attention-only models whose residual stream is the sum of embeddings and heads."
        )
