"""One example as wires: tokens → heads → logits."""

import dataclasses
from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go
from jaxtyping import Float
from numpy.typing import ArrayLike

from gated_interp.core.errors import GatedInterpError
from gated_interp.core.written import change
from gated_interp.plots.inputs import array, between, labels
from gated_interp.plots.layout import Box, Canvas, Place
from gated_interp.plots.style import FONT, INK, MUTED, SMALL, Columns, Number, text_width

# What the gate stops is a ghost; what it lets through, and what that writes to the predicted
# token, is what one should see first.
ATTENDED, PASSED = "#E4E0E8", "#5B2A78"
RAISES, LOWERS = "#1F6FB0", "#CF6F14"
PALER = {RAISES: "#BCD6EA", LOWERS: "#F3D3AE"}
# Wires thinner than this share of the thickest are left out.
THINNEST = 0.03
MOST_HEADS, MOST_OUTPUTS = 16, 12
LABEL_PX, NODE_GAP = 14.0, 4.0


@dataclasses.dataclass(frozen=True)
class _Wire:
    """A ribbon between two nodes: where it starts and ends (px), how thick it is."""

    start: tuple[float, float]
    end: tuple[float, float]
    thickness: Number

    def outline(self, share: Number = 1.0) -> tuple[list[float | None], list[float | None]]:
        """Its outline as an S-curve, ``share`` of its thickness, closed and followed by a gap."""
        t = np.linspace(0, 1, 20)
        x = self.start[0] + (self.end[0] - self.start[0]) * t
        middle = self.start[1] + (self.end[1] - self.start[1]) * (3 * t**2 - 2 * t**3)
        half = self.thickness * share / 2
        around = np.concatenate([middle - half, (middle + half)[::-1]])
        return [*np.round([*x, *x[::-1]], 1), None], [*np.round(around, 1), None]


def wiring_diagram(
    pattern: ArrayLike,
    effects: ArrayLike,
    tokens: Sequence[str],
    heads: Sequence[str],
    output_tokens: Sequence[str],
    *,
    gate: ArrayLike | None = None,
    predicted: int | None = None,
    title: str | None = None,
    columns: Columns = 2,
) -> go.Figure:
    """What one position of one example reads, through which heads, and what they write.

    A wire from a token to a head is as thick as the attention; its dark core is what the gate
    lets through. A wire from a head to a token is as thick as the head's effect on its logit.

    Args:
        pattern: ``[head, key_pos]``, attention from the last of ``tokens``; 0 to 1.
        effects: ``[head, output_token]``, logits that each head writes there.
        tokens: one per position, up to and including the one that reads (shown in bold).
        heads: one label per head. Beyond 16, those that write least are left out, and counted.
        output_tokens: one per column of ``effects``. Beyond 12, likewise.
        gate: ``[head, key_pos]``, 0 (shut) to 1 (open).
        predicted: index of the output token to show in bold.

    Raises:
        GatedInterpError: shapes or labels that do not fit, attention outside 0 to 1, a negative
            gate, or a predicted token that is not there.
    """
    sizes: dict[str, int] = {}
    attention = array("pattern", pattern, "head key_pos", sizes)
    between("pattern", attention, 0, 1)
    written = array("effects", effects, "head output_token", sizes)
    opened = np.ones_like(attention) if gate is None else array("gate", gate, "head key_pos", sizes)
    between("gate", opened, 0, np.inf)
    token_names = labels("tokens", tokens, sizes["key_pos"], "positions")
    head_names = labels("heads", heads, sizes["head"], "heads")
    output_names = labels("output_tokens", output_tokens, sizes["output_token"], "output tokens")
    if predicted is not None and not 0 <= predicted < len(output_names):
        raise GatedInterpError(
            "prediction-outside-outputs", predicted=predicted, last=len(output_names) - 1
        )

    kept_heads = _largest(np.abs(written).max(1), MOST_HEADS)
    kept_outputs = _largest(np.abs(written).max(0), MOST_OUTPUTS, always=predicted)
    attention, opened = attention[kept_heads], opened[kept_heads]
    written = written[np.ix_(kept_heads, kept_outputs)]

    per_attention = float(np.clip(170 / len(kept_heads), 12, 26))
    per_logit = 150 / max(np.abs(written).sum(), 1e-9)
    sides = [
        attention.sum(0) * per_attention,
        np.maximum(attention.sum(1) * per_attention, np.abs(written).sum(1) * per_logit),
        np.abs(written).sum(0) * per_logit,
    ]
    stacks = [np.maximum(s, LABEL_PX) + NODE_GAP for s in sides]
    head_room, tall = 22.0, max(float(s.sum()) for s in stacks)
    middles = [head_room + (tall - s.sum()) / 2 + np.cumsum(s) - s / 2 for s in stacks]
    canvas = Canvas(columns, title, 6, 6)
    width, fig = canvas.width, canvas.fig
    left = max(text_width(f"{len(token_names)} {t}", FONT) for t in token_names) + 12
    right = max(text_width(t, FONT) for t in output_names) + 46
    xs = [left, (left + width - right) / 2, width - right]

    # A head's name stands in its node.
    node = max(text_width(head_names[h], SMALL, "bold") for h in kept_heads) + 8
    whole = Box(0, 0, width, head_room + tall + 16)
    x_axis, y_axis = {"range": [0, width]}, {"range": [whole.height, 0]}
    axes = canvas.panel(whole, {"visible": False, **x_axis}, {"visible": False, **y_axis})
    reads = _wires(attention.T * per_attention, xs[0], xs[1] - node / 2, middles[0], middles[1])
    facts = {
        (k, h): f"{head_names[kept_heads[h]]} on {token_names[k]}: "
        f"attention {attention[h, k]:.3f}" + ("" if gate is None else f", gate {opened[h, k]:.3f}")
        for h, k in np.ndindex(attention.shape)
    }
    writes = _wires(np.abs(written) * per_logit, xs[1] + node / 2, xs[2], *middles[1:])
    told = {
        (h, v): f"{head_names[kept_heads[h]]} to {output_names[kept_outputs[v]]}: "
        f"{written[h, v]:+.3f} logits"
        for h, v in np.ndindex(written.shape)
    }
    if gate is not None:
        _ribbons(fig, axes, {k: (w, 1.0) for k, w in reads.items()}, ATTENDED, "attention", facts)
    cores = {(k, h): (w, min(1.0, opened[h, k])) for (k, h), w in reads.items()}
    core_name = "attention" if gate is None else "let through by the gate"
    _ribbons(fig, axes, cores, PASSED, core_name, facts)
    for sign, color, name in ((1, RAISES, "raises the logit"), (-1, LOWERS, "lowers the logit")):
        mine = {k: (w, 1.0) for k, w in writes.items() if np.sign(written[k]) == sign}
        main = {k: w for k, w in mine.items() if predicted in (None, kept_outputs[k[1]])}
        others = {k: w for k, w in mine.items() if k not in main}
        if predicted is not None:
            others_name = name.replace("the", "another")
            name = f"{name} of {output_names[predicted]}"
            _ribbons(fig, axes, others, PALER[color], others_name, told)
        _ribbons(fig, axes, main, color, name, told)

    _nodes(fig, axes, xs, middles, sides, node)
    for k, name in enumerate(token_names):
        words = f'<span style="color:{MUTED}">{k}</span> {name}'
        words = f"<b>{words}</b>" if k == len(token_names) - 1 else words
        canvas.note(words, xs[0] - 10, middles[0][k], align="right", valign="middle")
    for h, kept in enumerate(kept_heads):
        words = f"<b>{head_names[kept]}</b>"
        canvas.note(words, xs[1], middles[1][h], valign="middle", size=SMALL, color="white")
    total = written.sum(0)
    for v, kept in enumerate(kept_outputs):
        words = f"{output_names[kept]} {change(total[v], 1)}"
        words = f"<b>{words}</b>" if kept == predicted else words
        canvas.note(words, xs[2] + 10, middles[2][v], align="left", valign="middle")
    headings = ("position, token", "head", "token, logits written")
    for x, words, align in zip(
        (2.0, xs[1], width - 2), headings, ("left", "center", "right"), strict=True
    ):
        canvas.note(words, x, 14, align=align, size=10, color=MUTED)
    hidden_heads = len(head_names) - len(kept_heads)
    hidden_outputs = len(output_names) - len(kept_outputs)
    missing = [
        f"{n} {what}{'s' * (n > 1)}"
        for n, what in ((hidden_heads, "head"), (hidden_outputs, "output token"))
        if n
    ]
    if missing:
        words = f"not drawn, as they matter least: {' and '.join(missing)}"
        canvas.note(words, xs[1], whole.height, size=SMALL, color=MUTED, valign="bottom")
    return canvas.finish(4)


def _largest(sizes: np.ndarray, most: int, always: int | None = None) -> list[int]:
    """Indices of the ``most`` largest, in their own order; ``always`` is among them."""
    order = np.argsort(-sizes, kind="stable").tolist()
    if always is not None:
        order.remove(always)
        order.insert(0, always)
    return sorted(order[:most])


def _wires(
    thickness: Float[np.ndarray, "source target"],
    x0: Number,
    x1: Number,
    sources: Float[np.ndarray, " source"],
    targets: Float[np.ndarray, " target"],
) -> dict[tuple[int, int], _Wire]:
    """Ribbons stacked at both ends in the order of the nodes, so that few cross."""
    out = np.cumsum(thickness, 1) - thickness / 2 - thickness.sum(1, keepdims=True) / 2
    into = np.cumsum(thickness, 0) - thickness / 2 - thickness.sum(0, keepdims=True) / 2
    thinnest = THINNEST * float(thickness.max(initial=0.0))
    return {
        (i, j): _Wire(
            (x0, float(sources[i] + out[i, j])),
            (x1, float(targets[j] + into[i, j])),
            float(thickness[i, j]),
        )
        for i, j in np.ndindex(thickness.shape)
        if thickness[i, j] > thinnest
    }


def _ribbons(
    fig: go.Figure,
    axes: Place,
    wires: dict[tuple[int, int], tuple[_Wire, float]],
    color: str,
    name: str,
    facts: dict[tuple[int, int], str],
) -> None:
    """One filled trace for all wires of one meaning, and points to hover over in their middle."""
    x: list[float | None] = []
    y: list[float | None] = []
    for wire, share in wires.values():
        if share > 0:
            xs, ys = wire.outline(share)
            x, y = x + xs, y + ys
    around = {"mode": "lines", "fill": "toself", "fillcolor": color, "opacity": 0.85}
    around |= {"line": {"width": 0.3, "color": color}, "hoverinfo": "skip", "name": name}
    fig.add_scatter(x=x or [None], y=y or [None], showlegend=bool(x), **around, **axes)
    fig.add_scatter(
        x=[(w.start[0] + w.end[0]) / 2 for w, _ in wires.values()],
        y=[(w.start[1] + w.end[1]) / 2 for w, _ in wires.values()],
        mode="markers",
        marker={"size": 10, "opacity": 0},
        text=[facts[key] for key in wires],
        hovertemplate="%{text}<extra></extra>",
        name=name,
        showlegend=False,
        **axes,
    )


def _nodes(
    fig: go.Figure,
    axes: Place,
    xs: list[float],
    middles: list[np.ndarray],
    sides: list[np.ndarray],
    node: Number,
) -> None:
    """A bar per node, as tall as the wires it holds; of a head, as its name at least."""
    beside = (-3.0, 0.0), (-node / 2, node / 2), (0.0, 3.0)
    for x, middle, side, (before, after) in zip(xs, middles, sides, beside, strict=True):
        for m, s in zip(middle.tolist(), side.tolist(), strict=True):
            half = max(s, LABEL_PX if x == xs[1] else 2.0) / 2
            at = {"x0": x + before, "x1": x + after, "y0": m - half, "y1": m + half}
            refs = {"xref": axes["xaxis"], "yref": axes["yaxis"], "line": {"width": 0}}
            fig.add_shape(type="rect", fillcolor=INK, **at, **refs)
