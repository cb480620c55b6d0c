"""What is given as text, or as a switch, is one, or is refused."""

from typing import Any

from gated_interp.core.errors import GatedInterpError

SHOWN = 60  # characters of a wrong value that a message repeats


def brief(value: Any) -> str:
    """A value as Python writes it, on one line and not too long.

    Examples:
        >>> brief(["a", 3])
        "['a', 3]"
    """
    said = " ".join(ascii(value).split())
    return said if len(said) <= SHOWN else f"{said[:SHOWN]}…"


def require_words(name: str, value: Any) -> None:
    """Refuse what is no text, and text with half a character, which no tokenizer reads."""
    if not isinstance(value, str):
        raise GatedInterpError("not-words", name=name, value=brief(value))
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise GatedInterpError("half-a-character", name=name, value=brief(value)) from error


def require_switch(name: str, value: Any) -> None:
    """Refuse what is neither ``True`` nor ``False``: ``"no"`` would switch on."""
    if type(value) is not bool:
        raise GatedInterpError("not-a-switch", name=name, value=brief(value))
