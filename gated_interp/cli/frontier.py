"""``frontier``: every method that claims to part heads, on the same toys."""

from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from gated_interp.cli.console import progress, say, show, tell
from gated_interp.cli.options import (
    DRAWN,
    Figures,
    FirstSeed,
    Flag,
    Formats,
    Positive,
    Steps,
    ToySteps,
    Workers,
    drawn_in,
)

Task = Annotated[
    list[str] | None,
    Parameter(
        name="--task",
        help="Train on toys of this shape (as 2H3ST). Repeat the option for several. Default: the "
        "three published shapes.",
    ),
]
Method = Annotated[
    list[str] | None,
    Parameter(
        name="--method", help="Try only this method. Repeat the option for several. Default: all."
    ),
]


def frontier(
    *,
    tasks: Task = None,
    methods: Method = None,
    seeds: Positive = 16,
    first_seed: FirstSeed = 45_000,
    out: Path = Path("runs/frontier"),
    figures: Figures = None,
    tune: Flag = False,
    width: Flag = False,
    steps: Steps = None,
    toy_steps: ToySteps = None,
    workers: Workers = None,
    formats: Formats = DRAWN,
) -> None:
    """Compare all methods, each at several settings of how sparse it is.

    Measures clean rate, FVU, KL and active heads. Every method gets the same number of steps, and
    as many heads as fit into the same number of parameters. A point is written when it is done. Run
    the same command again to resume an interrupted run.

    Args:
        seeds: Train this many blocks for each point.
        out: Write tables to this folder.
        tune: Run the search behind each method's settings instead.
        width: Count the heads that stay alive with 1 to 8 heads per original head instead.
    """
    kinds, folder = list(formats), drawn_in(out, figures)
    from gated_interp.core.errors import GatedInterpError
    from gated_interp.experiments import frontier as study
    from gated_interp.experiments.paper import PUBLISHED

    if tune and width:
        raise GatedInterpError("tune-or-width")
    with progress("training", "batches of seeds") as update:
        how: dict[str, Any] = {
            "methods": methods,
            "workers": workers,
            "say": tell,
            "on_progress": update,
        }
        if tune:
            table = study.run_tuning(out, **how)
        else:
            how |= {"seeds": seeds, "first_seed": first_seed, "steps": steps}
            how |= {"toy_steps": toy_steps}
            run = study.run_width if width else study.run_frontier
            table = run(out, tasks=tasks or (["3H4ST"] if width else list(PUBLISHED)), **how)
    if tune:
        columns = ["method", "changes", "chosen", "clean", "runs", "fvu"]
    elif width:
        columns = ["experiment", "recipe", "clean", "runs", "heads_alive", "fvu"]
    else:
        columns = ["task", "method", "knob", "clean_rate", "low", "high", "fvu"]
        columns += ["active_per_position", "heads_alive", "kl_adversarial"]
    show("frontier", columns, table[columns].astype(object).to_numpy().tolist())
    if tune or width or not (table["seeds"] > 0).any():
        say(f"The tables are in {out}.")
        return
    with progress("drawing"):
        study.CELLS.draw(out / "frontier.csv", folder, kinds, say=tell)
    say(f"The figure is in {folder}, its table is in {out / 'frontier.csv'}.")
