"""Figures of a sweep, drawn from its table alone."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd
import plotly.graph_objects as go

from gated_interp.experiments.cells import read_table
from gated_interp.plots import phase_diagram, save_figures, sweep_curves

# More lines than this cannot be told apart.
MOST_LINES = 8


def draw_sweep(
    csv: Path | str,
    out: Path | str,
    formats: Sequence[str] = ("svg", "png"),
    *,
    say: Callable[[str], object] | None = None,
) -> list[Path]:
    """Draw ``sweep.csv``: curves over alpha where there are several, else heads by trigrams.

    Writes ``out/sweep-alpha.*`` (up to eight shapes), and ``out/sweep-phase-<alpha>.*`` for each
    alpha of a sweep of several shapes.

    Returns:
        The files written; none for a sweep of a single cell.

    Raises:
        GatedInterpError: not such a table, or a format that does not exist.
    """
    wanted = ["heads", "trigrams", "alpha", "gated_runs", "success", "success_low", "success_high"]
    table = read_table(csv, [*wanted, "learnt", "distributed", "fvu_median"])
    figures = sweep_figures(table.sort_values(["heads", "trigrams", "alpha"]))
    placed: dict[Path | str, tuple[go.Figure, pd.DataFrame]] = {
        Path(out) / stem: figure for stem, figure in figures.items()
    }
    return save_figures(placed, formats, say=say)


def sweep_figures(table: pd.DataFrame) -> dict[str, tuple[go.Figure, pd.DataFrame]]:
    """The figures of a sweep's table by stem, each with the rows it was drawn from."""
    found: dict[str, tuple[go.Figure, pd.DataFrame]] = {}
    table = table.rename(columns={"clean": "clean_rate"})
    rate = "clean" if "clean_rate" in table else "success"  # a table of version 0.1 lacks it
    ran = table[(table["gated_runs"] > 0) & (table["alpha"] > 0)].rename(
        columns={f"{rate}_low": "low", f"{rate}_high": "high", "fvu_median": "fvu"}
    )
    shapes = [f"{h}H{t}ST" for h, t in zip(ran["heads"], ran["trigrams"], strict=True)]
    ran = ran.assign(shape=shapes)
    if ran["alpha"].nunique() > 1 and ran["shape"].nunique() <= MOST_LINES:
        title = "Gated blocks, by the weight of the gate penalty"
        found["sweep-alpha"] = (sweep_curves(ran, group="shape", title=title), ran)
    for alpha, part in table.groupby("alpha"):
        if len(part) > 1:
            title = f"Toys and gated blocks, alpha {alpha:g}"
            found[f"sweep-phase-{alpha:g}"] = (phase_diagram(part, title=title), part)
    return found
