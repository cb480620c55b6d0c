"""Does gating part heads where it should, and fail where it must? Models whose answers are known.

Each model of :data:`~gated_interp.experiments.originals.BENCHMARKS` gets blocks of many seeds, with
the recipe and without its overlap penalty. Clean is not enough to be right: a block pressed to part
its heads may hold every case with one head by answering foils too.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd
import plotly.graph_objects as go

from gated_interp.checkpoints.checkpoint import save
from gated_interp.core.errors import GatedInterpError
from gated_interp.core.files import write_table
from gated_interp.experiments.cells import (
    KEY,
    Cell,
    CellsConfig,
    Row,
    Runs,
    read_table,
    run_cells,
)
from gated_interp.experiments.frontier import measured
from gated_interp.experiments.originals import BENCHMARKS
from gated_interp.experiments.recipes import RELIABLE
from gated_interp.metrics.intervals import clustered
from gated_interp.plots import reliability, save_figures

STEM = "benchmarks"
RECIPES = {
    "recipe": RELIABLE.replace(attempts=1),
    "no overlap penalty": RELIABLE.replace(attempts=1, overlap=0.0),
}
NO_ALARM = 0.01
"""A block is right when it is clean and answers at most this share of every case's foils."""


def run_benchmarks(
    out: Path | str,
    *,
    only: Sequence[str] | None = None,
    seeds: int = 16,
    first_seed: int = 46_000,
    steps: int | None = None,
    workers: int | str | None = None,
    say: Callable[[str], None] = lambda _: None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> pd.DataFrame:
    """One row of ``out/benchmarks.csv`` for each benchmark and recipe.

    The models that blocks stand in for are written as ``out/NAME.safetensors``.

    Columns, beside those that name it: ``runs``; ``clean`` of them; ``right``, clean and without
    false alarms, with the 95% Wilson interval ``low``, ``high`` of its share (every block stands in
    for the same model); medians of ``held`` (cases that one head holds), ``fvu``, ``kl``,
    ``active_per_position`` and ``false_alarms`` (of the worst case); ``parts``, whether blocks
    should come out right; ``seen``, whether more than half do, as the interval says.

    A row is kept when it is done; started again with the same seeds and steps, the command goes on.

    Args:
        only: names of benchmarks; all unless given.
        seeds, first_seed: blocks of each.
        steps: instead of the recipe's.
        workers, say, on_progress: see :func:`~gated_interp.experiments.cells.run_cells`.

    Raises:
        GatedInterpError: an unknown benchmark, or a folder that holds something else.
    """
    if only is None:
        only = tuple(BENCHMARKS)
    unknown = [name for name in only if name not in BENCHMARKS]
    if unknown:
        raise GatedInterpError(
            f"there is no benchmark {unknown[0]!r}; there are {', '.join(BENCHMARKS)}."
        )
    cells = [Cell(how, BENCHMARKS[name], RECIPES[how]) for name in only for how in RECIPES]
    config = CellsConfig(seeds=seeds, first_seed=first_seed, steps=steps)
    table = run_cells(
        out, STEM, cells, config, summary, measure=measured, workers=workers, say=say,
        on_progress=on_progress,
    )  # fmt: skip
    for name in only:
        save(BENCHMARKS[name].example(), Path(out) / f"{name}.safetensors")
    table["parts"] = [BENCHMARKS[name].parts for name in table["experiment"]]
    table = table.sort_values(
        KEY, key=lambda names: names.map([*BENCHMARKS, *RECIPES].index), ignore_index=True
    )
    table["seen"] = [
        _seen(bool(parts), float(low), float(high))
        for parts, low, high in zip(table["parts"], table["low"], table["high"], strict=True)
    ]
    write_table(table, Path(out) / f"{STEM}.csv")
    return table


def summary(runs: Runs) -> Row:
    """The row of a benchmark and recipe, but for what was predicted."""
    gated = runs.gated
    right = gated["clean"] & (gated["false_alarms"] <= NO_ALARM)
    row: Row = {"runs": len(gated), "clean": int(gated["clean"].sum()), "right": int(right.sum())}
    # Blocks differ in their seeds alone, so each is a cluster of its own.
    row["low"], row["high"] = clustered(right.tolist(), gated["seed"].tolist())
    medians = ("held", "fvu", "kl", "active_per_position", "false_alarms")
    row |= {name: float(gated[name].median()) for name in medians}
    row |= {
        f"fvu_{end}": float(gated["fvu"].quantile(q)) for end, q in (("low", 0.25), ("high", 0.75))
    }
    return row | {"seconds": runs.seconds}


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


def _seen(parts: bool, low: float, high: float) -> str:
    if low <= 0.5 <= high:
        return "too few to say"
    return "as predicted" if (low > 0.5) == parts else "against the prediction"


def draw_benchmarks(
    csv: Path | str,
    out: Path | str,
    formats: Sequence[str] = ("svg", "png"),
    *,
    say: Callable[[str], object] | None = None,
) -> list[Path]:
    """Draw ``benchmarks.csv`` to ``out/benchmarks.*``, with the rows it was drawn from.

    Raises:
        GatedInterpError: not such a table, or a format that does not exist.
    """
    table = read_table(csv, ["experiment", "recipe", "right", "parts"])
    return save_figures({Path(out) / STEM: (figure_of(table), table)}, formats, say=say)


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
