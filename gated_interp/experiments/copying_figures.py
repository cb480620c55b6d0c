"""Figures of the study of copying, drawn from its tables alone."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pandas as pd

from gated_interp.experiments.copying import ORIGINAL, SCORES, TWO_HEADS, CopyingRow
from gated_interp.experiments.store import read_table
from gated_interp.plots.copying import copying_controls, copying_shares
from gated_interp.views.shown import Shown, write_all

WORTH = 0.1
"""The loss rises by more than this (nats) without a layer that copies."""


def draw_copying(
    run: Path | str,
    out: Path | str,
    formats: Sequence[str] = ("svg", "png"),
    *,
    say: Callable[[str], object] | None = None,
) -> list[Path]:
    """Write the figures of the study in the folder ``run`` to ``out``, each with its tables.

    Where no layer matters there are none.
    """
    run = Path(run)
    blocks = read_table(run / "copying.csv", [*CopyingRow.columns()])
    heads = read_table(run / "copying-runs.csv", [*CopyingRow.KEY, "share"])
    scores = read_table(run / SCORES)
    views = shown_copying(blocks, heads, scores)
    return write_all({Path(out) / shown.name: shown for shown in views}, formats, say=say)


def shown_copying(
    blocks: pd.DataFrame, heads: pd.DataFrame, scores: pd.DataFrame
) -> Iterator[Shown]:
    """Who carries the copying, and for each layer with controls what they cost."""
    worth = blocks["loss_off"] - blocks["loss_original"]
    there = blocks[(worth > WORTH) & blocks["carriers"].notna()]
    if there.empty:
        return
    trained = there.loc[there["method"] != ORIGINAL, "method"].tolist()
    main = TWO_HEADS if TWO_HEADS in trained or not trained else trained[0]
    yield Shown(
        "copying",
        "How many heads carry the copying of a layer",
        "A column for each layer and each block in its place, a slice for each head. Layers that "
        "hardly matter are left out.",
        {"": blocks, "heads": heads, "scores": scores},
        lambda: copying_shares(there, heads, method=main),
    )
    for layer, rows in there.groupby("layer"):
        methods = rows.loc[rows["method"] != ORIGINAL, "method"]
        if methods.nunique() > 1:
            title = f"Layer {layer}: what the best two heads carry, and what the block costs"
            yield Shown(
                f"copying-controls-L{layer}",
                title,
                "Up and to the left is better. Dotted lines are the aims.",
                rows,
                lambda rows=rows, title=title: copying_controls(rows, title=title),  # type: ignore[misc]
            )
