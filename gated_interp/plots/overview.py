"""All heads of a model in one figure: layers across, heads down, a tile for each."""

from collections.abc import Collection, Mapping, Sequence

import numpy as np
import plotly.graph_objects as go

from gated_interp.core.errors import GatedInterpError
from gated_interp.core.written import head_name
from gated_interp.plots.layout import Box, Canvas, framed, ticks
from gated_interp.plots.style import EMPTY, INK, MUTED, PALETTE, SIGNED, Columns, text

# Px: a tile is at most so large, and a panel at least so high that its colour bar has room.
WIDEST, TALLEST, SHORTEST = 30.0, 16.0, 64.0
TITLE, BELOW, GAP, BAR = 18.0, 34.0, 8.0, 84.0
# Of the largest effects this share has the darkest colour, so that one head does not pale all.
DARKEST = 0.98
SHAPES: dict[str, tuple[str, float]] = {
    "induction": ("diamond", 0.62), "previous token": ("triangle-left", 0.58),
    "first token": ("circle", 0.22),
}  # fmt: skip


def head_overview(
    effects: Mapping[str, Mapping[tuple[int, int], float]],
    *,
    whole: Mapping[str, Sequence[float]] | None = None,
    marks: Mapping[str, Collection[tuple[int, int]]] | None = None,
    layers: Collection[int] = (),
    layer: int | None = None,
    unit: str = "loss increase when ablated (nats)",
    title: str | None = None,
    columns: Columns = 2,
) -> go.Figure:
    """What each head of a deep model is worth: a panel for each kind of text.

    Args:
        effects: by panel, by head ``(layer, head)``, by how much the loss rises without it; NaN of
            one that was not measured.
        whole: by panel, the same without all heads of each layer: a row above the heads.
        marks: by what heads do (``induction``, ``previous token``, ``first token``), the heads.
        layers: those that hold a replacement.
        layer: the one to look at first.
        unit: of the effects.

    Raises:
        GatedInterpError: no panel, or panels of different heads.

    Examples:
        >>> fig = head_overview(
        ...     {"text": {(0, 0): 0.1, (1, 0): -0.2}}, marks={"induction": [(1, 0)]})
        >>> fig.data[0].z.tolist()  # a row for each head, a column for each layer
        [[0.1, -0.2]]
    """
    heads = [set(values) for values in effects.values()]
    if not heads or not heads[0] or any(other != heads[0] for other in heads):
        raise GatedInterpError("overview-of-different-heads")
    across, down = (1 + max(each) for each in zip(*heads[0], strict=True))
    names, numbers = ([str(i) for i in range(n)] for n in (across, down))
    above = 0 if whole is None else 1
    numbers = ["all", *numbers] if above else numbers
    signs, taken = {}, set[tuple[int, int]]()
    for what in SHAPES:  # of several marks the first is drawn
        signs[what] = sorted(set((marks or {}).get(what, ())) - taken)
        taken |= set(signs[what])
    canvas = Canvas(columns, title, 44, 62)
    tile = min(WIDEST, canvas.width / across)
    tall = min(TALLEST, max(9.0, tile)) if down > 4 else TALLEST
    height, x, y = tall * (down + above), 0.0, TITLE
    length = max(min(height, 150.0), SHORTEST)
    beside = (tile * across + BAR) * len(effects) - BAR <= canvas.width
    for i, (name, given) in enumerate(effects.items()):
        values = np.full((down, across), np.nan)
        for (at, head), effect in given.items():
            values[head, at] = effect
        if whole is not None:
            values = np.vstack([np.array(whole[name], dtype=float)[None], values])
        box, last = Box(x, y, tile * across, height), beside or i == len(effects) - 1
        axes = canvas.panel(
            box,
            framed(ticks(names, box.width), "layer", shown=last),
            framed(ticks(numbers, height, vertical=True), "head", shown=x == 0),
        )
        there = np.abs(values[np.isfinite(values)])
        limit = (
            float(np.quantile(there, DARKEST if there.size > 50 else 1.0)) if there.size else 1.0
        )
        axis = "coloraxis" + (str(i + 1) if i else "")
        canvas.fig.add_heatmap(
            z=values,
            coloraxis=axis,
            xgap=1,
            ygap=1,
            name=text(name),
            showlegend=False,
            customdata=[
                [f"all of layer {at}" if h < 0 else head_name((at, h)) for at in range(across)]
                for h in range(-above, down)
            ],
            hovertemplate=f"%{{customdata}}: %{{z:+.3g}} nats<extra>{text(name)}</extra>",
            **axes,
        )
        for what, (symbol, size) in SHAPES.items():
            _marked(canvas, what, symbol, size * min(tile, tall), signs, axes, above, first=i == 0)
        _framed_layers(canvas, layers, layer, axes)
        canvas.note(text(name), box.left, box.top - 3, align="left")
        bar = Box(box.right + 10, box.top, 8, length)
        canvas.color_bar(axis, SIGNED, (-limit, limit), unit if length > 120 else "nats", bar)
        if beside:
            x = box.right + BAR
        else:
            y = box.top + max(height, SHORTEST + 4) + GAP + TITLE
    canvas.fig.update_layout(plot_bgcolor=EMPTY)
    return canvas.finish(BELOW, max(canvas.boxes[-1].bottom, canvas.boxes[-1].top + length))


def _marked(
    canvas: Canvas,
    what: str,
    symbol: str,
    size: float,
    marks: Mapping[str, Sequence[tuple[int, int]]],
    axes: Mapping[str, str],
    above: int,
    *,
    first: bool,
) -> None:
    """The signs of one kind of head."""
    there = marks[what]
    if not there:
        return
    faint = what == "first token"
    canvas.fig.add_scatter(
        x=[at for at, _ in there],
        y=[head + above for _, head in there],
        mode="markers",
        name=what,
        legendgroup=what,
        showlegend=first,
        hoverinfo="skip",
        marker={
            "symbol": symbol,
            "size": max(size, 2.5),
            "color": MUTED if faint else "white" if what != "induction" else PALETTE[1],
            "line": {"width": 0 if faint else 1, "color": INK},
        },
        **axes,
    )


def _framed_layers(
    canvas: Canvas, layers: Collection[int], layer: int | None, axes: Mapping[str, str]
) -> None:
    """A frame around the layers that are replaced, and one around the layer shown."""
    kinds: Sequence[tuple[Collection[int], str, float]] = (
        (layers, PALETTE[2], 2.0), ([] if layer is None else [layer], INK, 1.2),
    )  # fmt: skip
    for some, color, width in kinds:
        for at in some:
            canvas.fig.add_shape(
                type="rect", x0=at - 0.5, x1=at + 0.5, y0=0, y1=1, xref=axes["xaxis"],
                yref=f"{axes['yaxis']} domain", line={"color": color, "width": width},
            )  # fmt: skip
