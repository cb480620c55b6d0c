"""What a model is, said once: its tokens, heads, norms, and the way from a head to the logits.

An analysis asks here instead of assuming. What cannot be expressed is refused in one sentence.
"""

from gated_interp.anatomy.attention import Attention, query_heads
from gated_interp.anatomy.batch import Batch
from gated_interp.anatomy.stream import Readout, why_not_linear

__all__ = ["Attention", "Batch", "Readout", "query_heads", "why_not_linear"]
