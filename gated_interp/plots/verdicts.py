"""The post's picture: who holds which representation, before and after."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import plotly.graph_objects as go

from gated_interp.core.errors import GatedInterpError
from gated_interp.plots.holdings import HELD, SHARED, Holdings, answers, checked, headline, state
from gated_interp.plots.inputs import labels
from gated_interp.plots.layout import Box, Canvas, Place, framed, label_space, ticks
from gated_interp.plots.style import (
    EMPTY,
    FAINT,
    INK,
    MUTED,
    SMALL,
    TINY,
    Columns,
    Number,
    text,
    text_width,
)  # fmt: skip


def _hatch(shape: str, line: str, ground: str, solidity: Number) -> dict[str, Any]:
    return {"shape": shape, "fgcolor": line, "bgcolor": ground, "size": 6, "solidity": solidity}


# The hatching's ground, and the kinds of cell in the order of the legend.
GROUND, DULL = "#FDF0D5", "#C4C4C4"
HOLDER, COMMON, MISSING, DEAD = (
    "holds it, by ablation (% of its logit)",
    "shares it",
    "not learnt",
    "dead head",
)
LOOKS: dict[str, dict[str, Any]] = {
    HOLDER: {"color": HELD},
    COMMON: {"color": SHARED, "pattern": _hatch("/", SHARED, GROUND, 0.28)},
    MISSING: {"color": FAINT},
    DEAD: {"color": DULL, "pattern": _hatch("x", DULL, EMPTY, 0.12)},
}
# From here a head of a shared representation counts as one that shares it, and is hatched.
SHOWN_SHARE = 0.05


def before_after(
    before: Holdings,
    after: Holdings,
    representations: Mapping[int, str],
    *,
    word: str = "trigram",
    title: str | None = None,
    columns: Columns = 2,
) -> go.Figure:
    """Representations × heads, twice: filled where a head holds it, hatched where shared.

    Many heads, or one column, put the panels below each other.

    Args:
        before, after: two models that hold the same representations.
        representations: label of each representation by the key that the holdings use, in the
            order of the rows of ``shares``, as in ``{1: "A…B1→C1"}``.
        word: what a representation is of.

    Raises:
        GatedInterpError: shapes or labels that do not fit, shares outside 0 to 1, a
            representation or head that is not there.
    """
    rows = labels(
        "representations", list(representations.values()), len(representations), "representations"
    )
    if not rows:
        raise GatedInterpError("no-representations")
    shares = [checked(side, representations) for side in (before, after)]
    sides = [
        dataclasses.replace(s, heads=labels(f"{s.name} heads", s.heads, v.shape[1], "heads"))
        for s, v in zip((before, after), shares, strict=True)
    ]
    counts = [v.shape[1] for v in shares]
    told_by = [answers(side, representations) for side in sides]

    canvas = Canvas(columns, title, max(map(text_width, rows)) + 30, 0)
    lines = [headline(side, representations, word) for side in sides]
    # Right of each panel stands who holds each row; a long headline may reach as far.
    told = [
        max(*(text_width(words) for words, _ in answer), text_width(line, 10) - 20 * n) + 14
        for answer, (line, _), n in zip(told_by, lines, counts, strict=True)
    ]
    gap = 22.0
    room = canvas.width - 6
    side_by_side = (room - sum(told) - gap) / sum(counts)
    stacked = side_by_side < 16 or columns == 1
    cell = (
        min(56.0, min((room - t) / n for t, n in zip(told, counts, strict=True)))
        if stacked
        else min(56.0, side_by_side)
    )
    tall = len(rows) * (24.0 if len(rows) <= 6 else 19.0)
    x, y, below, legend = 0.0, 33.0, 0.0, set[str]()
    for k, (side, share) in enumerate(zip(sides, shares, strict=True)):
        n = len(side.heads)
        box = Box(x, y, cell * n, tall)
        down = framed(ticks(rows, tall, vertical=True), word, shown=stacked or k == 0)
        axes = canvas.panel(box, framed(ticks(side.heads, box.width), "head"), down)
        kinds = _kinds(side, share, list(representations))
        _draw(canvas.fig, axes, side, share, rows, kinds, legend)
        _numbers(canvas.fig, axes, share, kinds, cell)
        _grid(canvas.fig, axes, len(rows), n)
        head = f"<b>{('Before', 'After')[k]}</b>: {text(side.name)}, {n} head{'s' * (n != 1)}"
        canvas.note(head, box.left, box.top - 17, align="left")
        words, color = lines[k]
        canvas.note(words, box.left, box.top - 3, align="left", size=10, color=color)
        for i, (words, color) in enumerate(told_by[k]):
            middle = box.top + (i + 0.5) * tall / len(rows)
            canvas.note(
                words, box.right + 6, middle, align="left", valign="middle", size=SMALL, color=color
            )
        below = label_space(list(side.heads), box.width)
        x, y = (x, box.bottom + below + 36) if stacked else (box.right + told[k] + gap, y)
    canvas.fig.update_layout(barmode="overlay", bargap=0)
    return canvas.finish(below)


def _kinds(side: Holdings, share: np.ndarray, keys: list[int]) -> dict[tuple[int, int], str]:
    """What is drawn in each cell (row, head); a cell that is left out stays white."""
    kinds: dict[tuple[int, int], str] = {}
    for i, b in enumerate(keys):
        held = state(side, b)
        for h in range(share.shape[1]):
            if held == "held" and h in side.holders[b]:
                kinds[i, h] = HOLDER
            elif held == "shared" and share[i, h] >= SHOWN_SHARE:
                kinds[i, h] = COMMON
            elif h in side.dead:
                kinds[i, h] = DEAD
            elif held == "not learnt":
                kinds[i, h] = MISSING
    return kinds


def _draw(
    fig: go.Figure,
    axes: Place,
    side: Holdings,
    share: np.ndarray,
    rows: list[str],
    kinds: dict[tuple[int, int], str],
    legend: set[str],
) -> None:
    """One overlaid bar per cell, a trace for each meaning; heat maps cannot be hatched."""
    for rank, kind in enumerate(LOOKS):
        where = [cell for cell, k in kinds.items() if k == kind]
        if not where:
            continue
        fig.add_bar(
            x=[h for _, h in where],
            y=[1.0] * len(where),
            base=[i - 0.5 for i, _ in where],
            width=1,
            marker={**LOOKS[kind], "line": {"width": 0}},
            name=kind,
            legendgroup=kind,
            legendrank=rank + 1,
            showlegend=kind not in legend,
            customdata=[[rows[i], side.heads[h], float(share[i, h])] for i, h in where],
            hovertemplate="%{customdata[0]} on %{customdata[1]}: "
            f"{kind.split(' (')[0]}, %{{customdata[2]:.0%}} of the loading<extra></extra>",
            **axes,
        )
        legend.add(kind)


def _numbers(
    fig: go.Figure,
    axes: Place,
    share: np.ndarray,
    kinds: dict[tuple[int, int], str],
    cell: Number,
) -> None:
    """Each share in percent, where there is room and something to say."""
    colors = {HOLDER: "white", COMMON: INK}
    for i, h in np.ndindex(share.shape):
        kind = kinds.get((i, h))
        percent = round(100 * float(share[i, h]))
        crowded = cell < 13 or (cell < 30 and kind not in colors)
        if percent < 1 or crowded or kind == MISSING:
            continue
        fig.add_annotation(
            text=f"{percent}",
            x=h,
            y=i,
            xref=axes["xaxis"],
            yref=axes["yaxis"],
            showarrow=False,
            font={"size": SMALL if cell >= 24 else TINY, "color": colors.get(kind or "", MUTED)},
            bgcolor=GROUND if kind == COMMON else None,
            borderpad=1,
        )


def _grid(fig: go.Figure, axes: Place, rows: int, heads: int) -> None:
    """Thin lines between the cells."""
    x: list[float | None] = []
    y: list[float | None] = []
    for i in range(1, rows):
        x += [-0.5, heads - 0.5, None]
        y += [i - 0.5, i - 0.5, None]
    for h in range(1, heads):
        x += [h - 0.5, h - 0.5, None]
        y += [-0.5, rows - 0.5, None]
    for line in ({"color": "white", "width": 1.5}, {"color": FAINT, "width": 0.75}):
        fig.add_scatter(
            x=x, y=y, mode="lines", line=line, hoverinfo="skip", showlegend=False, name="", **axes
        )
