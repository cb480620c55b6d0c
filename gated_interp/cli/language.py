"""``train-lm``: an attention-only language model on text."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from gated_interp.cli.console import on_terminal, say, show, show_facts
from gated_interp.cli.train import (
    Accumulate,
    Batch,
    ClipNorm,
    Device,
    EvaluateEvery,
    LogEvery,
    Out,
    Precision,
    Rate,
    Resume,
    SaveEvery,
    Seed,
    Steps,
)


def train_lm(
    text: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[TEXT]...",
            help="Files, folders, datasets:NAME, or a text that comes with the package (austen).",
        ),
    ] = None,
    layers: Annotated[int, typer.Option(min=1, max=4, help="Layers of attention.")] = 1,
    heads: Annotated[int, typer.Option(min=1, help="Attention heads of each layer.")] = 8,
    d_model: Annotated[int, typer.Option(min=1, help="Width of the residual stream.")] = 128,
    d_head: Annotated[
        int | None, typer.Option(min=1, help="Of each head; width / heads if absent.")
    ] = None,
    context: Annotated[int, typer.Option(min=2, help="Tokens in a sequence.")] = 64,
    vocab: Annotated[
        int | None, typer.Option(min=257, help="Tokens of the tokenizer that is trained; 2048.")
    ] = None,
    tokenizer: Annotated[
        Path | None, typer.Option(help="A tokenizer.json, instead of training one.")
    ] = None,
    norm: Annotated[
        Literal["LNPre", "LN", "none"] | None,
        typer.Option(help="LayerNorm without weights, with (folded at the end), or none."),
    ] = None,
    positions: Annotated[
        Literal["standard", "shortformer"] | None,
        typer.Option(help="Where positional embeddings go: everywhere, or to queries and keys."),
    ] = None,
    repeat: Annotated[
        float, typer.Option(help="Share of sequences that say one stretch of text over and over.")
    ] = 0.0,
    seed: Seed = 0,
    steps: Steps = None,
    lr: Rate = None,
    warmup: Annotated[
        float | None, typer.Option(help="First fraction of the steps, in which the rate rises.")
    ] = None,
    weight_decay: Annotated[float | None, typer.Option(min=0, help="Of AdamW.")] = None,
    batch_size: Batch = None,
    accumulate: Accumulate = None,
    clip_norm: ClipNorm = None,
    precision: Precision = None,
    log_every: LogEvery = None,
    evaluate_every: EvaluateEvery = None,
    checkpoint_every: SaveEvery = 0,
    device: Device = "auto",
    cache: Annotated[
        Path | None, typer.Option(help="Folder for token ids; the user's cache if absent.")
    ] = None,
    out: Out = None,
    resume: Resume = False,
) -> None:
    """Train an attention-only language model.

    On text; writes the model with its tokenizer and its history, and says its loss on held-out text
    beside that of unigram and bigram models.
    """
    from gated_interp.analysis.heads import head_name
    from gated_interp.experiments.language import language_settings, run_language

    run = language_settings(
        text or "austen",
        seed=seed,
        n_ctx=context,
        repeat=repeat,
        vocab=vocab,
        tokenizer=tokenizer,
        folder=cache,
        n_layers=layers,
        n_heads=heads,
        d_model=d_model,
        d_head=d_head,
        normalization=norm,
        positions=positions,
        steps=steps,
        lr=lr,
        warmup=warmup,
        lr_decay=None if warmup is None else 1 - warmup,
        weight_decay=weight_decay,
        batch_size=batch_size,
        accumulate=accumulate,
        clip_norm=clip_norm,
        precision=precision,
        log_every=log_every,
        evaluate_every=evaluate_every,
        checkpoint_every=checkpoint_every,
        device=device,
    )
    path = Path(f"runs/{run.model.name}.safetensors") if out is None else out
    trained = run_language(run, path, resume=resume, progress=on_terminal())
    show_facts("on the test part of the text (nats per token)", list(trained.measures.items()))
    columns = ["previous_token", "prefix_matching", "per_copy"]
    show(
        "where heads attend on repeated random tokens",
        ["head", *(column.replace("_", " ") for column in columns)],
        [
            (head_name((r["layer"], r["head"])), *(f"{r[column]:.4f}" for column in columns))
            for r in trained.heads.to_dict("records")
        ],
    )
    say(f"The model is in {trained.path}.")


COMMANDS = {"train-lm": train_lm}
