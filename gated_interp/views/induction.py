"""Which heads attend as previous-token and as induction heads do, where a task repeats tokens."""

from collections.abc import Iterator

from gated_interp.analysis.heads import head_name
from gated_interp.analysis.induction import induction_scores
from gated_interp.analysis.verdict import EXAMPLES, SEED
from gated_interp.subject import Subject
from gated_interp.tasks.repeated_tokens import RepeatedTokensTask
from gated_interp.views.shown import Shown, View


def show(subject: Subject) -> Iterator[Shown]:
    """A row per head."""
    scores = induction_scores(subject.model, subject.task.sample(EXAMPLES, SEED).tokens)
    names = map(head_name, zip(scores["layer"], scores["head"], strict=True))
    face = scores[["previous_token", "prefix_matching"]].set_axis(
        ["previous token", "prefix matching"], axis=1
    )
    face.insert(0, "head", list(names))
    yield Shown(
        "induction",
        "Where heads attend: to the token before, or to what followed an earlier copy",
        "Both scores run from 0 to 1.",
        scores,
        face=face,
    )


VIEW = View("circuits", show, lambda subject: isinstance(subject.task, RepeatedTokensTask), 70)
