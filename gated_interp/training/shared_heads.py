"""Interchange training of two variables in the same two heads, each in a rotated subspace."""

import math
from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from gated_interp.anatomy.batch import Batch
from gated_interp.anatomy.nodes import patch_nodes
from gated_interp.core.seeds import derive, generator
from gated_interp.core.streams import Stream
from gated_interp.models.program_model import ProgramTransformer
from gated_interp.tasks.programs import NONE
from gated_interp.training.config import TrainConfig
from gated_interp.training.interchange import Interchange

Width = Float[Tensor, "batch pos d_head"]


def rotated(first: Width, second: Width, degrees: int | float) -> tuple[Width, Width]:
    """What two heads write, in the coordinates of two variables.

    ::

        u_1 =  cos(angle) z_1 + sin(angle) z_2
        u_2 = -sin(angle) z_1 + cos(angle) z_2

    Args:
        first, second: z of each head.
        degrees: the angle; 0 leaves each variable to its own head, 45 gives each head half of both,
            and a negative angle turns back.

    Examples:
        >>> z = torch.ones(1, 1, 2), torch.zeros(1, 1, 2)
        >>> torch.allclose(rotated(*rotated(*z, 30), -30)[0], z[0])
        True
    """
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return c * first + s * second, c * second - s * first


class SharedInterchange(Interchange):
    """As :class:`Interchange`, where two variables live in rotated subspaces of two heads.

    A swap of a variable swaps its subspace in both heads and leaves the other subspace. Two further
    terms say that the heads share their work, and how. A subspace is silent where the other
    variable is asked: the variance that it has there, relative to where its own is asked. And the
    heads write in proportion: swapping any heads moves the logits by their shares of the variable
    (see :func:`shares`). Without these terms a head can do all the work of a variable and still
    pass every swap of a subspace, since what nobody reads may be anything.

    Args:
        model: trained in place.
        nodes: two variables, and the two heads of the one layer that share them.
        config: how it is trained.
        degrees: of the rotation, see :func:`rotated`.
    """

    def __init__(
        self,
        model: ProgramTransformer,
        nodes: Mapping[str, str],
        config: TrainConfig,
        degrees: int | float,
    ):
        super().__init__(model, nodes, config)
        self.degrees = degrees
        at = [self.every.index(node) for node in self.nodes.values()]
        self.shares = torch.zeros(2, len(self.every))
        self.shares[:, at] = shares(degrees)

    def interchanged(
        self, mine: Mapping[str, Tensor], theirs: Mapping[str, Tensor], variable: Tensor
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        own, other = self.subspaces(mine), self.subspaces(theirs)
        first, second = (
            o.where((variable == i)[:, None, None], u)
            for i, (u, o) in enumerate(zip(own, other, strict=True))
        )
        back = rotated(first, second, -self.degrees)
        everywhere = torch.ones_like(variable, dtype=torch.bool)
        nodes = self.nodes.values()
        return dict(zip(nodes, back, strict=True)), dict.fromkeys(nodes, everywhere)

    def loss(self, batch: Batch) -> Float[Tensor, ""]:
        loss, tokens = super().loss(batch), batch.tokens
        values = self.program.run(tokens)
        asked = [values[name] != NONE for name in self.nodes]
        sizes = [
            [(u[there] - u[there].mean(0)).square().sum(-1).mean() for there in asked]
            for u in self.subspaces(self.written)
        ]
        silence = sizes[0][1] / sizes[0][0] + sizes[1][0] / sizes[1][1]
        source = generator(derive(self.config.seed, Stream.INTERCHANGED, self.step, 1))
        swapped = torch.rand(len(tokens), len(self.every), generator=source) < 0.5
        proportion = self._proportion(tokens, asked, swapped)
        self.terms = float(silence.detach()), float(proportion.detach())
        ramp = min(1.0, max(0.0, 2 * self.step / self.config.steps - 0.2))
        return loss + ramp * (silence + 3 * proportion)

    def _proportion(
        self, tokens: Tensor, asked: list[Tensor], swapped: Tensor
    ) -> Float[Tensor, ""]:
        """The squared error of what swapped heads move, relative to a swap of all."""
        theirs = {node: value.roll(-1, 0) for node, value in self.written.items()}
        where = {node: swapped[:, i] for i, node in enumerate(self.every)}
        patched = patch_nodes(self.model, tokens, theirs, where)
        error, scale = [], []
        for there, share in zip(asked, self.shares, strict=True):
            both = there & there.roll(-1, 0)
            move = (self.clean.roll(-1, 0) - self.clean).detach()
            part = (swapped.float() @ share)[:, None, None]
            error.append((patched - self.clean.detach() - part * move)[both])
            scale.append(move[both])
        return torch.cat(error).square().mean() / torch.cat(scale).square().mean()

    def subspaces(self, written: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Both subspaces of what the heads wrote."""
        first, second = (written[node] for node in self.nodes.values())
        return rotated(first, second, self.degrees)


def shares(degrees: int | float) -> Float[Tensor, "variable head"]:
    """What each of two heads has of each of two variables that a rotation shares out.

    Examples:
        >>> shares(45).tolist()
        [[0.5, 0.5], [0.5, 0.5]]
    """
    most = round(math.cos(math.radians(degrees)) ** 2, 6)
    return torch.tensor([[most, 1 - most], [1 - most, most]])
