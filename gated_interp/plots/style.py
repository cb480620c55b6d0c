"""One look for every figure: template, sizes, colours, scales.

Importing this module registers the template ``gated_interp`` with plotly and leaves plotly's own
default as it was; :func:`finish` applies it to one figure at a time.
"""

import html
import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import plotly.graph_objects as go
import plotly.io as pio

from gated_interp.core.errors import GatedInterpError
from gated_interp.plots import fonts
from gated_interp.plots.fonts import FAMILY

TEMPLATE = "gated_interp"
Columns = Literal[1, 2]
# Whole or not: type checkers take an int for a float, run-time checkers do not.
Number = float | int
# Paper columns of 3.4 and 7 inches, in CSS pixels of 1/96 inch.
WIDTHS: dict[int, int] = {1: 326, 2: 672}
# 11 px print as 8 points; nothing is set smaller than SMALL, 7 points (6.5 inside crowded cells).
FONT, SMALL, TINY = 11.0, 9.5, 8.5
# Lines of TINY capitals this close are still apart.
CROWDED = 7.0

# Okabe & Ito's colour-blind-safe palette (2008), black last.
PALETTE = (
    "#0072B2",
    "#E69F00",
    "#009E73",
    "#CC79A7",
    "#56B4E9",
    "#D55E00",
    "#F0E442",
    "#000000",
)
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "x", "star", "hexagon")
INK, MUTED, FAINT, EMPTY = "#222222", "#6B6B6B", "#E3E3E3", "#F1F1F1"

# One ramp per kind of quantity, so that a colour keeps its meaning across figures. Luminance falls
# steadily along each; the signed scale is white at zero and mirrors orange against blue.
Scale = list[list[Any]]
SIGNED: Scale = [
    [0.0, "#7A3300"],
    [0.25, "#DE8A3E"],
    [0.5, "#FFFFFF"],
    [0.75, "#5AA0CF"],
    [1.0, "#0B3C6F"],
]
GATE: Scale = [[0.0, "#FFFFFF"], [0.5, "#57B894"], [1.0, "#004B38"]]
ATTENTION: Scale = [[0.0, "#FFFFFF"], [0.5, "#B48BC4"], [1.0, "#451560"]]
FRACTION: Scale = [[0.0, "#FFF7D1"], [0.33, "#8FCFBB"], [0.66, "#2F84B8"], [1.0, "#0C2A66"]]

pio.templates[TEMPLATE] = go.layout.Template(
    layout={
        "font": {"family": FAMILY, "size": FONT, "color": INK},
        "title": {"font": {"size": 12}, "x": 0, "xref": "container", "pad": {"l": 6, "t": 6}},
        "paper_bgcolor": "white",
        "plot_bgcolor": "white",
        "colorway": PALETTE,
        "colorscale": {"diverging": SIGNED, "sequential": FRACTION, "sequentialminus": FRACTION},
        "hoverlabel": {"font": {"family": FAMILY}},
        "legend": {"font": {"size": 10}, "bgcolor": "rgba(255,255,255,0)"},
        **{
            axis: {
                "showline": True,
                "linecolor": INK,
                "linewidth": 1,
                "ticks": "outside",
                "ticklen": 3,
                "tickcolor": INK,
                "tickfont": {"size": SMALL},
                "title": {"font": {"size": 10.5}, "standoff": 5},
                "gridcolor": FAINT,
                "zeroline": False,
                "automargin": True,
            }
            for axis in ("xaxis", "yaxis")
        },
    }
)


def width_of(columns: int) -> int:
    """Pixels across so many paper columns.

    Raises:
        GatedInterpError: neither one nor two.
    """
    if columns not in WIDTHS:
        raise GatedInterpError(f"columns is {columns!r}; a figure spans 1 or 2 paper columns.")
    return WIDTHS[columns]


def text(label: object) -> str:
    """``label`` as plotly shows it literally: its markup characters are escaped.

    Examples:
        >>> text("<b>")
        '&lt;b&gt;'
    """
    return html.escape(str(label), quote=False)


def text_width(label: str, size: Number = SMALL, weight: str = "normal") -> float:
    """How many pixels wide ``label`` is drawn at font ``size`` (px)."""
    return fonts.text_width(label, size, weight)


def symmetric_limit(*values: np.ndarray) -> float:
    """The largest magnitude in ``values``, or 1 where all are zero or missing.

    Examples:
        >>> symmetric_limit(np.array([-3.0, 2.0]))
        3.0
    """
    finite = np.concatenate([v[np.isfinite(v)].ravel() for v in values] or [np.zeros(0)])
    return float(np.abs(finite).max()) if finite.size and np.abs(finite).max() > 0 else 1.0


def ticks(labels: Sequence[str], pixels: Number, *, vertical: bool = False) -> dict[str, Any]:
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


def legend_rows(fig: go.Figure, width: Number) -> int:
    """How many rows the horizontal legend of ``fig`` takes in ``width`` pixels; 0 without one."""
    names = [
        t.name for t in fig.data if t.name and t.showlegend is not False and t.type != "heatmap"
    ]
    widths = [text_width(name, 10) + 44 for name in names]
    # plotly puts all in one row, or else in columns as wide as the widest.
    return 1 if 0 < sum(widths) <= width else math.ceil(len(names) * max(widths, default=0) / width)


def finish(
    fig: go.Figure,
    *,
    columns: Columns,
    height: Number,
    title: str | None = None,
    left: Number = 8,
    right: Number = 8,
    bottom: Number = 6,
) -> go.Figure:
    """Give ``fig`` the template, its size, a title and a legend above the panels.

    Args:
        columns: paper columns it spans.
        height: of the panels, in px; title, legend and margins are added.
        left, right, bottom: margins in px; axes widen them where their labels need it.
    """
    width = width_of(columns)
    lines = wrap(title, (width - 12) / (0.54 * 12)) if title else []
    title_px = 15 * len(lines) + 6 if lines else 2
    rows = legend_rows(fig, width - 16)
    top = title_px + 17 * rows + (5 if rows else 0) + 4
    total = height + top + bottom
    fig.update_layout(
        template=TEMPLATE,
        width=width,
        height=round(total),
        margin={"l": left, "r": right, "t": top, "b": bottom},
        showlegend=rows > 0,
        legend={
            "orientation": "h",
            "x": (8 - left) / (width - left - right),
            "xanchor": "left",
            "y": 1 + 4 / height,
            "yanchor": "bottom",
            "tracegroupgap": 0,
        },
    )
    if lines:
        fig.update_layout(
            title={
                "text": "<br>".join(lines),
                "yref": "container",
                # plotly lifts a title of several lines by about half of one.
                "y": 1 - (6 if len(lines) == 1 else 15) / total,
                "yanchor": "top",
                "pad": {"l": 6, "t": 0},
            }
        )
    return fig


def wrap(words: str, characters: Number) -> list[str]:
    """``words`` escaped and broken into lines of at most about ``characters``."""
    lines = [""]
    for word in words.split():
        if lines[-1] and len(lines[-1]) + 1 + len(word) > characters:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return [text(line) for line in lines]
