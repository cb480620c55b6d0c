"""A page of cards, one per head: what it does, and the places where it writes most."""

import base64
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any, Protocol, runtime_checkable

import pandas as pd
from jaxtyping import Float, Int
from torch import Tensor

# Tokens of a context before the place of the write.
BEFORE = 24
ROLES = {"source": "reads", "destination": "writes at", "output": "says"}
# A key is marked where it has this share of what the head reads, or would without its gate.
MARKED = 0.05


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
) -> str:
    """A whole page that needs nothing else: the heads of one layer or of several, side by side.

    Args:
        title, summary: what stands above.
        sides: what was read, by a name such as ``original``.
        names: of tokens; shown as they are, markup included.
        facts: rows of the table above the cards: a name, and one value per side.
    """
    from jinja2 import Environment

    template = (files("gated_interp.plots") / "head_page.html.j2").read_text(encoding="utf-8")
    page: str = (
        Environment(autoescape=True)
        .from_string(template)
        .render(
            title=title,
            summary=summary,
            facts=facts,
            sides=[_side(name, read, names) for name, read in sides.items()],
        )
    )
    return page


def _side(name: str, read: Read, names: Sequence[str]) -> dict[str, Any]:
    largest = max(float(read.table["effect"].max()), 1e-12)
    cards = [_card(row, read, names, largest) for row in read.table.to_dict("records")]
    numbers = read.table.to_csv(index=False, float_format="%.6g").encode()
    return {
        "name": name,
        "title": f"{name}: {len(cards)} heads",
        "stem": "".join(c if c.isalnum() else "-" for c in name),
        "csv": base64.b64encode(numbers).decode(),
        "cards": cards,
    }


def _card(
    row: Mapping[Any, Any], read: Read, names: Sequence[str], largest: float
) -> dict[str, Any]:
    head = row["head"]
    details = read.details[read.details["head"] == head]
    places = read.contexts[read.contexts["head"] == head]
    effect = f"{row['effect']:+.4f} nats without it"
    return {
        "name": f"L{read.layer}H{head}",
        "effect": effect,
        "width": f"{100 * min(1.0, max(0.0, row['effect'] / largest)):.1f}",
        "numbers": f"{effect} ({row['effect_low']:+.4f} to {row['effect_high']:+.4f}) · writes at "
        f"{row['active']:.0%} of positions · {row['share']:.0%} of the layer's write · "
        f"alone holds {row['held']:.1%} ({row['tokens']} tokens)",
        "roles": [
            (
                word,
                [
                    {"token": shown(d["token"]), "share": f"{d['share']:.0%}"}
                    for d in details[details["role"] == role].to_dict("records")
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
        share, would = (
            float(reads[k]) / max(most, 1e-12),
            float(attends[k]) / max(open_share, 1e-12),
        )
        marked = float(reads[k]) > MARKED * float(reads.sum())
        tokens.append(
            {
                "token": shown(names[int(read.tokens[place["row"], k])]),
                "read": f"{0.1 + 0.5 * share:.2f}" if marked else "",
                "shut": not marked and would > MARKED,
                "here": k == position,
                "tip": f"reads {share:.0%} of its most" if marked else "",
            }
        )
    return {"tokens": tokens, "cut": first > 0, "output": shown(place["output"])}


def shown(token: str) -> str:
    """A token so that a newline is seen.

    Examples:
        >>> shown("\\n")
        '⏎'
    """
    return token.replace("\r", "").replace("\n", "⏎").replace("\t", "⇥")
