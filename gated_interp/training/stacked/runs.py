"""Many runs for little more than the price of one.

Runs of one shape step together on a leading axis. What the fast path cannot express goes through
the hooked loop, and is said to.
"""

import dataclasses
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from gated_interp.anatomy.attention import Attention
from gated_interp.anatomy.stream import why_not_linear
from gated_interp.core.errors import GatedInterpError
from gated_interp.core.seeds import generator
from gated_interp.metrics.reconstruction import OPEN
from gated_interp.models.toy import HookedTransformer, ToyConfig, build_toy
from gated_interp.replacements.replacement import Replacement
from gated_interp.replacements.splice import require_layer, sketch_at
from gated_interp.tasks.task import KnownAnswers, Task
from gated_interp.training.config import TrainConfig
from gated_interp.training.constraint import FvuControl
from gated_interp.training.device import pick_device
from gated_interp.training.loop import TrainResult, train_gated, train_model
from gated_interp.training.opening import opens, require_gates
from gated_interp.training.schedule import learning_rate, penalty_weight
from gated_interp.training.stacked.blocks import STACKED, StackedAttention, StackedGated
from gated_interp.training.stacked.data import ContextPool, StackedBatch
from gated_interp.training.stacked.losses import (
    cross_entropy,
    overlap_penalty,
    reconstruction,
    residual,
    with_one,
)
from gated_interp.training.stacked.optimizer import StackedAdam

# Fresh data come in pools of this many sequences per run, used once.
FRESH_POOL = 1000
# What may differ between runs of one stack.
PER_RUN = ("lr", "lr_decay", "alpha", "alpha_unit", "overlap", "penalty_off", "penalty_ramp",
           "fvu_target", "fvu_rate", "fvu_from", "factor_floor", "seed",
           "opened_weight")  # fmt: skip


def say_on_stderr(sentence: str) -> None:
    """Print a sentence where it does not mix with results."""
    print(sentence, file=sys.stderr)


@dataclasses.dataclass(frozen=True)
class ToyRun:
    """A toy to train: ``model`` says what, ``config`` how; both hold their own seed.

    ``jitter`` disturbs the initial weights, see :func:`disturb`; ``jitter_seed`` is of that noise.

    Examples:
        >>> shape = ToyConfig(n_trigrams=3, n_heads=2, seed=7)
        >>> ToyRun(shape, TrainConfig.toy(steps=2, seed=7)).model.name
        '2H3ST'
    """

    model: ToyConfig
    config: TrainConfig
    jitter: float = 0.0
    jitter_seed: int = 0


@torch.no_grad()
def disturb(module: torch.nn.Module, size: float, seed: int) -> None:
    """Add Gaussian noise of standard deviation ``size`` to every weight that trains, in place.

    What another machine's rounding does to a training: nothing that is claimed may hang on it.
    """
    source = generator(seed)
    for weight in module.parameters():
        if size and weight.requires_grad:
            weight.add_(size * torch.randn(weight.shape, generator=source).to(weight))


@dataclasses.dataclass(frozen=True)
class GatedRun:
    """A gated block to train, in place, to write what a layer of ``original`` writes.

    Examples:
        >>> from gated_interp.replacements.gated_attention import GatedAttention
        >>> toy = build_toy(ToyConfig(n_trigrams=3, n_heads=2))
        >>> block = GatedAttention.from_attention(toy.blocks[0].attn, expansion=4)
        >>> GatedRun(toy, block, TrainConfig(steps=2), toy.task).block
        GatedAttention(8 heads, gate=clamp)
    """

    original: HookedTransformer = dataclasses.field(repr=False)
    block: Replacement
    config: TrainConfig
    task: Task
    layer: int = 0


def train_toys(
    runs: Sequence[ToyRun], *, progress: bool = True, say: Callable[[str], None] = say_on_stderr
) -> list[TrainResult[HookedTransformer]]:
    """Train toys, stacked where their shapes agree; results in the order given.

    Each result's ``seconds`` is its share of its stack's time. What the fast path cannot express
    is trained by the hooked loop, and ``say`` is told why.

    Raises:
        GatedInterpError: no run, or data too small for a batch.

    Examples:
        >>> shape, how = ToyConfig(n_trigrams=3, n_heads=2), TrainConfig.toy(steps=2)
        >>> runs = [ToyRun(shape.replace(seed=s), how.replace(seed=s)) for s in range(8)]
        >>> len(train_toys(runs, progress=False))
        8
    """
    return _in_stacks(
        list(runs),
        lambda run: why_not_in_config(run.config),
        say,
        lambda run: (run.model.replace(seed=0), _structure(run.config)),
        lambda stack: _toy_stack(stack, progress),
        lambda run: train_model(run.model, run.config, progress=progress),
    )


def train_gated_runs(
    runs: Sequence[GatedRun], *, progress: bool = True, say: Callable[[str], None] = say_on_stderr
) -> list[TrainResult[Replacement]]:
    """Train gated blocks, stacked where their shapes agree; results in the order given.

    A run the fast path cannot express (see :func:`why_not_stackable`) is trained by the hooked
    loop, and ``say`` is told why.

    Raises:
        GatedInterpError: no run, a block or task that does not fit its original, or data too
            small for a batch.

    Examples:
        >>> from gated_interp.replacements.gated_attention import GatedAttention
        >>> toy = build_toy(ToyConfig(n_trigrams=3, n_heads=2))
        >>> blocks = [GatedAttention.from_attention(toy.blocks[0].attn, seed=s) for s in range(8)]
        >>> runs = [GatedRun(toy, b, TrainConfig(steps=2), toy.toy_config.task) for b in blocks]
        >>> [result.model is block for result, block in zip(
        ...     train_gated_runs(runs, progress=False), blocks, strict=True)] == [True] * 8
        True
    """

    def shape(run: GatedRun) -> Any:
        block = (run.block.kind, run.block.config.replace(seed=0, output_scale=1.0))
        attn = run.original.blocks[0].attn
        shapes = (tuple(attn.W_Q.shape), float(attn.attn_scale))
        return (block, shapes, run.task, _structure(run.config))

    return _in_stacks(
        list(runs),
        why_not_stackable,
        say,
        shape,
        lambda stack: _gated_stack(stack, progress),
        lambda run: train_gated(
            run.original, run.block, run.config, layer=run.layer, data=run.task, progress=progress
        ),
    )


def why_not_stackable(run: GatedRun) -> str | None:
    """Why the fast path cannot express ``run``; ``None`` where it can."""
    model, cfg = run.original, run.original.cfg
    v = cfg.d_vocab
    require_layer(model, run.layer)
    if isinstance(run.task, KnownAnswers):
        run.task.require_vocabulary(v)
    if run.task.n_positions > cfg.n_ctx:
        raise GatedInterpError("task-longer-than-context", n=run.task.n_positions, n_ctx=cfg.n_ctx)
    if run.block.config.d_model != cfg.d_model:
        raise GatedInterpError(
            "block-width-mismatch", block=run.block.config.d_model, model=cfg.d_model
        )
    require_gates(run.block, run.config)
    if run.block.kind not in STACKED:
        return f"replacements of kind {run.block.kind!r} have no stacked form"
    if run.block.kind == "topk" and run.block.config.d_head > 1:
        return "TopK heads are stacked where they have one dimension"
    if run.config.opened_share and run.config.opened_steps and run.block.config.d_head > 1:
        return "an adversary opens the gates of stacked heads where they have one dimension"
    if cfg.n_layers != 1 or not cfg.attn_only or why_not_linear(model, 0) is not None:
        return "the original is not one attention-only layer without normalisation"
    attention = Attention.of(model, 0)
    identity = torch.eye(v, device=model.embed.W_E.device)
    if cfg.d_model != v or not torch.equal(attention.inputs("value"), identity):
        return "the original's embedding is not the identity"
    if attention.positions is not None:
        return "the original has a positional signal"
    if not attention.own or attention.extras or run.block.extras:
        return "the attention is not plain causal attention"
    if any(p.dtype != torch.float32 for p in (*model.parameters(), *run.block.parameters())):
        return "the weights are not all float32"
    return why_not_in_config(run.config)


def why_not_in_config(config: TrainConfig) -> str | None:
    """Why the fast path cannot train by ``config``; ``None`` where it can."""
    if config.precision != "float32":
        return f"its products are not made in {config.precision}"
    if config.weight_decay or config.warmup or config.decay_shape != "linear":
        return "its learning rate falls in a line, without warm-up or weight decay"
    if config.downstream:
        return "it reads no predictions"
    if config.overlap_unit != "variance" or (config.sink_weight, config.focus_weight) != (None, 1):
        return "it measures overlap and error alike at every position"
    annealed = (config.anneal_from, config.anneal_to) != (0, 1)
    if config.unit_scales or config.factor_start is not None or annealed:
        return "its blocks start at random, in the scales of their layers"
    if config.evaluate_every:
        return "it measures nothing on held-out sequences"
    return None


def _structure(config: TrainConfig) -> TrainConfig:
    """The config with everything that may differ within a stack set to the default."""
    fixed = {k: v for k, v in config.to_dict().items() if k not in PER_RUN}
    return TrainConfig.from_dict(fixed)


def _in_stacks(
    runs: list[Any],
    why_not: Callable[[Any], str | None],
    say: Callable[[str], None],
    shape: Callable[[Any], Any],
    train: Callable[[list[Any]], list[Any]],
    train_alone: Callable[[Any], Any],
) -> list[Any]:
    """The results of ``runs``, those of one shape trained together, others alone."""
    if not runs:
        raise GatedInterpError("no-runs")
    reasons = [why_not(run) for run in runs]
    for reason in sorted({r for r in reasons if r}):
        count = reasons.count(reason)
        say(f"{count} of {len(runs)} runs go through the hooked loop, one by one: {reason}.")
    stacks: dict[Any, list[int]] = {}
    for i, run in enumerate(runs):
        if not reasons[i]:
            stacks.setdefault(shape(run), []).append(i)
    results = {i: train_alone(run) for i, run in enumerate(runs) if reasons[i]}
    for members in stacks.values():
        results |= zip(members, train([runs[i] for i in members]), strict=True)
    return [results[i] for i in range(len(runs))]


class _Batches:
    """The batch of each step: one fixed pool, or pools that are used once."""

    def __init__(self, task: Task, configs: list[TrainConfig], **options: Any):
        self.task, self.configs, self.options = task, configs, options
        config = configs[0]
        self.fixed = config.data == "fixed"
        self.n_sequences = (
            config.n_sequences if self.fixed else max(FRESH_POOL, 2 * config.update_size)
        )
        self.per_query = max(1, config.update_size * task.n_positions // task.d_vocab)
        self.number = -1
        self.started = 0
        self.pool: ContextPool | None = None

    def __call__(self, step: int) -> tuple[StackedBatch, int]:
        """The batch, and the number of its slice in the pool."""
        if self.pool is None or (not self.fixed and step - self.started >= self.pool.n_slices):
            self.number += 1
            self.started = step
            self.pool = ContextPool(
                self.task,
                [c.seed for c in self.configs],
                stream=self.number,
                n_sequences=self.n_sequences,
                per_query=self.per_query,
                **self.options,
            )
        at = (step - self.started) % self.pool.n_slices
        return self.pool.batch(at), at


def _toy_stack(runs: list[ToyRun], progress: bool) -> list[TrainResult[HookedTransformer]]:
    started = time.perf_counter()
    configs = [r.config for r in runs]
    device = pick_device(configs[0])
    models = [build_toy(r.model) for r in runs]
    for toy, model in zip(runs, models, strict=True):
        disturb(model.blocks[0].attn, toy.jitter, toy.jitter_seed)
    stack = StackedAttention([m.blocks[0].attn for m in models], device)
    batches = _Batches(runs[0].model.task, configs, scored_only=True, device=device)

    def loss_of(step: int, rates: dict[str, Tensor]) -> tuple[Tensor, Callable[[], Any]]:
        batch, _ = batches(step)
        z = stack.z(batch.counts)
        bias = stack.weights["b_O"]
        loss = cross_entropy(z, stack.W_O, bias, batch.target, batch.weight)
        return loss, lambda: {"cross_entropy": loss.detach()}

    histories = _train_stack(stack.weights, configs, loss_of, progress, logged=("lr",))
    for run, model in enumerate(models):
        stack.weights.copy_into(run, model.blocks[0].attn)
    seconds = (time.perf_counter() - started) / len(runs)
    return [
        TrainResult(model, history, config, seconds)
        for model, history, config in zip(models, histories, configs, strict=True)
    ]


def _gated_stack(runs: list[GatedRun], progress: bool) -> list[TrainResult[Replacement]]:
    started = time.perf_counter()
    configs = [r.config for r in runs]
    device = pick_device(configs[0])
    original = StackedAttention([r.original.blocks[0].attn for r in runs], device)
    stack = STACKED[runs[0].block.kind]([r.block for r in runs], original, device)
    all_pairs = getattr(stack.config, "penalty_pairs", "causal") == "all"
    batches = _Batches(runs[0].task, configs, all_pairs=all_pairs, device=device)
    with torch.no_grad():
        first, _ = batches(0)
        variance = output_variance(original, batches.pool)
    unit = torch.tensor([c.alpha_unit == "variance" for c in configs], device=device)
    alpha_unit = torch.where(unit, variance, 1.0)
    control = FvuControl(configs, device)
    overlap_weight = torch.tensor([c.overlap for c in configs], device=device)
    any_overlap = bool(overlap_weight.any())
    opened_weight = torch.tensor([c.opened_weight for c in configs], device=device)
    original_z: dict[int, Tensor] = {}
    del first

    def loss_of(step: int, rates: dict[str, Tensor]) -> tuple[Tensor, Callable[[], Any]]:
        batch, at = batches(step)
        if at not in original_z or not batches.fixed:
            with torch.no_grad():
                original_z[at] = with_one(original.z(batch.counts))
        stack.prepare(step, configs)
        written, W_O = stack.written(batch.counts), stack.W_O
        bias = stack.weights["b_O"] - original.weights["b_O"]
        known = original_z[at], original.W_O
        error = reconstruction(written.z, W_O, bias, *known, batch.weight)
        factor, penalty, loss = control.factor, torch.zeros_like(error.detach()), error
        if written.cost is not None:
            penalty = (written.cost * batch.pairs).sum((1, 2))
            loss = error + rates["alpha"] * alpha_unit * factor * penalty
        shared = torch.zeros_like(error.detach())
        if any_overlap:
            shared = overlap_penalty(
                written.z,
                W_O,
                stack.config.n_heads,
                batch.weight,
                variance,
                configs[0].overlap_power,
            )
            loss = loss + rates["penalty"] * overlap_weight * factor * shared
        opened = torch.full_like(error.detach(), torch.nan)
        if opens(step, configs[0]):
            assert isinstance(stack, StackedGated)
            z = stack.opened(
                batch.counts, written, step, configs, lambda z: residual(z, W_O, bias, *known)
            )
            opened = reconstruction(z, W_O, bias, *known, batch.weight)
            loss = loss + opened_weight * opened
        fvu = error.detach() / variance
        control.observe(fvu, step)

        def measure() -> dict[str, Tensor]:
            l0 = {}
            if written.gate is not None:
                is_open = (written.gate.detach() > OPEN).float().sum(1)
                l0 = {"l0": (is_open * batch.pairs).sum((1, 2)) / batch.pairs.sum((1, 2))}
            return {
                "reconstruction": error.detach(),
                "fvu": fvu,
                "penalty": penalty.detach(),
                "overlap": torch.where(overlap_weight > 0, shared.detach(), 0.0),
                **l0,
                **({"opened": opened.detach()} if configs[0].opened_share else {}),
                "factor": factor,
            }

        return loss, measure

    histories = _train_stack(stack.weights, configs, loss_of, progress, logged=("lr", "alpha"))
    for i, run in enumerate(runs):
        stack.weights.copy_into(i, run.block)
        if "l0" in histories[i]:
            run.block.l0 = float(histories[i]["l0"].iloc[-1])
        run.block.stands_for = sketch_at(run.original, run.layer)
    seconds = (time.perf_counter() - started) / len(runs)
    return [
        TrainResult(run.block, history, config, seconds)
        for run, history, config in zip(runs, histories, configs, strict=True)
    ]


def output_variance(
    original: StackedAttention, pool: ContextPool | None, slices: int = 4
) -> Float[Tensor, " run"]:
    """Variance per dimension of each original's output, from the first slices of its data."""
    assert pool is not None
    first = squares = torch.zeros(())
    slices = min(slices, pool.n_slices)
    for at in range(slices):
        batch = pool.batch(at)
        output = original.output(batch.counts)
        weight = batch.weight[..., None] / slices
        first = first + (weight * output).sum((1, 2))
        squares = squares + (weight * output.square()).sum((1, 2))
    return (squares - first.square()).mean(-1)


def _train_stack(
    weights: Any,
    configs: list[TrainConfig],
    loss_of: Callable[[int, dict[str, Tensor]], tuple[Tensor, Callable[[], Any]]],
    progress: bool,
    logged: tuple[str, ...],
) -> list[pd.DataFrame]:
    """The loop over steps of one stack; returns each run's history."""
    config, device = configs[0], weights.flat.device
    optimizer = StackedAdam(weights.flat)
    rows: list[dict[str, Tensor]] = []
    steps: list[int] = []
    bar = tqdm(total=config.steps, disable=not progress, unit="step", desc=f"{len(configs)} runs")
    with bar, torch.enable_grad(), denormals_flushed():
        for step in range(config.steps):
            rates = _rates(configs, step, device)
            loss, measure = loss_of(step, rates)
            weights.backward(loss.sum())
            optimizer.step(_clipped(weights.grad, config.clip_norm), rates["lr"][:, None])
            if step % config.log_every == 0 or step == config.steps - 1:
                row = {"loss": loss.detach(), **measure(), **{n: rates[n] for n in logged}}
                rows.append(row)
                steps.append(step)
                if not bool(torch.isfinite(row["loss"]).all()):
                    run = int((~torch.isfinite(row["loss"])).nonzero()[0])
                    raise GatedInterpError(
                        "loss-of-run-not-finite", run=run, step=step, lr=configs[run].lr
                    )
                bar.set_postfix({"median loss": f"{float(row['loss'].median()):.4f}"})
            bar.update()
    columns = {n: torch.stack([r[n] for r in rows]).cpu().double() for n in rows[0]}
    return [
        pd.DataFrame({"step": steps, **{n: c[:, run].numpy() for n, c in columns.items()}})
        for run in range(len(configs))
    ]


def _clipped(grad: Tensor, norm: float | None) -> Tensor:
    """Each run's gradient, scaled down to ``norm`` where it is longer, as torch does it."""
    if norm is None:
        return grad
    return grad * (norm / (grad.norm(dim=1, keepdim=True) + 1e-6)).clamp(max=1.0)


@contextmanager
def denormals_flushed() -> Iterator[None]:
    """Numbers below 1e-38 count as zero while the context is open.

    Attention to what is not attended to is full of them, and processors are slow at them.
    """
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


def _rates(configs: list[TrainConfig], step: int, device: Any) -> dict[str, Tensor]:
    """Learning rate, alpha and share of the full penalties of each run in this step."""
    rows = [
        (
            learning_rate(step, c.steps, c.lr, c.lr_decay),
            penalty_weight(step, c.steps, 1.0, c.penalty_off, c.penalty_ramp),
            c.alpha,
        )
        for c in configs
    ]
    lr, penalty, alpha = torch.tensor(rows, device=device).T
    return {"lr": lr, "penalty": penalty, "alpha": penalty * alpha}
