"""Every method over its sparsity knob, on the same toys, with equal parameters and equal steps."""

import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path

import pandas as pd

from gated_interp.analysis.foils import false_alarms
from gated_interp.analysis.sparsity import sparsity, switching_on
from gated_interp.core.files import write_table
from gated_interp.experiments.cells import (
    Cell,
    CellsConfig,
    Row,
    Runs,
    read_table,
    run_cells,
)
from gated_interp.experiments.methods import METHODS, Method, matched, method_named
from gated_interp.experiments.originals import originals_named
from gated_interp.experiments.paper import PUBLISHED
from gated_interp.experiments.recipes import Recipe
from gated_interp.experiments.seeds import (
    HELD_OUT,
    HELD_OUT_SEED,
    ToyOutcome,
    train_gated_seeds,
)
from gated_interp.metrics.intervals import clustered
from gated_interp.plots import frontier as frontier_figure
from gated_interp.plots import save_figures
from gated_interp.tasks.task import ProbedTask

STEM, CELLS, TUNING, WIDTH = "frontier", "frontier-cells", "frontier-tuning", "frontier-width"
TUNED_ON = ("3H4ST", 30_000, 8)
"""Shape, first seed and seeds of the search: seeds that no result is measured on."""
WIDTHS = (1, 2, 4, 8)
SWITCHED = 100
"""Sequences on which heads are switched on."""
COLUMNS = ["task", "method", "knob", "seeds", "clean_rate", "low", "high", "fvu", "kl",
           "active_per_position", "heads_alive", "seconds", "knob_name", "expansion", "l0",
           "cancellation", "false_alarms", "success_rate", "kl_random",
           "kl_adversarial"]  # fmt: skip


def run_frontier(
    out: Path | str,
    *,
    tasks: Sequence[str] = tuple(PUBLISHED),
    methods: Sequence[str] = tuple(METHODS),
    seeds: int = 16,
    first_seed: int = 45_000,
    steps: int | None = None,
    toy_steps: int | None = None,
    workers: int | str | None = None,
    say: Callable[[str], None] = lambda _: None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> pd.DataFrame:
    """One row of ``out/frontier.csv`` for each task, method and value of its knob.

    Columns: ``task``; ``method``; ``knob`` (its value) and ``knob_name``; ``seeds``, runs;
    ``clean_rate`` with its 95% interval ``low``, ``high`` (runs on one toy are one cluster);
    medians over runs of ``fvu``, ``kl`` (nats), ``l0`` (open gates per causal pair; every head
    where there are no gates), ``active_per_position``, ``heads_alive`` and ``cancellation``
    (:func:`~gated_interp.analysis.sparsity.sparsity`),
    ``false_alarms`` of the worst trigram (:func:`~gated_interp.analysis.foils.false_alarms`),
    ``kl_random`` and ``kl_adversarial`` (:func:`~gated_interp.analysis.sparsity.switching_on`);
    ``seconds`` of one process for all seeds, their toys included; ``expansion``, heads per original
    head; ``success_rate``, the post's.

    A cell is kept when it is done; started again with the same seeds and steps, the command goes
    on. ``out/frontier-cells-runs.csv`` has every run.

    Args:
        tasks: shapes of toys, or names of
            :data:`~gated_interp.experiments.originals.BENCHMARKS`.
        methods: of ``METHODS``.
        seeds, first_seed: toys, and blocks on them, of each cell.
        steps, toy_steps: instead of the recipes'.
        workers, say, on_progress: see :func:`run_cells`.

    Raises:
        GatedInterpError: an unknown task or method, no cell, or a folder that holds something else.
    """
    chosen = [method_named(name) for name in methods]
    originals = [originals_named(task) for task in tasks]
    cells = [
        Cell(name, each, matched(method.at(value), each))
        for name, (method, value) in points(chosen).items()
        for each in originals
    ]
    config = CellsConfig(seeds=seeds, first_seed=first_seed, steps=steps, toy_steps=toy_steps)
    table = train_cells(
        out, CELLS, cells, config, workers=workers, say=say, on_progress=on_progress
    )
    there = map(points(METHODS.values()).__getitem__, table["recipe"])
    table[["method", "knob", "knob_name"]] = [(m.name, value, m.knob) for m, value in there]
    table["task"] = table["experiment"]
    order = {name: i for i, name in enumerate(METHODS)}
    table["expansion"] = table["gated_heads"] // table["heads"]
    table = table.sort_values(
        ["task", "method", "knob"],
        key=lambda column: column.map(order) if column.name == "method" else column,
    )
    frame = table.reindex(columns=COLUMNS).reset_index(drop=True)
    write_table(frame, Path(out) / f"{STEM}.csv")
    return frame


def run_tuning(
    out: Path | str,
    *,
    methods: Sequence[str] = tuple(METHODS),
    workers: int | str | None = None,
    say: Callable[[str], None] = lambda _: None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> pd.DataFrame:
    """One row of ``out/frontier-tuning.csv`` for each setting each method was tried with.

    At the middle of its knob, on :data:`TUNED_ON`. ``chosen`` says which won: most clean runs, then
    the lower FVU; :data:`METHODS` is written down accordingly.

    Args:
        methods, workers, say, on_progress: see :func:`run_frontier`.
    """
    task, first_seed, seeds = TUNED_ON
    toys = originals_named(task)
    cells = [
        Cell(name, toys, matched(method.at(_middle(method), i), toys))
        for name, (method, i) in settings(map(method_named, methods)).items()
    ]
    config = CellsConfig(seeds=seeds, first_seed=first_seed)
    table = train_cells(
        out, TUNING, cells, config, workers=workers, say=say, on_progress=on_progress
    )
    there = map(settings(METHODS.values()).__getitem__, table["recipe"])
    table[["method", "changes"]] = [
        (m.name, ", ".join(f"{k}={v}" for k, v in m.tried[i].items()) or "none") for m, i in there
    ]
    best = table.sort_values(["clean", "fvu"], ascending=[False, True]).drop_duplicates("method")
    table["chosen"] = table["recipe"].isin(best["recipe"])
    columns = ["method", "changes", "chosen", "runs", "clean", "fvu", "kl", "active_per_position",
               "heads_alive"]  # fmt: skip
    frame = table.sort_values("recipe")[columns].reset_index(drop=True)
    write_table(frame, Path(out) / f"{TUNING}-table.csv")
    return frame


def run_width(
    out: Path | str,
    *,
    tasks: Sequence[str] = ("3H4ST",),
    methods: Sequence[str] = tuple(METHODS),
    seeds: int = 16,
    first_seed: int = 45_000,
    steps: int | None = None,
    toy_steps: int | None = None,
    workers: int | str | None = None,
    say: Callable[[str], None] = lambda _: None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> pd.DataFrame:
    """One row of ``out/frontier-width.csv`` for each method and width, its knob in the middle.

    Width 1, 2, 4, 8: that many heads per original head. Does the number of heads alive stay flat?

    Args:
        tasks, methods, seeds, first_seed, steps, toy_steps, workers, say, on_progress: see
            :func:`run_frontier`.
    """
    cells = [
        Cell(f"{m.name}, {width}x", originals, m.at(_middle(m)).replace(expansion=width))
        for originals in map(originals_named, tasks)
        for m in map(method_named, methods)
        for width in WIDTHS
    ]
    config = CellsConfig(seeds=seeds, first_seed=first_seed, steps=steps, toy_steps=toy_steps)
    return train_cells(out, WIDTH, cells, config, workers=workers, say=say, on_progress=on_progress)


def points(methods: Iterable[Method]) -> dict[str, tuple[Method, float | int]]:
    """Each method at each value of its knob, by its cell's name."""
    return {f"{m.name}, {value:g}": (m, value) for m in methods for value in m.values}


def settings(methods: Iterable[Method]) -> dict[str, tuple[Method, int]]:
    """Each method and the number of each setting it was tried with, by its cell's name."""
    return {f"{m.name}, {i}": (m, i) for m in methods for i in range(len(m.tried))}


def measured(
    task: ProbedTask, recipe: Recipe, seeds: Sequence[int], originals: Sequence[ToyOutcome]
) -> list[Row]:
    """A row for each seed's run: how sparse it is, and what switching on shut heads does to it."""
    tokens = task.sample(HELD_OUT, HELD_OUT_SEED).tokens
    rows = []
    for run, toy in zip(train_gated_seeds(task, recipe, seeds, originals), originals, strict=True):
        row = run.row() | sparsity(run.model, toy.layer, tokens)
        row["false_alarms"] = max(false_alarms(run.model, task).values())
        switched = switching_on(run.model, toy.layer, tokens[:SWITCHED], seed=HELD_OUT_SEED)
        rows.append(row | {n: v for n, v in switched.items() if n != "kl"})
    return rows


MEDIANS = ("fvu", "kl", "active_per_position", "heads_alive", "l0", "cancellation", "purity",
           "false_alarms", "kl_random", "kl_adversarial")  # fmt: skip


def summary(runs: Runs) -> Row:
    """The row of a cell: rates with the interval of the clean rate, and medians over its runs."""
    gated = runs.gated
    row: Row = {"runs": len(gated), "seeds": len(gated), "clean": 0, "clean_rate": math.nan}
    row |= {"low": math.nan, "high": math.nan, "success_rate": math.nan}
    row |= dict.fromkeys(MEDIANS, math.nan)
    if len(gated):
        row["clean"] = int(gated["clean"].sum())
        row["clean_rate"] = row["clean"] / len(gated)
        row["low"], row["high"] = clustered(gated["clean"].tolist(), gated["toy_seed"].tolist())
        row["success_rate"] = float(gated["success"].mean())
        row |= {name: float(gated[name].median()) for name in MEDIANS}
    return row | {"seconds": runs.seconds}


train_cells = partial(run_cells, summary=summary, measure=measured)


def draw_frontier(
    csv: Path | str,
    out: Path | str,
    formats: Sequence[str] = ("svg", "png"),
    *,
    say: Callable[[str], object] | None = None,
) -> list[Path]:
    """Draw ``frontier.csv`` to ``out/frontier.*``, with the rows it was drawn from.

    Raises:
        GatedInterpError: not such a table, no row with runs, or a format that does not exist.
    """
    table = read_table(csv, COLUMNS)
    table = table[table["seeds"] > 0]
    figure = frontier_figure(table)
    return save_figures({Path(out) / STEM: (figure, table)}, formats, say=say)


def _middle(method: Method) -> float | int:
    return method.values[len(method.values) // 2]
