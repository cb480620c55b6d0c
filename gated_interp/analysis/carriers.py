"""Which heads of a layer carry each variable of a program: by interchange of heads."""

import dataclasses
from collections.abc import Callable, Mapping

import torch
from jaxtyping import Float, Int
from torch import Tensor

from gated_interp.anatomy.nodes import patch_nodes, read_nodes
from gated_interp.core.written import head_name
from gated_interp.models.toy import HookedTransformer

Asked = Callable[[Tensor], Tensor]
"""From logits, how far the right answer is ahead of the other prompt's, ``[asked]``."""
MOST = 0.9
"""The share of a variable that one head must have to carry it alone."""


@dataclasses.dataclass(frozen=True)
class Carriers:
    """What each head of a layer has of each variable.

    Attributes:
        variables: their names.
        effects: mean change of a variable's metric either way as one head writes what it writes on
            the other prompt, relative to the distance between the prompts' metrics.
        swapped: share of prompts that get the other prompt's answer when the variable's first head
            alone is swapped.
        kept: share that keep their own answer when all other heads of the layer are.
        at_once: the largest head's share of the change in one prompt, averaged over prompts. Where
            this is high and :attr:`share` is not, heads take turns.
    """

    variables: list[str]
    effects: Float[Tensor, "variable head"]
    swapped: Float[Tensor, " variable"]
    kept: Float[Tensor, " variable"]
    at_once: Float[Tensor, " variable"]

    @property
    def shares(self) -> Float[Tensor, "variable head"]:
        """Effects, relative to their sum over heads."""
        return self.effects / self.effects.sum(1, keepdim=True)

    @property
    def first(self) -> Int[Tensor, " variable"]:
        """The head with the largest effect on each variable."""
        return self.effects.argmax(1)

    @property
    def share(self) -> Float[Tensor, " variable"]:
        """What that head has of all."""
        return self.shares.amax(1)

    @property
    def needed(self) -> Int[Tensor, " variable"]:
        """How many heads it takes, the largest first, to have :data:`MOST` of a variable."""
        summed = self.shares.sort(dim=1, descending=True).values.cumsum(1)
        return (summed < MOST - 1e-6).sum(1) + 1

    @property
    def cross(self) -> Float[Tensor, " variable"]:
        """The largest effect of a variable's first head on another variable."""
        others = self.effects[:, self.first].T.clone()  # [first head's variable, variable]
        return others.fill_diagonal_(0).amax(1)

    @property
    def pure(self) -> float:
        """How far each head works for one variable: 1 if all do, 0.5 if all work for two alike.

        The shares of each head's main variable, relative to all shares.
        """
        return float(self.shares.amax(0).sum() / self.shares.sum())

    @property
    def own(self) -> bool:
        """Whether each variable has :data:`MOST` in one head, and no two in the same.

        Examples:
            >>> effects = torch.tensor([[0.95, 0.05], [0.4, 0.6]])
            >>> Carriers(["a", "b"], effects, *[torch.ones(2)] * 3).own
            False
        """
        apart = len(set(self.first.tolist())) == len(self.variables)
        return apart and bool((self.needed == 1).all())


@torch.no_grad()
def carriers(
    model: HookedTransformer,
    layer: int,
    clean: Int[Tensor, "prompt pos"],
    corrupted: Int[Tensor, "prompt pos"],
    variables: Mapping[str, Asked],
) -> Carriers:
    """Swap heads of a layer, original or replaced, one by one, and see which variables move.

    Args:
        clean, corrupted: prompts of the same length.
        variables: by name, its metric.
    """
    logits, _ = read_nodes(model, clean)
    other, written = read_nodes(model, corrupted)
    heads = [head_name((layer, h)) for h in range(len(model.blocks[layer].attn.W_O))]

    def swapped(nodes: list[str]) -> Tensor:
        return patch_nodes(model, clean, {node: written[node] for node in nodes})

    alone, effects, flips, keeps, turns = [swapped([h]) for h in heads], [], [], [], []
    for metric in variables.values():
        base = metric(logits)
        distance = (base - metric(other)).mean()
        moved = torch.stack([(metric(x) - base).abs() for x in alone])  # [head prompt]
        effects.append(moved.mean(1) / distance)
        turns.append((moved.amax(0) / moved.sum(0).clamp(min=1e-9)).mean())
        first = int(effects[-1].argmax())
        rest = metric(swapped([h for i, h in enumerate(heads) if i != first]))
        flips.append((metric(alone[first]) < 0).float().mean())
        keeps.append((rest > 0).float().mean())
    return Carriers([*variables], *map(torch.stack, (effects, flips, keeps, turns)))
