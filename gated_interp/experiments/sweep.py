"""A grid of cells (heads, trigrams, alpha), many seeds each, into one table that grows."""

import contextlib
import dataclasses
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import pandas as pd
from tqdm.auto import tqdm

from gated_interp.core.config import Config, positive
from gated_interp.core.errors import GatedInterpError
from gated_interp.core.files import write_text
from gated_interp.core.signals import uninterrupted
from gated_interp.experiments.backends import Backend, connected
from gated_interp.experiments.batches import train_batches
from gated_interp.experiments.grid import numbers, whole_numbers
from gated_interp.experiments.memory import require_memory
from gated_interp.experiments.originals import Toys
from gated_interp.experiments.recipes import Recipe, recipe_named
from gated_interp.experiments.sweep_cells import COLUMNS, SweepCell, measured, row_of
from gated_interp.experiments.table import GrowingTable, require_same
from gated_interp.training.stacked.runs import say_on_stderr

STEM, NOTES, LOCK = "sweep", "sweep.json", ".sweep.lock"


@dataclasses.dataclass(frozen=True, kw_only=True)
class SweepConfig(Config):
    """A grid, and how its cells are run.

    Attributes:
        heads, trigrams: of the toys: a range such as ``2:4`` (both ends count) or a list.
        alphas: weights of the gate penalty, such as ``0.05,0.2``; the recipe's own where ``None``.
        seeds: toys, and gated runs on those that learnt, in each cell.
        first_seed: seeds count up from here.
        recipe: what the rest is taken from: ``reliable`` or ``reference``.
        hold_fvu: whether the recipe's FVU target stays; without it alpha alone decides.
        expansion, steps, toy_steps, n_sequences: instead of the recipe's, where given.
        out: the folder of the table.

    Examples:
        >>> len(SweepConfig(heads="2:4", trigrams="3:6", alphas="0.05,0.2,0.5").cells())
        36
    """

    heads: str = "2:4"
    trigrams: str = "3:6"
    alphas: str | None = None
    seeds: int = 64
    first_seed: int = 0
    recipe: Literal["reliable", "reference"] = "reliable"
    hold_fvu: bool = True
    expansion: int | None = None
    steps: int | None = None
    toy_steps: int | None = None
    n_sequences: int | None = None
    out: str = "runs/sweep"

    def problems(self) -> list[str]:
        found = positive(self, "seeds")
        for name in ("expansion", "steps", "toy_steps", "n_sequences"):
            if getattr(self, name) is not None:
                found += positive(self, name)
        if self.first_seed < 0:
            found.append(f"first_seed is {self.first_seed}; it must not be negative.")
        try:
            self.axes()
            if not found:
                self.recipe_for(1, 1)
        except GatedInterpError as error:
            found.append(str(error))
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
        return recipe_named(self.recipe, heads, trigrams).replace(**changes)

    def cells(self) -> list[SweepCell]:
        """The cells of the grid, the dearest first; those of one shape follow each other."""
        heads, trigrams, alphas = self.axes()
        shapes = sorted(((h, t) for h in heads for t in trigrams), key=lambda s: -s[0] * s[1] ** 2)
        return [
            SweepCell(h, t, self.recipe_for(h, t, alpha), self.seeds, self.first_seed)
            for h, t in shapes
            for alpha in alphas
        ]


class SweepInterrupted(KeyboardInterrupt):
    """Ctrl-C stopped a sweep; the message says what is kept."""


def run_sweep(
    config: SweepConfig,
    *,
    workers: int | str | None = None,
    progress: bool = True,
    say: Callable[[str], object] = say_on_stderr,
    on_progress: Callable[[int, int], object] = lambda done, total: None,
) -> pd.DataFrame:
    """Run the cells that ``config.out`` lacks; each is added to the table when it is done.

    The folder gets ``sweep.csv`` and ``sweep.parquet`` (the same rows, readable at any time) and
    ``sweep.json`` (the config). Started again after a kill, it goes on where it was. Cells of one
    shape share their toys.

    Args:
        workers: local processes, all cores unless given; or the address of a Dask scheduler, such
            as ``tcp://127.0.0.1:8786``.
        progress: whether to show cells done, their rate and the time left.
        say: told a sentence about what was found and what is done.
        on_progress: told how many cells are done, of how many.

    Returns:
        The whole table, see ``sweep_cells.COLUMNS``, ordered by heads, trigrams and alpha.

    Raises:
        GatedInterpError: a cell that does not fit into the memory, a scheduler that cannot be
            reached or is lost, a folder that holds something else or is in use, or a worker that
            ends by itself.
        SweepInterrupted: on Ctrl-C; what had finished is kept.
    """
    out, cells = Path(config.out), config.cells()
    table = _open(out, config, cells)  # nothing is written while something may still be refused
    if len(table.rows) == len(cells) and table.parquet.exists():
        say(f"all {len(cells)} cells are there already.")
        return table.frame()
    with connected(workers) as where:
        for cell in {(c.heads, c.trigrams): c for c in cells}.values():
            require_memory(
                cell.heads, cell.trigrams, cell.recipe, cell.seeds,
                min(where.at_once, len(cells)), where.memory,
            )  # fmt: skip
        with _locked(out):
            table = _open(out, config, cells)
            if table.rows:
                say(f"{len(table.rows)} of {len(cells)} cells are there already and are kept.")
            write_text(out / NOTES, json.dumps(config.to_dict(), indent=2) + "\n")
            table.write()
            _fill(table, cells, where, progress, on_progress)
    return table.frame()


def _fill(
    table: GrowingTable,
    cells: list[SweepCell],
    where: Backend,
    progress: bool,
    on_progress: Callable[[int, int], object],
) -> None:
    """Run the cells that ``table`` lacks."""
    missing = {cell.key: cell for cell in cells if cell.key not in table.keys}
    shapes = {key: (Toys(cell.heads, cell.trigrams), cell.recipe) for key, cell in missing.items()}
    seeds = range(cells[0].first_seed, cells[0].first_seed + cells[0].seeds)
    done, total = len(table.rows), len(cells)
    on_progress(done, total)
    bar = tqdm(
        total=total, initial=done, unit="cell", smoothing=0, disable=not progress, desc="sweep"
    )
    trained = train_batches(shapes, seeds, measured, workers=where)
    try:
        with bar, contextlib.closing(trained):
            for key, toys, runs, seconds in trained:
                with uninterrupted():
                    table.append(row_of(missing[key], toys, runs, seconds))
                bar.update()
                on_progress(len(table.rows), total)
    except KeyboardInterrupt as stop:
        raise SweepInterrupted(
            f"the sweep was interrupted after {len(table.rows)} of {total} cells, which are kept; "
            "the same sweep goes on with the others."
        ) from stop


def _open(out: Path, config: SweepConfig, cells: list[SweepCell]) -> GrowingTable:
    """The table in ``out``, which may not exist yet; nothing is written.

    Raises:
        GatedInterpError: ``out`` is a file, or holds something that is not this sweep.
    """
    known = (out / NOTES).exists()
    require_same(
        out / NOTES, _settings(config), known, lambda said: _settings(SweepConfig.from_dict(said))
    )
    table = GrowingTable(out, STEM, COLUMNS)
    if not known and out.is_dir() and any(not p.name.startswith(".") for p in out.iterdir()):
        raise GatedInterpError(f"{out} holds files that are no sweep's; name another folder.")
    if table.keys - {c.key for c in cells}:
        raise GatedInterpError(
            f"{table.csv} holds cells of another sweep, or of another version of its recipe; name "
            "another folder."
        )
    return table


def _settings(config: SweepConfig) -> dict[str, Any]:
    """What makes a sweep the same: 2:4 and 2,3,4 are one axis, and it may lie anywhere."""
    axes = dict(zip(("heads", "trigrams", "alphas"), config.axes(), strict=True))
    return config.to_dict() | axes | {"out": ""}


@contextlib.contextmanager
def _locked(out: Path) -> Iterator[None]:
    """Keep a second sweep out of the folder; the lock ends with the process, however it ends.

    Raises:
        GatedInterpError: another process has it, or the folder cannot be written.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        handle = os.open(out / LOCK, os.O_RDWR | os.O_CREAT)
    except OSError as error:
        raise GatedInterpError(
            f"cannot write to {out}: {error.strerror or error}; name a folder that can be written."
        ) from error
    try:
        try:
            import fcntl

            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except ImportError:  # no such locks on this system
            pass
        except OSError as error:
            raise GatedInterpError(
                f"another process is sweeping into {out}; wait for it, or name another folder."
            ) from error
        yield
    finally:
        os.close(handle)
