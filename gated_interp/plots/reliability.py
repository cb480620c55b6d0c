"""How often it works: success rates with their intervals, the FVU beside them."""

import pandas as pd
import plotly.graph_objects as go

from gated_interp.core.errors import GatedInterpError
from gated_interp.plots.inputs import table
from gated_interp.plots.layout import Area, Box, fitting, log_axis
from gated_interp.plots.style import (
    FAINT,
    INK,
    MUTED,
    PALETTE,
    SMALL,
    SYMBOLS,
    Columns,
    Number,
    finish,
    text,
    text_width,
    ticks,
    width_of,
)


def reliability(
    results: pd.DataFrame,
    *,
    target: Number | None = None,
    title: str | None = None,
    columns: Columns = 2,
) -> go.Figure:
    """Success rate with its interval for each experiment and recipe, the FVU beside it.

    Args:
        results: ``experiment``, ``recipe``, ``runs``, ``successes``, ``low`` and ``high`` (the
            interval, 0 to 1), ``fvu`` (median); ``fvu_low`` and ``fvu_high`` where there is an
            interval of it. A row per experiment and recipe.
        target: a success rate to mark, 0 to 1.
        title: above the figure.
        columns: paper columns it spans.

    Raises:
        GatedInterpError: no rows, a column is missing, more successes than runs, or two rows for
            one experiment and recipe.
    """
    wanted = ["experiment", "recipe", "runs", "successes", "low", "high", "fvu"]
    table("reliability", results, wanted)
    if (results["successes"] > results["runs"]).any() or (results["runs"] < 1).any():
        raise GatedInterpError("every row needs at least one run and no more successes than runs.")
    if results.duplicated(["experiment", "recipe"]).any():
        raise GatedInterpError("the reliability table has two rows for one experiment and recipe.")
    names = results["experiment"].unique().tolist()
    recipes = results["recipe"].unique().tolist()
    shown = [text(n) for n in names]
    pitch = max(24.0, 15.0 * len(recipes) + 8)
    tall = pitch * len(names)
    left = max(map(text_width, shown)) + 30
    gap = 34.0 if columns == 2 else 14.0
    room = width_of(columns) - left - gap - 14
    counts = max(text_width(f"{r}/{r}") for r in results["runs"]) + 10
    boxes = [Box(0, 4, 0.58 * room, tall), Box(0.58 * room + gap, 4, 0.42 * room, tall)]
    area = Area(boxes[1].right, boxes[1].bottom)

    fig = go.Figure()
    rows = {**ticks(shown, tall, vertical=True), "title": {"text": "experiment"}}
    right_edge = 1.02 + 1.05 * counts / (boxes[0].width - counts)
    rate = {
        "title": {"text": fitting("successful runs (95% Wilson interval)", boxes[0].width, 10.5)},
        "tickformat": ".0%",
        "range": [-0.03, right_edge],
        "tickvals": [0, 0.5, 1] if columns == 1 else [0, 0.25, 0.5, 0.75, 1],
        "showgrid": True,
    }
    spread = [results[c] for c in ("fvu", "fvu_low", "fvu_high") if c in results]
    fvu = log_axis(pd.concat(spread), "median FVU")
    places = [
        area.place(fig, 1, boxes[0], rate, rows),
        area.place(fig, 2, boxes[1], fvu, {**rows, "showticklabels": False, "title": {"text": ""}}),
    ]
    for i, recipe in enumerate(recipes):
        part = results[results["recipe"] == recipe]
        y = [names.index(e) + (i - (len(recipes) - 1) / 2) * 15 / pitch for e in part["experiment"]]
        color = PALETTE[i % len(PALETTE)]
        # Past the palette, colours come again with hollow symbols.
        hollow = "-open" if i >= len(PALETTE) else ""
        symbol = SYMBOLS[i % len(SYMBOLS)] + hollow
        look = {
            "mode": "markers",
            "marker": {"color": color, "symbol": symbol, "size": 7},
            "cliponaxis": False,
            "name": text(recipe),
            "legendgroup": text(recipe),
        }
        share = part["successes"] / part["runs"]
        fig.add_scatter(
            x=share.tolist(),
            y=y,
            error_x=_interval(share, part["low"], part["high"], color),
            customdata=part[["successes", "runs"]].to_numpy(),
            hovertemplate="%{customdata[0]} of %{customdata[1]} runs<extra></extra>",
            **look,
            **places[0],
        )
        for at, k, n in zip(y, part["successes"], part["runs"], strict=True):
            fig.add_annotation(
                text=f"{k}/{n}",
                x=right_edge,
                xanchor="right",
                y=at,
                xref="x",
                yref="y",
                showarrow=False,
                font={"size": SMALL, "color": INK},
                borderpad=0,
            )
        error = (
            _interval(part["fvu"], part["fvu_low"], part["fvu_high"], color)
            if {"fvu_low", "fvu_high"} <= set(part.columns)
            else None
        )
        fig.add_scatter(
            x=part["fvu"].tolist(), y=y, error_x=error, showlegend=False, **look, **places[1]
        )
    for i in range(1, len(names)):
        for axes in places:
            fig.add_shape(
                type="line",
                xref=f"{axes['xaxis']} domain",
                yref=axes["yaxis"],
                x0=0,
                x1=1,
                y0=i - 0.5,
                y1=i - 0.5,
                line={"color": FAINT, "width": 1},
                layer="below",
            )
    if target is not None:
        fig.add_scatter(
            x=[target, target],
            y=[-0.5, len(names) - 0.5],
            mode="lines",
            line={"color": MUTED, "width": 1, "dash": "dash"},
            name=f"target {target:.0%}",
            **places[0],
        )
    return finish(
        fig, columns=columns, height=area.height, title=title, left=left, right=14, bottom=40
    )


def _interval(middle: pd.Series, low: pd.Series, high: pd.Series, color: str) -> dict[str, object]:
    return {
        "type": "data",
        "symmetric": False,
        "array": (high - middle).clip(lower=0).tolist(),
        "arrayminus": (middle - low).clip(lower=0).tolist(),
        "thickness": 1.3,
        "width": 3,
        "color": color,
    }
