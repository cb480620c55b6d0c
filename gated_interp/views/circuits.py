"""The OV, QK and gate circuits of every head: all of them for few tokens, else what stands out."""

from collections.abc import Iterator

import pandas as pd
import torch

from gated_interp.analysis.circuit_tables import (
    circuit_summary,
    circuit_table,
    largest_entries,
    prefix_matching,
    stacked,
)
from gated_interp.analysis.induction import induction_scores, repeated_random_tokens
from gated_interp.analysis.overview import DEEP, REPEATED
from gated_interp.models.toy import HookedTransformer
from gated_interp.plots import circuit_maps
from gated_interp.subject import Side, Subject
from gated_interp.views.shown import Shown, View, marked

WORDS = (
    "Circuits are read off the weights: they say what a head would do for every pair of tokens. "
    "The copying score runs from -1 (suppresses the token it attends to) to 1 (copies it)."
)

# Of a larger vocabulary, a circuit's rows are the tokens of the sequences that are read.
MOST_TOKENS = 2**14


def _scores(
    subject: Subject, model: HookedTransformer, bos: int | None
) -> dict[tuple[int, int], float]:
    """Prefix matching of every head; of a deep model the overview has it of its own side."""
    if subject.model.cfg.n_layers <= DEEP:
        return prefix_matching(induction_scores(model, repeated_random_tokens(model, bos=bos)))
    table = subject.overview.table
    if model is not subject.model:
        table = induction_scores(model, repeated_random_tokens(model, REPEATED, bos=bos))
    return prefix_matching(table)


def show(subject: Subject) -> Iterator[Shown]:
    """Heat maps and a summary; on text a table per side."""
    if subject.known:
        for side in subject.after:
            yield _maps(subject, side)
        tables = [
            circuit_summary(side.model, side.layer, subject.task.token_names, side.circuits)
            for side in subject.after
        ]
        yield Shown(
            "circuit-summary",
            "What each head's circuits do most",
            f"{WORDS} Beside it stands the largest entry of each circuit: source → output token of "
            "OV, query → key token of QK and of the gate.",
            (found := pd.concat(tables, ignore_index=True)),
            face=found.rename(columns=lambda name: name.replace("_", " ")),
        )
        return
    rows = None
    if subject.model.cfg.d_vocab > MOST_TOKENS:
        rows = torch.unique(subject.batch.tokens[subject.batch.counted])
    first = subject.first_token
    for name, model in subject.sides.items():
        scores = _scores(subject, model, first)
        tables = [
            largest_entries(model, i, subject.names, scores, rows=rows) for i in subject.layers
        ]
        table = pd.concat(tables, ignore_index=True)
        heads = ["head", "copying score", "prefix matching", "OV: source → output",
                 "QK: query → key"]  # fmt: skip
        yield Shown(
            "circuits",
            subject.said(name, "largest entries of each head's circuits"),
            f"{WORDS} Prefix matching, 0 to 1, is how far a head attends as an induction head does "
            "on repeated random tokens."
            + ("" if rows is None else f" Sources and queries are the {len(rows)} tokens read."),
            table,
            face=table.set_axis(heads, axis=1).round(3),
            side=name,
        )


def _maps(subject: Subject, side: Side) -> Shown:
    matrices = {kind: stacked(found).numpy() for kind, found in side.circuits.items()}
    end, said = subject.which(side.layer)
    title = f"{subject.name}{said}: the circuits of each head"
    return Shown(
        f"circuits{end}",
        f"The circuits of each head{said}",
        "OV: what a head adds to the logit of each output token (column) when it attends to a "
        "source token (row). QK: how strongly each query token looks at each key token. Gate: how "
        "far it opens for each pair; 0 is shut.",
        circuit_table(side.circuits, subject.task.token_names),
        lambda: circuit_maps(
            matrices["OV"], matrices["QK"], subject.task.token_names, side.heads,
            gates=matrices.get("gate"), marks=side.marks, title=marked(title, side.marks),
        ),
    )  # fmt: skip


VIEW = View("circuits", show, order=0)
