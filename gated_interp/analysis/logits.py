"""What an ablation does to predictions: loss, KL, each case's answer, or any metric of logits."""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from gated_interp.core.errors import GatedInterpError
from gated_interp.metrics.predictions import kl_by_position, leads, losses_by_position
from gated_interp.tasks.task import Probes

# (metric, case or None) to one value per sequence or per probe.
Outcome = dict[tuple[str, int | None], Tensor]

MetricFunction = Callable[[Tensor, Tensor], Any]
"""From logits ``[batch pos d_vocab]`` and tokens ``[batch pos]`` to a value: of all of them (a
scalar), of each sequence ``[batch]`` or of each position ``[batch pos]``."""


def metric_name(metric: MetricFunction) -> str:
    """How tables call it: by its function's name, a lambda ``metric``."""
    name = getattr(metric, "__name__", "metric")
    return "metric" if name == "<lambda>" else str(name)


def outcome(
    logits: Float[Tensor, "batch pos d_vocab"],
    intact: Float[Tensor, "batch pos d_vocab"],
    tokens: Int[Tensor, "batch pos"],
    probes: Probes | None,
    metric: MetricFunction | None = None,
    positions: Bool[Tensor, "batch pos"] | None = None,
) -> Outcome:
    """``loss`` and ``kl`` per sequence; with probes, ``logit`` and ``accuracy`` of each.

    Args:
        metric: measured in the place of all these.
        positions: where loss and KL, or a metric of each position, are measured.

    Raises:
        GatedInterpError: a metric that gives something else, or no position where it is measured.
    """
    if metric is not None:
        return {(metric_name(metric), None): metric_values(metric, logits, tokens, positions)}
    loss = losses_by_position(logits, tokens)
    kl = kl_by_position(intact.log_softmax(-1), logits.log_softmax(-1))
    measured: Outcome = {
        ("loss", None): mean_over(loss, None if positions is None else positions[:, :-1]),
        ("kl", None): mean_over(kl, positions),
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


def metric_values(
    metric: MetricFunction,
    logits: Float[Tensor, "batch pos d_vocab"],
    tokens: Int[Tensor, "batch pos"],
    positions: Bool[Tensor, "batch pos"] | None = None,
) -> Float[Tensor, " value"]:
    """What ``metric`` gives, one value per sequence, or one of all of them.

    Raises:
        GatedInterpError: of another shape, or not by position where ``positions`` are named.
    """
    given = metric(logits, tokens)
    value = given if isinstance(given, Tensor) else torch.tensor(given, device=logits.device)
    by_position = value.shape == tokens.shape
    if value.ndim > 0 and not by_position and value.shape != tokens.shape[:1]:
        raise GatedInterpError(
            f"the metric gave a value of shape {tuple(value.shape)}; it must be a scalar, [batch] "
            f"or [batch pos], here {tuple(tokens.shape[:1])} or {tuple(tokens.shape)}."
        )
    if positions is not None and not by_position:
        raise GatedInterpError(
            f"with positions, the metric must give a value of each, {tuple(tokens.shape)}; it gave "
            f"shape {tuple(value.shape)}: let it choose its own positions, or leave them out."
        )
    value = value if value.is_floating_point() else value.double()
    return mean_over(value, positions) if by_position else value.reshape(-1)


def mean_over(
    value: Float[Tensor, "batch pos"], positions: Bool[Tensor, "batch pos"] | None
) -> Float[Tensor, " value"]:
    """The mean of each sequence's positions; a sequence in which none is named is left out.

    Raises:
        GatedInterpError: no position is named in any.
    """
    if positions is None:
        # Of a single position there is no loss: nothing follows.
        return value.mean(-1) if value.shape[1] else value.new_zeros(len(value))
    n = positions.sum(-1)
    if not n.any():
        raise GatedInterpError(
            "positions names none where something is measured; name at least one (the last "
            "position predicts nothing, so it has no loss)."
        )
    return ((value * positions).sum(-1) / n)[n > 0]
