"""Models whose weights are written down by rule, so that the right answer is known.

Each returns an :class:`AnalyticModel`: a model, its task, and what an analysis must find in it.

Examples:
    >>> import gated_interp as gi
    >>> truth = gi.analytic.manual_model(2, 3)  # the third trigram is held by both heads
    >>> truth.heads_of
    {1: [0], 2: [1], 3: [0, 1]}
"""

from gated_interp.models.analytic import (
    AnalyticModel,
    coherent_head,
    conditional_pair,
    manual_model,
    paired_model,
    two_readers,
)
from gated_interp.models.analytic_tasks import (
    conditional_heads,
    induction_model,
    marked_relay,
    wide_pairs,
)

__all__ = [
    "AnalyticModel",
    "coherent_head",
    "conditional_heads",
    "conditional_pair",
    "induction_model",
    "manual_model",
    "marked_relay",
    "paired_model",
    "two_readers",
    "wide_pairs",
]
