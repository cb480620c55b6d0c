"""How heads, tokens and numbers are written in figures, tables, pages and messages: one way.

The explorer writes numbers under the mouse itself, by the same rules (``explorer.js``).
"""

import math
import unicodedata
from collections.abc import Callable
from typing import Any

NONE = "-"
"""What stands where there is no number."""


def head_name(head: tuple[int, int]) -> str:
    """TransformerLens' name of a head, given as (layer, head).

    Examples:
        >>> head_name((0, 3))
        'L0H3'
    """
    return f"L{head[0]}H{head[1]}"


SEEN = {"\n": "⏎", "\t": "⇥"}
# Unicode's categories of characters that cannot be seen, or that turn others around.
UNSEEN = {"Cc", "Cf", "Cs", "Zl", "Zp"}


def token(name: str, space: str = " ") -> str:
    """A token on one line, with a sign for each character that cannot be seen.

    Args:
        space: what stands for a space.

    Examples:
        >>> token(" a\\n"), token("\\x18"), token(" a", "·")
        (' a⏎', '\\\\x18', '·a')
    """
    seen = (SEEN.get(c) or (c if c.isprintable() else ascii(c)[1:-1]) for c in name)
    return "".join(seen).replace(" ", space)


def visible(words: str) -> str:
    """Words on one line, with a sign for each control and format character, and no other change.

    Examples:
        >>> visible("a\\n\\x18 b\\u202e")
        'a⏎\\\\x18 b\\\\u202e'
    """
    return "".join(token(c) if unicodedata.category(c) in UNSEEN else c for c in words)


def quoted(name: str) -> str:
    """A token within a sentence, apart from the words around it.

    Examples:
        >>> f"reads {quoted(',')} and {quoted(' of')}"
        'reads “,” and “ of”'
    """
    return f"“{token(name)}”"


def share(value: float, digits: int = 0) -> str:
    """A part of a whole (0 to 1), in per cent.

    Examples:
        >>> share(0.475), share(0.0472, 1), share(float("nan"))
        ('48%', '4.7%', '-')
    """
    return _signs(f"{value:.{digits}%}") if math.isfinite(value) else NONE


def times(value: float) -> str:
    """How many times something is another.

    Examples:
        >>> times(3.14), times(41.7), times(2500.0)
        ('3.1×', '42×', '2,500×')
    """
    return f"{value:,.{0 if value >= 10 else 1}f}×"


def short(value: float) -> str:
    """A number to two digits that count.

    Examples:
        >>> short(0.00063), short(0.975), short(-12.3)
        ('0.00063', '0.97', '−12')
    """
    return _signs(f"{value:.2g}") if math.isfinite(value) else NONE


def number(value: Any) -> str:
    """A value in a table: a measured number to four digits that count, anything else as it is.

    Examples:
        >>> number(1.23456), number(None), number("L0H1"), number(3)
        ('1.235', '-', 'L0H1', '3')
    """
    try:
        if value is None or value != value:
            return NONE
    except TypeError:  # pandas' NA is neither
        return NONE
    return _signs(f"{value:.4g}") if isinstance(value, float) else str(value)


def change(value: float, digits: int = 3) -> str:
    """A difference, such as one in nats or logits, with its sign; ``0`` where none is seen.

    Examples:
        >>> change(0.1234), change(-2.0, 1), change(-0.0001)
        ('+0.123', '−2.0', '0')
    """
    if not math.isfinite(value):
        return NONE
    said = f"{value:+.{digits}f}"
    return "0" if float(said) == 0 else _signs(said)


def count(some: int, of: int) -> str:
    """So many of all.

    Examples:
        >>> count(61, 64)
        '61 of 64'
    """
    return f"{some} of {of}"


def interval(low: float, high: float, form: Callable[[float], str] = share) -> str:
    """Both ends, each written by ``form``.

    Examples:
        >>> interval(0.94, 0.99), interval(-0.2, 0.1, change)
        ('94% to 99%', '−0.200 to +0.100')
    """
    return f"{form(low)} to {form(high)}" if math.isfinite(low + high) else NONE


def _signs(said: str) -> str:
    return said.replace("-", "−")
