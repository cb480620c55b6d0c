"""What is lost without each head, and without all of them, by several methods of ablation."""

from collections.abc import Callable, Iterable, Iterator

import pandas as pd
import plotly.graph_objects as go

from gated_interp.core import written
from gated_interp.core.written import head_name
from gated_interp.plots import ablation_bars
from gated_interp.plots.text import head_effects
from gated_interp.subject import Subject, answer_word, usual_reference
from gated_interp.tasks.text import TextTask
from gated_interp.views.shown import Shown, View, change, together

METRICS = ("logit", "loss", "kl", "accuracy")
WORDS = (
    "What a head is worth depends on what takes its place, such as zeros, its mean output, or its "
    "output in another sequence. Where heads share work, the loss without one of them says little "
    "about its worth: the last row ablates all. In brackets: 95% intervals."
)
SOURCE = " Means, and outputs in other sequences, are of {n} sequences of the validation part."


def show(subject: Subject) -> Iterator[Shown]:
    """On text a figure of each layer; a table per metric, by case or else by method."""
    if not subject.known:
        for layer in subject.layers:
            yield _by_head(subject, layer)
    words = WORDS
    if isinstance(subject.task, TextTask):
        words += SOURCE.format(n=usual_reference(subject.model))
    for side, effects in subject.ablations.items():
        for i, metric in enumerate(METRICS if subject.known else METRICS[1:3]):
            mine = effects[effects["metric"] == metric]
            title, face = (_by_method if metric in ("loss", "kl") else _by_case)(subject, mine)
            yield Shown(
                f"ablation-{metric}" if i else "ablation",
                subject.said(side, title),
                words,
                mine if i else effects,
                None if i or not subject.known else _bars(subject, side, mine),
                face,
                side,
                folded=metric in ("kl", "accuracy"),
            )


def _by_method(subject: Subject, effects: pd.DataFrame) -> tuple[str, pd.DataFrame]:
    words = {"loss": "change in cross-entropy (nats)", "kl": "KL from the intact model (nats)"}
    cells = [change(*row) for row in effects[["change", "low", "high"]].to_numpy()]
    face = _wide(effects.assign(change=cells), "method", effects["method"].unique())
    return f"{words[effects['metric'].iloc[0]]} without each head", face


def _by_case(subject: Subject, effects: pd.DataFrame) -> tuple[str, pd.DataFrame]:
    task, metric = subject.task, effects["metric"].iloc[0]
    words = f"the logit of {answer_word(task)}" if metric == "logit" else "accuracy"
    mine = effects[effects["method"] == subject.method]
    face = _wide(mine.assign(change=mine["change"].map(written.change)), "trigram", task.cases)
    title = f"change in {words} at each {task.case_word} ({subject.method} ablation)"
    return title, face.rename(columns=task.cases)


def _wide(effects: pd.DataFrame, across: str, columns: Iterable[object]) -> pd.DataFrame:
    wide = effects.pivot(index="heads", columns=across, values="change")
    wide = wide.loc[effects["heads"].unique(), list(columns)]
    return wide.rename_axis("ablated").rename_axis(None, axis=1).reset_index()


def _bars(subject: Subject, side: str, effects: pd.DataFrame) -> Callable[[], go.Figure]:
    def draw() -> go.Figure:
        task, mine = subject.task, effects.copy()
        mine[task.case_word] = [task.cases[int(b)] for b in mine["trigram"]]
        title = f"{subject.label(side)}: what is lost without each head"
        unit = f"change in the logit of {answer_word(task)}"
        return ablation_bars(mine, unit=unit, panel=task.case_word, title=title)

    return draw


def _by_head(subject: Subject, layer: int) -> Shown:
    sides = {name: side.effects for name, side in subject.at[layer].items()}
    most = {name: table.sort_values("effect").iloc[-1] for name, table in sides.items()}
    said = "; ".join(
        f"the {name} loses most without {head_name((layer, int(row['head'])))}: "
        f"{written.change(row['effect'])} nats"
        for name, row in most.items()
    )
    finding = f"{said[0].upper()}{said[1:]}"
    return Shown(
        f"effects-L{layer}",
        finding,
        "By how much the loss rises without each head (zero ablation), the most important heads "
        "first. Bars are 95% intervals over sequences.",
        together(sides),
        lambda: head_effects(sides, layer=layer, title=finding),
    )


VIEW = View("ablations", show, order=0)
