"""How much of a program its first head carries, by how far heads were made to share."""

from collections.abc import Sequence

import pandas as pd
import plotly.graph_objects as go

from gated_interp.metrics.intervals import mean_interval
from gated_interp.plots.inputs import table
from gated_interp.plots.layout import Box, Canvas, interval, titled
from gated_interp.plots.style import PALETTE, SYMBOLS, Columns, text

WANTED = ["degrees", "seed", "method", "share", "same_head"]


def own_shares(
    results: pd.DataFrame,
    methods: Sequence[str],
    *,
    title: str | None = None,
    columns: Columns = 2,
) -> go.Figure:
    """The share of a program that its first head has, for each angle, with intervals over seeds.

    A program counts as nothing where the same head is the first of both.

    Args:
        results: ``degrees``, ``seed``, ``method``, ``share`` and ``same_head``; a row per model.
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
        titled("share in a head of its own", tickformat=".0%", range=[-0.04, 1.04], showgrid=True),
    )
    for i, method in enumerate(methods):
        rows = results[results["method"] == method]
        apart = rows["share"].where(~rows["same_head"], 0.0)
        found = [apart[rows["degrees"] == angle] for angle in angles]
        ends = [mean_interval(each.to_numpy(float)) for each in found]
        means, color = [each.mean() for each in found], PALETTE[i % len(PALETTE)]
        low, high = ([end[j] for end in ends] for j in (0, 1))
        canvas.fig.add_scatter(
            x=[x + 0.12 * (i - (len(methods) - 1) / 2) for x in range(len(angles))],
            y=means,
            error_y=interval(means, low, high, color),
            mode="markers",
            marker={"color": color, "symbol": SYMBOLS[i % len(SYMBOLS)], "size": 8},
            name=text(method),
            hovertemplate="%{y:.0%}<extra>" + text(method) + "</extra>",
            **place,
        )
    return canvas.finish(40.0)
