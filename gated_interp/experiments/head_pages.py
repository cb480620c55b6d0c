"""What a decomposition found, as pages of cards: the original's heads beside those of a block."""

from pathlib import Path

import pandas as pd

from gated_interp.analysis.read_heads import Readings, read_heads
from gated_interp.analysis.text_pairs import names_for
from gated_interp.anatomy.batch import Batch
from gated_interp.core.files import write_table, write_text
from gated_interp.models.toy import HookedTransformer
from gated_interp.plots.head_page import flat, head_page
from gated_interp.views.frontier import MEASURES


def write_head_page(
    out: Path,
    original: HookedTransformer,
    spliced: HookedTransformer,
    tokens: Batch,
    run: pd.Series,
) -> Path:
    """Write ``out/L0.html`` and, per side, ``out/L0-heads-original.csv`` and ``...-block.csv``.

    Args:
        run: the row of ``runs.csv`` that ``spliced`` is from.
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
    )
    return write_text(out / f"L{layer}.html", page)
