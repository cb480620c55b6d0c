"""Where heads write, and what is left without some of them."""

from collections.abc import Collection, Mapping, Sequence

import numpy as np
import plotly.graph_objects as go
from numpy.typing import ArrayLike

from gated_interp.core.errors import GatedInterpError
from gated_interp.plots.holdings import named_heads
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
# Shares below this are left blank.
SHOWN = 0.005
# Px that a number needs in a cell, and behind the longest bar.
IN_CELL, BEHIND_BAR = 27.0, 44.0


def head_roles_figure(
    energy: ArrayLike,
    places: Sequence[str],
    heads: Sequence[str],
    left: Mapping[str, Mapping[str, float]],
    *,
    percent: Collection[str] = (),
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
        percent: the measures whose values (0 to 1) are shown as per cent.
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
    named, rows = named_heads(heads, marks)
    names = max(map(text_width, named)) + 14
    bar_names = max(map(text_width, ablated[0])) + 12
    stacked = columns == 1
    space = width_of(columns) - names - 8
    bar_space = 8.0 + 54.0  # the colour bar and its labels
    wide = min(36.0 * len(places), space - bar_space - (0 if stacked else bar_names + 190.0))
    cells = Box(0, TITLE, wide, ROW * len(heads))
    across = ticks(places, wide)
    below = label_space(places, across)
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
        framed(across, "query token", shown=True),
        framed(ticks(rows, cells.height, vertical=True), "", shown=True),
    )
    fig.add_heatmap(
        z=share,
        text=[[f"{v:.0%}" if v >= SHOWN else "" for v in row] for row in share],
        texttemplate="%{text}" if wide / len(places) >= IN_CELL else None,
        textfont={"size": SMALL},
        coloraxis="coloraxis",
        hovertemplate="%{y} at %{x}: %{z:.1%}<extra></extra>",
        **axes,
    )
    area.note(fig, "where each head writes", 0, cells.top - 4, align="left")
    for k, (measure, values) in enumerate(left.items()):
        form = ".0%" if measure in percent else ".2g"
        _bars(fig, area, k + 2, boxes[k], text(measure), values, form)
    return finish(
        fig,
        columns=columns,
        height=area.height,
        title=title,
        left=names,
        right=8,
        bottom=max(0.0, cells.bottom + below - area.height),
    )


def _bars(
    fig: go.Figure,
    area: Area,
    number: int,
    box: Box,
    measure: str,
    values: Mapping[str, float],
    form: str,
) -> None:
    """A bar for each of ``values`` in panel ``number``, with its value in ``form`` behind it."""
    given = np.array(list(values.values()), dtype=np.float64)
    most = float(given.max()) if given.max() > 0 else 1.0
    room = box.width - BEHIND_BAR
    axes = area.place(
        fig,
        number,
        box,
        {"range": [0, most * box.width / room], "visible": False},
        {**ticks(list(values), box.height, vertical=True), "ticks": ""},
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
        end, middle = box.left + room * value / most + 4, box.top + (row + 0.5) * BAR_ROW
        words = f"{value:{form}}"
        area.note(fig, words, end, middle, size=SMALL, align="left", valign="middle", color=INK)
    area.note(fig, measure, box.left, box.top - 3, align="left")
