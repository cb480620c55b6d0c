"""What a model is, said once: its tokens, heads, norms, and the way from a head to the logits.

An analysis asks here instead of assuming. What cannot be expressed is refused in one sentence.

Examples:
    >>> from gated_interp.models.analytic import manual_model
    >>> model = manual_model(2, 3).model
    >>> attention = Attention.of(model, 0)
    >>> attention.heads, attention.kv_head(1), attention.extras, why_not_linear(model, 0)
    (2, 1, {}, None)
    >>> from gated_interp.anatomy.batch import Batch
    >>> from gated_interp.models.toy import ToyConfig, build_toy
    >>> toy = build_toy(ToyConfig(n_trigrams=3, n_heads=2))
    >>> batch = Batch.of(toy, [[7, 0, 1], [7, 2, 0]], attention_mask=[[1, 1, 1], [1, 1, 0]])
    >>> int(batch.counted.sum())
    5
"""

from gated_interp.anatomy.attention import Attention, query_heads
from gated_interp.anatomy.batch import Batch
from gated_interp.anatomy.stream import Readout, why_not_linear

__all__ = ["Attention", "Batch", "Readout", "query_heads", "why_not_linear"]
