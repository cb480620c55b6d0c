"""Intervals of means, and of rates over runs, where runs on one toy count as one cluster.

Runs that stand in for the same toy tend to succeed or fail together, so ``n`` of them say less than
``n`` on toys of their own. The *design effect* (Kish, 1965) says by how much: the variance of the
rate with the toys' sums taken as the units, over that of ``n`` independent runs. Intervals are
those of ``n`` divided by it.
"""

import math
from collections.abc import Hashable, Sequence

import numpy as np
from scipy.stats import norm
from scipy.stats import t as student

from gated_interp.core.errors import GatedInterpError


def mean_interval(values: "np.ndarray") -> tuple[float, float]:
    """The ends of a mean's 95% interval, by Student's t; missing of fewer than two values.

    Examples:
        >>> [round(end, 2) for end in mean_interval(np.array([1.0, 2.0, 3.0]))]
        [-0.48, 4.48]
    """
    n = len(values)
    if n < 2:
        return float("nan"), float("nan")
    half = float(student.ppf(0.975, n - 1) * values.std(ddof=1) / n**0.5)
    return float(values.mean()) - half, float(values.mean()) + half


def ratio_interval(part: "np.ndarray", whole: "np.ndarray") -> tuple[float, float, float]:
    """The ratio of two means and the ends of its 95% interval, by linearisation and Student's t.

    The ends are missing of fewer than two values.

    Args:
        part, whole: of the same units, such as sequences.

    Examples:
        >>> ratio_interval(np.array([1.0, 2.0]), np.array([2.0, 4.0]))
        (0.5, 0.5, 0.5)
    """
    ratio = float(part.mean() / whole.mean())
    low, high = mean_interval((part - ratio * whole) / abs(whole.mean()))
    return ratio, ratio + low, ratio + high


def wilson(successes: int | float, n: int | float, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a success rate, each end from 0 to 1 (Wilson, 1927).

    Both may be fractions, as effective numbers of runs are.

    Examples:
        >>> low, high = wilson(60, 64)
        >>> round(low, 3), round(high, 3)
        (0.85, 0.975)
    """
    if n <= 0 or not 0 <= successes <= n * (1 + 1e-12):
        raise GatedInterpError("interval-of-nothing", successes=successes, n=n)
    z = float(norm.ppf(0.5 + confidence / 2))
    p = min(successes / n, 1.0)
    middle = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * (p * (1 - p) / n + z**2 / (4 * n**2)) ** 0.5
    return max(0.0, middle - half), min(1.0, middle + half)


def fractions(**counts: tuple[int, int]) -> dict[str, float]:
    """Each rate ``count of n`` under its name, the ends of its interval as ``_low`` and ``_high``.

    All three are missing (NaN) where there are none to count.

    Examples:
        >>> found = fractions(success=(3, 4))
        >>> found["success"], round(found["success_low"], 2), round(found["success_high"], 2)
        (0.75, 0.3, 0.95)
    """
    found: dict[str, float] = {}
    for name, (count, of) in counts.items():
        low, high = wilson(count, of) if of else (math.nan, math.nan)
        rate = count / of if of else math.nan
        found |= {name: rate, f"{name}_low": low, f"{name}_high": high}
    return found


def clustered(
    succeeded: Sequence[bool], clusters: Sequence[Hashable], confidence: float = 0.95
) -> tuple[float, float]:
    """Wilson's interval of a success rate of runs that come in clusters (their toys).

    Where all runs succeed or all fail, each cluster counts as one run.

    Examples:
        >>> alone = clustered([True, False] * 8, range(16))
        >>> in_fours = clustered([True, False] * 8, [i % 2 + 2 * (i // 8) for i in range(16)])
        >>> alone == wilson(8, 16), in_fours == wilson(2, 4)
        (True, True)
    """
    values = np.asarray(succeeded, dtype=float)
    n = effective_runs(values, clusters)
    return wilson(float(values.mean()) * n, n, confidence)


def paired_difference(
    with_change: Sequence[bool],
    without: Sequence[bool],
    clusters: Sequence[Hashable],
    confidence: float = 0.95,
) -> tuple[float, float, float]:
    """The change of a success rate between two runs of each seed, and its interval.

    Bonett and Price's interval for paired proportions (2012), which is defined where nothing
    changes, with runs in clusters.

    Args:
        with_change, without: per seed, whether each of its two runs succeeded.
        clusters: the toy of each seed.

    Returns:
        The difference (with less without), low and high, each -1 to 1.

    Examples:
        >>> change, low, high = paired_difference([False] * 8 + [True] * 24, [True] * 32, range(32))
        >>> change, round(low, 2), round(high, 2)
        (-0.25, -0.4, -0.07)
    """
    first, second = np.asarray(with_change, dtype=float), np.asarray(without, dtype=float)
    if first.shape != second.shape:
        raise GatedInterpError("pairs-of-unequal-length", first=len(first), second=len(second))
    change = first - second
    n = effective_runs(change, clusters)
    gained = (float((change > 0).mean()) * n + 1) / (n + 2)
    lost = (float((change < 0).mean()) * n + 1) / (n + 2)
    middle = gained - lost
    half = float(norm.ppf(0.5 + confidence / 2)) * ((gained + lost - middle**2) / (n + 2)) ** 0.5
    return float(change.mean()), max(-1.0, middle - half), min(1.0, middle + half)


def effective_runs(values: "np.ndarray", clusters: Sequence[Hashable]) -> float:
    """How many independent runs say as much about the mean of ``values``.

    From the number of clusters (where ``values`` do not vary) to the number of runs.
    """
    n = len(values)
    if n < 1 or len(clusters) != n:
        raise GatedInterpError("clusters-do-not-match", n=n, clusters=len(clusters))
    names = {name: i for i, name in enumerate(dict.fromkeys(clusters))}
    index = np.array([names[c] for c in clusters])
    off = values - values.mean()
    variance = float((off**2).sum())
    if variance == 0 or len(names) < 2:
        return float(len(names))
    sums = np.bincount(index, weights=off)
    effect = float((sums**2).sum()) / variance
    return n / max(effect, 1.0)
