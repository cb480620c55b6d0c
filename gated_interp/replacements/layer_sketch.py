"""Which layer a replacement stands in for: a few numbers made of the layer's weights.

A sketch (a count sketch: each weight times a fixed sign, summed into a few buckets), not a hash. Of
one bit that differs a hash says the same as of another model; the distance of two sketches is about
that of the weights themselves. So a layer stays the same through a round trip in half precision,
and is another one as soon as a block's own error would show it.
"""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

Sketch = tuple[float, ...]
"""``BUCKETS`` numbers."""

BUCKETS = 32
# Of the length of all weights. bfloat16 moves them by 0.2%; another seed by more than 100%.
TOLERANCE = 0.01
NAMES = ("W_Q", "W_K", "W_V", "W_O", "b_Q", "b_K", "b_V", "b_O")


@torch.no_grad()
def layer_sketch(weights: Mapping[str, Tensor]) -> Sketch:
    """The sketch of an attention layer's weights, by name; one that is missing counts as zero.

    Examples:
        >>> len(layer_sketch({"b_O": torch.ones(5)}))
        32
    """
    total = np.zeros(BUCKETS)
    for key, name in enumerate(NAMES):
        if name in weights:
            flat = weights[name].detach().cpu().double().flatten().numpy()
            # A bit generator's raw bits are the same in every version of numpy.
            drawn = np.random.Philox(key=key).random_raw(-(-len(flat) // 64)).astype("<u8")
            signs = 1.0 - 2.0 * np.unpackbits(drawn.view(np.uint8))[: len(flat)]
            total += np.bincount(np.arange(len(flat)) % BUCKETS, flat * signs, BUCKETS)
    return tuple(float(f"{x:.7g}") for x in total)


def same_layer(one: Sketch, other: Sketch) -> bool:
    """Whether two sketches are of one layer, up to rounding.

    Examples:
        >>> same_layer((1.0, 2.0), (1.001, 2.0)), same_layer((1.0, 2.0), (1.0, 3.0))
        (True, False)
    """
    a, b = np.array(one), np.array(other)
    return bool(np.linalg.norm(a - b) <= TOLERANCE * max(np.linalg.norm(a), np.linalg.norm(b)))
