"""Automatic circuit discovery: edges are cut one after another and stay cut where they can."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from gated_interp.analysis.attribute.cut import Cutter
from gated_interp.analysis.attribute.graph import Graph
from gated_interp.analysis.attribute.prompts import Prompts
from gated_interp.core.errors import GatedInterpError

THRESHOLDS = tuple(float(x) for x in np.geomspace(0.001, 0.3, 8))


def acdc(
    prompts: Prompts, graph: Graph, thresholds: Sequence[float] | None = None
) -> tuple[Float[Tensor, "batch edge"], Float[Tensor, " edge"]]:
    """The change of the metric as each edge was tried, and the largest threshold that keeps it."""
    chosen = sorted(THRESHOLDS if thresholds is None else thresholds)
    if not chosen or chosen[0] <= 0:
        raise GatedInterpError("thresholds-not-positive", thresholds=list(chosen))
    cutter, pairs = Cutter(prompts, graph), graph.there.nonzero().tolist()
    prompts.require_change()
    size = float((prompts.after - prompts.before).mean().abs())
    tried = prompts.before.new_zeros(len(prompts), len(pairs))
    kept = torch.zeros(len(pairs))
    for threshold in chosen:
        cut, now = torch.zeros_like(graph.there), prompts.before
        for i in reversed(range(len(pairs))):
            trial = cut.clone()
            trial[tuple(pairs[i])] = True
            then = cutter.metric(trial)
            if threshold == chosen[0]:
                tried[:, i] = then - now
            if float((then - now).mean().abs()) < threshold * size:
                cut, now = trial, then
            else:
                kept[i] = threshold
    return tried, kept
