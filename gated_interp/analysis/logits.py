"""What an ablation does to predictions: loss, KL, and each trigram's logit and accuracy."""

from jaxtyping import Float, Int
from torch import Tensor

from gated_interp.metrics.predictions import kl_divergence, leads, next_token_loss
from gated_interp.tasks.skip_trigrams import TrigramBatch

# (metric, trigram or None) to one value per sequence or per occurrence.
Outcome = dict[tuple[str, int | None], Tensor]


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
