"""One edge of attention taken apart: its scores by pairs of components, its write by the key's."""

from collections.abc import Mapping, Sequence

import plotly.graph_objects as go
from numpy.typing import ArrayLike

from gated_interp.core.errors import GatedInterpError
from gated_interp.core.written import change
from gated_interp.plots.inputs import array, labels
from gated_interp.plots.layout import ZERO, Box, Canvas, framed, label_space, ticks, titled
from gated_interp.plots.style import SIGNED, Columns, symmetric_limit, text, text_width

ROW, WIDEST, BAR = 19.0, 58.0, 15.0


def qk_attribution(
    scores: Mapping[str, tuple[ArrayLike, Sequence[str], Sequence[str]]],
    write: Mapping[str, float] | None = None,
    *,
    unit: str = "written",
    title: str | None = None,
    columns: Columns = 2,
) -> go.Figure:
    """Why a head reads a key, and what it carries from there: signed, and white at zero.

    One map per score, each on a scale of its own. Below them stands what each component at the key
    adds to the write, orange where it is negative.

    Args:
        scores: by name (``attention score``, ``gate score``), what
            :meth:`~gated_interp.types.QKAttribution.top_pairs` gives: ``[query_component,
            key_component]``, the names of rows and those of columns.
        write: by component, what it adds to the write; left out unless given.
        unit: of the write.

    Raises:
        GatedInterpError: no score, another shape, or labels that do not fit.

    Examples:
        >>> pairs = [[1.0, -0.5], [0.0, 2.0]], ["embed", "L0H1"], ["embed", "bias"]
        >>> fig = qk_attribution({"attention score": pairs}, {"embed": 0.3, "bias": -0.1})
        >>> [trace.type for trace in fig.data]
        ['heatmap', 'bar']
    """
    if not scores:
        raise GatedInterpError("nothing-named", what="score")
    maps = []
    for name, (pairs, rows, across) in scores.items():
        sizes: dict[str, int] = {}
        values = array(name, pairs, "query_component key_component", sizes)
        rows = labels("rows", rows, sizes["query_component"], "components")
        across = labels("columns", across, sizes["key_component"], "components")
        maps.append((name, values, rows, across))
    parts = {text(name): float(value) for name, value in (write or {}).items()}
    named = [label for _, _, rows, _ in maps for label in rows] + [*parts]
    canvas = Canvas(columns, title, max(map(text_width, named)) + 34, 0)
    room, y, space = canvas.width - 66.0, 16.0, 0.0
    for i, (name, values, rows, across) in enumerate(maps):
        cell = min(WIDEST, room / len(across))
        box = Box(0, y, cell * len(across), max(ROW * len(rows), 40.0))
        axis = "coloraxis" + (str(i + 1) if i else "")
        place = canvas.panel(
            box,
            framed(ticks(across, box.width), "component at the key"),
            framed(ticks(rows, box.height, vertical=True), "at the query"),
        )
        canvas.fig.add_heatmap(
            z=values,
            coloraxis=axis,
            name=text(name),
            texttemplate="%{z:.2f}" if cell >= 26 else None,
            textfont={"size": 9.5 if cell >= 34 else 8.5},
            hovertemplate=f"query: %{{y}}<br>key: %{{x}}<br>{text(name)} %{{z:.3f}}<extra></extra>",
            showlegend=False,
            **place,
        )
        said = f"<b>{text(name)}</b> {change(values.sum(), 2)}"
        if columns == 2:  # in one there is no room to say it
            said += ", by pairs of components"
        canvas.note(said, box.left, box.top - 2, align="left")
        limit = symmetric_limit(values)
        length = min(box.height, 120.0)
        bar = Box(box.right + 10, y, 8, length)
        canvas.color_bar(axis, SIGNED, (-limit, limit), "adds", bar)
        space = label_space(across, box.width)
        y += box.height + space + 24
    if parts:
        box = Box(0, y, min(room, 360.0), max(BAR * len(parts), 40.0))
        place = canvas.panel(
            box,
            titled(unit, showgrid=True, nticks=6) | ZERO,
            {**ticks([*parts], box.height, vertical=True), "ticks": "", **titled("at the key")},
        )
        low, high = SIGNED[1][1], SIGNED[3][1]
        canvas.fig.add_bar(
            x=[*parts.values()],
            y=list(range(len(parts))),
            orientation="h",
            marker={"color": [high if value >= 0 else low for value in parts.values()]},
            customdata=[*parts],
            hovertemplate="%{customdata}: %{x:.3f}<extra></extra>",
            showlegend=False,
            **place,
        )
        said = f"<b>write</b> {change(sum(parts.values()), 2)}, by what stands at the key"
        canvas.note(said, box.left, box.top - 2, align="left")
        space = 36.0
    return canvas.finish(space)
