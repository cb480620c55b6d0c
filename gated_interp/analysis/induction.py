"""Which heads look at the token before, and which at what followed an earlier copy."""

from typing import Any

import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from gated_interp.analysis.heads import head_counts
from gated_interp.anatomy.batch import Batch, Mask, Tokens
from gated_interp.core.errors import GatedInterpError
from gated_interp.core.precision import wide
from gated_interp.core.seeds import generator
from gated_interp.models.toy import HookedTransformer

RANDOM_TOKENS, REPEATS = 25, 4


@torch.no_grad()
def induction_scores(
    model: HookedTransformer, tokens: Tokens | None = None, *, attention_mask: Mask | None = None
) -> pd.DataFrame:
    """How far each head attends as a previous-token or an induction head does, 0 to 1.

    *Prefix matching* is the attention to the keys that follow an earlier copy of the query's own
    token, summed over those keys and averaged over every query that has one. *Per copy* it is
    averaged over every such key, which on 25 random tokens repeated 4 times after BOS is the score
    of Olsson et al. (*In-context Learning and Induction Heads*, 2022), at most 1/2 there; where
    every token has one copy, the two are the same. *Previous token* is the mean attention from each
    position to the one before. Where a block has gates, attention is what they let through.

    Args:
        tokens: sequences in which tokens repeat, such as
            ``RepeatedTokensTask().sample(100, seed=0).tokens``; those of
            :func:`repeated_random_tokens` unless given.
        attention_mask: ``[batch pos]``, 1 at tokens and 0 at padding, which is not counted.

    Returns:
        One row per head: ``layer``, ``head``, ``prefix_matching``, ``per_copy``,
        ``previous_token``.

    Raises:
        GatedInterpError: tokens the model cannot read or in which none repeats, a layer without
            attention, or as :func:`repeated_random_tokens`.

    Examples:
        >>> from gated_interp.models.analytic_tasks import induction_model
        >>> truth = induction_model()
        >>> scores = induction_scores(truth.model, truth.task.sample(50, seed=0).tokens)
        >>> scores["previous_token"].round(1).tolist(), scores["prefix_matching"].round(1).tolist()
        ([1.0, 0.1], [0.0, 1.0])
    """
    if tokens is None:
        tokens = repeated_random_tokens(model)
    batch = Batch.of(model, tokens, attention_mask)
    after = followers(batch)
    follows = batch.counted[:, 1:] & batch.counted[:, :-1]
    repeats = after.any(-1)
    if not bool(repeats.any()):
        raise GatedInterpError("no-repeats")
    _, cache = batch.cache(model, lambda name: "pattern" in name)
    rows: list[dict[str, Any]] = []
    for layer, heads in enumerate(head_counts(model)):
        pattern = attention_in(cache, layer, heads)
        matched = (pattern * after[:, None]).sum((0, 2, 3), dtype=torch.double)
        before = pattern.diagonal(-1, 2, 3)
        before = before.mean((0, 2)) if batch.real is None else before.mT[follows].mean(0)
        rows += [
            {
                "layer": layer,
                "head": h,
                "prefix_matching": float(matched[h] / repeats.sum()),
                "per_copy": float(matched[h] / after.sum()),
                "previous_token": float(before[h]),
            }
            for h in range(heads)
        ]
    return pd.DataFrame(rows)


def followers(batch: Batch) -> Bool[Tensor, "batch query_pos key_pos"]:
    """Which keys follow an earlier copy of the query's own token; none of padding."""
    tokens = batch.tokens
    after = torch.zeros(*tokens.shape, tokens.shape[1], dtype=torch.bool, device=tokens.device)
    after[..., 1:] = tokens[:, :, None] == tokens[:, None, :-1]
    after &= torch.ones_like(after[0]).tril()
    after[..., 1:] &= (batch.counted[:, :, None] & batch.counted[:, None])[..., :-1]
    return after


def repeated_random_tokens(
    model: HookedTransformer, n: int = 50, *, seed: int = 0, bos: int | None = None
) -> Int[Tensor, "n pos"]:
    """25 different random tokens, said four times behind the token that a sequence begins with.

    Where the context is shorter, repeats are left out, down to two; then tokens.

    Args:
        n: sequences.
        bos: the token to begin with; that of the model's task unless given.

    Raises:
        GatedInterpError: a context of fewer than five positions, or a model that names no token to
            begin with.

    Examples:
        >>> from gated_interp.models.toy import AttentionConfig, build_attention
        >>> model = build_attention(AttentionConfig(d_vocab=9, n_positions=7, n_heads=1))
        >>> tokens = repeated_random_tokens(model, 2, bos=0)
        >>> tokens.shape, bool((tokens[:, 1:4] == tokens[:, 4:]).all())
        (torch.Size([2, 7]), True)
    """
    bos = bos_of_model(model, bos)
    room = model.cfg.n_ctx - 1
    if room < 4:
        raise GatedInterpError("context-too-short-for-repeats", n_ctx=model.cfg.n_ctx)
    repeats = max(2, min(REPEATS, room // RANDOM_TOKENS))
    length = min(RANDOM_TOKENS, room // repeats, model.cfg.d_vocab - 1)
    # Drawn without repetition: every copy is one of the repeats.
    drawn = different_tokens(model, n, length, seed, bos)
    return torch.cat([torch.full_like(drawn[:, :1], bos), drawn.repeat(1, repeats)], 1)


def repeats(batch: Batch) -> Bool[Tensor, "batch pos"]:
    """Where a token and the one after it follow each other as they did before in the sequence."""
    tokens, known = batch.tokens[:, :-1], batch.predicts
    pair = tokens * (int(batch.tokens.max()) + 1) + batch.tokens[:, 1:]
    same = (pair[:, :, None] == pair[:, None]) & known[:, :, None] & known[:, None]
    found = (same & torch.ones_like(same[0]).tril(-1)).any(-1)
    return torch.nn.functional.pad(found, (0, 1))


def bos_of_model(model: HookedTransformer, bos: int | None) -> int:
    """``bos``, or the token that sequences of the model's task or tokenizer begin with."""
    if bos is None:
        bos = getattr(getattr(model, "task", None), "bos", None)
    if bos is None:
        bos = getattr(getattr(model, "tokenizer", None), "bos_token_id", None)
    if bos is None:
        raise GatedInterpError("no-first-token")
    return bos


def different_tokens(
    model: HookedTransformer, n: int, length: int, seed: int, bos: int
) -> Int[Tensor, "n length"]:
    """Rows of random tokens, none twice in a row and none ``bos``."""
    order = torch.rand(n, model.cfg.d_vocab, generator=generator(seed))
    order[:, bos] = 2.0
    return order.argsort(-1)[:, :length].to(model.embed.W_E.device)


def attention_in(
    cache: Any, layer: int, heads: int
) -> Float[Tensor, "batch head query_pos key_pos"]:
    """The attention of a layer's heads, or where there are gates what they let through."""
    for name in ("hook_gated_pattern", "hook_pattern"):
        pattern: Tensor | None = cache.cache_dict.get(f"blocks.{layer}.attn.{name}")
        if pattern is not None and pattern.shape[1] == heads:
            return wide(pattern)
    raise GatedInterpError("layer-without-attention", layer=layer)
