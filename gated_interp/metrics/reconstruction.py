"""How much of a layer's output another reproduces (FVU), and how many gates that takes (L0)."""

from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

OPEN = 1e-3
"""A gate above this counts as open: below it, a head's write is a thousandth of its size."""


def squared_error(
    output: Float[Tensor, "batch pos d_model"], target: Float[Tensor, "batch pos d_model"]
) -> Float[Tensor, " batch"]:
    """Squared distance of ``output`` from ``target``, summed over pos and d_model."""
    return (output - target).square().sum((1, 2))


def variation(
    target: Float[Tensor, "batch pos d_model"], centre: Float[Tensor, " d_model"] | None = None
) -> Float[Tensor, " batch"]:
    """Squared distance of ``target`` from its mean over batch and pos, per sequence.

    Args:
        centre: that mean, where ``target`` is only a part of the batch.
    """
    centre = target.mean((0, 1)) if centre is None else centre
    return (target - centre).square().sum((1, 2))


def unexplained(
    error: Float[Tensor, "*set"], varies: Float[Tensor, "*set"]
) -> Float[Tensor, "*set"]:
    """The fraction that summed squared errors are of summed variations."""
    return error / varies.clamp(min=torch.finfo(varies.dtype).tiny)


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
    return unexplained(squared_error(output, target).sum(), variation(target).sum())


def open_gates(
    gate: Float[Tensor, "batch head_index query_pos key_pos"],
    threshold: float = OPEN,
    real: Bool[Tensor, "batch key_pos"] | None = None,
) -> Float[Tensor, " batch"]:
    """How many heads' gates are open (> ``threshold``), mean over causal (query, key) pairs.

    From 0 to the number of heads.

    Args:
        real: where there is a token; pairs with padding do not count.
    """
    return open_pairs(gate, threshold, real=real).double() / causal_pairs(gate.shape[-1], real)


def causal_pairs(pos: int, real: Bool[Tensor, "batch pos"] | None = None) -> Any:
    """How many (query, key) pairs of ``pos`` tokens are causal; of each sequence where padded."""
    n = pos if real is None else real.sum(1)
    return n * (n + 1) // 2


def pairs_of(
    real: Bool[Tensor, "batch pos"], first: int = 0, queries: int | None = None
) -> Bool[Tensor, "batch query_pos key_pos"]:
    """The pairs of tokens, of ``queries`` query positions from ``first`` on and the keys up to
    the last of them."""
    last = real.shape[1] if queries is None else first + queries
    return real[:, first:last, None] & real[:, None, :last]


def causal_sum(
    by_pair: Float[Tensor, "batch query_pos key_pos"],
    first: int = 0,
    real: Bool[Tensor, "batch pos"] | None = None,
) -> Float[Tensor, ""]:
    """The sum over causal pairs; where rows are padded, the sum of each row's mean over its pairs.

    Args:
        first: the first query position, of fewer than there are.
    """
    by_pair = by_pair.tril(first)
    if real is None:
        return by_pair.sum()
    by_row = (by_pair * pairs_of(real, first, by_pair.shape[1])).sum((1, 2))
    return (by_row / causal_pairs(0, real)).sum()


def open_pairs(
    gate: Float[Tensor, "batch head_index query_pos key_pos"],
    threshold: float = OPEN,
    first: int = 0,
    real: Bool[Tensor, "batch pos"] | None = None,
) -> Int[Tensor, " batch"]:
    """How many gates of causal pairs are open in each sequence.

    Args:
        first: the first query position, of fewer than there are.
        real: where there is a token; pairs with padding do not count.
    """
    n_open = (gate > threshold).sum(1)
    if real is not None:
        n_open = n_open * pairs_of(real, first, gate.shape[2])
    return n_open.tril(first).sum((1, 2))


def l0(
    gate: Float[Tensor, "batch head_index query_pos key_pos"],
    threshold: float = OPEN,
    real: Bool[Tensor, "batch pos"] | None = None,
) -> Float[Tensor, ""]:
    """The mean of :func:`open_gates` over the batch.

    Examples:
        >>> l0(torch.ones(2, 4, 5, 5)).item()
        4.0
    """
    return open_gates(gate, threshold, real).mean()


def writes_at(
    z: Float[Tensor, "batch pos head_index d_head"],
    W_O: Float[Tensor, "head_index d_head d_model"],
) -> Float[Tensor, "batch pos head_index"]:
    """The squared length of what each head writes at each position."""
    by_head = z.flatten(0, 1).transpose(0, 1)  # [head_index (batch pos) d_head]
    # As one einsum of three it takes twice as long, forward and backward.
    squared = (by_head @ (W_O @ W_O.mT) * by_head).sum(-1)
    return squared.T.reshape(z.shape[:3])
