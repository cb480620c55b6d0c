"""Every method over its sparsity knob, on the same toys, with equal parameters and equal steps."""

import dataclasses
import math
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Unpack

import pandas as pd

from gated_interp.analysis.foils import false_alarms
from gated_interp.analysis.sparsity import sparsity, switching_on
from gated_interp.core.files import write_table
from gated_interp.experiments.methods import at, matched
from gated_interp.experiments.originals import originals_named
from gated_interp.experiments.paper import PUBLISHED
from gated_interp.experiments.recipes import Recipe
from gated_interp.experiments.seeds import HELD_OUT, HELD_OUT_SEED, ToyOutcome, train_gated_seeds
from gated_interp.experiments.study import Cell, CellRow, How, Runs, Study, named
from gated_interp.metrics.intervals import clustered
from gated_interp.plots import frontier as frontier_figure
from gated_interp.tasks.task import ProbedTask
from gated_interp.training.methods import METHODS, Method, method_named, tuned
from gated_interp.views.shown import Shown

TUNED_ON = ("3H4ST", 30_000, 8)
"""Shape, first seed and seeds of the search: seeds that no result is measured on."""
WIDTHS = (1, 2, 4, 8)
SWITCHED = 100
"""Sequences on which heads are switched on."""
COLUMNS = ["task", "method", "knob", "seeds", "clean_rate", "low", "high", "fvu", "kl",
           "active_per_position", "heads_alive", "seconds", "knob_name", "expansion", "l0",
           "cancellation", "false_alarms", "success_rate", "kl_random",
           "kl_adversarial"]  # fmt: skip
"""Of ``frontier.csv``: a method (``knob_name``, ``knob``: its knob and the knob's value) on a task,
``expansion`` heads per original head, and columns of :class:`FrontierRow`."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class FrontierRow(CellRow):
    """A method at one value of its knob, on one task.

    Attributes:
        seeds: runs.
        clean: of these; ``clean_rate`` with its 95% interval ``low``, ``high`` (runs on one toy are
            one cluster).
        success_rate: the post's.
        fvu, kl (nats), l0 (open gates per causal pair; every head where there are no gates),
            purity: medians over runs, as all that follows.
        active_per_position, heads_alive, cancellation: see
            :func:`~gated_interp.analysis.sparsity.sparsity`.
        false_alarms: of the worst trigram (:func:`~gated_interp.analysis.foils.false_alarms`).
        kl_random, kl_adversarial: nats, see
            :func:`~gated_interp.analysis.sparsity.switching_on`.
        seconds: of one process for all seeds, their toys included.
    """

    seeds: int
    clean: int = 0
    clean_rate: float = math.nan
    low: float = math.nan
    high: float = math.nan
    success_rate: float = math.nan
    fvu: float = math.nan
    kl: float = math.nan
    active_per_position: float = math.nan
    heads_alive: float = math.nan
    l0: float = math.nan
    cancellation: float = math.nan
    purity: float = math.nan
    false_alarms: float = math.nan
    kl_random: float = math.nan
    kl_adversarial: float = math.nan
    seconds: float


def measured(
    task: ProbedTask, recipe: Recipe, seeds: Sequence[int], originals: Sequence[ToyOutcome]
) -> list[dict[str, Any]]:
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


def summary(cell: Cell, runs: Runs) -> FrontierRow:
    """The row of a cell: rates with the interval of the clean rate, and medians over its runs."""
    gated = runs.gated
    row = named(cell, runs) | {"seeds": len(gated), "seconds": runs.seconds}
    if len(gated):
        row["clean"] = int(gated["clean"].sum())
        row["clean_rate"] = row["clean"] / len(gated)
        row["low"], row["high"] = clustered(gated["clean"].tolist(), gated["toy_seed"].tolist())
        row["success_rate"] = float(gated["success"].mean())
        row |= {name: float(gated[name].median()) for name in MEDIANS}
    return FrontierRow(**row)


def _views(table: pd.DataFrame) -> list[Shown]:
    table = table[table["seeds"] > 0]
    title = "One head, one trigram: every method over its knob"
    words = "Each point is a method at one value of its knob, over seeds."
    return [Shown("frontier", title, words, table, partial(frontier_figure, table))]


CELLS, TUNING, WIDTH = (
    Study(
        name=name,
        row=FrontierRow,
        summary=summary,
        measure=measured,
        views=_views,
        needs=COLUMNS,
        first_seed=45_000,
    )
    for name in ("frontier-cells", "frontier-tuning", "frontier-width")
)


def run_frontier(
    out: Path | str,
    *,
    tasks: Sequence[str] = tuple(PUBLISHED),
    methods: Sequence[str] | None = None,
    **how: Unpack[How],
) -> pd.DataFrame:
    """One row of ``out/frontier.csv`` for each task, method and value of its knob: ``COLUMNS``.

    ``out/frontier-cells-runs.csv`` has every run.

    Args:
        tasks: shapes of toys, or names of
            :data:`~gated_interp.experiments.originals.BENCHMARKS`.
        methods: of :data:`~gated_interp.training.methods.METHODS`; those that were tuned, by
            default.
        how: see :meth:`~gated_interp.experiments.study.Study.run`, which says the rest.

    Raises:
        GatedInterpError: an unknown task or method, or as ``Study.run``.
    """
    chosen = [method_named(name) for name in methods or tuned()]
    originals = [originals_named(task) for task in tasks]
    cells = [
        Cell(name, each, matched(at(method, value), each))
        for name, (method, value) in points(chosen).items()
        for each in originals
    ]
    table = CELLS.run(out, cells, **how)
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
    write_table(frame, Path(out) / "frontier.csv")
    return frame


def run_tuning(
    out: Path | str, *, methods: Sequence[str] | None = None, **how: Unpack[How]
) -> pd.DataFrame:
    """One row of ``out/frontier-tuning-table.csv`` for each setting each method was tried with.

    At the middle of its knob, on :data:`TUNED_ON`. ``chosen`` says which won: most clean runs, then
    the lower FVU; :data:`METHODS` is written down accordingly.

    Args:
        methods, how: see :func:`run_frontier`.
    """
    task, first_seed, seeds = TUNED_ON
    toys = originals_named(task)
    cells = [
        Cell(name, toys, matched(at(method, tried=i), toys))
        for name, (method, i) in settings(map(method_named, methods or tuned())).items()
    ]
    table = TUNING.run(out, cells, **How(seeds=seeds, first_seed=first_seed) | how)
    there = map(settings(METHODS.values()).__getitem__, table["recipe"])
    table[["method", "changes"]] = [
        (m.name, ", ".join(f"{k}={v}" for k, v in m.tried[i].items()) or "none") for m, i in there
    ]
    best = table.sort_values(["clean", "fvu"], ascending=[False, True]).drop_duplicates("method")
    table["chosen"] = table["recipe"].isin(best["recipe"])
    columns = ["method", "changes", "chosen", "runs", "clean", "fvu", "kl", "active_per_position",
               "heads_alive"]  # fmt: skip
    frame = table.sort_values("recipe")[columns].reset_index(drop=True)
    write_table(frame, Path(out) / "frontier-tuning-table.csv")
    return frame


def run_width(
    out: Path | str,
    *,
    tasks: Sequence[str] = ("3H4ST",),
    methods: Sequence[str] | None = None,
    **how: Unpack[How],
) -> pd.DataFrame:
    """One row of ``out/frontier-width.csv`` for each method and width, its knob in the middle.

    Width 1, 2, 4, 8: that many heads per original head. Does the number of heads alive stay flat?

    Args:
        tasks, methods, how: see :func:`run_frontier`.
    """
    cells = [
        Cell(f"{m.name}, {width}x", originals, at(m).replace(expansion=width))
        for originals in map(originals_named, tasks)
        for m in map(method_named, methods or tuned())
        for width in WIDTHS
    ]
    return WIDTH.run(out, cells, **how)


def points(methods: Iterable[Method]) -> dict[str, tuple[Method, float | int]]:
    """Each method at each value of its knob, by its cell's name."""
    return {f"{m.name}, {value:g}": (m, value) for m in methods for value in m.values}


def settings(methods: Iterable[Method]) -> dict[str, tuple[Method, int]]:
    """Each method and the number of each setting it was tried with, by its cell's name."""
    return {f"{m.name}, {i}": (m, i) for m in methods for i in range(len(m.tried))}
