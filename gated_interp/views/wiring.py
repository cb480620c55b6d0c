"""What the last token shown of one example reads, through which heads, and what they write."""

from collections.abc import Iterator

import pandas as pd

from gated_interp.plots import wiring_diagram
from gated_interp.subject import Side, Subject
from gated_interp.views.shown import Shown, View


def show(subject: Subject) -> Iterator[Shown]:
    """A diagram per side of each layer whose heads add up to the logits."""
    yield from (_diagram(subject, side) for side in subject.measured if side.linear)


def _diagram(subject: Subject, side: Side) -> Shown:
    example, tokens = side.example, subject.task.token_names
    assert example.effects is not None
    end, case = example.position + 1, subject.task.cases[example.trigram]
    pattern = example.pattern[:, example.position, :end].numpy()
    gate = None if example.gate is None else example.gate[:, example.position, :end].numpy()
    effects = example.effects.numpy()
    reads = pd.DataFrame(
        {"head": head, "key_pos": k, "token": example.tokens[k], "attention": pattern[h, k]}
        | ({} if gate is None else {"gate": gate[h, k]})
        for h, head in enumerate(side.heads)
        for k in range(end)
    )
    writes = pd.DataFrame(
        {"head": head, "output_token": token, "logit": effects[h, v]}
        for h, head in enumerate(side.heads)
        for v, token in enumerate(tokens)
    )
    return Shown(
        f"wiring{subject.which(side.layer)[0]}",
        f"What each head of the {side.name} reads and writes in one example of {case}",
        "What the heads read at the last token shown, and what each writes to the logits. The "
        "thicker a ribbon, the more.",
        {"reads": reads, "writes": writes},
        lambda: wiring_diagram(
            pattern, effects, example.tokens[:end], side.heads, tokens, gate=gate,
            predicted=example.predicted, title=f"{side.label}: one example of {case}",
        ),
        side=side.name,
    )  # fmt: skip


VIEW = View("circuits", show, lambda subject: subject.known, 30)
