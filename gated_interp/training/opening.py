"""Training against an adversary: closed gates are opened, and the block must still write the same.

What is opened is as in :func:`~gated_interp.analysis.adversary.adversary_ladder`.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from gated_interp.core.errors import GatedInterpError
from gated_interp.metrics.reconstruction import OPEN
from gated_interp.replacements.gated_attention import GatedAttention
from gated_interp.replacements.replacement import Replacement
from gated_interp.training.config import TrainConfig


def require_gates(block: Replacement, config: TrainConfig) -> None:
    """Refuse to open the gates of a block that has none.

    Raises:
        GatedInterpError: ``opened_share`` with another kind of block.
    """
    if config.opened_share and not isinstance(block, GatedAttention):
        raise GatedInterpError("opened-needs-gates", kind=block.kind)


def opens(step: int, config: TrainConfig) -> bool:
    """Whether gates are opened in this step: in ``opened_share`` of all, evenly spread.

    Examples:
        >>> [opens(step, TrainConfig(opened_share=0.25)) for step in range(4)]
        [True, False, False, False]
    """
    share = config.opened_share
    return math.ceil((step + 1) * share - 1e-9) > math.ceil(step * share - 1e-9)


def added(gate: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """What opens each closed gate fully; nothing where a gate is open already."""
    return (gate <= OPEN) * (1 - gate)


def coins(shape: tuple[int, ...], source: torch.Generator) -> Tensor:
    """What is opened at random, each with probability one half."""
    return torch.rand(shape, generator=source, device=source.device) < 0.5


@contextmanager
def opened_by(block: GatedAttention, by: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """The block with its closed gates opened: ``by`` is given a gate and says how far, 0 to 1."""

    def open_(_module: Any, _args: Any, gate: Tensor) -> Tensor:
        return gate + by(gate) * added(gate)

    handle = block.hook_gate.register_forward_hook(open_)
    try:
        yield
    finally:
        handle.remove()


def opened_error(
    block: GatedAttention,
    error: Callable[[], Float[Tensor, ""]],
    steps: int,
    source: torch.Generator,
) -> Float[Tensor, ""]:
    """The error of the block with its closed gates opened at random or by an adversary.

    Args:
        error: runs the block.
        steps: of the adversary, which begins with every gate half open; in each step it opens
            those that raise the error and closes the others. With 0 each gate is open with
            probability one half.
        source: of what is random.
    """

    if not steps:
        with opened_by(block, lambda gate: coins(gate.shape, source).to(gate)):
            return error()
    by: Tensor | None = None

    def so_far(gate: Tensor) -> Tensor:
        nonlocal by
        by = (torch.full_like(gate, 0.5) if by is None else by).detach().requires_grad_()
        return by

    for _ in range(steps):
        with opened_by(block, so_far):
            found = error()
        assert by is not None
        (slope,) = torch.autograd.grad(found, by)
        by = (slope > 0).to(slope)
    assert by is not None
    chosen: Tensor = by
    with opened_by(block, lambda _gate: chosen):
        return error()
