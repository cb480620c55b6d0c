"""TransformerLens' own layers. Its version 4 has none, so there no layer is one of them."""

from typing import Any

from torch import nn

from gated_interp.core.errors import GatedInterpError

try:
    from transformer_lens.components import LayerNorm, LayerNormPre
    from transformer_lens.components.abstract_attention import AbstractAttention
except ImportError:

    class AbstractAttention(nn.Module):  # type: ignore[no-redef]
        """No layer of version 4."""

    class LayerNorm(nn.Module):  # type: ignore[no-redef]
        """No layer of version 4."""

    class LayerNormPre(nn.Module):  # type: ignore[no-redef]
        """No layer of version 4."""


__all__ = ["AbstractAttention", "LayerNorm", "LayerNormPre", "require_attention"]


def require_attention(attn: Any) -> None:
    """Refuse what is no attention layer of TransformerLens."""
    if not isinstance(attn, AbstractAttention):
        raise GatedInterpError("not-an-attention-layer", kind=type(attn).__name__)
