"""The loss on held-out text out of a training's history: ``loss_curve.py HISTORY CSV``."""

import sys
from pathlib import Path

import pandas as pd

from gated_interp.core.files import write_table


def curve(history: pd.DataFrame) -> pd.DataFrame:
    """``step`` and ``loss`` (nats per token) wherever the training measured it."""
    found = history[["step", "held_out_cross_entropy"]].dropna()
    return found.set_axis(["step", "loss"], axis=1).reset_index(drop=True)


if __name__ == "__main__":
    write_table(curve(pd.read_csv(sys.argv[1])), Path(sys.argv[2]), "%.6g")
