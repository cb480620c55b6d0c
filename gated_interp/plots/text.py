"""A layer of a language model taken apart: what each head is worth, and how much one head holds."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import pandas as pd
import plotly.graph_objects as go

from gated_interp.plots.frontier import COLORS, SHAPES
from gated_interp.plots.inputs import one_of, table
from gated_interp.plots.layout import Area, Box, error_bar
from gated_interp.plots.style import INK, MUTED, PALETTE, Columns, finish, text, width_of

LEFT, GAP, BELOW, TALL = 52.0, 62.0, 44.0, 190.0
# What head_effects draws: the axis, what heads are sorted by, how numbers are written.
SAID = {
    "effect": ("loss without it (nats more)", "effect", ""),
    "held": ("positions it alone holds", "what they hold", ".1%"),
}


def head_effects(
    sides: Mapping[str, pd.DataFrame],
    *,
    measure: Literal["effect", "held"] = "effect",
    title: str | None = None,
    columns: Columns = 2,
) -> go.Figure:
    """By how much the loss rises without each head, those that matter most first, a panel a side.

    Args:
        sides: tables of :func:`~gated_interp.analysis.read_heads.read_heads` (``head``,
            ``effect``, ``effect_low``, ``effect_high``; nats per token) by a name such as
            ``original``; drawn on one scale.
        measure: or else the share of positions that each head alone ``held`` (0 to 1).
        title: above the figure.
        columns: paper columns it spans.

    Raises:
        GatedInterpError: no rows, or a column is missing.
    """
    one_of("measure", measure, tuple(SAID))
    ends = [f"{measure}_low", f"{measure}_high"] if measure == "effect" else []
    for side in sides.values():
        table("heads", side, ["head", measure, *ends])
    unit, order, form = SAID[measure]
    each = (width_of(columns) - LEFT - 10 - 18.0 * (len(sides) - 1)) / len(sides)
    boxes = [Box(i * (each + 18.0), 18, each, 150) for i in range(len(sides))]
    area, fig = Area(boxes[-1].right, boxes[0].bottom), go.Figure()
    for i, (name, heads) in enumerate(sides.items()):
        heads = heads.sort_values(measure, ascending=False)
        axis: dict[str, Any] = {"title": {"text": unit}, "rangemode": "tozero", "tickformat": form}
        if i:
            axis = {"showticklabels": False, "matches": "y"}
        # So many that their numbers would not fit stand there without.
        few = len(heads) <= 16
        named: dict[str, Any] = {"title": {"text": "head"}} if few else {"showticklabels": False}
        where = area.place(
            fig,
            i + 1,
            boxes[i],
            {"type": "category", "ticks": "", **named},
            {"showgrid": True, "nticks": 6, **axis},
        )
        said = f"<b>{text(name)}</b>: {len(heads)} heads"
        if columns == 2:  # in one there is no room to say it
            said += f", by {order}"
        area.note(fig, said, boxes[i].left, 15, align="left")
        fig.add_bar(
            x=heads["head"].astype(str).tolist(),
            y=heads[measure].tolist(),
            error_y=error_bar(
                heads[measure], *(heads[end] for end in ends), color=INK, thickness=0.8
            )
            if ends
            else None,
            marker={"color": PALETTE[0]},
            showlegend=False,
            hovertemplate=f"head %{{x}}: %{{y:{form or '.4f'}}}",
            **where,
        )
    return finish(
        fig, columns=columns, height=area.height, title=title, left=LEFT, right=10, bottom=BELOW
    )


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
        title: above the figure.
        columns: paper columns it spans.
        goals: (loss recovered, share held) to draw as crosses.

    Raises:
        GatedInterpError: no rows, or a column is missing.
    """
    wanted = ["method", "ce_recovered_zero", "held_share", "active_per_position"]
    table("results", results, wanted)
    each = (width_of(columns) - LEFT - 10 - GAP) / 2
    boxes = [Box(i * (each + GAP), 4, each, TALL) for i in (0, 1)]
    area, fig = Area(boxes[1].right, boxes[1].bottom), go.Figure()
    held: dict[str, Any] = {"title": {"text": "held by one head"}, "tickformat": ".0%"}
    most = max(original, *results["held_share"], *(y for _, y in goals))
    held["range"] = [0, 1.08 * most]
    axes = [
        {"title": {"text": "loss recovered (zero ablation)"}, "tickformat": ".1%"},
        {"title": {"text": "heads active per position"}, "rangemode": "tozero"},
    ]
    places = [
        area.place(
            fig,
            i + 1,
            boxes[i],
            axes[i] | {"nticks": 6 if columns == 2 else 3, "tickangle": 0},
            held | {"showgrid": True},
        )
        for i in (0, 1)
    ]
    for i, method in enumerate(results["method"].unique()):
        part = results[results["method"] == method].sort_values("ce_recovered_zero")
        for panel, column in enumerate(("ce_recovered_zero", "active_per_position")):
            fig.add_scatter(
                x=part[column].tolist(),
                y=part["held_share"].tolist(),
                mode="lines+markers" if len(part) > 1 else "markers",
                line={"color": COLORS[i], "width": 2.4 if i == 0 else 1.2},
                marker={"color": COLORS[i], "symbol": SHAPES[i], "size": 9 if i == 0 else 7},
                name=text(str(method)),
                legendgroup=text(str(method)),
                showlegend=panel == 0,
                hovertemplate="%{x:.3f}, %{y:.1%} held",
                **places[panel],
            )
    if goals:
        fig.add_scatter(
            x=[x for x, _ in goals],
            y=[y for _, y in goals],
            mode="markers",
            marker={"symbol": "cross-thin", "size": 10, "line": {"color": INK, "width": 1.5}},
            name="goal",
            **places[0],
        )
    dotted = {"color": MUTED, "width": 1, "dash": "dot"}
    for place in places:
        axis = f"{place['xaxis']} domain"
        fig.add_shape(
            type="line", xref=axis, yref=place["yaxis"], x0=0, x1=1, y0=original, y1=original,
            line=dotted,
        )  # fmt: skip
    fig.add_scatter(
        x=[None],
        y=[None],
        mode="lines",
        line=dotted,
        name="original",
        **places[0],
    )
    return finish(
        fig, columns=columns, height=area.height, title=title, left=LEFT, right=10, bottom=BELOW
    )
