"""The same attention, from token tables and prefix counts.

With one-hot inputs and no positional signal, scores, gates and values are tables over tokens. For
a query token ``q`` with prefix counts ``c[k]``::

    z[h] = sum_k c[k] exp(S[h,q,k]) G[h,q,k] V[h,k]  /  sum_k c[k] exp(S[h,q,k])

which is two batched matrix products, for the numerators and the denominators of all runs.
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
    scores: Float[Tensor, "run head_index query key"], always: Bool[Tensor, "run query key"] | None
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
    """``counts numerator / counts denominator`` per head, with a lean backward pass.

    Two products and not one: what is made of half a row takes three times as long.
    """

    @staticmethod
    def forward(ctx: Any, counts: Tensor, numerator: Tensor, denominator: Tensor) -> Tensor:
        inverse = torch.matmul(counts, denominator).reciprocal_()
        d_head = numerator.shape[-1] // denominator.shape[-1]
        if d_head > 1:
            inverse = inverse.repeat(*[1] * (inverse.ndim - 1), d_head)
        z = torch.matmul(counts, numerator).mul_(inverse)
        ctx.save_for_backward(counts, z, inverse)
        ctx.d_head = d_head
        return z

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, Tensor, Tensor]:
        counts, z, inverse = ctx.saved_tensors
        transposed = counts.transpose(-1, -2)
        of_numerator = grads[0] * inverse
        d_numerator = torch.matmul(transposed, of_numerator)
        of_denominator = of_numerator.mul_(z)
        if ctx.d_head > 1:
            of_denominator = of_denominator.unflatten(-1, (ctx.d_head, -1)).sum(-2)
        return None, d_numerator, torch.matmul(transposed, of_denominator).neg_()


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
    # [run query key d_head_x_head]
    written = [gated * values[..., None, :, i] for i in range(values.shape[3])]
    tables = (torch.cat(written, 1), weight)
    numerator, denominator = (table.permute(0, 2, 3, 1).contiguous() for table in tables)
    z: Tensor = _Ratio.apply(counts, numerator, denominator)  # type: ignore[no-untyped-call]
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
