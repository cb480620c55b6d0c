"""``report``: one page on one model, which opens from disk."""

import shlex
from pathlib import Path
from typing import Annotated

import typer

from gated_interp.cli.console import progress, say, tell
from gated_interp.cli.imports import quick_imports
from gated_interp.cli.options import File, Layer


def report(
    model: File,
    out: Annotated[
        Path | None, typer.Option(help="The page; runs/report-MODEL.html if absent.")
    ] = None,
    layer: Layer = None,
    sequences: Annotated[
        int | None,
        typer.Option(min=2, help="To measure on; 1,000 of a toy's task, 32 of text if absent."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the sequences and the bootstrap.")] = 0,
    beside: Annotated[
        Path | None,
        typer.Option(help="A frontier.csv or runs.csv to draw beside the block."),
    ] = None,
    interactive: Annotated[
        bool, typer.Option("--interactive", help="Figures that say numbers under the mouse.")
    ] = False,
) -> None:
    """Write one page on a model, to be linked to: it opens from disk and needs no network.

    Who holds what before and after, how exact and how sparse a block is, what each head does,
    circuits and ablations, each with its numbers as CSV.
    """
    with quick_imports():
        from gated_interp.checkpoints.checkpoint import load
        from gated_interp.experiments.report import report as write
        from gated_interp.experiments.report import require_page

    if out is not None:
        require_page(out)
    loaded = load(model)
    page = Path(f"runs/report-{loaded.model_name}.html") if out is None else out
    # Without folders: a page that is shown around does not say where its author keeps things.
    given = {"--out": page.name, "--layer": layer, "--sequences": sequences, "--seed": seed or None,
             "--beside": None if beside is None else beside.name}  # fmt: skip
    command = ["gated-interp", "report", Path(model).name]
    for option, value in given.items():
        command += [] if value is None else [option, str(value)]
    command += ["--interactive"] if interactive else []
    with progress("reporting", "parts") as update:
        path = write(
            loaded,
            page,
            layer=layer,
            sequences=sequences,
            seed=seed,
            beside=beside,
            interactive=interactive,
            command=shlex.join(command),
            say=tell,
            on_progress=update,
        )
    say(f"{path} ({path.stat().st_size / 1e6:.1f} MB) opens in any browser.")


COMMANDS = {"report": report}
