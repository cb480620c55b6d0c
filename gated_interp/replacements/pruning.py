"""Leave out the heads of a gated block that never write."""

import dataclasses

import torch
from jaxtyping import Float
from torch import Tensor

from gated_interp.anatomy.attention import Attention
from gated_interp.core.errors import GatedInterpError
from gated_interp.models.toy import HookedTransformer
from gated_interp.replacements.gated_attention import GatedAttention
from gated_interp.replacements.gates import gate_activation
from gated_interp.replacements.splice import chosen_layer, require_gated_block, splice

SHUT = 1e-3
"""A gate up to this counts as shut."""


@dataclasses.dataclass(frozen=True)
class Pruned:
    """A model without its dead heads.

    Attributes:
        model: the spliced model; its head ``i`` is head ``kept[i]`` of the one it came from.
        kept: the heads that stay, ascending; at least one.
        bound: the output of the block moves by no more than this (Euclidean length) at any
            position of any sequence; 0 means it is the same.
    """

    model: HookedTransformer = dataclasses.field(repr=False)
    kept: list[int]
    bound: float


def prune_dead_heads(
    model: HookedTransformer, layer: int | None = None, threshold: int | float = SHUT
) -> Pruned:
    """``model`` without the gated heads whose gate is shut for every pair of tokens.

    A head goes if its gate is at most ``threshold`` for all (query token, key token), or if it
    writes zero for all tokens. That is exhaustive: without positional signal a gate and a value
    depend on tokens alone. A trigram's sole owners among the heads that stay are the same, for
    learnt trigrams and gates that are exactly 0; where all heads are dead, the one that reaches
    furthest stays. ``model`` is left as it was.

    Raises:
        GatedInterpError: no gated block in ``layer``, a layer whose input is not the token
            embedding alone, or a negative threshold.

    Examples:
        >>> from gated_interp.models.toy import ToyConfig, build_toy
        >>> toy = build_toy(ToyConfig(n_trigrams=3, n_heads=2))
        >>> block = GatedAttention.from_attention(toy.blocks[0].attn)
        >>> block.b_gate_Q.data[1:3], block.W_gate_Q.data[1:3] = 0, 0  # heads 1 and 2 never open
        >>> prune_dead_heads(splice(toy, 0, block))
        Pruned(kept=[0, 3], bound=0.0)
    """
    layer = chosen_layer(model, layer, first=True)
    block = require_gated_block(model, layer)
    if not threshold >= 0:
        raise GatedInterpError("is-negative", name="threshold", value=threshold)
    gates, writes = head_reach(model, layer)
    reach = gates * writes
    alive = (gates > threshold) & (writes > 0)
    if not alive.any():
        alive[reach.argmax()] = True
    kept: list[int] = alive.nonzero().flatten().tolist()
    bound = float(reach[~alive].sum())
    return Pruned(splice(model, layer, with_heads(block, kept)), kept, bound)


@torch.no_grad()
def head_reach(
    model: HookedTransformer, layer: int = 0
) -> tuple[Float[Tensor, " head_index"], Float[Tensor, " head_index"]]:
    """Each head's widest gate and longest write of one fully open key, over all tokens.

    Their product bounds the length of what the head writes anywhere: a pattern sums to 1.
    """
    block, attention = require_gated_block(model, layer), Attention.of(model, layer)
    if layer != 0 or attention.positions is not None:
        raise GatedInterpError("pruning-needs-first-layer")
    tokens = attention.inputs("value").to(block.W_O.dtype)
    gate_q = torch.einsum("vm,hmg->hvg", tokens, block.W_gate_Q) + block.b_gate_Q[:, None]
    gate_k = torch.einsum("vm,hmg->hvg", tokens, block.W_gate_K) + block.b_gate_K[:, None]
    gate = gate_activation(gate_q @ gate_k.mT, block.config.gate)
    v = torch.einsum("vm,hmd->hvd", tokens, block.W_V) + block.b_V[:, None]
    return gate.amax((1, 2)), (v @ block.W_O).norm(dim=-1).amax(1)


@torch.no_grad()
def with_heads(block: GatedAttention, heads: list[int]) -> GatedAttention:
    """A block that is ``block`` with these heads only, in this order."""
    n = block.config.n_heads
    if not heads or not all(0 <= h < n for h in heads):
        raise GatedInterpError("bad-heads-to-keep", heads=heads, last=n - 1)
    smaller = GatedAttention(block.config.replace(n_heads=len(heads))).to(block.W_Q)
    for name, parameter in smaller.named_parameters():
        source = block.get_parameter(name)
        of_heads = name not in ("b_O", "scored.q_norm", "scored.k_norm")
        parameter.copy_(source[heads] if of_heads else source)
    smaller.stands_for = block.stands_for
    return smaller
