"""What a gated block's training minimises, and what its scale is, as pure functions of tensors.

The gate penalty is :meth:`gated_interp.replacements.gated_attention.GatedAttention.gate_penalty`.
"""

import torch
from jaxtyping import Float
from torch import Tensor


def reconstruction_error(
    output: Float[Tensor, "batch pos d_model"], target: Float[Tensor, "batch pos d_model"]
) -> Float[Tensor, ""]:
    """Mean squared error over batch, pos and d_model."""
    return torch.nn.functional.mse_loss(output, target)


@torch.no_grad()
def output_variance(output: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, ""]:
    """Variance of ``output`` about its mean over batch and pos, averaged over ``d_model``."""
    return (output - output.mean((0, 1))).square().mean()
