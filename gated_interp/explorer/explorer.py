"""The explorer in a notebook: a :class:`Session` behind one widget."""

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from gated_interp.analysis.ablation import Method
from gated_interp.analysis.heads import HeadLike
from gated_interp.analysis.logits import MetricFunction
from gated_interp.anatomy.batch import Mask, Tokens
from gated_interp.core.errors import GatedInterpError
from gated_interp.core.files import write_text
from gated_interp.explorer.acts import acted, stepped
from gated_interp.explorer.annotated import with_group, with_words_of
from gated_interp.explorer.saved import file_text, read_file, require_path, state_of
from gated_interp.explorer.script import script
from gated_interp.explorer.second import path_shares, shares, with_second
from gated_interp.explorer.session import Session
from gated_interp.explorer.snapshot import snapshot
from gated_interp.explorer.state import ExplorerState, link_of
from gated_interp.explorer.view import Viewer
from gated_interp.models.toy import HookedTransformer
from gated_interp.plots.fonts import font_face
from gated_interp.plots.pictures import picture_beside

try:
    import anywidget
    import traitlets
except ImportError as error:
    raise GatedInterpError("notebook-packages-missing") from error


FOLDER = files(__package__)


class ExplorerWidget(anywidget.AnyWidget):
    """What is displayed.

    Attributes:
        view: all that is shown, see :meth:`~gated_interp.explorer.view.Viewer.view`.
        patterns: the patterns of every head, as it packs them.
    """

    _esm = script()
    _css = f"{font_face()}\n{(FOLDER / 'explorer.css').read_text(encoding='utf-8')}"
    view = traitlets.Dict().tag(sync=True)
    patterns = traitlets.Bytes().tag(sync=True)


class HeadExplorer:
    """Switch heads off by hand and watch what a model still knows; displays in a notebook.

    At every change: attention and gate patterns, what each head writes to the logits at the
    chosen position, the predicted token, what each head is worth there and, where answers are
    known, the accuracy of every case. A model with blocks spliced in stands beside the original, on
    the same example. Heads are ablated by
    :func:`gated_interp.analysis.ablation.without_heads`; nothing is loaded from a network.

    The methods below do what the buttons do. Where these show a message, they raise a
    :class:`GatedInterpError`. A bad input leaves the last good state.

    Args:
        model: any ``HookedTransformer``, with blocks spliced in or not.
        task: what it was trained on; its own unless given.
        original: a model to stand beside it; by default what blocks were spliced over.
        seed: of the examples, and of what accuracy and the ablation methods draw.
        tokens: ``[batch pos]``, the examples, in the place of the task's; at most 100 are used.
        metric: what the effect of a head is measured by, a function of logits ``[batch pos
            d_vocab]`` and tokens ``[batch pos]`` that gives a scalar, ``[batch]`` or ``[batch
            pos]`` (then read at the position). Unless given, the logit of the answer or, where
            none is known, the log probability of the token that comes next.
        attention_mask: of ``tokens``, 1 at tokens and 0 at padding, which is not shown.

    Attributes:
        state: what the explorer is set to, an :class:`ExplorerState`.
        readings: per model (``original``, ``gated``, or ``model`` alone) what it does, a
            :class:`~gated_interp.explorer.bench.Reading`.
        message: what was wrong with the last input; empty when nothing was.
        widget: what is displayed.

    Raises:
        GatedInterpError: no task and no tokens, a model of another vocabulary than the task, or
            the notebook packages are missing.

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
        >>> explorer.link
        'tokens=7.0.5.1&read=3&off.model=L0H0'
    """

    def __init__(
        self,
        model: HookedTransformer,
        task: Any = None,
        *,
        original: HookedTransformer | None = None,
        seed: int = 0,
        tokens: Tokens | None = None,
        metric: MetricFunction | None = None,
        attention_mask: Mask | None = None,
    ):
        self.session = Session(model, task, original, seed, tokens, metric, attention_mask)
        self._viewer = Viewer(self.session)
        self._drawn = 0
        self.widget = ExplorerWidget()
        self.widget.on_msg(lambda _widget, message, _buffers: self._heard(message))
        self._go(self.session.start)

    def set_head(self, head: int | HeadLike, on: bool, model: str | None = None) -> None:
        """Switch one head on or off, of the spliced model unless ``model`` names the other.

        Args:
            head: its number in the layer shown, ``(layer, head)`` or a name such as ``"L1H0"``.
        """
        self._go(self.session.with_head(self.state, head, on, model))

    def only_head(self, head: int | HeadLike, model: str | None = None) -> None:
        """Switch every other head of its layer off."""
        self._go(self.session.with_only(self.state, head, model))

    def all_on(self, model: str | None = None) -> None:
        """Switch every head of one model on."""
        self._go(self.session.with_all_on(self.state, model))

    def set_method(self, method: Method) -> None:
        """Ablate by ``zero``, ``mean``, ``resample`` or (not on text) ``optimal``."""
        self._go(self.session.with_method(self.state, method))

    def set_layer(self, layer: int) -> None:
        """Show another layer's heads; what is off stays off."""
        self._go(self.session.with_layer(self.state, layer))

    def set_pattern(self, pattern: str) -> None:
        """Show ``attention``, ``gate``, ``attention × gate`` or ``value-weighted`` attention."""
        self._go(self.session.with_pattern(self.state, pattern))

    def show_example(self, example: int) -> None:
        """Go to a numbered example; the numbers go round."""
        self._go(self.session.at_example(self.state, example))

    def next_example(self) -> None:
        """One example on; from typed tokens, to the first."""
        self._go(stepped(self.session, self.state, 1))

    def previous_example(self) -> None:
        """One example back; from typed tokens, to the last."""
        self._go(stepped(self.session, self.state, -1))

    def type_tokens(self, words: str) -> None:
        """Take ``words`` as the example: names or numbers of tokens, of a language model text."""
        self._go(self.session.at_tokens(self.state, words))

    def set_position(self, position: int) -> None:
        """Read predictions and writes at another position."""
        self._go(self.session.at_position(self.state, position))

    def ask(self, kind: str, words: str = "") -> None:
        """Measure heads by another question: see the page's list ``ask about``.

        Args:
            kind: ``the next token``, ``a token``, ``a difference``, ``KL`` or ``the loss on a
                span``.
            words: the token or the two tokens, as the page shows them; of a span the positions of
                its first and its last token.
        """
        self._go(self.session.with_words(self.state, kind, words))

    def set_second(self, words: str) -> None:
        """Take ``words`` as the second prompt, for patching; none without words.

        It is dropped when the first prompt changes.
        """
        self._go(with_second(self.session, self.state, words))

    def set_receiver(
        self, head: HeadLike | None, part: str = "query", model: str | None = None
    ) -> None:
        """Measure the paths from earlier heads into one head, or the logits: see :meth:`paths`.

        Args:
            head: ``(layer, head)`` or its name; ``None`` for the logits.
            part: what the head reads: ``query``, ``key``, ``value`` or, of a gated head, ``gate
                score``.
        """
        name = self.session.name(model)
        self._go(self.session.with_receiver(self.state, name, head, part))

    def shares(self, model: str | None = None) -> pd.DataFrame:
        """Patching with the second prompt: how far each head moves the answer.

        Returns:
            One row per head: ``layer``, ``head``, ``share``, the part of the difference between the
            answers to both prompts that the head's output from the second prompt makes alone: 0
            nothing, 1 all of it.

        Raises:
            GatedInterpError: no second prompt, one of another length, or answers that do not
                differ.
        """
        name = self.session.name(model)
        return _table(shares(self.session, self.state, name, self.session.n_layers))

    def paths(self) -> pd.DataFrame:
        """Patching path by path: how far each path into the receiver moves the answer.

        Returns:
            One row per head before the receiver of :meth:`set_receiver`: ``layer``, ``head``,
            ``share``, as in :meth:`shares`, where only the direct path from the head to the
            receiver sees the second prompt.

        Raises:
            GatedInterpError: no receiver, no second prompt, one of another length, or answers that
                do not differ.
        """
        return _table(path_shares(self.session, self.state, self.session.n_layers))

    def annotate(
        self,
        head: int | HeadLike,
        *,
        name: str | None = None,
        note: str | None = None,
        groups: Sequence[str] | None = None,
        pinned: bool | None = None,
        model: str | None = None,
    ) -> None:
        """Name a head, write a note on it, put it into groups or pin it; what is left out stays.

        Args:
            head: its number in the layer shown, ``(layer, head)`` or its name.
        """
        words = {"name": name, "note": note, "groups": groups, "pinned": pinned}
        given = {what: value for what, value in words.items() if value is not None}
        self._go(with_words_of(self.session, self.state, model, head, **given))

    def set_group(self, group: str, on: bool) -> None:
        """Switch every head of a group on or off."""
        self._go(with_group(self.session, self.state, group, on))

    def save(self, path: Path | str) -> Path:
        """Write the state, with all notes, to a JSON file that :meth:`open` reads."""
        return write_text(require_path(path), file_text(self.session, self.state))

    def open(self, path: Path | str) -> None:
        """Go to the state that a file from :meth:`save`, or from the page, holds.

        Raises:
            GatedInterpError: a file that cannot be read, another kind of file, or the file of
                another model.
        """
        self._go(state_of(self.session, read_file(path)))

    @property
    def link(self) -> str:
        """The state as a line of text, for :meth:`restore`; the served page's address ends in it.

        It names examples by their number, so it says the same to an explorer of the same model,
        task and seed. With notes or a second prompt it holds the tokens, and no seed matters.
        """
        return link_of(self.state)

    def restore(self, link: str) -> None:
        """Go to the state that :attr:`link`, or an address of the served page, says."""
        self._go(self.session.at_link(link))

    def prediction(self, model: str | None = None) -> str:
        """Name of the token a model predicts; of the spliced one unless ``model`` is named."""
        name = self.session.name(model)
        return self.session.vocabulary.name(self.readings[name].prediction)

    def snapshot(self) -> go.Figure:
        """The state as a still figure, with what is off and what is predicted above it."""
        return snapshot(self.session, self._viewer, self.state, self.readings)

    def _go(self, state: ExplorerState, answers: str = "") -> None:
        """To another state: all of it, or none of it where it cannot be read."""
        readings = self.session.read(state)
        shown = self._viewer.view(state, readings)
        self.state, self.readings, self.message = state, readings, ""
        self._show(*shown, answers)

    def _heard(self, message: Any) -> None:
        """What a button asks for; where it cannot be, say so and stay."""
        asked = str(message.get("do")) if isinstance(message, dict) else ""
        try:
            self._go(acted(self.session, self.state, message), asked)
        except GatedInterpError as problem:
            self.message = str(problem)
            self._show(*self._viewer.view(self.state, self.readings, self.message), asked)

    def _show(self, view: dict[str, Any], patterns: bytes, answers: str) -> None:
        self._drawn += 1  # else a view that is the last one again would not be drawn again
        with self.widget.hold_sync():
            self.widget.patterns = patterns
            self.widget.view = {**view, "answers": answers, "drawn": self._drawn}

    def _repr_mimebundle_(self, **options: Any) -> Any:
        shown = self.widget._repr_mimebundle_(**options)
        bundle = shown[0] if isinstance(shown, tuple) else shown
        return {**bundle, "text/plain": repr(self)} | picture_beside(self.snapshot)

    def __repr__(self) -> str:
        counts = [f"{n}: {sum(b.counts)} heads" for n, b in self.session.benches.items()]
        if self.session.n_layers > 1:
            counts.append(f"{self.session.n_layers} layers")
        return f"HeadExplorer({', '.join(counts)})"


def _table(found: Sequence[Sequence[float] | None]) -> pd.DataFrame:
    """Shares by layer as one row per head."""
    rows = [(i, h, x) for i, row in enumerate(found) for h, x in enumerate(row or [])]
    return pd.DataFrame(rows, columns=["layer", "head", "share"])
