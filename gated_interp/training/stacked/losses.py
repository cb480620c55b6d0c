"""Per-run losses of stacked runs, with lean backward passes."""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from gated_interp.metrics.overlap import overlap, overlap_cost


class _Reconstruction(torch.autograd.Function):
    """Weighted mean squared difference of two blocks' outputs, per run.

    What belongs to a run scales its small tensors, not the large ones.
    """

    @staticmethod
    def forward(  # type: ignore[no-untyped-def]
        ctx: Any, z: Tensor, W_O: Tensor, bias: Tensor, z_0: Tensor, W_O_0: Tensor, weight: Tensor
    ):
        m = W_O.shape[-1]
        flat_z = z.flatten(1, 2)
        known = torch.cat([W_O_0[:, 0], -bias[:, None]], 1)
        residual = torch.bmm(flat_z, W_O[:, 0])
        residual -= torch.bmm(z_0.flatten(1, 2), known)
        weighted = residual.view(*z.shape[:-1], m).mul(weight[..., None]).flatten(1, 2)
        ctx.save_for_backward(flat_z, W_O, weighted)
        ctx.shape = z.shape
        return torch.linalg.vecdot(residual.flatten(1), weighted.flatten(1)) / m

    @staticmethod
    def backward(ctx: Any, *grads: Tensor):  # type: ignore[no-untyped-def]
        z, W_O, weighted = ctx.saved_tensors
        factor = (2 / W_O.shape[-1] * grads[0])[:, None, None]
        d_z = torch.bmm(weighted, (W_O[:, 0] * factor).transpose(1, 2)).view(ctx.shape)
        d_W_O = (torch.bmm(z.transpose(1, 2), weighted) * factor)[:, None]
        d_bias = weighted.sum(1) * factor[..., 0] if ctx.needs_input_grad[2] else None
        return d_z, d_W_O, d_bias, None, None, None


def reconstruction(
    z: Float[Tensor, "run query context head"],
    W_O: Float[Tensor, "run 1 head d_model"],
    bias: Float[Tensor, "run d_model"],
    original_z: Float[Tensor, "run query context original_head_and_1"],
    original_W_O: Float[Tensor, "run 1 original_head d_model"],
    weight: Float[Tensor, "run query context"],
) -> Float[Tensor, " run"]:
    """Mean squared error over positions and ``d_model`` of ``z W_O + bias``, per run.

    Args:
        bias: the block's output bias less the original's.
        original_z, original_W_O: the original's, without gradient; behind each ``z`` stands a 1
            (:func:`with_one`), which brings the bias into the product.
    """
    return _Reconstruction.apply(  # type: ignore[no-untyped-call]
        z, W_O, bias, original_z, original_W_O, weight
    )


def residual(
    z: Float[Tensor, "run query context head"],
    W_O: Float[Tensor, "run 1 head d_model"],
    bias: Float[Tensor, "run d_model"],
    original_z: Float[Tensor, "run query context original_head_and_1"],
    original_W_O: Float[Tensor, "run 1 original_head d_model"],
) -> Float[Tensor, "run query context d_model"]:
    """What :func:`reconstruction` squares, at each position."""
    known = torch.cat([original_W_O, -bias[:, None, None]], 2)
    return torch.matmul(z, W_O) - torch.matmul(original_z, known)


def with_one(
    z: Float[Tensor, "run query context head"],
) -> Float[Tensor, "run query context head_and_1"]:
    """``z`` with a 1 behind the heads of every position."""
    return torch.nn.functional.pad(z, (0, 1), value=1.0)


class _Overlap(torch.autograd.Function):
    """Weighted mean of ``unit * (o / unit)^power``, ``o = (sum_h n_h)^2 - sum_h n_h^2``, per run.

    ``n_h = |z_h| * scale_h`` is the length of what head ``h`` writes (``d_head = 1``). Sums over
    heads are products with small matrices: rows as short as heads are slow to sum.
    """

    @staticmethod
    def forward(  # type: ignore[no-untyped-def]
        ctx: Any, z: Tensor, scale: Tensor, weight: Tensor, unit: Tensor, power: float
    ):
        sizes = z.abs().flatten(1, 2)
        # o = sum_h scale_h |z_h| others_h, where others_h is the length of what all others write.
        apart = 1 - torch.eye(scale.shape[1], device=scale.device)
        others = torch.bmm(sizes, scale[..., None] * apart)
        products = sizes.mul_(others)
        shared = torch.bmm(products, scale[..., None]).view(z.shape[:-1])
        if power == 1:
            value, slope = shared, weight.expand_as(shared)
        else:
            relative = (shared / unit[:, None, None]).clamp_(min=0)
            steep = relative if power == 2 else relative ** (power - 1)
            value = unit[:, None, None] * (steep * relative)
            slope = weight * steep * power
        # d(o)/d(n_h) = 2 * others_h; the backward pass brings the 2.
        slope = slope.reshape(len(z), -1, 1)
        d_scale = None
        if ctx.needs_input_grad[1]:
            d_scale = torch.bmm(slope.transpose(1, 2), products)[:, 0]
        ctx.save_for_backward(z, scale, others, slope, d_scale)
        return (value * weight).sum((1, 2))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor):  # type: ignore[no-untyped-def]
        z, scale, others, slope, d_scale = ctx.saved_tensors
        twice = 2 * grads[0][:, None]
        d_z = torch.bmm(slope, (scale * twice)[:, None]).mul_(others).view_as(z).mul_(z.sign())
        if d_scale is not None:
            d_scale = d_scale * twice
        return d_z, d_scale, None, None, None


def overlap_penalty(
    z: Float[Tensor, "run query context d_head_x_head"],
    W_O: Float[Tensor, "run 1 d_head_x_head d_model"],
    n_heads: int,
    weight: Float[Tensor, "run query context"],
    variance: Float[Tensor, " run"],
    power: float,
) -> Float[Tensor, " run"]:
    """The overlap penalty of :meth:`GatedAttention.overlap_penalty`, per run."""
    d_model = W_O.shape[-1]
    unit = variance * d_model
    if z.shape[-1] == n_heads:
        length = W_O[:, 0].norm(dim=-1)
        summed = _Overlap.apply(z, length, weight, unit, power)  # type: ignore[no-untyped-call]
        return summed / d_model
    heads = W_O[:, 0].view(len(W_O), -1, n_heads, d_model)  # [run d_head head_index d_model]
    gram = torch.einsum("rdhm,rehm->rhde", heads, heads)
    split = z.view(*z.shape[:-1], -1, n_heads)
    squared = torch.einsum("rqcdh,rhde,rqceh->rqch", split, gram, split)
    shared = overlap_cost(overlap(squared), unit[:, None, None], power)
    return (shared * weight).sum((1, 2)) / d_model


class _CrossEntropy(torch.autograd.Function):
    """Weighted mean cross-entropy, per run; tokens before positions, so that each pass is one.

    Softmax over a short last axis takes most of a step.
    """

    @staticmethod
    def forward(  # type: ignore[no-untyped-def]
        ctx: Any, z: Tensor, W_O: Tensor, bias: Tensor, target: Tensor, weight: Tensor
    ):
        runs, v = z.shape[0], W_O.shape[-1]
        flat_z = z.flatten(1, 2)
        # [run d_vocab query context]
        logits = torch.bmm(W_O[:, 0].transpose(1, 2), flat_z.transpose(1, 2))
        logits = logits.add_(bias[..., None]).view(runs, v, *z.shape[1:3])
        logits.diagonal(dim1=1, dim2=2).add_(1)  # the query token's own embedding
        logits -= logits.amax(1, keepdim=True)
        chosen = logits.gather(1, target[:, None])[:, 0]
        exp = logits.exp_()
        total = exp.sum(1)
        d_logits = exp.mul_((weight / total)[:, None])
        d_logits.scatter_add_(1, target[:, None], -weight[:, None])
        ctx.save_for_backward(flat_z, W_O, d_logits)
        ctx.shape = z.shape
        return ((total.log() - chosen) * weight).sum((1, 2))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor):  # type: ignore[no-untyped-def]
        z, W_O, d_logits = ctx.saved_tensors
        factor, d_logits = grads[0][:, None, None], d_logits.flatten(2)
        W_O = (W_O[:, 0] * factor).transpose(1, 2)
        d_z = torch.bmm(d_logits.transpose(1, 2), W_O).view(ctx.shape)
        d_W_O = (torch.bmm(z.transpose(1, 2), d_logits.transpose(1, 2)) * factor)[:, None]
        return d_z, d_W_O, d_logits.sum(-1) * factor[..., 0], None, None


def cross_entropy(
    z: Float[Tensor, "run query context head"],
    W_O: Float[Tensor, "run 1 head d_model"],
    bias: Float[Tensor, "run d_model"],
    target: Int[Tensor, "run query context"],
    weight: Float[Tensor, "run query context"],
) -> Float[Tensor, " run"]:
    """Next-token cross-entropy of the toy, ``logits = onehot(query) + z W_O + bias``, per run."""
    return _CrossEntropy.apply(z, W_O, bias, target, weight)  # type: ignore[no-untyped-call]
