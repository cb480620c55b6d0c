"""Heads that can go: what they write together is hardly missed."""

import torch
from jaxtyping import Float
from torch import Tensor

from gated_interp.analysis.block_measures import rows_at_once
from gated_interp.anatomy.batch import Batch, Mask, Tokens
from gated_interp.anatomy.stream import write_norm
from gated_interp.core.errors import GatedInterpError
from gated_interp.core.renamed import layer_first
from gated_interp.models.toy import HookedTransformer
from gated_interp.replacements.pruning import with_heads
from gated_interp.replacements.splice import (
    chosen_layer,
    replacement_in,
    require_gated_block,
    splice,
    unsplice,
)

RISE = 0.05
"""By this share of itself the FVU may rise for having fewer heads."""


@layer_first
@torch.no_grad()
def spare_heads(
    model: HookedTransformer,
    layer: int | None = None,
    tokens: Tokens | None = None,
    rise: int | float = RISE,
    *,
    attention_mask: Mask | None = None,
) -> list[int]:
    """Heads of the replacement at ``layer`` that can go together, the least missed first.

    One by one the head goes without which the squared error on ``tokens`` is least, for as long as
    that error, and with it the FVU, is at most ``1 + rise`` times what it was with every head. The
    heads that stay are not trained again. One always stays.

    Examples:
        >>> from gated_interp.models.toy import ToyConfig, build_toy
        >>> from gated_interp.replacements.gated_attention import GatedAttention
        >>> toy = build_toy(ToyConfig(n_trigrams=3, n_heads=2))
        >>> block = GatedAttention.from_attention(toy.blocks[0].attn)
        >>> block.raw_W_O.data[1:] = 0
        >>> sorted(spare_heads(splice(toy, 0, block), 0, toy.task.sample(10, seed=0).tokens))
        [1, 2, 3]
    """
    layer = chosen_layer(model, layer)
    batch = Batch.of(model, tokens, attention_mask)
    if not rise >= 0:
        raise GatedInterpError("is-negative", name="rise", value=rise)
    if replacement_in(model, layer) is None:
        raise GatedInterpError("no-replacement", layer=layer)
    norm = write_norm(model, layer)
    if norm is not None:
        raise GatedInterpError("heads-do-not-add-up", layer=layer, norm=norm.name)
    overlaps, missed, error = _products(model, batch, layer)
    limit = float(error) * (1 + rise)
    spare: list[int] = []
    # Of each head: the error without it and the heads that are gone already.
    without = error + 2 * missed + overlaps.diagonal()
    while len(spare) < len(without) - 1:
        head = int(without.argmin())
        if not without[head] <= limit:
            break
        spare.append(head)
        at = without[head].clone()
        gone = torch.tensor(spare)
        # Taking away one more adds its own square and its products with what is missed by now.
        without = at + 2 * (missed + overlaps[:, gone].sum(1)) + overlaps.diagonal()
        without[gone] = torch.inf
    return spare


@layer_first
@torch.no_grad()
def prune_spare_heads(
    model: HookedTransformer,
    layer: int | None = None,
    tokens: Tokens | None = None,
    rise: int | float = RISE,
    *,
    attention_mask: Mask | None = None,
) -> HookedTransformer:
    """``model`` with a gated block at ``layer`` that lacks its :func:`spare_heads`.

    ``model`` is left as it was; heads keep their order.

    Raises:
        GatedInterpError: no gated block in ``layer``, or as ``spare_heads``.

    Examples:
        >>> from gated_interp.models.toy import ToyConfig, build_toy
        >>> from gated_interp.replacements.gated_attention import GatedAttention
        >>> toy = build_toy(ToyConfig(n_trigrams=3, n_heads=2))
        >>> block = GatedAttention.from_attention(toy.blocks[0].attn)
        >>> block.raw_W_O.data[1:] = 0
        >>> tokens = toy.task.sample(10, seed=0).tokens
        >>> len(prune_spare_heads(splice(toy, 0, block), 0, tokens).blocks[0].attn.W_O)
        1
    """
    layer = chosen_layer(model, layer, first=True)
    block = require_gated_block(model, layer)
    spare = set(spare_heads(model, layer, tokens, rise, attention_mask=attention_mask))
    if not spare:
        return model
    kept = [head for head in range(len(block.W_O)) if head not in spare]
    return splice(model, layer, with_heads(block, kept))


def _products(
    model: HookedTransformer, batch: Batch, layer: int
) -> tuple[Float[Tensor, "head_index head_index"], Float[Tensor, " head_index"], Float[Tensor, ""]]:
    """Sums over positions: of heads' writes with each other, with the error, and of its square."""
    out, z_name = f"blocks.{layer}.hook_attn_out", f"blocks.{layer}.attn.hook_z"
    W_O = model.blocks[layer].attn.W_O.double().cpu()
    heads, d_head, d_model = W_O.shape
    original = unsplice(model, layer)
    of_z = torch.zeros(heads * d_head, heads * d_head, dtype=torch.double)
    with_error = torch.zeros(heads * d_head, d_model, dtype=torch.double)
    square = torch.zeros((), dtype=torch.double)
    for part in batch.split(rows_at_once(batch.tokens)):
        stop = {"stop_at_layer": layer + 1}
        _, after = part.cache(model, [out, z_name], **stop)
        _, before = part.cache(original, out, **stop)
        here = part.counted
        z = after[z_name][here].double().cpu().flatten(1)  # [position (head d_head)]
        error = before[out][here].double().cpu() - after[out][here].double().cpu()
        of_z += z.T @ z
        with_error += z.T @ error
        square += error.square().sum()
    of_outputs = torch.einsum("hdm,kem->hdke", W_O, W_O)
    overlaps = (of_z.view(heads, d_head, heads, d_head) * of_outputs).sum((1, 3))
    missed = (with_error.view(heads, d_head, d_model) * W_O).sum((1, 2))
    return overlaps, missed, square
