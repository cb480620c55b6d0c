"""Which heads of a layer carry a behaviour: a column for each model, a slice for each head."""

from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from gated_interp.core.written import count
from gated_interp.plots.inputs import table
from gated_interp.plots.layout import Box, Canvas, interval, log_axis, titled
from gated_interp.plots.style import INK, MUTED, PALETTE, SMALL, SYMBOLS, Columns, text

ORIGINAL = "original"
LABELS = {"topk copies": "block: two heads write at a position"}
ORIGINAL_COLOR, BLOCK_COLOR = PALETTE[1], PALETTE[0]
# Ours first, then the controls; orange is the original's, and yellow is too pale for a mark.
OTHERS = (PALETTE[0], *PALETTE[2:6], PALETTE[7])
CARRIED = ["layer", "method", "seed", "carriers", "top2", "top2_low", "top2_high"]
# The part of the copying, and the rise of the loss (nats) and the KL (nats), that are aimed at.
GOAL, LOSS_GOAL, KL_GOAL = 0.9, 0.02, 0.01
# Heads that do not share, by their number.
FEW = 2
APART, BESIDE = 1.3, 0.35
"""Between the columns of two layers, and between the original and its blocks; columns are 1."""


def copying_shares(
    blocks: pd.DataFrame,
    heads: pd.DataFrame,
    *,
    method: str = "gated",
    title: str | None = None,
    columns: Columns = 2,
) -> go.Figure:
    """How the heads of each layer share the copying, before and after: a slice for each head.

    A column for the original layer and one for each block of ``method``. Slices are Shapley values
    as shares of the layer's effect; those below zero are left out. The number above a column says
    how many heads carry 90%. Layers that hardly matter are left out. Unless ``title`` is given, it
    says how many heads are needed.

    Args:
        blocks: ``layer``, ``method`` (``original`` or ``method``; others are left out), ``seed``,
            ``carriers``, ``top2`` with ``top2_low`` and ``top2_high``: a row per column.
        heads: ``layer``, ``method``, ``seed``, ``share``: a row per head.

    Raises:
        GatedInterpError: no layer that matters, or a column is missing.
    """
    table("blocks", blocks, CARRIED)
    table("heads", heads, ["layer", "method", "seed", "share"])
    drawn = _columns(blocks, method)
    table("layers that matter", drawn, CARRIED)
    canvas = Canvas(columns, in_words(drawn) if title is None else title, 50.0)
    wide, ends = canvas.width, (-0.9, float(drawn["x"].max()) + 0.9)
    layers = drawn.groupby("layer", sort=False)["x"].mean()
    top = max(1.0, float(drawn["top2_high"].max())) + 0.03
    x = titled(
        "layer", tickvals=layers.tolist(), ticktext=[str(n) for n in layers.index],
        range=[*ends], showgrid=False, ticks="",
    )  # fmt: skip
    y = titled("share of the copying", tickformat=".0%", range=[0, top], nticks=6, showgrid=True)
    place = canvas.panel(Box(0, 34, wide, 190), x, y)
    _slices(canvas, place, drawn, heads)
    canvas.fig.add_scatter(
        x=drawn["x"].tolist(),
        y=drawn["top2"].tolist(),
        error_y=interval(drawn["top2"], drawn["top2_low"], drawn["top2_high"]),
        mode="markers",
        marker={
            "symbol": "diamond",
            "size": 6,
            "color": INK,
            "line": {"color": "white", "width": 1},
        },
        name="best two heads alone (95% interval)",
        hovertemplate="%{y:.0%}<extra>best two heads alone</extra>",
        cliponaxis=False,
        **place,
    )
    canvas.rule(place, y=GOAL, color=MUTED, dash="dot")
    canvas.note(
        "heads needed for 90% of the copying:", -44, 12, align="left", size=SMALL, color=MUTED
    )
    for at, n in zip(drawn["x"], drawn["carriers"], strict=True):
        pixel = wide * (at - ends[0]) / (ends[1] - ends[0])
        canvas.note(f"<b>{n:.0f}</b>", pixel, 31, size=SMALL)
    fig = canvas.finish(40)
    return fig.update_layout(barmode="stack", bargap=0.08, legend={"traceorder": "normal"})


def in_words(blocks: pd.DataFrame) -> str:
    """The finding of :func:`copying_shares`: how many heads are needed where heads share."""
    originals = blocks[blocks["method"] == ORIGINAL].set_index("layer")["carriers"].astype(int)
    shared = originals[originals > FEW]
    if shared.empty:
        return "In the original, one or two heads carry the copying of each layer"
    where = "one layer" if len(shared) == 1 else f"{len(shared)} layers"
    said = f"In {where}, {_between(sorted(shared))} heads share the copying"
    there = blocks[(blocks["method"] != ORIGINAL) & blocks["layer"].isin(shared.index)]
    if there.empty:
        return said
    few = int((there["carriers"] <= FEW).sum())
    return f"{said}. After training, one or two do it in {count(few, len(there))} blocks"


def copying_controls(
    blocks: pd.DataFrame, *, title: str | None = None, columns: Columns = 2
) -> go.Figure:
    """What the best two heads carry against what the block costs, for each way to train one.

    Up and to the left is better. Dotted lines are the aims: 90% of the copying, 0.02 nats of loss,
    0.01 nats of KL.

    Args:
        blocks: of one layer: ``method``, ``top2`` with ``top2_low`` and ``top2_high``, ``loss``,
            ``loss_original`` (nats, on what is copied) and ``kl_text`` (nats per position); a row
            per block, and one of the method ``original``, which is drawn as a line.

    Raises:
        GatedInterpError: no block, or a column is missing.
    """
    wanted = ["method", "top2", "top2_low", "top2_high", "loss", "loss_original", "kl_text"]
    table("blocks", blocks, wanted)
    rows = blocks[(blocks["method"] != ORIGINAL) & blocks["top2"].notna()]
    rows = table("blocks", rows, wanted).assign(rise=lambda t: t["loss"] - t["loss_original"])
    canvas, gap, tall = Canvas(columns, title, 50.0), 20.0, 180.0
    wide = (canvas.width - gap) / 2
    few: dict[str, Any] = {"nticks": 5 if columns == 2 else 3, "tickangle": 0, "showgrid": True}
    ends = [
        min(0.0, float(rows["top2_low"].min())),
        max(1.0, float(rows["top2_high"].max())) + 0.03,
    ]
    y = titled("carried by the best two heads", tickformat=".0%", range=ends, showgrid=True)
    kl = log_axis([*rows["kl_text"], KL_GOAL], "KL on text (nats)", wide)
    rise = "rise of the loss (nats)" if columns == 1 else "rise of the loss on repeats (nats)"
    places = (
        canvas.panel(Box(0, 4, wide, tall), titled(rise, **few), y),
        canvas.panel(Box(wide + gap, 4, wide, tall), kl, y | titled("", showticklabels=False)),
    )
    goals = zip(places, ("rise", "kl_text"), (LOSS_GOAL, KL_GOAL), strict=True)
    before = blocks.loc[blocks["method"] == ORIGINAL, "top2"]
    for place, column, goal in goals:
        canvas.rule(place, x=goal, color=MUTED, dash="dot")
        canvas.rule(place, y=GOAL, color=MUTED, dash="dot")
        for value in before[before.notna()]:
            canvas.rule(place, y=float(value), color=ORIGINAL_COLOR)
        for i, method in enumerate(rows["method"].unique()):
            part = rows[rows["method"] == method]
            color = OTHERS[i % len(OTHERS)]
            canvas.fig.add_scatter(
                x=part[column].tolist(),
                y=part["top2"].tolist(),
                error_y=interval(part["top2"], part["top2_low"], part["top2_high"], color),
                mode="markers",
                cliponaxis=False,
                marker={"color": color, "symbol": SYMBOLS[i % len(SYMBOLS)], "size": 8},
                name=text(method),
                legendgroup=text(method),
                showlegend=place is places[0],
                hovertemplate=f"%{{x:.3g}}, %{{y:.0%}}<extra>{text(method)}</extra>",
                **place,
            )
    if len(before):
        none = {"x": [None], "y": [None], "mode": "lines", "line": {"color": ORIGINAL_COLOR}}
        canvas.fig.add_scatter(**none, name=ORIGINAL, **places[0])
    return canvas.finish(44)


def _columns(blocks: pd.DataFrame, method: str) -> pd.DataFrame:
    """The originals and the blocks of ``method``, with their place ``x``."""
    rows = blocks[blocks["method"].isin([ORIGINAL, method]) & blocks["carriers"].notna()]
    rows = rows.assign(block=rows["method"] == method).sort_values(["layer", "block", "seed"])
    at, x = [], -APART
    for i, (layer, block) in enumerate(zip(rows["layer"], rows["block"], strict=True)):
        first = i == 0 or layer != rows["layer"].iloc[i - 1]
        x += APART + (i > 0) if first else 1 + BESIDE * (block and not rows["block"].iloc[i - 1])
        at.append(x if i else 0.0)
        x = at[-1]
    return rows.assign(x=at)


def _slices(
    canvas: Canvas, place: dict[str, str], drawn: pd.DataFrame, heads: pd.DataFrame
) -> None:
    """The largest heads of each column, then the second, and so on; each rank is a trace."""
    shares = heads.assign(share=heads["share"].clip(lower=0)).groupby(["layer", "method", "seed"])
    sizes = {key: sorted(part["share"], reverse=True) for key, part in shares}
    keys = list(drawn[["layer", "method", "seed"]].itertuples(index=False, name=None))
    for rank in range(max(len(sizes.get(key, [])) for key in keys)):
        there = [(k, x) for k, x in zip(keys, drawn["x"], strict=True) if len(sizes[k]) > rank]
        canvas.fig.add_bar(
            x=[x for _, x in there],
            y=[sizes[key][rank] for key, _ in there],
            marker={
                "color": [_lighter(_color(key[1]), min(0.75, 0.25 * rank)) for key, _ in there],
                "line": {"color": "white", "width": 1},
            },
            customdata=[
                f"layer {k[0]}, {k[1]}" + (f", seed {k[2]}" * (k[2] >= 0)) for k, _ in there
            ],
            hovertemplate=f"%{{customdata}}: %{{y:.0%}}<extra>head {rank + 1} by size</extra>",
            showlegend=False,
            **place,
        )
    words = {ORIGINAL: "original, a slice per head"}
    for method in drawn.loc[drawn["block"], "method"].unique():
        words[method] = f"{LABELS.get(method, f'{text(method)} block')}, a column per seed"
    for method, name in words.items():
        if (drawn["method"] == method).any():
            mark = {"symbol": "square", "size": 10, "color": _color(method)}
            none = {"x": [None], "y": [None], "mode": "markers", "marker": mark, "name": name}
            canvas.fig.add_scatter(**none, **place)


def _color(method: str) -> str:
    return ORIGINAL_COLOR if method == ORIGINAL else BLOCK_COLOR


def _lighter(color: str, by: float) -> str:
    """``color`` mixed with so much white."""
    parts = np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)])
    return "#" + "".join(f"{round(c):02x}" for c in parts + by * (255 - parts))


def _between(counts: list[int]) -> str:
    return f"{counts[0]}" if counts[0] == counts[-1] else f"{counts[0]} to {counts[-1]}"
