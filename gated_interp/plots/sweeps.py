"""Where it works: the phase diagram over heads and trigrams, curves over the penalty weight."""

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from gated_interp.core.errors import GatedInterpError
from gated_interp.plots.inputs import between, table
from gated_interp.plots.layout import Area, Box, error_bar, framed, log_axis
from gated_interp.plots.style import (
    EMPTY,
    FRACTION,
    MUTED,
    PALETTE,
    SMALL,
    SYMBOLS,
    TINY,
    Columns,
    finish,
    text,
    text_width,
    ticks,
    width_of,
)

LEFT, BELOW, ABOVE = 54.0, 40.0, 8.0
PHASES = (
    ("learnt", "toy learns all trigrams"),
    ("distributed", "learnt, but distributed"),
    ("clean_rate", "gated block is clean"),
    ("success", "gated block succeeds (post)"),
)


def phase_diagram(
    phases: pd.DataFrame, *, title: str | None = None, columns: Columns = 2
) -> go.Figure:
    """Heads × trigrams: what toys learn, how often it is distributed, how often gating undoes it.

    The number in a cell is a percentage; in narrow cells 0 and 100, which the colour tells, are
    left off. A cell in which nothing was run is hatched; one that was
    run, but in which the fraction has no denominator, is marked with a dash.

    Args:
        phases: one row per cell that was run: ``heads``, ``trigrams`` (whole numbers) and the
            fractions ``learnt``, ``distributed``, ``clean_rate``, ``success`` (0 to 1; missing
            where nothing was learnt). A quantity's column may be left out.
        title: above the figure.
        columns: paper columns it spans; with one the panels stand below each other.

    Raises:
        GatedInterpError: no rows, columns missing, a cell given twice, or fractions outside 0 to 1.
    """
    table("phase", phases, ["heads", "trigrams"])
    drawn = [(c, words) for c, words in PHASES if c in phases]
    if not drawn:
        raise GatedInterpError(
            "the phase table needs a column learnt, distributed, clean_rate or success."
        )
    if phases.duplicated(["heads", "trigrams"]).any():
        raise GatedInterpError("the phase table has two rows for one cell of heads and trigrams.")
    heads, trigrams = (
        list(range(int(phases[c].min()), int(phases[c].max()) + 1)) for c in ("heads", "trigrams")
    )
    left, bar, gap = 40.0, 48.0, 14.0
    across = 1 if columns == 1 else 2 if len(drawn) == 4 else len(drawn)
    wide = (width_of(columns) - left - bar - gap * (across - 1)) / across
    cell = min(wide / len(trigrams), 34.0)
    wide, tall = cell * len(trigrams), max(cell, 16.0) * len(heads)
    pitch = max(wide, *(text_width(words, 10) for _, words in drawn)) + gap
    boxes = [
        Box((i % across) * pitch, 18 + (i // across) * (tall + 58), wide, tall)
        for i in range(len(drawn))
    ]
    area = Area(max(b.right for b in boxes), boxes[-1].bottom)
    ran = np.zeros((len(heads), len(trigrams)), dtype=bool)
    at = (phases["heads"].to_numpy(int) - heads[0], phases["trigrams"].to_numpy(int) - trigrams[0])
    ran[at] = True

    fig, explained = go.Figure(), False
    for number, ((name, words), box) in enumerate(zip(drawn, boxes, strict=True), start=1):
        values = np.full(ran.shape, np.nan)
        values[at] = phases[name].to_numpy(float)
        between(name, values, 0, 1)
        at_left = number % across == 1 or across == 1
        y = ticks([str(h) for h in heads], tall, vertical=True)
        axes = area.place(
            fig,
            number,
            box,
            framed(ticks([str(t) for t in trigrams], wide), "trigrams", shown=True),
            framed({**y, "range": y["range"][::-1]}, "heads", shown=at_left),
        )
        crowded = cell < 24
        fig.add_heatmap(
            z=values,
            text=[[_percent(v, crowded) for v in row] for row in values],
            texttemplate="%{text}",
            textfont={"size": TINY if crowded else SMALL},
            coloraxis="coloraxis",
            hovertemplate="%{y} heads, %{x} trigrams: %{z:.1%}<extra></extra>",
            hoverongaps=False,
            name=name,
            xgap=1,
            ygap=1,
            **axes,
        )
        undefined = ran & np.isnan(values)
        new, explained = undefined.any() and not explained, explained or bool(undefined.any())
        _gaps(fig, axes, ~ran, undefined, first=number == 1, show_undefined=bool(new))
        area.note(fig, words, box.left, box.top - 3, align="left", size=10)
    length = min(max(tall, 80.0), 160.0)
    where = Box(area.width + 10, 18, 8, length)
    scale = area.color_bar(FRACTION, (0.0, 1.0), "fraction of runs", where)
    scale["colorbar"]["tickformat"] = ".0%"
    fig.update_layout(coloraxis=scale, barmode="overlay", bargap=0)
    return finish(
        fig,
        columns=columns,
        height=area.height,
        title=title,
        left=left,
        right=width_of(columns) - left - area.width,
        bottom=40,
    )


def _percent(value: float, crowded: bool) -> str:
    """What stands in a cell: a percentage, or nothing where the colour says as much."""
    words = "" if np.isnan(value) else f"{100 * value:.0f}"
    return "" if crowded and words in ("0", "100") else words


def _gaps(
    fig: go.Figure,
    axes: dict[str, str],
    not_run: np.ndarray,
    undefined: np.ndarray,
    *,
    first: bool,
    show_undefined: bool,
) -> None:
    """Hatch the cells in which nothing was run; mark those without a denominator."""
    y, x = np.nonzero(not_run)
    if x.size:
        fig.add_bar(
            x=x.tolist(),
            y=[1.0] * x.size,
            base=(y - 0.5).tolist(),
            width=1,
            marker={
                "color": "#BDBDBD",
                "line": {"width": 0},
                "pattern": {"shape": "/", "bgcolor": EMPTY, "size": 5, "solidity": 0.2},
            },
            name="not run",
            legendgroup="not run",
            showlegend=first,
            hovertemplate="not run<extra></extra>",
            **axes,
        )
    y, x = np.nonzero(undefined)
    if x.size:
        fig.add_scatter(
            x=x.tolist(),
            y=y.tolist(),
            mode="markers",
            marker={"symbol": "line-ew", "size": 5, "line": {"color": MUTED, "width": 1}},
            name="no toy learnt them",
            legendgroup="undefined",
            showlegend=show_undefined,
            hovertemplate="nothing learnt<extra></extra>",
            **axes,
        )


def sweep_curves(
    sweep: pd.DataFrame,
    *,
    group: str = "experiment",
    title: str | None = None,
    columns: Columns = 2,
) -> go.Figure:
    """Clean rate with its interval, and FVU, against alpha; one line per group.

    Args:
        sweep: ``alpha``, ``clean_rate`` (or ``success``, the post's) with ``low`` and ``high`` (0
            to 1), ``fvu`` (its median over runs), and the group's column.
        group: the column that names the lines, as in ``"experiment"`` or ``"recipe"``.
        title: above the figure.
        columns: paper columns it spans; with one the panels stand below each other.

    Raises:
        GatedInterpError: no rows, a column is missing, or an alpha is not positive.
    """
    rate = "clean_rate" if "clean_rate" in sweep else "success"
    table("sweep", sweep, ["alpha", rate, "low", "high", "fvu", group])
    if not (sweep["alpha"] > 0).all():
        raise GatedInterpError("alpha must be positive in every row of the sweep table.")
    stacked = columns == 1
    wide = width_of(1) - LEFT - 10 if stacked else (width_of(2) - 2 * LEFT - 10) / 2
    tall = 150.0
    boxes = [
        Box(0, ABOVE, wide, tall),
        Box(0, ABOVE + tall + BELOW, wide, tall)
        if stacked
        else Box(wide + LEFT, ABOVE, wide, tall),
    ]
    area = Area(max(b.right for b in boxes), boxes[1].bottom)
    fig = go.Figure()
    alphas = sorted(sweep["alpha"].unique().tolist())
    x = {
        "type": "log",
        "title": {"text": "penalty weight α"},
        "showgrid": False,
        **({"tickvals": alphas, "ticktext": [f"{a:g}" for a in alphas]} if len(alphas) < 9 else {}),
    }
    rates = {
        "title": {"text": "clean runs" if rate == "clean_rate" else "successful runs (post)"},
        "tickformat": ".0%",
        "range": [-0.03, 1.03],
        "nticks": 6,
    }
    fvu = log_axis(sweep["fvu"], "median FVU")
    places = [
        area.place(fig, n, box, x, {**y, "showgrid": True})
        for n, (box, y) in enumerate(zip(boxes, (rates, fvu), strict=True), start=1)
    ]
    for i, (name, part) in enumerate(sweep.groupby(group, sort=False)):
        part, color = part.sort_values("alpha"), PALETTE[i % len(PALETTE)]
        look = {
            "mode": "lines+markers",
            "line": {"color": color, "width": 1.6},
            "marker": {"symbol": SYMBOLS[i % len(SYMBOLS)], "size": 6},
            "name": text(name),
            "legendgroup": text(name),
        }
        fig.add_scatter(
            x=part["alpha"].tolist(),
            y=part[rate].tolist(),
            error_y=error_bar(part[rate], part["low"], part["high"], color=color),
            **look,
            **places[0],
        )
        fig.add_scatter(
            x=part["alpha"].tolist(), y=part["fvu"].tolist(), showlegend=False, **look, **places[1]
        )
    return finish(
        fig,
        columns=columns,
        height=area.height,
        title=title,
        left=LEFT,
        right=10,
        bottom=BELOW,
    )
