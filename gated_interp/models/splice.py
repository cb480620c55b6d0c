"""Put a gated block in the place of a model's attention, and take it out again."""

from typing import Any

from gated_interp.core.errors import GatedInterpError
from gated_interp.models.gated_attention import GatedAttention
from gated_interp.models.toy import HookedTransformer, clone


def require_layer(model: HookedTransformer, layer: int) -> None:
    """Refuse a layer that is not there.

    Raises:
        GatedInterpError: naming the layers there are.
    """
    if not 0 <= layer < model.cfg.n_layers:
        raise GatedInterpError(
            f"layer {layer} is not there; the model has layers 0 to {model.cfg.n_layers - 1}."
        )


def splice(model: HookedTransformer, layer: int, block: GatedAttention) -> HookedTransformer:
    """A model like ``model`` whose attention at ``layer`` *is* ``block``.

    ``model`` is left as it was; the new model shares ``block`` and nothing else. The block's hook
    points appear under ``blocks.{layer}.attn.*``.

    Raises:
        GatedInterpError: no such layer, or a block of another width or on another device.

    Examples:
        >>> from gated_interp.models.toy import ToyConfig, build_toy
        >>> toy = build_toy(ToyConfig(n_trigrams=3, n_heads=2))
        >>> spliced = splice(toy, 0, GatedAttention.from_attention(toy.blocks[0].attn))
        >>> spliced.blocks[0].attn
        GatedAttention(4 heads, 3 trigrams, gate=clamp)
    """
    require_layer(model, layer)
    if block.config.d_model != model.cfg.d_model:
        raise GatedInterpError(
            f"the block has d_model {block.config.d_model}; the model has {model.cfg.d_model}."
        )
    here, there = model.embed.W_E.device, block.W_Q.device
    if here != there:
        raise GatedInterpError(f"the block is on {there}; the model is on {here}: move one.")
    spliced = clone(model)
    originals = dict(getattr(spliced, "original_attention", {}))
    originals.setdefault(layer, spliced.blocks[layer].attn)
    _put(spliced, layer, block)
    toy_config = getattr(spliced, "toy_config", None)
    block.n_trigrams = None if toy_config is None else toy_config.n_trigrams
    # A dict, so that the original's weights are not counted as the spliced model's.
    spliced.original_attention = originals
    return spliced


def unsplice(model: HookedTransformer, layer: int | None = None) -> HookedTransformer:
    """The model as it was before :func:`splice`, at ``layer`` or (``None``) everywhere.

    Raises:
        GatedInterpError: nothing was spliced there.

    Examples:
        >>> from gated_interp.models.toy import ToyConfig, build_toy
        >>> toy = build_toy(ToyConfig(n_trigrams=3, n_heads=2))
        >>> spliced = splice(toy, 0, GatedAttention.from_attention(toy.blocks[0].attn))
        >>> (unsplice(spliced).blocks[0].attn.W_O == toy.blocks[0].attn.W_O).all().item()
        True
    """
    originals = getattr(model, "original_attention", {})
    layers = list(originals) if layer is None else [layer]
    if not layers or any(i not in originals for i in layers):
        raise GatedInterpError(
            f"no block was spliced into {'the model' if layer is None else f'layer {layer}'}; "
            f"spliced layers are {sorted(originals)}."
        )
    restored = clone(model)
    kept = dict(restored.original_attention)
    for i in layers:
        _put(restored, i, kept.pop(i))
    restored.original_attention = kept
    return restored


def gated_block(model: HookedTransformer, layer: int = 0) -> GatedAttention | None:
    """The gated block spliced in at ``layer``; ``None`` where the attention is the model's own."""
    require_layer(model, layer)
    attn = model.blocks[layer].attn
    return attn if isinstance(attn, GatedAttention) else None


def _put(model: HookedTransformer, layer: int, attn: Any) -> None:
    model.blocks[layer].attn = attn
    if model.cfg.n_layers == 1:
        # TransformerLens' own head labels and stacks count heads by the config.
        model.cfg.n_heads = attn.W_Q.shape[0]
        model.cfg.d_head = attn.W_Q.shape[2]
    model.mod_dict.clear()
    model.hook_dict.clear()
    model.setup()
