"""How often runs are clean: rates with their intervals, the FVU beside them."""

import math
import re
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from gated_interp.core.errors import GatedInterpError
from gated_interp.plots.inputs import table
from gated_interp.plots.layout import Area, Box, error_bar, fitting, log_axis
from gated_interp.plots.style import (
    FAINT,
    MUTED,
    PALETTE,
    SMALL,
    Columns,
    Number,
    finish,
    text,
    text_width,
    width_of,
)

COLOR = PALETTE[0]
HEAD = 18.0  # px above the panels


def reliability(
    results: pd.DataFrame,
    *,
    target: Number | None = None,
    counted: str = "clean",
    title: str | None = None,
    columns: Columns = 2,
) -> go.Figure:
    """Success rate with its interval for each experiment and recipe, the FVU beside it.

    A row for each, named at the left; several recipes stand under their experiment's name.

    Args:
        results: ``experiment``, ``recipe``, ``runs``, ``clean``, ``low`` and ``high`` (the
            interval, 0 to 1), ``fvu`` (median); ``fvu_low`` and ``fvu_high`` where there is an
            interval of it. A row per experiment and recipe.
        target: a rate to mark, 0 to 1.
        counted: what the runs counted as ``clean`` are called.
        title: above the figure.
        columns: paper columns it spans.

    Raises:
        GatedInterpError: no rows, a column is missing, more clean runs than runs, or two rows for
            one experiment and recipe.
    """
    wanted = ["experiment", "recipe", "runs", "clean", "low", "high", "fvu"]
    table("reliability", results, wanted)
    if (results["clean"] > results["runs"]).any() or (results["runs"] < 1).any():
        raise GatedInterpError("every row needs at least one run and no more clean ones than runs.")
    if results.duplicated(["experiment", "recipe"]).any():
        raise GatedInterpError("the reliability table has two rows for one experiment and recipe.")
    results = results.reset_index(drop=True)
    names, at, breaks = _rows(results)
    counts = [f"{k} of {n}" for k, n in zip(results["clean"], results["runs"], strict=True)]
    tall = (22.0 if len(names) < 5 else 15.0) * len(names)
    left = 14 + max(
        text_width("experiment"),
        *(
            text_width(re.sub("</?b>", "", n), weight="bold" if "<b>" in n else "normal")
            for n in names
        ),
    )
    gap = max(map(text_width, [*counts, "runs"])) + 26
    room = width_of(columns) - left - gap - 14
    boxes = [Box(0, HEAD, 0.58 * room, tall), Box(0.58 * room + gap, HEAD, 0.42 * room, tall)]
    area = Area(boxes[1].right, boxes[1].bottom)

    fig = go.Figure()
    # Dots, not bars: where all rates are high, the axis need not start at zero.
    start = max(0.0, math.floor(10 * float(results["low"].min()) - 1) / 10)
    start = start if start >= 0.5 else 0.0
    pad = 0.02 * (1 - start)
    rate = {
        "title": {"text": fitting(f"{counted} runs (95% interval)", boxes[0].width, 10.5)},
        "tickformat": ".0%",
        "range": [start - pad, 1 + pad],
        "nticks": 4 if columns == 1 else 6,
        "showgrid": True,
    }
    has_interval = {"fvu_low", "fvu_high"} <= set(results.columns)
    spread = [results[c] for c in ("fvu", *(("fvu_low", "fvu_high") if has_interval else ()))]
    said = ["median FVU (middle half of the runs)"] if has_interval else []
    said = [w for w in [*said, "median FVU"] if text_width(w, 10.5) <= boxes[1].width]
    fvu = log_axis(pd.concat(spread), (said or ["FVU"])[0], boxes[1].width)
    rows = {
        "tickvals": list(range(len(names))),
        "ticktext": names,
        "range": [len(names) - 0.5, -0.5],
        "showgrid": False,
        "tickcolor": "white",
    }
    places = [
        area.place(fig, 1, boxes[0], rate, rows),
        area.place(fig, 2, boxes[1], fvu, {**rows, "showticklabels": False}),
    ]
    share = results["clean"] / results["runs"]
    for axes, x, ends, name in (
        (places[0], share, ("low", "high"), f"{counted} runs"),
        (places[1], results["fvu"], ("fvu_low", "fvu_high") if has_interval else (), "median FVU"),
    ):
        bar = [results[end] for end in ends]
        fig.add_scatter(
            x=x.tolist(),
            y=at,
            error_x=error_bar(x, *bar, color=COLOR, thickness=1.3, width=3) if bar else None,
            mode="markers",
            marker={"color": COLOR, "size": 7},
            cliponaxis=False,
            customdata=[
                [f"{e}, {r}", c]
                for e, r, c in zip(results["experiment"], results["recipe"], counts, strict=True)
            ],
            hovertemplate="%{customdata[0]}: %{x:.3g} (%{customdata[1]} runs)<extra></extra>",
            name=name,
            showlegend=False,
            **axes,
        )
    pitch = tall / len(names)
    what = "recipe" if results["recipe"].nunique() > 1 else "experiment"
    area.note(fig, what, -7, HEAD - 3, align="right", size=SMALL, color=MUTED)
    area.note(fig, "runs", boxes[0].right + 10, HEAD - 3, align="left", size=SMALL, color=MUTED)
    for row, words in zip(at, counts, strict=True):
        y = HEAD + (row + 0.5) * pitch
        area.note(fig, words, boxes[0].right + 10, y, align="left", valign="middle", size=SMALL)
    for row in breaks:
        for axes in places:
            _line(fig, axes, x=[0, 1], y=[row - 0.5] * 2, across=True)
    if target is not None:
        _line(fig, places[0], x=[target] * 2, y=[-0.5, len(names) - 0.5], across=False)
        words = f"target {target:.0%}"
        at_px = boxes[0].width * (target - start + pad) / (1 - start + 2 * pad)
        half = text_width(words) / 2
        at_px = float(np.clip(at_px, half, boxes[0].width - half))
        area.note(fig, words, at_px, HEAD - 3, size=SMALL, color=MUTED)
    return finish(
        fig, columns=columns, height=area.height, title=title, left=left, right=14, bottom=40
    )


def _rows(results: pd.DataFrame) -> tuple[list[str], list[int], list[int]]:
    """The names at the left, the place of each row among them, and where a new group starts."""
    several = results["recipe"].nunique() > 1
    names: list[str] = []
    at: dict[Any, int] = {}
    breaks = []
    for experiment, part in results.groupby("experiment", sort=False):
        if several:
            if names:
                breaks.append(len(names))
            names.append(f"<b>{text(experiment)}</b>")
        for index, recipe in part["recipe"].items():
            at[index] = len(names)
            names.append(text(recipe if several else experiment))
    return names, [at[index] for index in results.index], breaks


def _line(
    fig: go.Figure, axes: dict[str, str], *, x: list[Number], y: list[Number], across: bool
) -> None:
    """A line behind the data: across the whole panel, or at a value of x."""
    fig.add_shape(
        type="line",
        xref=f"{axes['xaxis']} domain" if across else axes["xaxis"],
        yref=axes["yaxis"],
        x0=x[0],
        x1=x[1],
        y0=y[0],
        y1=y[1],
        line={"color": FAINT, "width": 1}
        if across
        else {"color": MUTED, "width": 1, "dash": "dash"},
        layer="below",
    )
