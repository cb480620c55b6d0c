"""The post's picture: who holds each representation, before and after."""

from collections.abc import Iterator

import numpy as np
import pandas as pd

from gated_interp.analysis.faithfulness import dead_heads
from gated_interp.analysis.measures import shares
from gated_interp.analysis.verdict import SEED
from gated_interp.plots import Holdings, before_after
from gated_interp.replacements.splice import gated_block
from gated_interp.subject import Side, Subject
from gated_interp.tasks.skip_trigrams import SkipTrigramTask
from gated_interp.views.shown import Shown, View


def show(subject: Subject) -> Iterator[Shown]:
    """A row per case, a column per head."""
    task, word = subject.task, subject.task.case_word
    toy = "the toy" if isinstance(task, SkipTrigramTask) else "the original"
    block = "the gated block" if gated_block(subject.model) is not None else "the block"
    sides = subject.at[0].values()
    held = {
        key: _holdings(side, name)
        for key, side, name in zip(("before", "after"), sides, (toy, block), strict=True)
    }
    table = pd.DataFrame(
        {
            "model": key,
            "representation": name,
            "head": head,
            "share_of_loading": np.asarray(side.shares)[b - 1, h],
            "holds": h in side.holders[b],
            "learnt": b not in side.not_learnt,
        }
        for key, side in held.items()
        for b, name in task.cases.items()
        for h, head in enumerate(side.heads)
    )
    yield Shown(
        "before-after",
        f"Which head holds which {word}, before and after",
        f"Each row is a {word}, each column a head. A filled cell means that ablation shows this "
        "head to hold it. Hatched cells share it: none of them holds it alone. The number is the "
        "head's share (%) of what all heads add to the logit of the right answer.",
        table,
        lambda: before_after(
            held["before"], held["after"], task.cases,
            word=word, title=f"{subject.name}: who holds what",
        ),
    )  # fmt: skip


def _holdings(side: Side, name: str) -> Holdings:
    return Holdings(
        name=name,
        heads=side.heads,
        shares=shares(side.loadings).numpy(),
        holders=side.verdict.holders,
        not_learnt=side.verdict.not_learnt,
        dead=dead_heads(side.model, tokens=side.subject.task.sample(1000, SEED).tokens),
    )


VIEW = View(
    "holders", show, lambda subject: subject.one_layer and len(subject.sides) > 1, 0, "each"
)
