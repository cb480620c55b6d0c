"""How this process was started: by a launcher (``accelerate launch``, ``torchrun``), with -OO."""

import os
import re
import sys

from gated_interp.core.errors import GatedInterpError


def require_docstrings() -> None:
    """Nothing, unless Python leaves docstrings out: transformers reads its own."""
    if sys.flags.optimize > 1:
        raise GatedInterpError("no-docstrings")


def n_processes() -> int:
    """How many were started together; 1 where no launcher did.

    Examples:
        >>> n_processes()
        1
    """
    return _launched()[0]


def rank() -> int:
    """Which of them this one is, from 0."""
    try:
        return _launched()[1]
    except GatedInterpError:  # which somebody has to tell
        return 0


def is_main() -> bool:
    """Whether this is the one that prints and writes files."""
    return rank() == 0


def _launched() -> tuple[int, int]:
    """How many processes, and which this is."""
    if not {"RANK", "MASTER_ADDR"} <= os.environ.keys():
        return 1, 0
    said = {name: os.environ.get(name, "1") for name in ("WORLD_SIZE", "RANK")}
    for name, number in said.items():
        if not re.fullmatch("[0-9]{1,9}", number):
            raise GatedInterpError("bad-launcher-variable", name=name, value=number)
    world = max(int(said["WORLD_SIZE"]), 1)
    return world, int(said["RANK"]) if world > 1 else 0
