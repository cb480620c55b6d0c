"""Many methods on one frontier: how clean against how faithful, how faithful against how sparse."""

from typing import Any

import pandas as pd
import plotly.graph_objects as go

from gated_interp.core.errors import GatedInterpError
from gated_interp.plots.inputs import table
from gated_interp.plots.layout import Area, Box, error_bar, log_axis
from gated_interp.plots.style import PALETTE, SYMBOLS, Columns, finish, text, width_of

# Two more than the palette has, told apart from it by lightness and by their symbols.
COLORS = (*PALETTE, "#8C8C8C", "#7A4B1E")
SHAPES = (*SYMBOLS, "diamond-tall", "triangle-down")
LEFT, GAP, BELOW, TALL = 50.0, 24.0, 44.0, 150.0
EXACT = 1e-3
"""FVU below which a method is as good as exact: drawn at this value, so that the rest has room."""


def frontier(results: pd.DataFrame, *, title: str | None = None, columns: Columns = 2) -> go.Figure:
    """Clean rate against FVU, and FVU against heads active per position: a panel each per task.

    A line for each method, over its knob; the first method's is thick. What is as good as exact
    stands at the edge.

    Args:
        results: ``task``, ``method``, ``knob``, ``clean_rate`` with ``low`` and ``high`` (0 to 1),
            ``fvu`` and ``active_per_position`` (medians). A row per task, method and knob.
        title: above the figure.
        columns: paper columns it spans.

    Raises:
        GatedInterpError: no rows, a column is missing, or more methods than there are colours.
    """
    wanted = ["task", "method", "knob", "clean_rate", "low", "high", "fvu", "active_per_position"]
    table("frontier", results, wanted)
    tasks, methods = results["task"].unique().tolist(), results["method"].unique().tolist()
    if len(methods) > len(COLORS):
        raise GatedInterpError(
            f"there are {len(methods)} methods; a figure tells {len(COLORS)} apart, so draw some."
        )
    exact = bool((results["fvu"] < EXACT).any())
    results = results.assign(shown=results["fvu"].clip(lower=EXACT))
    fvu_title = f"FVU ({EXACT:g}: that or less)" if exact else "FVU"
    wide = (width_of(columns) - LEFT - 10 - GAP * (len(tasks) - 1)) / len(tasks)
    boxes = [
        [Box(i * (wide + GAP), 18 + row * (TALL + BELOW), wide, TALL) for i in range(len(tasks))]
        for row in (0, 1)
    ]
    area = Area(boxes[1][-1].right, boxes[1][-1].bottom)
    fig = go.Figure()
    fvu = {"x": log_axis(results["shown"], fvu_title, wide), "y": log_axis(results["shown"], "FVU")}
    sparse = log_axis(results["active_per_position"], "heads active per position", wide)
    rate = {"title": {"text": "clean runs"}, "tickformat": ".0%", "range": [-0.04, 1.04]}
    for i, task in enumerate(tasks):
        first: dict[str, Any] = {} if i == 0 else {"showticklabels": False, "title": {"text": ""}}
        above = area.place(
            fig, 2 * i + 1, boxes[0][i], fvu["x"], {**rate, "showgrid": True, "nticks": 6, **first}
        )
        under = area.place(fig, 2 * i + 2, boxes[1][i], sparse, {**fvu["y"], **first})
        area.note(fig, f"<b>{text(task)}</b>", boxes[0][i].left, 15, align="left")
        for place, method in enumerate(methods):
            part = results[(results["task"] == task) & (results["method"] == method)]
            part = part.sort_values("knob")
            look = {
                "mode": "lines+markers" if len(part) > 1 else "markers",
                "line": {"color": COLORS[place], "width": 2.6 if place == 0 else 1.2},
                "marker": {
                    "color": COLORS[place],
                    "symbol": SHAPES[place],
                    "size": 8 if place == 0 else 6,
                },
                "name": text(method),
                "legendgroup": text(method),
                "customdata": part[["knob", "fvu"]].to_numpy().tolist(),
            }
            fig.add_scatter(
                x=part["shown"].tolist(),
                y=part["clean_rate"].tolist(),
                error_y=error_bar(
                    part["clean_rate"],
                    part["low"],
                    part["high"],
                    color=COLORS[place],
                    thickness=0.8,
                ),
                showlegend=i == 0,
                hovertemplate="FVU %{customdata[1]:.3g}, %{y:.0%} clean (knob %{customdata[0]})",
                **look,
                **above,
            )
            fig.add_scatter(
                x=part["active_per_position"].tolist(),
                y=part["shown"].tolist(),
                showlegend=False,
                hovertemplate="%{x:.2f} heads a position, FVU %{customdata[1]:.3g} "
                "(knob %{customdata[0]})",
                **look,
                **under,
            )
    return finish(
        fig,
        columns=columns,
        height=area.height,
        title=title,
        left=LEFT,
        right=10,
        bottom=BELOW,
    )
