"""What training minimises and what it reports, as pure functions of tensors.

The gate penalty is :meth:`gated_interp.models.gated_attention.GatedAttention.gate_penalty`.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

OPEN = 1e-3
"""A gate above this counts as open: below it, a head's write is a thousandth of its size."""


def next_token_cross_entropy(
    logits: Float[Tensor, "batch pos d_vocab"], tokens: Int[Tensor, "batch pos"]
) -> Float[Tensor, ""]:
    """Mean cross-entropy, in nats, of predicting each token from the ones before it.

    The first token is predicted by nothing, the last position predicts nothing.

    Examples:
        >>> even = torch.zeros(2, 3, 8)
        >>> round(float(next_token_cross_entropy(even, torch.zeros(2, 3, dtype=torch.long)).exp()))
        8
    """
    return torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())


def reconstruction_error(
    output: Float[Tensor, "batch pos d_model"], target: Float[Tensor, "batch pos d_model"]
) -> Float[Tensor, ""]:
    """Mean squared error over batch, pos and d_model."""
    return torch.nn.functional.mse_loss(output, target)


def fvu(
    output: Float[Tensor, "batch pos d_model"], target: Float[Tensor, "batch pos d_model"]
) -> Float[Tensor, ""]:
    """Fraction of the variance of ``target`` that ``output`` leaves unexplained.

    Variance is about the mean over batch and pos: 0 is perfect, 1 is as good as writing that mean
    everywhere, and it may exceed 1. Where ``target`` does not vary it is 0 if matched, else huge.

    Examples:
        >>> target = torch.tensor([[[1.0], [3.0]]])
        >>> fvu(torch.full_like(target, 2.0), target).item(), fvu(target, target).item()
        (1.0, 0.0)
    """
    variation = (target - target.mean((0, 1))).square().sum()
    smallest = torch.finfo(variation.dtype).tiny
    return (output - target).square().sum() / variation.clamp(min=smallest)


def l0(
    gate: Float[Tensor, "batch head_index query_pos key_pos"], threshold: float = OPEN
) -> Float[Tensor, ""]:
    """Mean over causal (query, key) pairs of how many heads' gates are open (> ``threshold``).

    From 0 to the number of heads.

    Examples:
        >>> l0(torch.ones(2, 4, 5, 5)).item()
        4.0
    """
    query, key = gate.shape[-2:]
    causal = torch.ones(query, key, dtype=torch.bool, device=gate.device).tril()
    open_heads = (gate > threshold).sum(1)  # [batch query_pos key_pos]
    return open_heads[:, causal].float().mean()


@torch.no_grad()
def output_variance(output: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, ""]:
    """Variance of ``output`` about its mean over batch and pos, averaged over ``d_model``."""
    return (output - output.mean((0, 1))).square().mean()
