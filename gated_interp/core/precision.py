"""The precision that effects are computed in."""

import torch
from jaxtyping import Float
from torch import Tensor


def wide(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """``x`` in float32, or in float64 where it has it: 16 bits round small effects away."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()
