"""The training loop, for a model and for a gated block."""

import dataclasses
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Generic, TypeVar

import pandas as pd
import torch
from torch import nn
from tqdm.auto import tqdm

from gated_interp.anatomy.batch import Batch, Mask
from gated_interp.core.errors import GatedInterpError, GatedInterpWarning
from gated_interp.core.files import require_place
from gated_interp.core.fingerprint import fingerprint
from gated_interp.core.signals import uninterrupted
from gated_interp.models.language_model import TextTransformer
from gated_interp.models.toy import HookedTransformer, ToyConfig, build_toy
from gated_interp.replacements.replacement import Replacement
from gated_interp.replacements.splice import chosen_layer, sketch_at
from gated_interp.training.activations import ActivationStore
from gated_interp.training.capture import require_capturable
from gated_interp.training.config import TrainConfig
from gated_interp.training.data import DataSource, batches, data_for, held_out_of, name_of
from gated_interp.training.device import copied_to, moved, settled_afterwards
from gated_interp.training.finite import FiniteLosses
from gated_interp.training.interrupt import TrainingInterrupted
from gated_interp.training.objectives import Imitate, NextToken, Objective
from gated_interp.training.processes import Group, group_for
from gated_interp.training.schedule import learning_rate
from gated_interp.training.state import Row, TrainingState
from gated_interp.training.trackers import Tracker

Model = TypeVar("Model", bound=HookedTransformer | Replacement)
Block = TypeVar("Block", bound=Replacement)


@dataclasses.dataclass(frozen=True, repr=False)
class TrainResult(Generic[Model]):
    """A finished training.

    Attributes:
        model: what was trained (in place).
        history: one row per logged step, measured on its batch before its update: ``step``,
            ``loss``, ``lr`` and, for a toy, ``cross_entropy`` (nats); for a gated block
            ``reconstruction`` (mean squared error), ``fvu``, ``penalty`` and ``overlap`` (before
            their weights), ``l0``, ``factor`` (what the FVU target multiplies the penalties by),
            ``alpha`` (as it was in that step, before ``factor``), with ``downstream`` also ``kl``
            (nats). With ``evaluate_every`` also
            ``held_out_cross_entropy``, ``held_out_fvu`` and so on, missing between evaluations.
        config: how it was trained.
        seconds: wall-clock time of this call.
        missed: a sentence, where a block's error ended far above its target.

    Examples:
        >>> shape = ToyConfig(n_trigrams=3, n_heads=2)
        >>> config = TrainConfig.toy(steps=5, log_every=2)
        >>> train_model(shape, config, progress=False).history["step"].tolist()
        [0, 2, 4]
    """

    model: Model
    history: pd.DataFrame
    config: TrainConfig
    seconds: float
    missed: str | None = None

    def __repr__(self) -> str:
        what = type(self.model).__name__
        loss = self.history["loss"].iloc[-1]
        return f"TrainResult({what}, {self.config.steps} steps, loss={loss:.4g})"


def train_model(
    model: HookedTransformer | ToyConfig,
    config: TrainConfig | None = None,
    *,
    data: DataSource | None = None,
    attention_mask: Mask | None = None,
    held_out: DataSource | None = None,
    checkpoint: Path | str | None = None,
    resume: Path | str | None = None,
    progress: bool = True,
    tracker: Tracker | None = None,
    objective: Objective | None = None,
) -> TrainResult[HookedTransformer]:
    """Train a model (those of its weights that require gradients) to predict the next token.

    In processes that a launcher started together, each batch is shared out among them, and only
    the first writes the state; see :mod:`gated_interp.training.processes`.

    Args:
        model: trained in place; a :class:`ToyConfig` is built first.
        config: :meth:`TrainConfig.toy` unless given.
        data: a task, a function of (n, generator) that returns tokens ``[batch pos]``, or tokens
            ``[sequence pos]`` to draw sequences from; the model's own task unless given. A function
            may also return tokens and their attention mask.
        attention_mask: ``[sequence pos]``, 1 at tokens and 0 at padding, where ``data`` are padded
            tokens: nobody attends to padding, and it counts for nothing.
        held_out: what ``config.evaluate_every`` measures on; of a text its ``validation`` part,
            else further sequences of ``data``, unless given; padded
            tokens as ``(tokens, attention_mask)``.
        checkpoint: file to save the state of the training to, on the way and on Ctrl-C.
        resume: such a file, to go on from; it is also where the state goes on being saved unless
            ``checkpoint`` is given. The result is the same as without the stop.
        progress: whether to show a progress bar.
        tracker: called with (step, numbers) whenever a row is added to the history, see
            :mod:`gated_interp.training.trackers`.
        objective: what ``model`` is trained for instead, such as
            :class:`~gated_interp.training.interchange.Interchange`.

    Raises:
        GatedInterpError: no data for this model, a loss that is not finite, no such device, or a
            state that is damaged or of another training.
        TrainingInterrupted: on Ctrl-C; says how to resume.

    Examples:
        >>> result = train_model(
        ...     ToyConfig(n_trigrams=3, n_heads=2), TrainConfig.toy(steps=20), progress=False
        ... )
        >>> result.history.columns.tolist()
        ['step', 'loss', 'cross_entropy', 'lr']
    """
    config = TrainConfig.toy() if config is None else config
    model = build_toy(model) if isinstance(model, ToyConfig) else model
    data = data_for(model, data, attention_mask)
    if not any(p.requires_grad for p in model.parameters()):
        raise GatedInterpError("nothing-to-train")
    identity = {
        "kind": "language model" if isinstance(model, TextTransformer) else "toy",
        "config": config,
        "data": name_of(data),
        "frozen weights": fingerprint(model),
        **getattr(objective, "identity", {}),
    }
    group = group_for(config)
    with group.listening(), moved(model, group.device):
        return _train(
            model,
            NextToken(model, config) if objective is None else objective,
            batches(data, config, model),
            held_out_of(data if held_out is None else held_out, config, model),
            config,
            Saving(identity, checkpoint, resume),
            group,
            progress,
            tracker,
        )


def train_gated(
    model: HookedTransformer,
    block: Block,
    config: TrainConfig | None = None,
    *,
    layer: int | None = None,
    data: DataSource | None = None,
    attention_mask: Mask | None = None,
    held_out: DataSource | None = None,
    checkpoint: Path | str | None = None,
    resume: Path | str | None = None,
    progress: bool = True,
    tracker: Tracker | None = None,
) -> TrainResult[Block]:
    """Train ``block`` to write what the attention of ``model`` at ``layer`` writes.

    Given what that attention is given (after the layer's norm), the block's output is compared
    with the activation at ``blocks.{layer}.hook_attn_out``::

        loss = mean squared error + alpha * the block's penalty + overlap * overlap penalty

    With ``config.downstream`` predictions count, too; see
    :class:`~gated_interp.training.objectives.Imitate`. A block in half precision trains in float32
    and is rounded at the end. The penalty of a gated block is its gates';
    other kinds have their own, or none. ``model`` may be any HookedTransformer; it is not changed
    and keeps no hook.

    Args:
        block: trained in place; :func:`~gated_interp.replacements.splice.splice` it in afterwards.
        config: ``TrainConfig()``, as the reliable recipe trains, unless given.

    The other arguments, and what is raised, are as for :func:`train_model`; also raises
    ``GatedInterpError`` for a layer that is not there or cannot be captured, and for a block of
    another width. Warns (``GatedInterpWarning``) if the error ends far above ``fvu_target``.

    Examples:
        >>> from gated_interp.replacements.gated_attention import GatedAttention
        >>> toy = build_toy(ToyConfig(n_trigrams=3, n_heads=2))
        >>> block = GatedAttention.from_attention(toy.blocks[0].attn, expansion=2)
        >>> history = train_gated(toy, block, TrainConfig(steps=20), progress=False).history
        >>> history.columns.tolist()[:6]
        ['step', 'loss', 'reconstruction', 'fvu', 'penalty', 'overlap']
    """
    config = TrainConfig() if config is None else config
    layer = chosen_layer(model, layer, spliced=False, first=True)
    require_capturable(model, layer)
    if block.config.d_model != model.cfg.d_model:
        raise GatedInterpError(
            "block-width-mismatch", block=block.config.d_model, model=model.cfg.d_model
        )
    if model.blocks[layer].attn is block:
        raise GatedInterpError("block-already-in-model")
    data = data_for(model, data, attention_mask)
    weights = fingerprint(model, trained=True)
    if isinstance(data, ActivationStore):
        data.require_model(weights)
    group = group_for(config)
    # The original is never moved: a copy of it is read where the block is trained.
    original = copied_to(model, group.device)
    objective = Imitate(block, original, layer, config, data, group)
    identity = {
        "kind": block.kind,
        "config": config,
        "block": block.config,
        "layer": layer,
        "data": name_of(data),
        "original weights": weights,
    }
    with (
        group.listening(),
        moved(block, group.device),
        settled_afterwards(block),
        objective.scales.of_block(block),
    ):
        result = _train(
            block,
            objective,
            batches(data, config, original),
            held_out_of(data if held_out is None else held_out, config, original),
            config,
            Saving(identity, checkpoint, resume),
            group,
            progress,
            tracker,
        )
    result = dataclasses.replace(result, missed=objective.missed())
    if result.missed is not None and group.rank == 0:
        warnings.warn(result.missed, GatedInterpWarning, stacklevel=2)
    if "l0" in result.history:
        block.l0 = float(result.history["l0"].iloc[-1])
    block.stands_for = sketch_at(model, layer)
    return result


@dataclasses.dataclass(frozen=True)
class Saving:
    """Where the state of a training is written, and which training it is."""

    identity: Mapping[str, Any]
    checkpoint: Path | str | None
    resume: Path | str | None

    @property
    def path(self) -> Path | None:
        """The file, if any."""
        chosen = self.resume if self.checkpoint is None else self.checkpoint
        return None if chosen is None else Path(chosen)


def _train(
    model: Model,
    objective: Objective,
    batch_of: Callable[[int], Batch],
    held_out: Batch | None,
    config: TrainConfig,
    saving: Saving,
    group: Group,
    progress: bool,
    tracker: Tracker | None,
) -> TrainResult[Model]:
    """The loop: learning rate, batch, forward, backward, update, log, save."""
    started = time.perf_counter()
    path = saving.path
    if path is not None:
        require_place(path)  # before the training and not after it
    weights = {n: p for n, p in model.named_parameters() if p.requires_grad}
    optimizer = _adam(weights, config)
    identity = {**saving.identity, "shapes": {n: list(p.shape) for n, p in weights.items()}}
    state = TrainingState(identity, weights, optimizer, objective.state)
    if saving.resume is not None:
        state.load(Path(saving.resume))
    group.alike(weights.values())
    finite = FiniteLosses(config, next(iter(weights.values())).device)

    def save() -> None:
        if path is not None:
            finite.require()
            if group.rank == 0:
                state.save(path)

    shown = progress and group.rank == 0
    bar = tqdm(total=config.steps, initial=state.done, disable=not shown, unit="step")
    try:
        # Notebooks often switch gradients off globally.
        with bar, torch.enable_grad():
            for step in range(state.done, config.steps):
                last = step == config.steps - 1
                logged = last or step % config.log_every == 0
                lr = learning_rate(
                    step,
                    config.steps,
                    config.lr,
                    config.lr_decay,
                    config.warmup,
                    config.decay_shape,
                )
                for weights_alike in optimizer.param_groups:
                    weights_alike["lr"] = lr
                optimizer.zero_grad()
                batch = batch_of(step)
                objective.begin(step)
                losses, rows = [], []
                for part in batch.chunk(config.accumulate):
                    loss = objective.loss(group.share(part))
                    (loss / config.accumulate).backward()  # type: ignore[no-untyped-call]
                    losses.append(loss.detach())
                    rows += [objective.measures()] if logged else []
                loss = group.average(weights.values(), torch.stack(losses).mean())
                finite.see(loss, step)

                row: Row = {}
                if logged:
                    finite.require()
                    row = {"step": float(step), "loss": loss.item(), **_mean(rows, group)}
                    row |= {"lr": lr, **objective.rates}
                    if held_out is not None and (last or step % config.evaluate_every == 0):
                        there = objective.held_out(held_out)
                        row |= {f"held_out_{name}": value for name, value in there.items()}
                if config.clip_norm is not None:
                    nn.utils.clip_grad_norm_(weights.values(), config.clip_norm)
                with uninterrupted():
                    optimizer.step()
                    objective.settle()
                    state.done = step + 1
                    state.history += [row] if row else []

                bar.update()
                if row and tracker is not None and group.rank == 0:
                    tracker(step, {n: v for n, v in row.items() if n != "step"})
                if row:
                    bar.set_postfix({n: f"{row[n]:.4f}" for n in ("loss", "fvu") if n in row})
                if config.checkpoint_every and state.done % config.checkpoint_every == 0:
                    save()
                group.stop()
    except KeyboardInterrupt as stop:
        save()
        raise TrainingInterrupted(state.done, config.steps, path) from stop
    save()
    frame = pd.DataFrame(state.history).astype({"step": int})
    return TrainResult(model, frame, config, time.perf_counter() - started)


def _adam(weights: Mapping[str, nn.Parameter], config: TrainConfig) -> torch.optim.Optimizer:
    """Adam; with weight decay AdamW, which takes it off weights and leaves biases alone."""
    if not config.weight_decay:
        return torch.optim.Adam(weights.values(), lr=config.lr)
    decays = {name: name.rpartition(".")[2].startswith("W_") for name in weights}
    groups = [
        {
            "params": [weight for name, weight in weights.items() if decays[name] is decayed],
            "weight_decay": config.weight_decay if decayed else 0.0,
        }
        for decayed in (True, False)
    ]
    return torch.optim.AdamW(groups, lr=config.lr)


def _mean(rows: list[Row], group: Group) -> Row:
    here = [sum(row[name] for row in rows) / len(rows) for name in rows[0]]
    everywhere = group.mean(torch.tensor(here, dtype=torch.float64))
    return dict(zip(rows[0], everywhere.tolist(), strict=True))
