"""Files are written whole or not at all, and never over an input or over what is no file."""

import errno
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from gated_interp.core.errors import GatedInterpError

# The disk, a quota, or the largest file that is allowed.
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

_inputs: ContextVar[tuple[Path, ...]] = ContextVar("inputs", default=())


@contextmanager
def kept(inputs: Iterable[Path]) -> Iterator[None]:
    """Inside, no file is written over one of ``inputs``, whatever path leads to it."""
    token = _inputs.set(tuple(inputs))
    try:
        yield
    finally:
        _inputs.reset(token)


def require_place(path: Path | str) -> Path:
    """The file that ``path`` means, whether it is there yet or not: what a link points to.

    Raises:
        GatedInterpError: it is a folder, a device, a pipe or a socket, or an input (see
            :func:`kept`).
    """
    path = Path(path)
    place = Path(os.path.realpath(path)) if path.is_symlink() else path
    try:
        mode = place.lstat().st_mode
        is_input = any(place.samefile(other) for other in _inputs.get() if other.exists())
    except (FileNotFoundError, NotADirectoryError):
        return place
    except OSError as error:
        raise refused(path, error) from error
    if stat.S_ISDIR(mode):
        raise refused(path, IsADirectoryError())
    if not stat.S_ISREG(mode):
        raise GatedInterpError(
            f"cannot write {path}: it is no ordinary file but a device, a pipe, a socket or a link "
            "to itself; name another file."
        )
    if is_input:
        raise GatedInterpError(
            f"cannot write {path}: it is an input of the same command; name another file."
        )
    return place


def write_whole(path: Path | str, write: Callable[[Path], object]) -> Path:
    """Let ``write`` fill a temporary file beside ``path``, then rename it into place.

    Whatever stood at ``path`` stays untouched unless ``write`` returns.

    Returns:
        ``path``; where that is a link, the file that it points to was written.

    Raises:
        GatedInterpError: see :func:`require_place`; the folder cannot be made or written, or the
            disk is full.
    """
    path, place = Path(path), require_place(path)
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        # The suffix stays: libraries choose a format by it.
        handle, name = tempfile.mkstemp(
            dir=place.parent, prefix=f".{place.stem}-", suffix=place.suffix or ".tmp"
        )
    except OSError as error:
        raise refused(path, error) from error
    os.close(handle)
    temporary = Path(name)
    try:
        write(temporary)
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        temporary.chmod(0o666 & ~_umask())
        os.replace(temporary, place)
    except OSError as error:
        raise refused(path, error) from error
    finally:
        temporary.unlink(missing_ok=True)
    return path


def write_folder(path: Path | str, write: Callable[[Path], object]) -> Path:
    """Let ``write`` fill a temporary folder beside ``path``, then rename it into place.

    Where another process has put a folder there meanwhile, its one stays.

    Raises:
        GatedInterpError: the folder cannot be made or written, or the disk is full.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}-"))
    except OSError as error:
        raise refused(path, error) from error
    try:
        write(temporary)
        temporary.chmod(0o777 & ~_umask())
        try:
            temporary.rename(path)
        except OSError:
            if not path.is_dir():
                raise
    except OSError as error:
        raise refused(path, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return path


def _umask() -> int:
    """What new files may not be; asking for it means setting it."""
    umask = os.umask(0)
    os.umask(umask)
    return umask


def refused(path: Path, error: OSError) -> GatedInterpError:
    """What to raise where ``path`` cannot be written: what is wrong, and what would be right."""
    if isinstance(error, IsADirectoryError):
        return GatedInterpError(f"cannot write {path}: it is a folder; name a file.")
    advice = "name a folder that can be written"
    if error.errno in FULL:
        advice = "make room, or name a folder elsewhere, and run it again"
    return GatedInterpError(f"cannot write {path}: {error.strerror or error}; {advice}.")


def write_table(table: Any, path: Path | str, float_format: str | None = "%.6g") -> Path:
    """Write a pandas ``table`` to ``path`` as CSV without its index, whole or not at all."""
    return write_whole(path, lambda p: table.to_csv(p, index=False, float_format=float_format))


def write_text(path: Path | str, text: str) -> Path:
    """Write ``text`` (UTF-8) to ``path``, whole or not at all."""
    return write_whole(path, lambda p: p.write_text(text, encoding="utf-8"))
