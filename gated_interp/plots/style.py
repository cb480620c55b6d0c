"""One look for every figure: template, sizes, colours, scales.

Importing this module registers the template ``gated_interp`` with plotly and leaves plotly's own
default as it was.
"""

import html
from typing import Any, Literal

import numpy as np
import plotly.graph_objects as go
import plotly.io as pio

from gated_interp.core.errors import GatedInterpError
from gated_interp.plots.fonts import FAMILY
from gated_interp.plots.fonts import text_width as text_width

TEMPLATE = "gated_interp"
Columns = Literal[1, 2]
# Whole or not: type checkers take an int for a float, run-time checkers do not.
Number = float | int
# Paper columns of 3.25 and 6.75 inches, in CSS pixels of 1/96 inch.
WIDTHS: dict[int, int] = {1: 312, 2: 648}
# 11 px print as 8 points; nothing is set smaller than SMALL, 7 points (6.4 inside crowded cells).
FONT, SMALL, TINY = 11.0, 9.5, 8.5
# Lines of TINY capitals this close are still apart.
CROWDED = 6.5

# Okabe & Ito's colour-blind-safe palette (2008), black last.
PALETTE = (
    *("#0072B2", "#E69F00", "#009E73", "#CC79A7"),
    *("#56B4E9", "#D55E00", "#F0E442", "#000000"),
)
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "x", "star", "hexagon")
INK, MUTED, FAINT, EMPTY = "#222222", "#6B6B6B", "#E3E3E3", "#F1F1F1"

# One ramp per kind of quantity, so that a colour keeps its meaning across figures. Luminance falls
# steadily along each; the signed scale is white at zero and mirrors orange against blue.
Scale = list[list[Any]]
SIGNED: Scale = [
    *([0.0, "#7A3300"], [0.25, "#DE8A3E"], [0.5, "#FFFFFF"], [0.75, "#5AA0CF"], [1.0, "#0B3C6F"])
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
                **{"showline": True, "linecolor": INK, "linewidth": 1},
                **{"ticks": "outside", "ticklen": 3, "tickcolor": INK, "tickfont": {"size": SMALL}},
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
    """Pixels across so many paper columns."""
    if columns not in WIDTHS:
        raise GatedInterpError("bad-figure-width", columns=columns)
    return WIDTHS[columns]


def text(label: object) -> str:
    """``label`` as plotly shows it literally: its markup characters are escaped.

    Examples:
        >>> text("<b>")
        '&lt;b&gt;'
    """
    return html.escape(str(label), quote=False)


def symmetric_limit(*values: np.ndarray) -> float:
    """The largest magnitude in ``values``, or 1 where all are zero or missing.

    Examples:
        >>> symmetric_limit(np.array([-3.0, 2.0]))
        3.0
    """
    finite = np.concatenate([v[np.isfinite(v)].ravel() for v in values] or [np.zeros(0)])
    return float(np.abs(finite).max()) if finite.size and np.abs(finite).max() > 0 else 1.0
