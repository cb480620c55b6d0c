"""Shapley values and Harsanyi dividends of a game given by the value of every subset.

The last axis has ``2 ** n_heads`` values; bit ``h`` of a subset's number says whether head ``h``
is in it.
"""

from math import comb

import torch
from jaxtyping import Float
from torch import Tensor

from gated_interp.core.errors import GatedInterpError


def shapley_values(values: Float[Tensor, "*shape subset"]) -> Float[Tensor, "*shape head_index"]:
    """Shapley value per head of a game given by the value of every subset.

    ``phi_h = sum over S without h of |S|! (H - |S| - 1)! / H! (v(S + h) - v(S))``. They add up to
    the value of all heads minus that of none (Shapley, 1953).

    Examples:
        >>> shapley_values(torch.tensor([0.0, 1.0, 2.0, 6.0])).tolist()
        [2.5, 3.5]
    """
    heads = _n_heads(values)
    numbers = torch.arange(2**heads, device=values.device)
    size = sum((numbers >> h & 1 for h in range(heads)), torch.zeros_like(numbers))
    weight = torch.tensor(
        [1 / (heads * comb(heads - 1, s)) for s in range(heads)],
        dtype=values.dtype,
        device=values.device,
    )
    phi = []
    for h in range(heads):
        without = numbers[(numbers >> h & 1) == 0]
        gain = values[..., without | 1 << h] - values[..., without]
        phi.append((gain * weight[size[without]]).sum(-1))
    return torch.stack(phi, -1)


def harsanyi_dividends(values: Float[Tensor, "*shape subset"]) -> Float[Tensor, "*shape subset"]:
    """What each set of heads adds beyond all its proper subsets.

    ``m(S) = sum over T in S of (-1)^(|S| - |T|) v(T)``; summed over the subsets of any ``S``
    they give ``v(S)`` back, and ``phi_h = sum over S with h of m(S) / |S|`` (Harsanyi, 1963).

    Examples:
        >>> harsanyi_dividends(torch.tensor([0.0, 1.0, 2.0, 6.0])).tolist()
        [0.0, 1.0, 2.0, 3.0]
    """
    heads = _n_heads(values)
    dividends = values.clone()
    for h in range(heads):
        # Axes: higher bits, bit h, lower bits.
        view = dividends.view(*values.shape[:-1], -1, 2, 2**h)
        view[..., 1, :] -= view[..., 0, :]
    return dividends


def _n_heads(values: Tensor) -> int:
    heads = values.shape[-1].bit_length() - 1
    if 2**heads != values.shape[-1]:
        raise GatedInterpError("not-a-power-of-two", n=values.shape[-1])
    return heads
