"""What an ablation does to predictions: loss, KL, each case's answer, or any metric of logits."""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from gated_interp.anatomy.batch import Batch
from gated_interp.core.errors import GatedInterpError
from gated_interp.core.precision import wide
from gated_interp.metrics.predictions import leads, loss_and_kl_by_position
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
    intact: Float[Tensor, "batch pos d_vocab"] | None,
    batch: Batch,
    probes: Probes | None,
    metric: MetricFunction | None = None,
    positions: Bool[Tensor, "batch pos"] | None = None,
) -> Outcome:
    """``loss`` and ``kl`` per sequence; with probes, ``logit`` and ``accuracy`` of each.

    Args:
        intact: the intact model's log-probabilities; not needed where there is a ``metric``.
        metric: measured in the place of all these.
        positions: where loss and KL, or a metric of each position, are measured; padding is not.
    """
    if metric is not None:
        return {(metric_name(metric), None): metric_values(metric, logits, batch, positions)}
    measured: Outcome = {}
    assert intact is not None
    # Where outputs are no tokens, the loss of the first of them is made and left aside.
    asked = batch.tokens if batch.next_token else torch.zeros_like(batch.tokens)
    loss, kl = loss_and_kl_by_position(intact, logits, asked)
    if batch.next_token:
        known = None if positions is None else positions[:, :-1]
        measured["loss", None] = mean_over(loss, _both(known, batch.real, batch.predicts))
    measured["kl", None] = mean_over(kl, _both(positions, batch.real, batch.counted))
    if probes is None:
        return measured
    at = wide(logits[probes.row, probes.position])
    logit = at.gather(-1, probes.target[:, None])[:, 0]
    right = (leads(at, probes.target) > 0).to(logit.dtype)
    for b in probes.cases:
        mine = probes.case == b
        measured["logit", b] = logit[mine]
        measured["accuracy", b] = right[mine]
    return measured


def together(parts: list[Outcome]) -> Outcome:
    """What was measured on parts of a batch, as of the whole."""
    names = {name: None for part in parts for name in part}
    whole = {name: torch.cat([part[name] for part in parts if name in part]) for name in names}
    if any(value.numel() == 0 for value in whole.values()):
        raise GatedInterpError("no-positions-to-measure")
    return whole


def metric_values(
    metric: MetricFunction,
    logits: Float[Tensor, "batch pos d_vocab"],
    batch: Batch,
    positions: Bool[Tensor, "batch pos"] | None = None,
) -> Float[Tensor, " value"]:
    """What ``metric`` gives, one value per sequence, or one of all of them."""
    tokens = batch.tokens
    given = metric(logits, tokens)
    value = given if isinstance(given, Tensor) else torch.tensor(given, device=logits.device)
    by_position = value.shape == tokens.shape
    if value.ndim > 0 and not by_position and value.shape != tokens.shape[:1]:
        raise GatedInterpError(
            "metric-wrong-shape",
            shape=tuple(value.shape),
            rows=tuple(tokens.shape[:1]),
            wanted=tuple(tokens.shape),
        )
    if not by_position and (positions is not None or batch.real is not None):
        why = "positions" if positions is not None else "padding"
        raise GatedInterpError(
            "metric-not-by-position", why=why, wanted=tuple(tokens.shape), shape=tuple(value.shape)
        )
    value = wide(value) if value.is_floating_point() else value.double()
    if not by_position:
        return value.reshape(-1)
    return mean_over(value, _both(positions, batch.real, batch.counted))


def _both(positions: Tensor | None, real: Tensor | None, counted: Tensor) -> Tensor | None:
    """The positions that are named and hold a token; ``None`` for all."""
    if real is None:
        return positions
    return counted if positions is None else positions & counted


def mean_over(
    value: Float[Tensor, "batch pos"], positions: Bool[Tensor, "batch pos"] | None
) -> Float[Tensor, " value"]:
    """The mean of each sequence's positions; a sequence in which none is named is left out."""
    if positions is None:
        # Of a single position there is no loss: nothing follows.
        return value.mean(-1) if value.shape[1] else value.new_zeros(len(value))
    n = positions.sum(-1)
    return ((value * positions).sum(-1) / n)[n > 0]
