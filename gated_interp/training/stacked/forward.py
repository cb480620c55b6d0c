"""The same attention, from token tables and prefix counts.

With one-hot inputs and no positional signal, scores, gates and values are tables over tokens. For
a query token ``q`` with prefix counts ``c[k]``::

    z[h] = sum_k c[k] exp(S[h,q,k]) G[h,q,k] V[h,k]  /  sum_k c[k] exp(S[h,q,k])

which is one batched matrix product for all numerators and denominators of all runs.
"""

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

# exp(-GAP) is below float32's resolution even when the smaller side occurs in every position.
GAP = 20.0
# Scores are moved to [TOP - RANGE, TOP]: exp of each is a normal float32, with room above for
# counts and values and below for small gates.
TOP = 60.0
RANGE = 138.0


def compress_scores(
    scores: Float[Tensor, "run head_index query key"],
    always: Bool[Tensor, "run query key"] | None = None,
) -> Float[Tensor, "run head_index query key"]:
    """Scores with the same softmax over every set of keys that occurs, in a small range.

    A gap of more than ``GAP`` between two neighbouring scores already means that the lower ones
    get nothing while a higher one is present; a wider gap changes nothing. Where scores spread over
    more than ``RANGE``, gaps are cut to that width, and what lies that far below a key that is
    always present is lifted up to there. The largest score becomes ``TOP``. The shift is a
    constant to the gradient.

    Args:
        always: keys that are present in every context of a query; without it there are none.
    """
    with torch.no_grad():
        top = scores.amax(-1, keepdim=True)
        shift = top - TOP
        wide = (top - scores.amin(-1, keepdim=True)).amax((1, 2, 3)) > RANGE
        if bool(wide.any()):
            shift = shift.repeat(1, 1, 1, scores.shape[-1])
            shift[wide] -= _lift(scores[wide], None if always is None else always[wide])
    return scores - shift


def _lift(
    scores: Float[Tensor, "run head_index query key"],
    always: Bool[Tensor, "run query key"] | None,
) -> Float[Tensor, "run head_index query key"]:
    """What is added to each score, relative to the largest."""
    floored = scores
    if always is not None:
        floor = scores.masked_fill(~always[:, None], -torch.inf).amax(-1, keepdim=True)
        floored = torch.maximum(scores, floor - GAP)
    if float((floored.amax(-1) - floored.amin(-1)).max()) > RANGE:
        ordered, order = floored.sort(-1, descending=True)
        excess = (ordered[..., :-1] - ordered[..., 1:] - GAP).clamp(min=0).cumsum(-1)
        floored = floored + torch.zeros_like(floored).scatter_(-1, order[..., 1:], excess)
    return floored - scores


class _Ratio(torch.autograd.Function):
    """``numerator / denominator`` per head from one product, with a lean backward pass."""

    @staticmethod
    def forward(ctx: Any, products: Tensor, n_heads: int) -> Tensor:
        denominator = products[..., :n_heads]
        numerator = products[..., n_heads:]
        inverse = denominator.reciprocal()
        d_head = numerator.shape[-1] // n_heads
        if d_head > 1:
            inverse = inverse.repeat(*[1] * (inverse.ndim - 1), d_head)
        z = numerator * inverse
        ctx.save_for_backward(z, inverse)
        ctx.n_heads, ctx.d_head = n_heads, d_head
        return z

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        z, inverse = ctx.saved_tensors
        h, d = ctx.n_heads, ctx.d_head
        out = z.new_empty(*z.shape[:-1], h * (1 + d))
        d_numerator = torch.mul(grads[0], inverse, out=out[..., h:])
        if d == 1:
            torch.mul(d_numerator, z, out=out[..., :h])
        else:
            product = (d_numerator * z).unflatten(-1, (d, h))
            torch.sum(product, -2, out=out[..., :h])
        out[..., :h].neg_()
        return out, None


def stacked_z(
    counts: Float[Tensor, "run query context key"],
    scores: Float[Tensor, "run head_index query key"],
    gate: Float[Tensor, "run head_index query key"] | None,
    values: Float[Tensor, "run head_index key d_head"],
) -> Float[Tensor, "run query context d_head_x_head"]:
    """``hook_z`` at every context, flattened as ``(d_head head_index)``.

    Args:
        counts: prefix counts of each context.
        scores: attention score of each (query token, key token).
        gate: its gate; ``None`` for plain attention.
        values: value of each key token.
    """
    detached = scores.detach()
    always = None
    if float((detached.amax(-1) - detached.amin(-1)).max()) > RANGE:
        always = (counts > 0).all(2)
    compressed = compress_scores(scores, always)
    # Runs whose scores still do not fit are done over.
    beyond = (compressed.detach().amin((1, 2, 3)) < TOP - RANGE).nonzero()[:, 0]
    if len(beyond):
        compressed = compressed.clamp(min=TOP - RANGE)
    weight = compressed.exp()
    gated = weight if gate is None else weight * gate
    h, d = values.shape[1], values.shape[3]
    # [run query key (1 + d_head) * head_index]
    numerators = [(gated * values[..., None, :, i]) for i in range(d)]
    table = torch.cat([weight, *numerators], 1).permute(0, 2, 3, 1).contiguous()
    products = torch.matmul(counts, table)
    z: Tensor = _Ratio.apply(products, h)  # type: ignore[no-untyped-call]
    if len(beyond):
        some_gates = None if gate is None else gate[beyond]
        safe = _safe_z(counts[beyond], scores[beyond], some_gates, values[beyond])
        z = z.index_copy(0, beyond, safe)
    return z


def _safe_z(
    counts: Float[Tensor, "run query context key"],
    scores: Float[Tensor, "run head_index query key"],
    gate: Float[Tensor, "run head_index query key"] | None,
    values: Float[Tensor, "run head_index key d_head"],
) -> Float[Tensor, "run query context d_head_x_head"]:
    """As :func:`stacked_z` for scores of any range: the softmax context by context, slower."""
    table = scores.permute(0, 2, 1, 3)[:, :, None]  # [run query 1 head_index key]
    there = counts[:, :, :, None] > 0
    log_count = torch.where(there, counts[:, :, :, None], 1.0).log()
    pattern = (table + log_count).masked_fill(~there, -torch.inf).softmax(-1)
    if gate is not None:
        pattern = pattern * gate.permute(0, 2, 1, 3)[:, :, None]
    z = torch.einsum("rqchk,rhkd->rqcdh", pattern, values)
    return z.flatten(-2)


def flat_W_O(
    W_O: Float[Tensor, "run head_index d_head d_model"],
) -> Float[Tensor, "run 1 d_head_x_head d_model"]:
    """``W_O`` in the order in which :func:`stacked_z` flattens heads."""
    return W_O.transpose(1, 2).flatten(1, 2)[:, None]
