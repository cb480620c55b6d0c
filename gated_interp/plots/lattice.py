"""Every subset of heads and its value, as a lattice."""

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go
from numpy.typing import ArrayLike

from gated_interp.core.errors import GatedInterpError
from gated_interp.plots.inputs import array, labels
from gated_interp.plots.layout import Area, Box, fitting
from gated_interp.plots.style import (
    FRACTION,
    INK,
    MUTED,
    SIGNED,
    SMALL,
    TINY,
    Columns,
    finish,
    symmetric_limit,
    text_width,
    width_of,
)

MOST_HEADS = 8


def subset_lattice(
    values: ArrayLike,
    heads: Sequence[str],
    *,
    unit: str = "lead of C over the next token (logits)",
    title: str | None = None,
    columns: Columns = 2,
) -> go.Figure:
    """All subsets of heads: a row per size, coloured by value, joined where one head differs.

    Args:
        values: ``[subset]``, ``2 ** n_heads`` of them; bit ``h`` of the index says whether head
            ``h`` stays.
        heads: one label per head.
        unit: of the values. Values of both signs get the zero-centred scale.
        title: above the figure.
        columns: paper columns it spans.

    Raises:
        GatedInterpError: more than 8 heads, another number of values, or labels that do not fit.

    Examples:
        >>> fig = subset_lattice([0.0, 1.0, 2.0, 5.0], ["L0H0", "L0H1"])
        >>> fig.data[1].marker.color.tolist()
        [0.0, 1.0, 2.0, 5.0]
    """
    given = array("values", values, "subset")
    n = len(heads)
    if not 1 <= n <= MOST_HEADS:
        raise GatedInterpError(f"{n} heads have too many or no subsets to draw; take 1 to 8 heads.")
    if given.shape != (2**n,):
        raise GatedInterpError(
            f"values has {given.size} entries; {n} heads have {2**n} subsets, one value each."
        )
    names = labels("heads", heads, n, "heads")
    subsets = np.arange(2**n)
    members = [[h for h in range(n) if s >> h & 1] for s in subsets]
    size = np.array([len(m) for m in members])
    order = [
        sorted(np.flatnonzero(size == k).tolist(), key=lambda s: members[s]) for k in range(n + 1)
    ]
    x = np.zeros(2**n)
    for row in order:
        x[row] = np.arange(len(row)) - (len(row) - 1) / 2

    left, bar = 34.0, 60.0
    wide = width_of(columns) - left - bar
    most = max(map(len, order))
    step = wide / most
    tall = 52.0 * n + 48
    area = Area(wide, tall)
    # Where labels fit they stand below their node: in full, or as the heads' numbers.
    full = ["+".join(names[h] for h in m) or "none" for m in members]
    brief = ["+".join(_number(names[h]) for h in m) or "none" for m in members]

    def fits(row: list[int], said: list[str], size: float) -> bool:
        """Whether the labels of a row stand apart; a lone one has the row to itself."""
        return max(text_width(said[s], size) for s in row) + 4 < (wide if len(row) == 1 else step)

    in_full = all(fits(row, full, SMALL) for row in order)
    shown = full if in_full else brief
    labelled = [row for row in order if fits(row, shown, SMALL if in_full else TINY)]

    fig = go.Figure()
    axes = area.place(
        fig,
        1,
        Box(0, 0, wide, tall),
        {"visible": False, "range": [-most / 2, most / 2]},
        {
            "title": {"text": fitting("heads that stay (number)", tall, 10.5)},
            "range": [-0.6, n + 0.35],
            "tickvals": list(range(n + 1)),
            "showgrid": False,
            "showline": False,
        },
    )
    edge_x: list[float | None] = []
    edge_y: list[float | None] = []
    for s in subsets:
        for h in range(n):
            if not s >> h & 1:
                other = s | 1 << h
                edge_x += [x[s], x[other], None]
                edge_y += [size[s], size[other], None]
    fig.add_scatter(
        x=edge_x, y=edge_y, mode="lines", line={"color": "#CFCFCF", "width": 0.7},
        hoverinfo="skip", name="one head more", showlegend=False, **axes,
    )  # fmt: skip
    signed = bool((given < 0).any())
    limit = symmetric_limit(given)
    limits = (-limit, limit) if signed else (min(0.0, float(given.min())), max(limit, 0.0))
    fig.add_scatter(
        x=x,
        y=size,
        mode="markers",
        marker={
            "color": given,
            "coloraxis": "coloraxis",
            "size": float(np.clip(0.5 * step, 6, 26)),
            "line": {"color": INK, "width": 0.7},
        },
        customdata=[[w, v] for w, v in zip(full, given.tolist(), strict=True)],
        hovertemplate="%{customdata[0]}: %{customdata[1]:.3f}<extra></extra>",
        name="subset",
        showlegend=False,
        **axes,
    )
    below = float(np.clip(0.25 * step, 3, 13)) + 2
    for s in [s for row in labelled for s in row]:
        fig.add_annotation(
            text=shown[s],
            x=x[s],
            y=size[s],
            xref=axes["xaxis"],
            yref=axes["yaxis"],
            yshift=-below,
            yanchor="top",
            showarrow=False,
            font={"size": SMALL if in_full else TINY, "color": INK},
            bgcolor="rgba(255,255,255,0.8)",
            borderpad=0,
        )
        if step >= 60:
            fig.add_annotation(
                text=f"{given[s]:.2f}".replace("-", "−"),
                x=x[s],
                y=size[s],
                xref=axes["xaxis"],
                yref=axes["yaxis"],
                xshift=below + 2,
                xanchor="left",
                showarrow=False,
                font={"size": SMALL, "color": MUTED},
                bgcolor="rgba(255,255,255,0.8)",
                borderpad=0,
            )
    explained = bool(labelled) and not in_full
    if explained:
        words = f"below each: the numbers of the heads that stay ({brief[3]} is {full[3]})"
        area.note(fig, words, 0, tall + 14, size=SMALL, align="left", color=MUTED)
    where = Box(wide + 8, 4, 8, min(tall - 8, 150.0))
    fig.update_layout(coloraxis=area.color_bar(SIGNED if signed else FRACTION, limits, unit, where))
    return finish(
        fig,
        columns=columns,
        height=tall,
        title=title,
        left=left,
        right=bar,
        bottom=22 if explained else 8,
    )


def _number(name: str) -> str:
    """The head's own number in its label: 3 for L0H3."""
    tail = name.rsplit("H", 1)[-1]
    return tail if tail.isdigit() else name
