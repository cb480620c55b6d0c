"""What a figure may be drawn from: arrays, labels and tables are checked where they enter."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float
from numpy.typing import ArrayLike

from gated_interp.core.errors import GatedInterpError
from gated_interp.core.written import visible
from gated_interp.plots.style import Number, text


def array(
    name: str,
    values: ArrayLike,
    axes: str,
    sizes: dict[str, int] | None = None,
    *,
    allow_nan: bool = False,
) -> Float[np.ndarray, "..."]:
    """``values`` as floats, once its axes fit.

    Args:
        name: what the array is called in an error.
        values: a numpy array, nested lists, or a tensor on the CPU without gradient.
        axes: names of its axes, as in ``"head query_token key_token"``.
        sizes: sizes of axes known so far; new ones are added, known ones must agree.
        allow_nan: NaN stands for "nothing here".

    Examples:
        >>> array("gates", [[0.0, 1.0]], "head token").shape
        (1, 2)
    """
    try:
        out = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError, RuntimeError) as error:
        raise GatedInterpError("not-an-array", name=name, axes=axes.split()) from error
    sizes = {} if sizes is None else sizes
    names = axes.split()
    fits = out.ndim == len(names) and all(
        n == sizes.get(a, n) for a, n in zip(names, out.shape, strict=True)
    )
    if not fits or 0 in out.shape:
        wanted = ", ".join(f"{a}={sizes[a]}" if a in sizes else a for a in names)
        raise GatedInterpError("array-wrong-shape", name=name, shape=out.shape, wanted=wanted)
    sizes.update(zip(names, out.shape, strict=True))
    if not (np.isfinite(out) | (np.isnan(out) & allow_nan)).all():
        raise GatedInterpError("array-not-finite", name=name)
    return out


def counted(name: str, values: Sequence[str], count: int, things: str) -> None:
    """Refuse ``values`` unless there is one for each thing."""
    if isinstance(values, str) or len(values) != count:
        n = 1 if isinstance(values, str) else len(values)
        raise GatedInterpError("wrong-number-of-labels", name=name, n=n, count=count, things=things)


def labels(name: str, values: Sequence[str], count: int, things: str) -> list[str]:
    """``values`` as they are shown literally on one line, once there is one for each thing."""
    counted(name, values, count, things)
    return [text(visible(str(v))) for v in values]


def square(name: str, values: np.ndarray) -> np.ndarray:
    """``values`` ``[head, y, x]``, once y and x are as many."""
    if values.shape[1] != values.shape[2]:
        raise GatedInterpError("pattern-not-square", name=name, shape=values.shape)
    return values


def patterns(
    pattern: ArrayLike, gated: ArrayLike | None
) -> tuple[dict[str, Float[np.ndarray, "head query_pos key_pos"]], float]:
    """Attention, and what gates let through where that is given, with the end of their scale.

    Both are weights on the same values, so they share one scale.
    """
    sizes: dict[str, int] = {}
    axes = "head query_pos key_pos"
    shown = {"attention": square("pattern", array("pattern", pattern, axes, sizes))}
    between("pattern", shown["attention"], 0, 1)
    if gated is not None:
        shown["gated"] = array("gated", gated, axes, sizes)
    return shown, max(1.0, *(float(np.abs(v).max()) for v in shown.values()))


def table(name: str, frame: pd.DataFrame, columns: Sequence[str]) -> pd.DataFrame:
    """``frame``, once it has rows and these columns."""
    missing = [c for c in columns if c not in frame.columns]
    if missing:
        raise GatedInterpError("column-missing", name=name, column=missing[0], columns=columns)
    if frame.empty:
        raise GatedInterpError("table-empty", name=name)
    return frame


def one_of(name: str, value: Any, choices: Sequence[Any]) -> None:
    """Refuse a ``value`` that is not among ``choices``."""
    if value not in choices:
        raise GatedInterpError("not-one-of", name=name, value=value, choices=[*map(repr, choices)])


def between(name: str, values: np.ndarray, low: Number, high: Number) -> None:
    """Refuse ``values`` outside ``low`` to ``high`` (NaN passes)."""
    slack = 1e-6
    if (values < low - slack).any() or (values > high + slack).any():
        raise GatedInterpError("values-out-of-range", name=name, low=low, high=high)
