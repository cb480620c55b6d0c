"""``frontier``: every method that claims to part heads, on the same toys."""

from pathlib import Path
from typing import Annotated, Any

import typer

from gated_interp.cli.console import progress, say, show, tell
from gated_interp.cli.options import Figures, Formats, Workers, drawn_in, formats_of
from gated_interp.cli.reliability import FirstSeed, Steps, ToySteps


def frontier(
    tasks: Annotated[
        list[str] | None,
        typer.Option("--task", help="A shape (as 2H3ST); give it again for more. Three if absent."),
    ] = None,
    methods: Annotated[
        list[str] | None,
        typer.Option("--method", help="A method; give it again for more. All if absent."),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each point.")] = 16,
    first_seed: FirstSeed = 45_000,
    out: Annotated[Path, typer.Option(help="Run folder.")] = Path("runs/frontier"),
    figures: Figures = None,
    tune: Annotated[
        bool, typer.Option("--tune", help="Instead, the search behind each method's settings.")
    ] = False,
    width: Annotated[
        bool, typer.Option("--width", help="Instead, heads alive at 1 to 8 heads per head.")
    ] = False,
    steps: Steps = None,
    toy_steps: ToySteps = None,
    workers: Workers = None,
    formats: Formats = "svg,png",
) -> None:
    """Put every method on one frontier: clean rate, FVU, KL, heads active per position.

    Each over its sparsity knob, with as many heads as fit into equal parameters, for equal steps.
    A point is written when it is done; interrupted and given again, the command goes on.
    """
    kinds, folder = formats_of(formats), drawn_in(out, figures)
    from gated_interp.core.errors import GatedInterpError
    from gated_interp.experiments import frontier as study
    from gated_interp.experiments.paper import PUBLISHED

    if tune and width:
        raise GatedInterpError("--tune and --width are two studies; name one.")
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
        say(f"The table is in {out}.")
        return
    with progress("drawing", "") as _:
        study.CELLS.draw(out / "frontier.csv", folder, kinds, say=tell)
    say(f"The table is in {out}, its figure in {folder}.")


COMMANDS = {"frontier": frontier}
