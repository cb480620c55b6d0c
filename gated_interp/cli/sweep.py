"""Grids of shapes and settings, many seeds each: ``sweep``."""

from pathlib import Path

from gated_interp.cli.console import progress, say, show, tell
from gated_interp.cli.options import (
    DRAWN,
    Figures,
    FirstSeed,
    Formats,
    Positive,
    RecipeName,
    Steps,
    ToySteps,
    Workers,
    drawn_in,
    numbers,
    whole_numbers,
)

COLUMNS = ["heads", "trigrams", "alpha", "gated_heads", "seeds", "toys_learnt", "toys_distributed",
           "gated_runs", "clean_runs", "successes", "fvu_median"]  # fmt: skip


def sweep(
    *,
    heads: str = "2:4",
    trigrams: str = "3:6",
    alpha: str | None = None,
    seeds: Positive = 64,
    first_seed: FirstSeed = 0,
    out: Path = Path("runs/sweep"),
    figures: Figures = None,
    recipe: RecipeName = "reliable",
    hold_fvu: bool = True,
    expansion: Positive | None = None,
    steps: Steps = None,
    toy_steps: ToySteps = None,
    sequences: Positive | None = None,
    workers: Workers = None,
    formats: Formats = DRAWN,
) -> None:
    """Run a grid of cells into one table.

    Each cell is one number of heads, one of skip trigrams and one alpha. A cell is added to the
    table when it is done. Run the same command again to resume an interrupted sweep.

    Args:
        heads: Train toys with these numbers of heads, a range such as 2:4 or a list such as 2,3.
        trigrams: Train toys on these numbers of skip trigrams, a range or a list.
        alpha: Weight the gate penalty by these, with commas between. Default: the recipe's.
        seeds: Train this many toys, and gated blocks, in each cell.
        out: Write the table to this folder.
        hold_fvu: Hold the recipe's FVU whatever alpha is.
        expansion: Give blocks this many heads for each of the toy's. Default: the recipe's.
        sequences: Train each run on this many sequences. Default: the recipe's.
    """
    kinds, folder = list(formats), drawn_in(out, figures)
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
    say(f"{len(drawn)} files of figures are in {folder}, the table is in {out / 'sweep.csv'}.")
