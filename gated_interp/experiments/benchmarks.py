"""Does gating part heads where it should, and fail where it must? Models whose answers are known.

Each model of :data:`~gated_interp.experiments.originals.BENCHMARKS` gets blocks of many seeds, with
the recipe and without its overlap penalty. Clean is not enough to be right: a block pressed to part
its heads may hold every case with one head by answering foils too.
"""

import dataclasses
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Unpack

import pandas as pd
import plotly.graph_objects as go

from gated_interp.checkpoints.checkpoint import save
from gated_interp.core.errors import GatedInterpError
from gated_interp.experiments.frontier import measured
from gated_interp.experiments.methods import at, matched
from gated_interp.experiments.originals import BENCHMARKS
from gated_interp.experiments.recipes import RELIABLE
from gated_interp.experiments.study import Cell, CellRow, How, Runs, Study, named
from gated_interp.metrics.intervals import clustered
from gated_interp.plots import reliability
from gated_interp.training.methods import METHODS, method_named
from gated_interp.views.shown import Shown

RECIPES = {
    "recipe": RELIABLE.replace(attempts=1),
    "no overlap penalty": RELIABLE.replace(attempts=1, overlap=0.0),
}
NO_ALARM = 0.01
"""A block is right when it is clean and answers at most this share of every case's foils."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class BenchmarkRow(CellRow):
    """A benchmark and a recipe.

    Attributes:
        clean: runs that are clean.
        right: clean and without false alarms, with the 95% Wilson interval ``low``, ``high`` of its
            share (every block replaces the same model).
        held: cases that one head holds; a median, as ``fvu``, ``kl`` (nats),
            ``active_per_position`` and ``false_alarms`` (of the worst case).
        fvu_low, fvu_high: quartiles.
        seconds: of one process.
        parts: whether blocks should come out right.
        seen: whether more than half do, as the interval says.
    """

    clean: int
    right: int
    low: float
    high: float
    held: float
    fvu: float
    kl: float
    active_per_position: float
    false_alarms: float
    fvu_low: float
    fvu_high: float
    seconds: float
    parts: bool
    seen: str


def summary(cell: Cell, runs: Runs) -> BenchmarkRow:
    """The row of a benchmark and recipe."""
    gated, parts = runs.gated, BENCHMARKS[cell.experiment].parts
    right = gated["clean"] & (gated["false_alarms"] <= NO_ALARM)
    # Blocks differ in their seeds alone, so each is a cluster of its own.
    low, high = clustered(right.tolist(), gated["seed"].tolist())
    medians: dict[str, Any] = {
        name: float(gated[name].median())
        for name in ("held", "fvu", "kl", "active_per_position", "false_alarms")
    }
    return BenchmarkRow(
        **named(cell, runs),
        clean=int(gated["clean"].sum()),
        right=int(right.sum()),
        low=low,
        high=high,
        **medians,
        fvu_low=float(gated["fvu"].quantile(0.25)),
        fvu_high=float(gated["fvu"].quantile(0.75)),
        seconds=runs.seconds,
        parts=parts,
        seen=_seen(parts, low, high),
    )


def _seen(parts: bool, low: float, high: float) -> str:
    if low <= 0.5 <= high:
        return "too few to say"
    return "as predicted" if (low > 0.5) == parts else "against the prediction"


def _in_order(rows: Sequence[BenchmarkRow], runs: pd.DataFrame) -> list[BenchmarkRow]:
    places = [*BENCHMARKS], [*RECIPES, *METHODS]
    return sorted(rows, key=lambda r: [p.index(n) for p, n in zip(places, r.names, strict=True)])


def figure_of(table: pd.DataFrame) -> go.Figure:
    """The share of blocks that are right, for each benchmark and recipe."""
    parts = {True: "should part", False: "should fail"}
    shown = table.assign(
        clean=table["right"],
        experiment=[
            f"{name} ({parts[bool(p)]})"
            for name, p in zip(table["experiment"], table["parts"], strict=True)
        ],
    )
    return reliability(shown, counted="right", title="Blocks that are clean and answer no foil")


def _views(table: pd.DataFrame) -> list[Shown]:
    title = "Blocks that are clean and answer no foil"
    words = " ".join(in_words(table)) if {"runs", "seen"} <= {*table} else ""
    return [Shown("benchmarks", title, words, table, partial(figure_of, table))]


BENCHMARKED = Study(
    name="benchmarks",
    row=BenchmarkRow,
    summary=summary,
    measure=measured,
    finished=_in_order,
    views=_views,
    needs=("experiment", "recipe", "right", "parts"),
    first_seed=46_000,
)


def run_benchmarks(
    out: Path | str,
    *,
    only: Sequence[str] | None = None,
    methods: Sequence[str] = (),
    **how: Unpack[How],
) -> pd.DataFrame:
    """One :class:`BenchmarkRow` of ``out/benchmarks.csv`` for each benchmark and recipe.

    The models that blocks replace are written as ``out/NAME.safetensors``.

    Args:
        only: names of benchmarks; all by default.
        methods: further methods to compare, each with its knob in the middle and as many heads as
            fit into the recipe's parameters.
        how: see :meth:`~gated_interp.experiments.study.Study.run`, which says the rest.

    Raises:
        GatedInterpError: an unknown benchmark or method, or as ``Study.run``.
    """
    if only is None:
        only = tuple(BENCHMARKS)
    unknown = [name for name in only if name not in BENCHMARKS]
    if unknown:
        raise GatedInterpError(
            "unknown-name", what="benchmark", name=unknown[0], choices=[*BENCHMARKS]
        )
    recipes = RECIPES | {m.name: at(m) for m in map(method_named, methods)}
    cells = [
        Cell(
            recipe,
            BENCHMARKS[name],
            made if recipe in RECIPES else matched(made, BENCHMARKS[name]),
        )
        for name in only
        for recipe, made in recipes.items()
    ]
    table = BENCHMARKED.run(out, cells, **how)
    for name in only:
        save(BENCHMARKS[name].example(), Path(out) / f"{name}.safetensors")
    return table


def in_words(table: pd.DataFrame) -> list[str]:
    """For each benchmark what was predicted, why, and what was seen."""
    sentences = []
    for name, rows in table.groupby("experiment", sort=False):
        known = BENCHMARKS[str(name)]
        seen = " and ".join(
            f"{r['right']} of {r['runs']} blocks ({r['recipe']}: {r['seen']})"
            for r in rows.to_dict("records")
        )
        should = "should" if known.parts else "should not"
        sentences.append(f"{name} {should} come out right, because {known.why}; right are {seen}.")
    return sentences
