"""The runner of every study: cells, each trained and measured, into rows that are kept.

A :class:`Study` says what a row is, what is measured and how it is drawn. Its cells are original
models with a recipe, many seeds each.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any, Generic, TypedDict, TypeVar

import pandas as pd

from gated_interp.analysis.verdict import verdict
from gated_interp.core.config import Config, positive
from gated_interp.core.errors import GatedInterpError
from gated_interp.core.signals import uninterrupted
from gated_interp.experiments.backends import Backend, connected
from gated_interp.experiments.batches import train_batches
from gated_interp.experiments.originals import Originals
from gated_interp.experiments.recipes import Recipe
from gated_interp.experiments.seeds import SeedsOutcome, ToyOutcome, train_gated_seeds
from gated_interp.experiments.store import MERGED, R, Row, Store, read_table
from gated_interp.replacements.pruning import prune_dead_heads
from gated_interp.tasks.task import ProbedTask
from gated_interp.views.shown import Shown, write_all

Measure = Callable[[ProbedTask, Recipe, Sequence[int], Sequence[ToyOutcome]], list[Any]]
Say = Callable[[str], None]
Progress = Callable[[int, int], None]
Key = tuple[Any, ...]


@dataclasses.dataclass(frozen=True)
class Cell:
    """Original models, and how they and the blocks that stand in for them are trained."""

    name: str
    originals: Originals
    recipe: Recipe

    @property
    def experiment(self) -> str:
        """The originals' name, such as ``2H3ST``."""
        return self.originals.name

    @property
    def names(self) -> tuple[str, ...]:
        """What names its row, see ``Row.KEY``."""
        return self.experiment, self.name


C = TypeVar("C", bound=Cell)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CellRow(Row):
    """What every row of a study of :class:`Cell` begins with.

    Attributes:
        experiment, recipe: the name of the originals and of the cell.
        heads, gated_heads: of the original layer and of the blocks.
        trigrams: cases of the task.
        runs: gated runs; 0 where no toy learnt.
    """

    experiment: str
    recipe: str
    heads: int
    gated_heads: int
    trigrams: int
    runs: int

    def __str__(self) -> str:
        clean = vars(self)["clean"]
        return f"{self.experiment}, {self.recipe}: {clean} of {self.runs} are clean."


@dataclasses.dataclass(frozen=True)
class Runs:
    """The runs of a cell.

    Attributes:
        toys: :meth:`SeedsOutcome.toy_table`.
        gated: a row of each run, as the study measures it; no rows where no toy learnt.
        seconds: of one process.
    """

    toys: pd.DataFrame
    gated: pd.DataFrame
    seconds: float


def named(cell: Cell, runs: Runs) -> dict[str, Any]:
    """The values of :class:`CellRow`."""
    heads = cell.originals.heads
    return {
        "experiment": cell.experiment,
        "recipe": cell.name,
        "heads": heads,
        "gated_heads": cell.recipe.block.heads(heads),
        "trigrams": len(cell.originals.task.cases),
        "runs": len(runs.gated),
    }


@dataclasses.dataclass(frozen=True, kw_only=True)
class SeedsConfig(Config):
    """What all cells of a study share.

    Attributes:
        seeds: gated runs of each cell.
        first_seed: seeds count up from here.
        steps: of the gated training, instead of the recipe's.
    """

    seeds: int = 64
    first_seed: int = 0
    steps: int | None = None

    @property
    def every_seed(self) -> range:
        """All of them."""
        return range(self.first_seed, self.first_seed + self.seeds)

    def problems(self) -> list[GatedInterpError]:
        numbers = ("seeds", "steps", "toy_steps", "expansion", "n_sequences")
        found = positive(self, *(n for n in numbers if getattr(self, n, None) is not None))
        if self.first_seed < 0:
            found.append(self.problem("config-negative", field="first_seed", value=self.first_seed))
        return found


@dataclasses.dataclass(frozen=True, kw_only=True)
class CellsConfig(SeedsConfig):
    """The same, and for how long toys are trained (``toy_steps``), instead of the recipe's."""

    toy_steps: int | None = None

    def applied(self, recipe: Recipe) -> Recipe:
        """``recipe`` with this config's steps."""
        given = {"steps": self.steps, "toy_steps": self.toy_steps}
        return recipe.replace(**{k: v for k, v in given.items() if v is not None})


class HowMany(TypedDict, total=False):
    """How the cells of a study are run; see :meth:`Study.run`."""

    seeds: int
    first_seed: int
    toy_steps: int | None
    workers: int | str | None
    say: Say
    on_progress: Progress


class How(HowMany, total=False):
    """The same, and for how long blocks are trained."""

    steps: int | None


def measured(
    task: ProbedTask, recipe: Recipe, seeds: Sequence[int], originals: Sequence[ToyOutcome]
) -> list[dict[str, Any]]:
    """A row for each seed's gated run, see :meth:`GatedOutcome.row`.

    And ``exactly_one`` (each trigram has exactly one sole owner) and, of the block without its dead
    heads, ``heads_left``, ``pruned_clean`` and ``pruned_bound`` (see :class:`Pruned`).
    """
    rows = []
    for run in train_gated_seeds(task, recipe, seeds, originals):
        pruned = prune_dead_heads(run.model)
        owners = run.verdict.owners.values()
        rows.append(
            {
                **run.row(),
                "exactly_one": run.verdict.success and all(len(heads) == 1 for heads in owners),
                "heads_left": len(pruned.kept),
                "pruned_clean": verdict(pruned.model, task).clean,
                "pruned_bound": pruned.bound,
            }
        )
    return rows


@dataclasses.dataclass(frozen=True, kw_only=True)
class Study(Generic[R]):
    """A study: its typed row, what is measured for it, and how its table is drawn.

    Attributes:
        name: of its files.
        row: the type of its rows.
        summary: the row of a cell and its runs.
        measure: trains a stack of seeds and gives a row for each; :func:`measured` unless given.
            Called in another process.
        finished: the rows as they stand when all cells are done.
        views: what is shown of the table.
        needs: the columns that these are drawn from.
        seeds, first_seed: unless others are asked for.
    """

    name: str
    row: type[R]
    summary: Callable[[Any, Runs], R]
    measure: Measure | None = None
    finished: Callable[[Sequence[R], pd.DataFrame], Sequence[R]] = lambda rows, runs: rows
    views: Callable[[pd.DataFrame], Sequence[Shown]] = lambda table: ()
    needs: Sequence[str] = ()
    seeds: int = 16
    first_seed: int = 0

    def run(
        self,
        out: Path | str,
        cells: Sequence[Cell],
        *,
        seeds: int | None = None,
        first_seed: int | None = None,
        steps: int | None = None,
        toy_steps: int | None = None,
        workers: int | str | None = None,
        say: Say = lambda _: None,
        on_progress: Progress = lambda done, total: None,
    ) -> pd.DataFrame:
        """Train every cell that ``out/NAME.csv`` lacks and add its row when its last seed is done.

        ``out/NAME-runs.csv`` gets a row for each gated run. Cells that agree in their toys share
        them. Run the same again to resume after an interruption.

        Args:
            out: a new folder, or one that holds rows of the same config.
            seeds, first_seed: gated runs of each cell, and where their seeds start.
            steps, toy_steps: instead of the recipes'.
            workers: processes, all cores by default; or the address of a Dask scheduler, such as
                ``tcp://127.0.0.1:8786``.
            say: told a sentence for each row.
            on_progress: told how many stacks of seeds are done, of how many.

        Returns:
            The whole table, rows of earlier calls included.
        """
        config = CellsConfig(
            seeds=self.seeds if seeds is None else seeds,
            first_seed=self.first_seed if first_seed is None else first_seed,
            steps=steps,
            toy_steps=toy_steps,
        )
        cells = [dataclasses.replace(c, recipe=config.applied(c.recipe)) for c in cells]
        if not cells or len({c.names for c in cells}) < len(cells):
            raise GatedInterpError("cells-not-distinct", n=len(cells))
        recipes = {"/".join(c.names): c.recipe.to_dict() for c in cells}
        notes = {"config": config.to_dict(), MERGED: recipes}
        store = Store(out, self.name, self.row, notes, same=_of_this_version, with_runs=True)
        how: dict[str, Any] = {"workers": workers, "say": say, "on_progress": on_progress}
        self.fill(store, cells, config.every_seed, **how)
        rows = self.finished([*store.rows.values()], store.runs)
        store.rows = {row.names: row for row in rows}
        store.write()
        return store.frame()

    def fill(self, store: Store[R], cells: Sequence[Any], seeds: Sequence[int], **how: Any) -> None:
        """Add the rows of ``cells`` that ``store`` lacks; see :func:`run_cells`."""

        def made(
            cell: Any, toys: list[ToyOutcome], gated: list[Any], seconds: float
        ) -> tuple[R, pd.DataFrame]:
            which = dict(zip(self.row.KEY, cell.names, strict=True))
            each = pd.DataFrame([{**which, **run} for run in gated])
            table = SeedsOutcome(toys, [], seconds).toy_table()
            return self.summary(cell, Runs(table, each, seconds)), each

        run_cells(store, cells, seeds, self.measure or measured, made, **how)

    def draw(
        self,
        csv: Path | str,
        out: Path | str,
        formats: Sequence[str] = ("svg", "png"),
        *,
        say: Callable[[str], object] | None = None,
    ) -> list[Path]:
        """Draw the table to files in ``out``, each with the rows it was drawn from."""
        views = self.views(read_table(csv, self.needs))
        return write_all({Path(out) / shown.name: shown for shown in views}, formats, say=say)


def _of_this_version(notes: dict[str, Any]) -> dict[str, Any]:
    """Notes whose recipes have the fields that recipes have now."""
    recipes = {name: Recipe.from_dict(said).to_dict() for name, said in notes[MERGED].items()}
    return {"config": dict(notes["config"]), MERGED: recipes}


def run_cells(
    store: Store[R],
    cells: Sequence[C],
    seeds: Sequence[int],
    train: Measure,
    made: Callable[[C, list[ToyOutcome], list[Any], float], tuple[R, pd.DataFrame | None]],
    *,
    check: Callable[[Backend], object] = lambda where: None,
    unit: str = "rows",
    workers: int | str | None = None,
    say: Say = lambda _: None,
    on_progress: Progress = lambda done, total: None,
) -> None:
    """Train the cells that ``store`` lacks; ``made`` brings what ``train`` made of one to a row.

    Args:
        check: refuses what a backend cannot run, before anything is written.
    """
    wanted = {cell.names: cell for cell in cells}
    store.read()
    complete = store.complete([*wanted])

    def make(missing: Sequence[Key]) -> Generator[tuple[R, pd.DataFrame | None]]:
        shapes = {key: (wanted[key].originals, wanted[key].recipe) for key in missing}
        trained = train_batches(shapes, seeds, train, workers=where, on_progress=on_progress)
        with contextlib.closing(trained):
            for key, toys, gated, seconds in trained:
                yield made(wanted[key], toys, gated, seconds)

    with contextlib.nullcontext() if complete else connected(workers) as where:
        if where is not None:
            check(where)
        fill(store, [*wanted], make, unit=unit, say=say)


class StudyInterrupted(KeyboardInterrupt):
    """Ctrl-C stopped a study; the message says what is kept."""


def fill(
    store: Store[R],
    wanted: Sequence[Key],
    make: Callable[[Sequence[Key]], Generator[tuple[R, pd.DataFrame | None]]],
    *,
    unit: str = "rows",
    say: Say = lambda _: None,
) -> None:
    """Add the rows that ``store`` lacks, each when ``make`` has made it."""
    with store.writing():
        missing = [key for key in wanted if key not in store.rows]
        if len(missing) < len(wanted):
            kept = len(wanted) - len(missing)
            say(f"{kept} of {len(wanted)} {unit} are there already and are kept.")
        try:
            with contextlib.closing(make(missing)) as rows:
                for row, runs in rows:
                    with uninterrupted():
                        store.append(row, runs)
                    say(str(row))
        except KeyboardInterrupt as stop:
            done = sum(key in store.rows for key in wanted)
            raise StudyInterrupted(
                f"interrupted after {done} of {len(wanted)} {unit}, which are kept; run the same "
                "again to resume."
            ) from stop
