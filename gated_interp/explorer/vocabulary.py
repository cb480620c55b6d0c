"""Tokens as a reader types and sees them, for toys, texts and any tokenizer."""

import re
from collections.abc import Callable, Sequence
from typing import Any

from gated_interp.core.errors import GatedInterpError
from gated_interp.models.toy import HookedTransformer

SHOWN = 20  # characters of a wrong word that a message repeats


class NamedTokens:
    """Tokens by their names or numbers, apart by spaces or commas.

    Args:
        names: of every token.

    Examples:
        >>> tokens = NamedTokens(["A", "B1", "B2", "C1", "C2", "BOS"])
        >>> tokens.parse("BOS a, C2 1", longest=11)
        (5, 0, 4, 1)
        >>> tokens.written((5, 0))
        'BOS A'
    """

    is_text = False

    def __init__(self, names: Sequence[str]):
        self.names = list(names)
        self._numbers = {name.upper(): i for i, name in enumerate(self.names)}
        self._numbers |= {name: i for i, name in enumerate(self.names)}
        self._numbers |= {str(i): i for i in range(len(self.names))}
        self.hint = " ".join(self.names[:3])

    def name(self, token: int) -> str:
        """The token's name."""
        return self.names[token]

    def parse(self, words: str, longest: int) -> tuple[int, ...]:
        """The tokens that ``words`` name."""
        found = words.replace(",", " ").split()
        tokens = []
        for word in found:
            number = self._numbers.get(word, self._numbers.get(word.upper()))
            if number is None:
                shown = word if len(word) <= SHOWN else f"{word[:SHOWN]}…"
                raise GatedInterpError(
                    "no-such-token",
                    token=shown,
                    names=_listed(self.names),
                    last=len(self.names) - 1,
                )
            tokens.append(number)
        if not tokens:
            raise GatedInterpError("no-tokens", example=self.names[0])
        _require_length(tokens, longest)
        return tuple(tokens)

    def written(self, tokens: Sequence[int]) -> str:
        """The names, apart by spaces."""
        return " ".join(self.names[t] for t in tokens)


class TextTokens:
    """Running text by a tokenizer.

    Args:
        encode, decode, named: from text to tokens, back, and the text of one token.
        bos: what every example begins with, typed or not; ``None`` for nothing.
    """

    is_text = True
    hint = "write some text"

    def __init__(
        self,
        encode: Callable[[str], Any],
        decode: Callable[[list[int]], str],
        named: Callable[[int], str],
        bos: int | None,
    ):
        self.encode, self.decode, self.named, self.bos = encode, decode, named, bos
        self._last: tuple[tuple[int, ...], str] = ((), "")

    def name(self, token: int) -> str:
        """The token as text."""
        return self.named(token)

    def parse(self, words: str, longest: int) -> tuple[int, ...]:
        """The tokens of ``words``, behind the token of a beginning where there is one."""
        tokens = [int(t) for t in self.encode(words)] if words else []
        if not tokens:
            raise GatedInterpError("no-words")
        if self.bos is not None and tokens[0] != self.bos:
            tokens.insert(0, self.bos)
        _require_length(tokens, longest)
        return tuple(tokens)

    def written(self, tokens: Sequence[int]) -> str:
        """The text, without the token of a beginning."""
        rest = tuple(tokens[1:] if tokens and tokens[0] == self.bos else tokens)
        if self._last[0] != rest:  # a large tokenizer takes a tenth of a second
            self._last = rest, str(self.decode(list(rest)))
        return self._last[1]


Vocabulary = NamedTokens | TextTokens


def vocabulary_of(model: HookedTransformer, task: Any) -> Vocabulary:
    """The names of ``task``; where it has none the model's tokenizer, else numbers."""
    text = getattr(task, "task", task)  # a part of a text is read as the text is
    if all(hasattr(text, name) for name in ("encode", "decode", "bos", "token_names")):

        def name(token: int) -> str:
            # A model may have more tokens than its tokenizer uses.
            return str(text.token_names[token] if token < len(text.token_names) else token)

        return TextTokens(text.encode, text.decode, name, text.bos)
    names = getattr(task, "token_names", None)
    if names is not None:
        if len(names) < model.cfg.d_vocab:
            raise GatedInterpError(
                "too-few-token-names", names=len(names), tokens=model.cfg.d_vocab
            )
        return NamedTokens(names)
    tokenizer = getattr(model, "tokenizer", None)
    if tokenizer is not None:
        return TextTokens(
            lambda words: tokenizer(words, add_special_tokens=False)["input_ids"],
            tokenizer.decode,
            lambda token: str(tokenizer.decode([token])),
            getattr(tokenizer, "bos_token_id", None) if model.cfg.default_prepend_bos else None,
        )
    return NamedTokens([str(i) for i in range(max(model.cfg.d_vocab, model.cfg.d_vocab_out))])


def _require_length(tokens: Sequence[int], longest: int) -> None:
    if len(tokens) > longest:
        raise GatedInterpError("too-many-tokens", n=len(tokens), most=longest)


def _listed(names: Sequence[str]) -> str:
    """``A, B1 to B3, BOS, or``; nothing where names are numbers, or where there are too many."""
    if all(name.isdigit() for name in names):
        return ""
    runs: list[list[str]] = []
    for name in names:
        if runs and _follows(runs[-1][-1], name):
            runs[-1].append(name)
        else:
            runs.append([name])
    said = [run[0] if len(run) == 1 else f"{run[0]} to {run[-1]}" for run in runs]
    return f"{', '.join(said)}, or " if len(said) <= 12 else "one of the names of tokens, or "


def _follows(name: str, after: str) -> bool:
    one, two = (re.fullmatch(r"(\D*)(\d+)", n) for n in (name, after))
    return bool(one and two and one[1] == two[1] and int(two[2]) == int(one[2]) + 1)
