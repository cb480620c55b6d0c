"""Grids of shapes and settings, many seeds each: ``sweep``."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from gated_interp.cli.console import progress, say, show, tell
from gated_interp.cli.options import DRAWN, Figures, Formats, Workers, WrongUsage, drawn_in
from gated_interp.cli.settings import Options, settings_from
from gated_interp.core.errors import GatedInterpError

COLUMNS = ["heads", "trigrams", "alpha", "gated_heads", "seeds", "toys_learnt", "toys_distributed",
           "gated_runs", "clean_runs", "successes", "fvu_median"]  # fmt: skip


def _of_a_sweep() -> list[Options]:
    from gated_interp.experiments.sweep import SweepConfig

    names = {"alphas": "alpha", "n_sequences": "sequences"}
    return [Options("Grid", [SweepConfig], names, ["out"], defaults=True)]


@settings_from(_of_a_sweep)
def sweep(
    *,
    changes: Annotated[
        list[str] | None,
        Parameter(
            name="--set",
            help="Change a field of the recipe, such as d_gate=4 or training.lr=0.01. Repeat the "
            "option for several.",
        ),
    ] = None,
    out: Path = Path("runs/sweep"),
    figures: Figures = None,
    workers: Workers = None,
    formats: Formats = DRAWN,
    **settings: Any,
) -> None:
    """Train a grid of toys and gated blocks, and write one table.

    Each cell of the grid has its number of heads, number of skip trigrams and alpha. A cell is
    added to the table when it is done. Run the same command again to resume an interrupted sweep.

    Args:
        out: Write the table to this folder.
    """
    kinds, folder = list(formats), drawn_in(out, figures)
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


def _changes(written: Sequence[str]) -> dict[str, Any]:
    """``["d_gate=4", "gate=tanh"]`` as fields and values."""
    found: dict[str, Any] = {}
    for each in written:
        name, equals, value = each.partition("=")
        if not equals:
            raise WrongUsage(f"--set is {each!r}; it must be a name and a value, as d_gate=4.")
        try:
            found[name] = json.loads(value)
        except ValueError:
            found[name] = value
    return found
