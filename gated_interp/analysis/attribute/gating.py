"""Causal head gating: a gate on each head is fitted twice, drawn open and drawn shut.

After Nam et al. (2025, arXiv 2505.13737): gates between 0 and 1 multiply what each head writes, and
minimise ``loss(gates) - weight * mean(logit(gates))``, from where a fit without weight ended. A
positive weight gives G+, a negative one G-. What stays open while it is drawn shut facilitates.
What shuts while it is drawn open interferes. What goes where it is drawn is irrelevant.
"""

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from gated_interp.analysis.attribute.prompts import Prompts
from gated_interp.analysis.attribute.stream import Edit, z_name
from gated_interp.analysis.heads import all_heads, head_counts, head_name, intervened
from gated_interp.core.errors import GatedInterpError
from gated_interp.core.seeds import generator

WEIGHT, CLAMP, RATE = 0.1, 4.0, 0.2
"""Of the penalty; where logits of gates stop to count in it; Adam's learning rate."""
ROLES = ("facilitating", "irrelevant", "interfering")


def head_gates(prompts: Prompts, steps: int, seed: int) -> tuple[Tensor, Tensor]:
    """``G+`` and ``G-`` of every head, each ``[head]``.

    Raises:
        GatedInterpError: a metric that is a function, without corrupted prompts to say which way is
            worse.
    """
    sign = 1.0
    if not isinstance(prompts.metric, str):
        change = float((prompts.after - prompts.before).mean())
        if change == 0:
            raise GatedInterpError("metric-constant", metric=prompts.name)
        sign = float(np.sign(change))
    n = len(all_heads(prompts.model))
    first = torch.rand(n, generator=generator(seed)).clamp(1e-3, 1 - 1e-3).logit()
    device = prompts.before.device
    start = _fitted(prompts, first.to(device), sign, 0.0, steps)
    up, down = (_fitted(prompts, start, sign, weight, steps) for weight in (WEIGHT, -WEIGHT))
    return up.sigmoid(), down.sigmoid()


def _fitted(
    prompts: Prompts, start: Float[Tensor, " head"], sign: float, weight: float, steps: int
) -> Float[Tensor, " head"]:
    """Logits of gates after ``steps`` steps of Adam on all prompts at once."""
    logits = start.clone().requires_grad_()
    adam = torch.optim.Adam([logits], lr=RATE)
    for _ in range(steps):
        grad = torch.zeros_like(logits)
        for rows in prompts.rows():
            with torch.enable_grad(), intervened(prompts.model, _edits(prompts, logits.sigmoid())):
                values = prompts.values(prompts.logits(prompts.clean[rows]), rows)
            grad += prompts.gradients(values, [logits])[0] * (sign / len(prompts))
        drawn = logits.detach().abs() < CLAMP
        logits.grad = grad - weight * drawn.to(grad) / len(logits)
        adam.step()
    return logits.detach()


def _edits(prompts: Prompts, gates: Float[Tensor, " head"]) -> dict[str, Edit]:
    """Each layer's ``z`` times the gates of its heads."""

    def edit(mine: Tensor) -> Edit:
        return lambda z: z * mine[:, None].to(z)

    each = torch.split(gates, head_counts(prompts.model))
    return {z_name(layer): edit(mine) for layer, mine in enumerate(each)}


def roles_of(names: list[str], up: Tensor, down: Tensor) -> pd.DataFrame:
    """How much each head is of each role, and which it is most."""
    shares = torch.stack([down, up * (1 - down), 1 - up], 1).cpu()
    table = pd.DataFrame({"node": names, **dict(zip(ROLES, shares.T.tolist(), strict=True))})
    return table.assign(role=[ROLES[i] for i in shares.argmax(1).tolist()])


def gated(prompts: Prompts, steps: int, seed: int) -> tuple[list[str], Tensor, pd.DataFrame]:
    """Names of heads, their scores from -1 (interfering) to 1 (facilitating), and their roles."""
    names = [head_name(head) for head in all_heads(prompts.model)]
    up, down = head_gates(prompts, steps, seed)
    return names, up + down - 1, roles_of(names, up, down)
