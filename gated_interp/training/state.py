"""A training that can be taken up again: weights, Adam's moments, step and history in one file.

Safetensors with JSON metadata; nothing in it is ever unpickled. There is no generator state: every
step's data and noise are drawn from a seed of their own.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from gated_interp.core.errors import CheckpointError, GatedInterpError
from gated_interp.core.files import write_whole

FORMAT = "gated_interp.training_state"
VERSION = 1
MOMENTS = ("exp_avg", "exp_avg_sq", "step")
FREE = ("device", "checkpoint_every")  # settings that may differ between the parts of a training

Row = dict[str, float]


def fingerprint(module: nn.Module, *, trained: bool = False) -> str:
    """A hash of the weights of ``module``: the frozen ones, or with ``trained`` all of them."""
    digest = hashlib.sha256()
    for name, parameter in module.named_parameters():
        if trained or not parameter.requires_grad:
            digest.update(f"{name}{tuple(parameter.shape)}{parameter.dtype}".encode())
            flat = parameter.detach().cpu().contiguous().view(-1).view(torch.uint8)
            digest.update(flat.numpy().tobytes())
    return digest.hexdigest()[:16]


def save_state(
    path: Path,
    identity: Mapping[str, Any],
    parameters: Mapping[str, nn.Parameter],
    optimizer: torch.optim.Adam,
    done: int,
    history: list[Row],
) -> None:
    """Write the state after ``done`` updates to ``path``, whole or not at all.

    Raises:
        GatedInterpError: the file cannot be written.
    """
    columns = list(history[0]) if history else []
    rows = [[row[c] for c in columns] for row in history]
    tensors = {"history": torch.tensor(rows, dtype=torch.float64).view(len(rows), len(columns))}
    for name, parameter in parameters.items():
        tensors[f"weight.{name}"] = parameter.detach().cpu().contiguous()
        for moment, value in optimizer.state[parameter].items():
            tensors[f"adam.{name}.{moment}"] = value.detach().cpu().contiguous()
    metadata = {
        "format": FORMAT,
        "version": str(VERSION),
        "identity": json.dumps(identity),
        "columns": json.dumps(columns),
        "done": str(done),
    }
    write_whole(path, lambda p: save_file(tensors, p, metadata))


def load_state(
    path: Path,
    identity: Mapping[str, Any],
    parameters: Mapping[str, nn.Parameter],
    optimizer: torch.optim.Adam,
) -> tuple[int, list[Row]]:
    """Put the saved weights and moments in place; how many updates were made, and the history.

    Raises:
        CheckpointError: no such file, not a training state, or one of another training.
    """
    tensors, metadata = _read(path)
    try:
        saved = json.loads(metadata["identity"])
        columns, done = json.loads(metadata["columns"]), int(metadata["done"])
        rows = [dict(zip(columns, row, strict=True)) for row in tensors["history"].tolist()]
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"the metadata of {path} cannot be read; it is damaged.") from error
    _require_same(path, saved, json.loads(json.dumps(identity)))
    _require_tensors(path, tensors, parameters)
    optimizer.state.clear()
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(tensors[f"weight.{name}"])
            if f"adam.{name}.step" in tensors:
                # Adam counts its steps on the CPU whatever the device.
                optimizer.state[parameter] = {
                    m: tensors[f"adam.{name}.{m}"].to("cpu" if m == "step" else parameter.device)
                    for m in MOMENTS
                }
    return done, rows


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    if not path.is_file():
        raise CheckpointError(f"there is no file {path} to resume from.")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path} is not a whole safetensors file; resume from one that a training saved."
        ) from error
    if metadata.get("format") != FORMAT:
        raise CheckpointError(f"{path} holds no training state; a checkpoint=PATH training does.")
    if metadata.get("version") != str(VERSION):
        raise CheckpointError(
            f"{path} has version {metadata.get('version')} of the training state; "
            f"this package reads version {VERSION}."
        )
    return tensors, metadata


def _require_same(path: Path, saved: dict[str, Any], wanted: dict[str, Any]) -> None:
    """The first difference, named by its innermost key."""
    for key in sorted({*saved, *wanted} - {*FREE}):
        a, b = saved.get(key), wanted.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            _require_same(path, a, b)
        elif a != b:
            raise CheckpointError(
                f"{path} was saved by a training with {key} {a!r}; this one has {b!r}: "
                "resume with the same settings."
            )


def _require_tensors(
    path: Path, tensors: Mapping[str, Tensor], parameters: Mapping[str, nn.Parameter]
) -> None:
    for name, parameter in parameters.items():
        names = [f"weight.{name}", *(f"adam.{name}.{m}" for m in MOMENTS)]
        there = [n for n in names if n in tensors]
        shapes = [tuple(tensors[n].shape) for n in there if not n.endswith(".step")]
        if (
            len(there) not in (1, 4)
            or names[0] not in there
            or any(s != tuple(parameter.shape) for s in shapes)
        ):
            raise CheckpointError(f"{path} lacks a whole state of {name}; it is damaged.")


def require_writable(path: Path | None) -> None:
    """Refuse a checkpoint path that is a folder, before the training and not after it.

    Raises:
        GatedInterpError: ``path`` is a folder.
    """
    if path is not None and path.is_dir():
        raise GatedInterpError(f"cannot write {path}: it is a folder; name a file.")
