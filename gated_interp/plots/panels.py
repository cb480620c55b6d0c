"""Small multiples of heat maps: one panel per head and quantity."""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np
import plotly.graph_objects as go

from gated_interp.plots.holdings import named_heads
from gated_interp.plots.layout import Box, Canvas, fitting, framed, label_space, ticks
from gated_interp.plots.style import (
    CROWDED,
    FONT,
    SMALL,
    Columns,
    Number,
    Scale,
    text_width,
    width_of,
)  # fmt: skip

GAP, ROW_GAP, HEAD_TITLE, BAR_SPACE = 9.0, 6.0, 16.0, 58.0
# Px: a figure of one quantity stands on a page, one of several may run over.
PAGE, PAGE_OF_SEVERAL, LARGEST_PANEL = 860.0, 1100.0, 160.0


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


def choices_across(
    n_heads: int, n_quantities: int, columns: Columns, narrowest: Number, room: Number
) -> list[int]:
    """How many heads may stand side by side, the best first.

    As many as leave each ``narrowest`` px, in rows of one length, or else with a shorter last row;
    then as many as the page takes, in rows as even as can be.

    Examples:
        >>> choices_across(16, 1, 2, 84, 552), choices_across(8, 3, 2, 60, 552)
        ([4, 6, 6], [8, 8, 8])
    """
    fitting_most = min(n_heads, int((room + GAP) // (narrowest + GAP)))
    if n_quantities == 1:
        most = n_heads if n_heads <= 5 else 4 if n_heads <= 8 else 6 if n_heads <= 18 else 8
    else:
        most = 8 if n_heads <= 16 else 11
    most = most if columns == 2 else min(most, 4)
    found = [_ragged(n_heads, fitting_most)] if fitting_most else []
    even = next((k for k in range(fitting_most, 0, -1) if n_heads % k == 0), 0)
    return ([even] if 2 * even >= max(fitting_most, 1) else []) + found + [_ragged(n_heads, most)]


def _ragged(n_heads: int, most: int) -> int:
    return math.ceil(n_heads / math.ceil(n_heads / most))


def heat_panels(
    quantities: Sequence[Maps],
    heads: Sequence[str],
    *,
    columns: Columns,
    title: str | None,
    marks: Mapping[int, str] | None = None,
    largest: float = LARGEST_PANEL,
) -> go.Figure:
    """A figure with one panel per head and quantity.

    Heads run across and wrap into blocks; within a block each quantity has its row. Tick labels
    and axis titles stand at the left and below each block only, and name every row and column.

    Args:
        marks: what stands in colour beside the names of some heads, by index.
        largest: width of a panel at most, in px.
    """
    several = len(quantities) > 1
    left = max(text_width(t) for m in quantities for t in m.y_labels) + (44 if several else 30)
    room = width_of(columns) - left - BAR_SPACE
    marks = marks or {}
    named, drawn = named_heads(heads, marks)
    # Every row and column gets its label, and every head its mark, where the page allows it.
    narrowest = max(
        28.0,
        CROWDED * max(len(m.x_labels) for m in quantities),
        max(text_width(name, SMALL, "bold") for name in named) - GAP + 4,
    )
    if narrowest > largest:
        narrowest = room + 1
    # Quantities of one head stand close: they share the labels under the last of them.
    last = quantities[-1]

    def sizes(across: int) -> tuple[float, list[float], float]:
        """Width and heights of panels, and the space below a block."""
        wide = min(largest, (room - GAP * (across - 1)) / across)
        tall = [
            float(np.clip(wide * m.values.shape[1] / m.values.shape[2], 26, 1.5 * wide))
            for m in quantities
        ]
        return wide, tall, label_space(last.x_labels, wide)

    def height(across: int) -> float:
        _, tall, below = sizes(across)
        n_blocks = math.ceil(len(heads) / across)
        block = HEAD_TITLE + sum(tall) + ROW_GAP * len(tall)
        return n_blocks * block + (n_blocks if several else 1) * below

    options = choices_across(len(heads), len(quantities), columns, narrowest, room)
    page = PAGE_OF_SEVERAL if several else PAGE
    across = next((k for k in options if height(k) <= page), options[-1])
    blocks = math.ceil(len(heads) / across)
    wide, tall, below = sizes(across)

    boxes: dict[tuple[int, int], Box] = {}
    y = 0.0
    for block in range(blocks):
        y += HEAD_TITLE
        row = range(block * across, min((block + 1) * across, len(heads)))
        for k in range(len(quantities)):
            for head in row:
                boxes[k, head] = Box((head % across) * (wide + GAP), y, wide, tall[k])
            y += tall[k] + ROW_GAP
        # Of one quantity, a full row carries labels only where the row below it is shorter.
        y += below if several or (block + 2 == blocks and len(heads) % across) else 0
    canvas = Canvas(columns, title, left, 0)
    reach = across * (wide + GAP) - GAP
    tallest = max(box.bottom for box in boxes.values())

    for (k, head), box in boxes.items():
        maps, at_left = quantities[k], head % across == 0
        # In a ragged grid the last full row carries labels where nothing stands below it.
        labelled = maps is last and (several or head + across >= len(heads))
        y_title = fitting(maps.y_title, tall[k], 10.5)
        if several:
            y_title = f"<b>{maps.name}</b><br>{y_title}"
        y_axis = framed(ticks(maps.y_labels, tall[k], vertical=True), y_title, shown=at_left)
        x_axis = framed(ticks(maps.x_labels, wide), "", shown=labelled)
        axes = canvas.panel(box, x_axis, y_axis)
        canvas.fig.add_heatmap(
            z=maps.values[head],
            coloraxis=_color_axis(k),
            name=f"{heads[head]} {maps.name}",
            hovertemplate=f"{maps.y_title} %{{y}}<br>{maps.x_title} %{{x}}<br>"
            f"{maps.unit} %{{z:.3f}}<extra>{heads[head]}</extra>",
            showlegend=False,
            **axes,
        )
        if k == 0:
            said = f"<b>{drawn[head]}</b>" if head in marks else drawn[head]
            size = FONT if wide > 100 or (not marks and wide > 60) else SMALL
            canvas.note(said, box.left + wide / 2, box.top - 1, size=size)
    for block in range(blocks) if several else [blocks - 1]:
        bottom = boxes[len(quantities) - 1, block * across].bottom + below - 4
        canvas.note(_x_title(quantities), reach / 2, bottom, size=10.5)
    for k, maps in enumerate(quantities):
        # A lone quantity's bar may run past the first of several rows of panels; those of several
        # stay apart, ends of their scales included.
        at = boxes[k, 0].top
        bar = Box(reach + 10, at, 8, min(max(tallest - HEAD_TITLE, 60.0), 150.0))
        if several:
            bar = Box(reach + 10, at + 4, 8, min(max(tall[k] - 8, 26.0), 150.0))
        canvas.color_bar(_color_axis(k), maps.scale, maps.limits, maps.unit, bar)
    return canvas.finish(below)


def _x_title(quantities: Sequence[Maps]) -> str:
    """What the columns are; where quantities differ, of which each."""
    names: dict[str, list[str]] = {}
    for maps in quantities:
        names.setdefault(maps.x_title, []).append(maps.name)
    if len(names) == 1:
        return next(iter(names))
    return ", ".join(f"{' and '.join(of)}: {title}" for title, of in names.items())


def _color_axis(k: int) -> str:
    return "coloraxis" + (str(k + 1) if k else "")
