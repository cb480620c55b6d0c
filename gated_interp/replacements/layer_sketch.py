"""Which layer a replacement stands in for, or which model: a few numbers made of the weights.

A sketch (a count sketch: each weight times a fixed sign, summed into a few buckets), not a hash. Of
one bit that differs a hash says the same as of another model; the distance of two sketches is about
that of the weights themselves. So a layer stays the same through a round trip in half precision,
and is another one as soon as a block's own error would show it.

Models are told apart more sharply: one that was trained further is another one. Only the last bits
of folded weights, which differ from machine to machine, may differ.
"""

import zlib
from collections.abc import Iterable, Mapping

import numpy as np
import torch
from torch import Tensor

Sketch = tuple[float, ...]
"""``BUCKETS`` numbers."""

BUCKETS = 32
# Of the length of all weights. bfloat16 moves them by 0.2%; another seed by more than 100%.
TOLERANCE = 0.01
# Of a model: float32 is exact to 1e-7.
MODEL_TOLERANCE = 1e-5
ROW = 2**16  # weights that share a sign of their row; so a model is read once, at memory's speed
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
            total += _summed(flat, key)
    return _rounded(total)


@torch.no_grad()
def model_sketch(weights: Iterable[tuple[str, Tensor]]) -> Sketch:
    """The sketch of a model's weights, each with its name.

    Examples:
        >>> len(model_sketch([("embed.W_E", torch.ones(5, 3))]))
        32
    """
    total = np.zeros(BUCKETS)
    for name, weight in weights:
        flat = weight.detach().cpu().float().flatten()
        key = zlib.crc32(name.encode())
        rows = torch.split(flat, ROW)
        signs = torch.from_numpy(_signs(len(rows), key + 1)).float()
        summed = torch.zeros(min(ROW, len(flat)))
        for sign, row in zip(signs, rows, strict=True):
            summed[: len(row)] += sign * row
        total += _summed(summed.double().numpy(), key)
    return _rounded(total)


def _signs(n: int, key: int) -> np.ndarray:
    # A bit generator's raw bits are the same in every version of numpy.
    drawn = np.random.Philox(key=key).random_raw(-(-n // 64)).astype("<u8")
    return 1.0 - 2.0 * np.unpackbits(drawn.view(np.uint8))[:n]


def _summed(flat: np.ndarray, key: int) -> np.ndarray:
    signed = flat * _signs(len(flat), key)
    return np.bincount(np.arange(len(flat)) % BUCKETS, signed, BUCKETS)


def _rounded(total: np.ndarray) -> Sketch:
    return tuple(float(f"{x:.7g}") for x in total)


def same_layer(one: Sketch, other: Sketch) -> bool:
    """Whether two sketches are of one layer, up to rounding.

    Examples:
        >>> same_layer((1.0, 2.0), (1.001, 2.0)), same_layer((1.0, 2.0), (1.0, 3.0))
        (True, False)
    """
    return _near(one, other, TOLERANCE)


def same_model(one: Sketch, other: Sketch) -> bool:
    """Whether two sketches are of one model.

    Examples:
        >>> same_model((1.0, 2.0), (1.0000001, 2.0)), same_model((1.0, 2.0), (1.001, 2.0))
        (True, False)
    """
    return _near(one, other, MODEL_TOLERANCE)


def _near(one: Sketch, other: Sketch, share: float) -> bool:
    a, b = np.array(one), np.array(other)
    return bool(np.linalg.norm(a - b) <= share * max(np.linalg.norm(a), np.linalg.norm(b)))
