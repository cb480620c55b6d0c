"""``report``: one page on one model, which opens from disk."""

import shlex
from pathlib import Path
from typing import Annotated

from gated_interp.cli.console import progress, say, tell
from gated_interp.cli.imports import quick_imports
from gated_interp.cli.options import Base, File, Flag, Layer, Natural, at_least, model_of


def report(
    model: File,
    /,
    *,
    out: Path | None = None,
    layer: Layer = None,
    base: Base = None,
    sequences: Annotated[int | None, at_least(2)] = None,
    seed: Natural = 0,
    beside: Path | None = None,
    interactive: Flag = False,
) -> None:
    """Write one HTML page about a model, which opens from disk and needs no network.

    Shows which head holds what before and after, how faithful and how sparse a block is, what each
    head does, circuits and ablations, each with its numbers as CSV. Of a language model of more
    than four layers, it starts from an overview of all heads and shows the layer that matters most,
    unless you name one with --layer.

    Args:
        out: Write the page to this file. Default: runs/report-MODEL.html.
        sequences: Measure on this many sequences. Default: 1,000 of a toy's task, 32 of text, and
            fewer of a model with many weights.
        seed: Draw the sequences and the bootstrap from this seed.
        beside: Draw the points of this frontier.csv or runs.csv beside the block.
        interactive: Draw interactive figures, with hover values.
    """
    with quick_imports():
        from gated_interp.experiments.report import report as write
        from gated_interp.experiments.report import require_page

    if out is not None:
        require_page(out)
    loaded = model_of(model, base=base)
    page = Path(f"runs/report-{loaded.model_name}.html") if out is None else out
    # Without folders: a page that is shown around does not say where its author keeps things.
    given = {"--out": page.name, "--layer": layer, "--sequences": sequences, "--seed": seed or None,
             "--base": None if base is None else base.name,
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
