"""How many heads share what a layer writes, position by position, in a layer anywhere.

Nothing here asks what the write does to the logits: of a layer in the middle of a model they say
little. What is measured is geometric, so it does not say that a behaviour needs the heads that
write: for that, switch them off (:func:`~gated_interp.analysis.ablation.ablate`).
"""

import dataclasses

import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from gated_interp.anatomy.batch import Batch, Mask, Tokens
from gated_interp.anatomy.stream import Written
from gated_interp.core.errors import GatedInterpError
from gated_interp.core.precision import wide
from gated_interp.core.renamed import layer_first
from gated_interp.models.toy import HookedTransformer
from gated_interp.replacements.splice import chosen_layer

# A head writes alone where its share is at least this.
ALONE = 0.9
# Tokens whose heads' activations are held at once.
AT_ONCE = 2**14


@dataclasses.dataclass(frozen=True, eq=False)
class HeadSharing:
    """How the heads of a layer share its write, per position.

    Attributes:
        length: ``[batch pos head_index]``, of what each head writes to the residual stream.
        share: ``[batch pos head_index]``, of each head in the layer's write, along the direction of
            that write. Shares sum to 1; a head that writes against the others has a negative one.
        write: ``[batch pos]``, the length of the layer's write, the sum over heads without biases.
        counted: ``[batch pos]``, the positions that :meth:`table` counts.
        centred: whether each head's mean write was taken away first.
    """

    length: Float[Tensor, "batch pos head_index"]
    share: Float[Tensor, "batch pos head_index"]
    write: Float[Tensor, "batch pos"]
    counted: Bool[Tensor, "batch pos"]
    centred: bool

    @property
    def participation(self) -> Float[Tensor, "batch pos"]:
        """The participation number of heads, from 1 (one writes) to as many as there are.

        The squared sum of lengths over the sum of squares. It does not see whether heads add or
        cancel.
        """
        return self.length.sum(-1).square() / self.length.square().sum(-1)

    @property
    def cancellation(self) -> Float[Tensor, "batch pos"]:
        """0 where heads write in one direction, 1 where what they write comes to nothing."""
        return 1 - self.write / self.length.sum(-1)

    @property
    def top_share(self) -> Float[Tensor, "batch pos"]:
        """The largest share of one head."""
        return self.share.amax(-1)

    def table(self, where: Bool[Tensor, "batch pos"] | None = None) -> pd.DataFrame:
        """One row per measure: ``measure``, ``median``, ``mean`` and ``n``, positions counted.

        Measures are ``participation``, ``top_share``, ``cancellation`` and ``alone``, whether one
        head has at least 90% of the write (its mean is the share of positions). Positions at which
        the layer writes nothing are left out.

        Args:
            where: the positions to count, such as those at which a behaviour happens; all that are
                counted unless given. A median over all of a text can hide that heads share the work
                at the few positions where there is work.

        Raises:
            GatedInterpError: no such position.
        """
        if where is not None and where.shape != self.counted.shape:
            raise GatedInterpError(
                "bad-where", shape=tuple(where.shape), wanted=tuple(self.counted.shape)
            )
        kept = self.counted if where is None else self.counted & where.to(self.counted.device)
        kept = kept & (self.write > 0)
        if not bool(kept.any()):
            raise GatedInterpError("nothing-written")
        measures = {
            "participation": self.participation,
            "top_share": self.top_share,
            "cancellation": self.cancellation,
            "alone": self.top_share >= ALONE,
        }
        found = {name: values[kept].double() for name, values in measures.items()}
        rows = [(name, float(v.median()), float(v.mean()), len(v)) for name, v in found.items()]
        return pd.DataFrame(rows, columns=["measure", "median", "mean", "n"])


@layer_first
@torch.no_grad()
def head_sharing(
    model: HookedTransformer,
    layer: int | None = None,
    tokens: Tokens | None = None,
    *,
    centred: bool = False,
    first: bool = False,
    attention_mask: Mask | None = None,
) -> HeadSharing:
    """How the heads of a layer share what it writes, of any layer of any model.

    Compare a block with the layer it replaces by asking both: ``head_sharing(model, …)`` and
    ``head_sharing(gi.unsplice(model), …)``.

    Args:
        layer: may be left out where one layer holds a replacement, or the model has one.
        tokens: ``[batch pos]``.
        centred: take each head's mean over the counted positions away first. What a head writes
            everywhere is no different from a bias.
        first: count the first position of each sequence too. Many pretrained models attend to it
            when they have nothing to look for, and their write there is longer than all others.

    Raises:
        GatedInterpError: no such layer, or tokens the model cannot read.

    Examples:
        >>> from gated_interp.checkpoints.checkpoint import load
        >>> block, task = load("2H3ST-gated"), load("2H3ST-gated").task
        >>> sharing = head_sharing(block, tokens=task.sample(50, seed=0).tokens)
        >>> bool(sharing.table()["median"][0] < 2)  # heads per position
        True
    """
    layer = chosen_layer(model, layer)
    batch, name = Batch.of(model, tokens, attention_mask), f"blocks.{layer}.attn.hook_z"
    written = Written.of(model, layer)
    counted = batch.counted if first else batch.later
    pieces = []
    for part in batch.split(max(1, AT_ONCE // batch.tokens.shape[1])):
        _, cache = part.cache(model, [name, *written.scales], stop_at_layer=layer + 1)
        scale = written.scale(cache)  # of a norm behind the layer
        pieces.append(wide(cache[name]) / (scale[..., None] if isinstance(scale, Tensor) else 1.0))
    z = torch.cat(pieces)
    if centred and bool(counted.any()):
        z = z - z[counted].mean(0)
    W_O = written.W_O
    write = torch.einsum("bphd,hdm->bpm", z, W_O)
    # Products with z come last: nobody holds [batch pos head_index d_model].
    along = (z * torch.einsum("bpm,hdm->bphd", write, W_O)).sum(-1)
    inner = torch.einsum("hdm,hem->hde", W_O, W_O)
    length = (z * torch.einsum("bphd,hde->bphe", z, inner)).sum(-1).clamp(min=0).sqrt()
    total = write.norm(dim=-1)
    share = along / total.square().clamp(min=torch.finfo(total.dtype).tiny)[..., None]
    return HeadSharing(length, share, total, counted, centred)
