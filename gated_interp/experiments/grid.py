"""How the axes of a grid are written: ``2:4``, ``2,3,7``, ``0.05,0.2``."""

import math

from gated_interp.core.errors import GatedInterpError

# Nobody waits for more; a slip of the finger such as 1:1000000000 must not fill the memory.
MOST = 10_000


def whole_numbers(written: str, name: str) -> list[int]:
    """``2:4`` (both ends count), ``3`` or ``2,3,7`` as ascending whole numbers, from 1 up.

    Examples:
        >>> whole_numbers("2:4,7", "heads")
        [2, 3, 4, 7]
    """
    found: set[int] = set()
    for part in written.split(","):
        first, colon, last = part.partition(":")
        try:
            span = range(int(first), int(last if colon else first) + 1)
        except ValueError:
            raise GatedInterpError("not-a-range", name=name, written=written) from None
        if not span:
            raise GatedInterpError("range-empty", name=name, written=written)
        if span[0] < 1:
            raise GatedInterpError("range-too-low", name=name, written=written)
        if span[-1] - span[0] >= MOST:
            raise GatedInterpError("range-too-long", name=name, written=written, most=MOST)
        found |= {*span}
    return sorted(found)


def numbers(written: str, name: str) -> list[float]:
    """``0.05,0.2`` as ascending numbers, from 0 up.

    Examples:
        >>> numbers("0.2,0.05", "alphas")
        [0.05, 0.2]
    """
    try:
        found = {float(part) for part in written.split(",")}
    except ValueError:
        found = {math.nan}
    if not all(math.isfinite(x) and x >= 0 for x in found):
        raise GatedInterpError("not-numbers", name=name, written=written)
    return sorted(found)
