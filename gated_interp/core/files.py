"""Files are written whole or not at all, and never over an input or over what is no file."""

import errno
import os
import platform
import re
import secrets
import shutil
import stat
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from gated_interp.core.errors import GatedInterpError

# The disk, a quota, or the largest file that is allowed.
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

# What is being written says by whom: machine, process, and which of all that had its number.
RUN = secrets.token_hex(4)
TEMPORARY = re.compile(r"\..*~([0-9a-f]{8})-(\d+)-([0-9a-f]{8})-\w+(\.\w+)?")

_inputs: ContextVar[tuple[Path, ...]] = ContextVar("inputs", default=())


def home() -> Path:
    """The user's folder; that of temporary files for a user who has none."""
    found = os.path.expanduser("~")
    return Path(tempfile.gettempdir() if found == "~" else found)


@contextmanager
def kept(inputs: Iterable[Path]) -> Iterator[None]:
    """Inside, no file is written over one of ``inputs``, whatever path leads to it."""
    token = _inputs.set(tuple(inputs))
    try:
        yield
    finally:
        _inputs.reset(token)


def require_place(path: Path | str) -> Path:
    """The file that ``path`` means, whether it is there yet or not: what a link points to."""
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
        raise GatedInterpError("not-an-ordinary-file", path=path)
    if is_input:
        raise GatedInterpError("output-is-an-input", path=path)
    return place


def write_whole(path: Path | str, write: Callable[[Path], object]) -> Path:
    """Let ``write`` fill a temporary file beside ``path``, then rename it into place.

    Whatever stood at ``path`` stays untouched unless ``write`` returns.

    Returns:
        ``path``; where that is a link, the file that it points to was written.
    """
    path, place = Path(path), require_place(path)
    try:
        prefix = _begun_in(place)
        # The suffix stays: libraries choose a format by it.
        handle, name = tempfile.mkstemp(
            dir=place.parent, prefix=prefix, suffix=place.suffix or ".tmp"
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
    """
    path = Path(path)
    try:
        temporary = Path(tempfile.mkdtemp(prefix=_begun_in(path), dir=path.parent))
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


def _begun_in(path: Path) -> str:
    """How the name of what will be ``path`` begins; in its folder, which is made, nothing stays of
    what a process was writing that was killed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # Another machine, or container, has processes of its own.
    space = os.stat("/proc/self/ns/pid").st_ino if os.path.exists("/proc/self/ns/pid") else 0
    here = f"{zlib.crc32(f'{platform.node()} {space}'.encode()):08x}"
    for name in os.listdir(path.parent):
        found = TEMPORARY.fullmatch(name)
        if found and found[1] == here and not _runs(int(found[2]), found[3]):
            shutil.rmtree(path.parent / name, ignore_errors=True)
            with suppress(OSError):
                (path.parent / name).unlink(missing_ok=True)
    return f".{path.stem[:50]}~{here}-{os.getpid()}-{RUN}-"


def _runs(process: int, run: str) -> bool:
    if process == os.getpid():
        return run == RUN
    if os.name == "nt":  # where asking would end it
        return True
    try:
        os.kill(process, 0)
    except OSError as error:
        return not isinstance(error, ProcessLookupError)
    return True


def _umask() -> int:
    """What new files may not be; asking for it means setting it."""
    umask = os.umask(0)
    os.umask(umask)
    return umask


def refused(path: Path, error: OSError) -> GatedInterpError:
    """What to raise where ``path`` cannot be written: what is wrong, and what would be right."""
    if isinstance(error, IsADirectoryError):
        return GatedInterpError("output-is-a-folder", path=path)
    return GatedInterpError(
        "disk-full" if error.errno in FULL else "cannot-write",
        path=path,
        reason=error.strerror or error,
    )


def write_table(table: Any, path: Path | str, float_format: str | None = "%.6g") -> Path:
    """Write a pandas ``table`` to ``path`` as CSV without its index, whole or not at all."""
    return write_whole(path, lambda p: table.to_csv(p, index=False, float_format=float_format))


def write_text(path: Path | str, text: str) -> Path:
    r"""Write ``text`` (UTF-8) to ``path``, whole or not at all.

    What is no character (half of a surrogate pair, in a file's name or a model's notes) is written
    as ``\\udc80``.
    """
    data = text.encode("utf-8", "backslashreplace")
    return write_whole(path, lambda p: p.write_bytes(data))
