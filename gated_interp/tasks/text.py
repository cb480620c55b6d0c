"""Text as a task: a tokenizer, token ids on the disk, and sequences read from there."""

import dataclasses
import hashlib
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Bool, Int, UInt
from torch import Tensor

from gated_interp.core.errors import GatedInterpError
from gated_interp.core.seeds import derive, generator
from gated_interp.core.streams import Stream
from gated_interp.tasks.encoded_text import PARTS, Encoded, Part, cache_folders, encoded
from gated_interp.tasks.text_files import names_of
from gated_interp.tasks.tokenizers import (
    BOS_NAMES,
    bos_of,
    failing_in_a_sentence,
    read_tokenizer,
    size_of,
    token_names,
    tokenizer_text,
)


@dataclasses.dataclass(frozen=True)
class TokenBatch:
    """Sequences of text.

    Attributes:
        tokens: ``[batch pos]``; each begins with the token that a text begins with, if the
            tokenizer has one.
        focus: ``[batch pos]``, the positions of which a training may take more notice
            (``focus_weight``): of repeated text, those that say something again. ``None`` is none.
    """

    tokens: Int[Tensor, "batch pos"]
    focus: Bool[Tensor, "batch pos"] | None = None


@dataclasses.dataclass(frozen=True)
class TextPart:
    r"""One part of a text, a task in its own right.

    Attributes:
        task: the text.
        name: ``train``, ``validation`` or ``test``.

    Examples:
        >>> import tempfile
        >>> folder = tempfile.TemporaryDirectory()
        >>> path = Path(folder.name, "text.txt")
        >>> _ = path.write_text("The cat sat on the mat.\n" * 100)
        >>> task = TextTask(path, n_positions=16, vocab=260, folder=folder.name)
        >>> task.part("test").sample(2, seed=0).tokens.shape
        torch.Size([2, 16])
        >>> folder.cleanup()
    """

    task: "TextTask"
    name: Part

    @property
    def n_positions(self) -> int:
        """Tokens in a sequence."""
        return self.task.n_positions

    @property
    def d_vocab(self) -> int:
        """Size of the vocabulary."""
        return self.task.d_vocab

    @property
    def token_names(self) -> Sequence[str]:
        """A readable name per token."""
        return self.task.token_names

    @property
    def ids(self) -> UInt[np.ndarray, " token"]:
        """Every token of the part, read from the disk where it is touched."""
        return self.task.opened()[self.name]

    @property
    def identity(self) -> str:
        """See :attr:`TextTask.identity`."""
        return f"{self.name} part of {self.task.identity}"

    def require_vocabulary(self, d_vocab: int) -> None:
        """Refuse a model of another vocabulary; see :meth:`TextTask.require_vocabulary`."""
        self.task.require_vocabulary(d_vocab)

    def sample(self, n: int, seed: int) -> TokenBatch:
        """``n`` sequences that start anywhere; the same seed gives the same.

        Each is the token that a text begins with, then ``n_positions - 1`` tokens in a row; where
        the tokenizer has no such token, ``n_positions`` tokens in a row.

        Raises:
            GatedInterpError: a bad seed, or the text cannot be had.
        """
        ids, width = self.ids, self._width
        last = len(ids) - width
        starts = torch.randint(last + 1, (n,), generator=generator(seed)).numpy()
        return TokenBatch(self._sequences(ids[starts[:, None] + np.arange(width)]))

    def in_order(self, batch_size: int = 64) -> Iterator[Int[Tensor, "batch pos"]]:
        """The whole part as sequences without overlap, ``batch_size`` at a time; what is left over
        at its end is left out."""
        ids, width = self.ids, self._width
        n = len(ids) // width
        for start in range(0, n, batch_size):
            stop = min(n, start + batch_size)
            yield self._sequences(ids[start * width : stop * width].reshape(-1, width))

    @property
    def _width(self) -> int:
        """Tokens of the text in a sequence."""
        return self.n_positions if self.task.bos is None else self.n_positions - 1

    def _sequences(self, rows: UInt[np.ndarray, "batch rest"]) -> Int[Tensor, "batch pos"]:
        tokens = np.full((len(rows), self.n_positions), self.task.bos or 0, dtype=np.int64)
        tokens[:, self.n_positions - self._width :] = rows
        return torch.from_numpy(tokens)


@dataclasses.dataclass(frozen=True)
class RepeatedText:
    r"""A part of a text, some of whose sequences say one stretch over and over.

    Trained on it, two layers learn to copy what followed the present token before (an induction
    head), which little text teaches slowly. A stretch is as long as chance has it, so that no fixed
    distance leads to its earlier copy.

    Attributes:
        part: the text.
        share: of the sequences, 0 to 1.

    Raises:
        GatedInterpError: another share, or a sequence too short to repeat anything.

    Examples:
        >>> import tempfile
        >>> folder = tempfile.TemporaryDirectory()
        >>> path = Path(folder.name, "text.txt")
        >>> _ = path.write_text("The cat sat on the mat.\n" * 100)
        >>> task = TextTask(path, n_positions=16, vocab=260, folder=folder.name)
        >>> tokens = RepeatedText(task.part("train"), 1.0).sample(3, seed=0).tokens
        >>> all(any(bool((t[1 + n :] == t[1:-n]).all()) for n in range(2, 8)) for t in tokens)
        True
        >>> folder.cleanup()
    """

    part: TextPart
    share: float

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise GatedInterpError("share-out-of-range", value=self.share)
        if self.part.n_positions < 5:
            raise GatedInterpError("too-short-to-repeat", n=self.part.n_positions)

    @property
    def identity(self) -> str:
        """See :attr:`TextTask.identity`."""
        return f"{self.part.identity}, {self.share} repeated"

    def sample(self, n: int, seed: int) -> TokenBatch:
        """``n`` sequences; those that repeat nothing are those of ``part``."""
        tokens = self.part.sample(n, seed).tokens
        source = generator(derive(seed, Stream.REPEATED_TEXT))
        width = self.part.n_positions - 1
        repeats = torch.rand(n, generator=source) < self.share
        length = torch.randint(2, width // 2 + 1, (n,), generator=source)
        length = torch.where(repeats, length, width)
        column = torch.arange(width)
        tokens = torch.cat([tokens[:, :1], tokens[:, 1:].gather(1, column % length[:, None])], 1)
        return TokenBatch(tokens, torch.arange(-1, width) >= length[:, None])


@dataclasses.dataclass(frozen=True, repr=False, init=False)
class TextTask:
    r"""Next-token prediction on text.

    The text is cut by position into ``train`` (90%), ``validation`` and ``test`` (5% each), each
    cut at the end of a line. Its documents begin with a token of their own. Token ids lie in a
    folder and are mapped into memory; sequences are drawn from the ``train`` part (:meth:`sample`)
    or from :meth:`part`.

    Args:
        text: the name of a text that comes with the package, a file (``.txt``, ``.jsonl``, both
            also as ``.xz`` or ``.bz2``), a folder of these, ``datasets:NAME[:CONFIG[:SPLIT]]``, or
            several.
        n_positions: tokens in a sequence, the one that it begins with included.
        vocab: tokens of the byte-level BPE tokenizer that is trained on the ``train`` part, where
            none is given.
        tokenizer: a ``tokenizer.json``: its path, or what it holds.
        digest: SHA-256 of the text; where it is given, another text is refused. Unless both this
            and the tokenizer are, the text is read at once.
        folder: where ids are kept; the folder that the environment variable ``GATED_INTERP_CACHE``
            names, or one for this user (among temporary files where nothing can be written to the
            user's own), unless given.

    Raises:
        GatedInterpError: no such text, an empty file, bytes that are not UTF-8, a part shorter than
            a sequence, another tokenizer than asked for, or a folder that cannot be written;
            nothing is written then.

    Examples:
        >>> import tempfile
        >>> folder = tempfile.TemporaryDirectory()
        >>> path = Path(folder.name, "text.txt")
        >>> _ = path.write_text("The cat sat on the mat.\n" * 100)
        >>> task = TextTask(path, n_positions=16, vocab=260, folder=folder.name)
        >>> task.d_vocab, task.sample(2, seed=0).tokens.shape
        (260, torch.Size([2, 16]))
        >>> task.token_names[0], task.decode(task.encode("The mat"))
        ('<|endoftext|>', 'The mat')
        >>> folder.cleanup()
    """

    text: tuple[str, ...]
    n_positions: int
    tokenizer: str
    digest: str
    places: ClassVar[tuple[Path, ...]]  # of this object, where ids are kept

    def __init__(
        self,
        text: str | os.PathLike[str] | Iterable[str | os.PathLike[str]] = "austen",
        n_positions: int = 64,
        tokenizer: str | os.PathLike[str] | None = None,
        digest: str = "",
        *,
        vocab: int | None = None,
        folder: str | os.PathLike[str] | None = None,
    ):
        _require_positions(n_positions)
        sources = names_of(text)
        wanted: int | str
        if tokenizer is None:
            vocab = 2048 if vocab is None else vocab
            wanted = vocab
        else:
            written = os.fspath(tokenizer)
            is_json = written.lstrip().startswith("{")
            wanted = written if is_json else tokenizer_text(written)
            size = size_of(read_tokenizer(wanted))
            if vocab is not None and vocab != size:
                raise GatedInterpError("vocab-contradicts-tokenizer", vocab=vocab, size=size)
        places = cache_folders() if folder is None else (Path(folder),)
        if tokenizer is None or not digest:
            made = encoded(sources, wanted, n_positions, places, digest)
            wanted, digest = made.tokenizer, made.digest
        self._set(sources, n_positions, wanted, digest, places)

    def _set(self, *values: Any) -> None:
        for name, value in zip(
            ("text", "n_positions", "tokenizer", "digest", "places"), values, strict=True
        ):
            object.__setattr__(self, name, value)

    @classmethod
    def stored(cls, text: Any, n_positions: Any, tokenizer: Any, digest: Any) -> "TextTask":
        """From its fields in a file that nobody vouches for; no other file is opened.

        Without any ``text`` it is a tokenizer, which cannot be sampled.

        Raises:
            GatedInterpError: they are not what :func:`dataclasses.asdict` makes of one.
        """
        if not isinstance(text, list) or not all(isinstance(t, str) for t in text):
            raise GatedInterpError("text-not-names", text=text)
        if not isinstance(tokenizer, str) or not tokenizer.lstrip().startswith("{"):
            raise GatedInterpError("tokenizer-not-text")
        if not isinstance(digest, str) or not re.fullmatch("[0-9a-f]{64}" if text else "", digest):
            raise GatedInterpError("bad-digest", digest=digest)
        _require_positions(n_positions)
        read_tokenizer(tokenizer)
        task = cls.__new__(cls)
        task._set(tuple(text), n_positions, tokenizer, digest, cache_folders())
        return task

    def __repr__(self) -> str:
        text = ", ".join(map(repr, self.text)) or "no text"
        said = f"{text}, {self.d_vocab} tokens, {self.n_positions} positions"
        if self.bos is None:
            said += ", no token at the beginning"
        elif (first := read_tokenizer(self.tokenizer).id_to_token(self.bos)) not in BOS_NAMES:
            said += f", {first} at the beginning"
        return f"TextTask({said})"

    @property
    def described(self) -> str:
        """The task, in a sentence."""
        return repr(self)

    @cached_property
    def d_vocab(self) -> int:
        """Size of the vocabulary."""
        return size_of(read_tokenizer(self.tokenizer))

    @cached_property
    def bos(self) -> int | None:
        """The token that every sequence and every document begins with.

        Where the tokenizer has none, it is the token that ends a text, or ``None`` without that.
        """
        return bos_of(read_tokenizer(self.tokenizer))

    def begun(self, text: str) -> list[int]:
        """The tokens of ``text`` behind the token that a sequence begins with, if there is one."""
        return self.encode(text) if self.bos is None else [self.bos, *self.encode(text)]

    @cached_property
    def token_names(self) -> Sequence[str]:
        """Every token as text."""
        return token_names(read_tokenizer(self.tokenizer))

    def encode(self, text: str) -> list[int]:
        """The tokens of ``text``, without one for its beginning."""
        tokenizer = read_tokenizer(self.tokenizer)
        with failing_in_a_sentence(tokenizer):
            found: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
        return found

    def decode(self, tokens: Iterable[Any] | Tensor) -> str:
        """The text of ``tokens``."""
        ids = [int(t) for t in tokens]
        tokenizer = read_tokenizer(self.tokenizer)
        with failing_in_a_sentence(tokenizer):
            return str(tokenizer.decode(ids, skip_special_tokens=False))

    def part(self, name: Part) -> TextPart:
        """One of ``train``, ``validation`` and ``test``.

        Raises:
            GatedInterpError: another name.
        """
        if name not in PARTS:
            raise GatedInterpError("not-one-of", name="part", value=name, choices=PARTS)
        return TextPart(self, name)

    def sample(self, n: int, seed: int) -> TokenBatch:
        """``n`` sequences of the ``train`` part; see :meth:`TextPart.sample`."""
        return self.part("train").sample(n, seed)

    def opened(self) -> Encoded:
        """The tokens of every part; the text is read and encoded where that has not been done.

        Raises:
            GatedInterpError: it is not there any more, or another one.
        """
        if not self.text:
            raise GatedInterpError("text-not-included")
        return encoded(self.text, self.tokenizer, self.n_positions, self.places, self.digest)

    def require_vocabulary(self, d_vocab: int) -> None:
        """Refuse a model of another vocabulary.

        Raises:
            GatedInterpError: ``d_vocab`` is not the tokenizer's.
        """
        if d_vocab != self.d_vocab:
            raise GatedInterpError(
                "tokenizer-vocabulary-mismatch", d_vocab=d_vocab, task=self, wanted=self.d_vocab
            )

    @property
    def identity(self) -> str:
        """What of it a training must share with a saved one to go on from it."""
        tokenizer = hashlib.sha256(self.tokenizer.encode()).hexdigest()[:12]
        return f"text {self.digest[:12]}, tokenizer {tokenizer}, {self.n_positions} positions"


def _require_positions(n_positions: Any) -> None:
    if type(n_positions) is not int or n_positions < 2:
        raise GatedInterpError("not-a-whole-number", name="n_positions", value=n_positions, least=2)
