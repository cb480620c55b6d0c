"""Round trained models and put them where the package looks: ``ship.py FILE …``.

The last 11 of the 24 bits of a weight say little (a relative 1.2e-4) and are much of what does not
compress; zero, they keep the wheel small.
"""

import sys
from pathlib import Path

import torch

from gated_interp.checkpoints.checkpoint import load, save

SHIPPED = Path(__file__).parents[1] / "gated_interp" / "checkpoints" / "shipped_models"
DROPPED = 11


@torch.no_grad()
def rounded(weight: torch.Tensor, dropped: int = DROPPED) -> torch.Tensor:
    """``weight`` to the nearest float32 whose last ``dropped`` bits are zero."""
    bits = weight.contiguous().view(torch.int32)
    return ((bits + (1 << (dropped - 1))) >> dropped << dropped).view(torch.float32)


def main(paths: list[str]) -> None:
    for path in map(Path, paths):
        model = load(path)
        for weight in model.parameters():
            weight.data = rounded(weight.data)
        save(model, SHIPPED / path.name, notes=model.notes)


if __name__ == "__main__":
    main(sys.argv[1:])
