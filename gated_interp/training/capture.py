"""What one attention layer of any HookedTransformer receives and writes, read through hooks."""

import dataclasses

import torch
from jaxtyping import Float
from torch import Tensor

from gated_interp.anatomy.batch import Batch, Mask, Tokens
from gated_interp.core.errors import GatedInterpError
from gated_interp.core.renamed import layer_first
from gated_interp.models.toy import HookedTransformer
from gated_interp.replacements.replacement import inputs_of, outputs_of
from gated_interp.replacements.splice import chosen_layer, require_layer


@dataclasses.dataclass(frozen=True)
class AttentionIO:
    """One layer's attention: what it was given and what was added to the residual stream.

    Attributes:
        query_input, key_input, value_input: ``[batch pos d_model]``, after the layer's norm. They
            differ only where positional embeddings reach queries and keys alone.
        output: ``[batch pos d_model]``, what it returns: the activation at ``hook_attn_out``, but
            where a norm stands between.
        logits: ``[batch pos d_vocab]``, what the model predicts, where it was asked.
        residual: ``[batch pos d_model]``, what the layer's residual stream was before it, where
            ``logits`` were asked.
    """

    query_input: Float[Tensor, "batch pos d_model"]
    key_input: Float[Tensor, "batch pos d_model"]
    value_input: Float[Tensor, "batch pos d_model"]
    output: Float[Tensor, "batch pos d_model"]
    logits: Float[Tensor, "batch pos d_vocab"] | None = None
    residual: Float[Tensor, "batch pos d_model"] | None = None

    @property
    def inputs(self) -> tuple[Tensor, Tensor, Tensor]:
        """The arguments to call a block with."""
        return self.query_input, self.key_input, self.value_input


@layer_first
@torch.no_grad()
def attention_io(
    model: HookedTransformer,
    layer: int | None = None,
    tokens: Tokens | None = None,
    *,
    attention_mask: Mask | None = None,
    logits: bool = False,
) -> AttentionIO:
    """What the attention of ``layer`` receives and writes on ``tokens``, without gradients.

    Layers behind it are run where ``logits`` are asked for; no hook outlives the call, whether it
    returns or raises.
    """
    layer = chosen_layer(model, layer, spliced=False)
    require_capturable(model, layer)
    batch, block = Batch.of(model, tokens, attention_mask), model.blocks[layer]
    with (
        inputs_of(block.attn) as received,
        outputs_of(block.attn) as written,
        outputs_of(block.hook_resid_pre) as before,
    ):
        if logits:
            predicted = batch.logits(model)
        else:
            predicted = batch.logits(model, return_type=None, stop_at_layer=layer + 1)
    given = received[-1]
    return AttentionIO(
        given["query_input"],
        given["key_input"],
        given["value_input"],
        output=written[-1],
        logits=predicted if logits else None,
        residual=before[-1] if logits else None,
    )


def require_capturable(model: HookedTransformer, layer: int) -> None:
    """Refuse a layer that does not read one input."""
    require_layer(model, layer)
    cfg = model.cfg
    if cfg.use_split_qkv_input or cfg.use_attn_in:
        raise GatedInterpError("split-input")
