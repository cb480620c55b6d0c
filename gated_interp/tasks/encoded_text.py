"""A text as token ids in a folder: encoded piece by piece, once, and mapped into memory."""

import contextlib
import dataclasses
import hashlib
import os
import tempfile
from collections.abc import Iterator
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, Literal, get_args

import numpy as np
from jaxtyping import UInt

from gated_interp.core.errors import GatedInterpError
from gated_interp.core.files import home, write_folder, write_text
from gated_interp.tasks.text_files import pieces
from gated_interp.tasks.tokenizers import (
    bos_of,
    failing_in_a_sentence,
    read_tokenizer,
    size_of,
    tokenizer_text,
    trained_tokenizer,
)

Part = Literal["train", "validation", "test"]
PARTS: tuple[Part, ...] = get_args(Part)
# Where, in bytes of the text, training ends and validation ends; both at the end of a line.
TRAIN, VALIDATION = 0.9, 0.95
CACHE = "GATED_INTERP_CACHE"
# Characters that are encoded at once.
AT_ONCE = 2**19
# Raised when the same text would be encoded otherwise.
LAYOUT = 2


@dataclasses.dataclass(frozen=True)
class Encoded:
    """A text as token ids on the disk.

    Attributes:
        tokenizer: as in a ``tokenizer.json``.
        digest: SHA-256 of the text.
        parts: the ids of each part, mapped into memory.
    """

    tokenizer: str
    digest: str
    parts: dict[Part, UInt[np.ndarray, " token"]]

    def __getitem__(self, part: Part) -> UInt[np.ndarray, " token"]:
        return self.parts[part]


@dataclasses.dataclass(frozen=True)
class Contents:
    """What one reading of a text finds: its SHA-256 and its length in bytes of UTF-8."""

    digest: str
    n_bytes: int


def cache_folders() -> tuple[Path, ...]:
    """Where ids are kept unless a folder is given: in the first of these that can be written."""
    if chosen := os.environ.get(CACHE):
        return (Path(chosen),)
    base = os.environ.get("XDG_CACHE_HOME")
    usual = (Path(base) if base else home() / ".cache") / "gated_interp"
    own = f"gated_interp-{os.getuid()}" if hasattr(os, "getuid") else "gated_interp"
    return usual, Path(tempfile.gettempdir()) / own


def _can_write(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK | os.X_OK)


@lru_cache(maxsize=16)
def encoded(
    sources: tuple[str, ...],
    tokenizer: int | str,
    n_positions: int,
    places: tuple[Path, ...],
    digest: str,
) -> Encoded:
    """The text of ``sources`` in one of ``places``, encoded there unless it was before.

    Args:
        tokenizer: as in a ``tokenizer.json``, or how many tokens one is trained to have.
        digest: that the text must have; any where it is empty.
    """
    found = _contents(sources)
    if digest and digest != found.digest:
        raise GatedInterpError(
            "text-changed", sources=sources, now=found.digest[:12], then=digest[:12]
        )

    def named(by: int | str, suffix: str = "") -> Path:
        said = f"{LAYOUT} {TRAIN} {VALIDATION} {found.digest} {by}"
        name = hashlib.sha256(said.encode()).hexdigest()[:24] + suffix
        there = (place for place in places if os.path.exists(place / name))
        new = (place for place in places[:-1] if _can_write(place))
        return next(chain(there, new), places[-1]) / name

    trained = named(tokenizer, ".json") if isinstance(tokenizer, int) else None
    if isinstance(tokenizer, int):
        assert trained is not None
        if trained.is_file():
            tokenizer = tokenizer_text(trained)
        else:
            stream = _in_parts(sources, found.n_bytes)
            learnt = (piece for part, piece in stream if part == "train" and piece)
            tokenizer = trained_tokenizer(learnt, tokenizer)
    folder, coder = named(tokenizer), read_tokenizer(tokenizer)
    if not folder.is_dir():
        write_folder(folder, lambda f: _write(f, sources, coder, n_positions, found.n_bytes))
    if trained is not None and not trained.exists():
        write_text(trained, tokenizer)
    try:
        parts = {part: np.load(folder / f"{part}.npy", mmap_mode="r") for part in PARTS}
    except (OSError, ValueError, EOFError) as error:
        raise GatedInterpError("text-cache-damaged", folder=folder) from error
    for part, ids in parts.items():
        _require_length(sources, part, len(ids), n_positions, coder)
    return Encoded(tokenizer, found.digest, parts)


def _contents(sources: tuple[str, ...]) -> Contents:
    digest, n_bytes = hashlib.sha256(), 0
    for piece in pieces(sources):
        if piece is None:
            digest.update(b"\xff")  # no byte of UTF-8
        else:
            data = piece.encode()
            digest.update(data)
            n_bytes += len(data)
    return Contents(digest.hexdigest(), n_bytes)


def _in_parts(sources: tuple[str, ...], n_bytes: int) -> Iterator[tuple[Part, str | None]]:
    """Every piece with the part it belongs to: that in which it begins."""
    at = 0
    for piece in pieces(sources):
        share = at / max(n_bytes, 1)
        yield PARTS[(share >= TRAIN) + (share >= VALIDATION)], piece
        at += len(piece.encode()) if piece else 0


def _write(
    folder: Path, sources: tuple[str, ...], coder: Any, n_positions: int, n_bytes: int
) -> None:
    dtype = np.dtype("<u2" if size_of(coder) <= 2**16 else "<u4")
    with contextlib.ExitStack() as stack:
        files = {p: stack.enter_context((folder / f"{p}.npy").open("wb")) for p in PARTS}
        lengths = dict.fromkeys(PARTS, 0)
        for part, file in files.items():
            _write_header(file, dtype, lengths[part])
        for part, tokens in _tokens(coder, _in_parts(sources, n_bytes)):
            files[part].write(np.asarray(tokens, dtype).tobytes())
            lengths[part] += len(tokens)
        for part, file in files.items():
            _require_length(sources, part, lengths[part], n_positions, coder)
            file.seek(0)
            _write_header(file, dtype, lengths[part])


def _write_header(file: BinaryIO, dtype: np.dtype[Any], length: int) -> None:
    """As `.npy` has it; numpy leaves room for the length to grow."""
    np.lib.format.write_array_header_1_0(
        file, {"descr": dtype.str, "fortran_order": False, "shape": (length,)}
    )


def _tokens(
    coder: Any, stream: Iterator[tuple[Part, str | None]]
) -> Iterator[tuple[Part, list[int]]]:
    """The tokens of each piece; a document begins with a token of its own, if there is one."""
    waiting: list[tuple[Part, str, bool]] = []
    size, begins = 0, True
    begins_with = [] if (bos := bos_of(coder)) is None else [bos]

    def coded() -> Iterator[tuple[Part, list[int]]]:
        texts = [text for _, text, _ in waiting]
        with failing_in_a_sentence(coder):
            found = coder.encode_batch_fast(texts, add_special_tokens=False)
        for (part, _, first), one in zip(waiting, found, strict=True):
            yield part, [*begins_with, *one.ids] if first else one.ids

    for part, piece in stream:
        if piece is not None:
            waiting.append((part, piece, begins))
            size += len(piece)
            if size >= AT_ONCE:
                yield from coded()
                waiting, size = [], 0
        begins = piece is None
    yield from coded()


def _require_length(
    sources: tuple[str, ...], part: str, found: int, n_positions: int, coder: Any
) -> None:
    needed = n_positions if bos_of(coder) is None else n_positions - 1
    if found < needed:
        raise GatedInterpError(
            "text-too-short",
            part=part,
            sources=sources,
            found=found,
            n_positions=n_positions,
            needed=needed,
        )
