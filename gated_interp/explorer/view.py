"""All that an explorer shows, as data: a table of JSON, and the patterns as bytes."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gated_interp.core import written
from gated_interp.core.errors import GatedInterpError
from gated_interp.core.written import head_name
from gated_interp.explorer.annotated import notes_view
from gated_interp.explorer.asked import KINDS, SAID
from gated_interp.explorer.bench import PATTERNS, Reading
from gated_interp.explorer.contexts import Contexts
from gated_interp.explorer.edges import Edges, table_of
from gated_interp.explorer.saved import file_name, file_text
from gated_interp.explorer.second import second_view
from gated_interp.explorer.session import Session
from gated_interp.explorer.state import ExplorerState, link_of
from gated_interp.plots.style import ATTENTION, GATE, SIGNED

# A vocabulary up to this size is shown whole; of another the tokens that matter at the position.
WHOLE, COLUMNS = 16, 8
TOP = 5
# Tokens around a place that are shown with it.
BEFORE, AFTER = 10, 3
# A write that spreads less, of the largest, is none: the top tokens of nothing mean nothing.
FAINTEST = 1e-6
DEPTH = 65535  # what the bytes of a pattern count as its scale
TITLES = {"original": "original attention", "gated": "gated attention", "model": "attention"}


class Viewer:
    """What a browser is told of a session.

    Args:
        session: whose states are shown.
    """

    def __init__(self, session: Session):
        self.session = session
        self._contexts = {n: Contexts(b, session.examples) for n, b in session.benches.items()}
        self._edges = {n: Edges(bench) for n, bench in session.benches.items()}

    def view(
        self, state: ExplorerState, readings: Mapping[str, Reading], message: str = ""
    ) -> tuple[dict[str, Any], bytes]:
        """``state`` and what follows from it, and the patterns of every model in turn.

        Patterns are whole numbers of two bytes, ``[head_index query_pos key_pos]``; ``DEPTH`` of
        them are the value that the view calls ``scale``. ``darkest`` has the darkest colour.
        """
        session, vocabulary = self.session, self.session.vocabulary
        has_gates = any(r.gates is not None for r in readings.values())
        kinds = [k for k in PATTERNS if any(r.pattern(k) is not None for r in readings.values())]
        kinds = [k for k in kinds if has_gates or k != "attention × gate"]
        usual = "attention × gate" if has_gates else "attention"
        pattern = state.pattern if state.pattern in kinds else usual
        patterns = {name: reading.pattern(pattern) for name, reading in readings.items()}
        there = [values for values in patterns.values() if values is not None]
        top = max(b.scale(state.layer).pattern[pattern] for b in session.benches.values())
        most = max([top, *(float(values.max()) for values in there)])
        columns = self.columns(state, readings)
        effects = session.effects(state)
        models = [
            {
                **self._model(name, state, reading, effects[name], columns),
                "has_pattern": patterns[name] is not None,
                "shows": _shows(pattern, reading, patterns[name] is not None),
            }
            for name, reading in readings.items()
        ]
        packed = [np.round(values / most * DEPTH).astype("<u2").tobytes() for values in there]
        n = len(session.examples)
        # Of text the darkest colour leaves the first position out, see :class:`Scale`.
        of_text = session.examples.probes is None and pattern != "gate"
        found = {
            "is_text": vocabulary.is_text,
            "hint": vocabulary.hint,
            "box": vocabulary.written(state.tokens),
            "tokens": [self.shown(t) for t in state.tokens],
            "position": state.position,
            "example": "typed" if state.example is None else f"example {state.example + 1} of {n}",
            "methods": list(session.methods),
            "method": state.method,
            "layers": session.n_layers,
            "layer": state.layer,
            "patterns": kinds,
            "pattern": pattern,
            "scale": most,
            "darkest": top,
            "range": "or more; the first position is left out of this scale" if of_text else "",
            "ramp": GATE if pattern == "gate" else ATTENTION,
            "by_effect": state.by_effect,
            "readers": state.readers,
            "first": state.first,
            "metric": session.asked(state).name,
            "kinds": list(KINDS),
            "kind": SAID[state.question.split(".")[0]] if state.question else KINDS[0],
            "words": self._words(state),
            "columns": [self.shown(t) for t in columns],
            "signed": SIGNED,
            "write_scale": max(b.scale(state.layer).write for b in session.benches.values()),
            "models": models,
            "opened": self._opened(state),
            "strip": self._strip(state),
            "notes": notes_view(state),
            "file": [file_name(session), file_text(session, state)],
            "second": second_view(session, state, self.shown),
            "link": link_of(state),
            "message": message,
        }
        return found, b"".join(packed)

    def _strip(self, state: ExplorerState) -> dict[str, Any] | None:
        """All heads of several layers; ``None`` of a model of one.

        Tiles are effects where they are known, and what heads write directly where they are not.
        """
        found = self.session.strip(state)
        if found is None:
            return None
        token, values = found
        effects, left = self.session.overview(state)
        asked = self.session.asked(state).name
        said = f"What each head writes directly to the logit of {self.shown(token)} here"
        key = "blue raises the logit, orange lowers it"
        if effects is not None:
            said, values = f"By how much {asked} changes here without each head", effects
            key = "orange: without the head it falls; blue: it rises"
        finite = [[_finite(value) for value in layer] for layer in values]
        return {
            "says": f"{said}, layer by layer. Click a layer to open it.",
            "key": key,
            "model": self.session.main,
            "left": left,
            "values": finite,
            "most": max(abs(value or 0.0) for layer in finite for value in layer) or 1.0,
            "marks": [[word, *head] for word, head in self.session.marks],
            "off": [[*head] for head in sorted(state.off[self.session.main])],
        }

    def _words(self, state: ExplorerState) -> str:
        """The tokens or positions of a question, as they are typed."""
        kind, *parts = (state.question or "").split(".")
        if kind in ("token", "difference"):
            return " ".join(self.shown(int(part)) for part in parts)
        return " ".join(parts)

    def columns(self, state: ExplorerState, readings: Mapping[str, Reading]) -> list[int]:
        """The tokens whose logits are shown: all, or the asked and the likeliest ones."""
        session = self.session
        bench = session.benches[session.main]
        if bench.model.cfg.d_vocab_out <= WHOLE:
            return list(range(bench.model.cfg.d_vocab_out))
        asked = session.asked(state)
        # Of the intact model, so that a switch moves no column.
        likely = bench.intact(state.tokens)[state.position].topk(COLUMNS).indices.tolist()
        predicted = [r.prediction for r in readings.values()]
        return list(dict.fromkeys([*asked.tokens, *likely, *predicted]))

    def shown(self, token: int) -> str:
        """A token as a label: of text with its spaces and line ends made visible."""
        vocabulary = self.session.vocabulary
        name = vocabulary.name(token)
        return written.token(name, "·") if vocabulary.is_text else name

    def rows(
        self, reading: Reading, columns: Sequence[int]
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Writes of the heads, of the rest and the logits, at ``columns``.

        Of text relative to their mean over the vocabulary: only differences count there.
        """
        centred = self.session.examples.probes is None
        found = []
        for values in (reading.writes, reading.direct, reading.logits):
            mean = values.mean(-1, keepdims=True) if centred else 0.0
            found.append((values - mean)[..., list(columns)])
        return found[0], found[1], found[2]

    def _model(
        self,
        name: str,
        state: ExplorerState,
        reading: Reading,
        effects: list[float],
        columns: list[int],
    ) -> dict[str, Any]:
        bench = self.session.benches[name]
        off = state.off[name]
        writes, direct, logits = self.rows(reading, columns)
        raised = _largest(reading.writes, 3).tolist()
        nothing = np.ptp(reading.writes, axis=-1) <= FAINTEST * bench.scale(state.layer).write
        heads = [
            {
                "name": label,
                "on": (state.layer, h) not in off,
                "effect": _finite(effects[h]),
                "raises": [] if nothing[h] else [self.shown(t) for t in raised[h]],
                "writes": np.round(writes[h], 3).tolist(),
            }
            for h, label in enumerate(bench.head_names(state.layer))
        ]
        order = list(range(len(heads)))
        if state.by_effect:
            order.sort(key=lambda h: -abs(_finite(effects[h]) or 0.0))
        pinned = {head for (of, head), note in state.notes.items() if of == name and note.pinned}
        order.sort(key=lambda h: (state.layer, h) not in pinned)
        elsewhere = frozenset(h for h in off if h[0] != state.layer)
        cases = {} if bench.probes is None else self.session.task.cases
        kind = TITLES[name]
        if name == "gated" and not bench.gated[state.layer]:
            kind = f"model, whose layer {state.layer} is its own attention"
        return {
            "name": name,
            "title": f"{kind}, {len(heads)} heads",
            "heads": heads,
            "order": order,
            "elsewhere": self.session.head_names(elsewhere),
            "any_off": bool(off),
            "rest": np.round(direct, 3).tolist(),
            "logits": np.round(logits, 3).tolist(),
            "predicted": columns.index(reading.prediction),
            "metric": _finite(reading.metric),
            "intact_metric": _finite(reading.intact_metric),
            "accuracy": [
                [cases[c], reading.accuracy[c], reading.intact_accuracy[c]]
                for c in reading.accuracy
            ],
            "likely": self._likely(reading) if bench.probes is None else [],
            "answer": self._answer(state, reading),
        }

    def _likely(self, reading: Reading) -> list[list[Any]]:
        best = np.argsort(-reading.probabilities)[:TOP].tolist()
        now, before = reading.probabilities, reading.intact_probabilities
        return [[self.shown(t), round(now[t], 4), round(before[t], 4)] for t in best]

    def _answer(self, state: ExplorerState, reading: Reading) -> dict[str, Any]:
        expected = self.session.expected(state)
        moved = reading.prediction != reading.intact_prediction
        return {
            "after": self.shown(state.tokens[state.position]),
            "predicted": self.shown(reading.prediction),
            "probability": round(reading.probability, 4),
            "expected": None if expected is None else self.shown(expected),
            "right": None if expected is None else reading.prediction == expected,
            "intact": self.shown(reading.intact_prediction) if moved else None,
        }

    def _opened(self, state: ExplorerState) -> dict[str, Any] | None:
        if state.opened is None:
            return None
        name, (layer, head) = state.opened
        return {
            "model": name,
            "head": head,
            "name": head_name((layer, head)),
            "contexts": [
                {
                    "example": place.example,
                    "position": place.position,
                    "length": round(place.length, 3),
                    "raises": self.shown(place.raises),
                    **self._around(place.example, place.position),
                }
                for place in self._contexts[name].of(layer, head)
            ],
            "edge": self._edge(state),
        }

    def _edge(self, state: ExplorerState) -> dict[str, Any] | None:
        """The cell that was clicked, taken apart; or why it cannot be."""
        if state.opened is None or state.edge is None:
            return None
        name, head = state.opened
        edges, off = self._edges[name], state.off[name]
        with self.session.threads():
            found = edges.of(state.tokens, head, state.edge, off, state.method)
        where = {"query": state.edge[0], "key": state.edge[1], "refused": ""}
        if isinstance(found, GatedInterpError):
            return {**where, "refused": str(found)}
        return {**where, **table_of(found)}

    def _around(self, example: int, position: int) -> dict[str, str]:
        tokens = self.session.examples.tokens[example]
        parts = {
            "before": tokens[max(0, position - BEFORE) : position],
            "at": tokens[position : position + 1],
            "after": tokens[position + 1 : position + 1 + AFTER],
        }
        text = self.session.vocabulary.is_text
        joiner = "" if text else " "
        # As the text reads, but on one line.
        name = self.session.vocabulary.name
        return {
            part: joiner.join(written.token(name(t)) for t in some) for part, some in parts.items()
        }


def _shows(pattern: str, reading: Reading, is_there: bool) -> str:
    """What the pictures of a model's heads show, in words."""
    if not is_there:
        return "ordinary attention has no gates" if pattern == "gate" else "no attention here"
    if pattern == "attention × gate" and reading.gates is None:
        pattern = "attention, as it has no gates"
    return f"{pattern} (click to enlarge)"


def _largest(values: np.ndarray, n: int) -> np.ndarray:
    """Where the ``n`` largest of each row are, the largest first; a vocabulary is long to sort."""
    if values.shape[-1] > WHOLE:
        some = np.argpartition(-values, n, axis=-1)[:, :n]
        some.sort()
        order = np.argsort(-np.take_along_axis(values, some, -1), axis=-1, kind="stable")
        return np.take_along_axis(some, order, -1)
    found: np.ndarray = np.argsort(-values, axis=-1)[:, :n]
    return found


def _finite(value: float) -> float | None:
    """``value`` to four digits; JSON has no word for infinite and none."""
    return round(value, 4) if math.isfinite(value) else None


def packed(view: dict[str, Any], patterns: bytes) -> bytes:
    """Both in one: the length of the JSON (four bytes, the least first), the JSON, the patterns."""
    text = json.dumps(view).encode()
    text += b" " * (-len(text) % 2)  # whole numbers of two bytes begin at an even place
    return len(text).to_bytes(4, "little") + text + patterns
