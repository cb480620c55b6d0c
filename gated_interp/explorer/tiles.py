"""Where the square patterns of many heads sit in one heat map: one trace draws fastest."""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Shaped

Outline = tuple[list[float | None], list[float | None]]


@dataclasses.dataclass(frozen=True)
class Tiles:
    """``n_heads`` squares of ``size`` cells, ``across`` in a row, one empty cell between them.

    Cell (row, column) of the sheet is at (x = column, y = row), y counting down.

    Examples:
        >>> Tiles(n_heads=3, size=2, across=2).shape
        (10, 5)
    """

    n_heads: int
    size: int
    across: int

    # Above each row of squares stands a row of names, three cells high.
    GAP, NAME = 1, 3

    @property
    def rows(self) -> int:
        """Rows of squares."""
        return math.ceil(self.n_heads / self.across)

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the sheet, in cells."""
        return (
            self.rows * (self.size + self.NAME),
            self.across * (self.size + self.GAP) - self.GAP,
        )

    def corner(self, head: int) -> tuple[int, int]:
        """(row, column) of the first cell of a head's square."""
        return (
            self.NAME + (head // self.across) * (self.size + self.NAME),
            (head % self.across) * (self.size + self.GAP),
        )

    def sheet(
        self, patterns: Float[np.ndarray, "head_index query_pos key_pos"], off: frozenset[int]
    ) -> Shaped[np.ndarray, "row column"]:
        """The patterns on one sheet; ``None`` (blank) between them and where a head is off."""
        # None, not NaN: the table travels to the browser as JSON, which has no NaN.
        out = np.full(self.shape, None)
        length = patterns.shape[1]
        for head in set(range(self.n_heads)) - off:
            row, column = self.corner(head)
            out[row : row + length, column : column + length] = patterns[head]
        return out

    def outlines(self) -> Outline:
        """Lines around every square."""
        return _boxes([(*self.corner(h), self.size, self.size) for h in range(self.n_heads)])

    def query_outlines(self, position: int, length: int, off: frozenset[int]) -> Outline:
        """Lines around the row of one query in the square of every head that is on."""
        corners = [self.corner(h) for h in range(self.n_heads) if h not in off]
        return _boxes([(row + position, column, 1, length) for row, column in corners])

    def labels(self) -> tuple[list[float], list[float]]:
        """x and y of the middle of the name row above every square, then of every square."""
        half = (self.size - 1) / 2
        corners = [self.corner(h) for h in range(self.n_heads)]
        x = [column + half for _, column in corners]
        above = [row - self.NAME / 2 - 0.5 for row, _ in corners]
        return x + x, above + [row + half for row, _ in corners]


def _boxes(boxes: Sequence[tuple[int, int, int, int]]) -> Outline:
    """One broken line around each (row, column, height, width)."""
    x: list[float | None] = []
    y: list[float | None] = []
    for row, column, height, width in boxes:
        left, top = column - 0.5, row - 0.5
        right, bottom = left + width, top + height
        x += [left, right, right, left, left, None]
        y += [top, top, bottom, bottom, top, None]
    return x, y
