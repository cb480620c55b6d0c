"""Does the run that is shown hang on a last bit? The main job over and over, weights disturbed.

Training is chaotic: another processor's rounding changes which seed comes out best. Each repeat
disturbs the initial weights of every toy and block by a millionth, which changes every run, and
picks the run to show anew.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd

from gated_interp.core.errors import GatedInterpError
from gated_interp.experiments.cells import Cell, CellsConfig, Row, Runs, run_cells
from gated_interp.experiments.originals import Toys
from gated_interp.experiments.paper import LARGER, PUBLISHED
from gated_interp.experiments.recipes import Recipe, recipe_named
from gated_interp.experiments.seeds import SELECTION

STEM = "repeats"
JITTER = 1e-6


def run_repeats(
    out: Path | str,
    *,
    only: Sequence[str] = tuple(PUBLISHED),
    repeats: int = 20,
    seeds: int = 64,
    steps: int | None = None,
    toy_steps: int | None = None,
    workers: int | str | None = None,
    say: Callable[[str], None] = lambda _: None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> pd.DataFrame:
    """Repeat the main job; one row of ``out/repeats.csv`` per experiment and repeat.

    A row is written when it is done; started again with the same seeds and steps, rows that are
    there are kept. ``out/repeats-runs.csv`` has every run.

    Args:
        only: names of experiments.
        repeats: how many of each.
        seeds: of each repeat, counted from 0 as the main job does.
        steps, toy_steps: instead of the recipe's.
        workers, say, on_progress: see :func:`run_cells`.

    Returns:
        The whole table: ``runs`` and how many are ``clean``, and ``shown_...`` of the run that
        would be shown.

    Raises:
        GatedInterpError: an unknown experiment, no repeat, or a folder that holds something else.
    """
    known = PUBLISHED | LARGER
    unknown = [name for name in only if name not in known]
    if unknown or repeats < 1:
        raise GatedInterpError(
            f"there is no experiment {unknown[0]!r}; there are {', '.join(known)}."
            if unknown
            else f"repeats is {repeats}; it must be at least 1."
        )
    config = CellsConfig(seeds=seeds, first_seed=0, steps=steps, toy_steps=toy_steps)
    cells = [
        Cell(f"repeat {i}", Toys(*known[name]), _disturbed(*known[name], i))
        for i in range(1, repeats + 1)
        for name in only
    ]
    return run_cells(
        out, STEM, cells, config, shown, workers=workers, say=say, on_progress=on_progress
    )


def _disturbed(heads: int, trigrams: int, repeat: int) -> Recipe:
    recipe = recipe_named("reliable", heads, trigrams)
    return recipe.replace(jitter=JITTER, jitter_seed=repeat)


def shown(runs: Runs) -> Row:
    """The row of a repeat: how many runs are clean, and the run that would be shown."""
    gated = runs.gated
    row: Row = {"runs": len(gated), "clean": int(gated["clean"].sum()) if len(gated) else 0}
    if len(gated):
        columns = list(SELECTION)
        best = gated.sort_values(columns, ascending=[SELECTION[c] for c in columns]).iloc[0]
        for name in ("seed", "toy_seed", "clean", "success", "kept", "fvu", "l0", "kl"):
            row[f"shown_{name}"] = best[name]
    return row
