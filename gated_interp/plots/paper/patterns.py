"""Bars, plain and hatched."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from gated_interp.plots.paper.colors import mixed
from gated_interp.plots.paper.items import Frame, Item, Marks, Outline, rectangle
from gated_interp.plots.style import Number

# The directions of the lines of each pattern.
LINES = {"/": ["/"], "\\": ["\\"], "x": ["/", "\\"], "-": ["-"], "|": ["|"], "+": ["-", "|"]}


def hatched(
    frame: Frame, color: str, pattern: Mapping[str, Any], opacity: Number, clip: Frame
) -> Iterator[Item]:
    """A filled rectangle with its pattern."""
    shape = pattern.get("shape") or ""
    over = pattern.get("fillmode") == "overlay"
    ground = color if over or not shape else pattern.get("bgcolor")
    if ground:
        yield rectangle(frame, fill=ground, opacity=opacity, clip=clip)
    if not shape:
        return
    ink = pattern.get("fgcolor") or ("#FFFFFF" if over else color)
    if ground and pattern.get("fgopacity", 1) < 1:
        ink = mixed(ink, ground, pattern["fgopacity"])
    size, solidity = float(pattern.get("size", 8)), float(pattern.get("solidity", 0.3))
    within = _common(frame, clip)
    if shape == ".":
        points = np.array([(x, y) for x in _steps(frame[0], frame[2], size)
                           for y in _steps(frame[1], frame[3], size)])  # fmt: skip
        if len(points):
            across = 2 * size * float(np.sqrt(solidity / np.pi))
            yield Marks(points, "circle", across, ink, clip=within)
        return
    for direction in LINES[shape]:
        points = np.array(list(_lines(frame, direction, size)))
        if len(points):
            # Where lines cross, each takes its share of the ground.
            share = 1 - np.sqrt(1 - solidity) if len(LINES[shape]) > 1 else solidity
            yield Outline(points, stroke=ink, width=size * share, opacity=opacity, clip=within)


def _lines(frame: Frame, direction: str, size: Number) -> Iterator[tuple[Number, Number]]:
    left, top, right, bottom = frame
    nothing = (np.nan, np.nan)
    if direction == "-":
        for y in _steps(top, bottom, size):
            yield from ((left, y), (right, y), nothing)
    elif direction == "|":
        for x in _steps(left, right, size):
            yield from ((x, top), (x, bottom), nothing)
    else:
        # Slanted by 45 degrees; from one line to the next it is `size` along an edge.
        tall = bottom - top
        for x in _steps(left - tall, right, size * np.sqrt(2)):
            ends = ((x, bottom), (x + tall, top)) if direction == "/" else (
                (x, top), (x + tall, bottom))  # fmt: skip
            yield from (*ends, nothing)


def _steps(low: Number, high: Number, size: Number) -> np.ndarray:
    """Multiples of ``size``, so that the patterns of neighbours run on."""
    return np.arange(np.ceil(low / size), np.floor(high / size) + 1) * size


def _common(one: Frame, other: Frame) -> Frame:
    return (max(one[0], other[0]), max(one[1], other[1]),
            min(one[2], other[2]), min(one[3], other[3]))  # fmt: skip
