"""Strict interchange training: a model comes to compute a program in the nodes that are named."""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import cross_entropy

from gated_interp.anatomy.batch import Batch
from gated_interp.anatomy.nodes import nodes_of, patch_nodes, read_nodes
from gated_interp.core.seeds import derive, generator
from gated_interp.core.streams import Stream
from gated_interp.models.program_model import ProgramTransformer
from gated_interp.tasks.programs import NONE
from gated_interp.training.config import TrainConfig
from gated_interp.training.state import Row


class Interchange:
    """Answer as the program does, also when nodes write what they write for another sequence.

    In each step every sequence is paired with the next one of the batch. In the second pass one
    node of the program at most writes what it writes for the other sequence, and so do none, some
    or all of the nodes that have no place in the program. The answer must be the program's with
    that variable interchanged. The loss is the cross-entropy (nats) of both passes. After Gupta et
    al. (2024), *InterpBench*, arXiv 2407.14494: strict interchange intervention training.

    Args:
        model: trained in place.
        nodes: by variable of the program, the node that computes it, such as ``L0H1``.
        config: how it is trained.
    """

    def __init__(self, model: ProgramTransformer, nodes: Mapping[str, str], config: TrainConfig):
        self.model, self.nodes, self.config = model, dict(nodes), config
        self.program = model.task.rule
        self.every = nodes_of(model)
        self.idle = [node for node in self.every if node not in self.nodes.values()]
        self.rates: dict[str, float] = {}
        self.state: dict[str, Tensor] = {}
        self.step = 0

    @property
    def identity(self) -> dict[str, Any]:
        """What a training must share with a saved one to go on from it."""
        return {"kind": "planted program", "nodes": self.nodes}

    def begin(self, step: int) -> None:
        self.step = step

    def loss(self, batch: Batch) -> Float[Tensor, ""]:
        source = generator(derive(self.config.seed, Stream.INTERCHANGED, self.step))
        n = len(batch.tokens)
        # -1: no variable is interchanged; nodes without a place: none, some or all.
        variable = torch.randint(-1, len(self.nodes), (n,), generator=source)
        share = torch.tensor([0.0, 0.5, 1.0])[torch.randint(3, (n, 1), generator=source)]
        idle = torch.rand(n, len(self.idle), generator=source) < share
        clean, patched, wanted, right = self.passes(batch.tokens, variable, idle)
        first, second = _loss(clean, right), _loss(patched, wanted)
        # Right answers with less of a lead would do for these; idle nodes should change nothing.
        alike = (right != NONE) & (variable < 0)[:, None]
        moved = (patched - clean.detach())[alike].square().mean() / clean[alike].detach().var()
        self.last = tuple(
            value.detach()
            for value in (first, second, moved, _right(clean, right), _right(patched, wanted))
        )
        return first + second + moved

    def passes(
        self,
        tokens: Int[Tensor, "batch pos"],
        variable: Int[Tensor, " batch"],
        idle: Bool[Tensor, "batch idle"],
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Logits of both passes, and the answers to the second and to the first."""
        other = tokens.roll(-1, 0)
        mine, source = self.program.run(tokens), self.program.run(other)
        wanted = mine[self.program.output].clone()
        for i, name in enumerate(self.nodes):
            answers = self.program.answers(tokens, {name: source[name]})
            wanted = torch.where((variable == i)[:, None], answers, wanted)
        clean, self.written = read_nodes(self.model, tokens)
        self.clean = clean
        theirs = {node: value.roll(-1, 0) for node, value in self.written.items()}
        swapped = {node: idle[:, i] for i, node in enumerate(self.idle)}
        instead, where = self.interchanged(self.written, theirs, variable)
        patched = patch_nodes(self.model, tokens, theirs | instead, swapped | where)
        return clean, patched, wanted, mine[self.program.output]

    def interchanged(
        self, mine: Mapping[str, Tensor], theirs: Mapping[str, Tensor], variable: Tensor
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """By node of a variable, what it writes in the second pass, and in which sequences."""
        nodes = self.nodes.values()
        where = {node: variable == i for i, node in enumerate(nodes)}
        return {node: theirs[node] for node in nodes}, where

    def measures(self) -> Row:
        names = (
            "cross_entropy",
            "interchanged",
            "moved_by_idle",
            "accuracy",
            "interchange_accuracy",
        )
        return {name: float(value) for name, value in zip(names, self.last, strict=True)}

    def settle(self) -> None:
        """Nothing follows an update."""

    @torch.no_grad()
    def held_out(self, batch: Batch) -> Row:
        kept = self.step, self.last
        self.loss(batch)
        row = self.measures()
        self.step, self.last = kept
        return row


def _loss(logits: Tensor, answers: Tensor) -> Float[Tensor, ""]:
    there = answers != NONE
    return cross_entropy(logits[there], answers[there])


def _right(logits: Tensor, answers: Tensor) -> Float[Tensor, ""]:
    there = answers != NONE
    return (logits.argmax(-1) == answers)[there].float().mean()
