"""How the learning rate and the weight of the gate penalty move over a training."""

import math
from typing import Literal


def learning_rate(
    step: int,
    steps: int,
    lr: float,
    decay: float,
    warmup: float = 0.0,
    shape: Literal["linear", "cosine"] = "linear",
) -> float:
    """``lr``, then over the last fraction ``decay`` of ``steps`` to 0 (at ``steps``).

    Over the first fraction ``warmup`` it rises in a line from 0, a step before the first.

    Examples:
        >>> [learning_rate(step, 8, 1.0, 0.5) for step in (0, 4, 6, 8)]
        [1.0, 1.0, 0.5, 0.0]
        >>> [round(learning_rate(s, 8, 1.0, 0.5, 0.5, "cosine"), 2) for s in (0, 1, 4, 5, 6)]
        [0.25, 0.5, 1.0, 0.85, 0.5]
    """
    left = steps - step
    if step + 1 < warmup * steps:
        return lr * (step + 1) / (warmup * steps)
    if left >= decay * steps:
        return lr
    if shape == "cosine":
        return lr * (1 - math.cos(math.pi * left / (decay * steps))) / 2
    return lr * left / (decay * steps)


def penalty_weight(step: int, steps: int, alpha: float, off: float, ramp: float) -> float:
    """0 for the first fraction ``off`` of ``steps``, linearly to ``alpha`` over the next ``ramp``.

    Examples:
        >>> [penalty_weight(step, 10, 0.2, 0.2, 0.2) for step in (0, 2, 3, 4, 9)]
        [0.0, 0.0, 0.1, 0.2, 0.2]
    """
    # Counted in steps, so that the ends of the ramp are exact.
    past = step - off * steps
    if past < 0:
        return 0.0
    return alpha if past >= ramp * steps else alpha * (past / (ramp * steps))
