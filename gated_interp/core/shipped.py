"""The models that come with the package, and where a name or a path leads."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import as_file, files
from importlib.resources.abc import Traversable
from pathlib import Path

from gated_interp.core.errors import CheckpointError

SUFFIX = ".safetensors"
MODEL_FILE = f"model{SUFFIX}"  # the checkpoint in a folder or a hub repository


def _folder() -> Traversable:
    return files("gated_interp.checkpoints") / "shipped_models"


def shipped_names() -> list[str]:
    """Names of the models that come with the package, in alphabetical order.

    Examples:
        >>> shipped_names()[:2]
        ['2H3ST-gated', '2H3ST-toy']
    """
    if not _folder().is_dir():
        return []
    inside = (entry.name for entry in _folder().iterdir())
    return sorted(name.removesuffix(SUFFIX) for name in inside if name.endswith(SUFFIX))


@contextmanager
def located(source: str | os.PathLike[str]) -> Iterator[tuple[Path, str]]:
    """The checkpoint file that ``source`` means, and a short name for the model in it.

    Args:
        source: the name of a shipped model (which a file of that name does not hide; write
            ``./NAME`` for the file), a file, or a folder that holds ``model.safetensors``.
    """
    if isinstance(source, str) and source in shipped_names():
        with as_file(_folder() / f"{source}{SUFFIX}") as path:
            yield path, source
        return
    path = Path(source)
    try:
        is_folder, is_there = path.is_dir(), path.exists()
    except (OSError, ValueError) as error:
        raise CheckpointError("not-a-path", path=str(path), reason=error) from error
    if is_folder:
        if not (path / MODEL_FILE).exists():
            raise CheckpointError("folder-without-checkpoint", path=path, file=MODEL_FILE)
        yield path / MODEL_FILE, path.resolve().name
    elif is_there:
        yield path, path.stem
    elif isinstance(source, str) and path.name == source and not path.suffix:
        raise CheckpointError("no-such-model", source=source, names=shipped_names())
    else:
        raise CheckpointError("no-such-file", path=path)
