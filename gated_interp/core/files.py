"""Files are written whole or not at all."""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from gated_interp.core.errors import GatedInterpError


def write_whole(path: Path | str, write: Callable[[Path], object]) -> Path:
    """Let ``write`` fill a temporary file beside ``path``, then rename it into place.

    Whatever stood at ``path`` stays untouched unless ``write`` returns.

    Raises:
        GatedInterpError: the folder cannot be made or written.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # The suffix stays: libraries choose a format by it.
        handle, name = tempfile.mkstemp(
            dir=path.parent, prefix=f".{path.stem}-", suffix=path.suffix or ".tmp"
        )
    except OSError as error:
        raise GatedInterpError(
            f"cannot write {path}: {error.strerror or error}; name a folder that can be written."
        ) from error
    os.close(handle)
    temporary = Path(name)
    try:
        write(temporary)
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        os.replace(temporary, path)
    except IsADirectoryError as error:
        raise GatedInterpError(f"cannot write {path}: it is a folder; name a file.") from error
    finally:
        temporary.unlink(missing_ok=True)
    return path


def write_text(path: Path | str, text: str) -> Path:
    """Write ``text`` (UTF-8) to ``path``, whole or not at all."""
    return write_whole(path, lambda p: p.write_text(text, encoding="utf-8"))
