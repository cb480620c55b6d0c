"""A composed figure to SVG, PDF or PNG, by matplotlib.

Matplotlib's own settings, and whatever its user has chosen, have no part in it: everything is
painted under its defaults, at px that are known, in the package's font.
"""

import io
import logging
import re
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from html import escape
from typing import Any

import numpy as np

from gated_interp.plots.fonts import NAME
from gated_interp.plots.paper.colors import rgba
from gated_interp.plots.paper.items import DASHES, Cells, Drawing, Frame, Item, Marks, Outline, Text
from gated_interp.plots.paper.letters import font, in_fonts
from gated_interp.plots.paper.spec import SYMBOLS
from gated_interp.plots.style import Number

PX_PER_INCH, POINTS = 96.0, 0.75
_SETTINGS: dict[str, Any] = {
    "svg.fonttype": "path", "svg.hashsalt": "gated-interp", "pdf.fonttype": 42,
    "text.hinting": "none", "text.hinting_factor": 1, "text.kerning_factor": 0,
}  # fmt: skip
_ONE_AT_A_TIME = threading.RLock()
_SHORTER = re.compile(r"-?\d+\.\d{3,}")


def painted(drawing: Drawing, kind: str, scale: Number = 3) -> bytes:
    """The picture, the same bytes each time.

    Args:
        kind: ``svg`` (letters as outlines), ``pdf`` (letters as text, with their font), ``png``.
        scale: PNG pixels per px; grids of colours in the others have as many.
    """
    out = io.BytesIO()
    with _own_settings():
        from matplotlib.figure import Figure

        size = drawing.width / PX_PER_INCH, drawing.height / PX_PER_INCH
        canvas = Figure(figsize=size, dpi=PX_PER_INCH, facecolor=drawing.ground)
        painter = _Painter(canvas, drawing.height)
        for item in drawing.items:
            painter.add(item)
        metadata = _about(kind, drawing.title)
        canvas.savefig(out, format=kind, dpi=PX_PER_INCH * scale, metadata=metadata)
    return _described(out.getvalue()) if kind == "svg" else out.getvalue()


def _about(kind: str, title: str) -> dict[str, Any]:
    """What a file says of itself: its title, and no time, which would differ each time."""
    if kind == "svg":
        return {"Date": None, "Creator": None, "Title": title}
    return {"CreationDate": None, "Title": title} if kind == "pdf" else {"Software": None}


class _Painter:
    def __init__(self, canvas: Any, height: Number):
        from matplotlib.transforms import Affine2D

        self.canvas = canvas
        per_inch = Affine2D().scale(1 / PX_PER_INCH, -1 / PX_PER_INCH)
        self.place = per_inch.translate(0, height / PX_PER_INCH) + canvas.dpi_scale_trans
        self.order = 0

    def add(self, item: Item) -> None:
        kinds = {Text: self._text, Outline: self._outline, Marks: self._marks, Cells: self._cells}
        kinds[type(item)](item)  # type: ignore[operator]

    def _put(self, artist: Any, clip: Frame | None = None) -> None:
        from matplotlib.transforms import Bbox, TransformedBbox

        self.order += 1
        artist.set_zorder(self.order)
        artist.set_figure(self.canvas)
        self.canvas.add_artist(artist, clip=False)
        if clip is not None:
            edges = Bbox.from_extents(clip[0], clip[1], clip[2], clip[3])
            artist.set_clip_box(TransformedBbox(edges, self.place))

    def _outline(self, item: Outline) -> None:
        from matplotlib.patches import PathPatch
        from matplotlib.path import Path as Curve

        path = Curve(*_path(item.points, item.fill is not None))
        dash = DASHES[item.dash]
        unit = max(item.width, 1.0) * POINTS
        self._put(
            PathPatch(
                path,
                transform=self.place,
                facecolor=_faint(item.fill, item.opacity),
                edgecolor=_faint(item.stroke, item.opacity),
                linewidth=item.width * POINTS if item.stroke else 0,
                linestyle=(0, tuple(d * unit for d in dash)) if dash else "solid",
                capstyle="butt",
                joinstyle="round" if item.fill is None else "miter",
            ),
            item.clip,
        )

    def _marks(self, item: Marks) -> None:
        from matplotlib.lines import Line2D

        symbol, larger = SYMBOLS[item.symbol]
        stroked = item.stroke is not None and item.width > 0
        at = item.points[np.isfinite(item.points).all(axis=1)]
        self._put(
            Line2D(
                at[:, 0],
                at[:, 1],
                transform=self.place,
                linestyle="none",
                marker=symbol,
                markersize=item.size * larger * POINTS,
                markerfacecolor=rgba(item.fill) if item.fill != "none" else "none",
                markeredgecolor=rgba(item.stroke) if stroked and item.stroke else "none",
                markeredgewidth=item.width * POINTS if stroked else 0,
            ),
            item.clip,
        )

    def _cells(self, item: Cells) -> None:
        from matplotlib.image import BboxImage
        from matplotlib.transforms import Bbox, TransformedBbox

        left, top, right, bottom = item.frame
        box = TransformedBbox(Bbox.from_extents(left, bottom, right, top), self.place)
        smooth = item.colors.shape[0] == 256 and item.colors.shape[1] == 1
        image = BboxImage(box, interpolation="bilinear" if smooth else "nearest", origin="lower")
        image.set_data(np.round(item.colors * 255).astype(np.uint8))
        self._put(image)

    def _text(self, item: Text) -> None:
        from matplotlib.text import Text as Words

        along = item.start
        for run in item.runs:
            for words, file in in_fonts(run.words, run.bold):
                dx, dy = {0: (along, 0.0), 90: (0.0, -along), -90: (0.0, along)}[item.angle]
                self._put(
                    Words(
                        item.x + dx,
                        item.y + dy,
                        words,
                        transform=self.place,
                        color=rgba(run.color),
                        fontproperties=font(file, item.size * POINTS),
                        ha="left",
                        va="baseline",
                        rotation=item.angle % 360,
                        rotation_mode="anchor",
                        parse_math=False,
                    )
                )
                along += type(run)(words, run.bold, run.color).width(item.size)


def _faint(color: str | None, opacity: Number) -> Any:
    if color is None:
        return "none"
    r, g, b, a = rgba(color)
    return r, g, b, a * opacity


def _path(points: np.ndarray, closed: bool) -> tuple[np.ndarray, np.ndarray]:
    """Vertices and codes of matplotlib's path; ``nan`` begins a new line."""
    from matplotlib.path import Path as Curve

    there = np.isfinite(points).all(axis=1)
    starts = there & ~np.concatenate([[False], there[:-1]])
    codes = np.where(starts, Curve.MOVETO, Curve.LINETO)[there].astype(np.uint8)
    kept = points[there]
    if closed and len(kept):
        ends = np.flatnonzero(np.concatenate([codes[1:] == Curve.MOVETO, [True]]))
        kept = np.insert(kept, ends + 1, kept[ends], axis=0)
        codes = np.insert(codes, ends + 1, Curve.CLOSEPOLY)
    return kept, codes


@contextmanager
def _own_settings() -> Iterator[None]:
    """Matplotlib as it comes, for as long as this takes; its backend is not touched."""
    # Of caches and fonts that it looks for, which we do not need, it would say something.
    log = logging.getLogger("matplotlib")
    with _ONE_AT_A_TIME, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        level = log.level
        log.setLevel(logging.ERROR)
        try:
            import matplotlib
            import matplotlib.font_manager
        finally:
            log.setLevel(level)
        own = {k: v for k, v in matplotlib.rcParamsDefault.items() if "backend" not in k}
        with matplotlib.rc_context({**own, **_SETTINGS}):
            yield


def _described(image: bytes) -> bytes:
    """The SVG with its words as labels of their outlines, for who reads with a screen reader."""
    svg = image.decode("utf-8")
    found = re.sub(
        r"<!-- (.+?) -->\s*<g ",
        lambda m: f'<g class="text" aria-label="{escape(m[1])}" ',
        svg,
    )
    # A hundredth of a point is finer than any printer; long names and blanks say nothing.
    found = re.sub(r"(?<= d=\")[^\"]+", lambda m: _SHORTER.sub(_rounded, m[0]), found)
    for long, short in ((f"{NAME}-Bold-", "b"), (f"{NAME}-", "n")):
        found = found.replace(long, short)
    found = re.sub(r"\n\s*(?=[MLQCZz\d-])", " ", found)
    return re.sub(r"\n\s+", "\n", found).encode("utf-8")


def _rounded(match: re.Match[str]) -> str:
    return f"{float(match[0]):.2f}".rstrip("0").rstrip(".")
