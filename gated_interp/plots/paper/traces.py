"""Bars, points, lines and heat maps."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from gated_interp.plots.paper.colors import ink_on, scaled
from gated_interp.plots.paper.items import Cells, Frame, Item, Marks, Outline, line, rectangle
from gated_interp.plots.paper.patterns import hatched
from gated_interp.plots.paper.scales import Extent, Scale
from gated_interp.plots.paper.spec import Spec
from gated_interp.plots.paper.words import block, filled
from gated_interp.plots.style import Number

# Below each other in this order, whatever the order of the traces.
LAYERS = ("heatmap", "bar", "scatter")


def extents(trace: Spec, across: bool, bars: "Bars") -> list[Extent]:
    """What ``trace`` spans on its x axis (``across``) or its y axis."""
    key = "x" if across else "y"
    if trace["type"] == "heatmap":
        n = np.shape(trace["z"])[1 if across else 0]
        return [Extent(np.array([-0.5, n - 0.5]), tight=True)]
    given = trace.get(key)
    error = trace.get(f"error_{key}")
    if trace["type"] == "bar":
        sideways = trace.get("orientation") == "h"
        if across != sideways:
            return [Extent(_or_numbers(given, trace), tight=True, margin=bars.width(trace) / 2)]
        low, high = bars.ends(trace)
        spread = [Extent(low, grounded=True), Extent(high, grounded=True)]
        return spread + [Extent(v) for v in _error_ends(high, error)]
    tight = across and trace.get("mode") == "lines"
    marks = [Extent(given if given is not None else [], tight=tight)]
    if error and given is not None and not any(isinstance(v, str) for v in given):
        marks += [Extent(v) for v in _error_ends(np.asarray(given, dtype=float), error)]
    return marks


class Bars:
    """How wide the bars of a panel are, and where each begins and ends."""

    def __init__(self, traces: Sequence[Spec], layout: Mapping[str, Any]):
        self.traces = [t for t in traces if t["type"] == "bar"]
        self.mode = layout["barmode"]
        self.gap = float(layout.get("bargap", 0.2))
        self.group_gap = float(layout.get("bargroupgap", 0))
        self._ends: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        below: dict[Any, Number] = {}
        for trace in self.traces:
            value = _lengths(trace)
            base = np.asarray(trace.get("base", 0.0), dtype=float) + 0 * value
            if self.mode == "stack":
                keys = list(_or_numbers(_places(trace), trace))
                base = np.array([below.get(k, 0.0) for k in keys])
                below |= {k: b + v for k, b, v in zip(keys, base, value, strict=True)}
            self._ends[id(trace)] = base, base + value

    def ends(self, trace: Spec) -> tuple[np.ndarray, np.ndarray]:
        """Where each bar begins and ends, in values."""
        return self._ends[id(trace)]

    def width(self, trace: Spec) -> float:
        """How wide a bar is, in numbers of its axis."""
        if trace.get("width") is not None:
            return float(np.max(trace["width"]))
        return self._pitch() * (1 - self.gap) / self._side_by_side() * (1 - self.group_gap)

    def shift(self, trace: Spec) -> float:
        """How far the middle of a bar is from its place."""
        n = self._side_by_side()
        if trace.get("width") is not None or n == 1:
            return 0.0
        rank = next(i for i, t in enumerate(self.traces) if t is trace)
        return self._pitch() * (1 - self.gap) / n * (rank - (n - 1) / 2)

    def _side_by_side(self) -> int:
        return len(self.traces) if self.mode == "group" else 1

    def _pitch(self) -> float:
        found = {v for t in self.traces for v in _or_numbers(_places(t), t)}
        if any(isinstance(v, str) for v in found) or len(found) < 2:
            return 1.0
        return float(np.diff(np.sort(np.array(list(found), dtype=float))).min())


def drawn(trace: Spec, x: Scale, y: Scale, bars: Bars, layout: Mapping[str, Any]) -> Iterator[Item]:
    """What is painted of ``trace``."""
    clip = frame_of(x, y)
    if trace["type"] == "heatmap":
        yield from _heatmap(trace, x, y, layout)
    elif trace["type"] == "bar":
        yield from _bar(trace, x, y, bars, clip)
    else:
        yield from _scatter(trace, x, y, None if trace.get("cliponaxis") is False else clip)


def frame_of(x: Scale, y: Scale) -> Frame:
    """The data area."""
    return min(x.pixels), min(y.pixels), max(x.pixels), max(y.pixels)


def _heatmap(trace: Spec, x: Scale, y: Scale, layout: Mapping[str, Any]) -> Iterator[Item]:
    values = np.array([[np.nan if v is None else v for v in row] for row in trace["z"]], float)
    axis = layout[trace["coloraxis"]]
    colors = scaled(values, axis["colorscale"], axis["cmin"], axis["cmax"])
    rows, columns = values.shape
    # The edges of all cells; the first row may be the top one or the bottom one.
    across = x.place(np.arange(columns + 1) - 0.5)
    down = y.place(np.arange(rows + 1) - 0.5)
    shown = colors[:: 1 if down[0] < down[-1] else -1, :: 1 if across[0] < across[-1] else -1]
    frame = min(across), min(down), max(across), max(down)
    yield Cells(shown, frame)
    ground = layout["plot_bgcolor"]
    gaps = [line((v, frame[1]), (v, frame[3]), stroke=ground, width=trace["xgap"])
            for v in across if trace.get("xgap")]  # fmt: skip
    yield from gaps + [line((frame[0], v), (frame[2], v), stroke=ground, width=trace["ygap"])
                       for v in down if trace.get("ygap")]  # fmt: skip
    if trace.get("texttemplate"):
        words = trace.get("text") or np.full(values.shape, None)
        for i, j in np.ndindex(values.shape):
            if np.isfinite(values[i, j]):
                said = filled(trace["texttemplate"], z=values[i, j], text=words[i][j])
                at = float(x.place(j)), float(y.place(i))
                size = trace.get("textfont", {}).get("size", layout["font"]["size"])
                yield from block(said, *at, size, ink_on(colors[i, j]), anchor="center",
                                 valign="middle", kind="cell")  # fmt: skip


def _bar(trace: Spec, x: Scale, y: Scale, bars: Bars, clip: Frame) -> Iterator[Item]:
    sideways = trace.get("orientation") == "h"
    along, over = (x, y) if sideways else (y, x)
    low, high = (along.at(v) for v in bars.ends(trace))
    middle = over.numbers(_or_numbers(_places(trace), trace)) + bars.shift(trace)
    half = bars.width(trace) / 2
    first, last = over.place(middle - half), over.place(middle + half)
    marker = trace.get("marker", {})
    color, edge = marker.get("color"), marker.get("line", {})
    ends = []
    for i, (a, b, c, d) in enumerate(zip(first, last, low, high, strict=True)):
        frame = (c, a, d, b) if sideways else (a, c, b, d)
        left, right = sorted(frame[::2])
        top, bottom = sorted(frame[1::2])
        if np.isfinite([left, right, top, bottom]).all():
            mine = color if isinstance(color, str) else color[i]
            box = (left, top, right, bottom)
            yield from hatched(box, mine, marker.get("pattern", {}), trace.get("opacity", 1), clip)
            if edge.get("width"):
                yield rectangle(box, stroke=edge.get("color"), width=edge["width"], clip=clip)
        ends.append((high[i], (a + b) / 2) if sideways else ((a + b) / 2, high[i]))
    error = trace.get("error_x" if sideways else "error_y")
    yield from _whiskers(np.array(ends), bars.ends(trace)[1], error, along, sideways, clip)


def _scatter(trace: Spec, x: Scale, y: Scale, clip: Frame | None) -> Iterator[Item]:
    n = max(len(trace[key]) for key in ("x", "y") if trace.get(key) is not None)
    given = {
        k: _listed(trace[k]) if trace.get(k) is not None else list(range(n)) for k in ("x", "y")
    }
    points = np.column_stack([x.at(given["x"]), y.at(given["y"])])
    mode, look, opacity = trace.get("mode", "lines+markers"), trace["line"], trace.get("opacity", 1)
    marker = trace["marker"]
    for key, scale, across in (("error_x", x, True), ("error_y", y, False)):
        if trace.get(key):
            yield from _whiskers(points, given[key[-1]], trace[key], scale, across, clip)
    if trace.get("fill") == "toself" or "lines" in mode:
        yield Outline(
            points,
            stroke=look["color"] if "lines" in mode else None,
            width=look.get("width", 2),
            dash=look.get("dash", "solid"),
            fill=trace.get("fillcolor") if trace.get("fill") == "toself" else None,
            opacity=opacity,
            clip=clip,
        )
    if "markers" in mode and marker.get("opacity", 1) > 0:
        yield Marks(points, **marks_look(marker), clip=clip)


def marks_look(marker: Mapping[str, Any]) -> dict[str, Any]:
    """How marks look; of one colour each."""
    symbol, edge = marker.get("symbol", "circle"), marker.get("line", {})
    color = marker["color"]
    if symbol.endswith("-open"):
        return {"symbol": symbol[:-5], "size": marker.get("size", 6), "fill": "none",
                "stroke": color, "width": edge.get("width") or 1.0}  # fmt: skip
    thin = symbol in ("cross-thin", "line-ew")
    stroke = edge.get("color", color if thin else None)
    return {"symbol": symbol, "size": marker.get("size", 6), "fill": "none" if thin else color,
            "stroke": stroke, "width": edge.get("width", 0)}  # fmt: skip


def _whiskers(
    points: np.ndarray, values: Any, error: Spec | None, scale: Scale, across: bool,
    clip: Frame | None,
) -> Iterator[Item]:  # fmt: skip
    if not error:
        return
    found: list[tuple[Number, Number]] = []
    nothing = (np.nan, np.nan)
    cap = error.get("width", 4)
    low_end = scale.pixels[0]
    for (px, py), high, low in zip(points, *_error_ends(values, error), strict=True):
        if not np.isfinite([high, low]).all() or high == low:
            continue
        a, b = float(scale.at(high)[0]), float(scale.at(low)[0])
        b = low_end if np.isnan(b) else b  # down to zero on a logarithmic axis
        for ends in ([(a, -1), (a, 1)], [(b, -1), (b, 1)]):
            found += [(e, py + s * cap) if across else (px + s * cap, e) for e, s in ends]
            found.append(nothing)
        found += [(a, py), (b, py)] if across else [(px, a), (px, b)]
        found.append(nothing)
    if found:
        yield Outline(np.array(found), stroke=error["color"], width=error["thickness"], clip=clip)


def _error_ends(values: Any, error: Spec | None) -> list[np.ndarray]:
    if not error:
        return []
    middle = np.array([np.nan if v is None else v for v in values], dtype=float)
    up, down = (np.array([0 if v is None else v for v in error[k]], dtype=float)
                for k in ("array", "arrayminus"))  # fmt: skip
    return [middle + up, middle - down]


def _places(trace: Spec) -> Any:
    return trace.get("y" if trace.get("orientation") == "h" else "x")


def _lengths(trace: Spec) -> np.ndarray:
    given = trace["x" if trace.get("orientation") == "h" else "y"]
    return np.array([np.nan if v is None else v for v in given], dtype=float)


def _or_numbers(given: Any, trace: Spec) -> Any:
    """Places of bars; where none are given, they are counted."""
    return list(range(len(_lengths(trace)))) if given is None else _listed(given)


def _listed(values: Any) -> list[Any]:
    return values.tolist() if isinstance(values, np.ndarray) else list(values)
