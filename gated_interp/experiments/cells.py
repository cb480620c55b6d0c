"""Many cells (original models and a recipe), many seeds each, into one table that grows."""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from gated_interp.analysis.verdict import verdict
from gated_interp.core.config import Config, positive
from gated_interp.core.errors import GatedInterpError
from gated_interp.core.files import write_table, write_text
from gated_interp.experiments.batches import train_batches
from gated_interp.experiments.originals import Originals
from gated_interp.experiments.recipes import Recipe
from gated_interp.experiments.seeds import SeedsOutcome, ToyOutcome, train_gated_seeds
from gated_interp.replacements.pruning import prune_dead_heads
from gated_interp.tasks.task import ProbedTask

KEY = ["experiment", "recipe"]
Row = dict[str, Any]
Measure = Callable[[ProbedTask, Recipe, Sequence[int], Sequence[ToyOutcome]], list[Row]]


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


@dataclasses.dataclass(frozen=True, kw_only=True)
class CellsConfig(Config):
    """What all cells of a table share.

    Attributes:
        seeds: gated runs of each cell.
        first_seed: seeds count up from here.
        steps, toy_steps: instead of the recipes', where given.
    """

    seeds: int = 64
    first_seed: int = 7000
    steps: int | None = None
    toy_steps: int | None = None

    def problems(self) -> list[str]:
        found = positive(self, "seeds")
        for name in ("steps", "toy_steps"):
            if getattr(self, name) is not None:
                found += positive(self, name)
        if self.first_seed < 0:
            found.append(f"first_seed is {self.first_seed}; it must not be negative.")
        return found

    def applied(self, recipe: Recipe) -> Recipe:
        """``recipe`` with this config's steps."""
        given = {"steps": self.steps, "toy_steps": self.toy_steps}
        return recipe.replace(**{k: v for k, v in given.items() if v is not None})


@dataclasses.dataclass(frozen=True)
class Runs:
    """The runs of a cell.

    Attributes:
        toys: :meth:`SeedsOutcome.toy_table`.
        gated: :meth:`SeedsOutcome.table`, with ``exactly_one`` (each trigram has exactly one sole
            owner) and, of the block without its dead heads, ``heads_left``, ``pruned_clean``
            and ``pruned_bound`` (see :class:`Pruned`); no rows where no toy learnt.
        seconds: of one process.
    """

    toys: pd.DataFrame
    gated: pd.DataFrame
    seconds: float


def run_cells(
    out: Path | str,
    stem: str,
    cells: Sequence[Cell],
    config: CellsConfig,
    summary: Callable[[Runs], Row],
    *,
    measure: Measure | None = None,
    workers: int | str | None = None,
    say: Callable[[str], None] = lambda _: None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> pd.DataFrame:
    """Train every cell that ``out/stem.csv`` lacks and add its row when its last seed is done.

    ``out/stem-runs.csv`` gets a row for each gated run. Cells that agree in their toys share them.

    Args:
        out: a new folder, or one that holds rows of the same config.
        summary: the columns of a row, after those that name the cell.
        measure: trains a stack of seeds and gives a row for each; :func:`measured` unless given.
            Called in another process.
        workers: processes, all cores unless given; or the address of a Dask scheduler, such as
            ``tcp://127.0.0.1:8786``.
        say: told a sentence for each row.
        on_progress: told how many stacks of seeds are done, of how many.

    Returns:
        The whole table, rows of earlier calls included.

    Raises:
        GatedInterpError: no cell, a cell twice, or a folder that holds something else.
    """
    out = Path(out)
    names = [(c.experiment, c.name) for c in cells]
    if not names or len(set(names)) < len(names):
        raise GatedInterpError(f"there are {len(names)} cells; name at least one, each once.")
    path = out / f"{stem}.csv"
    recipes = {"/".join(key): config.applied(c.recipe) for key, c in zip(names, cells, strict=True)}
    runs_path = out / f"{stem}-runs.csv"
    table = _open_table(path, config, recipes)
    runs = read_table(runs_path, KEY) if len(table) else pd.DataFrame()
    there = set(table[KEY].itertuples(index=False, name=None))
    if there & set(names):
        say(f"{len(there & set(names))} of {len(names)} rows are there already and are kept.")
    missing = {key: c for key, c in zip(names, cells, strict=True) if key not in there}
    if len(runs):  # a command that ended between the two files left runs without their row
        kept = [key in there for key in runs[KEY].itertuples(index=False, name=None)]
        runs = runs[kept]

    seeds = range(config.first_seed, config.first_seed + config.seeds)
    shapes = {key: (c.originals, recipes["/".join(key)]) for key, c in missing.items()}
    trained = train_batches(
        shapes, seeds, measure or measured, workers=workers, on_progress=on_progress
    )
    for key, toys, gated, seconds in trained:
        cell = missing[key]
        heads = cell.originals.heads
        row = {"experiment": cell.experiment, "recipe": cell.name, "heads": heads}
        row["gated_heads"] = cell.recipe.block.heads(heads)
        row["trigrams"] = len(cell.originals.task.cases)
        named = dict(zip(KEY, key, strict=True))
        each = pd.DataFrame([{**named, **run} for run in gated])
        row |= summary(Runs(SeedsOutcome(toys, [], seconds).toy_table(), each, seconds))
        table = pd.DataFrame([*table.to_dict("records"), row])
        runs = pd.concat([runs, each], ignore_index=True) if len(runs) else each
        write_table(
            runs if len(runs) else pd.DataFrame(columns=[*KEY, "seed", "toy_seed"]), runs_path
        )
        write_table(table, path)
        say(f"{cell.experiment}, {cell.name}: {row['clean']} of {row['runs']} are clean.")
    return table


def measured(
    task: ProbedTask, recipe: Recipe, seeds: Sequence[int], originals: Sequence[ToyOutcome]
) -> list[Row]:
    """A row for each seed's gated run, see :class:`Runs`."""
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


def read_table(path: Path | str, columns: Sequence[str] = ()) -> pd.DataFrame:
    """The CSV at ``path``.

    Raises:
        GatedInterpError: it cannot be read, or lacks one of ``columns``.
    """
    try:
        table = pd.read_csv(path)
    except (OSError, ValueError) as error:
        raise GatedInterpError(f"{path} is not a table that can be read.") from error
    lacks = [c for c in columns if c not in table]
    if lacks:
        raise GatedInterpError(f"{path} has no column {lacks[0]!r}; it is another table.")
    return table


def _open_table(path: Path, config: CellsConfig, recipes: Mapping[str, Recipe]) -> pd.DataFrame:
    """The rows that are there; notes beside the table what its rows are trained with."""
    notes = path.with_suffix(".json")
    if path.parent.exists() and not path.parent.is_dir():
        raise GatedInterpError(f"{path.parent} is a file; name a folder.")
    settings = {"config": config.to_dict(), "recipes": {k: r.to_dict() for k, r in recipes.items()}}
    table = pd.DataFrame(columns=KEY)
    earlier = _read_notes(notes) if notes.exists() or path.exists() else None
    if earlier and path.exists():  # without a row nothing is lost, whatever it was to be
        both = earlier["recipes"].keys() & recipes.keys()
        if earlier["config"] != settings["config"] or any(
            earlier["recipes"][k] != settings["recipes"][k] for k in both
        ):
            raise GatedInterpError(
                f"{path.parent} holds {path.name} of another config (see {notes.name}); "
                "name another folder, or give the seeds and steps it was made with."
            )
        settings["recipes"] = {**earlier["recipes"], **settings["recipes"]}
        table = read_table(path, KEY)
    write_text(notes, json.dumps(settings, indent=2) + "\n")
    return table


def _read_notes(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        # As they would be written now: earlier versions wrote flat ones.
        recipes = {k: Recipe.from_dict(r).to_dict() for k, r in found["recipes"].items()}
        return {"config": dict(found["config"]), "recipes": recipes}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise GatedInterpError(
            f"{path} does not say how the table beside it was made; name another folder."
        ) from error
