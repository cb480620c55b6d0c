"""How much each head of a last layer carries of each case, before and after."""

from collections.abc import Iterator
from functools import partial

import pandas as pd

from gated_interp.plots import loading_matrix
from gated_interp.replacements.splice import gated_block
from gated_interp.subject import Side, Subject
from gated_interp.views.shown import Shown, View


def show(subject: Subject) -> Iterator[Shown]:
    """A map per side."""
    word, cases = subject.task.case_word, list(subject.task.cases.values())
    for layer, sides in subject.at.items():
        if not subject.at[layer][next(iter(sides))].linear:
            continue
        if subject.original is not None and len(sides) == 1:
            before = Side("original", subject.original, layer, subject)
            sides = {"original": before, "block": sides["model"]}
        end = subject.which(layer)[0]
        block = "gated block" if gated_block(subject.model, layer) is not None else "block"
        words = {"original": "before (toy)", "block": f"after ({block})", "model": "the model"}
        loadings = {words[name]: side.loadings.numpy() for name, side in sides.items()}
        heads = {words[name]: side.heads for name, side in sides.items()}
        table = pd.DataFrame(
            {"model": key, "representation": case, "head": head, "loading": found[i, h]}
            for key, found in loadings.items()
            for i, case in enumerate(cases)
            for h, head in enumerate(heads[key])
        )
        title = f"{subject.name}: how much each head carries of each {word}"
        yield Shown(
            f"loadings{end}",
            f"How much each head carries of each {word}",
            f"How many logits each head adds to the right answer of each {word}, on average.",
            table,
            partial(loading_matrix, loadings, cases, heads, title=title),
        )


VIEW = View("circuits", show, lambda subject: subject.known, 10)
