"""How close float arithmetic must come: a tolerance counted in roundings, and its share in use.

Every comparison of float arithmetic goes through ``assert_close``. Its tolerance follows from the
arithmetic, so that it holds on every machine: a number that is rounded n times on its way, each
time by at most half an eps of the largest number near it, ends within n * eps of that number. The
tolerance is five times that; a comparison that uses more than a fifth of it has understated n and
fails under ``--show-closeness``, which prints each share. Bits that must be equal are compared
with ``torch.equal``; estimates (a standard deviation, a rate) with ``pytest.approx``.
"""

import copy
import os
import sys
from collections import defaultdict
from typing import Any

import numpy as np
import torch

HEADROOM = 5
ALLOWED = 1 / HEADROOM

ARRAYS = (torch.Tensor, np.ndarray)

strict = False  # set by --show-closeness
shares: dict[str, float] = defaultdict(float)  # of each comparison: the largest share it used


def twin(module: torch.nn.Module) -> torch.nn.Module:
    """The same module in float64, whose results a float32 result may be held against."""
    return copy.deepcopy(module).double()


def assert_close(
    actual: Any,
    expected: Any,
    *,
    roundings: int = 32,
    scale: float | torch.Tensor | None = None,
    dtype: torch.dtype | None = None,
) -> None:
    """``actual`` is ``expected`` but for rounding: HEADROOM * roundings * eps * scale.

    ``roundings``: how many can add up in one number; by default those of a few sums over tokens
    or heads. Say why where it is more. ``scale``: by default the largest entry of what is
    expected; give it where that is zero or larger numbers cancel on the way, or as a tensor for
    entries that each have a size of their own. ``dtype``: what ``actual`` was computed in; by
    default its own, and float32 for plain numbers. ``expected`` may be of a float64 twin.
    """
    if dtype is None and isinstance(actual, ARRAYS):
        dtype = _tensor(actual).dtype
        assert not isinstance(expected, ARRAYS) or _tensor(expected).dtype in (dtype, torch.float64)
    dtype = dtype or torch.float32
    a, e = (_tensor(x).detach().double() for x in (actual, expected))
    if e.ndim:
        assert a.shape == e.shape
    scale = e.abs().max() if scale is None else torch.as_tensor(scale).detach().double()
    assert (scale > 0).all(), "what is expected is zero: give the scale of what cancels"
    tolerance = HEADROOM * roundings * torch.finfo(dtype).eps * scale
    share = float(((a - e).abs() / tolerance).max())
    key = _where()
    shares[key] = max(shares[key], share)
    limit = ALLOWED if strict else 1.0
    worst = f"off by {float((a - e).abs().max()):.3g}, {share:.2f} of the tolerance"
    assert share <= limit, f"{worst}; {limit:g} is allowed"


def _tensor(x: Any) -> torch.Tensor:
    if isinstance(x, torch.Tensor):
        return x
    return torch.tensor(x, dtype=None if isinstance(x, np.ndarray) else torch.float64)


def _where() -> str:
    """The test that runs and the line in it that compares."""
    frame = sys._getframe(2)
    test = os.environ.get("PYTEST_CURRENT_TEST", "?").removesuffix(" (call)")
    while frame.f_back and not frame.f_code.co_name.startswith("test_"):
        frame = frame.f_back
    return f"{test}:{frame.f_lineno}"
