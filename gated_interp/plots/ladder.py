"""How far an adversary moves predictions, rung by rung."""

from collections.abc import Mapping

import pandas as pd
import plotly.graph_objects as go

from gated_interp.core.errors import GatedInterpError
from gated_interp.plots.inputs import table
from gated_interp.plots.layout import Box, Canvas, interval, log_axis, titled
from gated_interp.plots.style import PALETTE, SYMBOLS, Columns, text

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
