"""How spread and how mixed representations are over heads, each as a pure function.

The *loading* of representation ``b`` on head ``h``, ``L[b,h]``, is the head's share of the
representation's logit: at the case's B, the head's write to the logit of C minus its mean write
to all other tokens, averaged over examples. (Adding one number to every logit changes no
prediction, so only the difference counts.) Every measure takes loadings
``[*replicate representation head_index]`` and gives one value per replicate.
"""

import torch
from jaxtyping import Float, Int
from scipy.optimize import linear_sum_assignment
from torch import Tensor

CARRIES = 0.1
"""A head carries a representation when it holds at least this share of its loadings."""


def example_loadings(
    writes: Float[Tensor, "example head_index d_vocab"], target: Int[Tensor, " example"]
) -> Float[Tensor, "example head_index"]:
    """Each head's write to the target's logit minus its mean write to every other token.

    Any real number, in logits: positive where the head argues for the target.

    Examples:
        >>> example_loadings(torch.tensor([[[3.0, 1.0, 0.0]]]), torch.tensor([0])).tolist()
        [[2.5]]
    """
    d_vocab = writes.shape[-1]
    index = target[:, None, None].expand(-1, writes.shape[1], 1)
    mine = writes.gather(-1, index)[..., 0]
    return (mine * d_vocab - writes.sum(-1)) / (d_vocab - 1)


def shares(
    loading: Float[Tensor, "*replicate representation head_index"],
) -> Float[Tensor, "*replicate representation head_index"]:
    """``|L[b,h]| / sum over heads of |L[b,.]|``: 0 to 1, each representation's sum to 1.

    Zero throughout for a representation that no head writes.
    """
    size = loading.abs()
    total = size.sum(-1, keepdim=True)
    return torch.where(total > 0, size / total.where(total > 0, 1), 0)


def participation_ratio(
    loading: Float[Tensor, "*replicate representation head_index"],
) -> Float[Tensor, "*replicate representation"]:
    """``1 / sum over heads of share^2``: over how many heads a representation is spread, evenly
    counted.

    From 1 (one head) to the number of heads (all the same); 0 where no head writes it.

    Examples:
        >>> participation_ratio(torch.tensor([[4.0, 0.0], [1.0, 1.0], [3.0, 1.0]])).tolist()
        [1.0, 2.0, 1.600000023841858]
    """
    squares = shares(loading).square().sum(-1)
    return torch.where(squares > 0, 1 / squares.where(squares > 0, 1), 0)


def top1_mass(
    loading: Float[Tensor, "*replicate representation head_index"],
) -> Float[Tensor, "*replicate representation"]:
    """The largest share: from ``1 / n_heads`` (evenly spread) to 1 (one head); 0 if unwritten."""
    return shares(loading).amax(-1)


def carries(
    loading: Float[Tensor, "*replicate representation head_index"], threshold: float = CARRIES
) -> Float[Tensor, "*replicate representation head_index"]:
    """1 where the head holds at least ``threshold`` of the representation, else 0."""
    return (shares(loading) >= threshold).to(loading.dtype)


def heads_per_representation(
    loading: Float[Tensor, "*replicate representation head_index"],
) -> Float[Tensor, "*replicate representation"]:
    """How many heads carry each representation, 0 to the number of heads; 1 is one to one."""
    return carries(loading).sum(-1)


def representations_per_head(
    loading: Float[Tensor, "*replicate representation head_index"],
) -> Float[Tensor, "*replicate head_index"]:
    """How many representations each head carries, 0 (idle) to all of them; above 1 is mixed."""
    return carries(loading).sum(-2)


def purity(
    loading: Float[Tensor, "*replicate representation head_index"],
) -> Float[Tensor, "*replicate"]:
    """The mean share of each representation on its head in the best one-to-one assignment.

    ``max over assignments a of sum over b of share[b, a(b)] / n_representations``, a head being
    given to at most one representation. 1 when each has a head of its own; at most
    ``n_heads / n_representations`` where there are too few heads. Hungarian method.

    Examples:
        >>> round(purity(torch.tensor([[2.0, 0.0], [0.0, 2.0], [1.0, 1.0]])).item(), 4)
        0.6667
    """
    share = shares(loading)
    flat = share.reshape(-1, *share.shape[-2:])
    best = []
    for one in flat:
        rows, columns = linear_sum_assignment(one.cpu().numpy(), maximize=True)
        best.append(one[rows, columns].sum() / one.shape[0])
    return torch.stack(best).reshape(share.shape[:-2])


def cancellation(writes: Float[Tensor, "example head_index d_vocab"]) -> Float[Tensor, " example"]:
    """How much heads undo each other: ``1 - sum_v |sum_h w[h,v]| / sum_v sum_h |w[h,v]|``.

    ``w`` are the heads' writes to the logits, each centred over the vocabulary. 0 where heads
    agree about every token (or one writes alone), 1 where they write and the sum is nothing; 0
    where nothing is written.

    Examples:
        >>> w = torch.tensor([[[2.0, -2.0, 0.0], [-1.0, 1.0, 0.0]]])
        >>> round(cancellation(w).item(), 4)  # 1 - (1 + 1) / (3 + 3)
        0.6667
    """
    w = writes - writes.mean(-1, keepdim=True)
    written = w.abs().sum((1, 2))
    left = w.sum(1).abs().sum(-1)
    return torch.where(written > 0, 1 - left / written.where(written > 0, 1), 0)
