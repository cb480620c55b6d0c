"""What predictions are worth: loss, KL, and the logit and accuracy of each trigram's C."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from gated_interp.tasks.skip_trigrams import TrigramBatch

# (metric, trigram or None) to one value per sequence or per occurrence.
Outcome = dict[tuple[str, int | None], Tensor]


def next_token_loss(
    logits: Float[Tensor, "batch pos d_vocab"], tokens: Int[Tensor, "batch pos"]
) -> Float[Tensor, " batch"]:
    """Next-token cross-entropy in nats, mean over the positions that have a next token.

    A single position has none; its loss is 0.
    """
    if tokens.shape[1] == 1:
        return logits.new_zeros(tokens.shape[0])
    log_p = logits[:, :-1].log_softmax(-1)
    return -log_p.gather(-1, tokens[:, 1:, None])[..., 0].mean(-1)


def kl_divergence(
    log_p: Float[Tensor, "batch pos d_vocab"], log_q: Float[Tensor, "batch pos d_vocab"]
) -> Float[Tensor, " batch"]:
    """``KL(p || q) = sum over tokens of p (log p - log q)`` in nats, mean over positions.

    Range 0 (same predictions) upwards.
    """
    return (log_p.exp() * (log_p - log_q)).sum(-1).mean(-1)


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


def outcome(
    logits: Float[Tensor, "batch pos d_vocab"],
    intact: Float[Tensor, "batch pos d_vocab"],
    tokens: Int[Tensor, "batch pos"],
    batch: TrigramBatch | None,
) -> Outcome:
    """``loss`` and ``kl`` per sequence; with a batch, ``logit`` and ``accuracy`` per occurrence."""
    measured: Outcome = {
        ("loss", None): next_token_loss(logits, tokens),
        ("kl", None): kl_divergence(intact.log_softmax(-1), logits.log_softmax(-1)),
    }
    if batch is None:
        return measured
    at = logits[batch.example, batch.destination_pos]
    target = tokens[batch.example, batch.destination_pos + 1]
    logit = at.gather(-1, target[:, None])[:, 0]
    right = (leads(at, target) > 0).to(logit.dtype)
    for b in sorted(set(batch.trigram.tolist())):
        mine = batch.trigram == b
        measured["logit", b] = logit[mine]
        measured["accuracy", b] = right[mine]
    return measured
