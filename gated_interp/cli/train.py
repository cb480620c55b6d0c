"""One training at a time through the hooked loop: ``train-toy`` and ``train-gated``."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from gated_interp.cli.console import on_terminal, say, show_facts
from gated_interp.cli.heads import show_topic

if TYPE_CHECKING:
    from gated_interp.experiments.single import Trained

Out = Annotated[Path | None, typer.Option(help="File for the model; under runs/ if absent.")]
Resume = Annotated[
    bool, typer.Option("--resume", help="Go on with the training that was interrupted.")
]
Seed = Annotated[int, typer.Option(min=0, help="Of the initial weights and the data.")]
Steps = Annotated[int | None, typer.Option(min=1, help="Updates of the weights.")]
Rate = Annotated[float | None, typer.Option(help="Learning rate.")]
Decay = Annotated[
    float | None, typer.Option(help="Last fraction of the steps, in which the rate falls to 0.")
]
Batch = Annotated[int | None, typer.Option(min=1, help="Sequences in each step.")]
Data = Annotated[
    Literal["fresh", "fixed"] | None, typer.Option(help="New sequences each step, or a fixed set.")
]
Sequences = Annotated[int | None, typer.Option(min=1, help="Sequences in the fixed set.")]
Accumulate = Annotated[
    int | None, typer.Option(min=1, help="Parts of batch-size sequences that make one update.")
]
ClipNorm = Annotated[
    float | None, typer.Option(help="Longer gradients are scaled down to this length.")
]
Precision = Annotated[
    Literal["float32", "bfloat16"] | None, typer.Option(help="Of matrix products in training.")
]
EvaluateEvery = Annotated[
    int | None,
    typer.Option(min=0, help="Steps between held-out measurements in the history; 0: none."),
]
LogEvery = Annotated[int | None, typer.Option(min=1, help="Steps between rows of the history.")]
SaveEvery = Annotated[
    int, typer.Option(min=0, help="Steps between saved states; 0: only on Ctrl-C.")
]
Device = Annotated[
    Literal["cpu", "cuda", "auto"], typer.Option(help="Where to train; auto: the GPU if any.")
]


def train_toy(
    heads: Annotated[int, typer.Option(min=1, help="Attention heads.")] = 2,
    trigrams: Annotated[int, typer.Option(min=1, help="Trigrams to learn.")] = 3,
    positions: Annotated[int | None, typer.Option(min=4, help="Tokens in a sequence.")] = None,
    d_head: Annotated[int | None, typer.Option(min=1, help="Dimensions of each head.")] = None,
    output_bias: Annotated[
        bool | None, typer.Option("--output-bias/--no-output-bias", help="Train b_O.")
    ] = None,
    seed: Seed = 0,
    steps: Steps = None,
    lr: Rate = None,
    lr_decay: Decay = None,
    batch_size: Batch = None,
    accumulate: Accumulate = None,
    clip_norm: ClipNorm = None,
    precision: Precision = None,
    data: Data = None,
    sequences: Sequences = None,
    log_every: LogEvery = None,
    evaluate_every: EvaluateEvery = None,
    checkpoint_every: SaveEvery = 0,
    device: Device = "auto",
    out: Out = None,
    resume: Resume = False,
) -> None:
    """Train one toy model.

    On skip trigrams; writes the model and its history, and says which head holds what.
    """
    from gated_interp.experiments.single import run_toy, toy_settings

    run = toy_settings(
        heads,
        trigrams,
        seed,
        n_positions=positions,
        d_head=d_head,
        output_bias=output_bias,
        steps=steps,
        lr=lr,
        lr_decay=lr_decay,
        batch_size=batch_size,
        accumulate=accumulate,
        clip_norm=clip_norm,
        precision=precision,
        data=data,
        n_sequences=sequences,
        log_every=log_every,
        evaluate_every=evaluate_every,
        checkpoint_every=checkpoint_every,
        device=device,
    )
    path = Path(f"runs/{run.model.name}-toy.safetensors") if out is None else out
    _report(run_toy(run, path, resume=resume, progress=on_terminal()))


def train_gated(
    toy: Annotated[
        str, typer.Argument(metavar="TOY", help="A toy's checkpoint, or the name of a shipped one.")
    ],
    recipe: Annotated[
        Literal["reliable", "reference"], typer.Option(help="What the other options change.")
    ] = "reliable",
    expansion: Annotated[int | None, typer.Option(min=1, help="Gated heads per toy head.")] = None,
    heads: Annotated[
        int | None, typer.Option(min=1, help="Gated heads, whatever the toy's.")
    ] = None,
    gate: Annotated[
        Literal["clamp", "relu", "tanh", "binary", "hard_concrete"] | None,
        typer.Option(help="From gate score to gate."),
    ] = None,
    d_gate: Annotated[int | None, typer.Option(min=1, help="Dimensions of each gate.")] = None,
    init: Annotated[
        Literal["random", "duplicate"], typer.Option(help="Start anew, or from the toy's heads.")
    ] = "random",
    noise: Annotated[float, typer.Option(min=0, help="Added to duplicated heads.")] = 0.01,
    normalize: Annotated[
        bool | None, typer.Option("--normalize/--no-normalize", help="Normalise W_V and W_O.")
    ] = None,
    value_bias: Annotated[
        bool | None, typer.Option("--value-bias/--no-value-bias", help="Have b_V.")
    ] = None,
    output_scale: Annotated[
        float | None, typer.Option(help="Multiplies the output; the recipe's if absent.")
    ] = None,
    alpha: Annotated[float | None, typer.Option(min=0, help="Weight of the gate penalty.")] = None,
    alpha_unit: Annotated[
        Literal["absolute", "variance"] | None,
        typer.Option(help="As in the post, or times the variance of the toy's output."),
    ] = None,
    overlap: Annotated[
        float | None, typer.Option(min=0, help="Weight of the overlap penalty.")
    ] = None,
    penalty_p: Annotated[float | None, typer.Option(help="p of the penalty's norm.")] = None,
    penalty_pairs: Annotated[
        Literal["causal", "all"] | None, typer.Option(help="Token pairs the penalty averages over.")
    ] = None,
    penalty_off: Annotated[
        float | None, typer.Option(help="First fraction of the steps, without penalties.")
    ] = None,
    penalty_ramp: Annotated[
        float | None, typer.Option(help="Fraction after that, in which they rise.")
    ] = None,
    gate_bias: Annotated[
        float | None, typer.Option(help="Initial value of the gate biases.")
    ] = None,
    fvu_target: Annotated[
        float | None, typer.Option(help="Hold the FVU here; 0 leaves the penalties alone.")
    ] = None,
    seed: Seed = 0,
    steps: Steps = None,
    lr: Rate = None,
    lr_decay: Decay = None,
    batch_size: Batch = None,
    accumulate: Accumulate = None,
    clip_norm: ClipNorm = None,
    precision: Precision = None,
    data: Data = None,
    sequences: Sequences = None,
    log_every: LogEvery = None,
    evaluate_every: EvaluateEvery = None,
    checkpoint_every: SaveEvery = 0,
    device: Device = "auto",
    out: Out = None,
    resume: Resume = False,
) -> None:
    """Train one gated block on a toy.

    The block learns to write what the toy's attention writes. The file holds it spliced into the
    toy; its history lies beside it.
    """
    from gated_interp.experiments.single import gated_settings, load_toy, run_gated

    model = load_toy(toy)
    run = gated_settings(
        model,
        model.task,
        seed,
        recipe=recipe,
        n_heads=heads,
        duplicate=init == "duplicate",
        noise=noise,
        expansion=expansion,
        gate=gate,
        d_gate=d_gate,
        normalize_weights=normalize,
        value_bias=value_bias,
        output_scale=output_scale,
        alpha=alpha,
        alpha_unit=alpha_unit,
        overlap=overlap,
        penalty_p=penalty_p,
        penalty_pairs=penalty_pairs,
        penalty_off=penalty_off,
        penalty_ramp=penalty_ramp,
        gate_bias_init=gate_bias,
        fvu_target=fvu_target,
        steps=steps,
        lr=lr,
        lr_decay=lr_decay,
        batch_size=batch_size,
        accumulate=accumulate,
        clip_norm=clip_norm,
        precision=precision,
        data=data,
        n_sequences=sequences,
        log_every=log_every,
        evaluate_every=evaluate_every,
        checkpoint_every=checkpoint_every,
        device=device,
    )
    name = model.model_name.removesuffix("-toy")
    path = Path(f"runs/{name}-gated.safetensors") if out is None else out
    _report(run_gated(run, path, resume=resume, progress=on_terminal()))


def _report(trained: "Trained") -> None:
    from gated_interp.subject import Subject

    show_topic(Subject.of(trained.model, alone=True, name=trained.path.stem), "holders")
    show_facts("on held-out sequences", list(trained.measures.items()))
    say(f"The model is in {trained.path}.")


COMMANDS = {"train-toy": train_toy, "train-gated": train_gated}
