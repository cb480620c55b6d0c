"""The explorer's figure: one column per model, four rows, updated in place."""

import dataclasses
import math
from typing import Any

import numpy as np
import plotly.graph_objects as go

from gated_interp.explorer.bench import Reading
from gated_interp.explorer.session import ExplorerState, Session
from gated_interp.explorer.tiles import Tiles
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
    Scale,
    ticks,
)

LABELS = 62.0  # px left of each column
BARS, HEADING, GAP = 74.0, 22.0, 26.0
RIGHT, WRONG, OPEN = PALETTE[2], PALETTE[5], PALETTE[0]
LARGEST_TILE = 92.0


def column_widths(session: Session) -> dict[str, float]:
    """Px of each model's panels, without the labels at their left."""
    if len(session.benches) == 1:
        return dict.fromkeys(session.benches, 640.0)
    few = min(b.n_heads for b in session.benches.values()) <= 4
    first, second = session.benches
    return {first: 270.0 if few else 390.0, second: 510.0 if few else 390.0}


@dataclasses.dataclass(frozen=True)
class Ramp:
    """What the colours of one kind of panel mean."""

    name: str
    scale: Scale
    low: float
    high: float


def color_ramps(session: Session) -> dict[str, Ramp]:
    """The ramp of each colour axis, one for all models.

    They are drawn once, outside the figure: plotly would draw its colour bars at every update.
    """
    benches = session.benches.values()
    limit = max(b.write_limit for b in benches)
    ramps = {
        "coloraxis": Ramp("logits", SIGNED, -limit, limit),
        "coloraxis2": Ramp("attention", ATTENTION, 0.0, 1.0),
    }
    if any(b.gated for b in benches):
        ramps["coloraxis3"] = Ramp("gate", GATE, 0.0, max(b.gate_limit for b in benches))
    return ramps


class ExplorerFigure:
    """A ``FigureWidget`` of a session's readings.

    Attributes:
        widget: to show.
    """

    def __init__(self, session: Session, state: ExplorerState, readings: dict[str, Reading]):
        self.session = session
        self.widths = column_widths(session)
        self.tiles = {
            name: Tiles(b.n_heads, session.longest, _across(b.n_heads, self.widths[name]))
            for name, b in session.benches.items()
        }
        fig = go.Figure()
        # The trace indices of each model, by what they show.
        self._traces: dict[tuple[str, str], int] = {}
        self._shown: dict[tuple[int, str], Any] = {}
        most = max(b.n_heads for b in session.benches.values())
        self.row = 19.0 if most <= 10 else 15.0  # px of a head's writes
        self._build(fig)
        self.widget = fig
        self.update(state, readings)
        self.widget = go.FigureWidget(fig)
        # plotly updates a widget by messages only, and shows whoever comes later (a second view,
        # a page loaded again) the figure as it was made. The list now holds the live traces.
        self.widget._widget_data[:] = self.widget._data
        self.widget._config = {**self.widget._config, "displayModeBar": False}

    def update(self, state: ExplorerState, readings: dict[str, Reading]) -> None:
        """Show ``readings`` of ``state``: one message to the browser, with what changed only."""
        with self.widget.batch_update():
            for name, reading in readings.items():
                self._update_model(name, state, reading)

    def picture(self, captions: dict[str, str]) -> go.Figure:
        """The figure as it stands, with a caption above each model's column."""
        fig = go.Figure(self.widget)
        room, left = 26, 0.0
        total = sum(self.widths.values()) + LABELS * (len(self.widths) - 1)
        for name, caption in captions.items():
            fig.add_annotation(
                text=caption,
                xref="paper",
                yref="paper",
                x=left / total,
                y=1,
                yshift=4,
                xanchor="left",
                yanchor="bottom",
                showarrow=False,
                font={"size": 13},
            )
            left += self.widths[name] + LABELS
        height, top = fig.layout.height, fig.layout.margin.t
        return fig.update_layout(height=height + room, margin={"t": top + room})

    def _update_model(self, name: str, state: ExplorerState, reading: Reading) -> None:
        tiles, bench, off = self.tiles[name], self.session.benches[name], state.off[name]
        trigrams = list(reading.accuracy)
        accuracy = [reading.accuracy[b] for b in trigrams]
        self._set(name, "accuracy", y=accuracy, text=[f"{a:.0%}" for a in accuracy])
        intact = [reading.intact_accuracy[b] for b in trigrams]
        self._set(name, "intact", y=[a if off else None for a in intact])

        rows = np.vstack([reading.writes, reading.direct, reading.logits])
        # Without its zeros the table says at a glance who writes.
        self._set(name, "writes", z=rows, text=np.where(abs(rows) < 0.05, "", _rounded(rows)))
        expected = self.session.expected(state)
        wrong = expected is not None and expected != reading.prediction
        x = reading.prediction
        last = len(rows) - 1
        self._set(
            name,
            "predicted",
            x=[x - 0.5, x + 0.5, x + 0.5, x - 0.5, x - 0.5],
            y=[last - 0.5, last - 0.5, last + 0.5, last + 0.5, last - 0.5],
            line_color=OPEN if expected is None else WRONG if wrong else RIGHT,
        )
        names = [self.session.task.token_names[t] for t in state.tokens]
        x_query, y_query = tiles.query_outlines(state.position, len(names), off)
        for quantity, patterns in (("attention", reading.attention), ("gate", reading.gates)):
            if patterns is None:
                continue
            self._set(
                name,
                quantity,
                z=tiles.sheet(patterns, off),
                text=tiles.words(bench.head_names, names),
            )
            self._set(name, f"{quantity} query", x=x_query, y=y_query)
            # A space where nothing is said: plotly takes empty texts away, and loses count.
            said = ["off" if h in off else " " for h in range(bench.n_heads)]
            self._set(name, f"{quantity} labels", text=[*bench.head_names, *said])

    def _set(self, name: str, part: str, **properties: Any) -> None:
        """Assign what differs from what is shown."""
        index = self._traces[name, part]
        for key, value in properties.items():
            if (index, key) not in self._shown or not _same(self._shown[index, key], value):
                self.widget.data[index][key] = value
                self._shown[index, key] = value

    def _build(self, fig: go.Figure) -> None:
        session = self.session
        deepest = max(b.n_heads for b in session.benches.values()) + 2
        some_gates = any(b.gated for b in session.benches.values())
        sheet = {n: t.shape[0] / t.shape[1] * self._sheet_width(n) for n, t in self.tiles.items()}
        tall = max(sheet.values())
        gate_tall = max((sheet[n] for n, b in session.benches.items() if b.gated), default=0.0)
        tops, y = {}, HEADING
        for part, height in (
            ("accuracy", BARS + 18),
            ("writes", deepest * self.row + 18),
            ("attention", tall),
            ("gate", gate_tall),
        ):
            tops[part] = y
            y += height + GAP
        area = Area(sum(self.widths.values()) + LABELS * (len(self.widths) - 1), y - GAP)
        left, number = 0.0, 1
        for name, bench in session.benches.items():
            width = self.widths[name]
            self._accuracy(fig, name, number, area, Box(left, tops["accuracy"], width, BARS))
            high = (bench.n_heads + 2) * self.row
            self._writes(fig, name, number + 1, area, Box(left, tops["writes"], width, high))
            wide = self._sheet_width(name)
            for step, part in enumerate(("attention", "gate")):
                box = Box(left, tops[part], wide, sheet[name])
                if part == "gate" and not bench.gated:
                    if some_gates:
                        area.note(
                            fig,
                            "gates: ordinary attention has none",
                            left,
                            tops[part],
                            align="left",
                            color=MUTED,
                        )
                    continue
                self._patterns(fig, name, part, number + 2 + step, area, box)
            left, number = left + width + LABELS, number + 4
        fig.update_layout(
            template=TEMPLATE,
            **{
                axis: {"colorscale": ramp.scale, "cmin": ramp.low, "cmax": ramp.high}
                | {"showscale": False}
                for axis, ramp in color_ramps(session).items()
            },
            width=round(area.width + LABELS + 12),
            height=round(area.height + 16),
            margin={"l": LABELS, "r": 12, "t": 2, "b": 14},
            showlegend=False,
            dragmode=False,
            transition={"duration": 0},
        )

    def _accuracy(self, fig: go.Figure, name: str, number: int, area: Area, box: Box) -> None:
        task = self.session.task
        names = [f"A…B{b} → C{b}" for b in task.trigrams]
        if box.width / len(names) < 64:
            names = [f"{b}" for b in task.trigrams]
        axes = area.place(
            fig,
            number,
            box,
            {**ticks(names, box.width), "fixedrange": True},
            {"range": [0, 1.24], "tickvals": [0, 0.5, 1], "tickformat": ".0%", "fixedrange": True},
        )
        x = list(range(len(names)))
        self._add(
            fig,
            (name, "accuracy"),
            go.Bar(
                x=x,
                marker={"color": "#56B4E9"},
                textposition="outside",
                cliponaxis=False,
                width=0.6,
                hovertemplate="%{x}: %{y:.1%} right<extra></extra>",
                **axes,
            ),
        )
        self._add(
            fig,
            (name, "intact"),
            go.Scatter(
                x=x,
                mode="markers",
                marker={
                    "symbol": "line-ew",
                    "size": min(46, 0.6 * box.width / len(names)),
                    "line": {"width": 2, "color": INK},
                },
                hovertemplate="%{x}: %{y:.1%} with every head on<extra></extra>",
                **axes,
            ),
        )
        heading = "<b>answered right</b>, per trigram  (— every head on)"
        area.note(fig, heading, box.left, box.top - 3, align="left")

    def _writes(self, fig: go.Figure, name: str, number: int, area: Area, box: Box) -> None:
        task, bench = self.session.task, self.session.benches[name]
        rows = [*bench.head_names, "the token", "logits"]
        tokens = task.token_names
        cell = box.width / len(tokens)
        axes = area.place(
            fig,
            number,
            box,
            {**framed(ticks(tokens, box.width), "", shown=True), "fixedrange": True},
            {
                **framed(ticks(rows, box.height, vertical=True), "", shown=True),
                "fixedrange": True,
            },
        )
        self._add(
            fig,
            (name, "writes"),
            go.Heatmap(
                coloraxis="coloraxis",
                texttemplate="%{text}" if cell >= 28 else None,
                textfont={"size": SMALL},
                ygap=1,
                xgap=1,
                hovertemplate="%{y} → %{x}: %{z:.2f}<extra></extra>",
                **axes,
            ),
        )
        line = bench.n_heads + 0.5
        self._add(
            fig,
            (name, "sum line"),
            go.Scatter(
                x=[-0.5, len(tokens) - 0.5],
                y=[line, line],
                mode="lines",
                line={"color": INK, "width": 1},
                hoverinfo="skip",
                **axes,
            ),
        )
        self._add(
            fig,
            (name, "predicted"),
            go.Scatter(mode="lines", line={"width": 2.5}, hoverinfo="skip", **axes),
        )
        heading = "<b>writes to the logits</b> of each head, where it is read"
        area.note(fig, heading, box.left, box.top - 3, align="left")

    def _patterns(
        self, fig: go.Figure, name: str, part: str, number: int, area: Area, box: Box
    ) -> None:
        tiles = self.tiles[name]
        rows, columns = tiles.shape
        hidden = {"visible": False, "fixedrange": True}
        axes = area.place(
            fig,
            number,
            box,
            {"range": [-0.5, columns - 0.5], **hidden},
            {"range": [rows - 0.5, -0.5], **hidden},
        )
        self._add(
            fig,
            (name, part),
            go.Heatmap(
                coloraxis="coloraxis2" if part == "attention" else "coloraxis3",
                hovertemplate="%{text}<br>" + part + " %{z:.2f}<extra></extra>",
                hoverongaps=False,
                **axes,
            ),
        )
        x, y = tiles.outlines()
        plain = {"mode": "lines", "hoverinfo": "skip", **axes}
        fig.add_scatter(x=x, y=y, line={"color": "#BBBBBB", "width": 1}, **plain)
        self._add(
            fig,
            (name, f"{part} query"),
            go.Scatter(line={"color": PALETTE[1], "width": 1.5}, **plain),
        )
        label_x, label_y = tiles.labels()
        self._add(
            fig,
            (name, f"{part} labels"),
            go.Scatter(
                x=label_x,
                y=label_y,
                mode="text",
                textfont={"color": MUTED, "size": SMALL},
                hoverinfo="skip",
                **axes,
            ),
        )
        words = {
            "attention": "<b>attention</b>: query ↓, key →, first token at the top left",
            "gate": "<b>gates</b>",
        }
        area.note(fig, words[part], box.left, box.top - 3, align="left")

    def _sheet_width(self, name: str) -> float:
        tiles = self.tiles[name]
        cell = min(self.widths[name] / tiles.shape[1], LARGEST_TILE / tiles.size)
        return tiles.shape[1] * cell

    def _add(self, fig: go.Figure, key: tuple[str, str], trace: Any) -> None:
        self._traces[key] = len(fig.data)
        fig.add_trace(trace)


def _rounded(values: np.ndarray) -> np.ndarray:
    return np.char.mod("%.1f", values)


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, np.ndarray):
        return np.array_equal(a, b, equal_nan=a.dtype.kind == "f")
    return bool(a == b)


def _across(n_heads: int, width: float) -> int:
    """Squares in a row: as many as stay 60 px wide, the rows as even as can be."""
    most = max(1, int(width // 60))
    return math.ceil(n_heads / math.ceil(n_heads / most))
