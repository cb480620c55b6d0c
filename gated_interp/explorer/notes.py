"""What a reader says of heads: pins, names, groups and notes, as a link and a file keep them."""

import dataclasses
import json
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

from gated_interp.analysis.heads import Head, head_name
from gated_interp.core.errors import GatedInterpError
from gated_interp.core.written import UNSEEN
from gated_interp.explorer.words import brief, require_switch

LONGEST = {"name": 40, "group": 40, "note": 600}
"""Characters of each."""
MOST_GROUPS = 8  # of one head
MOST_WORDS = 20_000  # characters of all notes together, as a link keeps them
# Format characters that words of some scripts need; all others only turn text around or hide.
JOINERS = "\u200c\u200d"


@dataclasses.dataclass(frozen=True)
class Note:
    """What a reader says of one head.

    Attributes:
        pinned: whether it stays in view from every layer.
        name: what it is called.
        groups: what it belongs to.
        note: anything else.
    """

    pinned: bool = False
    name: str = ""
    groups: tuple[str, ...] = ()
    note: str = ""


NO_NOTE = Note()
Notes = Mapping[tuple[str, Head], Note]
"""By model and head."""


def note_of(pinned: Any, name: Any, groups: Any, note: Any) -> Note:
    """A note as a browser, a link or a file says it; nothing in it is trusted.

    Raises:
        GatedInterpError: too many characters or groups, or what is no text.

    Examples:
        >>> note_of(True, " previous\\u202e  token ", ["early", "early", ""], "")
        Note(pinned=True, name='previous token', groups=('early',), note='')
    """
    require_switch("pinned", pinned)
    if not isinstance(groups, Sequence) or isinstance(groups, str | bytes):
        raise GatedInterpError("groups-not-names", value=brief(groups))
    some = dict.fromkeys(_cleaned("group", group) for group in groups)
    found = tuple(filter(None, some))
    if len(found) > MOST_GROUPS:
        raise GatedInterpError("too-many-groups", n=len(found), most=MOST_GROUPS)
    return Note(pinned, _cleaned("name", name), found, _cleaned("note", note))


def _cleaned(what: str, words: Any) -> str:
    """``words`` on one line, without what cannot be seen or turns other text around.

    Commas stand between groups, so a group has none.
    """
    if not isinstance(words, str):
        raise GatedInterpError("not-words", name=what, value=brief(words))
    spaced = words.replace(",", " ") if what == "group" else words
    shown = " ".join(spaced.split())
    found = "".join(c for c in shown if c in JOINERS or unicodedata.category(c) not in UNSEEN)
    if len(found) > LONGEST[what]:
        raise GatedInterpError("words-too-long", what=what, n=len(found), most=LONGEST[what])
    return found


def with_note(notes: Notes, key: tuple[str, Head], note: Note) -> Notes:
    """``notes`` with one more, or without it where it says nothing."""
    rest = {k: v for k, v in notes.items() if k != key}
    found = rest if note == NO_NOTE else {**rest, key: note}
    n = len(said(found))
    if n > MOST_WORDS:
        raise GatedInterpError("notes-too-long", n=n, most=MOST_WORDS)
    return found


def said(notes: Notes) -> str:
    """``notes`` as a link says them.

    Examples:
        >>> said({("gated", (0, 3)): Note(True, "copies A")})
        '[["gated","L0H3",true,"copies A",[],""]]'
    """
    rows = [
        [model, head_name(head), *dataclasses.astuple(note)]
        for (model, head), note in sorted(notes.items())
    ]
    return json.dumps(rows, ensure_ascii=False, separators=(",", ":"))


def rows_of(words: str) -> list[list[Any]]:
    """The rows of what :func:`said` wrote: model, head, and the fields of a note."""
    kinds = [str, str, bool, str, list, str]
    try:
        rows = json.loads(words)
        good = isinstance(rows, list) and all(
            isinstance(row, list)
            and [*map(type, row)] == kinds
            and all(isinstance(group, str) for group in row[4])
            for row in rows
        )
    except (ValueError, RecursionError):
        good = False
    if not good:
        raise GatedInterpError("bad-note")
    found: list[list[Any]] = rows
    return found


def labelled(name: str, note: Note | None) -> str:
    """The name of a head with what it is called; direction marks keep that apart.

    Examples:
        >>> labelled("L0H3", None)
        'L0H3'
    """
    return f"{name} \u2068{note.name}\u2069" if note is not None and note.name else name
