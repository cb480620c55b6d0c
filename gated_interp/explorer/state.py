"""What an explorer is set to, and the line of text that says so."""

import dataclasses
from collections.abc import Mapping
from urllib.parse import parse_qsl, urlencode

from gated_interp.analysis.ablation import Method
from gated_interp.analysis.heads import Head, head_name
from gated_interp.core.errors import GatedInterpError
from gated_interp.explorer.notes import Notes
from gated_interp.explorer.notes import said as said_notes


@dataclasses.dataclass(frozen=True)
class ExplorerState:
    """What an explorer is set to.

    Attributes:
        tokens: the example.
        position: where predictions and writes are read.
        off: per model (``original``, ``gated``) the heads that are switched off, as (layer, head).
        method: how they are ablated.
        example: number of the example, from 0; ``None`` for one that was typed.
        layer: whose heads are shown.
        pattern: which of the heads' patterns; unless named, attention × gate where there are gates.
        by_effect: whether the heads with the largest effect come first.
        opened: the model and the head whose pattern is enlarged.
        edge: the query and the key of that head which are taken apart.
        readers: whether the bars at the text show who reads a token, and not what it reads.
        first: whether they show the first token.
        question: what is asked in the place of what the explorer asks by itself: ``token.5``,
            ``difference.5.7``, ``kl`` or ``loss.3.9``.
        other: the second prompt, for patching.
        receiver: where the paths end that are shown: the model, the head (``None`` for the logits)
            and what it receives, one of :data:`~gated_interp.explorer.patches.PARTS`.
        notes: what the reader says of heads, by model and head.
    """

    tokens: tuple[int, ...]
    position: int
    off: Mapping[str, frozenset[Head]]
    method: Method = "zero"
    example: int | None = 0
    layer: int = 0
    pattern: str | None = None
    by_effect: bool = False
    opened: tuple[str, Head] | None = None
    edge: tuple[int, int] | None = None
    readers: bool = False
    first: bool = True
    question: str | None = None
    other: tuple[int, ...] | None = None
    receiver: tuple[str, Head | None, str] | None = None
    notes: Notes = dataclasses.field(default_factory=dict)


def link_of(state: ExplorerState) -> str:
    """``state`` as the query of an address: what is off, read and shown.

    Examples:
        >>> state = ExplorerState((7, 0, 1), 2, {"gated": frozenset({(0, 3)})}, example=None)
        >>> link_of(state)
        'tokens=7.0.1&read=2&off.gated=L0H3'
    """
    example = {} if state.example is None else {"example": str(state.example + 1)}
    # With another seed the number means another text: whatever is about this text names its tokens.
    if not example or state.other is not None or state.notes:
        example["tokens"] = ".".join(map(str, state.tokens))
    said: dict[str, str] = {**example, "read": str(state.position)}
    for name, heads in state.off.items():
        if heads:
            said[f"off.{name}"] = ".".join(map(head_name, sorted(heads)))
    if state.method != "zero":
        said["method"] = state.method
    if state.layer:
        said["layer"] = str(state.layer)
    if state.pattern is not None:
        said["pattern"] = state.pattern
    if state.by_effect:
        said["sort"] = "effect"
    if state.opened is not None:
        said["open"] = f"{state.opened[0]}.{head_name(state.opened[1])}"
        if state.edge is not None:
            said["edge"] = "{}.{}".format(*state.edge)
    if state.question is not None:
        said["ask"] = state.question
    if state.readers:
        said["bars"] = "readers"
    if not state.first:
        said["first"] = "out"
    if state.other is not None:
        said["other"] = ".".join(map(str, state.other))
    if state.receiver is not None:
        model, head, part = state.receiver
        end = "logits" if head is None else f"{head_name(head)}.{part.split()[0]}"
        said["into"] = f"{model}.{end}"
    if state.notes:
        said["notes"] = said_notes(state.notes)
    return urlencode(said)


def link_parts(link: str) -> dict[str, str]:
    """What :func:`link_of` wrote, part by part; also of a whole address that ends in it.

    Examples:
        >>> link_parts("http://127.0.0.1/#example=3&read=2")
        {'example': '3', 'read': '2'}
    """
    said = link.rpartition("#")[2].strip() if isinstance(link, str) else ""
    try:
        parts = dict(parse_qsl(said, strict_parsing=True, max_num_fields=20))
    except ValueError:
        parts = {}
    if not parts.keys() & {"example", "tokens"}:
        raise GatedInterpError("not-a-link")
    return parts


def number(said: str) -> int:
    """A whole number in a link."""
    if not (said.isascii() and said.isdigit() and len(said) < 10):
        raise GatedInterpError("link-without-number", said=said[:20])
    return int(said)
