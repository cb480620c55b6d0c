"""Where heads write, and what is left without some of them."""

from collections.abc import Collection, Mapping, Sequence

import numpy as np
import plotly.graph_objects as go
from numpy.typing import ArrayLike

from gated_interp.core import written
from gated_interp.core.errors import GatedInterpError
from gated_interp.plots.holdings import named_heads
from gated_interp.plots.inputs import array, between, labels
from gated_interp.plots.layout import Box, Canvas, framed, label_space, ticks
from gated_interp.plots.style import FRACTION, INK, MUTED, SMALL, Columns, text, text_width

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
        raise GatedInterpError("ablations-do-not-match")
    named, rows = named_heads(heads, marks)
    canvas = Canvas(columns, title, max(map(text_width, named)) + 14, 8)
    bar_names = max(map(text_width, ablated[0])) + 12
    stacked, space = columns == 1, canvas.width
    bar_space = 8.0 + 54.0  # the colour bar and its labels
    wide = min(36.0 * len(places), space - bar_space - (0 if stacked else bar_names + 190.0))
    cells = Box(0, TITLE, wide, ROW * len(heads))
    below = label_space(places, wide)
    at, top = cells.right + bar_space + bar_names + GAP, 0.0
    if stacked:
        at, top = max(0.0, bar_names - canvas.left), cells.bottom + below + 8
    bar = Box(cells.right + 10, cells.top, 8, min(cells.height, 130.0))
    limits = 0.0, max(float(share.max()), 1e-9)
    canvas.color_bar("coloraxis", FRACTION, limits, "share of the energy", bar, tickformat=".0%")
    axes = canvas.panel(
        cells,
        framed(ticks(places, wide), "query token"),
        framed(ticks(rows, cells.height, vertical=True), ""),
    )
    canvas.fig.add_heatmap(
        z=share,
        text=[[written.share(v) if v >= SHOWN else "" for v in row] for row in share],
        texttemplate="%{text}" if wide / len(places) >= IN_CELL else None,
        textfont={"size": SMALL},
        coloraxis="coloraxis",
        hovertemplate="%{y} at %{x}: %{z:.1%}<extra></extra>",
        **axes,
    )
    canvas.note("where each head writes", 0, cells.top - 4, align="left")
    for measure, values in left.items():
        box = Box(at, top + TITLE, space - at, BAR_ROW * len(values))
        form = written.share if measure in percent else written.short
        _bars(canvas, box, text(measure), {key: (v, form(v)) for key, v in values.items()})
        top = box.bottom + 6
    height = max(box.bottom for box in canvas.boxes)
    return canvas.finish(max(0.0, cells.bottom + below - height))


def _bars(canvas: Canvas, box: Box, measure: str, values: Mapping[str, tuple[float, str]]) -> None:
    """A panel with a bar for each of ``values``, and behind it how it is written."""
    given = np.array([v for v, _ in values.values()], dtype=np.float64)
    most = float(given.max()) if given.max() > 0 else 1.0
    room = box.width - BEHIND_BAR
    down = {**ticks(list(values), box.height, vertical=True), "ticks": ""}
    axes = canvas.panel(box, {"range": [0, most * box.width / room], "visible": False}, down)
    canvas.fig.add_bar(
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
    for row, (value, words) in enumerate(values.values()):
        end, middle = box.left + room * value / most + 4, box.top + (row + 0.5) * BAR_ROW
        canvas.note(words, end, middle, size=SMALL, align="left", valign="middle", color=INK)
    canvas.note(measure, box.left, box.top - 3, align="left")
