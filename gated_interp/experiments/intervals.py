"""Intervals of success rates."""

from scipy.stats import binomtest

from gated_interp.core.errors import GatedInterpError


def wilson(successes: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a success rate, each end from 0 to 1 (Wilson, 1927).

    Raises:
        GatedInterpError: no runs, or more successes than runs.

    Examples:
        >>> low, high = wilson(60, 64)
        >>> round(low, 3), round(high, 3)
        (0.85, 0.975)
    """
    if n < 1 or not 0 <= successes <= n:
        raise GatedInterpError(
            f"{successes} successes of {n} runs have no interval; there must be at least one run "
            "and no more successes than runs."
        )
    ends = binomtest(successes, n).proportion_ci(confidence, method="wilson")
    return float(ends.low), float(ends.high)
