"""What the heads of later layers read of those of earlier layers."""

from collections.abc import Iterator

import pandas as pd

from gated_interp.analysis.circuits import composition_scores
from gated_interp.analysis.heads import head_name
from gated_interp.analysis.overview import DEEP
from gated_interp.subject import Subject
from gated_interp.views.shown import Shown, View

STRONGEST = 12


def show(subject: Subject) -> Iterator[Shown]:
    """The largest scores; in a deep model, of pairs with a head of the layer shown."""
    deep = subject.model.cfg.n_layers > DEEP
    found = composition_scores(subject.model, subject.layer_shown if deep else None).sort_values(
        "score", ascending=False, kind="stable"
    )
    most = found.head(STRONGEST)
    pairs = {
        words: list(map(head_name, zip(most[f"{end}_layer"], most[f"{end}_head"], strict=True)))
        for words, end in {"writes": "sender", "reads": "receiver"}.items()
    }
    scores = {"by": most["kind"], "score": most["score"], "random heads": most["expected"]}
    yield Shown(
        "composition",
        "What heads read most of earlier heads",
        f"The {len(most)} largest of {len(found)} scores; the file has all. Random heads of the "
        "same shape would score what the last column says.",
        found,
        face=pd.DataFrame(
            {**pairs, **{k: v.round(3) if k != "by" else v for k, v in scores.items()}}
        ),
    )


VIEW = View("circuits", show, lambda subject: subject.model.cfg.n_layers > 1, 60)
