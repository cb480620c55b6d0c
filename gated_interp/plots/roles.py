"""Where heads write, and what is left without some of them."""

from collections.abc import Mapping, Sequence

import numpy as np
import plotly.graph_objects as go
from numpy.typing import ArrayLike

from gated_interp.core.errors import GatedInterpError
from gated_interp.plots.holdings import HELD
from gated_interp.plots.inputs import array, between, labels
from gated_interp.plots.layout import Area, Box, framed, label_space
from gated_interp.plots.style import (
    FRACTION,
    INK,
    MUTED,
    SMALL,
    Columns,
    finish,
    text,
    text_width,
    ticks,
    width_of,
)

ROW, BAR_ROW, TITLE, GAP = 17.0, 16.0, 18.0, 20.0
# Shares below this are left blank, and numbers stand in a cell only where one has room.
SHOWN, NUMBER_WIDTH = 0.005, 27.0
# Px kept free behind the longest bar for its number.
NUMBER = 44.0


def head_roles_figure(
    energy: ArrayLike,
    places: Sequence[str],
    heads: Sequence[str],
    left: Mapping[str, Mapping[str, float]],
    *,
    marks: Mapping[int, str] | None = None,
    title: str | None = None,
    columns: Columns = 2,
) -> go.Figure:
    """Where each head writes, and what the layer still does with some heads ablated.

    Args:
        energy: ``[head, place]``, the share (0 to 1) of all squared lengths that heads write.
        places: one label per kind of position.
        heads: one label per head.
        left: by measure (its name and unit), its value by what is ablated; the measures share
            their keys.
        marks: what stands in colour beside the names of some heads, by index.
        title: above the figure.
        columns: paper columns it spans.

    Raises:
        GatedInterpError: another shape, a share outside 0 to 1, a label too few or too many, or
            measures of different ablations.

    Examples:
        >>> fig = head_roles_figure(
        ...     [[0.6, 0.0], [0.1, 0.3]], ["A", "B1"], ["L0H0", "L0H1"],
        ...     {"FVU": {"nothing": 0.02, "holders": 0.6}})
        >>> fig.data[0].z.tolist()
        [[0.6, 0.0], [0.1, 0.3]]
    """
    sizes: dict[str, int] = {}
    share = array("energy", energy, "head place", sizes)
    between("energy", share, 0, 1)
    heads = labels("heads", heads, sizes["head"], "heads")
    places = labels("places", places, sizes["place"], "places")
    ablated = [list(values) for values in left.values()]
    if not ablated or any(keys != ablated[0] for keys in ablated):
        raise GatedInterpError("left needs one measure at least, each with the same ablations.")
    marks = {h: text(words) for h, words in (marks or {}).items()}
    rows = [
        f"{head} <span style='color:{HELD}'>{marks[h]}</span>" if h in marks else head
        for h, head in enumerate(heads)
    ]
    names = max(text_width(f"{head} {marks.get(h, '')}") for h, head in enumerate(heads)) + 14
    bar_names = max(map(text_width, ablated[0])) + 12
    stacked = columns == 1
    space = width_of(columns) - names - 8
    bar_space = 8.0 + 54.0  # the colour bar and its labels
    wide = min(36.0 * len(places), space - bar_space - (0 if stacked else bar_names + 190.0))
    cells = Box(0, TITLE, wide, ROW * len(heads))
    below = label_space(places, ticks(places, wide))
    area_bars = BAR_ROW * len(ablated[0])
    at, top = (
        (max(0.0, bar_names - names), cells.bottom + below + 8)
        if stacked
        else (cells.right + bar_space + bar_names + GAP, 0.0)
    )
    boxes = [
        Box(at, top + TITLE + k * (area_bars + TITLE + 6), space - at, area_bars)
        for k in range(len(left))
    ]
    area = Area(space, max(cells.bottom, boxes[-1].bottom))

    fig = go.Figure()
    fig.update_layout(
        coloraxis=area.color_bar(
            FRACTION,
            (0.0, max(float(share.max()), 1e-9)),
            "share of the energy",
            Box(cells.right + 10, cells.top, 8, min(cells.height, 130.0)),
        )
    )
    fig.update_layout(coloraxis_colorbar_tickformat=".0%")
    axes = area.place(
        fig,
        1,
        cells,
        framed(ticks(places, wide), "query token", shown=True),
        framed(ticks(rows, cells.height, vertical=True), "", shown=True),
    )
    fig.add_heatmap(
        z=share,
        text=[[f"{v:.0%}" if v >= SHOWN else "" for v in row] for row in share],
        texttemplate="%{text}" if wide / len(places) >= NUMBER_WIDTH else None,
        textfont={"size": SMALL},
        coloraxis="coloraxis",
        hovertemplate="%{y} at %{x}: %{z:.1%}<extra></extra>",
        **axes,
    )
    area.note(fig, "where each head writes", 0, cells.top - 4, align="left")
    for k, (measure, values) in enumerate(left.items()):
        box, given = boxes[k], np.array(list(values.values()), dtype=np.float64)
        most = float(given.max()) if given.max() > 0 else 1.0
        axes = area.place(
            fig,
            k + 2,
            box,
            {"range": [0, most * box.width / (box.width - NUMBER)], "visible": False},
            {**ticks(ablated[0], box.height, vertical=True), "ticks": ""},
        )
        fig.add_bar(
            x=given,
            y=list(range(len(given))),
            orientation="h",
            marker={"color": MUTED},
            width=0.62,
            showlegend=False,
            name=measure,
            hovertemplate="%{y}: %{x:.3g}<extra></extra>",
            **axes,
        )
        for row, value in enumerate(given):
            said = f"{value:.0%}" if measure.endswith("answered") else f"{value:.2g}"
            middle = box.top + (row + 0.5) * BAR_ROW
            end = box.left + (box.width - NUMBER) * value / most + 4
            area.note(fig, said, end, middle, size=SMALL, align="left", valign="middle", color=INK)
        area.note(fig, text(measure), box.left, box.top - 3, align="left")
    return finish(
        fig,
        columns=columns,
        height=area.height,
        title=title,
        left=names,
        right=8,
        bottom=max(0.0, cells.bottom + below - area.height),
    )
