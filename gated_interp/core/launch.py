"""How this process was started: by a launcher (``accelerate launch``, ``torchrun``), with -OO."""

import os
import sys

from gated_interp.core.errors import GatedInterpError


def require_docstrings() -> None:
    """Nothing, unless Python leaves docstrings out: transformers reads its own.

    Raises:
        GatedInterpError: it does.
    """
    if sys.flags.optimize > 1:
        raise GatedInterpError(
            "Python was started without docstrings (-OO or PYTHONOPTIMIZE=2), which transformers "
            "needs; start it with them."
        )


def n_processes() -> int:
    """How many were started together; 1 where no launcher did.

    Raises:
        GatedInterpError: a launcher's variables that are no numbers.

    Examples:
        >>> n_processes()
        1
    """
    for name in ("WORLD_SIZE", "RANK") if _launched() else ():
        if (said := os.environ.get(name, "1")) != str(_number(name, 1)):
            raise GatedInterpError(
                f"the environment variable {name} is {said!r}; a launcher sets a whole number: "
                "unset RANK and MASTER_ADDR to train in one process."
            )
    return max(_number("WORLD_SIZE", 1), 1) if _launched() else 1


def rank() -> int:
    """Which of them this one is, from 0."""
    return _number("RANK", 0) if _launched() and _number("WORLD_SIZE", 1) > 1 else 0


def is_main() -> bool:
    """Whether this is the one that prints and writes files."""
    return rank() == 0


def _launched() -> bool:
    return {"RANK", "MASTER_ADDR"} <= os.environ.keys()


def _number(name: str, otherwise: int) -> int:
    said = os.environ.get(name, "")
    return int(said) if said.isascii() and said.isdigit() and len(said) < 10 else otherwise
