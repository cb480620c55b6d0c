"""Where it works: the phase diagram over heads and trigrams, curves over the penalty weight."""

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from gated_interp.core.errors import GatedInterpError
from gated_interp.plots.inputs import between, table
from gated_interp.plots.layout import (
    Box,
    Canvas,
    Place,
    framed,
    interval,
    log_axis,
    ticks,
    titled,
)  # fmt: skip
from gated_interp.plots.style import (
    EMPTY,
    FRACTION,
    MUTED,
    PALETTE,
    SMALL,
    SYMBOLS,
    TINY,
    Columns,
    text,
    text_width,
)  # fmt: skip

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
    left off. A cell in which nothing was run is hatched; one that was run, but in which the
    fraction has no denominator, is marked with a dash. In one column panels stand below each other.

    Args:
        phases: one row per cell that was run: ``heads``, ``trigrams`` (whole numbers) and the
            fractions ``learnt``, ``distributed``, ``clean_rate``, ``success`` (0 to 1; missing
            where nothing was learnt). A quantity's column may be left out.

    Raises:
        GatedInterpError: no rows, columns missing, a cell given twice, or fractions outside 0 to 1.
    """
    table("phase", phases, ["heads", "trigrams"])
    drawn = [(c, words) for c, words in PHASES if c in phases]
    if not drawn:
        raise GatedInterpError("nothing-to-draw-of-phase")
    if phases.duplicated(["heads", "trigrams"]).any():
        raise GatedInterpError("phase-cell-twice")
    heads, trigrams = (
        list(range(int(phases[c].min()), int(phases[c].max()) + 1)) for c in ("heads", "trigrams")
    )
    canvas, bar, gap = Canvas(columns, title, 40.0, 0), 62.0, 14.0
    across = 1 if columns == 1 else 2 if len(drawn) == 4 else len(drawn)
    wide = (canvas.width - bar - gap * (across - 1)) / across
    cell = min(wide / len(trigrams), 34.0)
    wide, tall = cell * len(trigrams), max(cell, 16.0) * len(heads)
    pitch = max(wide, *(text_width(words, 10) for _, words in drawn)) + gap
    ran = np.zeros((len(heads), len(trigrams)), dtype=bool)
    at = (phases["heads"].to_numpy(int) - heads[0], phases["trigrams"].to_numpy(int) - trigrams[0])
    ran[at] = True
    y = ticks([str(h) for h in heads], tall, vertical=True)
    y["range"] = y["range"][::-1]
    x = framed(ticks([str(t) for t in trigrams], wide), "trigrams")
    explained, crowded = False, cell < 24
    for i, (name, words) in enumerate(drawn):
        values = np.full(ran.shape, np.nan)
        values[at] = phases[name].to_numpy(float)
        between(name, values, 0, 1)
        box = Box((i % across) * pitch, 18 + (i // across) * (tall + 58), wide, tall)
        axes = canvas.panel(box, x, framed(y, "heads", shown=i % across == 0))
        canvas.fig.add_heatmap(
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
        _gaps(canvas.fig, axes, ~ran, undefined, first=i == 0, show_undefined=not explained)
        explained = explained or bool(undefined.any())
        canvas.note(words, box.left, box.top - 3, align="left", size=10)
    # Right of the panels, and of the words above them, which may be longer.
    said = zip(canvas.boxes, drawn, strict=True)
    reach = max(max(box.right, box.left + text_width(words, 10)) for box, (_, words) in said)
    where = Box(reach + 10, 18, 8, min(max(tall, 80.0), 160.0))
    ends = 0.0, 1.0
    canvas.color_bar("coloraxis", FRACTION, ends, "fraction of runs", where, tickformat=".0%")
    canvas.fig.update_layout(barmode="overlay", bargap=0)
    return canvas.finish(40)


def _percent(value: float, crowded: bool) -> str:
    """What stands in a cell: a percentage, or nothing where the colour says as much."""
    words = "" if np.isnan(value) else f"{100 * value:.0f}"
    return "" if crowded and words in ("0", "100") else words


def _gaps(
    fig: go.Figure,
    axes: Place,
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

    In one column the panels stand below each other.

    Args:
        sweep: ``alpha``, ``clean_rate`` (or ``success``, the post's) with ``low`` and ``high`` (0
            to 1), ``fvu`` (its median over runs), and the group's column.
        group: the column that names the lines, as in ``"experiment"`` or ``"recipe"``.

    Raises:
        GatedInterpError: no rows, a column is missing, or an alpha is not positive.
    """
    rate = "clean_rate" if "clean_rate" in sweep else "success"
    table("sweep", sweep, ["alpha", rate, "low", "high", "fvu", group])
    if not (sweep["alpha"] > 0).all():
        raise GatedInterpError("alpha-not-positive")
    canvas, stacked, tall = Canvas(columns, title, LEFT), columns == 1, 150.0
    wide = canvas.width if stacked else (canvas.width - LEFT) / 2
    other = (
        Box(0, ABOVE + tall + BELOW, wide, tall) if stacked else Box(wide + LEFT, ABOVE, wide, tall)
    )
    alphas = sorted(sweep["alpha"].unique().tolist())
    x = titled("penalty weight α", type="log", showgrid=False)
    if len(alphas) < 9:
        x |= {"tickvals": alphas, "ticktext": [f"{a:g}" for a in alphas]}
    words = "clean runs" if rate == "clean_rate" else "successful runs (post)"
    rates = titled(words, tickformat=".0%", range=[-0.03, 1.03], nticks=6, showgrid=True)
    above = canvas.panel(Box(0, ABOVE, wide, tall), x, rates)
    beside = canvas.panel(other, x, log_axis(sweep["fvu"], "median FVU"))
    for i, (name, part) in enumerate(sweep.groupby(group, sort=False)):
        part, color = part.sort_values("alpha"), PALETTE[i % len(PALETTE)]
        look = {
            "mode": "lines+markers",
            "line": {"color": color, "width": 1.6},
            "marker": {"symbol": SYMBOLS[i % len(SYMBOLS)], "size": 6},
            "name": text(name),
            "legendgroup": text(name),
            "x": part["alpha"].tolist(),
        }
        error = interval(part[rate], part["low"], part["high"], color)
        canvas.fig.add_scatter(y=part[rate].tolist(), error_y=error, **look, **above)
        canvas.fig.add_scatter(y=part["fvu"].tolist(), showlegend=False, **look, **beside)
    return canvas.finish(BELOW)
