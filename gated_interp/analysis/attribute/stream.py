"""What heads and MLPs write to the residual stream, and how what they read is taken apart.

TransformerLens can split the inputs of queries, keys and values, a replacement cannot. Here the
model runs as it is: gradients at ``hook_q``, ``hook_k`` and ``hook_v`` are taken back through the
weights and the norm by hand, and a change of an input is added to them in the same way.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from gated_interp.analysis.attribute.graph import Graph, written_heads
from gated_interp.analysis.attribute.prompts import Prompts
from gated_interp.analysis.heads import intervened
from gated_interp.anatomy.batch import Batch
from gated_interp.anatomy.nodes import has_mlp
from gated_interp.anatomy.stream import Written, input_norm, write_norm
from gated_interp.core.precision import wide
from gated_interp.models.toy import HookedTransformer
from gated_interp.replacements.replacement import inputs_of

Edit = Callable[[Tensor], Tensor | None]
FIRST = "blocks.0.hook_resid_pre"
"""Where the embedding stands."""


def z_name(layer: int) -> str:
    """The hook point of what the heads of a layer make, before ``W_O``."""
    return f"blocks.{layer}.attn.hook_z"


def mlp_out(layer: int) -> str:
    """The hook point of what an MLP writes."""
    return f"blocks.{layer}.hook_mlp_out"


def component_names(model: HookedTransformer) -> list[str]:
    """The hook points of all that is written: embedding, heads by layer, MLPs."""
    found = [FIRST]
    for layer in range(model.cfg.n_layers):
        found += [z_name(layer), *([mlp_out(layer)] if has_mlp(model, layer) else [])]
    return found


def scale_names(model: HookedTransformer) -> list[str]:
    """The hook points of the scales of norms behind attention."""
    norms = [write_norm(model, i) for i in range(model.cfg.n_layers)]
    return [n.hook_scale for n in norms if n is not None]


def observed(prompts: Prompts, batch: Batch, also: Sequence[str] = ()) -> dict[str, Tensor]:
    """What stands at :func:`component_names` on every row of ``batch``, and at norms of writes.

    Args:
        also: more hook points.
    """
    model = prompts.model
    names = [*component_names(model), *scale_names(model), *also]
    parts: list[dict[str, Tensor]] = []
    logits: list[Tensor] = []
    for rows in prompts.rows():
        kept: dict[str, Tensor] = {}

        def keep(name: str, kept: dict[str, Tensor] = kept) -> Edit:
            return lambda x: kept.__setitem__(name, x.detach())

        with torch.no_grad(), intervened(model, {name: keep(name) for name in names}):
            logits.append(prompts.logits(batch[rows]))
        parts.append(kept)
    if batch is prompts.corrupted:
        prompts.seen = torch.cat(logits)
    return {name: torch.cat([part[name] for part in parts]) for name in names}


def writes(
    model: HookedTransformer, at: dict[str, Tensor], scales: dict[str, Tensor]
) -> Float[Tensor, "sender batch pos d_model"]:
    """What each sender of :class:`Graph` adds to the stream, without biases of attention.

    Args:
        at: activations, or differences of them, at :func:`component_names`.
        scales: those of norms behind attention.
    """
    found = [wide(at[FIRST])[None]]
    for layer in range(model.cfg.n_layers):
        to_stream = Written.of(model, layer)
        z = wide(at[z_name(layer)])
        each = torch.einsum("bphd,hdm->hbpm", z, to_stream.W_O)
        found.append(each / to_stream.scale(scales))
        if has_mlp(model, layer):
            found.append(wide(at[mlp_out(layer)])[None])
    return torch.cat(found)


def _readers(model: HookedTransformer) -> dict[int | None, nn.Module]:
    """By layer, the module whose input is what the MLP reads; ``None`` is the logits'."""
    found: dict[int | None, nn.Module] = {}
    normed = model.cfg.normalization_type is not None
    for layer, block in enumerate(model.blocks):
        if has_mlp(model, layer):
            behind = normed and input_norm(model, layer) is None
            found[layer] = block.mlp if behind else block.ln2
    found[None] = model.ln_final if normed else model.unembed
    return found


@contextlib.contextmanager
def reading(model: HookedTransformer, edits: dict[int | None, Edit]) -> Iterator[None]:
    """``model`` with what MLPs (by layer) and the logits (``None``) read given to an edit."""

    def hook(edit: Edit) -> Callable[[Any, tuple[Any, ...]], Any]:
        def before(_module: Any, inputs: tuple[Any, ...]) -> Any:
            found = edit(inputs[0])
            return None if found is None else (found, *inputs[1:])

        return before

    modules, handles = _readers(model), []
    try:
        for layer, edit in edits.items():
            handles.append(modules[layer].register_forward_pre_hook(hook(edit)))
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextlib.contextmanager
def attention_inputs(model: HookedTransformer) -> Iterator[dict[int, list[dict[str, Any]]]]:
    """What each layer's attention is called with, call by call."""
    with contextlib.ExitStack() as stack:
        yield {i: stack.enter_context(inputs_of(b.attn)) for i, b in enumerate(model.blocks)}


def read_norm(model: HookedTransformer, layer: int, x: Tensor) -> Tensor:
    """``x`` through what the attention of a layer reads through."""
    norm = input_norm(model, layer)
    found: Tensor = x if norm is None else norm.module(x)
    return found


def weights_of(attn: Any, role: str) -> Float[Tensor, "head_index d_model d"]:
    """What makes queries, keys, values or the gates' queries and keys of a normed input."""
    name = {"gate_q": "W_gate_Q", "gate_k": "W_gate_K"}.get(role, f"W_{role.upper()}")
    weight: Tensor = getattr(attn, name)
    return weight[:: len(weight) // written_heads(attn, role)] if role in "qkv" else weight


@dataclasses.dataclass
class Watched:
    """One forward pass, ready for gradients.

    Attributes:
        logits: with their graph.
        at: activations in that graph: hook points by name, ``mlp_in`` by layer and ``logits_in``.
        scales: of norms behind attention, by hook point.
        attention: what each layer's attention was called with.
    """

    logits: Tensor
    at: dict[str, Tensor] = dataclasses.field(default_factory=dict)
    scales: dict[str, Tensor] = dataclasses.field(default_factory=dict)
    attention: dict[int, dict[str, Any]] = dataclasses.field(default_factory=dict)


def watch(
    prompts: Prompts,
    part: Batch,
    put: dict[str, Tensor],
    *,
    receivers: Graph | None = None,
    also: Sequence[str] = (),
) -> Watched:
    """A forward pass with ``put`` in the place of activations, watched for gradients.

    Args:
        receivers: also watch what these read.
        also: more hook points to watch.
    """
    model, at, scales = prompts.model, dict[str, Tensor](), dict[str, Tensor]()

    def seen(name: str) -> Edit:
        def edit(x: Tensor) -> Tensor:
            value = put[name].to(x) if name in put else x
            # Gradients start at the embedding, or where something was put; weights need none.
            value = (
                value.detach().requires_grad_() if name in put or name == FIRST else value.clone()
            )
            at[name] = value
            return value

        return edit

    def scale(name: str) -> Edit:
        return lambda x: scales.__setitem__(name, x.detach())

    looks = {name: scale(name) for name in scale_names(model)}
    names, reads = [*component_names(model), *also], dict[int | None, Edit]()
    if receivers is not None:
        for layer, inputs in enumerate(receivers.inputs):
            hook = f"blocks.{layer}.attn.hook_"
            names += [f"{hook}{role}" for role in inputs if role in "qkv"]
            names += [f"{hook}gate_scores"] if "gate_q" in inputs else []
            names += [f"blocks.{layer}.hook_resid_pre"] if layer else []
        for i in [*receivers.mlps, None]:
            reads[i] = seen("logits_in" if i is None else f"mlp_in.{i}")
    with (
        torch.enable_grad(),
        attention_inputs(model) as called,
        reading(model, reads),
        intervened(model, {name: seen(name) for name in names} | looks),
    ):
        logits = prompts.logits(part)
    return Watched(logits, at, scales, {layer: calls[-1] for layer, calls in called.items()})


def by_node(
    model: HookedTransformer,
    other: dict[str, Tensor],
    at: dict[str, Tensor],
    grad: dict[str, Tensor],
) -> Float[Tensor, "batch node"]:
    """What each head's and each MLP's activation differs by, times the gradient at it."""
    each = []
    for name in component_names(model)[1:]:
        product = wide((other[name] - at[name].detach()) * grad[name])
        by_head = product.ndim == 4
        each.append(product.sum((1, 3)) if by_head else product.sum((1, 2))[:, None])
    return torch.cat(each, 1)


def receiver_gradients(
    model: HookedTransformer, graph: Graph, seen: Watched, grad: dict[str, Tensor]
) -> Iterator[tuple[slice, Float[Tensor, "batch pos receiver d_model"]]]:
    """The gradient at what each receiver reads of the stream, some receivers at a time.

    Args:
        grad: by the names of ``seen.at``.
    """
    for layer, inputs in enumerate(graph.inputs):
        attn, name = model.blocks[layer].attn, f"blocks.{layer}.attn.hook_"
        stream = seen.at[f"blocks.{layer}.hook_resid_pre"].detach()
        for role, where in inputs.items():
            if role in "qkv":
                g = grad[name + role]
                if role == "v":
                    g = g * unclipped(attn, seen.at[name + role])
            else:
                g = _gate_gradient(attn, role, seen.attention[layer], grad[name + "gate_scores"])
            weight = weights_of(attn, role).detach()
            normed = torch.einsum("bphd,hmd->bphm", g, weight.to(g))
            yield where, _through_norm(model, layer, stream, normed)
    for layer, (_, receiver) in graph.mlps.items():
        yield slice(receiver, receiver + 1), grad[f"mlp_in.{layer}"][:, :, None]
    last = len(graph.receivers) - 1
    yield slice(last, last + 1), grad["logits_in"][:, :, None]


def unclipped(attn: Any, v: Tensor) -> Tensor | float:
    """Where a replacement's values, at ``hook_v``, were not clipped before."""
    scored = getattr(attn, "scored", None)
    clip = None if scored is None else scored.config.clip
    return 1.0 if clip is None else (v.detach().abs() < clip).to(v)


@torch.no_grad()
def _gate_gradient(
    attn: Any, role: str, called: dict[str, Any], grad: Float[Tensor, "batch head query key"]
) -> Float[Tensor, "batch pos head d_gate"]:
    """The gradient at the queries or keys of gates, from that at their scores."""
    pair = attn.gate_projected(called["query_input"], called["key_input"])
    with torch.enable_grad():
        sides = dict(zip(("gate_q", "gate_k"), (x.requires_grad_() for x in pair), strict=True))
        scores = attn.gate_scores(**sides, real=real_in(called))
    return torch.autograd.grad(scores, sides[role], grad.to(scores))[0]


def real_in(called: dict[str, Any]) -> Tensor | None:
    """Where there are tokens, of what an attention layer was called with; ``None``: everywhere."""
    mask = called.get("attention_mask")
    return None if mask is None else mask.bool()


def _through_norm(
    model: HookedTransformer,
    layer: int,
    stream: Float[Tensor, "batch pos d_model"],
    grad: Float[Tensor, "batch pos head d_model"],
) -> Float[Tensor, "batch pos head d_model"]:
    """Gradients at the normed input of each head as gradients at the stream."""
    if input_norm(model, layer) is None:
        return grad
    with torch.enable_grad():
        x = stream[:, :, None].expand(grad.shape).clone().requires_grad_()
        return torch.autograd.grad(read_norm(model, layer, x), x, grad)[0]
