"""Heat maps: gates, circuits and attention of each head; loadings of each representation."""

from collections.abc import Mapping, Sequence

import numpy as np
import plotly.graph_objects as go
from numpy.typing import ArrayLike

from gated_interp.core.errors import GatedInterpError
from gated_interp.plots.inputs import array, between, labels, patterns, square
from gated_interp.plots.layout import Box, Canvas, framed, label_space, ticks
from gated_interp.plots.panels import Maps, heat_panels
from gated_interp.plots.style import (
    ATTENTION,
    GATE,
    SIGNED,
    Columns,
    symmetric_limit,
    text,
    text_width,
)  # fmt: skip

# Px: a panel of one head's attention to a text.
LARGE = 250.0


def gate_maps(
    gates: ArrayLike,
    token_names: Sequence[str],
    heads: Sequence[str],
    *,
    marks: Mapping[int, str] | None = None,
    title: str | None = None,
    columns: Columns = 2,
) -> go.Figure:
    """How far each head's gate opens for every (query token, key token), one panel per head.

    Args:
        gates: ``[head, query_token, key_token]``, 0 (shut) to 1 (open; more for ReLU gates).
        token_names: one per token of the vocabulary.
        heads: one label per head, as in ``"L0H0"``.
        marks: what stands in colour beside the names of some heads, by index.

    Raises:
        GatedInterpError: another shape, a negative gate, or a label too few or too many.

    Examples:
        >>> fig = gate_maps([[[0.0, 1.0], [0.5, 0.0]]], ["A", "B1"], ["L0H0"])
        >>> fig.data[0].z.tolist()
        [[0.0, 1.0], [0.5, 0.0]]
    """
    sizes: dict[str, int] = {}
    values = square("gates", array("gates", gates, "head query_token key_token", sizes))
    heads = labels("heads", heads, sizes["head"], "heads")
    tokens = labels("token_names", token_names, sizes["key_token"], "tokens")
    return heat_panels([_gate(values, tokens)], heads, columns=columns, title=title, marks=marks)


def circuit_maps(
    ov: ArrayLike,
    qk: ArrayLike,
    token_names: Sequence[str],
    heads: Sequence[str],
    *,
    gates: ArrayLike | None = None,
    marks: Mapping[int, str] | None = None,
    title: str | None = None,
    columns: Columns = 2,
) -> go.Figure:
    """Each head's full OV and QK circuit, and its gate circuit where it has one.

    Args:
        ov: ``[head, source_token, output_token]``, what attending to a token writes (logits).
        qk: ``[head, query_token, key_token]``, attention scores before the softmax.
        token_names: one per token of the vocabulary.
        heads: one label per head.
        gates: ``[head, query_token, key_token]``, 0 to 1.
        marks: what stands in colour beside the names of some heads, by index.

    Raises:
        GatedInterpError: another shape, a negative gate, or a label too few or too many.
    """
    sizes: dict[str, int] = {}
    write = array("ov", ov, "head source_token output_token", sizes)
    sizes |= {"query_token": write.shape[1], "key_token": write.shape[1]}
    score = array("qk", qk, "head query_token key_token", sizes)
    square("ov", write)
    heads = labels("heads", heads, sizes["head"], "heads")
    tokens = labels("token_names", token_names, sizes["source_token"], "tokens")
    quantities = [
        Maps(write, "OV", "logit written", SIGNED, _mirrored(write),
             "output token", "source token", tokens, tokens),
        Maps(score, "QK", "QK score", SIGNED, _mirrored(score),
             "key token", "query token", tokens, tokens),
    ]  # fmt: skip
    if gates is not None:
        quantities.append(_gate(array("gates", gates, "head query_token key_token", sizes), tokens))
    return heat_panels(quantities, heads, columns=columns, title=title, marks=marks)


def attention_patterns(
    pattern: ArrayLike,
    tokens: Sequence[str],
    heads: Sequence[str],
    *,
    gated: ArrayLike | None = None,
    marks: Mapping[int, str] | None = None,
    title: str | None = None,
    columns: Columns = 2,
) -> go.Figure:
    """Attention of one example, and what of it the gates let through.

    Args:
        pattern: ``[head, query_pos, key_pos]``, rows sum to 1.
        tokens: one per position, from the first to the last.
        heads: one label per head.
        gated: ``[head, query_pos, key_pos]``, gate times pattern.
        marks: what stands in colour beside the names of some heads, by index.

    Raises:
        GatedInterpError: another shape, attention outside 0 to 1, or labels that do not fit.
    """
    shown, top = patterns(pattern, gated)
    heads = labels("heads", heads, shown["attention"].shape[0], "heads")
    tokens = labels("tokens", tokens, shown["attention"].shape[2], "positions")
    axes = "key position", "query position", tokens, tokens
    units = {"attention": "attention", "gated": "gated attention"}
    quantities = [
        Maps(v, name, units[name], ATTENTION, (0.0, top), *axes) for name, v in shown.items()
    ]
    return heat_panels(quantities, heads, columns=columns, title=title, marks=marks)


def head_attention(
    panels: Mapping[str, ArrayLike], tokens: Sequence[str], *, title: str | None = None
) -> go.Figure:
    """Attention of one head, large enough for the words of a text.

    Args:
        panels: by name, such as ``attention``, ``[query_pos, key_pos]``; on one scale from 0.
        tokens: one per position.
        title: of the figure.

    Raises:
        GatedInterpError: another shape, or labels that do not fit.
    """
    sizes: dict[str, int] = {}
    values = array("panels", np.stack([*panels.values()]), "panel query_pos key_pos", sizes)
    square("panels", values)
    words = labels("tokens", tokens, sizes["key_pos"], "positions")
    maps = Maps(values, "", "attention", ATTENTION, (0.0, max(1.0, float(values.max()))),
                "key position", "query position", words, words)  # fmt: skip
    return heat_panels([maps], [*panels], columns=2, title=title, largest=LARGE)


def loading_matrix(
    loadings: Mapping[str, ArrayLike],
    representations: Sequence[str],
    heads: Mapping[str, Sequence[str]],
    *,
    unit: str = "loading (logits)",
    title: str | None = None,
    columns: Columns = 2,
) -> go.Figure:
    """How much each head carries of each representation, on one zero-centred scale.

    Args:
        loadings: by panel name (``{"before": …, "after": …}``), ``[representation, head]``.
        representations: one label per row.
        heads: by panel name, one label per head.
        unit: of the loadings.

    Raises:
        GatedInterpError: no panel, another shape, or labels that do not fit.
    """
    if not loadings or set(loadings) != set(heads):
        raise GatedInterpError("panels-do-not-match", loadings=[*loadings], heads=[*heads])
    sizes: dict[str, int] = {}
    values: dict[str, np.ndarray] = {}
    for name, given in loadings.items():
        sizes.pop("head", None)
        values[name] = array(f"loadings {name!r}", given, "representation head", sizes)
    rows = labels("representations", representations, sizes["representation"], "representations")
    names = {n: labels(f"heads {n!r}", heads[n], v.shape[1], "heads") for n, v in values.items()}
    limit = symmetric_limit(*values.values())

    canvas = Canvas(columns, title, max(map(text_width, rows)) + 30, 0)
    room, gap = canvas.width - 62.0, 14.0
    total = sum(v.shape[1] for v in values.values())
    stacked = (room - gap * (len(values) - 1)) / total < 14 and len(values) > 1
    most = max(v.shape[1] for v in values.values()) if stacked else total
    cell = min(44.0, (room - (0 if stacked else gap * (len(values) - 1))) / most)
    tall = len(rows) * min(max(cell, 15.0), 26.0)
    x, y, below = 0.0, 17.0, 0.0
    for name, panel in values.items():
        box = Box(x, y, cell * panel.shape[1], tall)
        down = framed(ticks(rows, tall, vertical=True), "representation", shown=stacked or x == 0)
        axes = canvas.panel(box, framed(ticks(names[name], box.width), "head"), down)
        canvas.fig.add_heatmap(
            z=panel,
            coloraxis="coloraxis",
            name=name,
            texttemplate="%{z:.2f}" if cell >= 26 else None,
            textfont={"size": 9.5 if cell >= 32 else 8.5},
            hovertemplate=f"%{{y}}, %{{x}}: %{{z:.3f}}<extra>{text(name)}</extra>",
            **axes,
        )
        canvas.note(text(name), box.left, box.top - 2, align="left")
        space = label_space(names[name], box.width)
        below = max(below, space)
        x, y = (x, y + tall + space + 20) if stacked else (box.right + gap, y)
    reach = max(box.right for box in canvas.boxes)
    length = min(max(tall, 70.0), 150.0)
    where = Box(reach + 10, min(17.0, canvas.boxes[-1].bottom - length), 8, length)
    canvas.color_bar("coloraxis", SIGNED, (-limit, limit), unit, where)
    return canvas.finish(below)


def _mirrored(values: np.ndarray) -> tuple[float, float]:
    limit = symmetric_limit(values)
    return -limit, limit


def _gate(values: np.ndarray, tokens: list[str]) -> Maps:
    between("gates", values, 0, np.inf)
    top = max(1.0, float(values.max()))
    unit = "gate (0 shut, 1 open)"
    return Maps(values, "gate", unit, GATE, (0.0, top), "key token", "query token", tokens, tokens)
