"""The explorer's state as a still figure: one column per model."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import plotly.graph_objects as go

from gated_interp.explorer.bench import Reading
from gated_interp.explorer.session import Session
from gated_interp.explorer.state import ExplorerState
from gated_interp.explorer.tiles import Tiles
from gated_interp.explorer.view import Viewer
from gated_interp.plots.layout import Area, Box, framed
from gated_interp.plots.style import (
    ATTENTION,
    GATE,
    INK,
    MUTED,
    PALETTE,
    SIGNED,
    SMALL,
    TEMPLATE,
    text,
    ticks,
)

LABELS = 62.0  # px left of each column
BARS, HEADING, GAP, CAPTION = 74.0, 22.0, 26.0, 26.0
RIGHT, WRONG, OPEN = PALETTE[2], PALETTE[5], PALETTE[0]
LARGEST_TILE = 92.0
SHEETS = {"attention": "<b>attention</b>: query ↓, key →, first token at the top left",
          "gate": "<b>gates</b>"}  # fmt: skip


def snapshot(
    session: Session, viewer: Viewer, state: ExplorerState, readings: Mapping[str, Reading]
) -> go.Figure:
    """What every model does in ``state``: accuracy, writes, attention and gates."""
    return _Snapshot(session, viewer, state, readings).fig


class _Snapshot:
    def __init__(
        self,
        session: Session,
        viewer: Viewer,
        state: ExplorerState,
        readings: Mapping[str, Reading],
    ):
        self.session, self.viewer, self.state = session, viewer, state
        self.fig, self.number = go.Figure(), 0
        self.columns = viewer.columns(state, readings)
        self.counts = {n: session.benches[n].counts[state.layer] for n in readings}
        self.widths = self._widths()
        self.row = 19.0 if max(self.counts.values()) <= 10 else 15.0  # px of a head's writes
        self.tiles = {n: self._tiles(n) for n in readings}
        # Columns of text stand upright.
        upright = 58.0 if session.vocabulary.is_text else 18.0
        tall = {k: max((self._sheet(n)[1] for n, r in readings.items() if r.pattern(k) is not None),
                       default=None) for k in SHEETS}  # fmt: skip
        known = any(r.accuracy for r in readings.values())
        deepest = (max(self.counts.values()) + 2) * self.row
        tops, y = {}, HEADING
        for part, height in (
            ("accuracy", BARS + 18 if known else None),
            ("writes", deepest + upright),
            *tall.items(),
        ):
            if height is not None:
                tops[part] = y
                y += height + GAP
        self.area = Area(sum(self.widths.values()) + LABELS * (len(self.widths) - 1), y - GAP)
        left = 0.0
        for name, reading in readings.items():
            self._caption(name, reading, left)
            if known:
                self._accuracy(name, reading, Box(left, tops["accuracy"], self.widths[name], BARS))
            high = (self.counts[name] + 2) * self.row
            self._writes(name, reading, Box(left, tops["writes"], self.widths[name], high))
            for kind, top in tops.items():
                if kind in SHEETS:
                    self._patterns(name, reading, kind, Box(left, top, *self._sheet(name)))
            left += self.widths[name] + LABELS
        self.fig.update_layout(
            template=TEMPLATE,
            width=round(self.area.width + LABELS + 12),
            height=round(self.area.height + 16 + CAPTION),
            margin={"l": LABELS, "r": 12, "t": 2 + CAPTION, "b": 14},
            showlegend=False,
        )

    def _widths(self) -> dict[str, float]:
        """Px of each model's panels, without the labels at their left."""
        if len(self.counts) == 1:
            return dict.fromkeys(self.counts, 640.0)
        first, second = self.counts
        few = min(self.counts.values()) <= 4
        return {first: 270.0 if few else 390.0, second: 510.0 if few else 390.0}

    def _tiles(self, name: str) -> Tiles:
        heads, most = self.counts[name], max(1, int(self.widths[name] // 60))
        across = math.ceil(heads / math.ceil(heads / most))
        # A short example fills the corner of squares as large as those of other examples.
        size = max(len(self.state.tokens), min(self.session.longest, 11))
        return Tiles(heads, size, across)

    def _sheet(self, name: str) -> tuple[float, float]:
        """Width and height, in px, of a model's squares together."""
        tiles = self.tiles[name]
        rows, columns = tiles.shape
        cell = min(self.widths[name] / columns, LARGEST_TILE / tiles.size)
        return columns * cell, rows * cell

    def _caption(self, name: str, reading: Reading, left: float) -> None:
        off, shown = self.state.off[name], self.viewer.shown
        heads = f"without {self.session.head_names(off)}" if off else "all heads"
        after = text(shown(self.state.tokens[self.state.position]))
        words = f"<b>{name}</b>, {heads}: after {after} predicts {text(shown(reading.prediction))}"
        self.fig.add_annotation(
            text=words, xref="paper", yref="paper", x=left / self.area.width, y=1, yshift=4,
            xanchor="left", yanchor="bottom", showarrow=False, font={"size": 13},
        )  # fmt: skip

    def _accuracy(self, name: str, reading: Reading, box: Box) -> None:
        cases = [self.session.task.cases[b] for b in reading.accuracy]
        if box.width / len(cases) < 64:
            cases = [str(b) for b in reading.accuracy]
        axes = self._axes(
            box,
            ticks(cases, box.width),
            {"range": [0, 1.24], "tickvals": [0, 0.5, 1], "tickformat": ".0%"},
        )
        y, x = list(reading.accuracy.values()), list(range(len(cases)))
        self.fig.add_bar(
            x=x, y=y, text=[f"{a:.0%}" for a in y], marker={"color": "#56B4E9"}, width=0.6,
            textposition="outside", cliponaxis=False, **axes,
        )  # fmt: skip
        if self.state.off[name]:
            dash = {
                "symbol": "line-ew", "size": min(46, 0.6 * box.width / len(cases)),
                "line": {"width": 2, "color": INK},
            }  # fmt: skip
            intact = list(reading.intact_accuracy.values())
            self.fig.add_scatter(x=x, y=intact, mode="markers", marker=dash, **axes)
        word = self.session.task.case_word
        self._heading(f"<b>answered right</b>, per {word}  (— every head on)", box)

    def _writes(self, name: str, reading: Reading, box: Box) -> None:
        writes, direct, logits = self.viewer.rows(reading, self.columns)
        rows = np.vstack([writes, direct, logits])
        labels = [*self.session.benches[name].head_names(self.state.layer), "the rest", "logits"]
        columns = [text(self.viewer.shown(t)) for t in self.columns]
        x = framed(ticks(columns, box.width), "", shown=True)
        if self.session.vocabulary.is_text:
            x["tickangle"] = -90
        axes = self._axes(box, x, framed(ticks(labels, box.height, vertical=True), "", shown=True))
        limit = max(b.scale(self.state.layer).write for b in self.session.benches.values())
        said = np.where(abs(rows) < 0.05, "", np.char.mod("%.1f", rows))
        self.fig.add_heatmap(
            z=rows, text=said, colorscale=SIGNED, zmin=-limit, zmax=limit, showscale=False,
            texttemplate="%{text}" if box.width / len(columns) >= 28 else None,
            textfont={"size": SMALL}, xgap=1, ygap=1, **axes,
        )  # fmt: skip
        line = {"mode": "lines", "hoverinfo": "skip", **axes}
        edge = len(labels) - 2.5
        self.fig.add_scatter(
            x=[-0.5, len(columns) - 0.5], y=[edge, edge], line={"color": INK, "width": 1}, **line
        )
        expected, at = self.session.expected(self.state), self.columns.index(reading.prediction)
        color = OPEN if expected is None else RIGHT if expected == reading.prediction else WRONG
        bottom = len(labels) - 1
        self.fig.add_scatter(
            x=[at - 0.5, at + 0.5, at + 0.5, at - 0.5, at - 0.5],
            y=[bottom - 0.5, bottom - 0.5, bottom + 0.5, bottom + 0.5, bottom - 0.5],
            line={"width": 2.5, "color": color}, **line,
        )  # fmt: skip
        self._heading("<b>writes to the logits</b> of each head, where it is read", box)

    def _patterns(self, name: str, reading: Reading, kind: str, box: Box) -> None:
        patterns = reading.pattern(kind)
        if patterns is None:
            words = f"{kind}: {'ordinary attention has none' if kind == 'gate' else 'none'}"
            self.area.note(self.fig, words, box.left, box.top, align="left", color=MUTED)
            return
        layer, tiles = self.state.layer, self.tiles[name]
        off = frozenset(h for at, h in self.state.off[name] if at == layer)
        rows, columns = tiles.shape
        axes = self._axes(
            box,
            {"range": [-0.5, columns - 0.5], "visible": False},
            {"range": [rows - 0.5, -0.5], "visible": False},
        )
        scales = [b.scale(layer).gate for b in self.session.benches.values()]
        self.fig.add_heatmap(
            z=tiles.sheet(patterns, off), colorscale=GATE if kind == "gate" else ATTENTION,
            zmin=0, zmax=max(scales) if kind == "gate" else 1, showscale=False, **axes,
        )  # fmt: skip
        plain = {"mode": "lines", "hoverinfo": "skip", **axes}
        x, y = tiles.outlines()
        self.fig.add_scatter(x=x, y=y, line={"color": "#BBBBBB", "width": 1}, **plain)
        x, y = tiles.query_outlines(self.state.position, len(self.state.tokens), off)
        self.fig.add_scatter(x=x, y=y, line={"color": PALETTE[1], "width": 1.5}, **plain)
        label_x, label_y = tiles.labels()
        names = self.session.benches[name].head_names(layer)
        said = [*names, *("off" if h in off else "" for h in range(len(names)))]
        self.fig.add_scatter(
            x=label_x, y=label_y, text=said, mode="text", hoverinfo="skip",
            textfont={"color": MUTED, "size": SMALL}, **axes,
        )  # fmt: skip
        self._heading(SHEETS[kind], box)

    def _axes(self, box: Box, x: dict[str, Any], y: dict[str, Any]) -> dict[str, str]:
        self.number += 1
        return self.area.place(self.fig, self.number, box, x, y)

    def _heading(self, words: str, box: Box) -> None:
        self.area.note(self.fig, words, box.left, box.top - 3, align="left")
