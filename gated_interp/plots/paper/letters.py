"""Which font writes a letter: ours, else the one that comes with matplotlib, else none."""

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from gated_interp.plots.fonts import has, path_of
from gated_interp.plots.paper.items import Drawing
from gated_interp.plots.style import Number

MISSING = "\N{WHITE SQUARE}"


def lacking(drawing: Drawing) -> list[str]:
    """The characters that no font which travels with us or with matplotlib has, in order."""
    words = {c for text in drawing.texts for c in text.words}
    return sorted(c for c in words if not has(c) and c not in _others() and not c.isspace())


def in_fonts(words: str, bold: bool) -> Iterator[tuple[str, str]]:
    """Parts of ``words`` with the file of their font: ours, else DejaVu; else an empty box."""
    part, file = "", ""
    for c in words:
        shown = c if has(c) or c in _others() else MISSING
        mine = path_of("bold" if bold else "normal") if has(shown) else _dejavu()
        if part and mine != file:
            yield part, file
            part = ""
        part, file = part + shown, mine
    if part:
        yield part, file


@cache
def _dejavu() -> str:
    import matplotlib

    return str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf")


@cache
def _others() -> frozenset[str]:
    from fontTools.ttLib import TTFont

    return frozenset(map(chr, TTFont(_dejavu(), lazy=True).getBestCmap()))


@cache
def font(file: str, points: Number) -> Any:
    from matplotlib.font_manager import FontProperties

    return FontProperties(fname=file, size=points)
