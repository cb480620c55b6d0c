"""What each head of a layer is worth, or how much it alone holds."""

from collections.abc import Mapping
from typing import Literal

import pandas as pd
import plotly.graph_objects as go

from gated_interp.core.written import head_name
from gated_interp.plots.inputs import one_of, table
from gated_interp.plots.layout import Axis, Box, Canvas, interval, label_space, ticks, titled
from gated_interp.plots.style import PALETTE, Columns, text

# What is drawn: the axis, what heads are sorted by, how numbers are written.
SAID = {
    "effect": ("loss without it (nats more)", "effect", ""),
    "held": ("positions it alone holds", "what they hold", ".1%"),
}


def head_effects(
    sides: Mapping[str, pd.DataFrame],
    *,
    measure: Literal["effect", "held"] = "effect",
    layer: int | None = None,
    title: str | None = None,
    columns: Columns = 2,
) -> go.Figure:
    """By how much the loss rises without each head, those that matter most first, a panel a side.

    Args:
        sides: tables of :func:`~gated_interp.analysis.read_heads.read_heads` (``head``,
            ``effect``, ``effect_low``, ``effect_high``; nats per token) by a name such as
            ``original``; drawn on one scale.
        measure: or else the share of positions that each head alone ``held`` (0 to 1).
        layer: of the heads, for their names (L0H3); without it they are numbers.

    Raises:
        GatedInterpError: no rows, or a column is missing.
    """
    one_of("measure", measure, tuple(SAID))
    ends = [f"{measure}_low", f"{measure}_high"] if measure == "effect" else []
    for side in sides.values():
        table("heads", side, ["head", measure, *ends])
    unit, order, form = SAID[measure]
    canvas = Canvas(columns, title, 52.0)
    each, below = (canvas.width - 18.0 * (len(sides) - 1)) / len(sides), 44.0
    for i, (name, heads) in enumerate(sides.items()):
        heads = heads.sort_values(measure, ascending=False)
        names = [str(h) if layer is None else head_name((layer, h)) for h in heads["head"]]
        # So many that their names would not fit stand there without.
        named: Axis = {"showticklabels": False}
        if len(heads) <= 16:
            named = titled("head", tickangle=ticks(names, each)["tickangle"])
            below = max(below, label_space(names, each))
        x: Axis = {"type": "category", "ticks": "", **named}
        y = titled(unit, rangemode="tozero", tickformat=form)
        y = {"showgrid": True, "nticks": 6, **(y if i == 0 else {"matches": "y"})}
        box = Box(i * (each + 18.0), 18, each, 150)
        place = canvas.panel(box, x, y | ({"showticklabels": False} if i else {}))
        said = f"<b>{text(name)}</b>: {len(heads)} heads"
        if columns == 2:  # in one there is no room to say it
            said += f", by {order}"
        canvas.note(said, box.left, 15, align="left")
        canvas.fig.add_bar(
            x=names,
            y=heads[measure].tolist(),
            error_y=interval(heads[measure], heads[ends[0]], heads[ends[1]]) if ends else None,
            marker={"color": PALETTE[0]},
            showlegend=False,
            hovertemplate=f"head %{{x}}: %{{y:{form or '.4f'}}}",
            **place,
        )
    return canvas.finish(below)
