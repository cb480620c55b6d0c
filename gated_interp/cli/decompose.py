"""``decompose``: the attention of a model taken apart, head by head, and measured."""

from pathlib import Path
from typing import Annotated, Any

import typer

from gated_interp.cli.console import progress, say, show, tell
from gated_interp.cli.options import File
from gated_interp.cli.reliability import Workers

COLUMNS = {
    "fvu": "FVU",
    "ce_recovered_zero": "recovered (zero)",
    "ce_recovered_mean": "recovered (mean)",
    "kl": "KL",
    "active_per_position": "heads at a position",
    "active_original": "original",
    "gates_per_pair": "gates per pair",
    "heads_alive": "heads",
    "held_share": "held by one head",
    "held_share_original": "original",
}


def decompose(
    model: File,
    layers: Annotated[
        list[int] | None,
        typer.Option("--layer", min=0, help="A layer; give it again for more. All if absent."),
    ] = None,
    text: Annotated[
        list[str] | None,
        typer.Option("--text", help="Files, folders or datasets:NAME; the model's own if absent."),
    ] = None,
    method: Annotated[str, typer.Option(help="How the attention is replaced.")] = "gated",
    heads: Annotated[
        int | None, typer.Option(min=1, help="Heads; four for each of the layer's if absent.")
    ] = None,
    steps: Annotated[
        int, typer.Option(min=1, help="Of training, some 1,000 positions each.")
    ] = 3000,
    fvu: Annotated[
        float, typer.Option(help="Share of the layer's variance that may stay unexplained.")
    ] = 0.029,
    seeds: Annotated[int, typer.Option(min=1, help="Blocks of each layer.")] = 3,
    first_seed: Annotated[int, typer.Option(min=0, help="Seeds count up from here.")] = 0,
    overlap: Annotated[
        float | None, typer.Option(min=0, help="Weight of the penalty on heads that write at once.")
    ] = None,
    alpha: Annotated[float | None, typer.Option(min=0, help="Weight of the gate penalty.")] = None,
    sequences: Annotated[int, typer.Option(min=1, help="Held-out sequences to measure on.")] = 128,
    out: Annotated[
        Path | None, typer.Option(help="Run folder; runs/decompose-MODEL if absent.")
    ] = None,
    workers: Workers = None,
) -> None:
    """Train gated blocks in the place of a model's attention, and say what each head holds.

    For every layer over seeds, measured on held-out text: what is left of the model's loss, how
    many heads write at a position, and how many positions one head alone holds. A run is kept when
    it is done; interrupted and given again, the command goes on.
    """
    from gated_interp.checkpoints.checkpoint import load
    from gated_interp.experiments.decompose import decompose as run
    from gated_interp.experiments.language import text_for

    loaded = load(model)
    folder = Path(f"runs/decompose-{loaded.model_name}") if out is None else out
    extra: dict[str, Any] = {"overlap": overlap, "alpha": alpha}
    with progress("training", "runs") as update:
        found = run(
            loaded,
            folder,
            layers=layers or None,
            data=text_for(loaded, text) if text else None,
            method=method,
            heads=heads,
            fvu=fvu,
            steps=steps,
            seeds=seeds,
            first_seed=first_seed,
            sequences=sequences,
            workers=workers,
            say=tell,
            on_progress=update,
            **{name: value for name, value in extra.items() if value is not None},
        )
    medians = {layer: each["median"] for layer, each in found.results["layers"].items()}
    show(
        f"{loaded.model_name}, medians of {seeds} seeds, on held-out sequences",
        ["layer", *COLUMNS.values()],
        [[layer, *(row.get(name) for name in COLUMNS)] for layer, row in medians.items()],
    )
    say(f"Every run, its model and history are in {found.folder}.")


COMMANDS = {"decompose": decompose}
