"""A training that can be taken up again: weights, Adam's moments, step and history in one file.

Safetensors with JSON metadata; nothing in it is ever unpickled. There is no generator state: every
step's data and noise are drawn from a seed of their own.
"""

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from gated_interp.core.config import Config
from gated_interp.core.errors import CheckpointError, GatedInterpError
from gated_interp.core.files import write_whole
from gated_interp.training.config import TrainConfig

FORMAT = "gated_interp.training_state"
# Version 1 called the one state beside the weights, the controller's, a weight.
VERSION, READABLE = 2, ("1", "2")
MOMENTS = ("exp_avg", "exp_avg_sq", "step")
FREE = ("device", "checkpoint_every")  # settings that may differ between the parts of a training

Row = dict[str, float]


@dataclasses.dataclass
class TrainingState:
    """Everything that a training goes on from.

    Attributes:
        identity: what a training must share with a saved one to go on from it: configs, and what
            JSON can hold.
        weights: those that train, by name.
        optimizer: theirs; holds the moments.
        others: further tensors by name, such as a controller's.
        done: updates made.
        history: rows logged so far.
    """

    identity: Mapping[str, Any]
    weights: Mapping[str, nn.Parameter]
    optimizer: torch.optim.Optimizer
    others: Mapping[str, Tensor]
    done: int = 0
    history: list[Row] = dataclasses.field(default_factory=list)

    def save(self, path: Path) -> None:
        """Write it to ``path``, whole or not at all."""
        columns = list(self.history[0]) if self.history else []
        rows = [[row.get(c, math.nan) for c in columns] for row in self.history]
        history = torch.tensor(rows, dtype=torch.float64).view(len(rows), len(columns))
        tensors = {"history": history}
        tensors |= {f"state.{name}": value for name, value in self.others.items()}
        for name, parameter in self.weights.items():
            tensors[f"weight.{name}"] = parameter
            for moment, value in self.optimizer.state[parameter].items():
                tensors[f"adam.{name}.{moment}"] = value
        metadata = {
            "format": FORMAT,
            "version": str(VERSION),
            "identity": json.dumps(self.identity, default=_plain),
            "columns": json.dumps(columns),
            "done": str(self.done),
        }
        data = save({n: t.detach().cpu().contiguous() for n, t in tensors.items()}, metadata)
        write_whole(path, lambda p: p.write_bytes(data))

    def load(self, path: Path) -> None:
        """Put what :meth:`save` wrote in place."""
        tensors, metadata = _read(path)
        try:
            saved = json.loads(metadata["identity"])
            columns, done = json.loads(metadata["columns"]), int(metadata["done"])
            rows = [dict(zip(columns, row, strict=True)) for row in tensors["history"].tolist()]
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError("training-state-damaged", path=path) from error
        _require_same(path, saved, self.identity)
        _require_tensors(path, tensors, self.weights, self.others)
        self.done, self.history = done, rows
        self.optimizer.state.clear()
        with torch.no_grad():
            for name, value in self.others.items():
                value.copy_(tensors[f"state.{name}"])
            for name, parameter in self.weights.items():
                parameter.copy_(tensors[f"weight.{name}"])
                if f"adam.{name}.step" in tensors:
                    # Adam counts its steps on the CPU whatever the device.
                    self.optimizer.state[parameter] = {
                        m: tensors[f"adam.{name}.{m}"].to(
                            "cpu" if m == "step" else parameter.device
                        )
                        for m in MOMENTS
                    }


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    if not path.is_file():
        raise CheckpointError("nothing-to-resume", path=path)
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise CheckpointError("training-state-incomplete", path=path) from error
    if metadata.get("format") != FORMAT:
        raise CheckpointError("not-a-training-state", path=path)
    if metadata.get("version") not in READABLE:
        raise CheckpointError(
            "unknown-training-state-version",
            path=path,
            version=metadata.get("version"),
            readable=READABLE,
        )
    if "weight.fvu_control" in tensors:
        tensors["state.fvu_control"] = tensors.pop("weight.fvu_control")
    return tensors, metadata


def _require_same(path: Path, saved: Any, wanted: Mapping[str, Any]) -> None:
    """The first difference, named by its innermost key."""
    for key in sorted({*saved, *wanted} - {*FREE}):
        a, b = saved.get(key), wanted.get(key)
        if isinstance(b, Config) and isinstance(a, dict):
            # Fields that came since then are what their absence meant.
            absent = TrainConfig.plain().to_dict() if isinstance(b, TrainConfig) else {}
            try:
                a, b = type(b).from_dict(absent | a).to_dict(), b.to_dict()
            except GatedInterpError as error:
                raise CheckpointError(
                    "training-state-of-another-version", path=path, reason=error
                ) from error
        if isinstance(a, dict) and isinstance(b, dict):
            _require_same(path, a, b)
        elif a != b:
            raise CheckpointError(
                "resume-with-other-settings", path=path, key=key, saved=a, wanted=b
            )


def _require_tensors(
    path: Path,
    tensors: Mapping[str, Tensor],
    weights: Mapping[str, nn.Parameter],
    others: Mapping[str, Tensor],
) -> None:
    for name, other in others.items():
        there = tensors.get(f"state.{name}")
        if there is None or there.shape != other.shape:
            raise CheckpointError("training-state-lacks-a-tensor", path=path, name=name)
    for name, parameter in weights.items():
        names = [f"weight.{name}", *(f"adam.{name}.{m}" for m in MOMENTS)]
        found = [n for n in names if n in tensors]
        shapes = [tuple(tensors[n].shape) for n in found if not n.endswith(".step")]
        if (
            len(found) not in (1, 4)
            or names[0] not in found
            or any(s != tuple(parameter.shape) for s in shapes)
        ):
            raise CheckpointError("training-state-lacks-a-tensor", path=path, name=name)


def _plain(config: Config) -> dict[str, Any]:
    """A config as files hold it, in the way of its own class."""
    return config.to_dict()
