"""What a training minimises: what the loop asks of it, and the two that there are."""

import dataclasses
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.func import functional_call

from gated_interp.anatomy.batch import Batch
from gated_interp.core.errors import GatedInterpError
from gated_interp.core.precision import wide
from gated_interp.core.seeds import derive, generator
from gated_interp.core.streams import Stream
from gated_interp.metrics.predictions import kl_divergence, next_token_loss
from gated_interp.metrics.reconstruction import squared_error, unexplained, variation
from gated_interp.models.toy import HookedTransformer
from gated_interp.replacements.gated_attention import GatedAttention
from gated_interp.replacements.replacement import Replacement, outputs_of
from gated_interp.training.activations import ActivationStore
from gated_interp.training.capture import AttentionIO, attention_io
from gated_interp.training.config import TrainConfig
from gated_interp.training.constraint import FvuControl
from gated_interp.training.data import Source, draw
from gated_interp.training.losses import (
    first_position_error,
    output_variance,
    reconstruction_error,
)
from gated_interp.training.opening import opened_error, opens, require_gates
from gated_interp.training.processes import Group
from gated_interp.training.scales import Scales
from gated_interp.training.schedule import penalty_weight
from gated_interp.training.state import Row

# Sequences from which the variance of the original's output is measured, how many of them say what
# predictions lose without it, and how many positions of these are read at a time.
VARIANCE_SAMPLE, SILENCED, AT_ONCE = 200, 32, 1024
# Nats; a layer whose silence costs less says nothing that predictions need.
LEAST_KL = 1e-6
# How far above its target a training may end before it is said: what hovers around it is on it.
MISSED = 1.5


@runtime_checkable
class Objective(Protocol):
    """What a training minimises.

    In each step the loop calls :meth:`begin`, :meth:`loss` for every part of the batch (after it
    :meth:`measures`, where the step is logged) and, with the weights updated, :meth:`settle`. No
    method but :meth:`measures` and :meth:`held_out` waits for the device.

    Attributes:
        rates: of this step, for the history, beside the learning rate.
        state: tensors by name that a training goes on from, beside weights and Adam's moments.
    """

    rates: dict[str, float]
    state: dict[str, Tensor]

    def begin(self, step: int) -> None:
        """Make ready for a step."""
        ...

    def loss(self, batch: Batch) -> Float[Tensor, ""]:
        """A mean over sequences, so that the mean over equal parts is the whole batch's."""
        ...

    def measures(self) -> Row:
        """What the history says of the last :meth:`loss`."""
        ...

    def settle(self) -> None:
        """The weights are updated."""
        ...

    def held_out(self, batch: Batch) -> Row:
        """The same measures of ``batch``, without gradients or noise; nothing else changes."""
        ...


class NextToken:
    """Predict the next token: cross-entropy, in nats."""

    def __init__(self, model: HookedTransformer, config: TrainConfig):
        self.model, self.config = model, config
        self.rates: dict[str, float] = {}
        self.state: dict[str, Tensor] = {}

    def begin(self, step: int) -> None:
        """Nothing moves."""

    def loss(self, batch: Batch) -> Float[Tensor, ""]:
        loss = self._cross_entropy(batch)
        self.last = loss.detach()
        return loss

    def measures(self) -> Row:
        return {"cross_entropy": self.last.item()}

    def settle(self) -> None:
        """Nothing follows an update."""

    @torch.no_grad()
    def held_out(self, batch: Batch) -> Row:
        return {"cross_entropy": self._cross_entropy(batch).item()}

    def _cross_entropy(self, batch: Batch) -> Float[Tensor, ""]:
        batch.require_loss()
        weights = self.model.embed.W_E
        with autocast(self.config, weights.device):
            logits = batch.logits(self.model)
        return next_token_loss(logits.to(weights.dtype), batch.tokens, batch.known).mean()


class Imitate:
    """Write what the attention of ``original`` at ``layer`` writes, sparsely and without overlaps.

    ::

        loss = error + alpha * the block's penalty + overlap * overlap penalty
               + opened_weight * error with closed gates opened, in opened_share of the steps
        error = (1 - downstream) * mean squared error
                + downstream * variance of what the layer writes * KL / KL of its silence

    with the KL divergences (nats) of the model's predictions from the original's. With
    ``focus_weight``, mean squared error and variance are weighted means over positions.

    Args:
        original: on the device where ``block`` trains; it is only read.
        data: a sample of it, of the training's own, says what variance the original's output has.
        group: those that share each batch with this process.
    """

    def __init__(
        self,
        block: Replacement,
        original: HookedTransformer,
        layer: int,
        config: TrainConfig,
        data: Source,
        group: Group,
    ):
        require_gates(block, config)
        self.block, self.original, self.layer, self.config = block, original, layer, config
        self.group = group
        # Measured once: it scales penalties and the FVU they answer to.
        sample = draw(data, VARIANCE_SAMPLE, derive(config.seed, Stream.VARIANCE), original)
        self.store = data if isinstance(data, ActivationStore) else None
        self.scales = Scales()
        seen = self._seen(sample)
        if config.unit_scales:
            self.scales = Scales.of(block, seen, self._counted(sample))
            seen = self.scales.divided(seen)
        self.mean_weight = 1.0
        if config.focus_weight != 1:
            weights, counted = self._weights(sample), self._counted(sample)
            assert weights is not None
            self.mean_weight = float(weights.mean() if counted is None else weights[counted].mean())
        self.variance = output_variance(
            wide(seen.output), self._counted(sample), self._weights(sample)
        )
        self.first_size = wide(seen.output)[_first(sample)].square().mean()
        if config.downstream:
            self.per_nat = self.variance / self._silence(sample)
        self.unit = self.variance
        if config.alpha_unit == "absolute":
            self.unit = torch.ones((), dtype=torch.float64, device=self.variance.device)
        self.control = FvuControl([config], self.variance.device)
        self.state = {"fvu_control": self.control.state}
        self.rates: dict[str, float] = {}

    def begin(self, step: int) -> None:
        c = self.config
        self.step, self.errors = step, list[Tensor]()
        self.ramp = penalty_weight(step, c.steps, 1.0, c.penalty_off, c.penalty_ramp)
        self.rates = {
            "alpha": penalty_weight(step, c.steps, c.alpha, c.penalty_off, c.penalty_ramp)
        }
        # Each process draws noise of its own; the first draws what one by itself would.
        others = (self.group.rank,) if self.group.rank else ()
        done = c.anneal_from + (c.anneal_to - c.anneal_from) * (step / c.steps)
        self.block.prepare(done, derive(c.seed, Stream.GATE_NOISE, step, *others))
        # What this step opens; nothing in most.
        self.opening = None
        if opens(step, c):
            self.opening = generator(derive(c.seed, Stream.OPENED, step, *others))

    def loss(self, batch: Batch) -> Float[Tensor, ""]:
        seen = self._seen(batch, logits=self.config.downstream > 0)
        error, penalty, shared, self.last = self._terms(batch, seen)
        self.errors.append(error.detach())
        # The weights are worked out in float64 and rounded once, as Python's numbers are.
        factor = self.control.factor[0]
        alpha = self.rates["alpha"] * self.unit * factor.to(self.unit.dtype)
        loss = error + alpha.to(penalty.dtype) * penalty
        if self.config.overlap:
            weight = self.ramp * self.config.overlap * factor.double()
            loss = loss + weight.to(shared.dtype) * shared
        self.opened = torch.tensor(torch.nan)
        if self.opening is not None:
            opened = self._opened(batch, seen, self.opening)
            self.opened = opened.detach()
            loss = loss + self.config.opened_weight * opened
        return loss

    def measures(self) -> Row:
        opened = {"opened": self.opened.item()} if self.config.opened_share else {}
        return {**self.last(), **opened, "factor": float(self.control.factor)}

    def settle(self) -> None:
        """Let the controller see the step's FVU."""
        if self.control.any_target:
            error = self.group.mean(torch.stack(self.errors).mean())
            self.control.observe((error / self.variance)[None], self.step)

    def missed(self) -> str | None:
        """Once it is over, a sentence on a training that ended far above its target."""
        target, error = self.config.fvu_target, float(self.control.error(self.config.steps))
        if target is None or not error > MISSED * target:
            return None
        return (
            f"the training of the block ended with an error of {error:.3g}, above its target of "
            f"{target:.3g}, so it is not faithful yet. Train for more steps, start from copies of "
            "the heads (fit_gated, or init=duplicate), allow more heads, or raise the target (fvu)."
        )

    @torch.no_grad()
    def held_out(self, batch: Batch) -> Row:
        self.block.settle()  # the next step prepares it again
        return self._terms(batch, self._seen(batch, logits=self.config.downstream > 0))[-1]()

    def _terms(
        self, batch: Batch, seen: AttentionIO
    ) -> tuple[Float[Tensor, ""], Float[Tensor, ""], Float[Tensor, ""], Callable[[], Row]]:
        """Reconstruction error, penalty, overlap penalty, and what the history says of them."""
        block, dtype, real = self.block, self.block.b_O.dtype, batch.real
        with autocast(self.config, batch.tokens.device):
            found = block.terms(*(x.to(dtype) for x in seen.inputs), real=real)
        output, z, target = found.output.to(dtype), found.z.to(dtype), seen.output.to(dtype)
        counted, weight = self._counted(batch), self.config.sink_weight
        error, squared, first, kl = self._error(batch, seen, output)
        penalty = found.penalty.to(dtype)
        shared = torch.zeros(())
        if self.config.overlap:
            relative = self.config.overlap_unit == "write"
            written = target.square().sum(-1) if relative else None
            power = self.config.overlap_power
            shared = block.overlap_penalty(z, self.variance, power, counted, written)

        def measures() -> Row:
            return {
                "reconstruction": squared.item(),
                "fvu": self._fvu(output.detach(), target, batch).item(),
                "penalty": penalty.item(),
                "overlap": shared.item(),
                **({"kl": kl.item()} if self.config.downstream else {}),
                **({} if weight is None else {"first_position": first.item()}),
                **found.measures(),
            }

        return error, penalty, shared, measures

    def _error(
        self, batch: Batch, seen: AttentionIO, output: Float[Tensor, "batch pos d_model"]
    ) -> tuple[Float[Tensor, ""], Float[Tensor, ""], Float[Tensor, ""], Float[Tensor, ""]]:
        """The error of ``output``; its mean square, at first positions, and in predictions."""
        dtype, weight = self.block.b_O.dtype, self.config.sink_weight
        target, counted = seen.output.to(dtype), self._counted(batch)
        error = squared = reconstruction_error(output, target, counted, self._weights(batch))
        first = torch.zeros(())
        if weight is not None:
            first = first_position_error(output, target, _first(batch), self.first_size)
            error = squared + weight * self.variance.to(dtype) * first
        kl = torch.zeros(())
        if self.config.downstream:
            share, kl = self.config.downstream, self._kl(batch, seen, output).mean()
            error = (1 - share) * error + share * self.per_nat * kl
        return error, squared, first, kl

    def _opened(
        self, batch: Batch, seen: AttentionIO, source: torch.Generator
    ) -> Float[Tensor, ""]:
        """The error with closed gates opened."""
        block, dtype = self.block, self.block.b_O.dtype
        assert isinstance(block, GatedAttention)

        def error() -> Float[Tensor, ""]:
            with autocast(self.config, batch.tokens.device):
                output = block(*(x.to(dtype) for x in seen.inputs), attention_mask=batch.real)
            return self._error(batch, seen, output.to(dtype))[0]

        return opened_error(block, error, self.config.opened_steps, source)

    def _seen(self, batch: Batch, logits: bool = False) -> AttentionIO:
        """What the original's layer receives and writes, from its store if there is one."""
        if self.store is None:
            seen = attention_io(self.original, self.layer, batch, logits=logits)
        else:
            seen = self.store.read(self.layer, batch)
            if logits:
                with self._predicting(batch):
                    now = attention_io(self.original, self.layer, batch, logits=True)
                seen = dataclasses.replace(seen, logits=now.logits, residual=now.residual)
        return self.scales.divided(seen)

    def _predicting(self, batch: Batch) -> AbstractContextManager[Any]:
        """The precision of the model's passes, which rounds nothing that a store holds."""
        if self.store is None:
            return nullcontext()
        return autocast(self.config, batch.tokens.device)

    def _counted(self, batch: Batch) -> Bool[Tensor, "batch pos"] | None:
        """The positions whose error is measured; ``None`` where all are."""
        return batch.real if self.config.sink_weight is None else batch.later

    def _weights(self, batch: Batch) -> Float[Tensor, "batch pos"] | None:
        """How much each position's error counts; 1 in the mean over the training's sample."""
        if self.config.focus_weight == 1:
            return None
        if batch.focus is None:
            raise GatedInterpError("nothing-in-focus", weight=self.config.focus_weight)
        more = (self.config.focus_weight - 1) * batch.focus.to(self.block.b_O.dtype)
        return (1 + more) / self.mean_weight

    def _kl(
        self, batch: Batch, seen: AttentionIO, output: Float[Tensor, "batch pos d_model"]
    ) -> Float[Tensor, " batch"]:
        """Of predictions with ``output`` in the layer's place from the original's, in nats."""
        assert seen.logits is not None
        # Detached, the original's weights get no gradients.
        weights = {name: weight.detach() for name, weight in self.original.named_parameters()}
        attn, residual = self.original.blocks[self.layer].attn, seen.residual
        instead = (output * self.scales.written).to(seen.output.dtype)
        given: dict[str, Any] = {"attention_mask": batch.attention_mask}
        if self.original.cfg.positional_embedding_type == "shortformer":
            residual = None  # its layers read positions beside the residual stream
        if residual is not None:
            given["start_at_layer"] = self.layer
        handle = attn.register_forward_hook(lambda *_: instead)
        try:
            with outputs_of(attn), self._predicting(batch):
                read = (batch.tokens if residual is None else residual,)
                logits: Tensor = functional_call(self.original, weights, read, given)
        finally:
            handle.remove()
        return kl_divergence(seen.logits.float(), logits.float(), batch.real)

    @torch.no_grad()
    def _silence(self, sample: Batch) -> Float[Tensor, ""]:
        """The KL of predictions without the layer (zero-ablated)."""
        found = []
        for part in sample[:SILENCED].split(max(1, AT_ONCE // sample.tokens.shape[1])):
            seen = self._seen(part, logits=True)
            found.append(self._kl(part, seen, torch.zeros_like(seen.output)))
        silence = torch.cat(found).mean()
        if not silence > LEAST_KL:
            raise GatedInterpError("layer-does-not-matter", layer=self.layer, kl=float(silence))
        return silence

    def _fvu(
        self,
        output: Float[Tensor, "batch pos d_model"],
        wanted: Float[Tensor, "batch pos d_model"],
        batch: Batch,
    ) -> Float[Tensor, ""]:
        """That of the whole batch, of which this process has a share."""
        counted = self._counted(batch)
        if counted is None:
            centre = self.group.mean(wanted.mean((0, 1)))
        else:
            output, wanted = output[counted][:, None], wanted[counted][:, None]
            n = self.group.mean(wanted.new_tensor(len(wanted)))
            centre = self.group.mean(wanted.sum((0, 1))) / n
        error, varies = squared_error(output, wanted), variation(wanted, centre)
        return unexplained(self.group.mean(error.sum()), self.group.mean(varies.sum()))


def _first(batch: Batch) -> Bool[Tensor, "batch pos"]:
    """Each sequence's first position."""
    return batch.counted & ~batch.later


def autocast(config: TrainConfig, device: torch.device) -> AbstractContextManager[Any]:
    """Matrix products in bfloat16 where ``config`` says so; weights and losses stay as they are."""
    if config.precision == "float32":
        return nullcontext()
    return torch.autocast(device.type, torch.bfloat16)
