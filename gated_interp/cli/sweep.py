"""Grids of shapes and settings, many seeds each: ``sweep``."""

import json
from collections.abc import Sequence
from pathlib import Path
    with progress("training", "batches of seeds") as update:
        table = run_sweep(config, workers=workers, say=tell, on_progress=update)
    rows = table[COLUMNS].astype(object).to_numpy().tolist()
    show(f"{seeds} seeds in each of {len(table)} cells", COLUMNS, rows)
    with progress("drawing"):
        drawn = SWEEP.draw(out / "sweep.csv", folder, kinds, say=tell)
    say(f"{len(drawn)} files of figures are in {folder}, the table is in {out / 'sweep.csv'}.")

COLUMNS = ["heads", "trigrams", "alpha", "gated_heads", "seeds", "toys_learnt", "toys_distributed",
           "gated_runs", "clean_runs", "successes", "fvu_median"]  # fmt: skip


def _of_a_sweep() -> list[Options]:
    from gated_interp.experiments.sweep import SweepConfig

    names = {"alphas": "alpha", "n_sequences": "sequences"}
    return [Options("Grid", [SweepConfig], names, ["out"], defaults=True)]


@settings_from(_of_a_sweep)
def sweep(
    *,
    with progress("training", "batches of seeds") as update:
        table = run_sweep(config, workers=workers, say=tell, on_progress=update)
    rows = table[COLUMNS].astype(object).to_numpy().tolist()
    show(f"{seeds} seeds in each of {len(table)} cells", COLUMNS, rows)
    with progress("drawing"):
        drawn = SWEEP.draw(out / "sweep.csv", folder, kinds, say=tell)
    say(f"{len(drawn)} files of figures are in {folder}, the table is in {out / 'sweep.csv'}.")
) -> None:
    """Run a grid of cells into one table.

    Each cell is one number of heads, one of skip trigrams and one alpha. A cell is added to the
    table when it is done. Run the same command again to resume an interrupted sweep.

    Args:
    with progress("training", "batches of seeds") as update:
        table = run_sweep(config, workers=workers, say=tell, on_progress=update)
    rows = table[COLUMNS].astype(object).to_numpy().tolist()
    show(f"{seeds} seeds in each of {len(table)} cells", COLUMNS, rows)
    with progress("drawing"):
        drawn = SWEEP.draw(out / "sweep.csv", folder, kinds, say=tell)
    say(f"{len(drawn)} files of figures are in {folder}, the table is in {out / 'sweep.csv'}.")
    from gated_interp.experiments.sweep import SWEEP, SweepConfig, run_sweep

    try:
        config = SweepConfig(**settings, settings=_changes(changes or []), out=str(out))
    except GatedInterpError as error:
        raise WrongUsage(str(error)) from error
    with progress("training", "batches of seeds") as update:
        table = run_sweep(config, workers=workers, say=tell, on_progress=update)
    rows = table[COLUMNS].astype(object).to_numpy().tolist()
    show(f"{config.seeds} seeds in each of {len(table)} cells", COLUMNS, rows)
    with progress("drawing"):
        drawn = SWEEP.draw(out / "sweep.csv", folder, kinds, say=tell)
    say(f"{len(drawn)} files of figures are in {folder}, the table is in {out / 'sweep.csv'}.")
    with progress("training", "batches of seeds") as update:
        table = run_sweep(config, workers=workers, say=tell, on_progress=update)
    rows = table[COLUMNS].astype(object).to_numpy().tolist()
    show(f"{seeds} seeds in each of {len(table)} cells", COLUMNS, rows)
    with progress("drawing"):
        drawn = SWEEP.draw(out / "sweep.csv", folder, kinds, say=tell)
    say(f"{len(drawn)} files of figures are in {folder}, the table is in {out / 'sweep.csv'}.")
