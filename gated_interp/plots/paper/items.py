"""What a picture consists of: words, outlines, marks and grids of colour, in px from its top left.

All of it is plain values, so that a test can ask where every word stands.
"""

import dataclasses
from collections.abc import Sequence
from typing import Literal

import numpy as np

from gated_interp.plots.fonts import text_width
from gated_interp.plots.style import Number

# Left, top, right, bottom.
Frame = tuple[Number, Number, Number, Number]
Anchor = Literal["left", "center", "right"]
# Of a line of text, in its size: above the baseline, below it, and from one line to the next.
ASCENT, DESCENT, PITCH = 0.73, 0.21, 1.3
HANGING = frozenset("gjpqyQ,;()[]{}_|/$@")
DASHES: dict[str, tuple[Number, ...]] = {"solid": (), "dot": (2, 2), "dash": (5, 4)}


@dataclasses.dataclass(frozen=True)
class Run:
    """Words in one weight and colour."""

    words: str
    bold: bool
    color: str

    def width(self, size: Number) -> float:
        """Px across."""
        # The words are plain here, and markup is not counted where widths are.
        plain = self.words.replace("&", "&amp;")
        return text_width(plain, size, "bold" if self.bold else "normal")


@dataclasses.dataclass(frozen=True)
class Text:
    """A line of text.

    Attributes:
        x, y: where its ``anchor`` is, on the baseline.
        angle: degrees counter-clockwise: 0, 90 (reads upwards) or -90.
        kind: what it is: ``tick``, ``title``, ``legend``, ``note``, ``cell``.
    """

    runs: tuple[Run, ...]
    x: Number
    y: Number
    size: Number
    anchor: Anchor = "left"
    angle: int = 0
    kind: str = "note"

    @property
    def words(self) -> str:
        """What it says."""
        return "".join(run.words for run in self.runs)

    @property
    def width(self) -> float:
        """Px along the baseline."""
        return sum(run.width(self.size) for run in self.runs)

    @property
    def start(self) -> float:
        """Px along the baseline from the anchor to the first letter."""
        return {"left": 0.0, "center": -0.5, "right": -1.0}[self.anchor] * self.width

    @property
    def box(self) -> Frame:
        """From the top of capitals to the baseline, or to the foot of a g where there is one."""
        before, after = self.start, self.start + self.width
        up = ASCENT * self.size
        down = DESCENT * self.size if HANGING & set(self.words) else 0.0
        if self.angle == 90:
            return self.x - up, self.y - after, self.x + down, self.y - before
        if self.angle == -90:
            return self.x - down, self.y + before, self.x + up, self.y + after
        return self.x + before, self.y - up, self.x + after, self.y + down


@dataclasses.dataclass(frozen=True)
class Outline:
    """Lines, or filled shapes, through points; ``nan`` begins a new one.

    Attributes:
        points: ``[point, 2]``.
        clip: outside which nothing is drawn.
    """

    points: np.ndarray
    stroke: str | None = None
    width: Number = 1.0
    dash: str = "solid"
    fill: str | None = None
    opacity: Number = 1.0
    clip: Frame | None = None


@dataclasses.dataclass(frozen=True)
class Marks:
    """The same sign at many points.

    Attributes:
        points: ``[point, 2]``.
        size: px across.
    """

    points: np.ndarray
    symbol: str
    size: Number
    fill: str
    stroke: str | None = None
    width: Number = 0.0
    clip: Frame | None = None


@dataclasses.dataclass(frozen=True)
class Cells:
    """A grid of colours.

    Attributes:
        colors: ``[row, column, 4]``, red, green, blue and opacity from 0 to 1, top row first.
    """

    colors: np.ndarray
    frame: Frame


Item = Text | Outline | Marks | Cells


@dataclasses.dataclass(frozen=True)
class Drawing:
    """A composed figure.

    Attributes:
        width, height: in px of 1/96 inch.
        items: in the order in which they are painted.
        panels: the data areas.
        legend: around the legend, where there is one.
        title: what it says, in plain words.
    """

    width: Number
    height: Number
    ground: str
    items: Sequence[Item]
    panels: Sequence[Frame]
    legend: Frame | None
    title: str

    @property
    def texts(self) -> list[Text]:
        """All words on it."""
        return [item for item in self.items if isinstance(item, Text)]


def line(*points: tuple[Number, Number], **look: object) -> Outline:
    """A line through ``points``."""
    return Outline(np.array(points, dtype=float), **look)  # type: ignore[arg-type]


def rectangle(frame: Frame, **look: object) -> Outline:
    """The outline of ``frame``."""
    left, top, right, bottom = frame
    return line((left, top), (right, top), (right, bottom), (left, bottom), (left, top), **look)
