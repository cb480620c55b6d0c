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
from jaxtyping import Bool, Float, Int
from torch import Tensor

from gated_interp.analysis.heads import chosen_layer
from gated_interp.anatomy.batch import Batch, Mask, Tokens
from gated_interp.anatomy.stream import HeadReadout
from gated_interp.core.errors import GatedInterpError
from gated_interp.core.precision import wide
from gated_interp.core.renamed import layer_first
from gated_interp.models.toy import HookedTransformer

# Numbers of every (position, head, token) that are made at once: they stay in the cache.
AT_ONCE = 2**20
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
        counted: ``[batch pos]``, the positions that measures count: all but padding and the first
            of each sequence, which is the same in every one. ``None`` is all but the first.

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
    counted: Bool[Tensor, "batch pos"] | None = None

    def __repr__(self) -> str:
        return f"TextHolders(layer {self.layer}, {self.top.numel()} positions: {self.share:.1%})"

    @cached_property
    def _places(self) -> tuple[Tensor, Tensor, Tensor]:
        """Top, holder and effect at the positions that count."""
        each = (self.top, self.holder, self.effect)
        if self.counted is None:
            return self.top[:, 1:], self.holder[:, 1:], self.effect[:, 1:]
        return tuple(x[self.counted] for x in each)  # type: ignore[return-value]

    @cached_property
    def held(self) -> Float[Tensor, "*position"]:
        """1 where a position that counts has a sole holder, else 0."""
        return (self._places[1] != NOBODY).double()

    @property
    def share(self) -> float:
        """The share of positions that have a sole holder, 0 to 1."""
        return float(self.held.mean())

    @property
    def entropy(self) -> float:
        """Of the tokens that are held, over the positions where they are, in nats."""
        top, holder, _ = self._places
        return _entropy(top[holder != NOBODY].bincount())

    @property
    def weighted_share(self) -> float:
        """The same, each position counting by :attr:`effect`."""
        weight = self._places[2].double()
        return float((self.held * weight).sum() / weight.sum().clamp(min=1e-12))

    def by_head(self) -> pd.DataFrame:
        """What each head holds.

        Returns:
            One row per head: ``head``; ``positions`` it holds and the ``share`` of all that they
            are; ``tokens``, how many different ones; ``entropy`` of these in nats (0: always the
            same); ``top``, the token it holds most often, -1 of a head that holds none.
        """
        rows = []
        top, holder, _ = self._places
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


@layer_first
@torch.no_grad()
def text_holders(
    model: HookedTransformer,
    layer: int | None = None,
    tokens: Tokens | None = None,
    *,
    about_mean: bool = False,
    attention_mask: Mask | None = None,
) -> TextHolders:
    """Which positions of ``tokens`` have a sole holder among the heads of ``layer``.

    With ``a[h, t]`` what head ``h`` adds to the logit of token ``t`` and ``c`` the position's
    representation, ``h`` keeps ``c`` on top of ``t`` whatever other heads are removed when
    ``max(0, a[h,c] - a[h,t]) + sum over heads o of min(0, a[o,c] - a[o,t]) > 0``.

    Args:
        model: any model, spliced or not.
        layer: may be left out where it is the only one, or the only one spliced. What an early
            layer writes is read on its direct path to the logits, past MLPs and later layers.
        about_mean: take from what each head writes its mean over ``tokens``. A head that writes
            one large constant, which a bias takes back, holds every position and says nothing;
            set aside as the bias that it is, it holds none.
        attention_mask: ``[batch pos]``, 1 at tokens and 0 at padding, which is not counted (there,
            ``holder`` is -1).

    Raises:
        GatedInterpError: no such layer, none named of several, or tokens the model cannot read, or
            of one position.

    Examples:
        >>> from gated_interp.models.analytic import manual_model
        >>> truth = manual_model(2, 3)  # trigram 1 is written by head 0, 2 by head 1, 3 by both
        >>> found = text_holders(truth.model, tokens=truth.task.sample(50, seed=0).tokens)
        >>> 0 < found.share < 1, found.by_head()["positions"].gt(0).tolist()
        (True, [True, True])
    """
    layer = chosen_layer(model, layer)
    batch = Batch.of(model, tokens, attention_mask)
    if not bool(batch.later.any()):
        raise GatedInterpError("one-position-only")
    top, holder, effect = (
        torch.cat(parts).view(batch.tokens.shape)
        for parts in zip(
            *(_holders(writes) for writes in _writes(model, batch, layer, about_mean)), strict=True
        )
    )
    counted = None
    if batch.real is not None:
        holder, counted = holder.where(batch.real, NOBODY), batch.later
    return TextHolders(top, holder, effect, len(model.blocks[layer].attn.W_O), layer, counted)


def _entropy(counts: Int[Tensor, " token"]) -> float:
    p = counts[counts > 0].double() / max(1, int(counts.sum()))
    return float(-(p * p.log()).sum()) + 0.0


def _writes(
    model: HookedTransformer, batch: Batch, layer: int, about_mean: bool
) -> Iterator[Float[Tensor, "position head_index d_vocab_out"]]:
    """What each head adds to the logits, norms behind it at the intact model's scale."""
    name = f"blocks.{layer}.attn.hook_z"
    readout = HeadReadout.of(model, layer)
    heads, _, d_vocab = readout.matrix.shape
    at_once = max(1, AT_ONCE // (heads * d_vocab))
    parts = batch.split(max(16, at_once // batch.tokens.shape[1]))
    mean = readout.matrix.new_zeros(())
    if about_mean:  # of the positions that count
        for part in parts:
            _, cache = part.cache(model, name, stop_at_layer=layer + 1)
            mean = mean + wide(cache[name])[part.later].sum(0) / batch.later.sum()
    for part in parts:
        _, cache = part.cache(model, [name, *readout.scales])
        z = ((wide(cache[name]) - mean) / readout.scale(cache)).flatten(0, 1)
        for here in torch.split(z, at_once):
            yield torch.einsum("phd,hdv->phv", here, readout.matrix)


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
    # A head that is behind a rival is part of the harm, so the sum is below 0 there.
    keeps = torch.stack([(lead[:, h] + harm).amin(-1) > 0 for h in range(writes.shape[1])], 1)
    sole = (keeps.sum(1) == 1) & (effect > 0)
    return top, keeps.int().argmax(1).where(sole, NOBODY), effect
