"""``decompose``: the attention of a model taken apart, head by head, and measured."""

from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from gated_interp.cli.console import progress, say, show, tell
from gated_interp.cli.options import (
    Base,
    File,
    FirstSeed,
    Natural,
    Positive,
    Workers,
    at_least,
    model_of,
)
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
DEEP = {
    **{name: words for name, words in COLUMNS.items() if not name.startswith("held")},
    "participation": "participation",
    "participation_original": "original",
    "effect": "copying (nats)",
    "carriers": "heads that carry 90%",
    "carriers_original": "original",
}
"""Of a model of another library."""


def decompose(
    model: File,
    /,
    *,
    layers: Annotated[
        list[Natural] | None,
        Parameter(
            name="--layer",
            help="Decompose only this layer. Repeat the option for several layers. Default: all "
            "layers.",
        ),
    ] = None,
    base: Base = None,
    text: list[str] | None = None,
    method: str = "gated",
    heads: Positive | None = None,
    d_head: Positive | None = None,
    steps: Positive | None = None,
    fvu: float | None = None,
    seeds: Positive = 3,
    first_seed: FirstSeed = 0,
    overlap: Annotated[float | None, at_least(0)] = None,
    alpha: Annotated[float | None, at_least(0)] = None,
    downstream: Annotated[float | None, at_least(0, 1)] = None,
    spare: Annotated[float, at_least(0)] = 0.0,
    sequences: Positive = 128,
    captured: Natural | None = None,
    out: Path | None = None,
    workers: Workers = None,
) -> None:
    """Train gated blocks in place of a model's attention, and measure what each head does.

    For every layer and seed, measures on held-out text how much of the model's loss is recovered,
    how many heads write at a position, and at how many positions a single head determines what the
    layer writes. A run is kept when it is done. Run the same command again to resume an interrupted
    run.

    Args:
        text: Train on these files, folders or datasets:NAME. Default: the model's own text.
        method: Replace the attention by this method; 'all' compares every method over its knob.
        heads: Give each block this many heads. Default: two for each of the layer's.
        d_head: Give each head this many dimensions. Default: twice the layer's, or the layer's own
            in a pretrained model.
        steps: Train each block for this many steps of some 1,000 positions. Default: 3,000, or 800
            for a pretrained model.
        fvu: Aim for this error. Lower is more faithful, higher is easier to read. Default: 0.04, or
            0.1 for a pretrained model.
        seeds: Train this many blocks per layer, each from a different seed.
        overlap: Weight the penalty on heads that write at the same position by this. Default: 0.1.
        alpha: Weight the gate penalty by this. Default: 0.03, or 0.01 for a pretrained model.
        downstream: Count this share of the error in predictions, and the rest in what the layer
            writes. Default: 0.67, or 0 for a pretrained model.
        spare: Prune the heads that matter least, as long as the FVU rises by less than this share
            of its value. 0.05 prunes some.
        sequences: Measure on this many held-out sequences.
        captured: Train from the stored activations of this many sequences, or from the model in
            every step if 0. Default: 1,400 for a pretrained model, else 0.
        out: Write to this run folder. Default: runs/decompose-MODEL.
    """
    from gated_interp.analysis.heads import chosen_layer
    from gated_interp.experiments.decompose import decompose as run
    from gated_interp.experiments.text_methods import compare_methods
    from gated_interp.models.pretrained import PretrainedTransformer

    loaded = model_of(model, text, base)
    folder = Path(f"runs/decompose-{loaded.model_name}") if out is None else out
    extra: dict[str, Any] = {
        "overlap": overlap,
        "alpha": alpha,
        "downstream": downstream,
        "d_head": d_head,
    }
    shared: dict[str, Any] = {
        "seeds": seeds,
        "first_seed": first_seed,
        "sequences": sequences,
        "workers": workers,
    }
    if method == "all":
        set_by_it = [heads, fvu, captured, spare or None, *extra.values()]
        if any(value is not None for value in set_by_it):
            raise GatedInterpError("method-all-sets-these")
        if layers and len(layers) > 1:
            raise GatedInterpError("method-all-needs-one-layer")
        layer = chosen_layer(loaded, layers[0] if layers else None)
        with progress("training", "methods") as update:
            compared = compare_methods(
                loaded,
                folder,
                layer,
                steps=3000 if steps is None else steps,
                say=tell,
                on_progress=update,
                **shared,
            )
        keys = ["method", "knob", "value"]
        rows = compared.groupby(keys, sort=False, dropna=False)[list(COLUMNS)].median()
        show(
            f"{loaded.model_name}, layer {layer}, medians of {seeds} seeds, on held-out sequences",
            [*keys, *COLUMNS.values()],
            rows.reset_index().to_numpy().tolist(),
        )
        say(f"Every run is in {folder}; open {folder / 'methods.svg'} for the figure.")
        return
    with progress("training", "runs") as update:
        found = run(
            loaded,
            folder,
            layers=layers or None,
            method=method,
            heads=heads,
            fvu=fvu,
            steps=steps,
            spare=spare,
            captured=captured,
            say=tell,
            on_progress=update,
            **shared,
            **{name: value for name, value in extra.items() if value is not None},
        )
    medians = {layer: each["median"] for layer, each in found.results["layers"].items()}
    columns = DEEP if isinstance(loaded, PretrainedTransformer) else COLUMNS
    show(
        f"{loaded.model_name}, medians of {seeds} seeds, on held-out sequences",
        ["layer", *columns.values()],
        [[layer, *(row.get(name) for name in columns)] for layer, row in medians.items()],
    )
    pages = sorted(found.folder.glob("L*.html"))
    opened = f"; open {pages[0]} for what its heads do" if pages else ""
    say(f"Every run, its model and history are in {found.folder}{opened}.")
