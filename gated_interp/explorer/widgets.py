"""The explorer itself: a thin layer of widgets over a :class:`Session`."""

import html
from collections.abc import Callable
from typing import Any, get_args

import plotly.graph_objects as go

from gated_interp.analysis.ablation import Method
from gated_interp.core.errors import GatedInterpError
from gated_interp.explorer.bench import Reading
from gated_interp.explorer.session import EXAMPLES, ExplorerState, Session
from gated_interp.models.toy import HookedTransformer
from gated_interp.plots.fonts import FAMILY, font_face
from gated_interp.plots.pictures import picture_beside
from gated_interp.plots.style import PALETTE
from gated_interp.tasks.skip_trigrams import SkipTrigramTask

try:
    import ipywidgets

    from gated_interp.explorer.figure import LABELS, ExplorerFigure, color_ramps, column_widths
except ImportError as error:
    raise GatedInterpError(
        "the explorer needs the notebook packages; install them with "
        "pip install 'gated-interp[notebooks]'."
    ) from error

# Buttons of one token share a label where the token comes twice, and ToggleButtons tells its
# buttons apart by label: zero-width spaces, which nobody sees, make every label its own.
INVISIBLE = "\u200b"
RIGHT, WRONG = PALETTE[2], PALETTE[5]
STYLE = f"""<style>
{font_face()}
.gi-explorer, .gi-explorer .jupyter-button, .gi-explorer .widget-label {{
  font-family: {FAMILY}; }}
.gi-explorer {{ color: #222; }}
.gi-explorer .gi-head.mod-active {{ background: {PALETTE[0]}; color: #fff; box-shadow: none; }}
.gi-explorer .gi-head {{ background: #fff; color: #777; border: 1px solid {PALETTE[0]};
  padding: 0; }}
.gi-explorer .gi-head:not(.mod-active) {{ text-decoration: line-through; border-style: dashed; }}
.gi-explorer .gi-plain {{ background: #fff; color: #222; border: 1px solid #bbb; }}
.gi-explorer .gi-tokens .jupyter-button {{ background: #f1f1f1; color: #222; }}
.gi-explorer .gi-tokens .jupyter-button.mod-active {{
  background: {PALETTE[1]}; color: #000; box-shadow: none; font-weight: bold; }}
/* Two lines high also with one, so that a longer answer moves no switch from under the mouse. */
.gi-explorer .gi-answer {{ font-size: 15px; white-space: normal; }}
.gi-explorer .gi-answer .widget-html-content {{ line-height: 26px !important; min-height: 52px; }}
.gi-explorer .gi-answer b {{ font-size: 19px; }}
.gi-explorer .gi-title {{ font-size: 15px; font-weight: bold; }}
.gi-explorer .gi-legend {{ font-size: 11px; padding: 4px 0 2px {round(LABELS)}px; }}
.gi-explorer .gi-message {{ color: #a32a00; line-height: 20px; }}
</style>"""


class HeadExplorer:
    """Switch heads off by hand and watch what a model still knows; displays in a notebook.

    At every change: attention and gate patterns, what each head writes to the logits at the
    chosen position, the predicted token, and the accuracy of every trigram. A gated model stands
    beside the original it was trained to reproduce, on the same example. Ablation is
    :func:`gated_interp.analysis.ablation.ablated`; nothing is loaded from a network.

    The methods below do what the widgets do, and raise where the widgets show a message; in both
    cases a bad input leaves the last good state.

    Args:
        model: one attention-only layer without normalisation: a toy, or one with a gated block
            spliced in.
        task: what it was trained on.
        original: a model to stand beside it; by default what the gated block was spliced over.
        seed: of the examples, and of what accuracy and the ablation methods draw.

    Attributes:
        state: what the explorer is set to, an :class:`ExplorerState`.
        readings: per model (``original``, ``gated``, or ``model`` alone) what it does, a
            :class:`Reading`.
        message: what was wrong with the last input; empty when nothing was.
        widget: what is displayed.

    Raises:
        GatedInterpError: a model that is not one linear layer or has another vocabulary than
            the task, or the notebook packages are missing.

    Examples:
        >>> from gated_interp.models.analytic import manual_model
        >>> truth = manual_model(2, 3)
        >>> explorer = HeadExplorer(truth.model, truth.task)
        >>> explorer.type_tokens("BOS A C2 B1")
        >>> explorer.prediction()
        'C1'
        >>> explorer.set_head(0, on=False)
        >>> explorer.prediction()
        'B1'
    """

    def __init__(
        self,
        model: HookedTransformer,
        task: SkipTrigramTask,
        *,
        original: HookedTransformer | None = None,
        seed: int = 0,
    ):
        self.session = Session(model, task, original, seed)
        self.state: ExplorerState = self.session.start
        self.readings: dict[str, Reading] = self.session.read(self.state)
        self.message = ""
        self._drawing = False
        self._make_widgets()
        self._draw()

    def set_head(self, head: int, on: bool, model: str | None = None) -> None:
        """Switch one head on or off, of the gated model unless ``model`` names the other.

        Raises:
            GatedInterpError: no such head or model.
        """
        self._go(self.session.with_head(self.state, head, on, model))

    def all_on(self, model: str | None = None) -> None:
        """Switch every head of one model on.

        Raises:
            GatedInterpError: no such model.
        """
        self._go(self.session.with_all_on(self.state, model))

    def set_method(self, method: Method) -> None:
        """Ablate by ``zero``, ``mean``, ``resample`` or ``optimal``.

        Raises:
            GatedInterpError: no such method.
        """
        self._go(self.session.with_method(self.state, method))

    def show_example(self, example: int) -> None:
        """Go to a numbered example; the numbers go round."""
        self._go(self.session.at_example(self.state, example))

    def next_example(self) -> None:
        """One example on; from typed tokens, to the first."""
        self.show_example(0 if self.state.example is None else self.state.example + 1)

    def previous_example(self) -> None:
        """One example back; from typed tokens, to the last."""
        self.show_example(-1 if self.state.example is None else self.state.example - 1)

    def type_tokens(self, words: str) -> None:
        """Take ``words``, such as ``BOS A C2 B1`` or ``7 0 5 1``, as the example.

        Raises:
            GatedInterpError: a token that does not exist, no token, or too many.
        """
        self._go(self.session.at_tokens(self.state, words))

    def set_position(self, position: int) -> None:
        """Read predictions and writes at another position.

        Raises:
            GatedInterpError: no such position.
        """
        self._go(self.session.at_position(self.state, position))

    def prediction(self, model: str | None = None) -> str:
        """Name of the token a model predicts, of the gated one unless ``model`` names the other.

        Raises:
            GatedInterpError: no such model.
        """
        name = self.session.name(model)
        return self.session.task.token_names[self.readings[name].prediction]

    def snapshot(self) -> go.Figure:
        """The state as a still figure, with what is off and what is predicted above it."""
        token = self.session.task.token_names[self.state.tokens[self.state.position]]
        captions = {}
        for name, bench in self.session.benches.items():
            off = [bench.head_names[h] for h in sorted(self.state.off[name])]
            heads = f"without {', '.join(off)}" if off else "all heads"
            answer = f"after {token} predicts {self.prediction(name)}"
            captions[name] = f"<b>{name}</b>, {heads}: {answer}"
        return self.figure.picture(captions)

    def _go(self, state: ExplorerState) -> None:
        """To another state: all of it, or none of it where it cannot be read."""
        readings = self.session.read(state)
        self.state, self.readings, self.message = state, readings, ""
        self._draw()

    def _attempt(self, act: Callable[..., None], *values: Any) -> None:
        """What a widget asks for; where it cannot be, say so and stay."""
        if self._drawing:
            return
        try:
            act(*values)
        except GatedInterpError as problem:
            self.message = str(problem)
            self._draw_message()

    def _moved(self, change: dict[str, Any]) -> None:
        if change["new"] is not None:  # None only while the buttons are exchanged
            self._attempt(self.set_position, change["new"])

    def _make_widgets(self) -> None:
        w = ipywidgets
        self.figure = ExplorerFigure(self.session, self.state, self.readings)
        self.method_box = w.Dropdown(
            options=list(get_args(Method)),
            description="ablation",
            layout={"width": "190px"},
            style={"description_width": "60px"},
        )
        self.method_box.observe(lambda c: self._attempt(self.set_method, c["new"]), "value")
        self.previous_button = _button("◀", "previous example", "40px")
        self.previous_button.on_click(lambda _: self._attempt(self.previous_example))
        self.next_button = _button("▶", "next example", "40px")
        self.next_button.on_click(lambda _: self._attempt(self.next_example))
        self.counter = w.HTML(layout={"width": "130px"}).add_class("gi-count")
        self.tokens_box = w.Text(
            continuous_update=False,
            description="tokens",
            placeholder="BOS A C2 B1",
            layout={"width": "400px"},
            style={"description_width": "50px"},
        )
        self.tokens_box.observe(lambda c: self._attempt(self.type_tokens, c["new"]), "value")
        self.message_box = w.HTML(layout={"width": "100%"}).add_class("gi-message")
        self.position_buttons = w.ToggleButtons(
            style={"button_width": "54px"}, layout={"width": "auto"}
        ).add_class("gi-tokens")
        self.position_buttons.observe(self._moved, "index")
        self.switches: dict[str, list[Any]] = {}
        self.answers: dict[str, Any] = {}
        columns = [self._column(name) for name in self.session.benches]
        rows = [
            w.HTML(STYLE, layout={"display": "none"}),
            w.HBox(
                [
                    self.previous_button,
                    self.counter,
                    self.next_button,
                    self.tokens_box,
                    self.method_box,
                ],
                layout={"flex_flow": "row wrap", "align_items": "center"},
            ),
            self.message_box,
            w.HBox([w.Label("read at"), self.position_buttons], layout={"align_items": "center"}),
            w.HBox(columns),
            w.HTML(_legend(self.session)).add_class("gi-legend"),
            self.figure.widget,
        ]
        self.widget = w.VBox(rows, layout={"width": "max-content"}).add_class("gi-explorer")

    def _column(self, name: str) -> Any:
        """Title, answer and head switches of one model, as wide as its panels below."""
        w, bench = ipywidgets, self.session.benches[name]
        kind = {"original": "original attention", "gated": "gated attention"}.get(name, "attention")
        title = w.HTML(f"{kind}, {bench.n_heads} heads").add_class("gi-title")
        self.answers[name] = w.HTML().add_class("gi-answer").add_class(f"gi-answer-{name}")
        self.switches[name] = []
        for h, label in enumerate(bench.head_names):
            tip = f"switch {label} of the {name} model off or on"
            switch = w.ToggleButton(True, description=label, tooltip=tip, layout={"width": "58px"})
            switch.add_class("gi-head").add_class(f"gi-{name}-{h}")
            switch.observe(lambda c, h=h: self._attempt(self.set_head, h, c["new"], name), "value")
            self.switches[name].append(switch)
        everything = _button("all on", f"switch every head of the {name} model on", "58px")
        everything.on_click(lambda _: self._attempt(self.all_on, name))
        wide = {"flex_flow": "row wrap", "width": "100%"}
        top = w.HBox([title, everything], layout={"align_items": "center"})
        switches = w.HBox(self.switches[name], layout=wide)
        width = round(LABELS + column_widths(self.session)[name])
        layout = {"width": f"{width}px", "padding": f"0 0 0 {round(LABELS)}px"}
        return w.VBox([top, self.answers[name], switches], layout=layout)

    def _draw(self) -> None:
        """Make every widget say what the state is; their own events are not heard meanwhile."""
        self._drawing = True
        try:
            # The answer first: the browser works through messages in order.
            self._draw_controls()
            self._draw_message()
            self.figure.update(self.state, self.readings)
        finally:
            self._drawing = False

    def _draw_controls(self) -> None:
        state, names = self.state, self.session.task.token_names
        said = [names[t] for t in state.tokens]
        for name, reading in self.readings.items():
            self.answers[name].value = self._answer(reading, said[state.position])
            for h, switch in enumerate(self.switches[name]):
                switch.value = h not in state.off[name]
        self.tokens_box.value = " ".join(said)
        self.method_box.value = state.method
        number = "typed" if state.example is None else f"example {state.example + 1} of {EXAMPLES}"
        self.counter.value = f"<center>{number}</center>"
        options = [label + INVISIBLE * i for i, label in enumerate(said)]
        if list(self.position_buttons.options) != options:
            self.position_buttons.options = options
        self.position_buttons.index = state.position

    def _answer(self, reading: Reading, token: str) -> str:
        names = self.session.task.token_names
        expected = self.session.expected(self.state)
        predicted = names[reading.prediction]
        sentence = f"after {token} predicts "
        if expected is None:
            verdict, color = "", "inherit"
        elif reading.prediction == expected:
            verdict, color = " ✓", RIGHT
        else:
            verdict, color = f" ✗ not {names[expected]}", WRONG
        sentence += f'<b style="color: {color}">{predicted}{verdict}</b>'
        sentence += f" ({reading.probability:.0%})"
        if reading.prediction != reading.intact_prediction:
            sentence += f"; every head on: {names[reading.intact_prediction]}"
        return sentence

    def _draw_message(self) -> None:
        self.message_box.value = html.escape(self.message)

    def _repr_mimebundle_(self, **options: Any) -> Any:
        bundle = {**self.widget._repr_mimebundle_(**options), "text/plain": repr(self)}
        return bundle | picture_beside(self.snapshot)

    def __repr__(self) -> str:
        counts = ", ".join(f"{n}: {b.n_heads} heads" for n, b in self.session.benches.items())
        return f"HeadExplorer({counts}, {self.session.task.n_trigrams} trigrams)"


def _legend(session: Session) -> str:
    """What the colours mean, as one line."""
    parts = []
    for ramp in color_ramps(session).values():
        stops = ", ".join(f"{color} {at:.0%}" for at, color in ramp.scale)
        parts.append(
            f"<b>{ramp.name}</b>&ensp;{ramp.low:.3g} <span style='display: inline-block; "
            f"width: 90px; height: 9px; border: 1px solid #aaa; "
            f"background: linear-gradient(to right, {stops})'></span> {ramp.high:.3g}"
        )
    return "&emsp;&emsp;".join(parts)


def _button(label: str, tip: str, width: str) -> Any:
    button = ipywidgets.Button(description=label, tooltip=tip, layout={"width": width})
    return button.add_class("gi-plain")
