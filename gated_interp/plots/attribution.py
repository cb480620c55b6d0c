"""How well each attribution method finds known circuits, beside its cost and random rankings."""

from collections.abc import Mapping

import pandas as pd
import plotly.graph_objects as go

from gated_interp.plots.inputs import table
from gated_interp.plots.layout import Box, Canvas, interval, titled
from gated_interp.plots.style import INK, MUTED, PALETTE, SMALL, SYMBOLS, Columns, text, text_width

COLUMNS = ["method", "source", "of", "auroc", "random", "forward", "backward"]
PITCH, BETWEEN = 19, 46
"""Px of a method, and between two panels."""


def attribution_scores(
    runs: pd.DataFrame,
    *,
    published: Mapping[str, float] | None = None,
    title: str | None = None,
    columns: Columns = 2,
) -> go.Figure:
    """The AUROC of each method on heads and on edges: the median over runs, worst and best.

    Behind each method stands how many passes it took, forward and backward, in the median run. The
    dashed line is the mean of random rankings.

    Args:
        runs: a row per run: ``method``, ``source`` (a kind of circuit), ``of`` (``heads`` or
            ``edges``; others are left out), ``auroc``, ``random``, ``forward``, ``backward``.
        published: AUROCs of edges that others published, by method.

    Raises:
        GatedInterpError: nothing to draw, or a column is missing.

    Examples:
        >>> row = {"source": "planted", "of": "heads", "auroc": 0.9, "random": 0.5}
        >>> runs = pd.DataFrame([{"method": m, **row, "forward": 3, "backward": 1} for m in "ab"])
        >>> len(attribution_scores(runs).data)
        1
    """
    table("runs", runs[runs["of"].isin(["heads", "edges"])] if "of" in runs else runs, COLUMNS)
    sources, top = list(dict.fromkeys(runs["source"])), 6.0
    of = {name: runs[runs["of"] == name] for name in ("heads", "edges")}
    labels = {name: _labels(mine) for name, mine in of.items() if len(mine)}
    widest = max(text_width(label) for each in labels.values() for label in each.values())
    canvas = Canvas(columns, title, widest + 34)
    for name, methods in labels.items():
        box, order = Box(0, top, canvas.width, PITCH * len(methods) + 8), [*methods]
        rows = {"tickvals": [*range(len(order))], "ticktext": [text(x) for x in methods.values()]}
        place = canvas.panel(
            box,
            titled(f"AUROC of {name}", range=[-0.02, 1.02], showgrid=True, nticks=6),
            titled("method · passes", range=[len(order) - 0.5, -0.5], showgrid=False, ticks="")
            | {"tickfont": {"size": SMALL}, **rows},
        )
        canvas.rule(place, x=float(of[name]["random"].mean()), color=MUTED, dash="dash")
        for i, source in enumerate(sources):
            _dots(canvas, place, of[name][of[name]["source"] == source], source, i, order)
        given = {m: v for m, v in (published or {}).items() if m in order and name == "edges"}
        if given:
            canvas.fig.add_scatter(
                x=[*given.values()],
                y=[order.index(m) for m in given],
                mode="markers",
                marker={"symbol": "x-thin-open", "size": 8, "color": INK, "line": {"width": 1.5}},
                name="MIB's, of another model",
                hovertemplate="%{x:.2f}<extra>published by MIB</extra>",
                **place,
            )
        top = box.bottom + BETWEEN
    return canvas.finish(40.0)


def _labels(runs: pd.DataFrame) -> dict[str, str]:
    """By method, its name and its passes."""
    found = {}
    for method in dict.fromkeys(runs["method"]):
        mine = runs[runs["method"] == method]
        passes = [f"{mine[way].median():.0f}" for way in ("forward", "backward")]
        found[method] = f"{method} · {passes[0]} + {passes[1]}"
    return found


def _dots(
    canvas: Canvas,
    place: dict[str, str],
    runs: pd.DataFrame,
    source: str,
    i: int,
    order: list[str],
) -> None:
    """The median of each method on one kind of circuit, from its worst to its best."""
    found = runs.groupby("method", sort=False)["auroc"].agg(["median", "min", "max"])
    color, shift = PALETTE[i % len(PALETTE)], 0.17 * (2 * (i % 2) - 1)
    canvas.fig.add_scatter(
        x=found["median"].tolist(),
        y=[order.index(m) + shift for m in found.index],
        error_x=interval(found["median"], found["min"], found["max"], color),
        mode="markers",
        marker={"color": color, "symbol": SYMBOLS[i % len(SYMBOLS)], "size": 7},
        name=f"{text(source)} circuits, worst to best",
        legendgroup=source,
        showlegend=source not in {t.legendgroup for t in canvas.fig.data},
        customdata=[[m] for m in found.index],
        hovertemplate="%{customdata[0]}: %{x:.3f}<extra>" + text(source) + "</extra>",
        cliponaxis=False,
        **place,
    )
