"""Hold the FVU at a target by moving the weight of the penalties."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from gated_interp.training.config import TrainConfig

# The running mean of the FVU forgets within some 50 steps.
KEPT = 0.98
MOST = math.log(10.0)


class FvuControl:
    """A factor per run on the penalties, like the multiplier of a constrained optimisation.

    Args:
        configs: one per run; a run without ``fvu_target`` keeps the factor 1.

    Attributes:
        state: ``[2 run]``, the factor's logarithm and the running mean of the FVU: all there is to
            save and restore.
    """

    def __init__(self, configs: list[TrainConfig], device: str | torch.device = "cpu"):
        targets = [math.nan if c.fvu_target is None else c.fvu_target for c in configs]
        self.target = torch.tensor(targets, device=device)
        self.rate = torch.tensor([c.fvu_rate for c in configs], device=device)
        floors = [math.log(c.factor_floor) for c in configs]
        self.least = torch.tensor(floors, device=device)
        starts = [c.fvu_from * c.steps for c in configs]
        self.start = torch.tensor(starts, device=device)
        self.any_target = any(c.fvu_target is not None for c in configs)
        self.state: Float[Tensor, "2 run"] = torch.zeros(2, len(configs), device=device)
        self.state[1] = 1.0
        # Where a factor has a start, the mean begins with the first step and not at 1.
        self.since_start = torch.tensor([c.factor_start is not None for c in configs])
        self.since_start = self.since_start.to(device)
        for run, config in enumerate(configs):
            if config.factor_start is not None:
                self.state[0, run] = math.log(config.factor_start)
                self.least[run] = min(floors[run], math.log(config.factor_start))

    @property
    def factor(self) -> Float[Tensor, " run"]:
        """What the penalties of each run are multiplied by."""
        return self.state[0].exp()

    def error(self, steps: int) -> Float[Tensor, " run"]:
        """What the running mean of the FVU is after so many steps, without the 1 it started at."""
        start = KEPT**steps
        return (self.state[1] - start) / (1 - start)

    @torch.no_grad()
    def observe(self, fvu: Float[Tensor, " run"], step: int) -> None:
        """Take in a step's FVU; the factor moves in the runs whose ``fvu_from`` is past."""
        if not self.any_target:
            return
        log_factor, mean = self.state
        mean.mul_(KEPT).add_(fvu, alpha=1 - KEPT)
        mean = torch.where(self.since_start, self.error(step + 1), mean)
        too_high = (4 * (mean - self.target) / self.target).clamp(-1, 1).nan_to_num(0.0)
        moved = log_factor - self.rate * too_high * (step >= self.start)
        log_factor.copy_(moved.clamp(self.least, torch.full_like(self.least, MOST)))
