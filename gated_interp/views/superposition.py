"""How far the representations of a one-layer model are in superposition."""

from collections.abc import Iterator

import pandas as pd

from gated_interp.analysis.superposition import superposition_report
from gated_interp.subject import Subject
from gated_interp.views.shown import Shown, View, between

YES_NO = ("learnt", "distributed", "composed", "superposed")


def show(subject: Subject) -> Iterator[Shown]:
    """A table of representations, and one of the model."""
    report = superposition_report(subject.model, subject.task)
    each = report[report["scope"] == "representation"]
    table = each.pivot(index="measure", columns="trigram", values="value")
    table = table.loc[each["measure"].unique()].astype(object)
    for measure in YES_NO:
        table.loc[measure] = table.loc[measure].map(lambda one: "yes" if one else "no")
    face = table.set_axis(list(subject.task.cases.values()), axis=1)
    face.insert(0, "measure", [str(name).replace("_", " ") for name in table.index])
    yield Shown(
        "superposition",
        f"Each {subject.task.case_word}: is it distributed over heads, and in superposition?",
        "Distributed: no head is its sole owner. Superposed: distributed, and a head that carries "
        "it also carries another.",
        report,
        face=face,
    )
    whole = report[report["scope"] == "model"]
    rows = whole[["measure", "value", "low", "high"]].reset_index(drop=True)
    yield Shown(
        "superposition-model",
        "The same measures of the whole model",
        "Intervals are over bootstrap samples of examples or sequences.",
        rows,
        face=pd.DataFrame(
            {
                "measure": [name.replace("_", " ") for name in rows["measure"]],
                "value": rows["value"],
                "95% interval": list(map(between, rows["low"], rows["high"])),
            }
        ),
        folded=True,
    )


VIEW = View("circuits", show, lambda subject: subject.one_layer, 80)
