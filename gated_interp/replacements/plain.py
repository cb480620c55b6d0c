"""How many heads a replacement may have."""

import math

from gated_interp.core.errors import GatedInterpError


def expanded(n: int, expansion: int | float) -> int:
    """``expansion`` times ``n`` heads."""
    heads = round(n * expansion) if math.isfinite(expansion) else 0
    if heads < 1 or not math.isclose(heads, n * expansion):
        raise GatedInterpError("bad-expansion", expansion=expansion, n=n, heads=n * expansion)
    return heads
