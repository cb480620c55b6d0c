"""The post's picture: who holds which representation, before and after."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import plotly.graph_objects as go

from gated_interp.core.errors import GatedInterpError
from gated_interp.plots.holdings import HELD, SHARED, Holdings, answers, checked, headline, state
from gated_interp.plots.inputs import labels
from gated_interp.plots.layout import Area, Box, framed, label_space
from gated_interp.plots.style import (
    EMPTY,
    FAINT,
    INK,
    MUTED,
    SMALL,
    TINY,
    Columns,
    Number,
    finish,
    text,
    text_width,
    ticks,
    width_of,
)


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

    Args:
        before, after: two models that hold the same representations.
        representations: label of each representation by the key that the holdings use, in the
            order of the rows of ``shares``, as in ``{1: "A…B1→C1"}``.
        word: what a representation is of.
        title: above the figure.
        columns: paper columns it spans; many heads put the panels below each other.

    Raises:
        GatedInterpError: shapes or labels that do not fit, shares outside 0 to 1, a
            representation or head that is not there.
    """
    rows = labels(
        "representations", list(representations.values()), len(representations), "representations"
    )
    if not rows:
        raise GatedInterpError("representations is empty; name at least one.")
    shares = [checked(side, representations) for side in (before, after)]
    sides = [
        dataclasses.replace(s, heads=labels(f"{s.name} heads", s.heads, v.shape[1], "heads"))
        for s, v in zip((before, after), shares, strict=True)
    ]
    counts = [v.shape[1] for v in shares]
    told_by = [answers(side, representations) for side in sides]

    left = max(map(text_width, rows)) + 30
    lines = [headline(side, representations, word) for side in sides]
    # Right of each panel stands who holds each row; a long headline may reach as far.
    told = [
        max(*(text_width(words) for words, _ in answer), text_width(line, 10) - 20 * n) + 14
        for answer, (line, _), n in zip(told_by, lines, counts, strict=True)
    ]
    gap = 22.0
    room = width_of(columns) - left - 6
    side_by_side = (room - sum(told) - gap) / sum(counts)
    stacked = side_by_side < 16 or columns == 1
    cell = (
        min(56.0, min((room - t) / n for t, n in zip(told, counts, strict=True)))
        if stacked
        else min(56.0, side_by_side)
    )
    tall = len(rows) * (24.0 if len(rows) <= 6 else 19.0)
    boxes, x, y = [], 0.0, 33.0
    for side, told_px in zip(sides, told, strict=True):
        box = Box(x, y, cell * len(side.heads), tall)
        boxes.append(box)
        if stacked:
            y = box.bottom + label_space(list(side.heads), ticks(side.heads, box.width)) + 36
        else:
            x = box.right + told_px + gap
    area = Area(max(b.right for b in boxes), boxes[-1].bottom)

    fig = go.Figure()
    legend: set[str] = set()
    for number, (side, share, box, answer) in enumerate(
        zip(sides, shares, boxes, told_by, strict=True), start=1
    ):
        axes = area.place(
            fig,
            number,
            box,
            framed(ticks(side.heads, box.width), "head", shown=True),
            framed(ticks(rows, tall, vertical=True), word, shown=stacked or number == 1),
        )
        kinds = _kinds(side, share, list(representations))
        _draw(fig, axes, side, share, rows, kinds, legend)
        _numbers(fig, axes, share, kinds, cell)
        _grid(fig, axes, len(rows), share.shape[1])
        when = ("Before", "After")[number - 1]
        n = len(side.heads)
        head = f"<b>{when}</b>: {text(side.name)}, {n} head{'s' * (n != 1)}"
        area.note(fig, head, box.left, box.top - 17, align="left")
        words, color = lines[number - 1]
        area.note(fig, words, box.left, box.top - 3, align="left", size=10, color=color)
        for i, (words, color) in enumerate(answer):
            middle = box.top + (i + 0.5) * tall / len(rows)
            area.note(
                fig, words, box.right + 6, middle, align="left", valign="middle",
                size=SMALL, color=color,
            )  # fmt: skip
    below = label_space(list(sides[-1].heads), ticks(sides[-1].heads, boxes[-1].width))
    fig.update_layout(barmode="overlay", bargap=0)
    return finish(
        fig,
        columns=columns,
        height=area.height,
        title=title,
        left=left,
        right=width_of(columns) - left - area.width,
        bottom=below,
    )


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
    axes: dict[str, str],
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
    axes: dict[str, str],
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


def _grid(fig: go.Figure, axes: dict[str, str], rows: int, heads: int) -> None:
    """Thin lines between the cells."""
    x: list[float | None] = []
    y: list[float | None] = []
    for i in range(1, rows):
        x += [-0.5, heads - 0.5, None]
        y += [i - 0.5, i - 0.5, None]
    for h in range(1, heads):
        x += [h - 0.5, h - 0.5, None]
        y += [-0.5, rows - 0.5, None]
    fig.add_scatter(
        x=x, y=y, mode="lines", line={"color": "white", "width": 1.5}, hoverinfo="skip",
        showlegend=False, name="", **axes,
    )  # fmt: skip
    fig.add_scatter(
        x=x, y=y, mode="lines", line={"color": FAINT, "width": 0.75}, hoverinfo="skip",
        showlegend=False, name="", **axes,
    )  # fmt: skip
