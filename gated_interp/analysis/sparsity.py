"""How sparsely the heads of a layer write, and how much hangs on their staying shut."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from gated_interp.analysis.faithfulness import dead_from
from gated_interp.analysis.heads import intervened
from gated_interp.analysis.measures import cancellation
from gated_interp.analysis.writes import logit_writes, require_linear
from gated_interp.anatomy.batch import Batch, Mask, Tokens, logit_rows
from gated_interp.core.errors import GatedInterpError
from gated_interp.core.precision import wide
from gated_interp.core.renamed import layer_first
from gated_interp.core.seeds import generator
from gated_interp.metrics.predictions import kl_divergence
from gated_interp.models.toy import HookedTransformer
from gated_interp.replacements.replacement import active
from gated_interp.replacements.splice import chosen_layer, replacement_in, unsplice


@layer_first
@torch.no_grad()
def sparsity(
    model: HookedTransformer,
    layer: int | None = None,
    tokens: Tokens | None = None,
    *,
    attention_mask: Mask | None = None,
) -> dict[str, float]:
    """How many heads write, and whether they undo each other: one scale for every kind of layer.

    - ``active_per_position``: heads that write at a position, mean over all; 0 to the heads there
      are. A head writes where its write is longer than 0.001 of a typical write of the layer.
    - ``heads_alive``: heads that write anywhere, see
      :func:`~gated_interp.analysis.faithfulness.dead_heads`.
    - ``cancellation``: 0 where what heads write at a position adds up, 1 where it comes to nothing
      (:func:`~gated_interp.analysis.measures.cancellation`), mean over positions; of a model with
      one linear layer, else missing.
    """
    layer = chosen_layer(model, layer)
    batch, name = Batch.of(model, tokens, attention_mask), f"blocks.{layer}.attn.hook_z"
    _, cache = batch.cache(model, name, stop_at_layer=layer + 1)
    # As one row, without the padding.
    z, W_O = wide(cache[name][batch.counted][None]), wide(model.blocks[layer].attn.W_O)
    found = {
        "active_per_position": float(active(z, W_O).sum(-1).double().mean()),
        "heads_alive": float(len(W_O) - len(dead_from(z, W_O))),
        "cancellation": float("nan"),
    }
    try:
        require_linear(model)
    except GatedInterpError:
        return found
    writes = logit_writes(model, z.flatten(0, 1))
    found["cancellation"] = float(cancellation(writes).double().mean())
    return found


@layer_first
def switching_on(
    model: HookedTransformer,
    layer: int | None = None,
    tokens: Tokens | None = None,
    *,
    seed: int,
    steps: int = 20,
    attention_mask: Mask | None = None,
) -> dict[str, float]:
    """How far predictions move when heads that stay shut are opened: KL(original || model), nats.

    Opened, a head writes what its attention alone would have it write
    (:meth:`~gated_interp.replacements.replacement.Replacement.opened`). ``kl``: none is opened;
    ``kl_random``: each (position, head) that does not write is opened with probability one half;
    ``kl_adversarial``: as far (0 to 1) as ``steps`` steps of gradient ascent on the KL say, each
    by at most 1/4. Low numbers mean that what is shut is shut because it does not matter.

    Args:
        seed: of the random openings.
    """
    layer = chosen_layer(model, layer)
    batch = Batch.of(model, tokens, attention_mask)
    block = replacement_in(model, layer)
    if block is None:
        raise GatedInterpError("no-replacement", layer=layer)
    prefix = f"blocks.{layer}.attn."
    names = [prefix + name for name in ("hook_z", *block.opened_from)]
    parts, original = batch.split(logit_rows(batch, model.cfg.d_vocab_out)), unsplice(model, layer)
    writes, would = [], []
    with torch.no_grad():
        for part in parts:
            _, cache = part.cache(model, names, stop_at_layer=layer + 1)
            seen = {name.removeprefix(prefix): cache[name] for name in names}
            writes.append(seen["hook_z"])
            would.append(block.opened(seen))
        shut = ~active(torch.cat(writes), block.W_O, counted=batch.real)
    # Padding tosses no coins, so that those of the tokens are what they are without it.
    coins = torch.zeros(shut.shape, device=shut.device)
    tossed = torch.rand(len(shut[batch.counted]), shut.shape[2], generator=generator(seed))
    coins[batch.counted] = tossed.to(coins)
    by_part = (torch.split(x, len(parts[0])) for x in (shut, coins))
    each = zip(
        *(
            _moved(model, original, prefix + "hook_z", *of_part, steps=steps)
            for of_part in zip(parts, writes, would, *by_part, strict=True)
        ),
        strict=True,
    )
    kinds = ("kl", "kl_random", "kl_adversarial")
    return {kind: float(torch.cat(rows).mean()) for kind, rows in zip(kinds, each, strict=True)}


def _moved(
    model: HookedTransformer,
    original: HookedTransformer,
    name: str,
    batch: Batch,
    z: Float[Tensor, "batch pos head_index d_head"],
    opened: Float[Tensor, "batch pos head_index d_head"],
    shut: Bool[Tensor, "batch pos head_index"],
    coins: Float[Tensor, "batch pos head_index"],
    *,
    steps: int,
) -> list[Float[Tensor, " batch"]]:
    """The KL of each sequence where nothing is opened, at random, and as gradients say."""

    with torch.no_grad():
        intact = batch.logits(original)

    def moved(mask: Float[Tensor, "batch pos head_index"]) -> Float[Tensor, " batch"]:
        open_by = (mask * shut)[..., None].to(z)
        with intervened(model, {name: lambda _: z + open_by * (opened - z)}):
            return kl_divergence(intact, batch.logits(model), batch.real)

    mask = torch.full_like(coins, 0.5)
    with torch.enable_grad():
        for _ in range(steps):
            (slope,) = torch.autograd.grad(moved(mask.requires_grad_()).mean(), mask)
            mask = (mask.detach() + slope.sign() / 4).clamp(0, 1)
    with torch.no_grad():
        return [moved(m) for m in (torch.zeros_like(coins), (coins < 0.5).to(coins), mask)]
