"""Adam over a flat tensor of runs, with a learning rate per run."""

import torch
from jaxtyping import Float
from torch import Tensor

BETA_1, BETA_2, EPS = 0.9, 0.999, 1e-8


class StackedAdam:
    """Adam (Kingma & Ba, 2015) on ``[run, weight]``; ``torch.optim.Adam`` has one rate for all.

    Args:
        weights: updated in place.
    """

    def __init__(self, weights: Float[Tensor, "run weight"]):
        self.weights = weights
        self.first = torch.zeros_like(weights)
        self.second = torch.zeros_like(weights)
        self.steps = 0

    @torch.no_grad()
    def step(self, grad: Float[Tensor, "run weight"], lr: Float[Tensor, "run 1"]) -> None:
        """One update with learning rate ``lr`` per run."""
        self.steps += 1
        self.first.lerp_(grad, 1 - BETA_1)
        self.second.mul_(BETA_2).addcmul_(grad, grad, value=1 - BETA_2)
        correction = (1 - BETA_2**self.steps) ** 0.5
        denominator = self.second.sqrt().div_(correction).add_(EPS)
        self.weights.sub_(self.first / denominator * (lr / (1 - BETA_1**self.steps)))
