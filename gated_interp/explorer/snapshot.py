"""The explorer's state as a still figure, for readers of a notebook that does not run."""

from collections.abc import Mapping

import numpy as np
import plotly.graph_objects as go

from gated_interp.core.written import share
from gated_interp.explorer.bench import Reading
from gated_interp.explorer.notes import labelled
from gated_interp.explorer.session import Session
from gated_interp.explorer.state import ExplorerState
from gated_interp.explorer.view import Viewer
from gated_interp.plots.panels import Maps, heat_panels
from gated_interp.plots.style import ATTENTION, GATE, SIGNED, text


def snapshot(
    session: Session, viewer: Viewer, state: ExplorerState, readings: Mapping[str, Reading]
) -> go.Figure:
    """Attention, gates and writes of every model's heads; above them what each model answers.

    Patterns are blank where a head is off, and where there are none.
    """
    columns, layer = viewer.columns(state, readings), state.layer
    read, written = ([text(viewer.shown(t)) for t in some] for some in (state.tokens, columns))
    square = (len(read), len(read))
    parts: dict[str, list[np.ndarray]] = {"attention": [], "gate": [], "writes": []}
    heads: list[str] = []
    answers: list[str] = []
    for name, reading in readings.items():
        names = [
            text(labelled(label, state.notes.get((name, (layer, h)))))
            for h, label in enumerate(session.benches[name].head_names(layer))
        ]
        off = [head for at, head in state.off[name] if at == layer]
        of = f"{name} " if len(readings) > 1 else ""
        heads += [f"{of}{n}{' off' if h in off else ''}" for h, n in enumerate(names)]
        for kind, pattern in (("attention", reading.attention), ("gate", reading.gates)):
            values = np.full((len(names), *square), np.nan) if pattern is None else pattern.copy()
            values[off] = np.nan
            parts[kind].append(values)
        parts["writes"].append(viewer.rows(reading, columns)[0][:, None])
        on = f"without {session.head_names(state.off[name])}" if state.off[name] else "all heads"
        answer = f"{name}, {on}: after {read[state.position]} predicts "
        answer += text(viewer.shown(reading.prediction))
        if reading.accuracy:
            cases = session.task.cases
            rates = (f"{cases[b]} {share(rate)}" for b, rate in reading.accuracy.items())
            answer += f" (right: {', '.join(rates)})"
        answers.append(answer)
    scales = [bench.scale(layer) for bench in session.benches.values()]
    gate, write = max(s.pattern["gate"] for s in scales), max(s.write for s in scales)
    axes = "key position", "query position", read, read
    maps = {
        "attention": ("attention", ATTENTION, (0.0, 1.0), *axes),
        "gate": ("gate", GATE, (0.0, gate), *axes),
        "writes": ("logit", SIGNED, (-write, write), "output token", "", written, [""]),
    }
    found = {kind: np.concatenate(of) for kind, of in parts.items()}
    shown = [Maps(z, kind, *maps[kind]) for kind, z in found.items() if not np.isnan(z).all()]
    return heat_panels(shown, heads, columns=2, title="; ".join(answers))
