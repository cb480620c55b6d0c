"""R blocks of one shape, their weights on a leading run axis, and their way to and from modules."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from gated_interp.core.errors import GatedInterpError
from gated_interp.models.gated_attention import GatedAttention, GatedConfig, unit
from gated_interp.models.gates import gate_activation
from gated_interp.training.stacked.forward import flat_W_O, stacked_z

PLAIN = ("W_Q", "W_K", "W_V", "W_O", "b_Q", "b_K", "b_V", "b_O")
GATED = (
    "W_Q",
    "W_K",
    "raw_W_V",
    "raw_W_O",
    "b_Q",
    "b_K",
    "b_V",
    "b_O",
    "W_gate_Q",
    "W_gate_K",
    "b_gate_Q",
    "b_gate_K",
)


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


class StackedGated:
    """R gated attention blocks that differ at most in their seeds and weights.

    Args:
        blocks: modules to start from; their configs agree but for ``seed`` and ``output_scale``.

    Raises:
        GatedInterpError: configs that cannot be stacked.
    """

    def __init__(self, blocks: list[GatedAttention], device: str | torch.device = "cpu"):
        shapes = {
            GatedConfig.from_dict({**b.config.to_dict(), "seed": 0, "output_scale": 1.0})
            for b in blocks
        }
        if len(shapes) != 1:
            raise GatedInterpError(
                "stacked blocks must have one config but for seed and output_scale; train runs of "
                "different shapes as separate stacks."
            )
        self.config = blocks[0].config
        self.configs = [b.config for b in blocks]
        self.attn_scale = blocks[0].attn_scale
        self.weights = StackedWeights(list(blocks), GATED, device)
        self.output_scale = torch.tensor([b.config.output_scale for b in blocks], device=device)[
            :, None, None, None
        ]

    @property
    def runs(self) -> int:
        """How many runs are stacked."""
        return self.weights.flat.shape[0]

    def gate(self) -> Float[Tensor, "run head_index query key"]:
        """The gate of every (query token, key token), without hard-concrete noise."""
        w = self.weights
        scores = scores_of(w["W_gate_Q"], w["b_gate_Q"], w["W_gate_K"], w["b_gate_K"])
        return gate_activation(scores, self.config.gate)

    def z(
        self,
        counts: Float[Tensor, "run query context key"],
        gate: Float[Tensor, "run head_index query key"],
    ) -> Float[Tensor, "run query context head"]:
        """``hook_z``, flattened as :func:`stacked_z` does."""
        w = self.weights
        scores = scores_of(w["W_Q"], w["b_Q"], w["W_K"], w["b_K"]) / self.attn_scale
        W_V = unit(w["raw_W_V"], 2) if self.config.normalize_weights else w["raw_W_V"]
        return stacked_z(counts, scores, gate, W_V + w["b_V"][:, :, None])

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
        z = self.z(counts, self.gate())
        return torch.matmul(z, self.W_O) + self.weights["b_O"][:, None, None]

    def unstack(self) -> list[GatedAttention]:
        """The runs as ordinary modules, in order."""
        made = []
        for run, config in enumerate(self.configs):
            block = GatedAttention(config)
            self.weights.copy_into(run, block)
            made.append(block)
        return made
