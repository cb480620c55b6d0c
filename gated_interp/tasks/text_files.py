"""Where text comes from: files, folders, `datasets`; read piece by piece, never whole."""

import io
import json
import lzma
import os
from collections.abc import Iterable, Iterator, Mapping
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

from gated_interp.core.errors import GatedInterpError

# Longer lines are cut: a piece is what the tokenizer sees at once.
PIECE = 2**13
TEXT, LINES, PACKED = ".txt", ".jsonl", ".xz"
DATASETS = "datasets:"
SHIPPED_SUFFIX = TEXT + PACKED

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
            ``text``; anything else is one document of UTF-8 text; both also as ``.xz``), a folder
            (all ``.txt`` and ``.jsonl`` in it, in the order of their paths), or
            ``datasets:NAME[:CONFIG[:SPLIT]]``.

    Raises:
        GatedInterpError: nothing there, an empty file, bytes that are not UTF-8, lines that are not
            JSON, or a file that is cut short.
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
                raise GatedInterpError(
                    f"the folder {source} holds no text; it must hold .txt or .jsonl files, each "
                    "also as .xz."
                )
            for path in inside:
                yield from _of_file(path)
        elif os.path.isfile(source):
            yield from _of_file(Path(source))
        else:
            raise GatedInterpError(
                f"there is no text {source}; name a file, a folder, {DATASETS}NAME or one that "
                f"comes with the package ({', '.join(shipped_texts())})."
            )


def texts_in(folder: Path | str) -> list[Path]:
    """Every text in ``folder`` and the folders in it, in the order of their paths."""
    return [p for p in sorted(Path(folder).rglob("*")) if _is_text(p)]


def _is_text(path: Path) -> bool:
    return Path(path.name.removesuffix(PACKED)).suffix in (TEXT, LINES) and path.is_file()


def _of_file(path: Path) -> Pieces:
    opened = lzma.open if path.name.endswith(PACKED) else open
    try:
        with opened(path, "rt", encoding="utf-8") as file:
            if path.name.removesuffix(PACKED).endswith(LINES):
                whole = _of_lines(file, path)
            else:
                whole = _of_document(file)
            something = False
            for piece in whole:
                something |= bool(piece)
                if something:
                    yield piece
            if not something:
                raise GatedInterpError(f"{path} is empty; name a file with text in it.")
    except UnicodeDecodeError as error:
        raise GatedInterpError(
            f"{path} is not UTF-8 text (byte {error.object[error.start]:#04x}); save it as UTF-8."
        ) from error
    except (lzma.LZMAError, EOFError) as error:
        raise GatedInterpError(
            f"{path} is not a whole .xz file; it is of another kind, cut short or damaged."
        ) from error
    except OSError as error:
        raise GatedInterpError(
            f"cannot read {path}: {error.strerror or error}; name a file that can be read."
        ) from error


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
        raise GatedInterpError(f"{where} is not JSON; each line must hold one document.") from error
    text = said.get("text") if isinstance(said, Mapping) else said
    if not isinstance(text, str):
        raise GatedInterpError(
            f'{where} holds no text; it must be a string, or an object with a string "text".'
        )
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise GatedInterpError(
            f"{where} holds half of a surrogate pair, which is no text; write it as UTF-8."
        ) from error
    return text


def _of_dataset(source: str) -> Pieces:
    name, *rest = source.removeprefix(DATASETS).split(":")
    config, split = ([part or None for part in rest] + [None, None])[:2]
    try:
        import datasets
    except ImportError as error:
        raise GatedInterpError(
            f"{source} needs the package datasets; install gated-interp[datasets]."
        ) from error
    try:
        rows: Any = datasets.load_dataset(name, config, split=split or "train")
    # Which errors there are depends on the release, the hub and the network.
    except Exception as error:
        words = str(error).strip().splitlines() or [type(error).__name__]
        raise GatedInterpError(
            f"{source} cannot be had ({words[0].rstrip('.')}); check its name and the network, or "
            "name a file."
        ) from error
    if "text" not in rows.column_names:
        raise GatedInterpError(
            f"{source} has no column 'text'; its columns are {', '.join(rows.column_names)}."
        )
    for row in rows:
        yield from _of_document(io.StringIO(row["text"]))


def names_of(text: str | os.PathLike[str] | Iterable[str | os.PathLike[str]]) -> tuple[str, ...]:
    """One source or several, as strings.

    Raises:
        GatedInterpError: none, or what is no name or path.
    """
    given = [text] if isinstance(text, str | os.PathLike) else list(text)
    for source in given:
        if not isinstance(source, str | os.PathLike):
            raise GatedInterpError(
                f"text is {source!r}; it must be the name of a text, a file or a folder."
            )
    if not given:
        raise GatedInterpError("no text is given; name a file or a folder.")
    return tuple(os.fspath(source) for source in given)
