"""Gate activations: from a gate score to how far the gate is open.

``clamp`` is the post's; ``binary``, ``relu`` and ``tanh`` are the functions its appendix tried.
``hard_concrete`` is from Louizos, Welling & Kingma, *Learning Sparse Neural Networks through L0
Regularization* (2018). ``bernoulli`` is that of query-key gates under a constraint (arXiv
2512.05865): open or shut by a coin toss, with a straight-through gradient.
"""

import math
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

GateActivation = Literal["clamp", "relu", "tanh", "binary", "hard_concrete", "bernoulli", "open"]

# The stretch interval and temperature of the hard-concrete paper (section 2.2 and appendix).
GAMMA, ZETA, TEMPERATURE = -0.1, 1.1, 2 / 3


def gate_activation(
    scores: Float[Tensor, "*shape"],
    kind: GateActivation,
    noise: Float[Tensor, "*shape"] | None = None,
) -> Float[Tensor, "*shape"]:
    """How far each gate is open, ``[*shape]``, from its score.

    - ``clamp``: ``clamp(s, 0, 1)``.
    - ``relu``: ``max(s, 0)``, unbounded above.
    - ``tanh``: ``tanh(max(s, 0))``, so that it opens smoothly and shuts exactly.
    - ``binary``: 1 where ``s > 0.5`` else 0; the gradient is that of ``clamp``
      (straight-through).
    - ``hard_concrete``: ``clamp(sigmoid(s + noise) * (zeta - gamma) + gamma, 0, 1)``; with noise
      (see :func:`logistic_noise`) the sum is divided by the temperature 2/3.
    - ``bernoulli``: 1 where ``s + noise > 0`` else 0, so open with probability ``sigmoid(s)``; the
      gradient is the sigmoid's. Without noise open where ``s > 0``.
    - ``open``: 1.

    Examples:
        >>> gate_activation(torch.tensor([-1.0, 0.25, 3.0]), "clamp").tolist()
        [0.0, 0.25, 1.0]
    """
    if kind == "clamp":
        return scores.clamp(0, 1)
    if kind == "relu":
        return scores.relu()
    if kind == "tanh":
        return scores.relu().tanh()
    if kind == "binary":
        soft = scores.clamp(0, 1)
        return soft + ((scores > 0.5).to(scores.dtype) - soft).detach()
    if kind == "open":
        return torch.ones_like(scores)
    if kind == "bernoulli":
        chance = scores.sigmoid()
        drawn = (scores if noise is None else scores + noise) > 0
        return chance + (drawn.to(scores.dtype) - chance).detach()
    concrete = scores if noise is None else (scores + noise) / TEMPERATURE
    return (concrete.sigmoid() * (ZETA - GAMMA) + GAMMA).clamp(0, 1)


# The score that a copied head's gates start at: as open as an activation lets a gate be that still
# has a slope. Clamps pass the gradient at exactly 1; tanh and hard_concrete reach 1 only where they
# are flat; in training all but 0.03% of the draws of a bernoulli gate are open at 8.
OPEN_SCORE: dict[GateActivation, float] = {
    "clamp": 1.0,
    "relu": 1.0,
    "tanh": 1.0,
    "binary": 1.0,
    "hard_concrete": 2.0,
    "bernoulli": 8.0,
    "open": 1.0,
}


def is_drawn(kind: GateActivation) -> bool:
    """Whether gates of this kind are drawn in training."""
    return kind in ("hard_concrete", "bernoulli")


def logistic_noise(
    shape: tuple[int, ...], generator: torch.Generator, device: str | torch.device = "cpu"
) -> Tensor:
    """Logistic noise ``log(u) - log(1 - u)`` of ``shape``, what drawn gates add to their scores."""
    u = torch.rand(shape, generator=generator, device=generator.device).clamp(1e-6, 1 - 1e-6)
    return (u.log() - (-u).log1p()).to(device)


def expected_open(scores: Float[Tensor, "*shape"], kind: GateActivation) -> Float[Tensor, "*shape"]:
    """The probability that each drawn gate is not shut, 0 to 1.

    ``sigmoid(s)`` for ``bernoulli``; ``sigmoid(s - temperature * log(-gamma / zeta))`` for
    ``hard_concrete`` (equation 12 of its paper).
    """
    if kind == "hard_concrete":
        return (scores - TEMPERATURE * math.log(-GAMMA / ZETA)).sigmoid()
    return scores.sigmoid()


class _HeadNorm(torch.autograd.Function):
    """``(sum_h |g|^p)^(1/p)``; the powers are made once, for the norm and for its gradient."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, p: float, eps: float) -> Tensor:
        # log and exp together take a quarter of pow's time; the logarithm of 0 takes longer.
        powers = gate.abs().clamp_(min=eps).log_().mul_(p).exp_()
        nn.functional.threshold(powers, 1.001 * eps**p, 0.0, inplace=True)
        norm = powers.sum(-3).pow_(1 / p)
        ctx.save_for_backward(gate, powers, norm)
        ctx.p = p
        return norm

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        gate, powers, norm = ctx.saved_tensors
        steep = torch.where(norm > 0, norm, 1.0).pow_(1 - ctx.p).mul_(grads[0])
        # |g|^p / g is sign(g) |g|^(p - 1); a shut gate's 0 / 0 stands for no slope.
        return powers.div(gate).nan_to_num_(0.0).mul_(steep.unsqueeze(-3)), None, None


def head_norm(
    gate: Float[Tensor, "*batch head_index query key"], p: float, eps: float = 1e-7
) -> Float[Tensor, "*batch query key"]:
    """The p-(quasi)norm over heads of each (query, key) pair, ``(sum_h |g|^p)^(1/p)``.

    Where every gate is shut the norm and its gradient are zero. Below 1 the slope at zero is
    infinite; gates below ``eps`` therefore count, with a zero gradient, as shut.
    """
    norm: Tensor = _HeadNorm.apply(gate, p, eps)  # type: ignore[no-untyped-call]
    return norm
