"""Programs over tokens whose variables are known: what a known circuit computes.

A program is a list of variables, each computed at every position from the tokens and the variables
before it; the last one is the answer. Interchanging a variable between two sequences says what a
model that implements the program must then answer.
"""

import dataclasses
import string
from collections.abc import Callable, Mapping, Sequence

import torch
from jaxtyping import Int
from torch import Tensor

Ids = Int[Tensor, "batch pos"]
Values = dict[str, Tensor]
NONE = -1
"""The value of a variable where it has none."""
BOS, NOISE = "BOS", tuple(string.ascii_lowercase)


@dataclasses.dataclass(frozen=True)
class Program:
    """A program: its tokens, its variables and the sequences that it is asked about.

    Attributes:
        says: what it answers at the last position, in a sentence.
        tokens: a name for each token.
        n_positions: tokens in a sequence.
        draw: sequences ``[batch pos]``; those without an answer are thrown away.
        variables: by name, the value at each position from the tokens and earlier variables.
        reads: for each variable, what it is computed from: ``tokens`` or variables, by the role in
            which a head reads it (``q``, ``k``, ``v``), or ``""`` for an MLP.
    """

    says: str
    tokens: Sequence[str]
    n_positions: int
    draw: Callable[[int, torch.Generator], Ids]
    variables: Mapping[str, Callable[[Ids, Values], Ids]]
    reads: Mapping[str, Mapping[str, Sequence[str]]] = dataclasses.field(default_factory=dict)

    def run(self, tokens: Ids, given: Mapping[str, Ids] | None = None) -> Values:
        """Every variable by name, ``[batch pos]``; those ``given`` are taken as they are.

        Examples:
            >>> tokens = torch.tensor([[1, 2, 1]])
            >>> PROGRAMS["induction"].run(tokens)["copy"].tolist()
            [[-1, -1, 2]]
        """
        values: Values = {}
        for name, compute in self.variables.items():
            values[name] = given[name] if given and name in given else compute(tokens, values)
        return values

    def answers(self, tokens: Ids, given: Mapping[str, Ids] | None = None) -> Ids:
        """The answer after each position; :data:`NONE` where there is none."""
        return self.run(tokens, given)[self.output]

    @property
    def output(self) -> str:
        """The variable that is the answer."""
        return list(self.variables)[-1]


def before(tokens: Ids) -> Ids:
    """The token before each position."""
    return torch.cat([torch.full_like(tokens[:, :1], NONE), tokens[:, :-1]], 1)


def seen(here: Tensor) -> Ids:
    """1 from the first position on where ``here`` holds, 0 before."""
    return (here.cumsum(1) > 0).long()


def followers(wanted: Ids, previous: Ids, tokens: Ids) -> Ids:
    """At each position, the token that came after ``wanted``, where all of these are the same."""
    match = (previous[:, None] == wanted[..., None]) & (wanted[..., None] != NONE)
    match &= torch.ones_like(match[0]).tril()
    after = tokens[:, None].expand_as(match)
    least = after.masked_fill(~match, len(string.printable)).amin(2)
    most = after.masked_fill(~match, NONE).amax(2)
    return torch.where(least == most, most, NONE)


def _anything(n_tokens: int, length: int, first: int = 0) -> Callable[[int, torch.Generator], Ids]:
    """Sequences of any tokens from ``first`` on, each as likely."""
    return lambda n, source: first + torch.randint(n_tokens, (n, length), generator=source)


def _repeats(n: int, source: torch.Generator) -> Ids:
    """Sequences of 12 tokens whose last one stood somewhere before."""
    tokens = torch.randint(12, (n, 12), generator=source)
    at = torch.randint(11, (n, 1), generator=source)
    tokens[:, -1:] = tokens.gather(1, at)
    return tokens


def _marked(n: int, source: torch.Generator) -> Ids:
    """Sequences with one marker, neither first nor last."""
    tokens = torch.randint(8, (n, 10), generator=source)
    at = 1 + torch.randint(8, (n, 1), generator=source)
    return tokens.scatter(1, at, 8)


def _two_signals(n: int, source: torch.Generator) -> Ids:
    """Noise with A in half of the sequences, and B in half of them."""
    tokens = torch.randint(6, (n, 10), generator=source)
    at = torch.rand(n, 10, generator=source).argsort(1)[:, :2]
    there = torch.rand(n, 2, generator=source) < 0.5
    signals = torch.where(there, torch.tensor([6, 7]), tokens.gather(1, at))
    return tokens.scatter(1, at, signals)


LETTERS, BEFORE = 5, 4
"""Letters of each kind in a program of two, and tokens before its question."""


def _two_letters(n: int, source: torch.Generator, asked: int) -> Ids:
    """A capital and a small letter among noise, and then questions."""
    tokens = 2 * LETTERS + 2 + torch.randint(3, (n, BEFORE), generator=source)
    at = torch.rand(n, BEFORE, generator=source).argsort(1)[:, :2]
    letters = torch.randint(LETTERS, (n, 2), generator=source) + torch.tensor([0, LETTERS])
    order = torch.rand(n, 2, generator=source).argsort(1)[:, :asked]
    return torch.cat([tokens.scatter(1, at, letters), 2 * LETTERS + order], 1)


def _letter(tokens: Ids, first: int, asked: Tensor) -> Ids:
    """The letter from ``first`` on that came, where it is asked."""
    there = (tokens >= first) & (tokens < first + LETTERS)
    letter = tokens.where(there, NONE).amax(1, keepdim=True)
    return letter.expand_as(tokens).where(asked, NONE)


def _after_bos(n_tokens: int, length: int) -> Callable[[int, torch.Generator], Ids]:
    """BOS (token 0) and then any of ``n_tokens``."""
    rest = _anything(n_tokens, length - 1, 1)
    return lambda n, source: torch.nn.functional.pad(rest(n, source), (1, 0))


def _running(values: Callable[[Ids], Ids]) -> Mapping[str, Callable[[Ids, Values], Ids]]:
    """A program of one step: nothing at BOS, and after it what ``values`` says."""
    return {"answer": lambda t, v: values(t).index_fill(1, torch.tensor([0]), NONE)}


def _same_so_far(tokens: Ids) -> Tensor:
    """How often each position's token came up to it."""
    return ((tokens[:, None] == tokens[..., None]).tril()).sum(2)


def _at_the_end(values: Callable[[Ids], Ids]) -> Mapping[str, Callable[[Ids, Values], Ids]]:
    """A program of one step that answers after the last token alone."""
    return {
        "answer": lambda t, v: torch.full_like(t, NONE).index_copy(
            1, torch.tensor([t.shape[1] - 1]), values(t)[:, None]
        )
    }


_PREVIOUS = {"q": (), "k": (), "v": ("tokens",)}  # positions are the same in every sequence

PLANTED = {
    "induction": Program(
        "the token that followed this one when it stood here before",
        NOISE[:12],
        12,
        _repeats,
        {
            "previous": lambda t, v: before(t),
            "copy": lambda t, v: followers(t, v["previous"], t),
        },
        {"previous": _PREVIOUS, "copy": {"q": ("tokens",), "k": ("previous",), "v": ("tokens",)}},
    ),
    "marker": Program(
        "the token that stood before the marker M",
        (*NOISE[:8], "M"),
        10,
        _marked,
        {
            "previous": lambda t, v: before(t),
            "read": lambda t, v: (
                v["previous"]
                .gather(1, (t == 8).long().argmax(1, keepdim=True).expand_as(t))
                .masked_fill(seen(t == 8) == 0, NONE)
            ),
        },
        {"previous": _PREVIOUS, "read": {"q": (), "k": ("tokens",), "v": ("previous",)}},
    ),
    "either": Program(
        "yes if A or B came, otherwise no",
        (*NOISE[:6], "A", "B", "no", "yes"),
        10,
        _two_signals,
        {
            "saw A": lambda t, v: seen(t == 6),
            "saw B": lambda t, v: seen(t == 7),
            "or": lambda t, v: 8 + (v["saw A"] | v["saw B"]),
        },
        {
            "saw A": {"q": (), "k": ("tokens",), "v": ("tokens",)},
            "saw B": {"q": (), "k": ("tokens",), "v": ("tokens",)},
            "or": {"": ("saw A", "saw B")},
        },
    ),
}
"""Programs that are planted by training, by name."""

COMPILED = {
    "previous-token": Program(
        "the token before this one",
        (BOS, *NOISE[:4]),
        6,
        _after_bos(4, 6),
        {"answer": lambda t, v: before(t).where(before(t) > 0, NONE)},
    ),
    "count": Program(
        "how often this token came so far",
        (BOS, *NOISE[:3], "0", "1", "2", "3", "4", "5"),
        6,
        _after_bos(3, 6),
        _running(lambda t: 4 + _same_so_far(t)),
    ),
    "a-then-b": Program(
        "yes if b ever came right after a, otherwise no",
        (BOS, *NOISE[:3], "no", "yes"),
        6,
        _after_bos(3, 6),
        _running(lambda t: 4 + seen((before(t) == 1) & (t == 2))),
    ),
    "induction-rasp": Program(
        "the token that followed this one when it stood here before",
        (BOS, *NOISE[:5]),
        7,
        _after_bos(5, 7),
        {"answer": lambda t, v: followers(t, before(t), t).index_fill(1, torch.tensor([0]), NONE)},
    ),
    "a-or-b": Program(
        "yes if a or b came, otherwise no",
        (BOS, *NOISE[:6], "no", "yes"),
        6,
        _after_bos(6, 6),
        _running(lambda t: 7 + seen((t == 1) | (t == 2))),
    ),
    "two-hops-rasp": Program(
        "the follower of the follower of this token",
        (BOS, *NOISE[:5]),
        7,
        _after_bos(5, 7),
        {
            "answer": lambda t, v: followers(followers(t, before(t), t), before(t), t).index_fill(
                1, torch.tensor([0]), NONE
            )
        },
    ),
    "share-of-a": Program(
        "which share of the tokens is a",
        (BOS, *NOISE[:3], *(f"{k / 5:.1f}" for k in range(6))),
        6,
        _after_bos(3, 6),
        _at_the_end(lambda t: 4 + (t == 1).sum(1)),
    ),
    "pair-balance": Program(
        "the share of ( less the share of )",
        (BOS, "(", ")", "x", *(f"{k / 5:.1f}" for k in range(-5, 6))),
        6,
        _after_bos(3, 6),
        _at_the_end(lambda t: 9 + (t == 1).sum(1) - (t == 2).sum(1)),
    ),
}
"""Programs that are compiled to weights, by name."""

SHARED = {
    "two-letters": Program(
        "the capital letter or the small one, whichever is asked",
        (*"ABCDE", *"abcde", "capital?", "small?", "x", "y", "z", "nothing"),
        BEFORE + 2,
        lambda n, source: _two_letters(n, source, 2),
        {
            "capital": lambda t, v: _letter(t, 0, t == 2 * LETTERS),
            "small": lambda t, v: _letter(t, LETTERS, t == 2 * LETTERS + 1),
            "answer": lambda t, v: torch.where(
                (t == 2 * LETTERS) | (t == 2 * LETTERS + 1),
                torch.where(t == 2 * LETTERS, v["capital"], v["small"]),
                2 * LETTERS + 5,
            ),
        },
    ),
}
"""Programs of two variables that are planted into the same heads, by name."""

PROGRAMS = PLANTED | COMPILED | SHARED
