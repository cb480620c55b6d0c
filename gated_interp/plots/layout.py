"""Panels placed to the pixel, so that nothing overlaps whatever the number of panels."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
from numpy.typing import ArrayLike

from gated_interp.plots.style import (
    CROWDED,
    FONT,
    INK,
    MUTED,
    SMALL,
    TEMPLATE,
    TINY,
    Columns,
    Number,
    Scale,
    text,
    text_width,
    width_of,
)

Axis = dict[str, Any]
Place = dict[str, str]
ZERO: Axis = {"zeroline": True, "zerolinecolor": INK, "zerolinewidth": 1}


@dataclasses.dataclass(frozen=True)
class Box:
    """A rectangle in px; ``top`` counts down from the top of the panels."""

    left: Number
    top: Number
    width: Number
    height: Number

    @property
    def right(self) -> float:
        """Its right edge."""
        return float(self.left + self.width)

    @property
    def bottom(self) -> float:
        """Its lower edge."""
        return float(self.top + self.height)


class Canvas:
    """A figure in the making: panels, words and colour bars in px, title and legend above them.

    Args:
        columns: paper columns it spans.
        title: above everything.
        left, right: margins in px.
    """

    def __init__(self, columns: Columns, title: str | None, left: Number, right: Number = 10):
        self.fig, self.title, self.left, self.right = go.Figure(), title, left, right
        self.total = width_of(columns)
        self.width = self.total - left - right
        self.boxes: list[Box] = []
        self._notes: list[dict[str, Any]] = []
        self._bars: dict[str, dict[str, Any]] = {}

    def panel(self, box: Box, x: Axis, y: Axis) -> Place:
        """Add a panel; returns the axes that its traces name."""
        self.boxes.append(box)
        suffix = "" if len(self.boxes) == 1 else str(len(self.boxes))
        across = [max(0.0, box.left / self.width), min(1.0, box.right / self.width)]
        off = {"automargin": False}
        self.fig.update_layout(
            {
                f"xaxis{suffix}": {"domain": across, "anchor": f"y{suffix}", **off, **x},
                f"yaxis{suffix}": {"anchor": f"x{suffix}", **off, **y},
            }
        )
        return {"xaxis": f"x{suffix}", "yaxis": f"y{suffix}"}

    def note(
        self,
        words: str,
        x: Number,
        y: Number,
        *,
        size: Number = FONT,
        align: str = "center",
        valign: str = "bottom",
        color: str | None = None,
    ) -> None:
        """Write ``words`` at the pixel (x, y); ``y`` counts down."""
        font = {"size": size, **({"color": color} if color else {})}
        note = {"text": words, "x": x / self.width, "y": y, "font": font, "yanchor": valign}
        self._notes.append({**note, "xanchor": align, "align": align})

    def rule(
        self, place: Place, *, x: Number | None = None, y: Number | None = None, color: str,
        dash: str = "solid",
    ) -> None:  # fmt: skip
        """A line behind the data of a panel, across it at ``y`` or down it at ``x``."""
        line = {"color": color, "width": 1, "dash": dash}
        refs = {"xref": place["xaxis"], "yref": place["yaxis"], "layer": "below", "line": line}
        if x is None:
            ends = {"x0": 0, "x1": 1, "y0": y, "y1": y, "xref": f"{place['xaxis']} domain"}
        else:
            ends = {"x0": x, "x1": x, "y0": 0, "y1": 1, "yref": f"{place['yaxis']} domain"}
        self.fig.add_shape(type="line", **{**refs, **ends})

    def color_bar(
        self, name: str, scale: Scale, limits: tuple[float, float], unit: str, box: Box,
        tickformat: str | None = None,
    ) -> None:  # fmt: skip
        """The colour axis ``name`` with its bar at ``box``."""
        bar = {
            "title": {
                "text": text(fitting(unit, box.height)),
                "side": "right",
                "font": {"size": SMALL},
            },
            **{"thickness": box.width, "len": box.height, "lenmode": "pixels"},
            **{"x": box.left / self.width, "y": box.top + box.height / 2},
            **{"xanchor": "left", "yanchor": "middle", "xpad": 0, "ypad": 0},
            **{"tickfont": {"size": SMALL}, "ticks": "outside", "ticklen": 2},
            **{"exponentformat": "none", "outlinewidth": 0.5, "outlinecolor": MUTED},
            **({"tickvals": [0, 0.5, 1]} if limits == (0.0, 1.0) else {"nticks": 5}),
            **({"tickformat": tickformat} if tickformat else {}),
        }
        ends = {"colorscale": scale, "cmin": limits[0], "cmax": limits[1]}
        self._bars[name] = {**ends, "colorbar": bar}

    def finish(self, bottom: Number, height: Number | None = None) -> go.Figure:
        """The figure, with its template, size, title and legend.

        Args:
            bottom: margin in px.
            height: of all panels; as far as they reach unless given.
        """
        fig, width, left = self.fig, self.width, self.left
        height = max(box.bottom for box in self.boxes) if height is None else height
        rows = legend_rows(fig, self.total - 16)
        lines = wrap(self.title, (self.total - 12) / (0.54 * 12)) if self.title else []
        top = (15 * len(lines) + 6 if lines else 2) + 17 * rows + (5 if rows else 0) + 4
        total = height + top + bottom
        for n, box in enumerate(self.boxes, start=1):
            down = [max(0.0, 1 - box.bottom / height), min(1.0, 1 - box.top / height)]
            fig.update_layout({f"yaxis{n if n > 1 else ''}": {"domain": down}})
        for note in self._notes:
            placed = {**note, "y": 1 - note["y"] / height, "xref": "paper", "yref": "paper"}
            fig.add_annotation(placed, showarrow=False, borderpad=0)
        for name, axis in self._bars.items():
            axis["colorbar"]["y"] = 1 - axis["colorbar"]["y"] / height
            fig.update_layout({name: axis})
        fig.update_layout(
            template=TEMPLATE,
            width=self.total,
            height=round(total),
            margin={"l": left, "r": self.right, "t": top, "b": bottom},
            showlegend=rows > 0,
            legend={
                **{"orientation": "h", "x": (8 - left) / width, "xanchor": "left"},
                **{"y": 1 + 4 / height, "yanchor": "bottom", "tracegroupgap": 0},
            },
        )
        if lines:
            # plotly lifts a title of several lines by about half of one.
            y = 1 - (6 if len(lines) == 1 else 15) / total
            place = {"yref": "container", "yanchor": "top", "y": y, "pad": {"l": 6, "t": 0}}
            fig.update_layout(title={"text": "<br>".join(lines), **place})
        return fig


def titled(title: str, **settings: Any) -> Axis:
    """An axis with a title."""
    return {"title": {"text": title}, **settings}


def ticks(labels: Sequence[str], pixels: Number, *, vertical: bool = False) -> Axis:
    """Axis settings that label positions 0, 1, 2, … with ``labels`` without overlap.

    Labels that do not fit are left off at regular steps, and still show on hover.

    Args:
        pixels: length of the axis.
        vertical: whether it is a y axis.
    """
    n, pitch = len(labels), pixels / max(len(labels), 1)
    widest = max((text_width(label) for label in labels), default=0.0)
    flat = vertical or widest + 3 <= pitch
    # Turned or stacked labels need a line each; crowded ones are set smaller before any goes.
    size = SMALL if pitch >= SMALL + 1.5 or (flat and not vertical) else TINY
    step = 1 if size == SMALL else max(1, math.ceil(CROWDED / pitch))
    return {
        "tickmode": "array",
        "tickvals": list(range(0, n, step)),
        "labelalias": {str(i): label for i, label in enumerate(labels)},
        "tickangle": 0 if flat else -90,
        "tickfont": {"size": size},
        "range": [n - 0.5, -0.5] if vertical else [-0.5, n - 0.5],
        "showgrid": False,
    }


def framed(axis: Axis, title: str, *, shown: bool = True) -> Axis:
    """``axis`` with a thin frame; its labels and title only where ``shown``."""
    words = {"showticklabels": shown, "ticks": "outside" if shown else ""}
    return {**axis, "mirror": True, "linecolor": MUTED, **words, **titled(title if shown else "")}


def label_space(labels: Sequence[str], pixels: Number) -> float:
    """Px below an x axis of ``pixels`` that its tick labels and title need."""
    turned = ticks(labels, pixels)["tickangle"] != 0
    return (max(map(text_width, labels)) if turned else SMALL + 2) + 8 + 22


def legend_rows(fig: go.Figure, width: Number) -> int:
    """How many rows the horizontal legend of ``fig`` takes in ``width`` pixels; 0 without one."""
    names = [
        t.name for t in fig.data if t.name and t.showlegend is not False and t.type != "heatmap"
    ]
    widths = [text_width(name, 10) + 44 for name in names]
    # plotly puts all in one row, or else in columns as wide as the widest.
    if sum(widths) <= width:
        return min(1, len(names))
    return math.ceil(len(names) / max(1, width // max(widths)))


def wrap(words: str, characters: Number) -> list[str]:
    """``words`` escaped and broken into lines of at most about ``characters``."""
    lines = [""]
    for word in words.split():
        if lines[-1] and len(lines[-1]) + 1 + len(word) > characters:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return [text(line) for line in lines]


def fitting(words: str, pixels: Number, size: Number = SMALL) -> str:
    """``words``, or without their bracket or their last words where they are too long.

    Examples:
        >>> fitting("gate (0 shut, 1 open)", 60), fitting("key token", 30)
        ('gate', 'key')
    """
    while text_width(words, size) > pixels and " " in words:
        words = words.split(" (")[0] if " (" in words else words.rsplit(" ", 1)[0]
    while " " in words and words.rsplit(" ", 1)[1] in ("a", "in", "of", "over", "the", "per"):
        words = words.rsplit(" ", 1)[0]
    return words


def log_axis(values: ArrayLike, title: str, pixels: Number = math.inf) -> Axis:
    """A logarithmic axis over positive ``values``, its ticks written out (0.01, not 10⁻²).

    Args:
        pixels: length of an x axis, on which labels must not touch.

    Examples:
        >>> log_axis([0.02, 3.0], "FVU")["ticktext"]
        ['0.01', '0.1', '1', '10']
    """
    given = np.asarray(values, dtype=np.float64)
    logs = np.log10(given[np.isfinite(given) & (given > 0)])
    low, high = (float(logs.min()), float(logs.max())) if logs.size else (0.0, 1.0)
    wide, pad = high - low > 1.6, 0.05 * (high - low) + 0.03
    every = max(1, math.ceil((high - low) / 6))
    decades = range(math.floor(low) - 1, math.ceil(high) + 2)
    marks = [s * 10.0**d for d in decades for s in ((1,) if wide else (1, 2, 5)) if not d % every]
    if not wide:  # so that a narrow spread still stands between two labelled marks
        low = max(m for m in map(math.log10, marks) if m <= low + 1e-9)
        high = min(m for m in map(math.log10, marks) if m >= high - 1e-9)
        pad = 0.03 if high > low else 0.4
    marks = [m for m in marks if low - 1 < math.log10(m) < high + 1]
    per_px = (high - low + 2 * pad) / pixels
    apart = marks[:1]
    for m in marks[1:]:
        half = (text_width(f"{m:.3g}") + text_width(f"{apart[-1]:.3g}")) / 2 + 6
        if math.log10(m / apart[-1]) >= half * per_px:
            apart.append(m)
    words = {"tickvals": apart, "ticktext": [f"{m:.3g}".replace("e-0", "e−") for m in apart]}
    return titled(title, type="log", range=[low - pad, high + pad], showgrid=True, **words)


def interval(value: ArrayLike, low: ArrayLike, high: ArrayLike, color: str = INK) -> dict[str, Any]:
    """How every figure draws an interval: a thin bar from ``low`` to ``high`` with short ends.

    An end on the wrong side of ``value`` is left out.
    """
    middle = np.asarray(value)
    return {
        **{"type": "data", "symmetric": False, "thickness": 1, "width": 2, "color": color},
        "array": (np.asarray(high) - middle).clip(min=0).tolist(),
        "arrayminus": (middle - np.asarray(low)).clip(min=0).tolist(),
    }
