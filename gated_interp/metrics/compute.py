"""How much of its training a model needed for a loss, read off its loss curve."""

import pandas as pd

from gated_interp.core.errors import GatedInterpError


def training_share(curve: pd.DataFrame, increase: float, steps: int) -> tuple[float, float]:
    """At which share of its training a model had a loss ``increase`` above its last.

    For a replacement this is the pretraining compute that it recovers (Gao et al., 2024, arXiv
    2406.04093), read off the original's own curve. Between two recorded steps nothing is known, so
    the answer is an interval.

    Args:
        curve: columns ``step`` and ``loss`` (nats per token, held out), such as a training's
            history. The last row is the loss at the end.
        increase: nats per token; at most 0 means all of the training.
        steps: of the training, each of which costs the same.

    Returns:
        The last recorded share at which the loss had always been higher, and the first at which it
        was as low. Both are 0 where the curve begins as low.

    Raises:
        GatedInterpError: no rows, or a column is missing.

    Examples:
        >>> curve = pd.DataFrame({"step": [0, 10, 50, 100], "loss": [8.0, 6.0, 4.5, 4.0]})
        >>> training_share(curve, 1.0, 100), training_share(curve, 0.0, 100)
        ((0.1, 0.5), (0.5, 1.0))
    """
    missing = [name for name in ("step", "loss") if name not in curve]
    if missing or curve.empty:
        raise GatedInterpError("bad-curve", missing=missing or ["rows"])
    reached = curve["loss"] <= curve["loss"].iloc[-1] + max(increase, 0.0)
    first = int(reached.to_numpy().argmax())
    share = curve["step"].clip(upper=steps) / steps
    return float(share.iloc[max(first - 1, 0)]), float(share.iloc[first])
