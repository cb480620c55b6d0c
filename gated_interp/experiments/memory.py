"""How much memory a cell needs, before it is started."""

import os

from gated_interp.core.errors import GatedInterpError
from gated_interp.experiments.recipes import Recipe
from gated_interp.experiments.seeds import HELD_OUT, stack_size

# A process with torch and TransformerLens imported, before it does anything.
PROCESS = 500 * 2**20
# Copies of the largest tensors that are alive at once, in a training step, in an analysis and of
# the data; fitted to peaks that were measured.
STEP_COPIES, ANALYSIS_COPIES, DATA_COPIES = 16, 10, 2
EXAMPLES = 1000


def cell_bytes(heads: int, trigrams: int, recipe: Recipe, seeds: int, n_positions: int = 11) -> int:
    """About how many bytes a process needs to train and judge one cell, itself included.

    Counted: a stack's data, the tables and activations of a training step, and the verdict's and
    the hooked model's activations. Measured from 2 to 64 heads it is right within a factor of
    two.
    """
    runs, v = min(seeds, stack_size(heads, recipe)), 2 * trigrams + 2
    gated = recipe.block.heads(heads)
    positions = recipe.training.batch_size * n_positions  # of each run in a step
    pool = runs * recipe.training.n_sequences * n_positions * (v + 8)
    original = runs * recipe.training.n_sequences * n_positions * (heads + 1) * 4
    step = STEP_COPIES * runs * 4 * (positions * (v + 2 * gated) + 2 * gated * v * v)
    hooked = HELD_OUT * gated * n_positions * n_positions * 4
    verdict = EXAMPLES * gated * v * 4
    return PROCESS + DATA_COPIES * (pool + original) + step + ANALYSIS_COPIES * max(hooked, verdict)


def machine_bytes() -> int | None:
    """The memory of this machine; ``None`` where it does not say."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None


def require_memory(
    heads: int, trigrams: int, recipe: Recipe, seeds: int, workers: int, there: int | None
) -> None:
    """Refuse a cell of which ``workers`` at a time would not fit into ``there`` bytes."""
    needed = workers * cell_bytes(heads, trigrams, recipe, seeds)
    if there is not None and needed > there:
        raise GatedInterpError(
            "too-little-memory",
            heads=heads,
            trigrams=trigrams,
            needed=needed / 2**30,
            workers=workers,
            there=there / 2**30,
        )
