"""What each head writes to the logits, where these are linear in the heads of a layer."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from gated_interp.core.errors import GatedInterpError
from gated_interp.models.toy import HookedTransformer


def require_tokens(model: HookedTransformer, tokens: Tensor) -> None:
    """Refuse tokens that ``model`` cannot read.

    Raises:
        GatedInterpError: not whole numbers of shape [batch, pos], empty, outside the vocabulary,
            longer than the context, or on another device.
    """
    if tokens.ndim != 2 or tokens.is_floating_point() or tokens.numel() == 0:
        raise GatedInterpError(
            f"tokens have shape {tuple(tokens.shape)} and type {tokens.dtype}; they must be whole "
            "numbers of shape [batch, pos] with at least one row and one position."
        )
    here, there = model.embed.W_E.device, tokens.device
    if here != there:
        raise GatedInterpError(f"the tokens are on {there}; the model is on {here}: move one.")
    low, high = int(tokens.min()), int(tokens.max())
    if low < 0 or high >= model.cfg.d_vocab:
        raise GatedInterpError(
            f"token {low if low < 0 else high} is outside the vocabulary "
            f"0 to {model.cfg.d_vocab - 1}."
        )
    if tokens.shape[1] > model.cfg.n_ctx:
        raise GatedInterpError(
            f"the tokens have {tokens.shape[1]} positions; the model's context has "
            f"{model.cfg.n_ctx}."
        )


def require_linear(model: HookedTransformer, layer: int | None = None) -> None:
    """Refuse a model whose logits are not a sum over the heads of one layer.

    Args:
        layer: where named, the model may have others: they are taken as they are.

    Raises:
        GatedInterpError: several layers, one that is not the last, MLPs, or a normalisation.
    """
    cfg = model.cfg
    if layer is not None and cfg.attn_only and cfg.normalization_type is None:
        if layer != cfg.n_layers - 1:
            raise GatedInterpError(
                f"what layer {layer} writes is read by later layers, so only the heads of layer "
                f"{cfg.n_layers - 1} add up to the logits; analysis.holders.holders ablates those "
                "of any layer."
            )
        return
    if cfg.n_layers != 1 or not cfg.attn_only or cfg.normalization_type is not None:
        raise GatedInterpError(
            "this needs a model with one attention-only layer and no normalisation, whose logits "
            f"are a sum over heads; this one has {cfg.n_layers} layers, "
            f"attn_only={cfg.attn_only}, normalization_type={cfg.normalization_type!r}."
        )


@torch.no_grad()
def head_writes(
    model: HookedTransformer,
    tokens: Int[Tensor, "batch pos"],
    rows: Int[Tensor, " example"],
    positions: Int[Tensor, " example"],
    layer: int = 0,
) -> tuple[Float[Tensor, "example head_index d_vocab"], Float[Tensor, "example d_vocab"]]:
    """What each head writes to the logits at some positions, and the model's own logits there.

    Args:
        rows, positions: which row and position of ``tokens`` each example is.
        layer: whose heads; the last.

    Returns:
        writes ``[example head_index d_vocab]`` (biases b_O and b_U left out) and logits
        ``[example d_vocab]``, from one forward pass.

    Raises:
        GatedInterpError: the model is not linear in its heads, or cannot read the tokens.
    """
    require_linear(model, layer)
    require_tokens(model, tokens)
    name = f"blocks.{layer}.attn.hook_z"
    logits, cache = model.run_with_cache(tokens, names_filter=name)
    z = cache[name][rows, positions]
    W_OU = model.blocks[layer].attn.W_O @ model.unembed.W_U
    return torch.einsum("ehd,hdv->ehv", z, W_OU), logits[rows, positions]
