"""Training compute that a loss stands for, read off a curve."""

import pandas as pd
import pytest
from refusals import refuses

from gated_interp.metrics.compute import training_share

CURVE = pd.DataFrame({"step": [0, 10, 50, 99], "loss": [8.0, 6.0, 4.5, 4.0]})


@pytest.mark.parametrize(
    ("increase", "share"),
    [(9.0, (0.0, 0.0)), (4.0, (0.0, 0.0)), (2.0, (0.0, 0.1)), (1.9, (0.1, 0.5)), (0.0, (0.5, 0.99)),
     (-1.0, (0.5, 0.99))],
)  # fmt: skip
def test_a_share_lies_between_the_steps_around_it(increase, share):
    assert training_share(CURVE, increase, 100) == pytest.approx(share)


def test_a_curve_that_rises_again_counts_where_it_first_was_as_low():
    curve = pd.DataFrame({"step": [0, 1, 2, 4], "loss": [5.0, 3.5, 4.5, 3.0]})
    assert training_share(curve, 1.0, 4) == (0.0, 0.25)


def test_a_curve_needs_rows_and_columns():
    for bad in (CURVE[:0], CURVE.drop(columns="loss")):
        with refuses("bad-curve"):
            training_share(bad, 1.0, 100)
