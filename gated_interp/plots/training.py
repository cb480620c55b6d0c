"""Curves of a training."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from gated_interp.core.errors import GatedInterpError
from gated_interp.plots.inputs import table
from gated_interp.plots.layout import Axis, Box, Canvas, Place, log_axis, titled
from gated_interp.plots.style import PALETTE, Columns, Number, text

# Column, axis title, whether a logarithmic axis suits it.
CURVES = (
    ("loss", "loss", True),
    ("reconstruction", "reconstruction (mean squared error)", True),
    ("fvu", "FVU (fraction of variance)", True),
    ("penalty", "gate penalty", False),
    ("l0", "L0 (open gates per pair)", False),
)
LEFT, BELOW, ABOVE, TALL = 48.0, 40.0, 20.0, 130.0


def loss_curves(
    history: pd.DataFrame,
    *,
    selected: int | str | None = None,
    quantities: Sequence[str] | None = None,
    title: str | None = None,
    columns: Columns = 2,
) -> go.Figure:
    """Loss, FVU, gate penalty and L0 against the step; of one run, or of many seeds.

    With many runs each is a faint line, their median (of what is drawn, per step) a bold one, and
    the selected run stands out.

    Args:
        history: ``step`` and at least one of ``loss``, ``reconstruction``, ``fvu``, ``penalty``,
            ``l0``; ``run`` where there are several.
        selected: the value of ``run`` to highlight, as the one that other figures show.
        quantities: which of the columns to draw; all that are there by default, except
            ``reconstruction``, which FVU repeats on another scale.

    Raises:
        GatedInterpError: no rows, a column or the selected run is missing.
    """
    known = [c for c, *_ in CURVES]
    table("history", history, ["step", *(quantities or ())])
    drawn = quantities or [c for c in known if c in history and c != "reconstruction"]
    if not drawn or not set(drawn) <= set(known):
        raise GatedInterpError(
            "nothing-to-draw-of-history", columns=[*history.columns], known=known
        )
    runs = history["run"].unique().tolist() if "run" in history else [None]
    if selected is not None and selected not in runs:
        raise GatedInterpError("no-such-run", run=selected)

    across = min(columns, len(drawn))
    canvas = Canvas(columns, title, LEFT)
    pitch = (canvas.width + LEFT) / across
    for i, name in enumerate(drawn):
        _, words, prefer_log = CURVES[known.index(name)]
        values = history[name].to_numpy(dtype=float)
        log = prefer_log and bool((values[np.isfinite(values)] > 0).all())
        y: Axis = {"showgrid": True, "nticks": 6, "rangemode": "tozero"}
        top = ABOVE + (i // across) * (TALL + BELOW + ABOVE)
        box = Box((i % across) * pitch, top, pitch - LEFT, TALL)
        # Above the panel, as it may be longer than the axis.
        canvas.note(words, box.left, box.top - 4, align="left", size=10.5)
        x = titled("training step", nticks=6, showgrid=False)
        axes = canvas.panel(box, x, log_axis(values, "") if log else y)
        _lines(canvas.fig, axes, history, name, runs, selected, first=i == 0)
    return canvas.finish(BELOW)


def _lines(
    fig: go.Figure,
    axes: Place,
    history: pd.DataFrame,
    name: str,
    runs: list[object],
    selected: object,
    *,
    first: bool,
) -> None:
    """One panel's lines: all runs in one faint trace, the median, the selected run."""
    several = len(runs) > 1
    parts = history.groupby("run", sort=False) if several else [(runs[0], history)]
    x: list[float | None] = []
    y: list[float | None] = []
    for _, part in parts:
        x += [*part["step"].tolist(), None]
        y += [*part[name].tolist(), None]

    def add(
        xs: object, ys: object, label: str, color: str, width: Number, dash: str = "solid"
    ) -> None:
        fig.add_scatter(
            x=xs,
            y=ys,
            mode="lines",
            line={"color": color, "width": width, "dash": dash},
            name=label,
            legendgroup=label,
            showlegend=first and several and not color.startswith("rgba"),
            hovertemplate=f"step %{{x}}: %{{y:.4g}}<extra>{label}</extra>",
            **axes,
        )

    if not several:
        return add(x[:-1], y[:-1], "run", PALETTE[0], 1.6)
    # The more runs, the fainter each, so that their crowd stays readable.
    alpha = max(0.12, min(0.5, 4 / len(runs)))
    crowd = f"{len(runs)} runs"
    add(x, y, crowd, f"rgba(90,90,90,{alpha:.2f})", 0.8)
    if first:  # its legend entry, in a grey that can be seen
        add([None], [None], crowd, "#A8A8A8", 1.2)
    median = history.groupby("step")[name].median()
    add(median.index.tolist(), median.tolist(), "median", PALETTE[0], 2.2)
    if selected is not None:
        mine = history[history["run"] == selected]
        label = f"run {text(selected)}, the one that other figures show"
        add(mine["step"].tolist(), mine[name].tolist(), label, PALETTE[5], 1.6, "dot")
    return None
