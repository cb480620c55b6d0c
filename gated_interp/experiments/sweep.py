"""A grid of cells (heads, trigrams, alpha), many seeds each, into one table that grows."""

import dataclasses
import hashlib
import json
import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

import pandas as pd

from gated_interp.core.errors import GatedInterpError
from gated_interp.experiments.backends import Backend
from gated_interp.experiments.grid import numbers, whole_numbers
from gated_interp.experiments.memory import require_memory
from gated_interp.experiments.originals import Toys
from gated_interp.experiments.recipes import Recipe, recipe_named
from gated_interp.experiments.seeds import ToyOutcome, train_gated_seeds
from gated_interp.experiments.store import Row, Store
from gated_interp.experiments.study import Cell, CellsConfig, Progress, Runs, Say, Study
from gated_interp.metrics.intervals import fractions
from gated_interp.plots import phase_diagram, sweep_curves
from gated_interp.tasks.task import ProbedTask
from gated_interp.views.shown import Shown

# More lines than this cannot be told apart.
MOST_LINES = 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class SweepRow(Row):
    """A shape of toys and a weight of the gate penalty.

    Attributes:
        key: a hash of everything that decides the row.
        heads, trigrams: of the toys.
        alpha: of the gated runs; ``gated_heads`` of each.
        seeds: toys trained.
        toys_learnt: toys that learnt every trigram.
        toys_distributed: of those, the ones with a trigram without a sole owner.
        gated_runs: as many as seeds, spread over the toys that learnt (0 where none did).
        clean_runs: of those, with every trigram held by one head of its own.
        successes: of those, with every trigram learnt and solely owned.
        learnt (of the seeds), distributed (of the toys that learnt), clean, success (of the gated
            runs): fractions, with the ends of their 95% Wilson intervals; missing where nothing
            was run.
        fvu_median, l0_median: over the gated runs, on held-out sequences.
        seconds: of one process, with those of the toys, which all cells of a shape share.
    """

    KEY: ClassVar[tuple[str, ...]] = ("key",)
    ORDER: ClassVar[tuple[str, ...]] = ("heads", "trigrams", "alpha")

    key: str
    heads: int
    trigrams: int
    alpha: float
    gated_heads: int
    seeds: int
    toys_learnt: int
    toys_distributed: int
    gated_runs: int
    clean_runs: int
    successes: int
    learnt: float
    learnt_low: float
    learnt_high: float
    distributed: float
    distributed_low: float
    distributed_high: float
    clean: float
    clean_low: float
    clean_high: float
    success: float
    success_low: float
    success_high: float
    fvu_median: float
    l0_median: float
    seconds: float

    def __str__(self) -> str:
        which = f"{self.heads}H{self.trigrams}ST, alpha {self.alpha:g}"
        return f"{which}: {self.clean_runs} of {self.gated_runs} are clean."


@dataclasses.dataclass(frozen=True)
class SweepCell(Cell):
    """A shape of toy, how toys and gated blocks are trained, and over which seeds."""

    originals: Toys
    seeds: int
    first_seed: int

    @property
    def key(self) -> str:
        """A hash of all of it."""
        shape = dataclasses.asdict(self.originals)
        text = json.dumps(shape | {"recipe": self.recipe.to_dict(), "seeds": self.seeds,
                                   "first_seed": self.first_seed}, sort_keys=True)  # fmt: skip
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def names(self) -> tuple[str, ...]:
        """The key of its row."""
        return (self.key,)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SweepConfig(CellsConfig):
    """A grid, and how its cells are run.

    Attributes:
        heads: Train toys with these numbers of heads, a range such as 2:4 or a list such as 2,3.
        trigrams: Train toys on these numbers of skip trigrams, a range or a list.
        alphas: Weight the gate penalty by these numbers, such as 0.05,0.2 (the recipe's if none).
        seeds: Train this many toys, and gated blocks on those that learnt, in each cell.
        first_seed: Count seeds up from this one.
        recipe: Take all other settings from this recipe.
        hold_fvu: Hold the recipe's FVU target, whatever alpha is.
        expansion: Give blocks this many heads for each of the toy's, instead of the recipe's.
        steps: Train each block for this many steps, instead of the recipe's.
        toy_steps: Train each toy for this many steps, instead of the recipe's.
        n_sequences: Train each run on this many sequences, instead of the recipe's.
        settings: further fields of the recipe, by name or path: ``{"training.lr": 0.01}``.
        out: the folder of the table.

    Examples:
        >>> len(SweepConfig(heads="2:4", trigrams="3:6", alphas="0.05,0.2,0.5").cells())
        36
    """

    heads: str = "2:4"
    trigrams: str = "3:6"
    alphas: str | None = None
    recipe: Literal["reliable", "reference"] = "reliable"
    hold_fvu: bool = True
    expansion: int | None = None
    n_sequences: int | None = None
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)
    out: str = "runs/sweep"

    def problems(self) -> list[GatedInterpError]:
        found = super().problems()
        try:
            self.axes()
            if not found:
                self.recipe_for(1, 1)
        except GatedInterpError as error:
            found.append(error)
        return found

    def axes(self) -> tuple[list[int], list[int], list[float | None]]:
        """The numbers of heads, of trigrams, and the alphas.

        Raises:
            GatedInterpError: an axis that cannot be read or holds nothing.
        """
        alphas: list[float | None] = [None]
        if self.alphas is not None:
            alphas = [*numbers(self.alphas, "alphas")]
        return whole_numbers(self.heads, "heads"), whole_numbers(self.trigrams, "trigrams"), alphas

    def recipe_for(self, heads: int, trigrams: int, alpha: float | None = None) -> Recipe:
        """The recipe of a cell."""
        given = {n: getattr(self, n) for n in ("expansion", "steps", "toy_steps", "n_sequences")}
        changes: dict[str, Any] = {
            k: v for k, v in {**given, "alpha": alpha}.items() if v is not None
        }
        if not self.hold_fvu:
            changes["fvu_target"] = None
        return recipe_named(self.recipe, heads, trigrams).replace(**self.settings | changes)

    def cells(self) -> list[SweepCell]:
        """The cells of the grid, the dearest first; those of one shape follow each other."""
        heads, trigrams, alphas = self.axes()
        shapes = sorted(((h, t) for h in heads for t in trigrams), key=lambda s: -s[0] * s[1] ** 2)
        return [
            SweepCell(
                self.recipe, Toys(h, t), self.recipe_for(h, t, alpha), self.seeds, self.first_seed
            )
            for h, t in shapes
            for alpha in alphas
        ]


def run_sweep(
    config: SweepConfig,
    *,
    workers: int | str | None = None,
    say: Say = lambda _: None,
    on_progress: Progress = lambda done, total: None,
) -> pd.DataFrame:
    """Run the cells that ``config.out`` lacks; each is added to the table when it is done.

    The folder gets ``sweep.csv`` and ``sweep.parquet`` (the same rows, readable at any time) and
    ``sweep.json`` (the config). Run the same again to resume after a kill. Cells of one shape share
    their toys.

    Args:
        workers, say, on_progress: see :meth:`~gated_interp.experiments.study.Study.run`.

    Returns:
        The whole table of :class:`SweepRow`, ordered by heads, trigrams and alpha.

    Raises:
        GatedInterpError: a cell that does not fit into the memory, a scheduler that cannot be
            reached or is lost, a folder that holds something else or is in use, or a worker that
            ends by itself.
        StudyInterrupted: on Ctrl-C; what had finished is kept.
    """
    out, cells = Path(config.out), config.cells()
    store = Store(
        out, "sweep", SweepRow, config.to_dict(),
        same=lambda said: _settings(SweepConfig.from_dict(said)), digits=None, parquet=True,
        results=["sweep.json"],
    ).read()  # fmt: skip
    others = out.is_dir() and any(not p.name.startswith(".") for p in out.iterdir())
    if others and not store.notes_path.exists():
        raise GatedInterpError("folder-not-a-sweep", path=out)
    if store.rows.keys() - {c.names for c in cells}:
        raise GatedInterpError("another-sweep", path=store.csv)

    def check(where: Backend) -> None:
        for toys, cell in {c.originals: c for c in cells}.items():
            require_memory(
                toys.heads, toys.trigrams, cell.recipe, cell.seeds,
                min(where.at_once, len(cells)), where.memory,
            )  # fmt: skip

    SWEEP.fill(
        store, cells, config.every_seed, check=check, unit="cells", workers=workers, say=say,
        on_progress=on_progress,
    )  # fmt: skip
    return store.frame()


def measured(
    task: ProbedTask, recipe: Recipe, seeds: Sequence[int], originals: Sequence[ToyOutcome]
) -> list[dict[str, Any]]:
    """A row for each seed's gated run, see :meth:`GatedOutcome.row`."""
    return [run.row() for run in train_gated_seeds(task, recipe, seeds, originals)]


def row_of(cell: SweepCell, runs: Runs) -> SweepRow:
    """The row of a finished cell."""
    toys, gated = runs.toys, runs.gated
    learnt, ran = toys["learnt_all"], len(gated) > 0
    row: dict[str, Any] = {
        "seeds": len(toys),
        "toys_learnt": int(learnt.sum()),
        "toys_distributed": int((learnt & (toys["distributed"] > 0)).sum()),
        "gated_runs": len(gated),
        "clean_runs": int(gated["clean"].sum()) if ran else 0,
        "successes": int(gated["success"].sum()) if ran else 0,
    }
    row |= fractions(
        learnt=(row["toys_learnt"], row["seeds"]),
        distributed=(row["toys_distributed"], row["toys_learnt"]),
        clean=(row["clean_runs"], row["gated_runs"]),
        success=(row["successes"], row["gated_runs"]),
    )
    return SweepRow(
        key=cell.key,
        heads=cell.originals.heads,
        trigrams=cell.originals.trigrams,
        alpha=cell.recipe.alpha,
        gated_heads=cell.recipe.block.heads(cell.originals.heads),
        **row,
        fvu_median=float(gated["fvu"].median()) if ran else math.nan,
        l0_median=float(gated["l0"].median()) if ran else math.nan,
        seconds=runs.seconds,
    )


def _settings(config: SweepConfig) -> dict[str, Any]:
    """What makes a sweep the same: 2:4 and 2,3,4 are one axis, and it may lie anywhere."""
    axes = dict(zip(("heads", "trigrams", "alphas"), config.axes(), strict=True))
    return config.to_dict() | axes | {"out": ""}


def views(table: pd.DataFrame) -> list[Shown]:
    """Curves over alpha (up to eight shapes) where there are several alphas; heads by trigrams for
    each alpha where there are several shapes."""
    found = []
    table = table.sort_values(["heads", "trigrams", "alpha"]).rename(
        columns={"clean": "clean_rate"}
    )
    rate = "clean" if "clean_rate" in table else "success"  # a table of version 0.1 lacks it
    ran = table[(table["gated_runs"] > 0) & (table["alpha"] > 0)].rename(
        columns={f"{rate}_low": "low", f"{rate}_high": "high", "fvu_median": "fvu"}
    )
    shapes = [f"{h}H{t}ST" for h, t in zip(ran["heads"], ran["trigrams"], strict=True)]
    ran = ran.assign(shape=shapes)
    if ran["alpha"].nunique() > 1 and ran["shape"].nunique() <= MOST_LINES:
        title = "Gated blocks, by the weight of the gate penalty"
        words = "Each line is a shape of toys."
        draw = partial(sweep_curves, ran, group="shape", title=title)
        found.append(Shown("sweep-alpha", title, words, ran, draw))
    for alpha, part in table.groupby("alpha"):
        if len(part) > 1:
            title = f"Toys and gated blocks, alpha {alpha:g}"
            words = "How often toys learn, how often that is distributed, how often it is undone."
            draw = partial(phase_diagram, part, title=title)
            found.append(Shown(f"sweep-phase-{alpha:g}", title, words, part, draw))
    return found


SWEEP = Study(
    name="sweep",
    row=SweepRow,
    summary=row_of,
    measure=measured,
    views=views,
    needs=("heads", "trigrams", "alpha", "gated_runs", "success", "success_low", "success_high",
           "learnt", "distributed", "fvu_median"),
)  # fmt: skip
