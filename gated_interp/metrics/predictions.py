"""What predictions are worth: loss, KL divergence, and the lead of a token's logit."""

import torch
from jaxtyping import Float, Int
from torch import Tensor


def next_token_loss(
    logits: Float[Tensor, "batch pos d_vocab"], tokens: Int[Tensor, "batch pos"]
) -> Float[Tensor, " batch"]:
    """Next-token cross-entropy in nats, mean over the positions that have a next token.

    The first token is predicted by nothing, the last position predicts nothing; of a single
    position the loss is 0.

    Examples:
        >>> even = torch.zeros(2, 3, 8)
        >>> next_token_loss(even, torch.zeros(2, 3, dtype=torch.long)).exp().round().tolist()
        [8.0, 8.0]
    """
    if tokens.shape[1] == 1:
        return logits.new_zeros(tokens.shape[0])
    return losses_by_position(logits, tokens).mean(-1)


def losses_by_position(
    logits: Float[Tensor, "batch pos d_vocab"], tokens: Int[Tensor, "batch pos"]
) -> Float[Tensor, "batch pos-1"]:
    """Next-token cross-entropy in nats at each position that has a next token.

    Examples:
        >>> tokens = torch.zeros(2, 3, dtype=torch.long)
        >>> losses_by_position(torch.zeros(2, 3, 8), tokens).exp().round()[0].tolist()
        [8.0, 8.0]
    """
    each = torch.nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten(), reduction="none"
    )
    return each.reshape(len(tokens), -1)


def kl_divergence(
    log_p: Float[Tensor, "batch pos d_vocab"], log_q: Float[Tensor, "batch pos d_vocab"]
) -> Float[Tensor, " batch"]:
    """``KL(p || q) = sum over tokens of p (log p - log q)`` in nats, mean over positions.

    Range 0 (same predictions) upwards.
    """
    return kl_by_position(log_p, log_q).mean(-1)


def kl_by_position(
    log_p: Float[Tensor, "batch pos d_vocab"], log_q: Float[Tensor, "batch pos d_vocab"]
) -> Float[Tensor, "batch pos"]:
    """``KL(p || q)`` in nats at each position."""
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def leads(
    logits: Float[Tensor, "*shape d_vocab"], target: Int[Tensor, "*shape"]
) -> Float[Tensor, "*shape"]:
    """The target's logit minus the largest other logit; positive where the target is on top.

    Examples:
        >>> leads(torch.tensor([[3.0, 1.0, 0.0], [3.0, 1.0, 0.0]]), torch.tensor([0, 1])).tolist()
        [2.0, -2.0]
    """
    mine = logits.gather(-1, target[..., None])
    others = logits.scatter(-1, target[..., None], -torch.inf)
    return mine[..., 0] - others.amax(-1)
