"""What a gated block's training minimises, and what its scale is, as pure functions of tensors.

The gate penalty is :meth:`gated_interp.replacements.gated_attention.GatedAttention.gate_penalty`.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from gated_interp.metrics.predictions import row_means


def reconstruction_error(
    output: Float[Tensor, "batch pos d_model"],
    target: Float[Tensor, "batch pos d_model"],
    real: Bool[Tensor, "batch pos"] | None = None,
    weights: Float[Tensor, "batch pos"] | None = None,
) -> Float[Tensor, ""]:
    """Mean squared error over batch, pos and d_model; of each row over the positions ``real``.

    Args:
        weights: what each position's error is multiplied by before the mean.
    """
    if weights is not None:
        return row_means((output - target).square().mean(-1) * weights, real).mean()
    if real is not None:
        return row_means((output - target).square().mean(-1), real).mean()
    return torch.nn.functional.mse_loss(output, target)


def first_position_error(
    output: Float[Tensor, "batch pos d_model"],
    target: Float[Tensor, "batch pos d_model"],
    first: Bool[Tensor, "batch pos"],
    size: Float[Tensor, ""],
) -> Float[Tensor, ""]:
    """The squared error at each sequence's ``first`` position, as a share of ``size``.

    Args:
        size: the mean square of what the original writes there.
    """
    return (output - target)[first].square().mean() / size.clamp(min=1e-30).to(output)


@torch.no_grad()
def output_variance(
    output: Float[Tensor, "batch pos d_model"],
    real: Bool[Tensor, "batch pos"] | None = None,
    weights: Float[Tensor, "batch pos"] | None = None,
) -> Float[Tensor, ""]:
    """Variance of ``output`` about its mean over batch and pos, averaged over ``d_model``.

    Args:
        real: where there is a token; padding does not count.
        weights: of mean 1; each position's share of the variance is multiplied by its weight.
    """
    if real is not None:
        weights = None if weights is None else weights[real][:, None]
        output = output[real][:, None]
    deviations = (output - output.mean((0, 1))).square().mean(-1)
    return (deviations if weights is None else deviations * weights).mean()
