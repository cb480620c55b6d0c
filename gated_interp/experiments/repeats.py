"""Does the run that is shown hang on a last bit? The main job over and over, weights disturbed.

Training is chaotic: another processor's rounding changes which seed comes out best. Each repeat
disturbs the initial weights of every toy and block by a millionth, which changes every run, and
picks the run to show anew.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Unpack

import pandas as pd

from gated_interp.core.errors import GatedInterpError
from gated_interp.experiments.originals import Toys
from gated_interp.experiments.paper import LARGER, PUBLISHED
from gated_interp.experiments.recipes import Recipe, recipe_named
from gated_interp.experiments.seeds import SELECTION
from gated_interp.experiments.study import Cell, CellRow, How, Runs, Study, named

JITTER = 1e-6


@dataclasses.dataclass(frozen=True, kw_only=True)
class RepeatRow(CellRow):
    """A repeat of an experiment.

    Attributes:
        clean: runs that are clean.
        shown_seed: and what follows, of the run that would be shown (:class:`GatedOutcome`);
            missing where no toy learnt.
    """

    clean: int
    shown_seed: int | None = None
    shown_toy_seed: int | None = None
    shown_clean: bool | None = None
    shown_success: bool | None = None
    shown_kept: float | None = None
    shown_fvu: float | None = None
    shown_l0: float | None = None
    shown_kl: float | None = None


def shown(cell: Cell, runs: Runs) -> RepeatRow:
    """The row of a repeat: how many runs are clean, and the run that would be shown."""
    gated, row = runs.gated, named(cell, runs) | {"clean": 0}
    if len(gated):
        row["clean"] = int(gated["clean"].sum())
        columns = list(SELECTION)
        best = gated.sort_values(columns, ascending=[SELECTION[c] for c in columns]).iloc[0]
        row |= {f"shown_{name}": value for name, value in best.items()}
    return RepeatRow.of(row)


REPEATS = Study(name="repeats", row=RepeatRow, summary=shown, seeds=64)


def run_repeats(
    out: Path | str,
    *,
    only: Sequence[str] = tuple(PUBLISHED),
    repeats: int = 20,
    **how: Unpack[How],
) -> pd.DataFrame:
    """Repeat the main job; one :class:`RepeatRow` of ``out/repeats.csv`` per experiment and repeat.

    Args:
        only: names of experiments.
        repeats: how many of each.
        how: see :meth:`~gated_interp.experiments.study.Study.run`, which says the rest.

    Raises:
        GatedInterpError: an unknown experiment, no repeat, or as ``Study.run``.
    """
    known = PUBLISHED | LARGER
    unknown = [name for name in only if name not in known]
    if unknown:
        raise GatedInterpError("unknown-name", what="experiment", name=unknown[0], choices=[*known])
    if repeats < 1:
        raise GatedInterpError("too-small", name="repeats", value=repeats, least=1)
    cells = [
        Cell(f"repeat {i}", Toys(*known[name]), _disturbed(*known[name], i))
        for i in range(1, repeats + 1)
        for name in only
    ]
    return REPEATS.run(out, cells, **how)


def _disturbed(heads: int, trigrams: int, repeat: int) -> Recipe:
    recipe = recipe_named("reliable", heads, trigrams)
    return recipe.replace(jitter=JITTER, jitter_seed=repeat)
