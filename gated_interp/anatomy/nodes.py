"""The nodes of a model, heads and MLPs by name: what they write, read and put in its place."""

from collections.abc import Callable, Mapping
from typing import Any

from jaxtyping import Bool, Float, Int
from torch import Tensor

from gated_interp.core.written import head_name
from gated_interp.models.toy import HookedTransformer

EMBED, LOGITS = "embed", "logits"
"""Where edges begin and end, beside nodes."""


def mlp_name(layer: int) -> str:
    """How an MLP is called, such as ``L0 mlp``."""
    return f"L{layer} mlp"


def has_mlp(model: HookedTransformer, layer: int) -> bool:
    """Whether the layer has an MLP that writes to the stream."""
    return not model.cfg.attn_only and hasattr(model.blocks[layer], "mlp")


def nodes_of(model: HookedTransformer) -> list[str]:
    """Every node in the order of the forward pass: heads such as ``L0H1``, MLPs as ``L0 mlp``.

    Examples:
        >>> from gated_interp.models.analytic import manual_model
        >>> nodes_of(manual_model(2, 3).model)
        ['L0H0', 'L0H1']
    """
    found = []
    for layer, block in enumerate(model.blocks):
        found += [head_name((layer, h)) for h in range(block.attn.W_O.shape[0])]
        found += [mlp_name(layer)] if has_mlp(model, layer) else []
    return found


def layer_of(node: str) -> int:
    """The layer of a node.

    Examples:
        >>> layer_of("L12H3"), layer_of("L0 mlp")
        (12, 0)
    """
    return int(node[1:].partition(" ")[0].partition("H")[0])


def place_of(node: str) -> tuple[str, int | None]:
    """The hook point where a node's output stands, and its head there."""
    if node.endswith(" mlp"):
        return f"blocks.{layer_of(node)}.hook_mlp_out", None
    return f"blocks.{layer_of(node)}.attn.hook_z", int(node.partition("H")[2])


def read_nodes(
    model: HookedTransformer, tokens: Int[Tensor, "batch pos"]
) -> tuple[Float[Tensor, "batch pos d_vocab_out"], dict[str, Float[Tensor, "batch pos width"]]]:
    """The logits, and by node its output: a head's z, what an MLP writes. Gradients pass."""
    written: dict[str, Tensor] = {}

    def keep(nodes: list[tuple[str, int | None]]) -> Callable[..., None]:
        def hook(value: Tensor, hook: Any) -> None:
            for node, head in nodes:
                written[node] = value if head is None else value[:, :, head]

        return hook

    logits = model.run_with_hooks(tokens, fwd_hooks=[(n, keep(v)) for n, v in _points(model)])
    return logits, written


def patch_nodes(
    model: HookedTransformer,
    tokens: Int[Tensor, "batch pos"],
    instead: Mapping[str, Float[Tensor, "batch pos width"]],
    where: Mapping[str, Bool[Tensor, " batch"]] | None = None,
) -> Float[Tensor, "batch pos d_vocab_out"]:
    """The logits with other outputs of nodes in their place. Gradients pass.

    Args:
        instead: by node, what it writes instead.
        where: by node, in which rows; in all of them unless given.
    """

    def put(nodes: list[tuple[str, int | None]]) -> Callable[..., Tensor]:
        def hook(value: Tensor, hook: Any) -> Tensor:
            value = value.clone()
            for node, head in nodes:
                own = value if head is None else value[:, :, head]
                other = instead[node]
                if where is not None:
                    other = other.where(where[node][:, None, None], own)
                if head is None:
                    return other
                value[:, :, head] = other
            return value

        return hook

    wanted = [(n, [v for v in at if v[0] in instead]) for n, at in _points(model)]
    hooks = [(name, put(nodes)) for name, nodes in wanted if nodes]
    return model.run_with_hooks(tokens, fwd_hooks=hooks)


def _points(model: HookedTransformer) -> list[tuple[str, list[tuple[str, int | None]]]]:
    """By hook point, the nodes that stand there and their heads."""
    found: dict[str, list[tuple[str, int | None]]] = {}
    for node in nodes_of(model):
        name, head = place_of(node)
        found.setdefault(name, []).append((node, head))
    return list(found.items())
