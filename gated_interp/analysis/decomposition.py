"""What stands in for the attention of a language model, measured on text that it has not seen."""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from gated_interp.analysis.faithfulness import dead_from
from gated_interp.analysis.heads import intervened
from gated_interp.analysis.text_holders import text_holders
from gated_interp.analysis.writes import require_tokens
from gated_interp.core.errors import GatedInterpError
from gated_interp.metrics.predictions import kl_divergence, next_token_loss
from gated_interp.metrics.reconstruction import open_pairs, unexplained
from gated_interp.models.toy import HookedTransformer
from gated_interp.replacements.gated_attention import GatedAttention
from gated_interp.replacements.replacement import active
from gated_interp.replacements.splice import originals, unsplice


@torch.no_grad()
def recovered(
    model: HookedTransformer, tokens: Int[Tensor, "batch pos"], layers: Sequence[int] | None = None
) -> dict[str, float]:
    """How much of what the attention was worth is there with its stand-ins in its place.

    - ``ce``, ``ce_original``: next-token cross-entropy of the model and of the one it came from,
      nats; ``ce_zero``, ``ce_mean``: of the latter where these layers write nothing, or at every
      position their mean over ``tokens``.
    - ``ce_recovered_zero = (ce_zero - ce) / (ce_zero - ce_original)`` and ``ce_recovered_mean``
      likewise: 1 is all of it, 0 none. Zero ablation flatters where a layer writes a large
      constant, mean ablation where the later layers have never seen one; so both.
    - ``kl``: KL(original || model), nats per position.

    Args:
        layers: all that were spliced unless given.

    Raises:
        GatedInterpError: nothing was spliced there, or tokens the model cannot read.
    """
    require_tokens(model, tokens)
    layers = sorted(originals(model)) if layers is None else list(layers)
    if not layers:
        raise GatedInterpError("nothing stands in for the model's attention; splice a block in.")
    original = model
    for layer in layers:
        original = unsplice(original, layer)
    names = [f"blocks.{layer}.hook_attn_out" for layer in layers]
    sums: dict[str, Tensor] = {}
    for part in torch.split(tokens, rows_at_once(tokens)):
        _, cache = original.run_with_cache(part, names_filter=names)
        for name in names:
            sums[name] = sums.get(name, cache[name].new_zeros(()).double()) + cache[
                name
            ].double().sum((0, 1))
    means = {name: total / tokens.numel() for name, total in sums.items()}

    def constant(value: Float[Tensor, " d_model"]) -> Callable[[Tensor], Tensor | None]:
        return lambda written: value.to(written).expand_as(written)

    zero = {name: constant(torch.zeros_like(mean)) for name, mean in means.items()}
    mean = {name: constant(value) for name, value in means.items()}
    rows = []
    for part in torch.split(tokens, rows_at_once(tokens)):
        intact, spliced = original(part), model(part)
        with intervened(original, zero):
            without = original(part)
        with intervened(original, mean):
            level = original(part)
        losses = [next_token_loss(x, part) for x in (spliced, intact, without, level)]
        kl = kl_divergence(intact.log_softmax(-1), spliced.log_softmax(-1))
        rows.append(torch.stack([*losses, kl]).double())
    ce, ce_original, ce_zero, ce_mean, kl = torch.cat(rows, 1).mean(1).tolist()
    return {
        "ce": ce,
        "ce_original": ce_original,
        "ce_zero": ce_zero,
        "ce_mean": ce_mean,
        "ce_recovered_zero": (ce_zero - ce) / (ce_zero - ce_original),
        "ce_recovered_mean": (ce_mean - ce) / (ce_mean - ce_original),
        "kl": kl,
    }


@torch.no_grad()
def decomposition(
    model: HookedTransformer, tokens: Int[Tensor, "batch pos"], layer: int
) -> dict[str, float]:
    """What stands at ``layer``, in numbers: how exact, how sparse, how much one head holds.

    - what :func:`recovered` says of this layer;
    - ``fvu``: of what the layer writes, about its mean, both layers reading the same input;
    - ``active_per_position``, ``active_original``: heads that write at a position
      (:func:`~gated_interp.replacements.replacement.active`), here and in the original;
    - ``gates_per_pair``: open gates (above 0.001) per causal (query, key) pair, 0 to ``heads``; a
      head without gates counts as open; ``open_share``, the same divided by ``heads``;
    - ``heads``, ``heads_alive`` (:func:`~gated_interp.analysis.faithfulness.dead_heads` being the
      others), ``parameters``;
    - ``held_share``, ``held_weighted``: positions with a sole holder
      (:func:`~gated_interp.analysis.text_holders.text_holders`), and ``..._original``.

    Raises:
        GatedInterpError: nothing was spliced in at ``layer``, or tokens the model cannot read.
    """
    found = recovered(model, tokens, [layer])
    original, block = unsplice(model, layer), model.blocks[layer].attn
    out, prefix = f"blocks.{layer}.hook_attn_out", f"blocks.{layer}.attn."
    watched = [out, prefix + "hook_z", prefix + "hook_gate"]
    error = square = torch.zeros((), dtype=torch.double)
    total = torch.zeros(model.cfg.d_model, dtype=torch.double)
    z: dict[str, list[Tensor]] = {"": [], "_original": []}
    n_open = 0
    for part in torch.split(tokens, rows_at_once(tokens)):
        _, before = original.run_with_cache(part, names_filter=watched, stop_at_layer=layer + 1)
        _, after = model.run_with_cache(part, names_filter=watched, stop_at_layer=layer + 1)
        target = before[out].double().cpu()
        error = error + (after[out].double().cpu() - target).square().sum()
        square, total = square + target.square().sum(), total + target.sum((0, 1))
        z[""].append(after[prefix + "hook_z"])
        z["_original"].append(before[prefix + "hook_z"])
        if watched[-1] in after:
            n_open += int(open_pairs(after[watched[-1]]).sum())
    varies = square - total.square().sum() / tokens.numel()
    found["fvu"] = float(unexplained(error, varies))
    for which, attn, source in (
        ("", block, model),
        ("_original", original.blocks[layer].attn, original),
    ):
        here = torch.cat(z[which])
        found[f"active{which or '_per_position'}"] = float(
            active(here, attn.W_O).sum(-1).double().mean()
        )
        held = text_holders(source, tokens, layer)
        found[f"held_share{which}"] = held.share
        found[f"held_weighted{which}"] = held.weighted_share
        if not which:
            found["heads"] = len(attn.W_O)
            found["heads_alive"] = len(attn.W_O) - len(dead_from(here, attn.W_O))
    pairs = len(tokens) * tokens.shape[1] * (tokens.shape[1] + 1) // 2
    gated = isinstance(block, GatedAttention)
    found["gates_per_pair"] = n_open / pairs if gated else found["heads"]
    found["open_share"] = found["gates_per_pair"] / found["heads"]
    found["parameters"] = sum(p.numel() for p in block.parameters() if p.requires_grad)
    return found


def rows_at_once(tokens: Int[Tensor, "batch pos"]) -> int:
    """Sequences of some 4,000 positions."""
    return max(1, 4096 // tokens.shape[1])
