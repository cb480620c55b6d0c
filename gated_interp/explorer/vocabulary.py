"""Tokens as a reader types and sees them, for toys, texts and any tokenizer."""

import re
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

from gated_interp.core.errors import GatedInterpError
from gated_interp.models.toy import HookedTransformer

SHOWN = 20  # characters of a wrong word that a message repeats


@runtime_checkable
class Vocabulary(Protocol):
    """How tokens are written.

    Attributes:
        is_text: whether what is typed is running text, not names of tokens.
        hint: what an empty box suggests.
    """

    is_text: bool
    hint: str

    def name(self, token: int) -> str:
        """A token as it is shown."""
        ...

    def parse(self, words: str, longest: int) -> tuple[int, ...]:
        """The tokens that ``words`` say; at most ``longest``."""
        ...

    def written(self, tokens: Sequence[int]) -> str:
        """What would be typed for ``tokens``."""
        ...


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
        """The tokens that ``words`` name.

        Raises:
            GatedInterpError: a token that does not exist, no token, or too many.
        """
        found = words.replace(",", " ").split()
        tokens = []
        for word in found:
            number = self._numbers.get(word, self._numbers.get(word.upper()))
            if number is None:
                shown = word if len(word) <= SHOWN else f"{word[:SHOWN]}…"
                raise GatedInterpError(
                    f"{shown!r} is not a token; write {_listed(self.names)}"
                    f"numbers from 0 to {len(self.names) - 1}."
                )
            tokens.append(number)
        if not tokens:
            raise GatedInterpError(
                f"there is no token; write at least one, such as {self.names[0]}."
            )
        _require_length(tokens, longest)
        return tuple(tokens)

    def written(self, tokens: Sequence[int]) -> str:
        """The names, apart by spaces."""
        return " ".join(self.names[t] for t in tokens)


class TextTokens:
    """Text by a tokenizer; every example begins with the token that a text begins with.

    Args:
        task: something with ``encode``, ``decode``, ``bos`` and ``token_names``.
    """

    is_text = True
    hint = "write some text"

    def __init__(self, task: Any):
        self.task = task

    def name(self, token: int) -> str:
        """The token as text."""
        return str(self.task.token_names[token])

    def parse(self, words: str, longest: int) -> tuple[int, ...]:
        """The token of a beginning, then those of ``words``.

        Raises:
            GatedInterpError: no text, or too much.
        """
        tokens = _begun([int(t) for t in self.task.encode(words)], self.task.bos)
        if len(tokens) == 1:
            raise GatedInterpError("there is no text; write at least a word.")
        _require_length(tokens, longest)
        return tuple(tokens)

    def written(self, tokens: Sequence[int]) -> str:
        """The text, without the token of a beginning."""
        rest = tokens[1:] if tokens and tokens[0] == self.task.bos else tokens
        return str(self.task.decode(rest))


class ModelTokens:
    """Text by the tokenizer that a TransformerLens model brings along."""

    is_text = True
    hint = "write some text"

    def __init__(self, model: HookedTransformer):
        self.model = model
        self.bos = getattr(model.tokenizer, "bos_token_id", None)
        if not model.cfg.default_prepend_bos:
            self.bos = None

    def name(self, token: int) -> str:
        """The token as text."""
        return str(self.model.tokenizer.decode([token]))

    def parse(self, words: str, longest: int) -> tuple[int, ...]:
        """The tokens of ``words``; behind the token of a beginning, if the model wants one.

        Raises:
            GatedInterpError: no text, or too much.
        """
        if not words:
            raise GatedInterpError("there is no text; write at least a word.")
        tokens = self.model.tokenizer(words, add_special_tokens=False)["input_ids"]
        tokens = tokens if self.bos is None else _begun(tokens, self.bos)
        _require_length(tokens, longest)
        return tuple(tokens)

    def written(self, tokens: Sequence[int]) -> str:
        """The text, without the token of a beginning."""
        rest = tokens[1:] if tokens and tokens[0] == self.bos else tokens
        return str(self.model.tokenizer.decode(list(rest)))


def vocabulary_of(model: HookedTransformer, task: Any) -> Vocabulary:
    """The names of ``task``; where it has none the model's tokenizer, else numbers.

    Raises:
        GatedInterpError: the task has fewer names than the model has tokens.
    """
    text = getattr(task, "task", task)  # a part of a text is read as the text is
    if all(hasattr(text, name) for name in ("encode", "decode", "bos", "token_names")):
        return TextTokens(text)
    names = getattr(task, "token_names", None)
    if names is not None:
        if len(names) < model.cfg.d_vocab:
            raise GatedInterpError(
                f"the task names {len(names)} tokens; the model has {model.cfg.d_vocab}."
            )
        return NamedTokens(names)
    if getattr(model, "tokenizer", None) is not None:
        return ModelTokens(model)
    return NamedTokens([str(i) for i in range(max(model.cfg.d_vocab, model.cfg.d_vocab_out))])


def _begun(tokens: list[int], bos: int) -> list[int]:
    """``tokens`` behind ``bos``, once, whether or not somebody typed it."""
    return tokens if tokens and tokens[0] == bos else [bos, *tokens]


def _require_length(tokens: Sequence[int], longest: int) -> None:
    if len(tokens) > longest:
        raise GatedInterpError(
            f"{len(tokens)} tokens are too many; the model reads at most {longest}."
        )


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
