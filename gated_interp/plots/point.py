"""One block's place between exact and sparse, beside the model it stands in for."""

from typing import Any

import pandas as pd
import plotly.graph_objects as go

from gated_interp.plots.frontier import COLORS, EXACT, SHAPES
from gated_interp.plots.inputs import table
from gated_interp.plots.layout import Area, Box, error_bar, log_axis
from gated_interp.plots.style import INK, Columns, finish, text, width_of

LEFT, GAP, BELOW, TALL = 50.0, 24.0, 44.0, 190.0
SPARSITY = {
    "active_per_position": "heads active per position",
    "gates_per_pair": "open gates per pair",
}


def frontier_point(
    points: pd.DataFrame,
    beside: pd.DataFrame | None = None,
    *,
    title: str | None = None,
    columns: Columns = 2,
) -> go.Figure:
    """FVU against heads active per position, and against open gates per pair: lower left is better.

    What is as good as exact, as the original itself is, stands at the lower edge.

    Args:
        points: ``name``, ``fvu`` with ``low`` and ``high`` (missing where there is no interval),
            ``active_per_position``, ``gates_per_pair``: a row per block, and for the original,
            which is drawn hollow.
        beside: what else reached which place: ``method``, ``fvu``, ``active_per_position``,
            ``gates_per_pair``; a line per method.
        title: above the figure.
        columns: paper columns it spans.

    Raises:
        GatedInterpError: no rows, or a column is missing.
    """
    numbers = ["fvu", *SPARSITY]
    table("points", points, ["name", "low", "high", *numbers])
    others = pd.DataFrame(columns=["method", *numbers]) if beside is None else beside
    if beside is not None:
        table("beside", beside, ["method", *numbers])
    wide = (width_of(columns) - LEFT - 10 - GAP) / 2
    boxes = [Box(i * (wide + GAP), 4, wide, TALL) for i in (0, 1)]
    area, fig = Area(boxes[1].right, boxes[1].bottom), go.Figure()
    every = pd.concat([points[numbers], others[numbers]]).astype(float)
    shown = every["fvu"].clip(lower=EXACT)
    fvu_title = f"FVU ({EXACT:g}: that or less)" if (every["fvu"] < EXACT).any() else "FVU"
    down = {**log_axis(shown, fvu_title), "showgrid": True}
    methods = others["method"].unique().tolist()
    for panel, (column, words) in enumerate(SPARSITY.items()):
        y: dict[str, Any] = {} if not panel else {"showticklabels": False, "title": {"text": ""}}
        across = log_axis(every[column], words, wide)
        place = area.place(fig, panel + 1, boxes[panel], across, {**down, **y})
        for i, method in enumerate(methods):
            part = others[others["method"] == method].sort_values(column)
            color = COLORS[i % len(COLORS)]
            fig.add_scatter(
                x=part[column].tolist(),
                y=part["fvu"].clip(lower=EXACT).tolist(),
                mode="lines+markers",
                line={"color": color, "width": 1},
                marker={"color": color, "symbol": SHAPES[i % len(SHAPES)], "size": 6},
                name=text(str(method)),
                legendgroup=f"beside {i}",
                showlegend=not panel,
                **place,
            )
        for i, row in enumerate(points.to_dict("records")):
            at = max(row["fvu"], EXACT)
            fig.add_scatter(
                x=[row[column]],
                y=[at],
                error_y=error_bar([at], [row["low"]], [row["high"]], color=INK, thickness=0.8),
                mode="markers",
                cliponaxis=False,
                marker={
                    "color": "white" if row["fvu"] == 0 else INK,
                    "symbol": SHAPES[i // 2 % len(SHAPES)],
                    "size": 11,
                    "line": {"color": INK, "width": 2},
                },
                name=text(str(row["name"])),
                legendgroup=f"point {i}",
                showlegend=not panel,
                **place,
            )
    return finish(
        fig, columns=columns, height=area.height, title=title, left=LEFT, right=10, bottom=BELOW
    )
