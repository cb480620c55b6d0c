"""What is lost without a head: ablation bars, Shapley values, interactions."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from numpy.typing import ArrayLike

from gated_interp.core.errors import GatedInterpError
from gated_interp.plots.inputs import array, labels, table
from gated_interp.plots.layout import Area, Box, error_bar, framed, label_space
from gated_interp.plots.style import (
    INK,
    MUTED,
    PALETTE,
    SIGNED,
    Columns,
    Number,
    finish,
    symmetric_limit,
    text,
    text_width,
    ticks,
    width_of,
)

LEFT = 52.0
# The scale of interactions reaches at least this share of the largest Shapley value.
FAINTEST = 0.1
# A pattern besides the colour, so that the methods stay apart in print.
PATTERNS = ("", "/", ".", "x", "\\", "-", "|", "+")


UNITS = {
    "loss": "increase of the loss (nats)",
    "kl": "KL from the intact model (nats)",
    "accuracy": "change in accuracy",
    "logit": "change in the logit of C",
}


def ablation_bars(
    effects: pd.DataFrame,
    *,
    metric: str | None = None,
    unit: str | None = None,
    panel: str | None = None,
    title: str | None = None,
    columns: Columns = 2,
) -> go.Figure:
    """The effect of ablating each set of heads, the methods side by side, with intervals.

    Args:
        effects: ``heads`` (label of the ablated set), ``method``, ``change`` with ``low`` and
            ``high``, as :func:`~gated_interp.analysis.ablation.ablate` returns them.
        metric: which of the table's metrics to draw. Default: its first.
        unit: of ``change``, on the y axis. Default: the metric's.
        panel: a column whose values each get a panel of their own. Default: ``"trigram"`` where
            the metric has several.
        title: above the figure.
        columns: paper columns it spans.

    Raises:
        GatedInterpError: no rows, a column or the metric is missing, or two rows for one bar.

    Examples:
        >>> from gated_interp.analysis.ablation import ablate
        >>> from gated_interp.models.analytic import manual_model
        >>> truth = manual_model(2, 3)  # 2 heads
        >>> figure = ablation_bars(ablate(truth.model, truth.task.sample(50, seed=0).tokens))
        >>> figure.layout.yaxis.title.text, figure.data[0].x
        ('increase of the loss (nats)', (0, 1, 2))
    """
    if "metric" in effects and len(effects):
        metrics = effects["metric"].unique().tolist()
        metric = metrics[0] if metric is None else metric
        if metric not in metrics:
            raise GatedInterpError(f"the table has no metric {metric!r}; it has {metrics}.")
        effects = effects[effects["metric"] == metric]
    if panel is None and "trigram" in effects and effects["trigram"].nunique() > 1:
        panel = "trigram"
    unit = UNITS.get(metric or "logit", metric or "") if unit is None else unit
    keys = ["heads", "method", *([panel] if panel else [])]
    table("ablation", effects, [*keys, "change", "low", "high"])
    if effects.duplicated(keys).any():
        raise GatedInterpError(
            f"the ablation table has two rows for one {', '.join(keys)}; keep one of each."
        )
    sets = effects["heads"].unique().tolist()
    names = [text(s) for s in sets]
    methods = effects["method"].unique().tolist()
    panels: list[Any] = effects[panel].unique().tolist() if panel else [None]
    span = effects[["change", "low", "high"]].to_numpy(float)
    low, high = min(0.0, float(np.nanmin(span))), max(0.0, float(np.nanmax(span)))
    pad = 0.05 * (high - low or 1)

    wide = width_of(columns) - LEFT - 8
    axis = ticks(names, wide)
    tall = 150.0 if len(panels) == 1 else 90.0
    head = 16.0 if panel else 8.0
    boxes = [Box(0, head + i * (tall + 20), wide, tall) for i in range(len(panels))]
    area = Area(wide, boxes[-1].bottom)
    fig = go.Figure()
    for number, (value, box) in enumerate(zip(panels, boxes, strict=True), start=1):
        last = number == len(panels)
        axes = area.place(
            fig,
            number,
            box,
            {
                **axis,
                "showticklabels": last,
                "ticks": "outside" if last else "",
                "title": {"text": "ablated heads" if last else ""},
            },
            {
                "title": {"text": unit if len(panels) == 1 else _broken(unit, tall)},
                "range": [low - pad, high + pad],
                "zeroline": True,
                "zerolinecolor": INK,
                "zerolinewidth": 1,
                "showgrid": True,
                "nticks": 6,
            },
        )
        part = effects if panel is None else effects[effects[panel] == value]
        for i, method in enumerate(methods):
            rows = part[part["method"] == method]
            crowded = wide / (len(sets) * len(methods)) < 9
            fig.add_bar(
                x=[sets.index(s) for s in rows["heads"]],
                y=rows["change"].tolist(),
                error_y=error_bar(
                    rows["change"],
                    rows["low"],
                    rows["high"],
                    color=INK,
                    width=0 if crowded else 2,
                ),
                marker={
                    "color": PALETTE[i % len(PALETTE)],
                    "line": {"width": 0},
                    "pattern": {
                        "shape": "" if crowded else PATTERNS[i % len(PATTERNS)],
                        "fillmode": "overlay",
                        "fgcolor": "white",
                        "fgopacity": 0.7,
                        "size": 5,
                        "solidity": 0.25,
                    },
                },
                name=text(method),
                legendgroup=text(method),
                showlegend=number == 1,
                hovertemplate=f"%{{x}}: %{{y:.3f}}<extra>{text(method)}</extra>",
                **axes,
            )
        if panel:
            area.note(fig, f"{text(panel)} {text(value)}", box.left + 2, box.top - 2, align="left")
    fig.update_layout(barmode="group", bargap=0.22, bargroupgap=0.05)
    return finish(
        fig,
        columns=columns,
        height=area.height,
        title=title,
        left=LEFT,
        right=8,
        bottom=label_space(names, axis),
    )


def shapley_and_interactions(
    shapley: ArrayLike,
    interactions: ArrayLike,
    heads: Sequence[str],
    *,
    low: ArrayLike | None = None,
    high: ArrayLike | None = None,
    unit: str = "logit of C",
    title: str | None = None,
    columns: Columns = 2,
) -> go.Figure:
    """Each head's Shapley value as a bar, and what pairs of heads do together as a heat map.

    Args:
        shapley: ``[head]``.
        interactions: ``[head, other_head]``, symmetric; its diagonal (what a head does alone) is
            left blank.
        heads: one label per head.
        low, high: ``[head]``, the interval of each Shapley value where it was sampled.
        unit: of both.
        title: above the figure.
        columns: paper columns it spans; with one the panels stand below each other.

    Raises:
        GatedInterpError: shapes or labels that do not fit, or one end of the interval only.
    """
    sizes: dict[str, int] = {}
    value = array("shapley", shapley, "head", sizes)
    sizes["other_head"] = sizes["head"]
    pairs = array("interactions", interactions, "head other_head", sizes, allow_nan=True).copy()
    np.fill_diagonal(pairs, np.nan)
    names = labels("heads", heads, sizes["head"], "heads")
    if (low is None) != (high is None):
        raise GatedInterpError("an interval needs both low and high; give both or neither.")
    error = None
    if low is not None and high is not None:
        ends = [array(n, v, "head", sizes) for n, v in (("low", low), ("high", high))]
        error = error_bar(value, *ends, color=INK)
    n, stacked = len(names), columns == 1
    side_left, bar, gap = max(map(text_width, names)) + 28, 56.0, 10.0
    room = width_of(columns) - LEFT - bar - (0 if stacked else side_left + gap)
    map_side = min(240.0, room if stacked else 0.5 * room, 34.0 * n + 90)
    bars = Box(0, 18, room - map_side, map_side)
    if stacked:
        bars = Box(0, 18, room, 120)
        square = Box(0, bars.bottom + label_space(names, ticks(names, room)) + 22, room, room)
    else:
        square = Box(bars.right + gap + side_left, 18, map_side, map_side)
    area = Area(max(bars.right, square.right), square.bottom)

    fig = go.Figure()
    axes = area.place(
        fig,
        1,
        bars,
        {**ticks(names, bars.width), "title": {"text": "head"}},
        {
            "title": {"text": f"Shapley value ({text(unit)})"},
            "zeroline": True,
            "zerolinecolor": INK,
            "showgrid": True,
            "nticks": 6,
        },
    )
    fig.add_bar(
        x=list(range(n)), y=value, error_y=error, marker={"color": MUTED},
        width=min(0.7, 56 * n / bars.width),
        name="Shapley value", showlegend=False, **axes,
    )  # fmt: skip
    axes = area.place(
        fig,
        2,
        square,
        framed(ticks(names, square.width), "head", shown=True),
        framed(ticks(names, square.height, vertical=True), "head", shown=True),
    )
    cell = square.width / n
    fig.add_heatmap(
        z=pairs,
        coloraxis="coloraxis",
        texttemplate="%{z:.2f}" if cell >= 26 else None,
        textfont={"size": 9.5 if cell >= 32 else 8.5},
        name="interactions",
        hoverongaps=False,
        hovertemplate="%{y} with %{x}: %{z:.3f}<extra></extra>",
        **axes,
    )
    area.note(fig, "each head", bars.left, bars.top - 3, align="left")
    area.note(fig, "each pair of heads", square.left, square.top - 3, align="left")
    # Against the heads' own values a trace of an interaction must look like one.
    limit = max(symmetric_limit(pairs), FAINTEST * symmetric_limit(value))
    where = Box(square.right + 10, square.top, 8, min(square.height, 150.0))
    words = f"interaction ({unit})"
    fig.update_layout(coloraxis=area.color_bar(SIGNED, (-limit, limit), words, where))
    return finish(
        fig,
        columns=columns,
        height=area.height,
        title=title,
        left=LEFT,
        right=width_of(columns) - LEFT - area.width,
        bottom=label_space(names, ticks(names, min(bars.width, square.width))),
    )


def _broken(words: str, pixels: Number) -> str:
    """``words`` on two lines where one is too long for an axis of ``pixels``."""
    if text_width(words, 10.5) <= pixels or " " not in words:
        return text(words)
    parts = words.split()
    middle = (len(parts) + 1) // 2
    return f"{text(' '.join(parts[:middle]))}<br>{text(' '.join(parts[middle:]))}"
