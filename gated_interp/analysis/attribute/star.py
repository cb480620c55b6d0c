"""AtP*: attribution patching that sees saturated attention, and effects that cancel.

Two corrections (Kramár et al., 2024, arXiv 2403.00745). The attention pattern with patched queries
or keys is computed, not estimated, and multiplied with the gradient at the pattern. And sizes are
averaged over gradients that each leave out what one layer adds to the stream (GradDrop).
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from gated_interp.analysis.attribute.graph import Graph
from gated_interp.analysis.attribute.prompts import Prompts
from gated_interp.analysis.attribute.stream import (
    Edit,
    Watched,
    by_node,
    component_names,
    mlp_out,
    observed,
    watch,
)
from gated_interp.analysis.heads import intervened
from gated_interp.core.precision import wide

Nodes = tuple[Float[Tensor, "batch node"], Float[Tensor, " node"]]
Inputs = tuple[Float[Tensor, "batch input"], Float[Tensor, " input"]]
"""Scores of each prompt, and the sizes to rank by."""


def at_p_star(prompts: Prompts, graph: Graph) -> tuple[Nodes, list[str], Inputs]:
    """Scores of heads and MLPs; names and scores of queries, keys and values."""
    layers = range(len(graph.inputs))
    other = observed(prompts, prompts.other, [_at(i, role) for i in layers for role in "qkv"])
    prompts.require_change()
    parts = [_scored(prompts, graph, other, rows) for rows in prompts.rows()]
    whole = torch.cat([scores for scores, _ in parts])
    absolute = torch.cat([sizes for _, sizes in parts]).mean(0)
    names = [r for inputs in graph.inputs for role in "qkv" for r in graph.receivers[inputs[role]]]
    n = len(graph.senders) - 1
    return (whole[:, :n], absolute[:n]), names, (whole[:, n:], absolute[n:])


def _scored(
    prompts: Prompts, graph: Graph, other: dict[str, Tensor], rows: slice
) -> tuple[Float[Tensor, "rows name"], Float[Tensor, "rows name"]]:
    """Scores and sizes of some prompts: of nodes, then of queries, keys and values."""
    layers, dropped = range(len(graph.inputs)), list[int]()
    there = {name: x[rows] for name, x in other.items()}
    also = [_at(i, what) for i in layers for what in ("q", "k", "v", "pattern")]
    also += [_attn_out(i) for i in layers]
    seen = watch(prompts, prompts.clean[rows], {}, also=also)
    patterns = {role: _patterns(prompts, rows, seen, there, role) for role in "qk"}
    for layer in layers:
        for name in (_attn_out(layer), mlp_out(layer)):
            if name in seen.at:
                seen.at[name].register_hook(_stop(layer, dropped))  # type: ignore[no-untyped-call]
    values = prompts.values(seen.logits, rows)
    names = component_names(prompts.model)[1:]
    names += [_at(i, what) for i in layers for what in ("v", "pattern")]

    def without(drop: list[int], *, again: bool) -> Float[Tensor, "rows name"]:
        dropped[:] = drop
        found = prompts.gradients(values, [seen.at[name] for name in names], again=again)
        grad = dict(zip(names, found, strict=True))
        for layer in drop:  # what is asked for is taken before its hook
            if mlp_out(layer) in grad:
                grad[mlp_out(layer)] = torch.zeros_like(grad[mlp_out(layer)])
        nodes = by_node(prompts.model, there, seen.at, grad)
        return torch.cat([nodes, _inputs(graph, there, seen, patterns, grad)], 1)

    if len(layers) == 1:  # nothing would be left without it
        scores = without([], again=False)
        return scores, scores.abs()
    scores = without([], again=True)
    each = [without([layer], again=layer < layers[-1]).abs() for layer in layers]
    return scores, torch.stack(each).sum(0) / (len(layers) - 1)


def _at(layer: int, what: str) -> str:
    return f"blocks.{layer}.attn.hook_{what}"


def _attn_out(layer: int) -> str:
    return f"blocks.{layer}.hook_attn_out"


def _stop(layer: int, dropped: list[int]) -> Callable[[Tensor], Tensor]:
    return lambda g: torch.zeros_like(g) if layer in dropped else g


@torch.no_grad()
def _patterns(
    prompts: Prompts, rows: slice, seen: Watched, there: dict[str, Tensor], role: str
) -> dict[int, Float[Tensor, "rows head query_pos key_pos"]]:
    """Each layer's attention pattern with its queries (or keys) from the corrupted prompts.

    One pass does for all layers, as the keys (or queries) of each are held as they were.
    """
    found: dict[int, Tensor] = {}

    def put(x: Tensor) -> Edit:
        return lambda _: x

    def keep(layer: int) -> Edit:
        return lambda x: found.__setitem__(layer, x)

    edits: dict[str, Edit] = {}
    for layer in range(prompts.model.cfg.n_layers):
        for which in "qk":
            name = _at(layer, which)
            edits[name] = put(there[name] if which == role else seen.at[name].detach())
        edits[_at(layer, "pattern")] = keep(layer)
    with intervened(prompts.model, edits):
        prompts.logits(prompts.clean[rows])
    return found


def _inputs(
    graph: Graph,
    there: dict[str, Tensor],
    seen: Watched,
    patterns: dict[str, dict[int, Tensor]],
    grad: dict[str, Tensor],
) -> Float[Tensor, "rows input"]:
    """Of each layer's queries, keys and values."""
    found = []
    for layer, inputs in enumerate(graph.inputs):
        name = _at(layer, "pattern")
        for role in "qk":
            moved = patterns[role][layer] - seen.at[name].detach()
            by_head = (wide(moved) * wide(grad[name])).sum((2, 3))
            # The keys of several heads: what all of them change by.
            sets = inputs[role].stop - inputs[role].start
            found.append(by_head.reshape(len(by_head), sets, -1).sum(2))
        v = _at(layer, "v")
        moved = there[v] - seen.at[v].detach()
        found.append((wide(moved) * wide(grad[v])).sum((1, 3)))
    return torch.cat(found, 1)
