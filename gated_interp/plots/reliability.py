"""How often runs are clean: rates with their intervals, the FVU beside them."""

import math
import re
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from gated_interp.core.errors import GatedInterpError
from gated_interp.core.written import count, share
from gated_interp.plots.inputs import table
from gated_interp.plots.layout import Box, Canvas, fitting, interval, log_axis, titled
from gated_interp.plots.style import (
    FAINT,
    MUTED,
    PALETTE,
    SMALL,
    Columns,
    Number,
    text,
    text_width,
)  # fmt: skip

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

    Raises:
        GatedInterpError: no rows, a column is missing, more clean runs than runs, or two rows for
            one experiment and recipe.
    """
    wanted = ["experiment", "recipe", "runs", "clean", "low", "high", "fvu"]
    table("reliability", results, wanted)
    if (results["clean"] > results["runs"]).any() or (results["runs"] < 1).any():
        raise GatedInterpError("more-clean-than-runs")
    if results.duplicated(["experiment", "recipe"]).any():
        raise GatedInterpError("reliability-row-twice")
    results = results.reset_index(drop=True)
    names, at, breaks = _rows(results)
    counts = list(map(count, results["clean"], results["runs"]))
    tall = (22.0 if len(names) < 5 else 15.0) * len(names)
    left = 14 + max(
        text_width("experiment"),
        *(
            text_width(re.sub("</?b>", "", n), weight="bold" if "<b>" in n else "normal")
            for n in names
        ),
    )
    gap = max(map(text_width, [*counts, "runs"])) + 26
    canvas = Canvas(columns, title, left, 14)
    room = canvas.width - gap
    boxes = [Box(0, HEAD, 0.58 * room, tall), Box(0.58 * room + gap, HEAD, 0.42 * room, tall)]
    # Dots, not bars: where all rates are high, the axis need not start at zero.
    start = max(0.0, math.floor(10 * float(results["low"].min()) - 1) / 10)
    start = start if start >= 0.5 else 0.0
    pad = 0.02 * (1 - start)
    said = fitting(f"{counted} runs (95% interval)", boxes[0].width, 10.5)
    ends = [start - pad, 1 + pad]
    few = 4 if columns == 1 else 6
    rate = titled(said, tickformat=".0%", range=ends, nticks=few, showgrid=True)
    has_interval = {"fvu_low", "fvu_high"} <= set(results.columns)
    spread = [results[c] for c in ("fvu", *(("fvu_low", "fvu_high") if has_interval else ()))]
    words = ["median FVU (middle half of the runs)"] if has_interval else []
    words = [w for w in [*words, "median FVU"] if text_width(w, 10.5) <= boxes[1].width]
    fvu = log_axis(pd.concat(spread), (words or ["FVU"])[0], boxes[1].width)
    rows = {
        "tickvals": list(range(len(names))),
        "ticktext": names,
        "range": [len(names) - 0.5, -0.5],
        "showgrid": False,
        "tickcolor": "white",
    }
    places = [
        canvas.panel(boxes[0], rate, rows),
        canvas.panel(boxes[1], fvu, {**rows, "showticklabels": False}),
    ]
    named = zip(results["experiment"], results["recipe"], counts, strict=True)
    said_of = [[f"{e}, {r}", c] for e, r, c in named]
    rates = results["clean"] / results["runs"]
    bars = [interval(rates, results["low"], results["high"], COLOR), None]
    if has_interval:
        bars[1] = interval(results["fvu"], results["fvu_low"], results["fvu_high"], COLOR)
    names_of = f"{counted} runs", "median FVU"
    for axes, x, bar, name in zip(places, (rates, results["fvu"]), bars, names_of, strict=True):
        canvas.fig.add_scatter(
            x=x.tolist(),
            y=at,
            error_x=bar,
            mode="markers",
            marker={"color": COLOR, "size": 7},
            cliponaxis=False,
            customdata=said_of,
            hovertemplate="%{customdata[0]}: %{x:.3g} (%{customdata[1]} runs)<extra></extra>",
            name=name,
            showlegend=False,
            **axes,
        )
    pitch = tall / len(names)
    what = "recipe" if results["recipe"].nunique() > 1 else "experiment"
    beside = boxes[0].right + 10
    canvas.note(what, -7, HEAD - 3, align="right", size=SMALL, color=MUTED)
    canvas.note("runs", beside, HEAD - 3, align="left", size=SMALL, color=MUTED)
    for row, words_of in zip(at, counts, strict=True):
        y = HEAD + (row + 0.5) * pitch
        canvas.note(words_of, beside, y, align="left", valign="middle", size=SMALL)
    for row in breaks:
        for axes in places:
            canvas.rule(axes, y=row - 0.5, color=FAINT)
    if target is not None:
        canvas.rule(places[0], x=target, color=MUTED, dash="dash")
        aims = f"target {share(target)}", share(target)
        aim = next((a for a in aims if text_width(a) <= boxes[0].width), aims[-1])
        at_px = boxes[0].width * (target - start + pad) / (1 - start + 2 * pad)
        half = text_width(aim) / 2
        at_px = float(np.clip(at_px, half, boxes[0].width - half))
        canvas.note(aim, at_px, HEAD - 3, size=SMALL, color=MUTED)
    return canvas.finish(40)


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
