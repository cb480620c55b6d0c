"""The font of every figure, which travels with the package: Liberation Sans, as wide as Arial.

It has another name here, as what we do not use was cut from it (``tests/cut_fonts.py``).
Figures are measured and drawn with it whatever fonts a machine has. SVG pictures hold its
outlines, PDF and pages a subset of it, under the family name :data:`FAMILY` gives first.
"""

import base64
import html
import io
import json
from collections.abc import Iterable
from functools import cache
from importlib.resources import files

from fontTools.ttLib import TTFont

NAME = "gated-interp"
# The rest is for a notebook, where a page's font is not ours: all are about as wide.
FAMILY = f"{NAME}, Liberation Sans, Arial, Arimo, Helvetica, DejaVu Sans Condensed, sans-serif"
WEIGHTS = {"normal": "gated-interp.ttf", "bold": "gated-interp-Bold.ttf"}
# What a subset holds in any case: ASCII, Latin-1, Greek, punctuation, arrows, mathematics.
ALWAYS = ((0x20, 0x7E), (0xA0, 0xFF), (0x370, 0x3FF), (0x2010, 0x2044), (0x2190, 0x2265))


def text_width(label: str, size: float | int = 9.5, weight: str = "normal") -> float:
    """How many pixels wide ``label`` is drawn at font ``size`` (px); markup is not counted.

    Examples:
        >>> text_width("A", 2048), text_width("&lt;", 10) == text_width("<", 10)
        (1366.0, True)
    """
    widths = _advances(weight)
    units = sum(widths.get(ord(c), widths[ord("m")]) for c in html.unescape(label))
    return units * size / _units(weight)


def has(character: str) -> bool:
    """Whether the font can write ``character``."""
    return ord(character) in _advances("normal")


def path_of(weight: str) -> str:
    """The file of the font in ``weight``."""
    return str(files(__name__) / WEIGHTS[weight])


def font_face(characters: Iterable[str] = ()) -> str:
    """CSS rules that bring along a subset of the font, as data.

    Args:
        characters: that it must hold besides the usual ones.
    """
    usual = {chr(code) for low, high in ALWAYS for code in range(low, high + 1)}
    more = "".join(sorted(set(characters) | usual))
    rules = []
    for weight in WEIGHTS:
        data = base64.b64encode(_subset(weight, more)).decode("ascii")
        rules.append(
            f'@font-face {{ font-family: "{NAME}"; font-weight: {weight}; '
            f"src: url(data:font/woff;base64,{data}); }}"
        )
    return "\n".join(rules)


def loaded_script() -> str:
    """JavaScript: a promise that is kept once the page's font can be measured."""
    wanted = ", ".join(f"document.fonts.load({json.dumps(f'{w} 16px {NAME}')})" for w in WEIGHTS)
    return f"Promise.all([{wanted}])"


@cache
def _file(weight: str) -> bytes:
    return (files(__name__) / WEIGHTS[weight]).read_bytes()


@cache
def _font(weight: str) -> TTFont:
    return TTFont(io.BytesIO(_file(weight)), lazy=True)


@cache
def _units(weight: str) -> int:
    return int(_font(weight)["head"].unitsPerEm)


@cache
def _advances(weight: str) -> dict[int, int]:
    """Width of each code point in font units."""
    font = _font(weight)
    metrics = font["hmtx"]
    return {code: int(metrics[name][0]) for code, name in font.getBestCmap().items()}


@cache
def _subset(weight: str, characters: str) -> bytes:
    """A WOFF of these characters, under one name."""
    from fontTools import subset  # slow to import, and most figures stay in memory

    options = subset.Options(
        flavor="woff",
        hinting=False,
        name_IDs=[0, 13, 14],
        notdef_outline=True,
    )
    font = TTFont(io.BytesIO(_file(weight)), recalcTimestamp=False)
    cutter = subset.Subsetter(options)
    cutter.populate(text=characters)
    cutter.subset(font)
    for key in (1, 4, 6):
        font["name"].setName(NAME, key, 3, 1, 0x409)
    font.flavor = "woff"
    out = io.BytesIO()
    font.save(out)
    return out.getvalue()
