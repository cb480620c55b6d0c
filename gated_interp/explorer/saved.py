"""The state of an explorer as a file, to be sent and opened again with the same model."""

import dataclasses
import errno
import json
import math
import os
import re
from os import PathLike, fspath
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from gated_interp.core.errors import GatedInterpError
from gated_interp.core.written import visible
from gated_interp.explorer.session import Session
from gated_interp.explorer.state import ExplorerState, link_of, link_parts
from gated_interp.explorer.words import brief

FORMAT, VERSION = "gated-interp explorer", 1
# Folding norms into weights rounds a little otherwise on another machine.
CLOSE = 1e-4
MOST = 500_000  # bytes of a file, see notes.js
SHOWN = 60  # characters of a model's name in a message


def file_text(session: Session, state: ExplorerState) -> str:
    """``state`` as JSON, with what tells its model from others."""
    # By its tokens: a number of an example means another text in another session.
    parts: dict[str, Any] = link_parts(link_of(dataclasses.replace(state, example=None)))
    if state.example is not None:
        parts["example"] = state.example + 1
    if "notes" in parts:
        parts["notes"] = json.loads(parts["notes"])
    whole = {"format": FORMAT, "version": VERSION, "model": session.identity, "state": parts}
    return json.dumps(whole, indent=1, ensure_ascii=False) + "\n"


def file_name(session: Session) -> str:
    """What the file is called."""
    plain = re.sub(r"[^\w.-]+", "-", str(session.identity["name"])[:SHOWN], flags=re.ASCII)
    return f"{plain.strip('-.') or 'model'}.explorer.json"


def read_file(path: Any) -> str:
    """The text of a file that the explorer saved.

    Raises:
        GatedInterpError: what is no path, and a file that cannot be read or is too large.
    """
    place = require_path(path)
    try:
        with place.open("rb") as file:
            found = file.read(MOST + 1)
        text = found.decode()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it is not text in UTF-8"
        raise GatedInterpError("cannot-read", path=place, reason=reason) from error
    if len(found) > MOST:
        raise GatedInterpError("explorer-file-too-large", path=place, most=MOST)
    return text


def require_path(path: Any) -> Path:
    """``path`` as the path of a file."""
    if not isinstance(path, str | PathLike) or not isinstance(fspath(path), str):
        raise GatedInterpError("not-words", name="path", value=brief(path))
    reason = "" if str(path) else "it is empty"
    try:
        os.lstat(path)
    except OSError as error:
        # Whatever else is wrong is said where the file is read or written.
        reason = str(error.strerror) if error.errno == errno.ENAMETOOLONG else reason
    except ValueError:
        reason = "no file's name can contain one of its characters"
    if reason:
        raise GatedInterpError("not-a-path", path=str(path)[:SHOWN], reason=reason)
    return Path(path)


def state_of(session: Session, text: str) -> ExplorerState:
    """The state that a file holds.

    Raises:
        GatedInterpError: no such file, one of a later version, or one of another model.
    """
    try:
        whole = json.loads(text.removeprefix("\ufeff"))  # some editors begin a file with it
    except (ValueError, RecursionError) as error:
        raise GatedInterpError("not-an-explorer-file") from error
    if not isinstance(whole, dict) or whole.get("format") != FORMAT:
        raise GatedInterpError("not-an-explorer-file")
    if whole.get("version") != VERSION:
        version = visible(str(whole.get("version")))[:20]
        raise GatedInterpError("explorer-file-of-another-version", version=version, known=VERSION)
    model, parts = whole.get("model"), whole.get("state")
    if not isinstance(model, dict) or not isinstance(parts, dict):
        raise GatedInterpError("not-an-explorer-file")
    if not _same(model, session.identity):
        raise GatedInterpError(
            "explorer-file-of-another-model", theirs=_said(model), ours=_said(session.identity)
        )
    parts = dict(parts)
    example = parts.pop("example", None)
    if type(example) is int and 1 <= example <= len(session.examples):
        parts["example"] = str(example)
    if "notes" in parts:
        parts["notes"] = json.dumps(parts["notes"])
    try:
        link = urlencode(parts)
    except ValueError as error:  # half a character
        raise GatedInterpError("not-an-explorer-file") from error
    if not all(isinstance(value, str) for value in parts.values()):
        raise GatedInterpError("not-an-explorer-file")
    try:
        return session.at_link(link)
    except GatedInterpError as problem:
        if "link" not in problem.code:
            raise
        raise GatedInterpError("not-an-explorer-file") from problem


def _same(theirs: dict[str, Any], ours: dict[str, Any]) -> bool:
    """Whether both are one model; its name may differ, its weights may not."""
    norms = theirs.get("norms")
    if any(theirs.get(key) != ours[key] for key in ("heads", "tokens")):
        return False
    if not isinstance(norms, list) or len(norms) != len(ours["norms"]):
        return False
    pairs = zip(norms, ours["norms"], strict=True)
    return all(type(a) is float and math.isclose(a, b, rel_tol=CLOSE) for a, b in pairs)


def _said(model: dict[str, Any]) -> str:
    """A model in a sentence: its name, its heads, and its weights in few letters."""
    name = visible(str(model.get("name")))[:SHOWN]
    heads, norms = model.get("heads"), model.get("norms")
    counts = " + ".join(str(n)[:9] for n in heads[:12]) if isinstance(heads, list) else "unknown"
    there = isinstance(norms, list) and all(type(n) is float for n in norms)
    weights = f", weights of norm {math.hypot(*norms):.5g}" if there and norms else ""
    return f"“{name}” ({counts} heads{weights})"
