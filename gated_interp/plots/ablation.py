"""What is lost without a head: ablation bars, Shapley values, interactions."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from numpy.typing import ArrayLike

from gated_interp.core.errors import GatedInterpError
from gated_interp.plots.inputs import array, labels, table
from gated_interp.plots.layout import (
    ZERO,
    Box,
    Canvas,
    framed,
    interval,
    label_space,
    ticks,
    titled,
)
from gated_interp.plots.style import (
    MUTED,
    PALETTE,
    SIGNED,
    Columns,
    Number,
    symmetric_limit,
    text,
    text_width,
)  # fmt: skip

LEFT = 58.0
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
            raise GatedInterpError("no-such-metric", metric=metric, metrics=metrics)
        effects = effects[effects["metric"] == metric]
    if panel is None and "trigram" in effects and effects["trigram"].nunique() > 1:
        panel = "trigram"
    unit = UNITS.get(metric or "logit", metric or "") if unit is None else unit
    keys = ["heads", "method", *([panel] if panel else [])]
    table("ablation", effects, [*keys, "change", "low", "high"])
    if effects.duplicated(keys).any():
        raise GatedInterpError("two-rows-for-one-bar", keys=keys)
    sets = effects["heads"].unique().tolist()
    names = [text(s) for s in sets]
    methods = effects["method"].unique().tolist()
    panels: list[Any] = effects[panel].unique().tolist() if panel else [None]
    span = effects[["change", "low", "high"]].to_numpy(float)
    low, high = min(0.0, float(np.nanmin(span))), max(0.0, float(np.nanmax(span)))
    pad = 0.05 * (high - low or 1)

    canvas = Canvas(columns, title, LEFT, 8)
    tall = 150.0 if len(panels) == 1 else 90.0
    crowded = canvas.width / (len(sets) * len(methods)) < 9
    said = text(unit) if len(panels) == 1 else _broken(unit, tall)
    y = titled(said, range=[low - pad, high + pad], showgrid=True, nticks=6, **ZERO)
    for i, value in enumerate(panels):
        last = value == panels[-1]
        box = Box(0, (16.0 if panel else 8.0) + i * (tall + 20), canvas.width, tall)
        x = titled("ablated heads" if last else "", ticks="outside" if last else "")
        axes = canvas.panel(box, {**ticks(names, box.width), "showticklabels": last, **x}, y)
        part = effects if panel is None else effects[effects[panel] == value]
        for k, method in enumerate(methods):
            rows = part[part["method"] == method]
            error = interval(rows["change"], rows["low"], rows["high"])
            shape: dict[str, Any] = {"fillmode": "overlay", "size": 5, "solidity": 0.25}
            shape |= {"fgcolor": "white", "fgopacity": 0.7}
            shape["shape"] = "" if crowded else PATTERNS[k % len(PATTERNS)]
            canvas.fig.add_bar(
                x=[sets.index(s) for s in rows["heads"]],
                y=rows["change"].tolist(),
                error_y=error | ({"width": 0} if crowded else {}),
                marker={
                    "color": PALETTE[k % len(PALETTE)], "line": {"width": 0}, "pattern": shape
                },
                name=text(method),
                legendgroup=text(method),
                showlegend=i == 0,
                hovertemplate=f"%{{x}}: %{{y:.3f}}<extra>{text(method)}</extra>",
                **axes,
            )  # fmt: skip
        if panel:
            canvas.note(f"{text(panel)} {text(value)}", 2, box.top - 2, align="left")
    canvas.fig.update_layout(barmode="group", bargap=0.22, bargroupgap=0.05)
    return canvas.finish(label_space(names, canvas.width))


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
        raise GatedInterpError("one-end-of-interval")
    error = None
    if low is not None and high is not None:
        error = interval(
            value, array("low", low, "head", sizes), array("high", high, "head", sizes)
        )
    n, stacked = len(names), columns == 1
    canvas = Canvas(columns, title, LEFT, 0)
    side_left, bar, gap = max(map(text_width, names)) + 28, 64.0, 10.0
    room = canvas.width - bar - (0 if stacked else side_left + gap)
    side = min(240.0, room if stacked else 0.5 * room, 34.0 * n + 90)
    if stacked:
        bars = Box(0, 18, room, 120)
        square = Box(0, bars.bottom + label_space(names, room) + 22, room, room)
    else:
        bars = Box(0, 18, room - side, side)
        square = Box(bars.right + gap + side_left, 18, side, side)
    x = {**ticks(names, bars.width), **titled("head")}
    y = titled(f"Shapley value ({text(unit)})", showgrid=True, nticks=6, **ZERO)
    axes = canvas.panel(bars, x, y)
    canvas.fig.add_bar(
        x=list(range(n)), y=value, error_y=error, marker={"color": MUTED},
        width=min(0.7, 56 * n / bars.width),
        name="Shapley value", showlegend=False, **axes,
    )  # fmt: skip
    down = framed(ticks(names, square.height, vertical=True), "head")
    axes = canvas.panel(square, framed(ticks(names, square.width), "head"), down)
    cell = square.width / n
    canvas.fig.add_heatmap(
        z=pairs,
        coloraxis="coloraxis",
        texttemplate="%{z:.2f}" if cell >= 26 else None,
        textfont={"size": 9.5 if cell >= 32 else 8.5},
        name="interactions",
        hoverongaps=False,
        hovertemplate="%{y} with %{x}: %{z:.3f}<extra></extra>",
        **axes,
    )
    canvas.note("each head", bars.left, bars.top - 3, align="left")
    canvas.note("each pair of heads", square.left, square.top - 3, align="left")
    # Against the heads' own values a trace of an interaction must look like one.
    limit = max(symmetric_limit(pairs), FAINTEST * symmetric_limit(value))
    where = Box(square.right + 10, square.top, 8, min(square.height, 150.0))
    canvas.color_bar("coloraxis", SIGNED, (-limit, limit), f"interaction ({unit})", where)
    return canvas.finish(label_space(names, min(bars.width, square.width)))


def _broken(words: str, pixels: Number) -> str:
    """``words`` on two lines where one is too long for an axis of ``pixels``."""
    if text_width(words, 10.5) <= pixels or " " not in words:
        return text(words)
    parts = words.split()
    middle = (len(parts) + 1) // 2
    return f"{text(' '.join(parts[:middle]))}<br>{text(' '.join(parts[middle:]))}"
