"""What changes when a node, or one edge, carries what it carries on another prompt: exactly."""

from collections.abc import Iterable
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from gated_interp.anatomy.nodes import EMBED, LOGITS, layer_of, nodes_of, patch_nodes, read_nodes
from gated_interp.models.toy import HookedTransformer
from gated_interp.tasks.program import PromptPairs


@torch.no_grad()
def node_effects(
    model: HookedTransformer, pairs: PromptPairs, nodes: Iterable[Iterable[str]] | None = None
) -> pd.DataFrame:
    """How far the metric moves when nodes write what they write on the corrupted prompt.

    Args:
        model: a known circuit's.
        pairs: clean and corrupted prompts.
        nodes: sets of nodes that are interchanged together; each node alone unless given.

    Returns:
        One row per set: ``nodes``, a name or names with ``+`` between; ``effect``, the mean over
        prompts of how far the metric moves either way, and ``most``, the largest, both as shares of
        the mean distance between clean and corrupted metric; ``logits``, the largest change of any
        logit at any position.
    """
    sets = [[node] for node in nodes_of(model)] if nodes is None else [list(n) for n in nodes]
    clean, _ = read_nodes(model, pairs.clean)
    corrupted, written = read_nodes(model, pairs.corrupted)
    base, scale = pairs.metric(clean), _distance(pairs, clean, corrupted)
    rows = []
    for each in sets:
        logits = patch_nodes(model, pairs.clean, {node: written[node] for node in each})
        change = (pairs.metric(logits) - base).abs() / scale
        rows.append(
            {
                "nodes": " + ".join(each),
                "effect": change.mean().item(),
                "most": change.max().item(),
                "logits": (logits - clean).abs().max().item(),
            }
        )
    return pd.DataFrame(rows)


@torch.no_grad()
def edge_effects(model: HookedTransformer, pairs: PromptPairs) -> pd.DataFrame:
    """How far the metric moves when one receiver sees one sender as on the corrupted prompt.

    Everything else that the receiver reads is as it is on the clean prompt; what follows from the
    receiver is computed anew.

    Args:
        model: a known circuit's, without replacements.
        pairs: clean and corrupted prompts.

    Returns:
        One row per edge: ``sender`` (``embed``, a head or an MLP), ``receiver`` (a head's input,
        such as ``L1H2.q``, an MLP, or ``logits``), ``effect`` as in :func:`node_effects`.
    """
    clean, written = read_nodes(model, pairs.clean)
    corrupted, other = read_nodes(model, pairs.corrupted)
    moved = {EMBED: model.embed(pairs.corrupted) - model.embed(pairs.clean)}
    moved |= {node: _in_stream(model, node, other[node] - written[node]) for node in written}
    base, scale = pairs.metric(clean), _distance(pairs, clean, corrupted)
    rows = []
    kept = model.cfg.use_split_qkv_input, model.cfg.use_hook_mlp_in
    model.set_use_split_qkv_input(True)
    if not model.cfg.attn_only:
        model.set_use_hook_mlp_in(True)
    try:
        for receiver in receivers_of(model):
            name, head = _input_of(model, receiver)
            for sender in senders_to(model, receiver):
                delta = moved[sender]

                def add(value: Tensor, hook: Any, head: Any = head, delta: Any = delta) -> Tensor:
                    if head is None:
                        return value + delta
                    value = value.clone()
                    value[:, :, head] += delta
                    return value

                logits = model.run_with_hooks(pairs.clean, fwd_hooks=[(name, add)])
                effect = ((pairs.metric(logits) - base).abs() / scale).mean().item()
                rows.append({"sender": sender, "receiver": receiver, "effect": effect})
    finally:
        model.cfg.use_split_qkv_input, model.cfg.use_hook_mlp_in = kept
    return pd.DataFrame(rows)


def receivers_of(model: HookedTransformer) -> list[str]:
    """Where edges end: the inputs of every head, MLPs, and the logits."""
    found: list[str] = []
    for node in nodes_of(model):
        found += [node] if node.endswith("mlp") else [f"{node}.{role}" for role in "qkv"]
    return [*found, LOGITS]


def senders_to(model: HookedTransformer, receiver: str) -> list[str]:
    """What writes to the stream before ``receiver`` reads it."""
    nodes = nodes_of(model)
    if receiver == LOGITS:
        return [EMBED, *nodes]
    layer, mlp = layer_of(receiver.partition(".")[0]), receiver.endswith("mlp")
    earlier = [n for n in nodes if layer_of(n) < layer]
    return [EMBED, *earlier, *(n for n in nodes if mlp and layer_of(n) == layer and "H" in n)]


def _input_of(model: HookedTransformer, receiver: str) -> tuple[str, int | None]:
    if receiver == LOGITS:
        return f"blocks.{model.cfg.n_layers - 1}.hook_resid_post", None
    layer = layer_of(receiver.partition(".")[0])
    if receiver.endswith("mlp"):
        return f"blocks.{layer}.hook_mlp_in", None
    node, _, role = receiver.partition(".")
    return f"blocks.{layer}.hook_{role}_input", int(node.partition("H")[2])


def _in_stream(
    model: HookedTransformer, node: str, value: Float[Tensor, "batch pos width"]
) -> Float[Tensor, "batch pos d_model"]:
    if node.endswith("mlp"):
        return value
    out: Tensor = value @ model.blocks[layer_of(node)].attn.W_O[int(node.partition("H")[2])]
    return out


def _distance(pairs: PromptPairs, clean: Tensor, corrupted: Tensor) -> Float[Tensor, ""]:
    return (pairs.metric(clean) - pairs.metric(corrupted)).mean()
