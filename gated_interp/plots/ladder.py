"""How far an adversary moves predictions, rung by rung."""

from collections.abc import Mapping

import pandas as pd
import plotly.graph_objects as go

from gated_interp.core.errors import GatedInterpError
from gated_interp.plots.inputs import table
from gated_interp.plots.layout import Box, Canvas, interval, log_axis, titled
from gated_interp.plots.style import PALETTE, SYMBOLS, Columns, text

GAP = 44.0
BESIDE = {"layer zeroed": "dash", "random weights": "dot"}


def adversary_ladder(
    ladders: Mapping[str, pd.DataFrame],
    *,
    title: str | None = None,
    columns: Columns = 2,
) -> go.Figure:
    """How far predictions move by how much is opened, one line per model, on a logarithmic scale.

    Dashed: the layer zeroed. Dotted: random weights. Bars are 95% intervals over sequences.

    Args:
        ladders: by name, tables of :meth:`~gated_interp.types.AdversaryLadder.table`.

    Raises:
        GatedInterpError: nothing to draw, no rows, or a column is missing.

    Examples:
        >>> rows = {"rung": ["nothing opened", "20 steps", "layer zeroed"], "kl": [0.01, 0.5, 2.0]}
        >>> frame = pd.DataFrame(rows | {"kl_low": rows["kl"], "kl_high": rows["kl"]})
        >>> len(adversary_ladder({"gated": frame}).data)
        1
    """
    if not ladders:
        raise GatedInterpError("nothing-named", what="ladder")
    for frame in ladders.values():
        table("ladders", frame, ["rung", "kl", "kl_low", "kl_high"])
    canvas = Canvas(columns, title, 58.0)
    every = pd.concat(ladders.values())
    rungs = [r for r in dict.fromkeys(every["rung"]) if r not in BESIDE]
    shown = every["kl"][every["kl"] > 0]
    place = canvas.panel(
        Box(0, 8, canvas.width, 230),
        titled("what is opened", type="category", categoryarray=rungs, categoryorder="array"),
        log_axis(shown.tolist() or [1.0], "KL(original || model), nats per position"),
    )
    for i, (name, frame) in enumerate(ladders.items()):
        color = PALETTE[i % len(PALETTE)]
        mine = frame[frame["rung"].isin(rungs)]
        canvas.fig.add_scatter(
            x=mine["rung"].tolist(),
            y=mine["kl"].tolist(),
            error_y=interval(mine["kl"], mine["kl_low"], mine["kl_high"], color),
            mode="lines+markers",
            marker={"color": color, "symbol": SYMBOLS[i % len(SYMBOLS)], "size": 8},
            line={"color": color, "width": 1.5},
            name=text(name),
            hovertemplate="%{x}: %{y:.3g} nats<extra>" + text(name) + "</extra>",
            **place,
        )
        for rung, kl in zip(frame["rung"], frame["kl"], strict=True):
            if rung in BESIDE and kl > 0:
                canvas.rule(place, y=kl, color=color, dash=BESIDE[rung])
    return canvas.finish(40.0)


def ladder_frontier(
    results: pd.DataFrame,
    *,
    title: str | None = None,
    columns: Columns = 2,
) -> go.Figure:
    """How far an adversary moves predictions against what a block costs: a panel for each measure.

    Bars are 95% intervals.

    Args:
        results: ``series`` (a color and a line), ``setting`` (for the hover text), ``measure`` (the
            panel, in words) with ``value``, ``low`` and ``high``, and ``kl``, ``kl_low`` and
            ``kl_high`` (nats).

    Raises:
        GatedInterpError: no rows, or a column is missing.
    """
    ends = ["value", "low", "high", "kl", "kl_low", "kl_high"]
    table("results", results, ["series", "setting", "measure", *ends])
    canvas, panels = Canvas(columns, title, 58.0), results["measure"].unique().tolist()
    wide = (canvas.width - GAP * (len(panels) - 1)) / len(panels)
    for panel, measure in enumerate(panels):
        across = titled(text(measure), nticks=4, showgrid=True)
        up = log_axis(results["kl"], "" if panel else "KL after 20 steps, nats")
        up |= {"showticklabels": not panel}  # one scale for all panels
        place = canvas.panel(Box(panel * (wide + GAP), 8, wide, 200), across, up)
        for i, series in enumerate(results["series"].unique()):
            rows = results[(results["series"] == series) & (results["measure"] == measure)]
            color, name = PALETTE[i % len(PALETTE)], text(series)
            canvas.fig.add_scatter(
                x=rows["value"].tolist(),
                y=rows["kl"].tolist(),
                error_x=interval(rows["value"], rows["low"], rows["high"], color),
                error_y=interval(rows["kl"], rows["kl_low"], rows["kl_high"], color),
                mode="lines+markers" if len(rows) > 2 else "markers",
                marker={"color": color, "symbol": SYMBOLS[i % len(SYMBOLS)], "size": 8},
                line={"color": color, "width": 1},
                name=name,
                legendgroup=name,
                showlegend=panel == 0,
                text=[text(setting) for setting in rows["setting"]],
                hovertemplate="%{text}: %{x:.3g}, %{y:.3g} nats<extra>" + name + "</extra>",
                **place,
            )
    return canvas.finish(44.0)
