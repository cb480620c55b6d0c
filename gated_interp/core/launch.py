"""Whether a launcher (``accelerate launch``, ``torchrun``) started this process, with others."""

import os


def n_processes() -> int:
    """How many were started together; 1 where no launcher did.

    Examples:
        >>> n_processes()
        1
    """
    launched = {"RANK", "MASTER_ADDR"} <= os.environ.keys()
    return int(os.environ.get("WORLD_SIZE", "1")) if launched else 1


def rank() -> int:
    """Which of them this one is, from 0."""
    return int(os.environ["RANK"]) if n_processes() > 1 else 0


def is_main() -> bool:
    """Whether this is the one that prints and writes files."""
    return rank() == 0
