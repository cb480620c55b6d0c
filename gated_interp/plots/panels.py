"""Small multiples of heat maps: one panel per head and quantity."""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go

from gated_interp.plots.layout import Area, Box, fitting, framed, label_space
from gated_interp.plots.style import (
    FONT,
    SMALL,
    Columns,
    Number,
    Scale,
    finish,
    text_width,
    ticks,
    width_of,
)

GAP, HEAD_TITLE, BAR_SPACE = 9.0, 16.0, 58.0


@dataclasses.dataclass(frozen=True)
class Maps:
    """One quantity for every head, with its own colour scale.

    Attributes:
        values: ``[head, y, x]``.
        name: of the quantity; shown where a figure holds several.
        unit: title of its colour bar.
        limits: of the colour scale; symmetric for a signed quantity.
    """

    values: np.ndarray
    name: str
    unit: str
    scale: Scale
    limits: tuple[float, float]
    x_title: str
    y_title: str
    x_labels: list[str]
    y_labels: list[str]


def heads_across(n_heads: int, n_quantities: int, columns: Columns) -> int:
    """How many heads stand side by side; the rest wraps, in rows as even as can be."""
    if n_quantities == 1:
        most = n_heads if n_heads <= 5 else 4 if n_heads <= 8 else 6 if n_heads <= 18 else 8
    else:
        most = 8 if n_heads <= 16 else 11
    most = most if columns == 2 else min(most, 4)
    return math.ceil(n_heads / math.ceil(n_heads / most))


def heat_panels(
    quantities: Sequence[Maps],
    heads: Sequence[str],
    *,
    columns: Columns,
    title: str | None,
    largest_panel: Number = 160.0,
) -> go.Figure:
    """A figure with one panel per head and quantity.

    Heads run across and wrap into blocks; within a block each quantity has its row. Tick labels
    and axis titles stand at the left and below only.
    """
    several = len(quantities) > 1
    across = heads_across(len(heads), len(quantities), columns)
    blocks = math.ceil(len(heads) / across)
    left = max(text_width(t) for m in quantities for t in m.y_labels) + (44 if several else 30)
    room = width_of(columns) - left - BAR_SPACE
    wide = min(largest_panel, (room - GAP * (across - 1)) / across)
    tall = [
        float(np.clip(wide * m.values.shape[1] / m.values.shape[2], 26, 1.5 * wide))
        for m in quantities
    ]
    below = [label_space(m.x_labels, ticks(m.x_labels, wide)) for m in quantities]

    def labelled(head: int) -> bool:
        """Whether tick labels stand below this head: always where another quantity follows."""
        return several or head + across >= len(heads)

    boxes: dict[tuple[int, int], Box] = {}
    y = 0.0
    for first in range(0, len(heads), across):
        y += HEAD_TITLE
        row = range(first, min(first + across, len(heads)))
        for k in range(len(quantities)):
            for head in row:
                boxes[k, head] = Box((head - first) * (wide + GAP), y, wide, tall[k])
            y += tall[k]
            # In a ragged grid the last full row carries labels where nothing stands below it.
            y += below[k] if any(map(labelled, row)) else 2
    bottom = below[-1]
    area = Area(across * (wide + GAP) - GAP, max(box.bottom for box in boxes.values()))

    fig = go.Figure()
    for number, ((k, head), box) in enumerate(boxes.items(), start=1):
        maps, at_left = quantities[k], head % across == 0
        x_title = fitting(maps.x_title, wide + GAP - 3, 10.5)
        y_title = fitting(maps.y_title, tall[k] + HEAD_TITLE, 10.5)
        if several:
            y_title = f"<b>{maps.name}</b><br>{y_title}"
        axes = area.place(
            fig,
            number,
            box,
            framed(ticks(maps.x_labels, wide), x_title, shown=labelled(head)),
            framed(ticks(maps.y_labels, tall[k], vertical=True), y_title, shown=at_left),
        )
        fig.add_heatmap(
            z=maps.values[head],
            coloraxis=_color_axis(k),
            name=f"{heads[head]} {maps.name}",
            hovertemplate=f"{maps.y_title} %{{y}}<br>{maps.x_title} %{{x}}<br>"
            f"{maps.unit} %{{z:.3f}}<extra>{heads[head]}</extra>",
            showlegend=False,
            **axes,
        )
        if k == 0:
            size = FONT if wide > 60 else SMALL
            area.note(fig, heads[head], box.left + wide / 2, box.top - 1, size=size)
    for k, maps in enumerate(quantities):
        # A lone quantity's bar may run past the first of several rows of panels.
        reach = tall[k] if several or blocks == 1 else area.height - HEAD_TITLE
        bar = Box(area.width + 10, boxes[k, 0].top, 8, min(max(reach, 60.0), 150.0))
        fig.update_layout({_color_axis(k): area.color_bar(maps.scale, maps.limits, maps.unit, bar)})
    return finish(
        fig,
        columns=columns,
        height=area.height,
        title=title,
        left=left,
        right=width_of(columns) - left - area.width,
        bottom=bottom,
    )


def _color_axis(k: int) -> str:
    return "coloraxis" + (str(k + 1) if k else "")
