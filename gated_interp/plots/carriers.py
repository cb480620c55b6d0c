"""How much of a program its first head carries, by how far heads were made to share."""

from collections.abc import Sequence

import pandas as pd
import plotly.graph_objects as go

from gated_interp.plots.inputs import table
from gated_interp.plots.layout import Box, Canvas, interval, titled
from gated_interp.plots.style import PALETTE, SYMBOLS, Columns, text

WANTED = ["degrees", "method", "share", "low", "high"]


def own_shares(
    results: pd.DataFrame,
    methods: Sequence[str],
    *,
    title: str | None = None,
    columns: Columns = 2,
) -> go.Figure:
    """The share of a program that one head has, for each angle, with intervals over seeds.

    Args:
        results: ``degrees``, ``method``, ``share``, ``low`` and ``high``; a row for each of both.
        methods: those that are drawn, in this order.

    Raises:
        GatedInterpError: no rows, or a column is missing.
    """
    table("results", results, WANTED)
    canvas, angles = Canvas(columns, title, 58.0), sorted(results["degrees"].unique())
    place = canvas.panel(
        Box(0, 8, canvas.width, 200),
        titled(
            "angle between heads and programs (45: each head has half of both)",
            tickvals=[*range(len(angles))],
            ticktext=[f"{angle:g} degrees" for angle in angles],
            range=[-0.5, len(angles) - 0.5],
        ),
        titled(
            "share of a program in one head", tickformat=".0%", range=[-0.04, 1.04], showgrid=True
        ),
    )
    for i, method in enumerate(methods):
        rows = results[results["method"] == method]
        rows = rows.set_index("degrees").reindex(angles)
        color = PALETTE[i % len(PALETTE)]
        canvas.fig.add_scatter(
            x=[x + 0.12 * (i - (len(methods) - 1) / 2) for x in range(len(angles))],
            y=rows["share"].tolist(),
            error_y=interval(rows["share"], rows["low"], rows["high"], color),
            mode="markers",
            marker={"color": color, "symbol": SYMBOLS[i % len(SYMBOLS)], "size": 8},
            name=text(method),
            hovertemplate="%{y:.0%}<extra>" + text(method) + "</extra>",
            **place,
        )
    return canvas.finish(40.0)
