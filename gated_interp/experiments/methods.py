"""Methods on toys: the recipe of one, with as many heads as fit into equal parameters.

Blocks get as many heads as fit into the parameters of the gated block with four heads per original
head, and the same number of steps.
"""

from gated_interp.experiments.originals import Originals
from gated_interp.experiments.recipes import RELIABLE, Recipe
from gated_interp.training.methods import Method


def at(method: Method, value: float | int | None = None, tried: int | None = None) -> Recipe:
    """The recipe of ``method`` on toys.

    Args:
        value: of the knob; the one in the middle by default.
        tried: which of the settings tried; the chosen one by default.
    """
    recipe = RELIABLE.replace(attempts=1, kind=method.kind)
    changes = {**method.block, **method.train, **method.toy}
    changes |= method.tried[method.chosen if tried is None else tried]
    if len(method.values) > 1:
        middle = method.values[len(method.values) // 2]
        changes[method.knob] = middle if value is None else value
    return recipe.replace(**changes)


def matched(recipe: Recipe, originals: Originals, reference: Recipe = RELIABLE) -> Recipe:
    """``recipe`` with as many heads as fit into the parameters of the ``reference``'s block."""
    most = parameters(reference, originals)
    expansion = 1
    while parameters(recipe.replace(expansion=expansion + 1), originals) <= most:
        expansion += 1
    return recipe.replace(expansion=expansion)


def parameters(recipe: Recipe, originals: Originals) -> int:
    """How many numbers train in the block of ``recipe`` for such an original."""
    config = {n: v for n, v in recipe.block.config.items() if n != "k"}  # of few heads K is more
    plain = recipe.block.replace(scale_output=False, config=config)
    block = plain(originals.example(), originals.task, 0, originals.layer)
    return sum(p.numel() for p in block.parameters() if p.requires_grad)
