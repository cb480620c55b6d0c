"""Put a replacement in the place of a model's attention, and take it out again."""

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from gated_interp.core.errors import GatedInterpError
from gated_interp.core.renamed import warn_old
from gated_interp.models.toy import HookedTransformer, Model, ToyTransformer, clone
from gated_interp.replacements.gated_attention import GatedAttention
from gated_interp.replacements.layer_sketch import Sketch, layer_sketch, same_layer
from gated_interp.replacements.replacement import Replacement


def require_layer(model: HookedTransformer, layer: int) -> None:
    """Refuse a layer that is not there."""
    if type(layer) is not int:
        raise GatedInterpError(
            "layer-not-a-number", kind=type(layer).__name__, last=model.cfg.n_layers - 1
        )
    if not 0 <= layer < model.cfg.n_layers:
        raise GatedInterpError("no-such-layer", layer=layer, last=model.cfg.n_layers - 1)


def chosen_layer(
    model: HookedTransformer, layer: int | None, *, spliced: bool = True, first: bool = False
) -> int:
    """``layer``; where none is named, the only spliced layer, or the model's only layer.

    Args:
        spliced: whether an only spliced layer is what is meant.
        first: whether version 0.2 took layer 0 of several, which still works and warns.
    """
    if layer is not None:
        require_layer(model, layer)
        return layer
    n = model.cfg.n_layers
    found = [i for i in range(n) if spliced and replacement_in(model, i) is not None]
    if len(found) == 1 or n == 1:
        return (*found, 0)[0]
    if not first:
        raise GatedInterpError("which-layer-of-heads", n=n, last=n - 1)
    warn_old(f"leaving out the layer of a model with {n} layers", "layer=0")
    return 0


class KeptAttention(nn.Module):
    """The attention that was replaced, by layer: it moves with the model and is no part of it.

    ``.to``, ``.half`` and their like reach it; ``parameters``, ``state_dict`` and hooks do not.
    """

    def __init__(self, by_layer: dict[int, nn.Module]):
        super().__init__()
        self.by_layer = by_layer

    def _apply(self, fn: Any, recurse: bool = True) -> "KeptAttention":
        for attn in self.by_layer.values():
            attn._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return super()._apply(fn, recurse)  # type: ignore[no-untyped-call]

    def train(self, mode: bool = True) -> "KeptAttention":
        for attn in self.by_layer.values():
            attn.train(mode)
        return super().train(mode)

    def extra_repr(self) -> str:
        return f"layers {sorted(self.by_layer)}"


def splice(model: Model, layer: int, block: Replacement, *, other_layer: bool = False) -> Model:
    """A model like ``model`` whose attention at ``layer`` *is* ``block``.

    ``model`` is left as it was; the new model shares ``block`` and nothing else: what trains or
    hooks the one does so to the other. The block's weights are left as they were. Its hook points
    are named for their place, ``blocks.{layer}.attn.*``, so models that share a block must have it
    in the same layer; in a toy its repr says the trigrams from now on.

    Args:
        other_layer: also take a block that was made from, or trained on, a layer with other weights
            than this one's (by 1% of their length, see
            :mod:`gated_interp.replacements.layer_sketch`).

    Raises:
        GatedInterpError: no such layer, no block, or one of another width, type or layer or on
            another device.

    Examples:
        >>> from gated_interp.models.toy import ToyConfig, build_toy
        >>> toy = build_toy(ToyConfig(n_trigrams=3, n_heads=2))
        >>> spliced = splice(toy, 0, GatedAttention.from_attention(toy.blocks[0].attn))
        >>> spliced.blocks[0].attn
        GatedAttention(4 heads, 3 trigrams, gate=clamp)
    """
    require_fit(model, layer, block, other_layer=other_layer)
    spliced = clone(model)
    splice_in(spliced, layer, block)
    return spliced


def require_fit(
    model: HookedTransformer, layer: int, block: Replacement, *, other_layer: bool = False
) -> None:
    """Refuse a block that cannot be spliced in at ``layer``; see :func:`splice`."""
    if not isinstance(block, Replacement):
        raise GatedInterpError("not-a-replacement", kind=type(block).__name__)
    require_layer(model, layer)
    if block.config.d_model != model.cfg.d_model:
        raise GatedInterpError(
            "block-width-mismatch", block=block.config.d_model, model=model.cfg.d_model
        )
    here, there = model.embed.W_E.device, block.W_O.device
    if here != there:
        raise GatedInterpError("block-on-another-device", there=str(there), here=str(here))
    mine, theirs = block.W_O.dtype, model.blocks[layer].attn.W_O.dtype
    if mine != theirs:
        raise GatedInterpError("block-of-another-type", block=str(mine), model=str(theirs))
    if not other_layer and block.stands_for is not None:
        there_now = sketch_at(model, layer)
        if there_now is not None and not same_layer(block.stands_for, there_now):
            raise GatedInterpError("block-of-another-layer", layer=layer)


def splice_in(model: HookedTransformer, layer: int, block: Replacement) -> None:
    """Put ``block``, which fits, into ``model`` itself."""
    keep_originals(model, {layer: model.blocks[layer].attn} | originals(model))
    _put(model, layer, block)
    if isinstance(model, ToyTransformer):
        block.n_trigrams = model.task.n_trigrams


def unsplice(model: Model, layer: int | None = None) -> Model:
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
    spliced = originals(model)
    layers = list(spliced) if layer is None else [layer]
    if not layers:
        raise GatedInterpError("nothing-spliced")
    if any(i not in spliced for i in layers):
        raise GatedInterpError("nothing-spliced-in-layer", layer=layer, spliced=sorted(spliced))
    restored = clone(model)
    kept = originals(restored)
    for i in layers:
        _put(restored, i, kept.pop(i))
    keep_originals(restored, kept)
    return restored


def originals(model: HookedTransformer) -> dict[int, nn.Module]:
    """By layer, the attention that gated blocks were spliced in the place of; ``unsplice``'s."""
    kept = getattr(model, "original_attention", None)
    return {} if kept is None else dict(kept.by_layer)


def keep_originals(model: HookedTransformer, attention: dict[int, nn.Module]) -> None:
    """Let these be the :func:`originals` of ``model``."""
    model.original_attention = KeptAttention(attention) if attention else None


def own_weights(model: HookedTransformer) -> Iterator[tuple[str, Tensor]]:
    """The weights of the model before anything was spliced in, by name."""
    kept = originals(model)
    replaced = tuple(f"blocks.{layer}.attn." for layer in kept)
    for name, weight in model.named_parameters():
        if not name.startswith(replaced):
            yield name, weight
    for layer, attn in kept.items():
        for name, weight in attn.named_parameters():
            yield f"blocks.{layer}.attn.{name}", weight


def sketch_at(model: HookedTransformer, layer: int) -> Sketch | None:
    """The sketch of the model's own attention at ``layer``; ``None`` where a block came alone."""
    attn = originals(model).get(layer, model.blocks[layer].attn)
    return None if isinstance(attn, Replacement) else layer_sketch(dict(attn.named_parameters()))


def replacement_in(model: HookedTransformer, layer: int = 0) -> Replacement | None:
    """What was spliced in at ``layer``, of any kind; ``None`` where the attention is its own."""
    require_layer(model, layer)
    attn = model.blocks[layer].attn
    return attn if isinstance(attn, Replacement) else None


def gated_block(model: HookedTransformer, layer: int = 0) -> GatedAttention | None:
    """The gated block spliced in at ``layer``; ``None`` where the attention is the model's own."""
    block = replacement_in(model, layer)
    return block if isinstance(block, GatedAttention) else None


def require_gated_block(model: HookedTransformer, layer: int = 0) -> GatedAttention:
    """The gated block spliced in at ``layer``."""
    block = gated_block(model, layer)
    if block is None:
        raise GatedInterpError("no-gated-block", layer=layer)
    return block


def _put(model: HookedTransformer, layer: int, attn: Any) -> None:
    # Some attention is another in training than in use (use_logn_attn): it is what its model is.
    model.blocks[layer].attn = attn.train(model.training)
    if model.cfg.n_layers == 1:
        # TransformerLens' own head labels and stacks count heads by the config.
        model.cfg.n_heads, model.cfg.d_head = attn.W_O.shape[:2]
    model.mod_dict.clear()
    model.hook_dict.clear()
    model.setup()
