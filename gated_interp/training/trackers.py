"""Trackers that a training reports to: TensorBoard, Weights & Biases, or any function."""

import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from gated_interp.core.config import Config
from gated_interp.core.errors import GatedInterpError

Tracker = Callable[[int, Mapping[str, float]], object]
"""Told the numbers of each logged step, such as ``tracker(30, {"loss": 0.1, "lr": 0.02})``."""


def tensorboard(folder: Path | str) -> Tracker:
    """A tracker that writes to ``folder``, for ``tensorboard --logdir FOLDER``."""
    writer = _module("torch.utils.tensorboard", "tensorboard").SummaryWriter(str(folder))

    def tracker(step: int, numbers: Mapping[str, float]) -> None:
        for name, value in numbers.items():
            writer.add_scalar(name, value, step)
        writer.flush()

    return tracker


def wandb(name: str, config: Config | None = None, **settings: object) -> Tracker:
    """A tracker that reports to Weights & Biases, as the run ``name``.

    Args:
        config: what the run is said to be trained with.
        **settings: arguments of ``wandb.init``; the project is ``gated-interp`` unless given.
    """
    said = {} if config is None else config.to_dict()
    run = _module("wandb", "wandb").init(
        **{"project": "gated-interp", "name": name, "config": said} | settings
    )
    return lambda step, numbers: run.log(dict(numbers), step=step)


def tracker_named(name: str, path: Path, config: Config) -> Tracker:
    """The tracker called ``name``, for the training of the file ``path``."""
    if name == "tensorboard":
        return tensorboard(path.with_suffix(".tensorboard"))
    if name == "wandb":
        return wandb(path.stem, config)
    raise GatedInterpError("no-such-tracker", name=name)


def _module(name: str, package: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise GatedInterpError("tracker-package-missing", package=package) from error
