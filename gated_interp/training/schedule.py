"""How the learning rate and the weight of the gate penalty move over a training."""


def learning_rate(step: int, steps: int, lr: float, decay: float) -> float:
    """``lr``, then over the last fraction ``decay`` of ``steps`` linearly to 0 (at ``steps``).

    Examples:
        >>> [learning_rate(step, 8, 1.0, 0.5) for step in (0, 4, 6, 8)]
        [1.0, 1.0, 0.5, 0.0]
    """
    left = steps - step
    return lr if left >= decay * steps else lr * left / (decay * steps)


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
