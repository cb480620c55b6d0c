"""A figure's JSON to everything that is painted, each thing at its px."""

from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

from gated_interp.plots.paper import axes, beside
from gated_interp.plots.paper.items import Drawing, Frame, Item, rectangle
from gated_interp.plots.paper.scales import Extent, scale_of
from gated_interp.plots.paper.spec import Spec, merged, read
from gated_interp.plots.paper.traces import LAYERS, Bars, drawn, extents, frame_of
from gated_interp.plots.style import Number


def composed(fig: go.Figure | Mapping[str, Any]) -> Drawing:
    """Where everything of ``fig`` stands on paper.

    Raises:
        GatedInterpError: something in it that is not drawn on paper.

    Examples:
        >>> import gated_interp as gi
        >>> figure = gi.plots.loading_matrix(
        ...     {"toy": [[1.0, 0.0]]}, ["B1"], {"toy": ["L0H0", "L0H1"]})
        >>> drawing = composed(figure)
        >>> drawing.width, sorted({text.words for text in drawing.texts})[:3]
        (648, ['0.0', '0.00', '0.5'])
    """
    layout, specs, traces = read(fig.to_dict() if isinstance(fig, go.Figure) else fig)
    for name, spec in specs.items():
        specs[name] = merged(_looks(name, layout, traces), spec)
    _colors(layout, traces)
    margin = layout["margin"]
    width, height = layout["width"], layout["height"]
    paper = margin["l"], margin["t"], width - margin["r"], height - margin["b"]
    pairs = _pairs(specs)
    bars = {pair: Bars(_of(traces, pair), layout) for pair in pairs}
    spans = {name: _extents(name, specs, traces, bars) + beside.reached(layout, name)
             for name in specs}  # fmt: skip
    scales = {name: scale_of(name, spec, _pixels(name, spec, paper), spans[name])
              for name, spec in specs.items()}  # fmt: skip
    panels = [(scales[x], scales[y], _of(traces, (x, y)), bars[x, y]) for x, y in pairs]
    where = beside.Where(paper, scales)
    frames = [frame_of(x, y) for x, y, *_ in panels]

    items: list[Item] = []
    if layout["plot_bgcolor"] != layout["paper_bgcolor"]:
        items += [rectangle(frame, fill=layout["plot_bgcolor"]) for frame in frames]
    for (x, y, *_), frame in zip(panels, frames, strict=True):
        items += axes.behind(x, y, frame)
    items += beside.shapes(layout, where, below=True)
    for x, y, mine, widths in panels:
        for layer in LAYERS:
            for trace in mine:
                if trace["type"] == layer:
                    items += drawn(trace, x, y, widths, layout)
    for (x, y, *_), frame in zip(panels, frames, strict=True):
        items += axes.around(x, y, frame)
    items += beside.shapes(layout, where, below=False)
    items += beside.color_bars(layout, where)
    items += beside.notes(layout, where)
    entries, box = beside.legend(traces, layout, where)
    items += entries
    items += beside.title(layout)
    ground = layout["paper_bgcolor"]
    return Drawing(width, height, ground, items, frames, box, beside.said(layout))


def _pairs(specs: Mapping[str, Spec]) -> list[tuple[str, str]]:
    """The axes that belong together, in the order of their numbers."""
    found = [(x, specs[x].get("anchor") or f"y{x[1:]}") for x in specs if x[0] == "x"]
    return sorted(found, key=lambda pair: int(pair[0][1:] or 1))


def _of(traces: Sequence[Spec], pair: tuple[str, str]) -> list[Spec]:
    return [trace for trace in traces if (trace["xaxis"], trace["yaxis"]) == pair]


def _extents(
    name: str, specs: Mapping[str, Spec], traces: Sequence[Spec],
    bars: Mapping[tuple[str, str], Bars],
) -> list[Extent]:  # fmt: skip
    """What is drawn on the axis, and on those that it matches."""
    leader = specs[name].get("matches") or name
    same = [other for other in specs if (specs[other].get("matches") or other) == leader]
    key = f"{name[0]}axis"
    found: list[Extent] = []
    for trace in traces:
        if trace[key] in same:
            found += extents(trace, name[0] == "x", bars[trace["xaxis"], trace["yaxis"]])
    return found


def _pixels(name: str, spec: Spec, paper: Frame) -> tuple[Number, Number]:
    start, end = (paper[0], paper[2]) if name[0] == "x" else (paper[3], paper[1])
    low, high = (start + share * (end - start) for share in spec["domain"])
    return low, high


def _looks(name: str, layout: Spec, traces: Sequence[Spec]) -> Spec:
    """What an axis is by itself: its fonts, and a grid unless bars or cells stand on its ticks."""
    plain = {"size": layout["font"]["size"], "color": layout["font"]["color"]}
    mine = [trace for trace in traces if trace[f"{name[0]}axis"] == name]
    grid = not any(
        trace["type"] == "heatmap"
        or (trace["type"] == "bar" and (trace.get("orientation") == "h") == (name[0] == "y"))
        for trace in mine
    )
    return {"tickfont": plain, "title": {"font": plain}, "showgrid": grid}


def _colors(layout: Spec, traces: Sequence[Spec]) -> None:
    """Every trace gets the colour of its turn, where it names none."""
    turn = layout["colorway"]
    for i, trace in enumerate(traces):
        color = turn[i % len(turn)]
        marker, look = trace.get("marker", {}), trace.get("line", {})
        named = marker.get("color") or look.get("color") or color
        named = named if isinstance(named, str) else color
        trace["marker"] = {"color": named, **marker}
        trace["line"] = {"color": named, **look}
