"""The verdict on text: at how many positions one head alone holds what a layer writes.

No task says which token a position should get, so the layer says it: a position's *representation*
is the token that what its heads write raises most. A head is its *sole holder* when, whatever
other heads are removed, that token stays on top, and no other head could say the same. It is the
post's question (:mod:`~gated_interp.analysis.verdict`), asked of every position of any text; the
norm before the unembedding stays as it is in the intact model, so what heads write adds up and one
forward pass answers for every subset. Biases, and what other layers write, are left out.
"""

import dataclasses
from collections.abc import Iterator
from functools import cached_property

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from gated_interp.analysis.heads import chosen_layer
from gated_interp.analysis.writes import require_tokens
from gated_interp.core.errors import GatedInterpError
from gated_interp.models.toy import HookedTransformer

# Numbers of every (position, head, token) that are made at once: some 30 MB of each.
AT_ONCE = 2**23
NOBODY = -1


@dataclasses.dataclass(frozen=True, repr=False)
class TextHolders:
    """Who holds what a layer writes, position by position.

    Attributes:
        top: ``[batch pos]``, the token that the layer's heads raise most.
        holder: ``[batch pos]``, the head that is its sole holder; -1 where no head is.
        effect: ``[batch pos]``, by how many logits its heads raise that token above the mean token.
        heads: heads of the layer.
        layer: which it is.

    The first position is left out of every measure: it is the same in every sequence.

    Examples:
        >>> top, holder = torch.tensor([[4, 5, 6]]), torch.tensor([[0, 1, -1]])
        >>> TextHolders(top, holder, torch.ones(1, 3), heads=2, layer=0).share
        0.5
    """

    top: Int[Tensor, "batch pos"]
    holder: Int[Tensor, "batch pos"]
    effect: Float[Tensor, "batch pos"]
    heads: int
    layer: int

    def __repr__(self) -> str:
        return f"TextHolders(layer {self.layer}, {self.top.numel()} positions: {self.share:.1%})"

    @cached_property
    def held(self) -> Float[Tensor, "batch pos"]:
        """1 where a position has a sole holder, else 0."""
        return (self.holder[:, 1:] != NOBODY).double()

    @property
    def share(self) -> float:
        """The share of positions that have a sole holder, 0 to 1."""
        return float(self.held.mean())

    @property
    def entropy(self) -> float:
        """Of the tokens that are held, over the positions where they are, in nats."""
        return _entropy(self.top[:, 1:][self.holder[:, 1:] != NOBODY].bincount())

    @property
    def weighted_share(self) -> float:
        """The same, each position counting by :attr:`effect`."""
        weight = self.effect[:, 1:].double()
        return float((self.held * weight).sum() / weight.sum().clamp(min=1e-12))

    def by_head(self) -> pd.DataFrame:
        """What each head holds.

        Returns:
            One row per head: ``head``; ``positions`` it holds and the ``share`` of all that they
            are; ``tokens``, how many different ones; ``entropy`` of these in nats (0: always the
            same); ``top``, the token it holds most often, -1 of a head that holds none.
        """
        rows = []
        top, holder = self.top[:, 1:], self.holder[:, 1:]
        for head in range(self.heads):
            counts = top[holder == head].bincount()
            rows.append(
                {
                    "head": head,
                    "positions": int(counts.sum()),
                    "share": int(counts.sum()) / holder.numel(),
                    "tokens": int((counts > 0).sum()),
                    "entropy": _entropy(counts),
                    "top": int(counts.argmax()) if len(counts) else NOBODY,
                }
            )
        return pd.DataFrame(rows)


@torch.no_grad()
def text_holders(
    model: HookedTransformer,
    tokens: Int[Tensor, "batch pos"],
    layer: int | None = None,
    *,
    about_mean: bool = False,
) -> TextHolders:
    """Which positions of ``tokens`` have a sole holder among the heads of ``layer``.

    With ``a[h, t]`` what head ``h`` adds to the logit of token ``t`` and ``c`` the position's
    representation, ``h`` keeps ``c`` on top of ``t`` whatever other heads are removed when
    ``max(0, a[h,c] - a[h,t]) + sum over heads o of min(0, a[o,c] - a[o,t]) > 0``.

    Args:
        model: any attention-only model, spliced or not.
        layer: may be left out where it is the only one. What an early layer writes is read on its
            direct path to the logits.
        about_mean: take from what each head writes its mean over ``tokens``. A head that writes
            one large constant, which a bias takes back, holds every position and says nothing;
            set aside as the bias that it is, it holds none.

    Raises:
        GatedInterpError: no such layer, none named of several, or tokens the model cannot read, or
            of one position.

    Examples:
        >>> from gated_interp.models.analytic import manual_model
        >>> truth = manual_model(2, 3)  # trigram 1 is written by head 0, 2 by head 1, 3 by both
        >>> found = text_holders(truth.model, truth.task.sample(50, seed=0).tokens)
        >>> 0 < found.share < 1, found.by_head()["positions"].gt(0).tolist()
        (True, [True, True])
    """
    layer = chosen_layer(model, layer)
    require_tokens(model, tokens)
    if tokens.shape[1] < 2:
        raise GatedInterpError(
            "tokens have one position; the first says nothing: give longer ones."
        )
    top, holder, effect = (
        torch.cat(parts).view(tokens.shape)
        for parts in zip(
            *(_holders(writes) for writes in _writes(model, tokens, layer, about_mean)),
            strict=True,
        )
    )
    return TextHolders(top, holder, effect, len(model.blocks[layer].attn.W_O), layer)


def frozen_readout(
    model: HookedTransformer, layer: int
) -> Float[Tensor, "head_index d_head d_vocab"]:
    """What a ``z`` of one adds to each logit, with a final norm that divides by one.

    Biases are left out; a norm that centres does so here.
    """
    W_O, readout = model.blocks[layer].attn.W_O, model.unembed.W_U
    if model.cfg.normalization_type is not None:
        W_O = W_O - W_O.mean(-1, keepdim=True)
        weight = getattr(model.ln_final, "w", None)
        readout = readout if weight is None else weight[:, None] * readout
    product: Tensor = W_O @ readout
    return product


def _entropy(counts: Int[Tensor, " token"]) -> float:
    p = counts[counts > 0].double() / max(1, int(counts.sum()))
    return float(-(p * p.log()).sum()) + 0.0


def _writes(
    model: HookedTransformer, tokens: Int[Tensor, "batch pos"], layer: int, about_mean: bool
) -> Iterator[Float[Tensor, "position head_index d_vocab"]]:
    """What each head adds to the logits, the final norm's scale being the intact model's."""
    names = [f"blocks.{layer}.attn.hook_z", "ln_final.hook_scale"]
    W_OU = frozen_readout(model, layer)
    heads, _, d_vocab = W_OU.shape
    at_once = max(1, AT_ONCE // (heads * d_vocab))
    parts = torch.split(tokens, max(16, at_once // tokens.shape[1]))
    mean = W_OU.new_zeros(())
    if about_mean:  # of the positions that count
        for part in parts:
            _, cache = model.run_with_cache(part, names_filter=names[0], stop_at_layer=layer + 1)
            mean = mean + cache[names[0]][:, 1:].sum((0, 1)) / tokens[:, 1:].numel()
    for part in parts:
        _, cache = model.run_with_cache(part, names_filter=names)
        z = cache[names[0]].flatten(0, 1) - mean
        if names[1] in cache:
            z = z / cache[names[1]].flatten(0, 1)[..., None]
        for here in torch.split(z, at_once):
            yield torch.einsum("phd,hdv->phv", here, W_OU)


def _holders(
    writes: Float[Tensor, "position head_index d_vocab"],
) -> tuple[Int[Tensor, " position"], Int[Tensor, " position"], Float[Tensor, " position"]]:
    """The representation of each position, its sole holder, and the representation's size."""
    whole = writes.sum(1)
    top = whole.argmax(-1)
    effect = whole.amax(-1) - whole.mean(-1)
    at = top[:, None]
    lead = writes.gather(-1, at[:, None].expand(-1, writes.shape[1], 1)) - writes
    harm = lead.clamp(max=0).sum(1).scatter_(1, at, 1.0)  # the token itself is no rival
    keeps = torch.stack(
        [(lead[:, h].clamp(min=0) + harm > 0).all(-1) for h in range(writes.shape[1])], 1
    )
    sole = (keeps.sum(1) == 1) & (effect > 0)
    return top, keeps.int().argmax(1).where(sole, NOBODY), effect
