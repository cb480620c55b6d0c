"""Attention of every head in one example, and what of it the gates let through."""

from collections.abc import Iterator

import pandas as pd

from gated_interp.plots import attention_patterns
from gated_interp.subject import Side, Subject
from gated_interp.views.shown import Shown, View, marked


def show(subject: Subject) -> Iterator[Shown]:
    """A pattern per head of each layer."""
    yield from (_patterns(subject, side) for side in subject.after)


def _patterns(subject: Subject, side: Side) -> Shown:
    example, case = side.example, subject.task.cases[side.example.trigram]
    pattern, tokens = example.pattern, example.tokens
    gated = None if example.gate is None else (example.gate * pattern).numpy()
    table = pd.DataFrame(
        {
            "head": head,
            "query_pos": q,
            "query_token": tokens[q],
            "key_pos": k,
            "key_token": tokens[k],
            "attention": float(pattern[h, q, k]),
        }
        | ({} if gated is None else {"gated_attention": gated[h, q, k]})
        for h, head in enumerate(side.heads)
        for q in range(len(tokens))
        for k in range(q + 1)
    )
    title = f"{subject.name}: attention in one example of {case}"
    return Shown(
        f"attention{subject.which(side.layer)[0]}",
        f"Attention in one example of {case}",
        "Where each head attends in the same sequence, and what of it the gates let through.",
        table,
        lambda: attention_patterns(
            pattern.numpy(), tokens, side.heads, gated=gated, marks=side.marks,
            title=marked(title, side.marks),
        ),
    )  # fmt: skip


VIEW = View("circuits", show, lambda subject: subject.known, 40)
