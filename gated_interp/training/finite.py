"""Losses that are not finite end a training, which need not wait for the device to find out."""

import torch
from torch import Tensor

from gated_interp.core.errors import GatedInterpError
from gated_interp.training.config import TrainConfig


class FiniteLosses:
    """Remembers the first loss that is not finite without waiting for the device."""

    def __init__(self, config: TrainConfig, device: torch.device):
        self.config = config
        self.first = torch.full((), -1, device=device)
        self.value = torch.zeros((), device=device)

    def see(self, loss: Tensor, step: int) -> None:
        """Note the loss of a step."""
        new = (self.first < 0) & ~loss.isfinite()
        self.first = torch.where(new, step, self.first)
        self.value = torch.where(new, loss, self.value)

    def require(self) -> None:
        """Wait for the device."""
        step = int(self.first)
        if step >= 0:
            raise GatedInterpError(
                "loss-not-finite", loss=float(self.value), step=step, lr=self.config.lr
            )
