"""What a layer must be for others to stand in for it, and how many heads they may have."""

import math
from typing import Any

from gated_interp.core.errors import GatedInterpError


def require_plain(attn: Any) -> None:
    """Refuse an attention layer whose function a gated block cannot express.

    Raises:
        GatedInterpError: not a TransformerLens attention layer, or one with extras.
    """
    cfg = getattr(attn, "cfg", None)
    if cfg is None or hasattr(attn, "blocks") or not hasattr(attn, "W_O"):
        raise GatedInterpError(
            f"{type(attn).__name__} is not a TransformerLens attention layer; "
            "pass model.blocks[layer].attn of a HookedTransformer."
        )
    extras = {
        "positional_embedding_type": cfg.positional_embedding_type
        not in ("standard", "shortformer"),
        "attention_dir": cfg.attention_dir != "causal",
        "n_key_value_heads": cfg.n_key_value_heads not in (None, cfg.n_heads),
        "use_qk_norm": cfg.use_qk_norm,
        "use_local_attn": bool(cfg.use_local_attn) and getattr(attn, "attn_type", "") == "local",
        "attn_scores_soft_cap": cfg.attn_scores_soft_cap > 0,
        "clip_qkv": cfg.clip_qkv is not None,
        "use_attention_sinks": bool(cfg.use_attention_sinks),
    }
    for name, there in extras.items():
        if there:
            raise GatedInterpError(
                f"the layer has {name}={getattr(cfg, name)!r}; a gated block stands in only for "
                "plain causal attention."
            )


def expanded(n: int, expansion: int | float) -> int:
    """``expansion`` times ``n`` heads.

    Raises:
        GatedInterpError: that is not a whole number of at least 1.
    """
    heads = round(n * expansion) if math.isfinite(expansion) else 0
    if heads < 1 or not math.isclose(heads, n * expansion):
        raise GatedInterpError(
            f"expansion is {expansion}, which makes {n * expansion} heads of {n}; "
            "it must make a whole number of at least 1."
        )
    return heads
