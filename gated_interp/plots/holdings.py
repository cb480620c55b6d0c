"""Who holds what, as plain values, and how it is said in a few words."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from gated_interp.core.errors import GatedInterpError
from gated_interp.plots.inputs import array, between
from gated_interp.plots.style import MUTED, PALETTE, text

HELD, SHARED = PALETTE[0], PALETTE[1]
# The orange of what is shared, dark enough to be read as text.
SHARED_TEXT = "#9A6600"


@dataclasses.dataclass(frozen=True)
class Holdings:
    """Who holds what in one model; a verdict and its loadings, as plain values.

    Attributes:
        name: of the model, as in ``"toy"``.
        heads: one label per head, as in ``"L0H0"``.
        shares: ``[representation, head]``, each head's share of the representation, 0 to 1.
        holders: by representation, the indices of the heads that hold it (by ablation: sufficient,
            necessary, specific); none where it is spread over heads.
        not_learnt: the representations that are not learnt.
        dead: indices of heads that write nothing.
    """

    name: str
    heads: Sequence[str]
    shares: ArrayLike
    holders: Mapping[int, Sequence[int]]
    not_learnt: Sequence[int] = ()
    dead: Sequence[int] = ()


def checked(side: Holdings, representations: Mapping[int, str]) -> np.ndarray:
    """The shares ``[representation, head]``, once everything in ``side`` fits."""
    sizes = {"representation": len(representations)}
    name = f"the shares of {side.name!r}"
    shares = array(name, side.shares, "representation head", sizes)
    between(name, shares, 0, 1)
    for b in [*side.holders, *side.not_learnt]:
        if b not in representations:
            raise GatedInterpError(
                "no-such-representation", side=side.name, representation=b, rows=[*representations]
            )
    for h in [*side.dead, *(h for heads in side.holders.values() for h in heads)]:
        if not 0 <= h < sizes["head"]:
            raise GatedInterpError(
                "figure-names-no-such-head", side=side.name, head=h, last=sizes["head"] - 1
            )
    return shares


def state(side: Holdings, b: int) -> Literal["held", "shared", "not learnt"]:
    """What representation ``b`` is in this model."""
    if b in side.not_learnt:
        return "not learnt"
    return "held" if side.holders.get(b) else "shared"


def answers(side: Holdings, representations: Mapping[int, str]) -> list[tuple[str, str]]:
    """What stands at the right of each row: who holds it, and in which colour."""
    words = {"not learnt": ("not learnt", MUTED), "shared": ("no single head", SHARED_TEXT)}
    return [
        words.get(state(side, b)) or (" or ".join(side.heads[h] for h in side.holders[b]), HELD)
        for b in representations
    ]


def headline(
    side: Holdings, representations: Mapping[int, str], word: str = "trigram"
) -> tuple[str, str]:
    """The panel in one line, from its labels alone."""
    states = [state(side, b) for b in representations]
    shared, missing = states.count("shared"), states.count("not learnt")
    if not shared and not missing:
        return f"each of {len(states)} {word}s held by one head", HELD
    parts = []
    if shared == 1:
        label = list(representations.values())[states.index("shared")]
        parts.append(f"{text(label)} held by no single head")
    elif shared:
        parts.append(f"{shared} of {len(states)} {word}s held by no single head")
    if missing:
        parts.append(f"{missing} not learnt")
    return ", ".join(parts), SHARED_TEXT if shared else MUTED


def named_heads(
    heads: Sequence[str], marks: Mapping[int, str] | None
) -> tuple[list[str], list[str]]:
    """Heads with the marks of some, by index: as they are measured, and as they are drawn.

    Examples:
        >>> named_heads(["L0H0", "L0H1"], {1: "C2"})
        (['L0H0', 'L0H1 C2'], ['L0H0', 'L0H1 <span style="color:#0072B2">C2</span>'])
    """
    said = {h: text(words) for h, words in (marks or {}).items()}
    plain = [f"{head} {said[h]}" if h in said else head for h, head in enumerate(heads)]
    drawn = [
        f'{head} <span style="color:{HELD}">{said[h]}</span>' if h in said else head
        for h, head in enumerate(heads)
    ]
    return plain, drawn
