"""The phase diagram: what toys learn, how often it is distributed, how often gating undoes it."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd

from gated_interp.experiments.cells import Cell, CellsConfig, Row, Runs, read_table, run_cells
from gated_interp.experiments.originals import Toys
from gated_interp.experiments.recipes import recipe_named
from gated_interp.experiments.reliability import summary as reliability_summary
from gated_interp.metrics.intervals import fractions
from gated_interp.plots import phase_diagram, save_figures

HEADS, TRIGRAMS = range(1, 9), range(1, 13)
STEM = "phase"


def run_phase(
    out: Path | str,
    *,
    heads: Sequence[int] = HEADS,
    trigrams: Sequence[int] = TRIGRAMS,
    seeds: int = 8,
    first_seed: int = 10_000,
    recipe: str = "reliable",
    steps: int | None = None,
    toy_steps: int | None = None,
    workers: int | str | None = None,
    say: Callable[[str], None] = lambda _: None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> pd.DataFrame:
    """One row of ``out/phase.csv`` for each (heads, trigrams); see :func:`phases`.

    A row is written when it is done; started again with the same seeds and steps, rows that are
    there are kept.

    Args:
        out: run folder.
        heads, trigrams: of the toys.
        seeds: toys, and gated runs on those that learnt, per cell.
        recipe: ``reliable`` or ``reference``.
        steps, toy_steps: instead of the recipe's.
        workers, say, on_progress: see :func:`run_cells`.

    Returns:
        The whole table.

    Raises:
        GatedInterpError: no such recipe, no cell, or a folder that holds something else.
    """
    config = CellsConfig(seeds=seeds, first_seed=first_seed, steps=steps, toy_steps=toy_steps)
    cells = [Cell(recipe, Toys(h, t), recipe_named(recipe, h, t)) for h in heads for t in trigrams]
    return run_cells(
        out, STEM, cells, config, phases, workers=workers, say=say, on_progress=on_progress
    )


def phases(runs: Runs) -> Row:
    """The row of :func:`reliability.summary`, and four fractions.

    ``learnt``: toys that learnt every trigram, of all; ``distributed``: of those, the ones with a
    trigram that has no sole owner; ``clean_rate``: gated runs that are clean (``low`` and ``high``
    are its interval); ``success``: those that succeed by the post's rule. The last three are
    missing where no toy learnt. Ends of 95% Wilson intervals: ``learnt_low``, ``learnt_high`` and
    so on.
    """
    row = reliability_summary(runs)
    row["clean_rate"] = row["clean"] / row["runs"] if row["runs"] else math.nan
    return row | fractions(
        learnt=(row["toys_learnt"], row["toys_trained"]),
        distributed=(row["toys_distributed"], row["toys_learnt"]),
        success=(row["successes"], row["runs"]),
    )


def draw_phase(
    csv: Path | str,
    out: Path | str,
    formats: Sequence[str] = ("svg", "png"),
    *,
    say: Callable[[str], object] | None = None,
) -> list[Path]:
    """Draw ``phase.csv`` to ``out/phase-diagram.*``, with the rows it was drawn from.

    Raises:
        GatedInterpError: not such a table, two recipes in it, or a format that does not exist.
    """
    wanted = ["heads", "trigrams", "learnt", "distributed", "success"]
    table = read_table(csv, wanted).sort_values(["heads", "trigrams"])
    figure = phase_diagram(table, title="Toys and gated blocks, by heads and trigrams")
    return save_figures({Path(out) / "phase-diagram": (figure, table)}, formats, say=say)
