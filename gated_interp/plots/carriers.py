"""How far heads and programs belong to one another, by how far heads were made to share."""

from collections.abc import Sequence

import pandas as pd
import plotly.graph_objects as go

from gated_interp.plots.inputs import table
from gated_interp.plots.layout import Box, Canvas, interval, titled
from gated_interp.plots.style import PALETTE, SYMBOLS, Columns, text

WANTED = ["degrees", "method", "measure", "value", "low", "high"]
GAP = 62.0


def carried_shares(
    results: pd.DataFrame,
    methods: Sequence[str],
    *,
    title: str | None = None,
    columns: Columns = 2,
) -> go.Figure:
    """Shares for each angle, with intervals over seeds: a panel for each measure.

    Args:
        results: ``degrees``, ``method``, ``measure`` (the panel, in words), ``value``, ``low`` and
            ``high``; a row for each of the first three.
        methods: those that are drawn, in this order.

    Raises:
        GatedInterpError: no rows, or a column is missing.
    """
    table("results", results, WANTED)
    canvas, angles = Canvas(columns, title, 50.0), sorted(results["degrees"].unique())
    panels = results["measure"].unique().tolist()
    wide = (canvas.width - GAP * (len(panels) - 1)) / len(panels)
    for panel, measure in enumerate(panels):
        place = canvas.panel(
            Box(panel * (wide + GAP), 18, wide, 190),
            titled(
                "rotation",
                tickvals=[*range(len(angles))],
                ticktext=[f"{angle:g}\u00b0" for angle in angles],
                range=[-0.5, len(angles) - 0.5],
            ),
            titled(text(measure), tickformat=".0%", range=[0.2, 1.04], showgrid=True, nticks=6),
        )
        for i, method in enumerate(methods):
            mine = (results["method"] == method) & (results["measure"] == measure)
            rows = results[mine].set_index("degrees").reindex(angles)
            color = PALETTE[i % len(PALETTE)]
            canvas.fig.add_scatter(
                x=[x + 0.14 * (i - (len(methods) - 1) / 2) for x in range(len(angles))],
                y=rows["value"].tolist(),
                error_y=interval(rows["value"], rows["low"], rows["high"], color),
                mode="markers",
                marker={"color": color, "symbol": SYMBOLS[i % len(SYMBOLS)], "size": 8},
                name=text(method),
                legendgroup=method,
                showlegend=panel == 0,
                hovertemplate="%{y:.0%}<extra>" + text(method) + "</extra>",
                **place,
            )
    return canvas.finish(44.0)
