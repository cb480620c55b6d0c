"""Plotly's little markup, and numbers as axes write them."""

import html
import math
import re
from typing import Any

import numpy as np

from gated_interp.plots.paper.items import ASCENT, DESCENT, PITCH, Anchor, Run, Text
from gated_interp.plots.style import Number

TAG = re.compile(r"(<br\s*/?>|</?b>|<span style=\"color:[^\"]+\">|</span>)")
FILLED = re.compile(r"%\{(\w+)(?::([^}]*))?\}")
MINUS = "−"


def lines(words: str, color: str) -> list[tuple[Run, ...]]:
    """The lines of marked-up ``words``, each in runs of one weight and colour.

    Examples:
        >>> lines("<b>a</b> &lt;b<br>c", "red")[0][1].words
        ' <b'
    """
    found: list[list[Run]] = [[]]
    bold, colors = False, [color]
    for part in TAG.split(words):
        if part.startswith("<br"):
            found.append([])
        elif part in ("<b>", "</b>"):
            bold = part == "<b>"
        elif part.startswith("<span"):
            colors.append(part.split("color:")[1].split('"')[0].rstrip(";"))
        elif part == "</span>":
            colors = colors[:-1] or [color]
        elif part:
            found[-1].append(Run(html.unescape(part), bold, colors[-1]))
    return [tuple(runs) for runs in found]


def block(
    words: str, x: Number, y: Number, size: Number, color: str, *, anchor: Anchor = "left",
    valign: str = "bottom", angle: int = 0, kind: str = "note",
) -> list[Text]:  # fmt: skip
    """Lines of text whose ``anchor`` and ``valign`` stand at (x, y); turned by ``angle``."""
    rows = lines(words, color)
    tall = (len(rows) - 1) * PITCH * size
    # From (x, y) to the baseline of the first line, downwards as the text is read.
    down = {
        "bottom": -DESCENT * size - tall,
        "middle": ASCENT * size / 2 - tall / 2,
        "top": ASCENT * size + 0.15 * size,
    }[valign]
    found = []
    for i, runs in enumerate(rows):
        off = down + i * PITCH * size
        at = {0: (x, y + off), 90: (x + off, y), -90: (x - off, y)}[angle]
        if any(run.words.strip() for run in runs):
            found.append(Text(runs, *at, size, anchor, angle, kind))
    return found


def number(value: Number, form: str) -> str:
    """``value`` in the format ``form`` (as Python and d3 both read it), with a true minus sign.

    Examples:
        >>> number(-0.125, ".1%"), number(-0.0, ".1f")
        ('−12.5%', '0.0')
    """
    said = format(float(value), form or ".12g")
    said = said.replace("-", MINUS)
    return said[1:] if said.startswith(MINUS) and not re.search("[1-9]", said) else said


def plain(value: Number, step: Number, thousands: bool = True) -> str:
    """A tick's number, with as many decimals as the ``step`` between ticks needs.

    Examples:
        >>> plain(0.30000000000000004, 0.1, True), plain(12000, 2000), plain(-2e-6, 1e-6)
        ('0.3', '12k', '−2e−6')
    """
    for size, sign in ((1e6, "M"), (1e3, "k")) if thousands else ():
        if step >= size:
            return number(value / size, ".6g") + sign if value else "0"
    if 0 < step < 1e-4:
        return re.sub(r"e−0*", "e−", number(value, ".3g"))
    # By its digits: 0.25 has two, though it is nearer to 0.1 than to 0.01.
    decimals = next((d for d in range(6) if math.isclose(round(step, d), step, rel_tol=1e-6)), 6)
    return number(value, f".{decimals}f")


def filled(template: str, **values: Any) -> str:
    """A template such as ``%{z:.2f}`` with its values."""

    def value(match: re.Match[str]) -> str:
        given = values[match[1]]
        if isinstance(given, str):
            return given
        return "" if given is None or np.isnan(given) else number(given, match[2] or "")

    return FILLED.sub(value, template)
