"""What stands in for an attention layer: the kinds, putting one in, leaving dead heads out."""

# Each registers its kind; a new one is a line here.
from gated_interp.replacements import gated_attention, sae, topk  # noqa: F401
