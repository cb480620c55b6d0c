"""The cells of a sweep: what one is, and how those of one shape are run."""

import dataclasses
import hashlib
import json
import math
from collections.abc import Sequence

import pandas as pd

from gated_interp.experiments.recipes import Recipe
from gated_interp.experiments.seeds import SeedsOutcome, ToyOutcome, train_gated_seeds
from gated_interp.experiments.table import Row
from gated_interp.metrics.intervals import fractions
from gated_interp.tasks.task import ProbedTask

COLUMNS: dict[str, type] = {
    "key": str,
    "heads": int,
    "trigrams": int,
    "alpha": float,
    "gated_heads": int,
    "seeds": int,
    "toys_learnt": int,
    "toys_distributed": int,
    "gated_runs": int,
    "clean_runs": int,
    "successes": int,
    "learnt": float,
    "learnt_low": float,
    "learnt_high": float,
    "distributed": float,
    "distributed_low": float,
    "distributed_high": float,
    "clean": float,
    "clean_low": float,
    "clean_high": float,
    "success": float,
    "success_low": float,
    "success_high": float,
    "fvu_median": float,
    "l0_median": float,
    "seconds": float,
}
"""The columns of a sweep's table.

- ``key``: a hash of everything that decides the row.
- ``heads``, ``trigrams``: of the toys; ``alpha``: of the gated runs; ``seeds``: toys trained.
- ``toys_learnt``: toys that learnt every trigram; ``toys_distributed``: of those, the ones with a
  trigram without a sole owner; ``gated_runs``: as many as seeds, spread over the toys that learnt
  (0 where none did); ``clean_runs``: of those, with every trigram held by one head of its own;
  ``successes``: of those, with every trigram learnt and solely owned.
- ``learnt`` (of the seeds), ``distributed`` (of the toys that learnt), ``clean`` and ``success``
  (of the gated runs): fractions, with the ends of their 95% Wilson intervals; missing where nothing
  was run.
- ``fvu_median``, ``l0_median``: over the gated runs, on held-out sequences.
- ``seconds``: of one process, with those of the toys, which all cells of a shape share.
"""


@dataclasses.dataclass(frozen=True)
class SweepCell:
    """A shape of toy, how toys and gated blocks are trained, and over which seeds."""

    heads: int
    trigrams: int
    recipe: Recipe
    seeds: int
    first_seed: int

    @property
    def key(self) -> str:
        """A hash of all of it."""
        text = json.dumps(dataclasses.asdict(self), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def measured(
    task: ProbedTask, recipe: Recipe, seeds: Sequence[int], originals: Sequence[ToyOutcome]
) -> list[Row]:
    """A row for each seed's gated run, see :meth:`GatedOutcome.row`."""
    return [run.row() for run in train_gated_seeds(task, recipe, seeds, originals)]


def row_of(cell: SweepCell, trained: list[ToyOutcome], runs: Sequence[Row], seconds: float) -> Row:
    """The row of a finished cell, see ``COLUMNS``."""
    toys, gated = SeedsOutcome(trained, [], seconds).toy_table(), pd.DataFrame(runs)
    learnt = toys["learnt_all"]
    row: Row = {
        "key": cell.key,
        "heads": cell.heads,
        "trigrams": cell.trigrams,
        "alpha": cell.recipe.training.alpha,
        "gated_heads": cell.recipe.block.heads(cell.heads),
        "seeds": len(toys),
        "toys_learnt": int(learnt.sum()),
        "toys_distributed": int((learnt & (toys["distributed"] > 0)).sum()),
        "gated_runs": len(gated),
        "clean_runs": int(gated["clean"].sum()) if len(gated) else 0,
        "successes": int(gated["success"].sum()) if len(gated) else 0,
        "fvu_median": float(gated["fvu"].median()) if len(gated) else math.nan,
        "l0_median": float(gated["l0"].median()) if len(gated) else math.nan,
        "seconds": seconds,
    }
    row |= fractions(
        learnt=(row["toys_learnt"], row["seeds"]),
        distributed=(row["toys_distributed"], row["toys_learnt"]),
        clean=(row["clean_runs"], row["gated_runs"]),
        success=(row["successes"], row["gated_runs"]),
    )
    return {name: row[name] for name in COLUMNS}
