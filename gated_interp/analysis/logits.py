"""What an ablation does to predictions: loss, KL, and logit and accuracy of each case's answer."""

from jaxtyping import Float, Int
from torch import Tensor

from gated_interp.metrics.predictions import kl_divergence, leads, next_token_loss
from gated_interp.tasks.task import Probes

# (metric, case or None) to one value per sequence or per probe.
Outcome = dict[tuple[str, int | None], Tensor]


def outcome(
    logits: Float[Tensor, "batch pos d_vocab"],
    intact: Float[Tensor, "batch pos d_vocab"],
    tokens: Int[Tensor, "batch pos"],
    probes: Probes | None,
) -> Outcome:
    """``loss`` and ``kl`` per sequence; with probes, ``logit`` and ``accuracy`` of each."""
    measured: Outcome = {
        ("loss", None): next_token_loss(logits, tokens),
        ("kl", None): kl_divergence(intact.log_softmax(-1), logits.log_softmax(-1)),
    }
    if probes is None:
        return measured
    at = logits[probes.row, probes.position]
    logit = at.gather(-1, probes.target[:, None])[:, 0]
    right = (leads(at, probes.target) > 0).to(logit.dtype)
    for b in probes.cases:
        mine = probes.case == b
        measured["logit", b] = logit[mine]
        measured["accuracy", b] = right[mine]
    return measured
