"""How the axes of a grid are written: ``2:4``, ``2,3,7``, ``0.05,0.2``."""

import math

from gated_interp.core.errors import GatedInterpError

# Nobody waits for more; a slip of the finger such as 1:1000000000 must not fill the memory.
MOST = 10_000


def whole_numbers(written: str, name: str) -> list[int]:
    """``2:4`` (both ends count), ``3`` or ``2,3,7`` as ascending whole numbers, from 1 up.

    Raises:
        GatedInterpError: anything else, no number, or more than 10,000 of them.

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
            raise GatedInterpError(
                f"{name} is {written!r}; write a range such as 2:4 or a list such as 2,3,7."
            ) from None
        if not span:
            raise GatedInterpError(
                f"{name} is {written!r}, which holds no number; write FROM:TO, FROM at most TO."
            )
        if span[0] < 1:
            raise GatedInterpError(f"{name} is {written!r}; its numbers must be at least 1.")
        if span[-1] - span[0] >= MOST:
            raise GatedInterpError(
                f"{name} is {written!r}; a grid has at most {MOST} numbers along an axis."
            )
        found |= {*span}
    return sorted(found)


def numbers(written: str, name: str) -> list[float]:
    """``0.05,0.2`` as ascending numbers, from 0 up.

    Raises:
        GatedInterpError: anything else.

    Examples:
        >>> numbers("0.2,0.05", "alphas")
        [0.05, 0.2]
    """
    try:
        found = {float(part) for part in written.split(",")}
    except ValueError:
        found = {math.nan}
    if not all(math.isfinite(x) and x >= 0 for x in found):
        raise GatedInterpError(
            f"{name} is {written!r}; write numbers from 0 up with commas between them, "
            "such as 0.05,0.2."
        )
    return sorted(found)
