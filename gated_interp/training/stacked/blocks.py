"""R blocks of one shape, their weights on a leading run axis, and their way to and from modules."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from gated_interp.core.errors import GatedInterpError
from gated_interp.core.seeds import derive, generator
from gated_interp.core.streams import Stream
from gated_interp.replacements.gated_attention import GatedAttention, GatedConfig, gate_cost
from gated_interp.replacements.gates import gate_activation, is_drawn, logistic_noise
from gated_interp.replacements.heads import unit
from gated_interp.replacements.sae import SAEConfig
from gated_interp.replacements.topk import TopKConfig, k_at, most
from gated_interp.training.config import TrainConfig
from gated_interp.training.opening import added, coins
from gated_interp.training.stacked.forward import flat_W_O, stacked_z

PLAIN = ("W_Q", "W_K", "W_V", "W_O", "b_Q", "b_K", "b_V", "b_O")
HEADS = ("W_Q", "W_K", "raw_W_V", "raw_W_O", "b_Q", "b_K", "b_V", "b_O")


class StackedWeights:
    """The named weights of R modules in one flat ``[run, n_weights]`` tensor.

    Each name is a view that takes part in autograd; :meth:`backward` puts all gradients into one
    flat tensor too, so an optimiser step is a handful of operations whatever the number of weights.

    Attributes:
        flat: the weights.
        grad: the gradients of the last :meth:`backward`; zero for weights that do not train.
    """

    def __init__(self, modules: list[Any], names: tuple[str, ...], device: str | torch.device):
        columns: list[Tensor] = []
        self.spans: dict[str, tuple[slice, torch.Size]] = {}
        at = 0
        for name in names:
            stacked = torch.stack([m.get_parameter(name).detach() for m in modules])
            width = stacked[0].numel()
            self.spans[name] = (slice(at, at + width), stacked.shape)
            columns.append(stacked.flatten(1))
            at += width
        self.flat: Float[Tensor, "run weight"] = torch.cat(columns, 1).to(device)
        self.grad: Float[Tensor, "run weight"] = torch.zeros_like(self.flat)
        trains = {n: modules[0].get_parameter(n).requires_grad for n in names}
        self.views: dict[str, Tensor] = {}
        for name, (span, shape) in self.spans.items():
            view = self.flat[:, span].view(shape).detach()
            if trains[name]:
                view.requires_grad_()
            self.views[name] = view

    def backward(self, loss: Float[Tensor, ""]) -> None:
        """The gradients of ``loss``, into :attr:`grad`."""
        trained = {n: v for n, v in self.views.items() if v.requires_grad}
        grads = torch.autograd.grad(loss, list(trained.values()), materialize_grads=True)
        for name, grad in zip(trained, grads, strict=True):
            self.grad[:, self.spans[name][0]] = grad.flatten(1)

    def grad_of(self, name: str) -> Tensor:
        """The part of :attr:`grad` that belongs to ``name``, in its shape."""
        span, shape = self.spans[name]
        return self.grad[:, span].view(shape)

    def __getitem__(self, name: str) -> Tensor:
        return self.views[name]

    @torch.no_grad()
    def copy_into(self, run: int, module: nn.Module) -> None:
        """Write the weights of ``run`` into ``module``."""
        for name, (span, shape) in self.spans.items():
            module.get_parameter(name).copy_(self.flat[run, span].view(shape[1:]))


def scores_of(
    W_Q: Float[Tensor, "run head_index d_model d"],
    b_Q: Float[Tensor, "run head_index d"],
    W_K: Float[Tensor, "run head_index d_model d"],
    b_K: Float[Tensor, "run head_index d"],
) -> Float[Tensor, "run head_index query key"]:
    """The bilinear score of every (query token, key token), undivided."""
    return torch.matmul(W_Q + b_Q[:, :, None], (W_K + b_K[:, :, None]).transpose(-1, -2))


class StackedAttention:
    """R plain attention layers of one shape (the toys'), frozen or training.

    Args:
        layers: TransformerLens attention layers; ``d_model`` must be the vocabulary (identity
            embedding, no positional signal).
    """

    def __init__(self, layers: list[Any], device: str | torch.device = "cpu"):
        self.weights = StackedWeights(layers, PLAIN, device)
        self.scale = float(layers[0].attn_scale)

    def z(
        self, counts: Float[Tensor, "run query context key"]
    ) -> Float[Tensor, "run query context head"]:
        """``hook_z``, flattened as :func:`stacked_z` does."""
        w = self.weights
        scores = scores_of(w["W_Q"], w["b_Q"], w["W_K"], w["b_K"]) / self.scale
        return stacked_z(counts, scores, None, w["W_V"] + w["b_V"][:, :, None])

    @property
    def W_O(self) -> Float[Tensor, "run 1 head d_model"]:
        """``W_O`` in the order of :meth:`z`."""
        return flat_W_O(self.weights["W_O"])

    def output(
        self, counts: Float[Tensor, "run query context key"]
    ) -> Float[Tensor, "run query context d_model"]:
        """What the layers write, ``hook_attn_out``."""
        return torch.matmul(self.z(counts), self.W_O) + self.weights["b_O"][:, None, None]


@dataclasses.dataclass(frozen=True)
class Written:
    """What R blocks make of a batch.

    Attributes:
        z: ``hook_z``, flattened as :func:`stacked_z` does.
        cost: ``[run query key]``, what is penalised of each pair of tokens; ``None`` for nothing.
        gate: ``[run head_index query key]``; ``None`` where there are no gates.
    """

    z: Float[Tensor, "run query context d_head_x_head"]
    cost: Float[Tensor, "run query key"] | None = None
    gate: Float[Tensor, "run head_index query key"] | None = None


class StackedHeads:
    """R layers of heads of one kind that differ at most in their seeds, scales and weights.

    Args:
        blocks: modules to start from; their configs agree but for ``seed`` and ``output_scale``.
        original: what they stand in for.
    """

    names: ClassVar[tuple[str, ...]] = HEADS

    def __init__(
        self,
        blocks: Sequence[Any],
        original: StackedAttention | None = None,
        device: str | torch.device = "cpu",
    ):
        if len({b.config.replace(seed=0, output_scale=1.0) for b in blocks}) != 1:
            raise GatedInterpError("stack-of-different-configs")
        self.config, self.configs = blocks[0].config, [b.config for b in blocks]
        self.attn_scale = getattr(blocks[0], "attn_scale", 1.0)
        self.original = original
        self.weights = StackedWeights(list(blocks), self.names, device)
        self.output_scale = torch.tensor([b.config.output_scale for b in blocks], device=device)[
            :, None, None, None
        ]

    @property
    def runs(self) -> int:
        """How many runs are stacked."""
        return self.weights.flat.shape[0]

    def prepare(self, step: int, configs: Sequence[TrainConfig]) -> None:
        """Make ready for a step, see :meth:`Replacement.prepare`; a config per run."""

    def written(self, counts: Float[Tensor, "run query context key"]) -> Written:
        """What the blocks make of positions."""
        return Written(self.z(counts))

    def scores(self) -> Float[Tensor, "run head_index query key"]:
        """The attention score of every (query token, key token)."""
        w = self.weights
        return scores_of(w["W_Q"], w["b_Q"], w["W_K"], w["b_K"]) / self.attn_scale

    def z(
        self,
        counts: Float[Tensor, "run query context key"],
        gate: Float[Tensor, "run head_index query key"] | None = None,
    ) -> Float[Tensor, "run query context head"]:
        """``hook_z``, flattened as :func:`stacked_z` does."""
        return self.z_of(counts, gate, self.values())

    def z_of(
        self,
        counts: Float[Tensor, "run query context key"],
        gate: Float[Tensor, "run head_index query key"] | None,
        values: Float[Tensor, "run head_index key d_head"],
    ) -> Float[Tensor, "run query context head"]:
        """The same with these values."""
        return stacked_z(counts, self.scores(), gate, values)

    def values(self) -> Float[Tensor, "run head_index key d_head"]:
        """The value of every key token."""
        w = self.weights
        W_V = unit(w["raw_W_V"], 2) if self.config.normalize_weights else w["raw_W_V"]
        return W_V + w["b_V"][:, :, None]

    @property
    def W_O(self) -> Float[Tensor, "run 1 head d_model"]:
        """The output weights as they act, in the order of :meth:`z`."""
        raw = self.weights["raw_W_O"]
        W_O = unit(raw, 3) if self.config.normalize_weights else raw
        return flat_W_O(W_O * self.output_scale)

    def output(
        self, counts: Float[Tensor, "run query context key"]
    ) -> Float[Tensor, "run query context d_model"]:
        """What the blocks write."""
        z = self.written(counts).z
        return torch.matmul(z, self.W_O) + self.weights["b_O"][:, None, None]


class StackedGated(StackedHeads):
    """R gated attention blocks."""

    names = (*HEADS, "W_gate_Q", "W_gate_K", "b_gate_Q", "b_gate_K")
    config: GatedConfig
    noise: Float[Tensor, "run head_index query key"] | None = None

    def gate_scores(self) -> Float[Tensor, "run head_index query key"]:
        """The gate's score of every (query token, key token)."""
        w = self.weights
        return scores_of(w["W_gate_Q"], w["b_gate_Q"], w["W_gate_K"], w["b_gate_K"])

    def gate(self) -> Float[Tensor, "run head_index query key"]:
        """The gate of every (query token, key token), with this step's noise."""
        return gate_activation(self.gate_scores(), self.config.gate, self.noise)

    def prepare(self, step: int, configs: Sequence[TrainConfig]) -> None:
        """Draw this step's noise, one number for each pair of tokens.

        All positions with that pair share it; the hooked loop draws one for each position.
        """
        c = self.config
        if is_drawn(c.gate):
            seeds = [derive(config.seed, Stream.GATE_NOISE, step) for config in configs]
            v = self.weights["W_gate_Q"].shape[2]
            shape = (c.n_heads, 1, 1) if c.gate_per == "head" else (c.n_heads, v, v)
            device = self.weights.flat.device
            drawn = [logistic_noise(shape, generator(seed), device) for seed in seeds]
            self.noise = torch.stack(drawn).expand(-1, -1, v, v)

    def written(self, counts: Float[Tensor, "run query context key"]) -> Written:
        scores = self.gate_scores()
        gate = gate_activation(scores, self.config.gate, self.noise)
        if self.config.gate == "open":
            return Written(self.z(counts), None, gate)
        return Written(self.z(counts, gate), gate_cost(scores, gate, self.config), gate)

    def opened(
        self,
        counts: Float[Tensor, "run query context key"],
        written: Written,
        step: int,
        configs: Sequence[TrainConfig],
        missing: Callable[[Tensor], Tensor],
    ) -> Float[Tensor, "run query context head"]:
        """``z`` with closed gates opened, see :func:`~gated_interp.training.opening.opened_error`.

        At random by one toss for each pair of tokens, as with noise. By an adversary at each
        position: the slope of the error in a gate is that of the head's ``z`` times the key's
        value, so with one dimension a head opens the keys whose values are positive or those whose
        values are negative.

        Args:
            written: without.
            missing: what the error's slope in the output is proportional to, given ``z``.
        """
        z, gate, values = written.z, written.gate, self.values()
        assert gate is not None
        if not configs[0].opened_steps:
            sources = [generator(derive(c.seed, Stream.OPENED, step)) for c in configs]
            tossed = torch.stack([coins(gate.shape[1:], source) for source in sources])
            return self.z(counts, gate + tossed.to(gate) * added(gate))
        closed = added(gate)
        up, down = (self.z_of(counts, closed, part) for part in (values.relu(), -(-values).relu()))
        with torch.no_grad():
            worst = z + (up + down) / 2
            for _ in range(configs[0].opened_steps):
                rising = torch.matmul(missing(worst), self.W_O.mT) > 0
                worst = z + torch.where(rising, up, down)
        return z + torch.where(rising, up, down)

    def unstack(self) -> list[GatedAttention]:
        """The runs as ordinary modules, in order."""
        made = []
        for run, config in enumerate(self.configs):
            block = GatedAttention(config)
            self.weights.copy_into(run, block)
            made.append(block)
        return made


class StackedTopK(StackedHeads):
    """R TopK layers, of one dimension a head."""

    names = ("raw_W_Q", "raw_W_K", "raw_b_Q", "raw_b_K", "raw_W_V", "raw_W_O", "b_V", "b_O")
    config: TopKConfig

    def __init__(
        self,
        blocks: Sequence[Any],
        original: StackedAttention | None = None,
        device: str | torch.device = "cpu",
    ):
        super().__init__(blocks, original, device)
        self.k = self.config.k

    def prepare(self, step: int, configs: Sequence[TrainConfig]) -> None:
        self.k = k_at(step / configs[0].steps, self.config)

    def z(
        self,
        counts: Float[Tensor, "run query context key"],
        gate: Float[Tensor, "run head_index query key"] | None = None,
    ) -> Float[Tensor, "run query context head"]:
        # Heads that share a circuit are one head with as many dimensions, in the order of z: head
        # i uses circuit i mod their number.
        w = self.weights
        scores = scores_of(w["raw_W_Q"], w["raw_b_Q"], w["raw_W_K"], w["raw_b_K"])
        flat = self.values().squeeze(-1)
        values = flat.view(len(flat), -1, scores.shape[1], flat.shape[2]).permute(0, 2, 3, 1)
        return stacked_z(counts, scores / self.attn_scale, gate, values)

    def written(self, counts: Float[Tensor, "run query context key"]) -> Written:
        z = self.z(counts)
        lengths = z.detach().abs() * self.W_O.detach().norm(dim=-1)[:, None]
        return Written(z * most(lengths, self.k))


class StackedAutoencoder(StackedHeads):
    """R autoencoders on what the original layers write."""

    names = ("W_E", "b_E", "raw_W_O", "b_O")
    config: SAEConfig

    def written(self, counts: Float[Tensor, "run query context key"]) -> Written:
        assert self.original is not None
        w = self.weights
        with torch.no_grad():
            x = self.original.output(counts)
        x = (x - w["b_O"][:, None, None]) / self.output_scale
        features = torch.matmul(x, w["W_E"].mT[:, None]) + w["b_E"][:, None, None]
        return Written(features.relu() * most(features.detach(), self.config.k))

    @property
    def W_O(self) -> Float[Tensor, "run 1 head d_model"]:
        return flat_W_O(unit(self.weights["raw_W_O"], 3) * self.output_scale)


STACKED: dict[str, type[StackedHeads]] = {
    "gated": StackedGated,
    "topk": StackedTopK,
    "sae": StackedAutoencoder,
}
"""What can be stacked, by kind; others go through the hooked loop."""
