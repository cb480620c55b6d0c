"""Byte-level BPE by the library `tokenizers`: trained, read from a file, and asked for names."""

import os
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

from gated_interp.core.errors import GatedInterpError

BOS = "<|endoftext|>"
# What others call the token that a text begins with. Where there is another, as in Phi-3, texts end
# with the last of these.
BOS_NAMES = ("<|BOS|>", "<|begin_of_text|>", "<s>", "<bos>", "[BOS]", BOS)
# What a text ends with, and so what stands before the next one, where nothing else begins a text.
END_NAMES = ("</s>", "<eos>", "<|end_of_text|>", "<|im_end|>")
FEWEST = 257  # every byte, and the token that a text begins with


def trained_tokenizer(pieces: Iterable[str], d_vocab: int) -> str:
    """A byte-level BPE tokenizer of ``d_vocab`` tokens (fewer, where the text has too few pairs).

    Token 0 is ``<|endoftext|>``, with which every sequence and every document begins; then come the
    256 bytes. Ties between pairs go by their tokens, so the same text gives the same tokenizer.

    Returns:
        What a ``tokenizer.json`` holds.

    Examples:
        >>> tokenizer = read_tokenizer(trained_tokenizer(["aaa bbb aaa"], 258))
        >>> tokenizer.encode("aaa").ids, token_names(tokenizer)[257]
        ([257, 65], 'aa')
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    if d_vocab < FEWEST:
        raise GatedInterpError("vocab-too-small", vocab=d_vocab, least=FEWEST)
    tokenizer: Any = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=d_vocab,
        special_tokens=[BOS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(iter(pieces), trainer)
    return str(tokenizer.to_str())


def tokenizer_text(source: str | os.PathLike[str]) -> str:
    """What the ``tokenizer.json`` at ``source`` (or in that folder) holds."""
    path = Path(source)
    path = path / "tokenizer.json" if path.is_dir() else path
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "it is not UTF-8"
        raise GatedInterpError("cannot-read-tokenizer", path=path, reason=why) from error
    try:
        read_tokenizer(text)
    except GatedInterpError as error:
        raise GatedInterpError("bad-tokenizer-file", path=path, reason=error) from error
    return text


@lru_cache(maxsize=8)
def read_tokenizer(text: str) -> Any:
    """The tokenizer in the text of a ``tokenizer.json``; the same text gives the same object."""
    from tokenizers import Tokenizer

    try:
        tokenizer: Any = Tokenizer.from_str(text)
    # The library raises plain Exception, and its panics are no Exception at all.
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt | SystemExit):
            raise
        raise GatedInterpError("bad-tokenizer", reason=error) from error
    return tokenizer


_one_at_a_time = threading.Lock()


@contextmanager
def failing_in_a_sentence(tokenizer: Any) -> Iterator[None]:
    """Around a use of ``tokenizer``: a pattern of its own may give up on some texts.

    The library then panics: it writes to the process's stderr, however long the text is, and raises
    what is no ``Exception``.
    """
    if '"Regex"' not in tokenizer.to_str():
        yield
        return
    with _one_at_a_time, open(os.devnull, "wb") as nowhere:
        sys.stderr.flush()
        before = os.dup(2)
        os.dup2(nowhere.fileno(), 2)
        try:
            yield
        except BaseException as error:
            if type(error).__name__ != "PanicException":
                raise
            raise GatedInterpError("tokenizer-too-slow") from error
        finally:
            os.dup2(before, 2)
            os.close(before)


def bos_of(tokenizer: Any) -> int | None:
    """The token that a text begins with.

    What the tokenizer itself puts before a text, or a special token that is known by its name, or
    any token of such a name, or else the token that ends a text; ``None`` where there is none of
    these.
    """
    with failing_in_a_sentence(tokenizer):
        own = tokenizer.encode("a", add_special_tokens=True)
    if own.special_tokens_mask[:1] == [1]:
        return int(own.ids[0])
    added = tokenizer.get_added_tokens_decoder()
    special = {token.content: n for n, token in added.items() if token.special}
    named = [special.get(name) for name in BOS_NAMES]
    named += [tokenizer.token_to_id(name) for name in (BOS, *BOS_NAMES, *END_NAMES)]
    return next((int(n) for n in named if n is not None), None)


def size_of(tokenizer: Any) -> int:
    """Tokens, counted by the largest."""
    return 1 + max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)


def token_names(tokenizer: Any) -> list[str]:
    """Every token as text; one that is not whole characters as the tokenizer writes its bytes."""
    names = []
    with failing_in_a_sentence(tokenizer):
        for token in range(size_of(tokenizer)):
            name = tokenizer.decode([token], skip_special_tokens=False)
            written = tokenizer.id_to_token(token)
            names.append(name if name and "�" not in name else str(written))
    return names
