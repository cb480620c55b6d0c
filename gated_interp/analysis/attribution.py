"""Whose work a logit is: direct attributions that add up to the logit they split.

The final logit is a sum over everything written to the residual stream: embeddings, heads, MLPs,
biases. With a final normalisation (or one behind each layer) the sum is exact once its scale is
frozen at its value in the same forward pass, as in TransformerLens' ``ActivationCache``. Where
logits are capped (``output_logits_soft_cap``), those before the cap are split: no sum passes it.
Every function checks its own sum.
"""

import dataclasses
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens import ActivationCache

from gated_interp.analysis.heads import all_heads, head_name
from gated_interp.anatomy.attention import clipped_values, query_heads
from gated_interp.anatomy.batch import Batch, Mask, Tokens
from gated_interp.anatomy.stream import RAW_LOGITS, Readout, logit_bias, write_norm
from gated_interp.core.errors import GatedInterpError
from gated_interp.core.precision import wide
from gated_interp.models.toy import HookedTransformer
from gated_interp.tasks.skip_trigrams import SkipTrigramTask, TrigramBatch

# How far a sum of parts may be from its whole, relative to the size of the parts; in 16 bits, a
# few roundings of the model's own.
TOLERANCE, ROUNDINGS = 1e-4, 4


@dataclasses.dataclass(frozen=True)
class Attribution:
    """A logit at some positions, split into what wrote it.

    Attributes:
        components: ``embed``, ``pos_embed`` (where it is added to the stream), ``L0 b_O``..,
            ``L0 mlp``.. (where there are MLPs), ``L0H0``.., ``bias`` (of the final normalisation
            and the unembedding).
        values: ``[example component]``, each component's share of the logit.
        logits: ``[example]``, the model's own logit (before a cap); the sum of its row of
            ``values``.
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
            {"trigram": b + 1, "head": head, "source": name, "value": self.values[b, h, t].item()}
            for b in range(self.values.shape[0])
            for h, head in enumerate(self.heads)
            for t, name in enumerate(token_names)
        ]
        return pd.DataFrame(rows)


@torch.no_grad()
def logit_attribution(
    model: HookedTransformer,
    tokens: Tokens,
    rows: Int[Tensor, " example"],
    positions: Int[Tensor, " example"],
    targets: Int[Tensor, " example"],
    *,
    attention_mask: Mask | None = None,
) -> Attribution:
    """Split the logit of ``targets`` at some positions over embeddings, heads and biases.

    Args:
        rows, positions: which row and position of ``tokens`` each example is.
        targets: the token whose logit is split.
        attention_mask: ``[batch pos]``, 1 at tokens and 0 at padding.

    Raises:
        GatedInterpError: tokens the model cannot read, targets or positions that are not there (or
            padding), or parts that do not add up (an architecture this does not cover).

    Examples:
        >>> from gated_interp.models.analytic import manual_model
        >>> truth = manual_model(2, 3)  # trigram 1 is held by head 0, 2 by head 1, 3 by both
        >>> tokens, row, pos, c1 = torch.tensor([[7, 0, 1]]), *torch.tensor([[0], [2], [4]])
        >>> split = logit_attribution(truth.model, tokens, row, pos, c1)
        >>> dict(zip(split.components, split.values[0].tolist(), strict=True))["L0H0"]
        2.0
    """
    run = _Run.of(model, Batch.of(model, tokens, attention_mask), rows, positions, targets)
    names, direct = run.direct()
    heads = [run.heads(layer) for layer in range(model.cfg.n_layers)]
    values = torch.cat([torch.stack(direct, 1), *heads, run.bias[:, None]], 1)
    _check_sum(model, values, run.logits)
    names += [head_name(head) for head in all_heads(model)]
    return Attribution([*names, "bias"], values, run.logits)


@torch.no_grad()
def source_attribution(
    model: HookedTransformer,
    tokens: Tokens,
    rows: Int[Tensor, " example"],
    positions: Int[Tensor, " example"],
    targets: Int[Tensor, " example"],
    *,
    attention_mask: Mask | None = None,
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
    run = _Run.of(model, Batch.of(model, tokens, attention_mask), rows, positions, targets)
    return run.by_source()


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
    targets = batch.trigram + task.n_trigrams
    tokens = Batch.of(model, batch.tokens)
    run = _Run.of(model, tokens, batch.example, batch.destination_pos, targets)
    direct, logits = torch.stack([*run.direct()[1], run.bias], 1), run.logits
    one_hot = torch.nn.functional.one_hot(tokens.tokens[batch.example], task.d_vocab)
    edges = run.by_source()
    by_token = torch.einsum("ehk,ekv->ehv", edges, one_hot.to(edges))
    _check_sum(model, torch.cat([by_token.flatten(1), direct], 1), logits)
    task.require_each(batch.trigram)
    mean: list[list[Tensor]] = []
    for b in task.trigrams:
        mine = batch.trigram == b
        rest = direct[mine].sum(1)
        mean.append([by_token[mine].mean(0), rest.mean(0), logits[mine].mean(0)])
    values, rests, wholes = (torch.stack(part) for part in zip(*mean, strict=True))
    return EdgeLoadings([head_name(h) for h in all_heads(model)], values, rests, wholes)


def _require_within(what: str, index: Tensor, size: int) -> None:
    if index.numel() == 0:
        raise GatedInterpError("nothing-named", what=what)
    low, high = int(index.min()), int(index.max())
    if low < 0 or high >= size:
        raise GatedInterpError(
            "no-such-entry", what=what, index=low if low < 0 else high, last=size - 1
        )


@dataclasses.dataclass(frozen=True)
class _Run:
    """One forward pass, and of each example the direction in the stream that its logit is.

    Attributes:
        at: rows and positions of the examples.
        final: the vector whose dot product with the stream is the logit, norms at their scale.
        bias: what the logit holds beside the stream.
        logits: the model's own, before a cap.
    """

    model: HookedTransformer
    cache: ActivationCache
    at: tuple[Tensor, Tensor]
    targets: Int[Tensor, " example"]
    final: Float[Tensor, "example d_model"]
    bias: Float[Tensor, " example"]
    logits: Float[Tensor, " example"]

    @classmethod
    def of(
        cls,
        model: HookedTransformer,
        batch: Batch,
        rows: Tensor,
        positions: Tensor,
        targets: Tensor,
    ) -> "_Run":
        _require_within("row", rows, len(batch))
        _require_within("position", positions, batch.tokens.shape[1])
        _require_within("target token", targets, model.cfg.d_vocab_out)
        if not bool(batch.counted[rows, positions].all()):
            raise GatedInterpError("example-at-padding")
        _, cache = batch.cache(model)
        logits = wide(cache[RAW_LOGITS])[rows, positions, targets]
        at = rows, positions
        stream = _directions(Readout.of(model), cache, at, targets)
        return cls(model, cache, at, targets, stream, logit_bias(model)[targets], logits)

    def written(self, layer: int) -> Float[Tensor, "example d_model"]:
        """The direction in what the attention of ``layer`` writes, before a norm behind it."""
        return _directions(Readout.of(self.model, layer), self.cache, self.at, self.targets)

    def direct(self) -> tuple[list[str], list[Float[Tensor, " example"]]]:
        """What reaches the logit without a head: embeddings, MLPs, and each layer's biases."""
        names = ["embed"]
        values = [self._along("hook_embed")]
        if self.model.cfg.positional_embedding_type == "standard":
            names.append("pos_embed")
            values.append(self._along("hook_pos_embed"))
        for layer, block in enumerate(self.model.blocks):
            names.append(f"L{layer} b_O")
            values.append(self.written(layer) @ wide(block.attn.b_O))
            norm = write_norm(self.model, layer)
            if norm is not None and norm.bias is not None:
                values[-1] = values[-1] + self.final @ norm.bias
            if not self.model.cfg.attn_only:
                names.append(f"L{layer} mlp")
                values.append(self._along(f"blocks.{layer}.hook_mlp_out"))
        return names, values

    def _along(self, name: str) -> Float[Tensor, " example"]:
        return (wide(self.cache[name][self.at]) * self.final).sum(-1)

    def heads(self, layer: int) -> Float[Tensor, "example head_index"]:
        """What each head of ``layer`` adds."""
        z = wide(self.cache[f"blocks.{layer}.attn.hook_z"][self.at])
        W_O = wide(self.model.blocks[layer].attn.W_O)
        return torch.einsum("ehd,hdm,em->eh", z, W_O, self.written(layer))

    def by_source(self) -> Float[Tensor, "example head_index pos"]:
        """What each head adds from each source position; checked against what it adds."""
        layers = []
        for layer, block in enumerate(self.model.blocks):
            pattern, v = read_pairs(self.cache, layer, block.attn)
            pattern, v = pattern[self.at[0], :, self.at[1]], v[self.at[0]]
            along = torch.einsum("hdm,em->ehd", wide(block.attn.W_O), self.written(layer))
            # A head that was not picked wrote nothing, wherever it looked.
            wrote = (self.cache[f"blocks.{layer}.attn.hook_z"][self.at] != 0).any(-1)
            edges = pattern * torch.einsum("ekhd,ehd->ehk", v, along) * wrote[..., None]
            for mine, whole in zip(edges.unbind(1), self.heads(layer).unbind(1), strict=True):
                _check_sum(self.model, mine, whole)
            layers.append(edges)
        return torch.cat(layers, 1)


def _directions(
    readout: Readout, cache: ActivationCache, at: tuple[Tensor, Tensor], targets: Tensor
) -> Float[Tensor, "example d_model"]:
    scale = readout.scale(cache)
    columns = readout.matrix[:, targets].T
    return columns / scale[at] if isinstance(scale, Tensor) else columns


def read_pairs(
    cache: ActivationCache, layer: int, attn: Any
) -> tuple[
    Float[Tensor, "batch head_index query_pos key_pos"],
    Float[Tensor, "batch key_pos head_index d_head"],
]:
    """What each head of a layer reads with (gated attention) and what from (values).

    Clipped values (``clip_qkv``) are clipped; heads that share values have each their own.
    """
    prefix = f"blocks.{layer}.attn."
    if prefix + "hook_v" not in cache:
        raise GatedInterpError("layer-without-sources", layer=layer, kind=type(attn).__name__)
    gated = prefix + "hook_gated_pattern"
    pattern = wide(cache[gated if gated in cache else prefix + "hook_pattern"])
    v = wide(clipped_values(attn, cache[prefix + "hook_v"]))
    return pattern, query_heads(v, pattern.shape[1])


def _check_sum(
    model: HookedTransformer, parts: Float[Tensor, "example part"], whole: Float[Tensor, " example"]
) -> None:
    tolerance = max(TOLERANCE, ROUNDINGS * torch.finfo(model.embed.W_E.dtype).eps)
    miss = (parts.sum(1) - whole).abs()
    size = parts.abs().sum(1).clamp(min=1)
    if bool((miss > tolerance * size).any()):
        raise GatedInterpError("attribution-does-not-add-up", miss=miss.max().item())
