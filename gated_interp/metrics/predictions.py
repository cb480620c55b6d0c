"""What predictions are worth: loss, KL divergence, and the lead of a token's logit.

Everything is computed in float32 or better, a part of the positions at a time where logits are
large, so that no second tensor of their size is made (unless gradients are asked for).
"""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from gated_interp.core.errors import GatedInterpError
from gated_interp.core.precision import wide

AT_ONCE = 2**18
"""Logits that are worked on at once: they stay in the cache, and copies of them cost no memory."""


def require_finite_logits(logits: Float[Tensor, "*shape d_vocab"]) -> None:
    """Refuse predictions that are none: what is computed from them would look like a result."""
    if not bool(logits.isfinite().all()):
        raise GatedInterpError("logits-not-finite")


def next_token_loss(
    logits: Float[Tensor, "batch pos d_vocab"],
    tokens: Int[Tensor, "batch pos"],
    counted: Bool[Tensor, "batch pos-1"] | None = None,
) -> Float[Tensor, " batch"]:
    """Next-token cross-entropy in nats, mean over the positions that have a next token.

    The first token is predicted by nothing, the last position predicts nothing; of a single
    position the loss is 0.

    Args:
        counted: the positions that the mean is over; all but the last unless given.

    Examples:
        >>> even = torch.zeros(2, 3, 8)
        >>> next_token_loss(even, torch.zeros(2, 3, dtype=torch.long)).exp().round().tolist()
        [8.0, 8.0]
    """
    if tokens.shape[1] == 1:
        return wide(logits).new_zeros(tokens.shape[0])
    return row_means(losses_by_position(logits, tokens), counted)


def losses_by_position(
    logits: Float[Tensor, "batch pos d_vocab"], tokens: Int[Tensor, "batch pos"]
) -> Float[Tensor, "batch pos-1"]:
    """Next-token cross-entropy in nats at each position that has a next token.

    Examples:
        >>> tokens = torch.zeros(2, 3, dtype=torch.long)
        >>> losses_by_position(torch.zeros(2, 3, 8), tokens).exp().round()[0].tolist()
        [8.0, 8.0]
    """
    following = tokens[:, 1:]

    def losses(part: Tensor, rows: slice, positions: slice) -> Tensor:
        ids = following[rows, positions]
        each = torch.nn.functional.cross_entropy(
            wide(part).flatten(0, 1), ids.flatten(), reduction="none"
        )
        return each.view_as(ids)

    return _by_parts(losses, logits[:, :-1])


def kl_divergence(
    logits_p: Float[Tensor, "batch pos d_vocab"],
    logits_q: Float[Tensor, "batch pos d_vocab"],
    counted: Bool[Tensor, "batch pos"] | None = None,
) -> Float[Tensor, " batch"]:
    """``KL(p || q) = sum over tokens of p (log p - log q)`` in nats, mean over positions.

    Range 0 (same predictions) upwards.

    Args:
        counted: the positions that the mean is over; all unless given.
    """
    return row_means(kl_by_position(logits_p, logits_q), counted)


def kl_by_position(
    logits_p: Float[Tensor, "batch pos d_vocab"], logits_q: Float[Tensor, "batch pos d_vocab"]
) -> Float[Tensor, "batch pos"]:
    """``KL(p || q)`` in nats at each position."""

    def divergence(p: Tensor, rows: slice, positions: slice) -> Tensor:
        log_q = wide(logits_q[rows, positions]).log_softmax(-1)
        return _divergence(wide(p).log_softmax(-1), log_q)

    return _by_parts(divergence, logits_p)


def log_probabilities(
    logits: Float[Tensor, "batch pos d_vocab"],
) -> Float[Tensor, "batch pos d_vocab"]:
    """The logarithm of each token's probability, for :func:`loss_and_kl_by_position`."""
    return wide(logits).log_softmax(-1)


def loss_and_kl_by_position(
    log_p: Float[Tensor, "batch pos d_vocab"],
    logits_q: Float[Tensor, "batch pos d_vocab"],
    tokens: Int[Tensor, "batch pos"],
) -> tuple[Float[Tensor, "batch pos-1"], Float[Tensor, "batch pos"]]:
    """:func:`losses_by_position` of ``q`` and :func:`kl_by_position`, with one softmax of ``q``.

    Args:
        log_p: see :func:`log_probabilities`.

    Examples:
        >>> p, q = torch.zeros(1, 3, 8), torch.arange(24.0).view(1, 3, 8)
        >>> loss, kl = loss_and_kl_by_position(log_probabilities(p), q, torch.tensor([[0, 1, 2]]))
        >>> loss.round().tolist(), kl.round().tolist()
        ([[6.0, 5.0]], [[2.0, 2.0, 2.0]])
    """
    following = tokens.roll(-1, 1)[..., None]

    def both(q: Tensor, rows: slice, positions: slice) -> Tensor:
        log_q = wide(q).log_softmax(-1)
        loss = -log_q.gather(-1, following[rows, positions])
        kl = _divergence(log_p[rows, positions], log_q)
        return torch.cat([loss, kl[..., None]], -1)

    found = _by_parts(both, logits_q)
    return found[:, :-1, 0], found[..., 1]


def _divergence(log_p: Tensor, log_q: Tensor) -> Tensor:
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def row_means(
    values: Float[Tensor, "batch pos"], counted: Bool[Tensor, "batch pos"] | None
) -> Float[Tensor, " batch"]:
    """The mean of each row over the positions that count; 0 where none does."""
    if counted is None:
        return values.mean(-1)
    return (values * counted).sum(-1) / counted.sum(-1).clamp(min=1)


def _by_parts(
    function: Callable[[Tensor, slice, slice], Tensor], logits: Float[Tensor, "batch pos d_vocab"]
) -> Float[Tensor, "batch pos *each"]:
    """``function`` of parts of ``logits`` and where they are, put together again."""
    batch, pos, d_vocab = logits.shape
    at_once = AT_ONCE if logits.numel() > 8 * AT_ONCE else AT_ONCE // 8
    if torch.is_grad_enabled() or logits.numel() <= at_once:
        # Gradients keep all of it anyhow, and those of parts would each be as large as the whole.
        return function(logits, slice(None), slice(None))
    width = min(pos, max(1, at_once // d_vocab))
    height = max(1, at_once // (max(1, pos) * d_vocab))
    found = []
    for row in range(0, batch, height):
        rows = slice(row, row + height)
        parts = [slice(first, first + width) for first in range(0, pos, max(1, width))]
        each = [function(logits[rows, part], rows, part) for part in parts]
        found.append(torch.cat(each, 1) if len(each) > 1 else each[0])
    return torch.cat(found) if len(found) > 1 else found[0]


def leads(
    logits: Float[Tensor, "*shape d_vocab"], target: Int[Tensor, "*shape"]
) -> Float[Tensor, "*shape"]:
    """The target's logit minus the largest other logit; positive where the target is on top.

    Examples:
        >>> leads(torch.tensor([[3.0, 1.0, 0.0], [3.0, 1.0, 0.0]]), torch.tensor([0, 1])).tolist()
        [2.0, -2.0]
    """
    require_finite_logits(logits)
    mine = logits.gather(-1, target[..., None])
    others = logits.scatter(-1, target[..., None], -torch.inf)
    return mine[..., 0] - others.amax(-1)
