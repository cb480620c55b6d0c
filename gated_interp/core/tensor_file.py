"""Read a safetensors file that nobody vouches for: the header first, then only what was expected.

Nothing is allocated for a tensor before its shape has been compared with what it should be, and
every shape in a header that safetensors accepts is backed by that many bytes in the file.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from gated_interp.core.config import Shapes
from gated_interp.core.errors import CheckpointError, GatedInterpError

MAX_BYTES = 2**32  # far above any block; keeps a wrong file from filling the memory


@dataclasses.dataclass(frozen=True)
class Header:
    """What stands before the tensors of a safetensors file.

    Attributes:
        metadata: the file's free strings.
        shapes: shape of each tensor by name.
        dtypes: safetensors' name of each tensor's type, such as ``F32``.
    """

    metadata: dict[str, str]
    shapes: Shapes
    dtypes: dict[str, str]


def read_header(path: Path) -> Header:
    """The header of ``path``; no tensor is read."""
    with _opened(path) as file:
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
        return Header(
            metadata=dict(file.metadata() or {}),
            shapes={name: tuple(s.get_shape()) for name, s in slices.items()},
            dtypes={name: str(s.get_dtype()) for name, s in slices.items()},
        )


def require_shapes(path: Path, header: Header, wanted: Mapping[str, tuple[int, ...]]) -> None:
    """Refuse a file that does not hold exactly the ``wanted`` tensors, all float32."""
    for name, shape in wanted.items():
        if name not in header.shapes:
            raise CheckpointError("tensor-missing", path=path, name=name, shape=list(shape))
        if header.shapes[name] != shape:
            raise CheckpointError(
                "tensor-wrong-shape",
                path=path,
                name=name,
                shape=list(header.shapes[name]),
                wanted=list(shape),
            )
        if header.dtypes[name] != "F32":
            raise CheckpointError(
                "tensor-wrong-type", path=path, name=name, type=header.dtypes[name]
            )
    extra = sorted(set(header.shapes) - set(wanted))
    if extra:
        raise CheckpointError("tensor-unexpected", path=path, name=extra[0], wanted=[*wanted])


def read_tensors(path: Path, wanted: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """The ``wanted`` tensors of a file whose header was found sound."""
    with _opened(path) as file:
        tensors = {name: file.get_tensor(name) for name in wanted}
    for name, tensor in tensors.items():
        if tuple(tensor.shape) != wanted[name] or tensor.dtype != torch.float32:
            raise CheckpointError("file-changed", path=path)
    require_finite(str(path), tensors)
    return tensors


def require_finite(where: str, tensors: Mapping[str, Tensor]) -> None:
    """Refuse tensors with a NaN or an infinity in them."""
    for name, tensor in tensors.items():
        bad = int((~tensor.isfinite()).sum())
        if bad:
            raise CheckpointError(
                "tensor-not-finite", path=where, bad=bad, total=math.prod(tensor.shape), name=name
            )


def written(path: Path, data: bytes, read: Callable[[Path], object]) -> None:
    """Write ``data`` to ``path`` and ``read`` it back, so that nothing unreadable stays there."""
    path.write_bytes(data)
    try:
        read(path)
    except GatedInterpError as error:
        reason = str(error).replace(str(path), "the file")
        raise CheckpointError("read-back-failed", reason=reason) from error


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        if path.is_dir():
            raise CheckpointError("checkpoint-is-a-folder", path=path)
        if not path.exists():
            raise CheckpointError("no-such-file", path=path)
        if not path.is_file():
            # A pipe or a device would be waited on for ever.
            raise CheckpointError("checkpoint-not-an-ordinary-file", path=path)
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise CheckpointError("file-too-large", path=path, size=size, most=MAX_BYTES)
        with safe_open(path, framework="pt") as file:
            yield file
    except SafetensorError as error:
        reason = str(error).removeprefix("Error while deserializing header: ")
        raise CheckpointError("not-safetensors", path=path, reason=reason) from error
    except OSError as error:
        raise CheckpointError("cannot-read", path=path, reason=error.strerror or error) from error
