"""Where a training runs, and everything back in its place afterwards."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from gated_interp.core.errors import GatedInterpError
from gated_interp.models.toy import HookedTransformer, clone
from gated_interp.replacements.replacement import Replacement
from gated_interp.training.config import TrainConfig


def pick_device(config: TrainConfig) -> torch.device:
    """Where to train."""
    there = torch.cuda.is_available()
    if config.device == "cuda" and not there:
        raise GatedInterpError("no-gpu")
    if config.device == "cpu" or not there:
        return torch.device("cpu")
    return torch.device("cuda", torch.cuda.current_device())


def copied_to(model: HookedTransformer, device: torch.device) -> HookedTransformer:
    """``model`` itself where it is on ``device`` already, else a copy that is."""
    if model.embed.W_E.device == device:
        return model
    copied = clone(model)
    _move(copied, device)
    return copied


@contextmanager
def moved(module: nn.Module, device: torch.device) -> Iterator[None]:
    """``module`` on ``device`` while the context is open, then back where it was.

    A replacement in half precision is in float32 meanwhile: Adam's steps are lost in it.
    """
    first = next(module.parameters())
    home, dtype = first.device, first.dtype
    half = isinstance(module, Replacement) and dtype.itemsize < 4
    _move(module, device)
    try:
        if half:
            module.float()
        yield
    finally:
        if half:
            module.to(dtype)
        _move(module, home)


@contextmanager
def settled_afterwards(block: Replacement) -> Iterator[None]:
    """What a replacement draws, it draws in training only: nothing once the context ends."""
    try:
        yield
    finally:
        block.settle()


def _move(module: nn.Module, device: torch.device) -> None:
    if next(module.parameters()).device == device:
        return
    if isinstance(module, HookedTransformer):
        module.to(device, print_details=False)  # also tells the model's config
    else:
        module.to(device)
