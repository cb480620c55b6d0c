"""From values on an axis to px, and where its ticks stand."""

import dataclasses
import itertools
import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from gated_interp.plots.fonts import text_width
from gated_interp.plots.paper.spec import Spec
from gated_interp.plots.paper.words import number, plain
from gated_interp.plots.style import Number

# Px between automatic ticks, of an axis that does not say how many: across and down.
SPACED = {"x": 70.0, "y": 30.0}
# The share of the data's range that stays free beside marks and lines.
FREE = 0.06


@dataclasses.dataclass(frozen=True)
class Scale:
    """One axis of a panel.

    Attributes:
        spec: the axis, with what its template says.
        kind: ``linear``, ``log`` or ``category``.
        ends: values at both ends; of ``log`` their logarithms to base 10.
        pixels: px at both ends.
        names: of the categories.
    """

    name: str
    spec: Spec
    kind: str
    ends: tuple[Number, Number]
    pixels: tuple[Number, Number]
    names: tuple[str, ...] = ()

    def numbers(self, values: Any) -> np.ndarray:
        """``values`` as numbers on this axis: their place, their logarithm, or themselves."""
        return _numbers(values, self.kind, self.names)

    def at(self, values: Any) -> np.ndarray:
        """Px of ``values``."""
        return self.place(self.numbers(values))

    def place(self, numbers: Any) -> np.ndarray:
        """Px of numbers on this axis."""
        (low, high), (start, end) = self.ends, self.pixels
        found = start + (np.asarray(numbers, dtype=float) - low) / (high - low) * (end - start)
        return np.asarray(found)

    def inside(self, pixel: Number) -> bool:
        """Whether a px is on the axis."""
        low, high = sorted(self.pixels)
        return low - 0.5 <= pixel <= high + 0.5

    def ticks(self) -> list[tuple[Number, str]]:
        """Px and label of each tick."""
        marks = self._marks()
        places = [(float(self.place(m)), words) for m, words in marks]
        places = [(at, words) for at, words in places if self.inside(at)]
        apart = self.name[0] == "x" and self.spec.get("tickvals") is None
        while apart and self.kind != "category" and len(places) > 2 and _touch(self.spec, places):
            places = places[::2]
        return places

    def _marks(self) -> list[tuple[Number, str]]:
        spec, alias = self.spec, self.spec.get("labelalias") or {}
        given = spec.get("tickvals")
        if given is not None:
            words = spec.get("ticktext")
            if words is None:
                words = [_said(v, spec, 0.0) for v in given]
            numbers = self.numbers(list(given)).tolist()
            return [(n, str(alias.get(w, w))) for n, w in zip(numbers, words, strict=True)]
        if self.kind == "category":
            return list(enumerate(self.names))
        low, high = sorted(self.ends)
        if self.kind == "log":
            decades = range(math.floor(low), math.ceil(high) + 1)
            return [(d, number(10.0**d, ".3g")) for d in decades]
        most = spec.get("nticks") or max(
            2, abs(self.pixels[1] - self.pixels[0]) // SPACED[self.name[0]]
        )
        return [(v, str(alias.get(w, w))) for v, w in round_numbers(low, high, most, spec)]


def round_numbers(low: Number, high: Number, most: Number, spec: Spec) -> list[tuple[Number, str]]:
    """At most about ``most`` round numbers from ``low`` to ``high``, and how they are written.

    Examples:
        >>> [words for _, words in round_numbers(-0.04, 1.04, 6, {"tickformat": ".0%"})]
        ['0%', '20%', '40%', '60%', '80%', '100%']
    """
    if low == high:
        return [(low, _said(low, spec, 1.0))]
    rough = (high - low) / most
    size = 10.0 ** math.floor(math.log10(rough))
    step = next(s * size for s in (1, 2, 5, 10) if s * size >= rough * (1 - 1e-9))
    slack = 1e-9 * (high - low)
    first, last = math.ceil((low - slack) / step), math.floor((high + slack) / step)
    return [(i * step, _said(i * step, spec, step)) for i in range(first, last + 1)]


def scale_of(
    name: str, spec: Spec, pixels: tuple[Number, Number], seen: Sequence["Extent"]
) -> Scale:
    """The axis ``name`` over what is drawn on it."""
    names = _categories(spec, seen)
    kind = spec.get("type") or ("category" if names else "linear")
    if kind == "category" and not names:
        names = ("",)
    names = names if kind == "category" else ()
    given = spec.get("range")
    if given is not None:
        low, high = (float(v) for v in given)
    else:
        low, high = _around(kind, names, seen, spec)
    if low == high:
        low, high = (0.0, 1.0) if low == 0 else (low - abs(low) / 2, high + abs(high) / 2)
    return Scale(name, spec, kind, (low, high), pixels, names)


@dataclasses.dataclass(frozen=True)
class Extent:
    """What one trace spans on an axis.

    Attributes:
        values: as they are given.
        tight: nothing stays free beside them.
        grounded: they stand on zero.
        margin: what they take besides, in numbers of the axis.
    """

    values: Any
    tight: bool = False
    grounded: bool = False
    margin: Number = 0.0


def _around(
    kind: str, names: tuple[str, ...], seen: Sequence[Extent], spec: Spec
) -> tuple[Number, Number]:
    if kind == "category":
        return -0.5, len(names) - 0.5
    low, high, free = math.inf, -math.inf, True
    for extent in seen:
        numbers = _numbers(extent.values, kind, names)
        numbers = numbers[np.isfinite(numbers)]
        if numbers.size:
            low = min(low, float(numbers.min()) - extent.margin)
            high = max(high, float(numbers.max()) + extent.margin)
            free = free and not extent.tight
    if not math.isfinite(low):
        return (0.0, 1.0)
    pad = FREE * (high - low) if free else 0.0
    grounded = kind != "log" and (
        spec.get("rangemode") == "tozero" or any(e.grounded for e in seen)
    )
    if grounded:
        low, high = min(low, 0.0), max(high, 0.0)
        pad = FREE * (high - low) if free else 0.0
        return low - pad * (low < 0), high + pad * (high > 0)
    return low - pad, high + pad


def _numbers(values: Any, kind: str, names: tuple[str, ...]) -> np.ndarray:
    if kind == "category":
        # A number names a place, as shapes and ranges have it.
        places = {name: i for i, name in enumerate(names)}
        return np.array([places.get(str(v), np.nan) for v in np.ravel(values)], dtype=float)
    found = np.array([np.nan if v is None else v for v in np.ravel(values)], dtype=float)
    if kind == "log":
        with np.errstate(divide="ignore", invalid="ignore"):
            found = np.where(found > 0, np.log10(found), np.nan)
    return found


def _categories(spec: Spec, seen: Sequence[Extent]) -> tuple[str, ...]:
    ordered = [str(v) for v in spec.get("categoryarray") or ()]
    words = [v for e in seen for v in _listed(e.values)]
    if spec.get("type") != "category" and not any(isinstance(v, str) for v in words):
        return ()
    return tuple(dict.fromkeys([*ordered, *(str(v) for v in words if v is not None)]))


def _listed(values: Any) -> Iterable[Any]:
    return values.tolist() if isinstance(values, np.ndarray) else values


def _said(value: Number, spec: Spec, step: Number) -> str:
    if spec.get("tickformat"):
        return number(value, spec["tickformat"])
    if not step:
        return number(value, ".6g")
    return plain(value, step, spec.get("exponentformat") != "none")


def _touch(spec: Spec, places: Sequence[tuple[float, str]]) -> bool:
    size = spec["tickfont"]["size"]
    return any(
        abs(b - a) < (text_width(v, size) + text_width(w, size)) / 2 + 5
        for (a, v), (b, w) in itertools.pairwise(places)
    )
