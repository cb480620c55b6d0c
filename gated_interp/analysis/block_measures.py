"""What stands in for the attention of a language model, measured on text that it has not seen."""

import torch
from jaxtyping import Int
from torch import Tensor

from gated_interp.analysis.faithfulness import dead_from, loss_recovered
from gated_interp.analysis.sharing import head_sharing
from gated_interp.analysis.text_holders import text_holders
from gated_interp.anatomy.batch import Batch, Mask, Tokens
from gated_interp.core.precision import wide
from gated_interp.core.renamed import layer_first
from gated_interp.metrics.reconstruction import open_pairs, unexplained
from gated_interp.models.toy import HookedTransformer
from gated_interp.replacements.gated_attention import GatedAttention
from gated_interp.replacements.replacement import active
from gated_interp.replacements.splice import chosen_layer, unsplice


@layer_first
@torch.no_grad()
def block_measures(
    model: HookedTransformer,
    layer: int | None = None,
    tokens: Tokens | None = None,
    *,
    attention_mask: Mask | None = None,
    held: bool = True,
) -> dict[str, float]:
    """What stands at ``layer``, in numbers: how exact, how sparse, how much one head holds.

    - what :func:`~gated_interp.analysis.faithfulness.loss_recovered` says of this layer;
    - ``fvu``: of what the layer writes, about its mean, both layers reading the same input;
    - ``active_per_position``, ``active_original``: heads that write at a position
      (:func:`~gated_interp.replacements.replacement.active`), here and in the original;
    - ``gates_per_pair``: open gates (above 0.001) per causal (query, key) pair, 0 to ``heads``; a
      head without gates counts as open; ``open_share``, the same divided by ``heads``;
    - ``heads``, ``heads_alive`` (:func:`~gated_interp.analysis.faithfulness.dead_heads` being the
      others), ``parameters``;
    - ``held_share``, ``held_weighted``: positions with a sole holder
      (:func:`~gated_interp.analysis.text_holders.text_holders`); ``held_entropy``, of the tokens
      that are held there (nats); ``held_about_mean``, the share where what each head writes on
      average is set aside; and ``..._original`` of each;
    - ``participation``, ``alone``: the median participation number of heads and the share of
      positions at which one head writes at least 90%
      (:func:`~gated_interp.analysis.sharing.head_sharing`); and ``..._original`` of each.

    Args:
        held: whether to measure what is held. It goes by the logits that a write raises directly,
            which say little in the middle of a deep model.

    Raises:
        GatedInterpError: nothing was spliced in at ``layer``, or tokens the model cannot read.

    Examples:
        >>> from gated_interp.models.toy import ToyConfig, build_toy
        >>> from gated_interp.replacements.splice import splice
        >>> toy = build_toy(ToyConfig(n_trigrams=3, n_heads=2))
        >>> spliced = splice(toy, 0, GatedAttention.from_attention(toy.blocks[0].attn))
        >>> found = block_measures(spliced, 0, toy.task.sample(10, seed=0).tokens)
        >>> found["heads"], found["active_original"]
        (4, 2.0)
    """
    layer = chosen_layer(model, layer)
    batch = Batch.of(model, tokens, attention_mask)
    found = loss_recovered(model, [layer], batch) | layer_measures(model, layer, batch)
    for which, source in (("", model), ("_original", unsplice(model, layer))):
        if held:
            there = text_holders(source, layer, batch)
            found[f"held_share{which}"] = there.share
            found[f"held_weighted{which}"] = there.weighted_share
            found[f"held_entropy{which}"] = there.entropy
            about_mean = text_holders(source, layer, batch, about_mean=True)
            found[f"held_about_mean{which}"] = about_mean.share
        sharing = head_sharing(source, layer, batch).table().set_index("measure")
        found[f"participation{which}"] = float(sharing["median"]["participation"])
        found[f"alone{which}"] = float(sharing["mean"]["alone"])
    return found


@torch.no_grad()
def layer_measures(model: HookedTransformer, layer: int, batch: Batch) -> dict[str, float]:
    """Of :func:`block_measures` what the layer's own output and gates say: it runs no further."""
    found: dict[str, float] = {}
    original, block = unsplice(model, layer), model.blocks[layer].attn
    out, prefix = f"blocks.{layer}.hook_attn_out", f"blocks.{layer}.attn."
    watched = [out, prefix + "hook_z", prefix + "hook_gate"]
    error = square = torch.zeros((), dtype=torch.double)
    total = torch.zeros(model.cfg.d_model, dtype=torch.double)
    z: dict[str, list[Tensor]] = {"": [], "_original": []}
    n_open = 0
    pairs = 0
    for part in batch.split(rows_at_once(batch.tokens)):
        _, before = part.cache(original, watched, stop_at_layer=layer + 1)
        _, after = part.cache(model, watched, stop_at_layer=layer + 1)
        here, length = part.counted, part.counted.sum(1)
        target = before[out][here].double().cpu()
        error = error + (after[out][here].double().cpu() - target).square().sum()
        square, total = square + target.square().sum(), total + target.sum(0)
        z[""].append(after[prefix + "hook_z"][here])
        z["_original"].append(before[prefix + "hook_z"][here])
        pairs += int((length * (length + 1) // 2).sum())
        if watched[-1] in after:
            both = here[:, None, :, None] & here[:, None, None]
            n_open += int(open_pairs(after[watched[-1]] * both).sum())
    varies = square - total.square().sum() / int(batch.counted.sum())
    found["fvu"] = float(unexplained(error, varies))
    for which, attn in (("", block), ("_original", original.blocks[layer].attn)):
        here = wide(torch.cat(z[which])[None])
        found[f"active{which or '_per_position'}"] = float(
            active(here, wide(attn.W_O)).sum(-1).double().mean()
        )
        if not which:
            found["heads"] = len(attn.W_O)
            found["heads_alive"] = len(attn.W_O) - len(dead_from(here, attn.W_O))
    gated = isinstance(block, GatedAttention)
    found["gates_per_pair"] = n_open / pairs if gated else found["heads"]
    found["open_share"] = found["gates_per_pair"] / found["heads"]
    found["parameters"] = sum(p.numel() for p in block.parameters() if p.requires_grad)
    return found


def rows_at_once(tokens: Int[Tensor, "batch pos"]) -> int:
    """Sequences of some 4,000 positions."""
    return max(1, 4096 // tokens.shape[1])
