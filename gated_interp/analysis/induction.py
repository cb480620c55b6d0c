"""Which heads look at the token before, and which at what followed an earlier copy."""

from typing import Any

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from gated_interp.analysis.heads import head_counts
from gated_interp.analysis.writes import require_tokens
from gated_interp.core.errors import GatedInterpError
from gated_interp.models.toy import HookedTransformer


@torch.no_grad()
def induction_scores(model: HookedTransformer, tokens: Int[Tensor, "batch pos"]) -> pd.DataFrame:
    """How far each head attends as a previous-token or an induction head does, 0 to 1.

    *Prefix matching* is the attention to the keys that follow an earlier copy of the query's own
    token, summed over those keys and averaged over every query that has one. On 25 random tokens
    repeated 4 times after BOS it is the score of Olsson et al. (*In-context Learning and Induction
    Heads*, 2022). *Previous token* is the mean attention from each position to the one before.
    Where a block has gates, attention is what they let through.

    Args:
        tokens: sequences in which tokens repeat, such as
            ``RepeatedTokensTask().sample(100, seed=0).tokens``.

    Returns:
        One row per head: ``layer``, ``head``, ``prefix_matching``, ``previous_token``.

    Raises:
        GatedInterpError: tokens the model cannot read or in which none repeats, or a layer without
            attention.

    Examples:
        >>> from gated_interp.models.analytic_tasks import induction_heads
        >>> truth = induction_heads()
        >>> scores = induction_scores(truth.model, truth.task.sample(50, seed=0).tokens)
        >>> scores["previous_token"].round(1).tolist(), scores["prefix_matching"].round(1).tolist()
        ([1.0, 0.1], [0.0, 1.0])
    """
    require_tokens(model, tokens)
    after = torch.zeros(*tokens.shape, tokens.shape[1], dtype=torch.bool, device=tokens.device)
    after[..., 1:] = tokens[:, :, None] == tokens[:, None, :-1]
    after &= torch.ones_like(after[0]).tril()
    repeats = after.any(-1)
    if not bool(repeats.any()):
        raise GatedInterpError("no token comes twice; give sequences in which tokens repeat.")
    _, cache = model.run_with_cache(tokens, names_filter=lambda name: "pattern" in name)
    rows: list[dict[str, Any]] = []
    for layer, heads in enumerate(head_counts(model)):
        pattern = _pattern(cache, layer, heads)
        matching = (pattern * after[:, None]).sum(-1).transpose(1, 2)[repeats].mean(0)
        before = pattern.diagonal(-1, 2, 3).mean((0, 2))
        rows += [
            {"layer": layer, "head": h, "prefix_matching": float(m), "previous_token": float(p)}
            for h, (m, p) in enumerate(zip(matching, before, strict=True))
        ]
    return pd.DataFrame(rows)


def _pattern(cache: Any, layer: int, heads: int) -> Float[Tensor, "batch head query_pos key_pos"]:
    for name in ("hook_gated_pattern", "hook_pattern"):
        pattern: Tensor | None = cache.cache_dict.get(f"blocks.{layer}.attn.{name}")
        if pattern is not None and pattern.shape[1] == heads:
            return pattern
    raise GatedInterpError(f"layer {layer} has no attention of its own; look at a layer of heads.")
