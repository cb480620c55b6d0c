"""Intervals of rates over runs that come in clusters."""

import numpy as np
import pytest
from refusals import refuses
from scipy.stats import binomtest

from gated_interp.metrics.intervals import (
    clustered,
    effective_runs,
    paired_difference,
    wilson,
)


@pytest.mark.parametrize(("k", "n"), [(0, 5), (5, 5), (60, 64), (1, 1), (17, 256)])
def test_wilson_is_scipys(k, n):
    ends = binomtest(k, n).proportion_ci(0.95, method="wilson")
    assert wilson(k, n) == pytest.approx((ends.low, ends.high), abs=1e-12)


def test_runs_on_toys_of_their_own_count_in_full():
    won = [True] * 30 + [False] * 10
    assert effective_runs(np.array(won, dtype=float), range(40)) == pytest.approx(40)
    assert clustered(won, range(40)) == pytest.approx(wilson(30, 40))


def test_copies_of_a_run_count_once():
    won = [True, True, True, False]
    thrice = [w for w in won for _ in range(3)]
    toys = [toy for toy in range(4) for _ in range(3)]
    assert clustered(thrice, toys) == pytest.approx(wilson(3, 4))


def test_clusters_never_make_an_interval_narrower():
    # Within each toy one wins and one loses: less spread than chance, still 40 runs at most.
    won = [True, False] * 20
    assert clustered(won, [i // 2 for i in range(40)]) == pytest.approx(wilson(20, 40))


@pytest.mark.parametrize("outcome", [True, False])
def test_where_nothing_varies_each_toy_counts_once(outcome):
    ends = clustered([outcome] * 12, [i // 3 for i in range(12)])
    assert ends == pytest.approx(wilson(4 if outcome else 0, 4))


def test_the_interval_covers_the_rate_of_clustered_runs():
    """Toys of three runs that win together: the plain interval misses twice as often."""
    source = np.random.default_rng(3)
    rate, hits, plain = 0.9, 0, 0
    for _ in range(400):
        toys = source.random(40) < rate
        won = np.repeat(toys, 3).tolist()
        index = np.repeat(np.arange(40), 3).tolist()
        low, high = clustered(won, index)
        hits += low <= rate <= high
        low, high = wilson(sum(won), 120)
        plain += low <= rate <= high
    assert hits >= 0.92 * 400 > plain


def test_a_paired_difference_is_signed_and_shrinks_with_runs():
    better, base = [True] * 40, [False] * 10 + [True] * 30
    change, low, high = paired_difference(better, base, range(40))
    assert change == pytest.approx(0.25)
    assert 0 < low < change < high < 1
    back = paired_difference(base, better, range(40))
    assert back == pytest.approx((-change, -high, -low))
    more = paired_difference(better * 4, base * 4, range(160))
    assert low < more[1] < more[2] < high
    # Bonett and Price by hand: (10 + 1) / 42 gained, (0 + 1) / 42 lost.
    middle = 10 / 42
    half = 1.959964 * ((12 / 42 - middle**2) / 42) ** 0.5
    assert (low, high) == pytest.approx((middle - half, middle + half), abs=1e-5)


def test_no_change_at_all_still_has_an_interval():
    change, low, high = paired_difference([True] * 64, [True] * 64, range(64))
    assert change == 0
    assert low == pytest.approx(-high)
    assert 0.02 < high < 0.06


def test_bad_input_gets_a_sentence():
    with refuses("interval-of-nothing", successes=3, n=2):
        wilson(3, 2)
    with refuses("clusters-do-not-match", n=0, clusters=0):
        clustered([], [])
    with refuses("clusters-do-not-match", n=2, clusters=1):
        clustered([True, False], [0])
    with refuses("pairs-of-unequal-length"):
        paired_difference([True], [True, False], [0])
