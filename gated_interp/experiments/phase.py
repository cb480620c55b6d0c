"""The phase diagram: what toys learn, how often it is distributed, how often gating undoes it."""

import dataclasses
import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Unpack

import pandas as pd

from gated_interp.experiments.originals import Toys
from gated_interp.experiments.recipes import recipe_named
from gated_interp.experiments.reliability import Rates, rates
from gated_interp.experiments.study import Cell, How, Runs, Study
from gated_interp.metrics.intervals import fractions
from gated_interp.plots import phase_diagram
from gated_interp.views.shown import Shown

HEADS, TRIGRAMS = range(1, 9), range(1, 13)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PhaseRow(Rates):
    """A shape of toys.

    Attributes:
        clean_rate: gated runs that are clean (``low`` and ``high`` are its interval).
        learnt: toys that learnt every trigram, of all.
        distributed: of those, the ones with a trigram that has no sole owner.
        success: gated runs that succeed by the post's rule.

    All are fractions, with the ends of their 95% Wilson intervals. All but ``learnt`` are missing
    where no toy learnt.
    """

    clean_rate: float
    learnt: float
    learnt_low: float
    learnt_high: float
    distributed: float
    distributed_low: float
    distributed_high: float
    success: float


def phases(cell: Cell, runs: Runs) -> PhaseRow:
    """The row of a cell."""
    row = Rates(**rates(cell, runs))
    more = fractions(
        learnt=(row.toys_learnt, row.toys_trained),
        distributed=(row.toys_distributed, row.toys_learnt),
        success=(row.successes, row.runs),
    )
    clean_rate = row.clean / row.runs if row.runs else math.nan
    return PhaseRow(**vars(row) | more, clean_rate=clean_rate)


def _views(table: pd.DataFrame) -> list[Shown]:
    table = table.sort_values(["heads", "trigrams"])
    title = "Toys and gated blocks, by heads and trigrams"
    words = "How often toys learn, how often that is distributed, and how often gating undoes it."
    draw = partial(phase_diagram, table, title=title)
    return [Shown("phase-diagram", title, words, table, draw)]


PHASE = Study(
    name="phase",
    row=PhaseRow,
    summary=phases,
    views=_views,
    needs=("heads", "trigrams", "learnt", "distributed", "success"),
    seeds=8,
    first_seed=10_000,
)


def run_phase(
    out: Path | str,
    *,
    heads: Sequence[int] = HEADS,
    trigrams: Sequence[int] = TRIGRAMS,
    recipe: str = "reliable",
    **how: Unpack[How],
) -> pd.DataFrame:
    """One :class:`PhaseRow` of ``out/phase.csv`` for each number of heads and trigrams.

    Args:
        heads, trigrams: of the toys.
        recipe: ``reliable`` or ``reference``.
        how: see :meth:`~gated_interp.experiments.study.Study.run`, which says the rest.

    Raises:
        GatedInterpError: no such recipe, or as ``Study.run``.
    """
    cells = [Cell(recipe, Toys(h, t), recipe_named(recipe, h, t)) for h in heads for t in trigrams]
    return PHASE.run(out, cells, **how)
