"""What each head of a layer adds over all subsets of heads, and each pair beyond its two heads."""

from collections.abc import Iterator

import numpy as np
import pandas as pd

from gated_interp.core import written
from gated_interp.plots import shapley_and_interactions
from gated_interp.subject import Side, Subject, answer_word
from gated_interp.views.shown import Shown, View

SMALLEST = 1e-4  # logits
STRONGEST, FAINTEST = 5, 0.01


def show(subject: Subject) -> Iterator[Shown]:
    """A figure of one case and a table of all, per layer and side."""
    for side in subject.measured:
        # Below the last layer each subset of heads is a forward pass: only of a layer asked for.
        if side.linear or (list(subject.sides) == ["model"] and len(subject.layers) == 1):
            yield _values(subject, side)


def _values(subject: Subject, side: Side) -> Shown:
    task, case, names = subject.task, subject.case(side.layer), side.heads
    leads = side.shapley[side.shapley["metric"] == "lead"]
    mine = leads[leads["trigram"] == case]
    # Rounding leaves interactions of 1e-7 logits, which a colour scale would blow up.
    pairs = side.interactions[case - 1].numpy()
    pairs = np.where(np.abs(pairs) < SMALLEST, 0.0, pairs)
    interactions = pd.DataFrame(
        [
            {"trigram": case, "head": a, "other_head": b, "interaction": pairs[i, j]}
            for i, a in enumerate(names)
            for j, b in enumerate(names)
            if i != j
        ],
        columns=["trigram", "head", "other_head", "interaction"],
    )
    sampled = not bool(mine["exact"].all())
    unit = f"lead of {answer_word(task)}"
    face = leads.assign(value=leads["value"].map(written.change)).pivot(
        index="head", columns="trigram", values="value"
    )
    face = face.loc[names].rename(columns=task.cases).rename_axis(None, axis=1).reset_index()
    return Shown(
        f"shapley{subject.which(side.layer)[0]}",
        subject.said(side.name, f"Shapley value of each head for the {unit} (logits)"),
        f"What each head adds, averaged over all subsets of heads. {_strongest(subject, side)}",
        {"values": mine, "interactions": interactions},
        lambda: shapley_and_interactions(
            mine["value"].tolist(), pairs, names,
            low=mine["low"].tolist() if sampled else None,
            high=mine["high"].tolist() if sampled else None,
            unit=unit, title=f"{side.label}: what heads add for {task.cases[case]}",
        ),
        face,
        side.name,
    )  # fmt: skip


def _strongest(subject: Subject, side: Side) -> str:
    found = [
        (float(side.interactions[b - 1, i, j]), f"{a} with {c} for {name}")
        for b, name in subject.task.cases.items()
        for i, a in enumerate(side.heads)
        for j, c in enumerate(side.heads)
        if i < j
    ]
    found = sorted((f for f in found if abs(f[0]) >= FAINTEST), key=lambda f: -abs(f[0]))
    if not found:
        return "No two heads interact: what each adds does not depend on any other."
    said = ", ".join(f"{pair} {written.change(value)}" for value, pair in found[:STRONGEST])
    return f"Beyond what its two heads add alone, a pair adds most here: {said}."


VIEW = View("ablations", show, lambda subject: subject.known, 10)
