"""Where to look in a model of several layers: what each head is worth, and what it attends to."""

from collections.abc import Iterator

import numpy as np

from gated_interp.analysis.overview import MARKED, MARKS, HeadOverview
from gated_interp.core import written
from gated_interp.core.written import head_name
from gated_interp.plots import head_overview
from gated_interp.plots.head_grid import PANELS
from gated_interp.subject import Subject
from gated_interp.views.shown import Shown, View

# Heads that a reader sees; the file has all.
FIRST = 12
MEASURED = "Every head was mean-ablated: its output was replaced by its mean."
SOME = (
    "Of each layer, all heads were mean-ablated at once (row “all”), on {text} tokens of text and "
    "{repeats} of repeats, and head by head those of the layers that matter most. Grey: not "
    "measured."
)


def show(subject: Subject) -> Iterator[Shown]:
    """One figure, and the heads that come first."""
    found = subject.overview
    table = found.table
    heads = list(zip(table["layer"], table["head"], strict=True))
    marks = dict(zip(heads, found.marks, strict=True))
    order = table[[*PANELS]].max(axis=1).fillna(-np.inf).sort_values(ascending=False).index
    face = table.loc[order[:FIRST], [*PANELS, *MARKS]].rename(columns=PANELS | MARKS)
    first = [heads[i] for i in order[:FIRST]]
    face.insert(0, "head", list(map(head_name, first)))
    face["marked as"] = [", ".join(marks[head]) or written.NONE for head in first]
    many = subject.layer_shown is not None
    title = _finding(found)
    yield Shown(
        "overview",
        title,
        f"Blue: without the head the loss rises. Orange: it falls. {_how(found)} "
        f"A head is marked where at least {written.share(MARKED)} of its attention goes to the key "
        "behind an earlier copy of its token (induction), to the token before, or to the first "
        f"token. {_frames(found, subject.layer_shown)}{found.why if many else ''}".strip(),
        {"": table, "layers": found.layers.reset_index()},
        lambda: head_overview(
            {
                name: dict(zip(heads, table[column], strict=True))
                for column, name in PANELS.items()
                if table[column].notna().any()
            },
            whole={
                name: found.layers[column].tolist()
                for column, name in PANELS.items()
                if table[column].notna().any()
            },
            marks={word: [h for h in heads if word in marks[h]] for word in MARKS.values()},
            layers=found.spliced,
            layer=subject.layer_shown,
            title=f"{subject.name}: {title[0].lower()}{title[1:]}",
        ),
        face.round(4),
        headline=True,
    )


def _finding(found: HeadOverview) -> str:
    """The heads without which the loss rises most."""
    said: dict[str, list[str]] = {}
    for column, where in PANELS.items():
        if found.table[column].notna().any():
            best = found.table.nlargest(3, column)
            names = map(head_name, zip(best["layer"], best["head"], strict=True))
            said.setdefault(", ".join(names), []).append(where)
    words = "; ".join(f"{names} {' and '.join(where)}" for names, where in said.items())
    return f"The heads that matter most: {words}"


def _how(found: HeadOverview) -> str:
    text, repeats = found.read
    return MEASURED if found.every else SOME.format(text=text, repeats=repeats)


def _frames(found: HeadOverview, layer: int | None) -> str:
    said = "" if layer is None else f"The black frame is the layer shown below, layer {layer}. "
    return said + ("A green frame is a layer that holds a replacement. " if found.spliced else "")


VIEW = View("overview", show, lambda subject: subject.has_overview, 0)
