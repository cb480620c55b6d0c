"""Where text comes from: files, folders, `datasets`; read piece by piece, never whole."""

import bz2
import io
import json
import lzma
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

from gated_interp.core.errors import GatedInterpError

# Longer lines are cut: a piece is what the tokenizer sees at once.
PIECE = 2**13
TEXT, LINES = ".txt", ".jsonl"
PACKED: Mapping[str, Callable[..., Any]] = {".xz": lzma.open, ".bz2": bz2.open}
DATASETS = "datasets:"
SHIPPED_SUFFIX = TEXT + ".bz2"  # smaller than .xz for text

Pieces = Iterator[str | None]
"""Lines with their ends, none longer than :data:`PIECE`; ``None`` where a document ends."""


def shipped_texts() -> list[str]:
    """Names of the texts that come with the package.

    Examples:
        >>> shipped_texts()
        ['austen']
    """
    inside = (entry.name for entry in (files("gated_interp.tasks") / "texts").iterdir())
    return sorted(n.removesuffix(SHIPPED_SUFFIX) for n in inside if n.endswith(SHIPPED_SUFFIX))


def pieces(sources: Iterable[str]) -> Pieces:
    """The documents of every source, in order, piece by piece.

    Args:
        sources: each the name of a shipped text, a file (``.jsonl``: a document a line, with its
            ``text``; anything else is one document of UTF-8 text; both also as ``.xz`` or
            ``.bz2``), a folder (all ``.txt`` and ``.jsonl`` in it, in the order of their paths), or
            ``datasets:NAME[:CONFIG[:SPLIT]]``.
    """
    for source in sources:
        if source in shipped_texts():
            with as_file(files("gated_interp.tasks") / "texts" / f"{source}{SHIPPED_SUFFIX}") as p:
                yield from _of_file(p)
        elif source.startswith(DATASETS):
            yield from _of_dataset(source)
        elif os.path.isdir(source):
            inside = texts_in(source)
            if not inside:
                raise GatedInterpError("folder-without-text", source=source)
            for path in inside:
                yield from _of_file(path)
        elif os.path.isfile(source):
            yield from _of_file(Path(source))
        else:
            raise GatedInterpError(
                "no-such-text", source=source, datasets=DATASETS, shipped=shipped_texts()
            )


def texts_in(folder: Path | str) -> list[Path]:
    """Every text in ``folder`` and the folders in it, in the order of their paths."""
    return [p for p in sorted(Path(folder).rglob("*")) if _is_text(p)]


def _is_text(path: Path) -> bool:
    return _unpacked(path).suffix in (TEXT, LINES) and path.is_file()


def _unpacked(path: Path) -> Path:
    return path.with_suffix("") if path.suffix in PACKED else path


def _of_file(path: Path) -> Pieces:
    opened = PACKED.get(path.suffix, open)
    try:
        with opened(path, "rt", encoding="utf-8") as file:
            is_lines = _unpacked(path).suffix == LINES
            whole = _of_lines(file, path) if is_lines else _of_document(file)
            something = False
            for piece in whole:
                something |= bool(piece)
                if something:
                    yield piece
            if not something:
                raise GatedInterpError("file-empty", path=path)
    except UnicodeDecodeError as error:
        raise GatedInterpError("not-utf8", path=path, byte=error.object[error.start]) from error
    except (lzma.LZMAError, EOFError) as error:
        raise GatedInterpError("not-packed", path=path, kind=path.suffix) from error
    except OSError as error:
        if error.errno is None:  # bz2 says of its own data what it says of a disk
            raise GatedInterpError("not-packed", path=path, kind=path.suffix) from error
        raise GatedInterpError("cannot-read", path=path, reason=error.strerror or error) from error


def _of_document(file: io.TextIOBase) -> Pieces:
    while piece := file.readline(PIECE):
        yield piece
    yield None


def _of_lines(file: io.TextIOBase, path: Path) -> Pieces:
    for number, line in enumerate(file, 1):
        if line.strip():
            yield from _of_document(io.StringIO(_text_of(line, f"line {number} of {path}")))


def _text_of(line: str, where: str) -> str:
    try:
        said = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise GatedInterpError("line-not-json", where=where) from error
    text = said.get("text") if isinstance(said, Mapping) else said
    if not isinstance(text, str):
        raise GatedInterpError("line-without-text", where=where)
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise GatedInterpError("half-a-surrogate-pair", where=where) from error
    return text


def _of_dataset(source: str) -> Pieces:
    name, *rest = source.removeprefix(DATASETS).split(":")
    config, split = ([part or None for part in rest] + [None, None])[:2]
    try:
        import datasets
    except ImportError as error:
        raise GatedInterpError("datasets-package-missing", source=source) from error
    try:
        rows: Any = datasets.load_dataset(name, config, split=split or "train")
    # Which errors there are depends on the release, the hub and the network.
    except Exception as error:
        words = str(error).strip().splitlines() or [type(error).__name__]
        raise GatedInterpError(
            "dataset-unavailable", source=source, reason=words[0].rstrip(".")
        ) from error
    if "text" not in rows.column_names:
        raise GatedInterpError("dataset-without-text", source=source, columns=rows.column_names)
    for row in rows:
        yield from _of_document(io.StringIO(row["text"]))


def names_of(text: str | os.PathLike[str] | Iterable[str | os.PathLike[str]]) -> tuple[str, ...]:
    """One source or several, as strings."""
    given = [text] if isinstance(text, str | os.PathLike) else list(text)
    for source in given:
        if not isinstance(source, str | os.PathLike):
            raise GatedInterpError("text-not-a-name", source=source)
    if not given:
        raise GatedInterpError("no-text-given")
    return tuple(os.fspath(source) for source in given)
