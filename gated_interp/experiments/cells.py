"""Many cells (a shape of toy and a recipe), many seeds each, into one table that grows."""

import dataclasses
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from gated_interp.analysis.verdict import verdict
from gated_interp.core.config import Config, positive
from gated_interp.core.errors import GatedInterpError
from gated_interp.core.files import write_text, write_whole
from gated_interp.experiments.processes import in_processes
from gated_interp.experiments.recipes import Recipe
from gated_interp.experiments.seeds import SeedsOutcome, stacks, train_seeds
from gated_interp.models.pruning import prune_dead_heads
from gated_interp.tasks.skip_trigrams import SkipTrigramTask

KEY = ["experiment", "recipe"]
Row = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Cell:
    """A shape of toy, and how it and the gated blocks are trained."""

    name: str
    heads: int
    trigrams: int
    recipe: Recipe

    @property
    def experiment(self) -> str:
        """The shape's name, such as ``2H3ST``."""
        return f"{self.heads}H{self.trigrams}ST"


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
    """The runs of a cell, or of a stack of its seeds.

    Attributes:
        toys: :meth:`SeedsOutcome.toy_table`.
        gated: :meth:`SeedsOutcome.table`, with ``exactly_one`` (each trigram has exactly one sole
            owner) and, of the block without its dead heads, ``heads_left``, ``pruned_success``
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
    workers: int | None = None,
    say: Callable[[str], None] = lambda _: None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> pd.DataFrame:
    """Train every cell that ``out/stem.csv`` lacks and add its row when its last seed is done.

    Args:
        out: a new folder, or one that holds rows of the same config.
        summary: the columns of a row, after those that name the cell.
        workers: processes; all cores unless given.
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
    table = _open_table(path, config, recipes)
    there = set(table[KEY].itertuples(index=False, name=None))
    if there & set(names):
        say(f"{len(there & set(names))} of {len(names)} rows are there already and are kept.")
    missing = {key: c for key, c in zip(names, cells, strict=True) if key not in there}

    seeds = list(range(config.first_seed, config.first_seed + config.seeds))
    jobs = [
        (key, train_stack, (c.heads, SkipTrigramTask(c.trigrams), recipes["/".join(key)], stack))
        for key, c in missing.items()
        for stack in stacks(seeds, c.heads, recipes["/".join(key)])
    ]
    parts_of = Counter(key for key, _, _ in jobs)
    parts: dict[tuple[str, str], list[Runs]] = {key: [] for key in missing}
    on_progress(0, len(jobs))
    for finished, (key, runs) in enumerate(in_processes(jobs, workers), 1):
        parts[key].append(runs)
        if len(parts[key]) == parts_of[key]:
            cell = missing[key]
            row = {"experiment": cell.experiment, "recipe": cell.name, "heads": cell.heads}
            row |= {"gated_heads": cell.heads * cell.recipe.expansion, "trigrams": cell.trigrams}
            row |= summary(_together(parts.pop(key)))
            table = pd.DataFrame([*table.to_dict("records"), row])
            write_table(table, path)
            say(f"{cell.experiment}, {cell.name}: {row['successes']} of {row['runs']} succeed.")
        on_progress(finished, len(jobs))
    return table


def train_stack(heads: int, task: SkipTrigramTask, recipe: Recipe, seeds: Sequence[int]) -> Runs:
    """Toys and gated blocks of ``seeds``, measured."""
    outcome = train_seeds(heads, task, recipe, seeds)
    gated = outcome.table()
    if len(gated):
        gated = gated.join(pd.DataFrame(_ownership(outcome, task)))
    return Runs(outcome.toy_table(), gated, outcome.seconds)


def _ownership(outcome: SeedsOutcome, task: SkipTrigramTask) -> list[Row]:
    rows = []
    for run in outcome.gated:
        pruned = prune_dead_heads(run.model)
        found = verdict(pruned.model, task)
        owners = run.verdict.owners.values()
        rows.append(
            {
                "exactly_one": run.verdict.success and all(len(heads) == 1 for heads in owners),
                "heads_left": len(pruned.kept),
                "pruned_success": found.success,
                "pruned_bound": pruned.bound,
            }
        )
    return rows


def _together(parts: Sequence[Runs]) -> Runs:
    gated = [p.gated for p in parts if len(p.gated)]
    return Runs(
        pd.concat([p.toys for p in parts], ignore_index=True),
        pd.concat(gated, ignore_index=True) if gated else pd.DataFrame(),
        sum(p.seconds for p in parts),
    )


def write_table(table: pd.DataFrame, path: Path | str) -> None:
    """Write a CSV, whole or not at all."""
    write_whole(path, lambda p: table.to_csv(p, index=False, float_format="%.6g"))


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
        return {"config": dict(found["config"]), "recipes": dict(found["recipes"])}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise GatedInterpError(
            f"{path} does not say how the table beside it was made; name another folder."
        ) from error
