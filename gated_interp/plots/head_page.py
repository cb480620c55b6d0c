"""A page of cards, one per head: what it does, and the places where it writes most."""

import base64
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import pandas as pd
from jaxtyping import Float, Int
from torch import Tensor

from gated_interp.core.written import change, head_name, interval, share, times
from gated_interp.core.written import token as shown
from gated_interp.plots.head_grid import SIGNS
from gated_interp.plots.templates import rendered

# Tokens of a context before the place of the write.
BEFORE = 24
ROLES = {"source": "reads", "destination": "writes at", "output": "says"}
# A key is marked where it has this share of what the head reads, or would without its gate.
MARKED = 0.05
# By how much a token is more frequent than its base rate, to be named.
CHANCE = 0.05


@runtime_checkable
class Read(Protocol):
    """What :func:`~gated_interp.analysis.read_heads.read_heads` returns."""

    @property
    def table(self) -> pd.DataFrame: ...
    @property
    def details(self) -> pd.DataFrame: ...
    @property
    def contexts(self) -> pd.DataFrame: ...
    @property
    def reads(self) -> Float[Tensor, "context key_pos"]: ...
    @property
    def attends(self) -> Float[Tensor, "context key_pos"]: ...
    @property
    def tokens(self) -> Int[Tensor, "batch pos"]: ...
    @property
    def layer(self) -> int: ...


def head_page(
    title: str,
    summary: str,
    sides: Mapping[str, Read],
    names: Sequence[str],
    facts: Sequence[tuple[str, Sequence[str]]] = (),
    overview: Mapping[str, Any] | None = None,
) -> str:
    """A whole page that needs nothing else: the heads of one layer or of several, side by side.

    Args:
        title, summary: what stands above.
        sides: what was read, by a name such as ``original``.
        names: of tokens; shown as they are, markup included.
        facts: rows of the table above the cards: a name, and one value per side.
        overview: of all layers, before this one: ``title``, ``words``, ``layer`` and ``grids``
            (:func:`~gated_interp.plots.head_grid.head_grids`).
    """
    return rendered(
        "head_page.html.j2",
        title=title,
        summary=summary,
        facts=facts,
        sides=cards(sides, names),
        overview=overview and {**overview, "signs": SIGNS},
    )


def cards(
    sides: Mapping[str, Read],
    names: Sequence[str],
    holds: Mapping[str, Mapping[int, str]] | None = None,
) -> list[dict[str, Any]]:
    """What ``head_cards.html.j2`` draws the cards of each side from; see :func:`head_page`.

    Args:
        holds: by side and head, what it holds, where that is known better than by the positions
            that it alone holds.
    """
    known = {} if holds is None else holds
    return [_side(name, read, names, known.get(name)) for name, read in sides.items()]


def flat(table: pd.DataFrame) -> pd.DataFrame:
    """A table of heads as CSV can hold it: lists of tokens as one text each."""
    lists: dict[str, Any] = {
        name: table[name].map(" | ".join) for name in ("sources", "destinations", "outputs")
    }
    return table.assign(**lists)


def side_stem(name: str) -> str:
    """How the files of a side are called.

    Examples:
        >>> side_stem("layer 0, block")
        'layer-0--block'
    """
    return "".join(c if c.isalnum() else "-" for c in name)


def _side(
    name: str, read: Read, names: Sequence[str], holds: Mapping[int, str] | None
) -> dict[str, Any]:
    largest = max(float(read.table["effect"].max()), 1e-12)
    heads = [_card(row, read, names, largest, holds) for row in read.table.to_dict("records")]
    numbers = flat(read.table).to_csv(index=False, float_format="%.6g").encode()
    return {
        "name": name,
        "title": f"{name}: {len(heads)} heads",
        "stem": side_stem(name),
        # Tokens of text bring their spaces along; others would run into each other.
        "apart": not any(" " in token for token in names),
        "csv": base64.b64encode(numbers).decode(),
        "cards": heads,
    }


def _card(
    row: Mapping[Any, Any],
    read: Read,
    names: Sequence[str],
    largest: float,
    holds: Mapping[int, str] | None,
) -> dict[str, Any]:
    head = row["head"]
    details = read.details[read.details["head"] == head]
    places = read.contexts[read.contexts["head"] == head]
    effect = f"{change(row['effect'])} nats without it"
    ends = interval(row["effect_low"], row["effect_high"], change)
    held = f"alone holds {share(row['held'], 1)} ({row['tokens']} tokens)"
    if holds is not None:
        held = f"holds {holds[head]}" if head in holds else "holds nothing alone"
    return {
        "name": head_name((read.layer, head)),
        "effect": effect,
        "width": f"{100 * min(1.0, max(0.0, row['effect'] / largest)):.1f}",
        "numbers": f"{effect} ({ends}) · writes at {share(row['active'])} of positions · "
        f"{share(row['share'])} of the layer's write · {held}",
        "roles": [
            (
                word,
                [
                    {"token": shown(d["token"]), "said": f"{times(d['lift'])}, {share(d['share'])}"}
                    for d in details[details["role"] == role].to_dict("records")
                    if d["lift"] > 1 + CHANCE
                ],
            )
            for role, word in ROLES.items()
        ],
        "contexts": [
            _context(i, place, read, names) for i, place in places.to_dict("index").items()
        ],
    }


def _context(
    index: Any, place: Mapping[Any, Any], read: Read, names: Sequence[str]
) -> dict[str, Any]:
    position = place["position"]
    reads, attends = (each[index][: position + 1] for each in (read.reads, read.attends))
    first = max(0, min(position - BEFORE, int(reads.argmax()) - 2))
    most, open_share = float(reads.max()), float(attends.sum())
    tokens = []
    for k in range(first, position + 1):
        part, would = (
            float(reads[k]) / max(most, 1e-12),
            float(attends[k]) / max(open_share, 1e-12),
        )
        marked = float(reads[k]) > MARKED * float(reads.sum())
        tokens.append(
            {
                "token": shown(names[int(read.tokens[place["row"], k])]),
                "read": f"{0.1 + 0.5 * part:.2f}" if marked else "",
                "shut": not marked and would > MARKED,
                "here": k == position,
                "tip": f"reads {share(part)} of its most" if marked else "",
            }
        )
    return {"tokens": tokens, "cut": first > 0, "output": shown(place["output"])}
