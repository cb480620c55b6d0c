"""Methods and blocks as points: how clean, how faithful, how sparse, how much one head holds."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from gated_interp.core.written import count
from gated_interp.plots.inputs import table
from gated_interp.plots.layout import Box, Canvas, Place, fitting, interval, log_axis, titled
from gated_interp.plots.style import INK, MUTED, PALETTE, SYMBOLS, Columns, text

BELOW = 44.0
EXACT = 1e-3
"""FVU below which a method is as good as exact: drawn at this value, so that the rest has room."""
# A legend of more lines than these is no legend: the methods beyond are drawn grey, under one name.
NAMED = 5
OTHERS, GREY = "other methods", "#B5B5B5"
OFTEN = 0.5  # the share of clean runs from which the title counts a method
ACTIVE = "heads active per position"


def frontier(
    results: pd.DataFrame,
    *,
    named: Sequence[str] | None = None,
    title: str | None = None,
    columns: Columns = 2,
) -> go.Figure:
    """Clean rate against FVU, and FVU against heads active per position: a panel each per task.

    A line for each method, over its knob; the first method's is thick. What is as good as exact
    stands at the edge. Unless ``title`` is given, it says how many
    methods are mostly clean.

    Args:
        results: ``task``, ``method``, ``knob``, ``clean_rate`` with ``low`` and ``high`` (0 to 1),
            ``fvu`` and ``active_per_position`` (medians). A row per task, method and knob.
        named: the methods that get a colour and a name; the others are drawn in grey. All of up to
            five, or else the four that are clean most often on the task where they are so least.

    Raises:
        GatedInterpError: no rows, or a column is missing.
    """
    wanted = ["task", "method", "knob", "clean_rate", "low", "high", "fvu", "active_per_position"]
    table("frontier", results, wanted)
    tasks, methods = results["task"].unique().tolist(), results["method"].unique().tolist()
    # Of each method at its best setting, the rate on the task where that is lowest.
    best = results.groupby(["method", "task"])["clean_rate"].max().groupby("method").min()
    if named is None and len(methods) > NAMED:
        first = best[methods].sort_values(ascending=False, kind="stable").index[: NAMED - 1]
        named = [m for m in methods if m in first]
    if title is None:
        often = count(int((best >= OFTEN).sum()), len(methods))
        title = f"{often} methods, at their best setting, are mostly clean on every toy"
    looks = _looks(methods, named)
    canvas, gap, tall = Canvas(columns, title, 50.0), 24.0, 150.0
    wide = (canvas.width - gap * (len(tasks) - 1)) / len(tasks)
    shown, fvu_title = _from_exact(results["fvu"])
    results = results.assign(shown=shown)
    x = log_axis(shown, fvu_title, wide), log_axis(results["active_per_position"], ACTIVE, wide)
    rate = titled("clean runs", tickformat=".0%", range=[-0.04, 1.04], showgrid=True, nticks=6)
    for i, task in enumerate(tasks):
        boxes = [Box(i * (wide + gap), 18 + row * (tall + BELOW), wide, tall) for row in (0, 1)]
        y = {} if i == 0 else titled("", showticklabels=False)
        above = canvas.panel(boxes[0], x[0], rate | y)
        under = canvas.panel(boxes[1], x[1], log_axis(shown, "FVU") | y)
        canvas.note(f"<b>{text(task)}</b>", boxes[0].left, 15, align="left")
        for method, look in looks.items():
            part = results[(results["task"] == task) & (results["method"] == method)]
            part = part.sort_values("knob")
            said = f"<extra>{text(method)}, knob %{{customdata[0]}}</extra>"
            look = look | {"customdata": part[["knob", "fvu"]].to_numpy().tolist()}
            rates = part["clean_rate"]
            error = interval(rates, part["low"], part["high"], look["line"]["color"])
            words = "FVU %{customdata[1]:.3g}, %{y:.0%} clean" + said
            _points(canvas, above, look, part["shown"], rates, words, i == 0, error_y=error)
            words = "%{x:.2f} heads a position, FVU %{customdata[1]:.3g}" + said
            _points(canvas, under, look, part["active_per_position"], part["shown"], words, False)
    return canvas.finish(BELOW)


def held_frontier(
    results: pd.DataFrame,
    original: float,
    *,
    title: str | None = None,
    columns: Columns = 2,
    goals: Sequence[tuple[float, float]] = (),
) -> go.Figure:
    """Positions that one head alone holds against the loss recovered, and against heads writing.

    Up and to the right is better in the left panel, up and to the left in the right one.

    Args:
        results: ``method``, ``ce_recovered_zero``, ``held_share`` (both 0 to 1) and
            ``active_per_position``; a row per method and setting. The first method is drawn larger.
        original: the original's share of positions held, drawn as a line.
        goals: (loss recovered, share held) to draw as crosses.

    Raises:
        GatedInterpError: no rows, or a column is missing.
    """
    table("results", results, ["method", "ce_recovered_zero", "held_share", "active_per_position"])
    canvas = Canvas(columns, title, 52.0)
    most = max(original, *results["held_share"], *(y for _, y in goals))
    held = titled("held by one head", tickformat=".0%", range=[0, 1.08 * most], showgrid=True)
    few: dict[str, Any] = {"nticks": 6 if columns == 2 else 3, "tickangle": 0}
    wide = (canvas.width - 62.0) / 2
    recovered = titled(
        fitting("loss recovered (zero ablation)", wide, 10.5), tickformat=".1%", **few
    )
    active = titled(fitting(ACTIVE, wide, 10.5), rangemode="tozero", **few)
    places = _two(canvas, 62.0, recovered, active, held)
    for method, look in _looks(results["method"].unique().tolist()).items():
        part = results[results["method"] == method].sort_values("ce_recovered_zero")
        for place, column in zip(places, ("ce_recovered_zero", "active_per_position"), strict=True):
            words = f"%{{x:.3f}}, %{{y:.1%}} held<extra>{text(method)}</extra>"
            first = place is places[0]
            _points(canvas, place, look, part[column], part["held_share"], words, first)
    if goals:
        cross = {"symbol": "cross-thin", "size": 10, "line": {"color": INK, "width": 1.5}}
        x, y = np.transpose(np.asarray(goals, dtype=float)).tolist()
        canvas.fig.add_scatter(x=x, y=y, mode="markers", marker=cross, name="goal", **places[0])
    for place in places:
        canvas.rule(place, y=original, color=MUTED, dash="dot")
    line = {"color": MUTED, "width": 1, "dash": "dot"}
    none = {"x": [None], "y": [None], "mode": "lines", "line": line, "name": "original"}
    canvas.fig.add_scatter(**none, **places[0])
    return canvas.finish(BELOW)


def frontier_point(
    points: pd.DataFrame,
    beside: pd.DataFrame | None = None,
    *,
    title: str | None = None,
    columns: Columns = 2,
) -> go.Figure:
    """FVU against heads active per position, and against open gates per pair: lower left is better.

    What is as good as exact, as the original itself is, stands at the lower edge.

    Args:
        points: ``name``, ``fvu`` with ``low`` and ``high`` (missing where there is no interval),
            ``active_per_position``, ``gates_per_pair``: a row per block, and for the original,
            which is drawn hollow.
        beside: what else reached which place: ``method``, ``fvu``, ``active_per_position``,
            ``gates_per_pair``; a line per method.

    Raises:
        GatedInterpError: no rows, or a column is missing.
    """
    numbers = ["fvu", "active_per_position", "gates_per_pair"]
    table("points", points, ["name", "low", "high", *numbers])
    others = pd.DataFrame(columns=["method", *numbers]) if beside is None else beside
    if beside is not None:
        table("beside", beside, ["method", *numbers])
    canvas, gap = Canvas(columns, title, 50.0), 24.0
    every = pd.concat([points[numbers], others[numbers]]).astype(float)
    shown, fvu_title = _from_exact(every["fvu"])
    wide = (canvas.width - gap) / 2
    across = (
        log_axis(every["active_per_position"], ACTIVE, wide),
        log_axis(every["gates_per_pair"], "open gates per pair", wide),
    )
    down = log_axis(shown, fvu_title)
    hidden = down | titled("", showticklabels=False)
    for column, place in zip(numbers[1:], _two(canvas, gap, *across, down, hidden), strict=True):
        first = column == numbers[1]
        for method, look in _looks(others["method"].unique().tolist(), bold=0).items():
            part = others[others["method"] == method].sort_values(column)
            words = f"%{{x:.3g}}, FVU %{{y:.3g}}<extra>{text(method)}</extra>"
            y = part["fvu"].clip(lower=EXACT)
            _points(canvas, place, look, part[column], y, words, first)
        for i, row in enumerate(points.to_dict("records")):
            at = max(row["fvu"], EXACT)
            canvas.fig.add_scatter(
                x=[row[column]],
                y=[at],
                error_y=interval([at], [row["low"]], [row["high"]]),
                mode="markers",
                cliponaxis=False,
                marker={
                    "color": "white" if row["fvu"] == 0 else INK,
                    "symbol": SYMBOLS[i // 2 % len(SYMBOLS)],
                    "size": 11,
                    "line": {"color": INK, "width": 2},
                },
                name=text(row["name"]),
                legendgroup=f"point {i}",
                showlegend=first,
                **place,
            )
    return canvas.finish(BELOW)


def _from_exact(fvu: pd.Series) -> tuple[pd.Series, str]:
    """The FVU as it is drawn, and the title of its axis."""
    exact = bool((fvu < EXACT).any())
    return fvu.clip(lower=EXACT), f"FVU ({EXACT:g}: that or less)" if exact else "FVU"


def _looks(
    methods: Sequence[str], named: Sequence[str] | None = None, bold: int = 1
) -> dict[str, dict[str, Any]]:
    """How each method is drawn, those in grey first; the first ``bold`` of them larger."""
    named, looks = methods if named is None else named, {}
    for method in sorted(methods, key=lambda m: m in named):
        i = list(named).index(method) if method in named else -1
        color = PALETTE[i % len(PALETTE)] if i >= 0 else GREY
        large = method in methods[:bold]
        symbol = SYMBOLS[i % len(SYMBOLS)] if i >= 0 else "circle-open"
        looks[method] = {
            "line": {"color": color, "width": 2.4 if large else 1.2},
            "marker": {"color": color, "symbol": symbol, "size": 8 if large else 6},
            "name": text(method) if i >= 0 else OTHERS,
            "legendgroup": text(method) if i >= 0 else OTHERS,
            "legendrank": 1 + i if i >= 0 else 900,
        }
    return looks


def _points(
    canvas: Canvas, place: Place, look: dict[str, Any], x: pd.Series, y: pd.Series, hover: str,
    first: bool, **more: Any,
) -> None:  # fmt: skip
    """A method's points in one panel, joined where there are several; named once in the legend."""
    mode = "lines+markers" if len(x) > 1 else "markers"
    there = any(t.name == look["name"] and t.showlegend for t in canvas.fig.data)
    said = {"mode": mode, "hovertemplate": hover, "showlegend": first and not there}
    canvas.fig.add_scatter(x=x.tolist(), y=y.tolist(), **said, **look, **place, **more)


def _two(
    canvas: Canvas, gap: float, x: Any, other_x: Any, y: Any, other_y: Any = None
) -> list[Place]:
    """Two panels side by side."""
    wide = (canvas.width - gap) / 2
    boxes = Box(0, 4, wide, 190.0), Box(wide + gap, 4, wide, 190.0)
    return [canvas.panel(boxes[0], x, y), canvas.panel(boxes[1], other_x, other_y or y)]
