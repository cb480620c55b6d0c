"""The training loop, for a toy model and for a gated block."""

import dataclasses
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Generic, TypeVar

import pandas as pd
import torch
from jaxtyping import Int
from torch import Tensor, nn
from tqdm.auto import tqdm

from gated_interp.core.errors import GatedInterpError
from gated_interp.core.seeds import derive, generator
from gated_interp.core.streams import Stream
from gated_interp.metrics.predictions import next_token_loss
from gated_interp.metrics.reconstruction import fvu, l0
from gated_interp.models.gated_attention import GatedAttention
from gated_interp.models.toy import HookedTransformer, ToyConfig, build_toy
from gated_interp.training.capture import attention_io, outputs_of, require_capturable
from gated_interp.training.config import TrainConfig
from gated_interp.training.constraint import FvuControl
from gated_interp.training.data import (
    DataSource,
    batches,
    data_for,
    draw,
    name_of,
)
from gated_interp.training.device import copied_to, moved, noise_off_afterwards, pick_device
from gated_interp.training.interrupt import TrainingInterrupted, uninterrupted
from gated_interp.training.losses import output_variance, reconstruction_error
from gated_interp.training.schedule import learning_rate, penalty_weight
from gated_interp.training.state import Row, fingerprint, load_state, require_writable, save_state

# Sequences from which the variance of the original's output is measured.
VARIANCE_SAMPLE = 200

Model = TypeVar("Model", HookedTransformer, GatedAttention)
# (step, tokens, alpha) -> the loss, and what to log of it (only worked out when it is logged)
Objective = Callable[[int, Tensor, float], tuple[Tensor, Callable[[], Row]]]


@dataclasses.dataclass(frozen=True, repr=False)
class TrainResult(Generic[Model]):
    """A finished training.

    Attributes:
        model: what was trained (in place).
        history: one row per logged step, measured on its batch before its update: ``step``,
            ``loss``, ``lr`` and, for a toy, ``cross_entropy`` (nats); for a gated block
            ``reconstruction`` (mean squared error), ``fvu``, ``penalty`` and ``overlap`` (before
            their weights), ``l0``, ``factor`` (what the FVU target multiplies the penalties by),
            ``alpha`` (as it was in that step, before ``factor``).
        config: how it was trained.
        seconds: wall-clock time of this call.

    Examples:
        >>> shape = ToyConfig(n_trigrams=3, n_heads=2)
        >>> config = TrainConfig.toy(steps=5, log_every=2)
        >>> train_toy(shape, config, progress=False).history["step"].tolist()
        [0, 2, 4]
    """

    model: Model
    history: pd.DataFrame
    config: TrainConfig
    seconds: float

    def __repr__(self) -> str:
        what = type(self.model).__name__
        loss = self.history["loss"].iloc[-1]
        return f"TrainResult({what}, {self.config.steps} steps, loss={loss:.4g})"


def train_toy(
    model: HookedTransformer | ToyConfig,
    config: TrainConfig | None = None,
    *,
    data: DataSource | None = None,
    checkpoint: Path | str | None = None,
    resume: Path | str | None = None,
    progress: bool = True,
) -> TrainResult[HookedTransformer]:
    """Train a model (those of its weights that require gradients) to predict the next token.

    Args:
        model: trained in place; a :class:`ToyConfig` is built first.
        config: :meth:`TrainConfig.toy` unless given.
        data: a task, or a function of (n, generator) that returns tokens ``[batch pos]``; a toy's
            own task unless given.
        checkpoint: file to save the state of the training to, on the way and on Ctrl-C.
        resume: such a file, to go on from; it is also where the state goes on being saved unless
            ``checkpoint`` is given. The result is the same as without the stop.
        progress: whether to show a progress bar.

    Raises:
        GatedInterpError: no data for this model, a loss that is not finite, no such device, or a
            state that is damaged or of another training.
        TrainingInterrupted: on Ctrl-C; says how to resume.

    Examples:
        >>> result = train_toy(
        ...     ToyConfig(n_trigrams=3, n_heads=2), TrainConfig.toy(steps=20), progress=False
        ... )
        >>> result.history.columns.tolist()
        ['step', 'loss', 'cross_entropy', 'lr']
    """
    config = TrainConfig.toy() if config is None else config
    model = build_toy(model) if isinstance(model, ToyConfig) else model
    data = data_for(model, data)
    if not any(p.requires_grad for p in model.parameters()):
        raise GatedInterpError("no weight of the model requires gradients; nothing can train.")
    device = pick_device(config)

    def objective(step: int, tokens: Int[Tensor, "batch pos"], alpha: float) -> Any:
        loss = next_token_loss(model(tokens), tokens).mean()
        return loss, lambda: {"cross_entropy": loss.item()}

    identity = {
        "kind": "toy",
        "config": config.to_dict(),
        "data": name_of(data),
        "frozen weights": fingerprint(model),
    }
    with moved(model, device):
        return _train(
            model, objective, batches(data, config, model), config, identity,
            checkpoint, resume, progress,
        )  # fmt: skip


def train_gated(
    model: HookedTransformer,
    block: GatedAttention,
    config: TrainConfig | None = None,
    *,
    layer: int = 0,
    data: DataSource | None = None,
    checkpoint: Path | str | None = None,
    resume: Path | str | None = None,
    progress: bool = True,
) -> TrainResult[GatedAttention]:
    """Train ``block`` to write what the attention of ``model`` at ``layer`` writes.

    Given what that attention is given (after the layer's norm), the block's output is compared
    with the activation at ``blocks.{layer}.hook_attn_out``::

        loss = mean squared error + alpha * gate penalty + overlap * overlap penalty

    ``model`` may be any HookedTransformer; it is not changed and keeps no hook.

    Args:
        block: trained in place; :func:`~gated_interp.models.splice.splice` it in afterwards.
        config: ``TrainConfig()`` unless given.

    The other arguments, and what is raised, are as for :func:`train_toy`; also raises
    ``GatedInterpError`` for a layer that is not there or cannot be captured, and for a block of
    another width.

    Examples:
        >>> toy = build_toy(ToyConfig(n_trigrams=3, n_heads=2))
        >>> block = GatedAttention.from_attention(toy.blocks[0].attn, expansion=2)
        >>> history = train_gated(toy, block, TrainConfig(steps=20), progress=False).history
        >>> history.columns.tolist()[:6]
        ['step', 'loss', 'reconstruction', 'fvu', 'penalty', 'overlap']
    """
    config = TrainConfig() if config is None else config
    require_capturable(model, layer)
    if block.config.d_model != model.cfg.d_model:
        raise GatedInterpError(
            f"the block has d_model {block.config.d_model}; the model has {model.cfg.d_model}."
        )
    if model.blocks[layer].attn is block:
        raise GatedInterpError("the block is this model's attention; train it on the original.")
    data = data_for(model, data)
    device = pick_device(config)
    # The original is never moved: a copy of it is read where the block is trained.
    original = copied_to(model, device)
    control = FvuControl([config], device)
    # Measured once, on data of the training's own: it scales penalties and the FVU they answer to.
    sample = draw(data, VARIANCE_SAMPLE, derive(config.seed, Stream.VARIANCE), original)
    variance = output_variance(attention_io(original, sample, layer).output)
    unit = variance if config.alpha_unit == "variance" else 1.0
    seen_fvu: list[tuple[Tensor, int]] = []

    def objective(step: int, tokens: Int[Tensor, "batch pos"], alpha: float) -> Any:
        if block.config.gate == "hard_concrete":
            block.noise_generator = generator(derive(config.seed, Stream.GATE_NOISE, step))
        seen = attention_io(original, tokens, layer)
        with outputs_of(block.hook_gate) as gates, outputs_of(block.hook_z) as writes:
            output = block(*(x.to(block.W_Q.dtype) for x in seen.inputs))
        target, gate = seen.output.to(output.dtype), gates[-1]
        error, penalty = reconstruction_error(output, target), block.gate_penalty(gate)
        factor = float(control.factor)
        loss = error + alpha * unit * factor * penalty
        full = penalty_weight(step, config.steps, 1.0, config.penalty_off, config.penalty_ramp)
        shared = torch.zeros(())
        if config.overlap:
            shared = block.overlap_penalty(writes[-1], variance, config.overlap_power)
            loss = loss + full * config.overlap * factor * shared
        seen_fvu[:] = [((error.detach() / variance)[None], step)]

        def measure() -> Row:
            return {
                "reconstruction": error.item(),
                "fvu": fvu(output.detach(), target).item(),
                "penalty": penalty.item(),
                "overlap": shared.item(),
                "l0": l0(gate.detach()).item(),
                "factor": factor,
            }

        return loss, measure

    identity = {
        "kind": "gated",
        "config": config.to_dict(),
        "block": block.config.to_dict(),
        "layer": layer,
        "data": name_of(data),
        "original weights": fingerprint(model, trained=True),
    }
    with moved(block, device), noise_off_afterwards(block):
        result = _train(
            block, objective, batches(data, config, original), config, identity,
            checkpoint, resume, progress, logged=("lr", "alpha"),
            control=control.state, settle=lambda: control.observe(*seen_fvu[0]),
        )  # fmt: skip
    block.l0 = float(result.history["l0"].iloc[-1])
    return result


def _train(
    model: Model,
    objective: Objective,
    tokens_of: Callable[[int], Int[Tensor, "batch pos"]],
    config: TrainConfig,
    identity: dict[str, Any],
    checkpoint: Path | str | None,
    resume: Path | str | None,
    progress: bool,
    logged: tuple[str, ...] = ("lr",),
    control: Tensor | None = None,
    settle: Callable[[], None] = lambda: None,
) -> TrainResult[Model]:
    """The loop: learning rate, batch, forward, backward, update, log, save."""
    started = time.perf_counter()
    path = None if checkpoint is None and resume is None else Path(checkpoint or resume or "")
    require_writable(path)
    parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
    identity = {**identity, "shapes": {n: list(p.shape) for n, p in parameters.items()}}
    optimizer = torch.optim.Adam(parameters.values(), lr=config.lr)
    if control is not None:
        # It shares memory, so that it is saved and restored with the weights.
        parameters["fvu_control"] = nn.Parameter(control, requires_grad=False)
    done: int = 0
    history: list[Row] = []
    if resume is not None:
        done, history = load_state(Path(resume), identity, parameters, optimizer)

    bar = tqdm(total=config.steps, initial=done, disable=not progress, unit="step")
    try:
        # Notebooks often switch gradients off globally.
        with bar, torch.enable_grad():
            for step in range(done, config.steps):
                rates = {
                    "lr": learning_rate(step, config.steps, config.lr, config.lr_decay),
                    "alpha": penalty_weight(
                        step, config.steps, config.alpha, config.penalty_off, config.penalty_ramp
                    ),
                }
                optimizer.param_groups[0]["lr"] = rates["lr"]

                loss, measure = objective(step, tokens_of(step), rates["alpha"])
                if not math.isfinite(loss.item()):
                    raise GatedInterpError(
                        f"the loss became {loss.item()} at step {step}; use a learning rate "
                        f"below {config.lr} or other initial weights."
                    )
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]

                row: Row = {}
                if step % config.log_every == 0 or step == config.steps - 1:
                    row = {"step": float(step), "loss": loss.item(), **measure()}
                    row |= {name: rates[name] for name in logged}
                with uninterrupted():
                    optimizer.step()
                    settle()
                    done = step + 1
                    history += [row] if row else []

                bar.update()
                if row:
                    bar.set_postfix({n: f"{row[n]:.4f}" for n in ("loss", "fvu") if n in row})
                if path and config.checkpoint_every and done % config.checkpoint_every == 0:
                    save_state(path, identity, parameters, optimizer, done, history)
    except KeyboardInterrupt as stop:
        if path:
            save_state(path, identity, parameters, optimizer, done, history)
        raise TrainingInterrupted(done, config.steps, path) from stop
    if path:
        save_state(path, identity, parameters, optimizer, done, history)
    frame = pd.DataFrame(history).astype({"step": int})
    return TrainResult(model, frame, config, time.perf_counter() - started)
