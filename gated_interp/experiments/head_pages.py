"""What a decomposition found, as pages of cards: the original's heads beside those of a block."""

from collections.abc import Collection
from pathlib import Path
from typing import Any

import pandas as pd

from gated_interp.analysis.overview import SEQUENCES
from gated_interp.analysis.read_heads import Readings, read_heads
from gated_interp.analysis.text_pairs import names_for
from gated_interp.anatomy.batch import Batch
from gated_interp.core.files import write_table, write_text
from gated_interp.models.toy import HookedTransformer
from gated_interp.plots.head_grid import head_grids
from gated_interp.plots.head_page import flat, head_page
from gated_interp.subject import Subject
from gated_interp.views.frontier import MEASURES
from gated_interp.views.overview import show as show_overview


def write_head_page(
    out: Path,
    original: HookedTransformer,
    spliced: HookedTransformer,
    tokens: Batch,
    run: pd.Series,
    overview: Subject | None = None,
    layers: Collection[int] = (),
) -> Path:
    """Write ``out/L0.html`` and, per side, ``out/L0-heads-original.csv`` and ``...-block.csv``.

    Args:
        run: the row of ``runs.csv`` that ``spliced`` is from.
        overview: the original, whose overview of all layers the page starts from.
        layers: that have such a page.
    """
    layer, seed = int(run["layer"]), int(run["seed"])
    names = names_for(original, None)
    sides: dict[str, Readings] = {
        "original": read_heads(original, layer, tokens, names=names),
        f"block, seed {seed}": read_heads(spliced, layer, tokens, names=names),
    }
    for side, read in zip(("original", "block"), sides.values(), strict=True):
        write_table(flat(read.table), out / f"L{layer}-heads-{side}.csv")
    block, own = (len(read.table) for read in reversed(sides.values()))
    page = head_page(
        f"{original.model_name}, layer {layer}: {own} heads and the {block} that stand in for them",
        f"Read on {int(tokens.counted.sum()):,} tokens of held-out text. The block shown is the "
        f"one of seed {seed}, whose FVU is the median. A head holds a position alone when the "
        "token that the layer raises most there stays on top whatever other heads are removed.",
        sides,
        names,
        [
            (words, ["" if own is None else form(run[own]), form(run[block])])
            for words, (block, own, _, form) in MEASURES.items()
            if block in run
        ],
        None if overview is None else _overview(overview.narrowed(layer), layer, layers),
    )
    return write_text(out / f"L{layer}.html", page)


def overview_of(out: Path, original: HookedTransformer, tokens: Batch) -> Subject | None:
    """The original with its overview measured and in ``out/overview.csv``.

    ``None`` where there is one layer, or what is read predicts no tokens.
    """
    subject = Subject.of(original, None, tokens[:SEQUENCES])
    if not subject.has_overview:
        return None
    write_table(subject.overview.table, out / "overview.csv")
    return subject


def _overview(subject: Subject, layer: int, layers: Collection[int]) -> dict[str, Any]:
    (shown,) = show_overview(subject)
    grids = head_grids(subject.overview, layer, layers)
    return {"title": shown.title, "words": shown.words, "layer": layer, "grids": grids}
