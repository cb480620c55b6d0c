"""``decompose``: the attention of a model taken apart, head by head, and measured."""

from pathlib import Path
from typing import Annotated, Any

import typer

from gated_interp.cli.console import progress, say, show, tell
from gated_interp.cli.options import File, Processes
from gated_interp.core.errors import GatedInterpError

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
    method: Annotated[
        str,
        typer.Option(help="How the attention is replaced; 'all': every method over its knob."),
    ] = "gated",
    heads: Annotated[
        int | None, typer.Option(min=1, help="Heads; two for each of the layer's if absent.")
    ] = None,
    d_head: Annotated[
        int | None,
        typer.Option(min=1, help="Dimensions of each head; twice the layer's if absent."),
    ] = None,
    steps: Annotated[
        int, typer.Option(min=1, help="Of training, some 1,000 positions each.")
    ] = 3000,
    fvu: Annotated[
        float, typer.Option(help="Share of the error that may stay; see --downstream.")
    ] = 0.04,
    seeds: Annotated[int, typer.Option(min=1, help="Blocks of each layer.")] = 3,
    first_seed: Annotated[int, typer.Option(min=0, help="Seeds count up from here.")] = 0,
    overlap: Annotated[
        float | None, typer.Option(min=0, help="Weight of the penalty on heads that write at once.")
    ] = None,
    alpha: Annotated[float | None, typer.Option(min=0, help="Weight of the gate penalty.")] = None,
    downstream: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            help="What share of the error is counted in predictions, the rest in what the layer "
            "writes; 0.67 if absent.",
        ),
    ] = None,
    spare: Annotated[
        float,
        typer.Option(
            min=0,
            help="By what share the FVU may rise for pruning heads that are hardly missed; 0.05 "
            "prunes some.",
        ),
    ] = 0.0,
    sequences: Annotated[int, typer.Option(min=1, help="Held-out sequences to measure on.")] = 128,
    out: Annotated[
        Path | None, typer.Option(help="Run folder; runs/decompose-MODEL if absent.")
    ] = None,
    workers: Processes = None,
) -> None:
    """Train gated blocks in the place of a model's attention, and say what each head holds.

    For every layer over seeds, measured on held-out text: what is left of the model's loss, how
    many heads write at a position, and how many positions one head alone holds. A run is kept when
    it is done; interrupted and given again, the command goes on.
    """
    from gated_interp.analysis.heads import chosen_layer
    from gated_interp.checkpoints.checkpoint import load
    from gated_interp.experiments.decompose import decompose as run
    from gated_interp.experiments.language import text_for
    from gated_interp.experiments.text_methods import compare_methods

    loaded = load(model)
    folder = Path(f"runs/decompose-{loaded.model_name}") if out is None else out
    data = text_for(loaded, text) if text else None
    extra: dict[str, Any] = {
        "overlap": overlap,
        "alpha": alpha,
        "downstream": downstream,
        "d_head": d_head,
    }
    shared: dict[str, Any] = {
        "data": data,
        "seeds": seeds,
        "first_seed": first_seed,
        "steps": steps,
        "sequences": sequences,
        "workers": workers,
    }
    if method == "all":
        if heads is not None or spare or any(value is not None for value in extra.values()):
            raise GatedInterpError(
                "--method all sets --heads, --d-head, --overlap, --alpha and --downstream itself "
                "and prunes no --spare heads; leave them out."
            )
        if layers and len(layers) > 1:
            raise GatedInterpError("--method all compares methods at one --layer; name one.")
        layer = chosen_layer(loaded, layers[0] if layers else None)
        with progress("training", "methods") as update:
            compared = compare_methods(
                loaded, folder, layer, say=tell, on_progress=update, **shared
            )
        keys = ["method", "knob", "value"]
        rows = compared.groupby(keys, sort=False, dropna=False)[list(COLUMNS)].median()
        show(
            f"{loaded.model_name}, layer {layer}, medians of {seeds} seeds, on held-out sequences",
            [*keys, *COLUMNS.values()],
            rows.reset_index().to_numpy().tolist(),
        )
        say(f"Every run, and the figure, are in {folder}.")
        return
    with progress("training", "runs") as update:
        found = run(
            loaded,
            folder,
            layers=layers or None,
            method=method,
            heads=heads,
            fvu=fvu,
            spare=spare,
            say=tell,
            on_progress=update,
            **shared,
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
