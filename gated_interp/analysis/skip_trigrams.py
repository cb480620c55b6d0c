"""Skip trigrams ``[source] … [destination] -> [out]``, read off the circuits of a layer's heads.

Elhage et al., *A Mathematical Framework for Transformer Circuits* (2021), "Finding skip-trigrams":
the QK circuit says from which destinations a head looks at a source token, the OV circuit what it
then says, and both are read by source. Circuits suggest; what a head does in text is asked of
:func:`~gated_interp.analysis.ablation.ablate`, :func:`~gated_interp.analysis.patching.path_patch`
or :func:`~gated_interp.analysis.read_heads.read_heads`.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from gated_interp.analysis.block_measures import rows_at_once
from gated_interp.analysis.heads import HeadOfLayer, heads_in
from gated_interp.analysis.text_pairs import names_for, own_text, seen_pairs
from gated_interp.anatomy.attention import Attention
from gated_interp.anatomy.batch import Batch, Tokens
from gated_interp.anatomy.stream import HeadReadout, input_norm
from gated_interp.core.errors import GatedInterpError
from gated_interp.core.precision import wide
from gated_interp.core.renamed import layer_first
from gated_interp.models.toy import HookedTransformer
from gated_interp.replacements.gates import gate_activation
from gated_interp.replacements.splice import gated_block

SEQUENCES = 1000
COLUMNS = ["head", "source_id", "destination_id", "out_id"]
COLUMNS += ["qk", "attention", "gate", "ov", "strength"]


@layer_first
@torch.no_grad()
def skip_trigrams(
    model: HookedTransformer,
    layer: int | None = None,
    tokens: Tokens | None = None,
    *,
    heads: Sequence[HeadOfLayer] | None = None,
    names: Sequence[str] | None = None,
    sources: int = 10,
    top: int = 5,
    least: int = 10,
) -> pd.DataFrame:
    """What each head says where, read off its OV, QK and (where it has one) gate circuit.

    Of each head: the ``sources`` whose strongest trigram is strongest; of each of these the ``top``
    destinations by attention times gate, and the ``top`` outputs that it raises; every pair of a
    destination and an output is a row. Attention scores cannot be compared between destinations
    (the softmax forgets what a destination adds to all its scores), so ``attention`` is what the
    score comes to in the softmax: the share of attention that the source gets among as many keys as
    a query has on average, the others drawn from ``tokens`` at random.

    A norm divides by its mean scale on ``tokens``: before the heads that of each token, before the
    unembedding one for all. Positions count by their mean; b_V and what layers before ``layer``
    write do not. Outputs are centred over the vocabulary. One head's ``[kept kept]`` tables are
    made at a time, kept being the tokens that come ``least`` times.

    Args:
        layer: may be left out where it is the only one; the model's own heads, or those of a block
            in its place.
        tokens: text that says which pairs there are: 1,000 sequences of the ``train`` part of the
            model's own text unless given. The token that every sequence begins with is no source.
        heads: only these, each by its number in the layer, as ``(layer, head)`` or by its name,
            such as ``"L0H1"``.
        names: of tokens; the task's unless given.
        least: sequences in which the source stands before the destination.

    Returns:
        Columns ``head``; ``source``, ``destination``, ``out`` (names) and ``source_id``, …
        (numbers); ``qk``, the attention score (nats); ``attention``, 0 to 1; ``gate`` (1 where
        there is none); ``ov``, logits that ``out`` is raised by at an attention of one; and
        ``strength = attention * gate * ov``, logits. Strongest sources first in each head.

    Raises:
        GatedInterpError: no such layer or head, none named of several, no tokens and no text, a
            layer without attention, or numbers that are not positive.

    Examples:
        >>> from gated_interp.models.analytic import manual_model
        >>> truth = manual_model(2, 3)  # trigram 1 is held by head 0, 2 by head 1, 3 by both
        >>> text = truth.task.sample(200, seed=0).tokens
        >>> found = skip_trigrams(truth.model, tokens=text, sources=1, top=1)
        >>> found[["source", "destination", "out"]].agg(" ".join, axis=1).tolist()
        ['A B1 C1', 'A B2 C2']
    """
    layer, named = heads_in(model, layer, heads)
    for name, value in {"sources": sources, "top": top, "least": least}.items():
        if value < 1:
            raise GatedInterpError("too-small", name=name, value=value, least=1)
    attention = require_scored(model, layer)
    batch = own_text(model, tokens, "train", SEQUENCES, padding=False)
    names = names_for(model, names)
    reads = _Reads.of(attention, batch, least)
    rows: list[dict[str, Any]] = []
    for head in named:
        rows += _of_head(reads, attention, head, sources, top, least)
    table = pd.DataFrame(rows, columns=COLUMNS)
    for at, role in enumerate(("source", "destination", "out"), 1):
        table.insert(at, role, [names[i] for i in table[f"{role}_id"]])
    return table


def require_scored(model: HookedTransformer, layer: int) -> Attention:
    """The attention at ``layer``, whose scores depend on the two tokens alone."""
    attention = Attention.of(model, layer)
    found = {k: v for k, v in attention.extras.items() if k not in TOKENS_ALONE}
    for name, value in found.items():
        raise GatedInterpError("scores-depend-on-more", layer=layer, name=name, value=value)
    return attention


# What leaves scores a function of the two tokens, and attention a softmax over all keys before.
TOKENS_ALONE = {"n_key_value_heads", "use_qk_norm", "original_architecture", "clip_qkv"}
TOKENS_ALONE |= {"attn_scores_soft_cap"}


@dataclasses.dataclass(frozen=True)
class _Reads:
    """What a layer's heads read of each token, norms frozen, and how often the tokens come."""

    queries: Float[Tensor, "d_vocab d_model"]
    values: Float[Tensor, "d_vocab d_model"]
    readout: Float[Tensor, "head_index d_head d_vocab_out"]
    chance: Float[Tensor, " d_vocab"]  # logarithm of each token's share
    kept: Int[Tensor, " kept"]
    pairs: Int[Tensor, "kept kept"]
    keys: float  # of a query, on average
    block: Any

    @classmethod
    def of(cls, attention: Attention, batch: Batch, least: int) -> "_Reads":
        model, layer, tokens = attention.model, attention.layer, batch.tokens
        counts = tokens.flatten().bincount(minlength=model.cfg.d_vocab)
        enough = counts >= least
        if bool((tokens[:, 0] == tokens[0, 0]).all()) and len(tokens) > 1:
            enough[tokens[0, 0]] = False
        kept = enough.nonzero()[:, 0]
        if not len(kept):
            raise GatedInterpError("tokens-too-rare", least=least)
        found = HeadReadout.of(model, layer)
        scale, final = _mean_scales(model, layer, batch, counts, found.scales)
        queries, values = _inputs(model, layer, tokens.shape[1], scale)
        readout = found.matrix / final
        return cls(
            queries,
            values,
            readout - readout.mean(-1, keepdim=True),
            (counts / counts.sum()).log(),
            kept,
            seen_pairs(tokens, kept),
            (tokens.shape[1] + 1) / 2,
            gated_block(model, layer),
        )


def _mean_scales(
    model: HookedTransformer,
    layer: int,
    batch: Batch,
    counts: Int[Tensor, " d_vocab"],
    scales: Sequence[str],
) -> tuple[Float[Tensor, "d_vocab 1"], float]:
    """What the layer's norm divides each token by, and norms behind its heads all, in the mean."""
    total, final = torch.zeros_like(counts, dtype=torch.float), 0.0
    norm = input_norm(model, layer)
    names = [*scales, *([] if norm is None else [norm.hook_scale])]
    if not names:
        return torch.ones_like(total)[:, None], 1.0
    for part in batch.split(rows_at_once(batch.tokens)):
        _, cache = part.cache(model, names)
        if norm is not None:
            total.index_add_(0, part.tokens.flatten(), cache[norm.hook_scale].flatten().float())
        behind = [wide(cache[name]) for name in scales]
        final += float(torch.stack(behind).prod(0).sum()) if behind else 0.0
    overall = total.sum() / counts.sum()
    each = torch.where(counts > 0, total / counts, overall)[:, None]
    return (
        torch.ones_like(each) if norm is None else each,
        final / batch.tokens.numel() if scales else 1.0,
    )


def _inputs(
    model: HookedTransformer, layer: int, length: int, scale: Float[Tensor, "d_vocab 1"]
) -> tuple[Float[Tensor, "d_vocab d_model"], Float[Tensor, "d_vocab d_model"]]:
    """What queries and keys, and what values read of each token."""
    every = torch.arange(model.cfg.d_vocab, device=scale.device)
    embedded = wide(model.embed(every[None])[0])
    kind, position = model.cfg.positional_embedding_type, embedded.new_zeros(embedded.shape[1])
    if kind in ("standard", "shortformer"):
        position = wide(model.pos_embed.W_pos[:length]).mean(0)
    norm = input_norm(model, layer)

    def normed(x: Tensor) -> Tensor:
        if norm is None:
            return x
        y = x @ norm.before(torch.eye(x.shape[1]).to(x)) / scale
        return y if norm.bias is None else y + norm.bias

    values = normed(embedded)
    queries = values + position if kind == "shortformer" else normed(embedded + position)
    return queries, values


def _of_head(
    reads: _Reads, attention: Attention, head: int, sources: int, top: int, least: int
) -> list[dict[str, Any]]:
    qk, looks, gate = _tables(reads, attention, head)
    share = (looks * gate).masked_fill(reads.pairs < least, -torch.inf)
    shares, destinations = share.topk(min(top, len(share)), dim=1)
    v = attention.values(head, reads.values[reads.kept], biases="clip_qkv" in attention.extras)
    ov = v @ reads.readout[head]
    writes, outs = ov.topk(min(top, ov.shape[1]), dim=1)
    strength = shares[:, 0] * writes[:, 0]
    rows = []
    best = strength.argsort(descending=True, stable=True)[:sources]
    for s in best[strength[best] > 0].tolist():
        for d in destinations[s, shares[s] > 0].tolist():
            at = {"qk": qk[s, d], "attention": looks[s, d], "gate": gate[s, d]}
            numbers = {name: float(value) for name, value in at.items()}
            for out, write in zip(outs[s].tolist(), writes[s].tolist(), strict=True):
                if write <= 0:
                    continue
                rows.append(
                    {
                        "head": head,
                        "source_id": int(reads.kept[s]),
                        "destination_id": int(reads.kept[d]),
                        "out_id": out,
                        **numbers,
                        "ov": write,
                        "strength": float(share[s, d]) * write,
                    }
                )
    return rows


def _tables(
    reads: _Reads, attention: Attention, head: int
) -> tuple[
    Float[Tensor, "source destination"],
    Float[Tensor, "source destination"],
    Float[Tensor, "source destination"],
]:
    """Scores, attention and gates of one head, by source and destination."""
    here = reads.queries[reads.kept]
    seen = reads.chance.isfinite()
    q, k = attention.queries(head, here), attention.keys(head, reads.queries)
    usual = (attention.capped(q @ k[seen].T) + reads.chance[seen]).logsumexp(1)
    qk = attention.capped(k[reads.kept] @ q.T)
    looks = (qk - usual - math.log(max(reads.keys - 1, 1e-6))).sigmoid()
    block = reads.block
    if block is None:
        return qk, looks, torch.ones_like(qk)
    gate_q = here @ wide(block.W_gate_Q[head]) + wide(block.b_gate_Q[head])
    gate_k = here @ wide(block.W_gate_K[head]) + wide(block.b_gate_K[head])
    return qk, looks, gate_activation(gate_k @ gate_q.T, block.config.gate)
