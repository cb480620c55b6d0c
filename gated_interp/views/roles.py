"""What each head of a one-layer model writes for, and what is left without the holders."""

from collections.abc import Iterator

import pandas as pd

from gated_interp.analysis.roles import energy_by_place, head_roles, what_remains
from gated_interp.core import written
from gated_interp.plots import head_roles_figure
from gated_interp.subject import Subject
from gated_interp.views.shown import Shown, View, marked

SETS = {"nothing": "all heads", "holders": "without the holders", "others": "holders only"}


def show(subject: Subject) -> Iterator[Shown]:
    """A figure of both, and a table of heads."""
    side, task, word = subject.after[0], subject.task, subject.task.case_word
    energy = energy_by_place(side.model, task)
    remains = what_remains(side.model, task, side.held)
    answered = f"{word}s answered"
    measures = {"FVU": "fvu", "KL (nats per position)": "kl", answered: "accuracy"}
    left = {
        said: {SETS[r["ablated"]]: r[column] for r in remains.to_dict("records")}
        for said, column in measures.items()
    }
    title = f"{subject.name}: what each head writes for, and what is left without holders"
    face = remains[["ablated", "heads", "fvu", "kl", "accuracy"]]
    yield Shown(
        "roles",
        "Where each head writes, and what is left without the heads that hold something",
        "Left: the tokens at which each head writes, as a share of all that heads write on "
        "ordinary sequences. Right: what is left with all heads, without the holders, and with "
        "nothing else.",
        {"energy": energy.reset_index().assign(head=side.heads), "left": remains},
        lambda: head_roles_figure(
            energy, [str(p) for p in energy], side.heads, left,
            percent=[answered], marks=side.marks, title=marked(title, side.marks),
        ),
        face.set_axis(["ablated", "heads", "FVU", "KL (nats)", answered], axis=1).assign(
            **{answered: [written.share(share, 1) for share in face["accuracy"]]}
        ),
    )  # fmt: skip
    roles = head_roles(side.model, task, side.held)
    numbers = {"energy": "energy", "of it there": "purity", f"at any {word}": "purity_any",
               "gate open": "open_pairs", "open there": "open_there"}  # fmt: skip
    shares = {
        said: [written.share(x, 1) for x in roles[column]] for said, column in numbers.items()
    }
    holds = {h: task.cases[b] for b, heads in side.held.items() for h in heads}
    names = [holds.get(h, "-") for h in range(len(side.heads))]
    yield Shown(
        "head-roles",
        "What each head writes for",
        f"Energy is the head's share of all that heads write. “There” is where the {word} that the "
        "head holds is answered.",
        roles,
        face=pd.DataFrame({"head": side.heads, "holds": names, **shares}),
    )


VIEW = View(
    "holders", show, lambda subject: subject.known and subject.model.cfg.n_layers == 1, 20, "each"
)
