"""Panels placed to the pixel, so that nothing overlaps whatever the number of panels."""

import dataclasses
import math
from typing import Any

import numpy as np
import plotly.graph_objects as go
from numpy.typing import ArrayLike

from gated_interp.plots.style import FONT, MUTED, SMALL, Number, Scale, text, text_width


@dataclasses.dataclass(frozen=True)
class Box:
    """A rectangle in px; ``top`` counts down from the top of the panel area."""

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


@dataclasses.dataclass(frozen=True)
class Area:
    """The part of a figure that holds panels, in px, without margins."""

    width: Number
    height: Number

    def place(
        self, fig: go.Figure, number: int, box: Box, x: dict[str, Any], y: dict[str, Any]
    ) -> dict[str, str]:
        """Add panel ``number`` (from 1) at ``box``; returns the axes a trace there names."""
        suffix = "" if number == 1 else str(number)
        fig.update_layout(
            {
                f"xaxis{suffix}": {
                    "domain": [max(0.0, box.left / self.width), min(1.0, box.right / self.width)],
                    "anchor": f"y{suffix}",
                    "automargin": False,
                    **x,
                },
                f"yaxis{suffix}": {
                    "domain": [
                        max(0.0, 1 - box.bottom / self.height),
                        min(1.0, 1 - box.top / self.height),
                    ],
                    "anchor": f"x{suffix}",
                    "automargin": False,
                    **y,
                },
            }
        )
        return {"xaxis": f"x{suffix}", "yaxis": f"y{suffix}"}

    def note(
        self,
        fig: go.Figure,
        words: str,
        x: Number,
        y: Number,
        *,
        size: Number = FONT,
        align: str = "center",
        valign: str = "bottom",
        color: str | None = None,
    ) -> None:
        """Write ``words`` at the pixel (x, y) of the area; ``y`` counts down."""
        fig.add_annotation(
            text=words,
            xref="paper",
            yref="paper",
            x=x / self.width,
            y=1 - y / self.height,
            xanchor=align,
            yanchor=valign,
            align=align,
            showarrow=False,
            font={"size": size, **({"color": color} if color else {})},
            borderpad=0,
        )

    def color_bar(
        self, scale: Scale, limits: tuple[float, float], unit: str, box: Box
    ) -> dict[str, Any]:
        """A colour axis with its bar at ``box``; zero-centred where ``limits`` are signed."""
        low, high = limits
        marks = {"tickvals": [0, 0.5, 1]} if limits == (0.0, 1.0) else {"nticks": 5}
        return {
            "colorscale": scale,
            "cmin": low,
            "cmax": high,
            "colorbar": {
                "title": {
                    "text": text(fitting(unit, box.height)),
                    "side": "right",
                    "font": {"size": SMALL},
                },
                "thickness": box.width,
                "len": box.height,
                "lenmode": "pixels",
                "x": box.left / self.width,
                "xanchor": "left",
                "y": 1 - (box.top + box.height / 2) / self.height,
                "yanchor": "middle",
                "tickfont": {"size": SMALL},
                "ticks": "outside",
                "ticklen": 2,
                "exponentformat": "none",
                "outlinewidth": 0.5,
                "outlinecolor": MUTED,
                "xpad": 0,
                "ypad": 0,
                **marks,
            },
        }


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


def log_axis(values: ArrayLike, title: str, pixels: Number = math.inf) -> dict[str, Any]:
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
    marks = apart
    return {
        "type": "log",
        "range": [low - pad, high + pad],
        "tickvals": marks,
        "ticktext": [f"{m:.3g}" for m in marks],
        "title": {"text": title},
        "showgrid": True,
    }


def error_bar(
    value: ArrayLike,
    low: ArrayLike,
    high: ArrayLike,
    *,
    color: str,
    thickness: Number = 1,
    width: Number = 2,
) -> dict[str, Any]:
    """A trace's bar from ``low`` to ``high``; an end on the wrong side of ``value`` is left out."""
    middle = np.asarray(value)
    return {
        "type": "data",
        "symmetric": False,
        "array": (np.asarray(high) - middle).clip(min=0).tolist(),
        "arrayminus": (middle - np.asarray(low)).clip(min=0).tolist(),
        "thickness": thickness,
        "width": width,
        "color": color,
    }


def framed(axis: dict[str, Any], title: str, *, shown: bool) -> dict[str, Any]:
    """``axis`` with a thin frame; its labels and title only where ``shown``."""
    return {
        **axis,
        "mirror": True,
        "linecolor": MUTED,
        "showticklabels": shown,
        "ticks": "outside" if shown else "",
        "title": {"text": title if shown else ""},
    }


def label_space(labels: list[str], axis: dict[str, Any]) -> float:
    """Px below an x axis that its tick labels and title need."""
    turned = axis["tickangle"] != 0
    return (max(map(text_width, labels)) if turned else SMALL + 2) + 8 + 22
