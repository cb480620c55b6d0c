"""Grids of shapes and settings, many seeds each: ``sweep``."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from gated_interp.cli.console import progress, say, show, tell
from gated_interp.cli.options import (
    Figures,
    Formats,
    Workers,
    drawn_in,
    formats_of,
    numbers,
    whole_numbers,
)

COLUMNS = ["heads", "trigrams", "alpha", "gated_heads", "seeds", "toys_learnt", "toys_distributed",
           "gated_runs", "clean_runs", "successes", "fvu_median"]  # fmt: skip


def sweep(
    heads: Annotated[str, typer.Option(help="Heads of the toys: a range or a list.")] = "2:4",
    trigrams: Annotated[str, typer.Option(help="Trigrams: a range or a list.")] = "3:6",
    alpha: Annotated[
        str | None,
        typer.Option(help="Weights of the gate penalty, commas between; the recipe's if absent."),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Toys, and gated runs, of each cell.")] = 64,
    first_seed: Annotated[int, typer.Option(min=0, help="Seeds count up from here.")] = 0,
    out: Annotated[Path, typer.Option(help="Folder of the table.")] = Path("runs/sweep"),
    figures: Figures = None,
    recipe: Annotated[
        Literal["reliable", "reference"], typer.Option(help="What the rest is taken from.")
    ] = "reliable",
    hold_fvu: Annotated[
        bool,
        typer.Option("--hold-fvu/--no-hold-fvu", help="Hold the recipe's FVU whatever alpha is."),
    ] = True,
    expansion: Annotated[int | None, typer.Option(min=1, help="Gated heads per toy head.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Of the gated training.")] = None,
    toy_steps: Annotated[int | None, typer.Option(min=1, help="Of the toys' training.")] = None,
    sequences: Annotated[
        int | None, typer.Option(min=1, help="Sequences that each run trains on.")
    ] = None,
    workers: Workers = None,
    formats: Formats = "svg,png",
) -> None:
    """Run a grid of cells into one table.

    Each cell is one number of heads, of trigrams and one alpha. It is added to the table when it
    is done; interrupted and given again, the command goes on with the others.
    """
    kinds, folder = formats_of(formats), drawn_in(out, figures)
    whole_numbers(heads, "--heads")
    whole_numbers(trigrams, "--trigrams")
    if alpha is not None:
        numbers(alpha, "--alpha")
    from gated_interp.experiments.sweep import SWEEP, SweepConfig, run_sweep

    config = SweepConfig(
        heads=heads,
        trigrams=trigrams,
        alphas=alpha,
        seeds=seeds,
        first_seed=first_seed,
        recipe=recipe,
        hold_fvu=hold_fvu,
        expansion=expansion,
        steps=steps,
        toy_steps=toy_steps,
        n_sequences=sequences,
        out=str(out),
    )
    with progress("training", "batches of seeds") as update:
        table = run_sweep(config, workers=workers, say=tell, on_progress=update)
    rows = table[COLUMNS].astype(object).to_numpy().tolist()
    show(f"{seeds} seeds in each of {len(table)} cells", COLUMNS, rows)
    with progress("drawing"):
        drawn = SWEEP.draw(out / "sweep.csv", folder, kinds, say=tell)
    say(f"The table is in {out}, {len(drawn)} files of figures in {folder}.")


COMMANDS = {"sweep": sweep}
