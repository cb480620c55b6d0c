"""A model around a gated block that came without the toy it was trained to reproduce."""

from gated_interp.models.toy import ToyConfig, ToyTransformer, build_toy
from gated_interp.replacements.heads import HeadAttention
from gated_interp.replacements.splice import keep_originals, splice
from gated_interp.tasks.skip_trigrams import SkipTrigramTask


def standalone(block: HeadAttention, task: SkipTrigramTask) -> ToyTransformer:
    """A one-layer model, identity embedding and unembedding, whose only attention is ``block``.

    It has no original: ``model.toy_config`` is ``None`` and ``unsplice`` refuses. Only
    what compares with the original (such as FVU) needs one.

    Args:
        block: shared with the model, not copied.
        task: what it was trained on; ``d_model`` of the block is its ``d_vocab``.

    Examples:
        >>> from gated_interp.replacements.gated_attention import GatedAttention, GatedConfig
        >>> block = GatedAttention(GatedConfig(d_model=8, n_heads=4))
        >>> model = standalone(block, SkipTrigramTask(n_trigrams=3))
        >>> model.blocks[0].attn is block, model.toy_config
        (True, None)
    """
    c = block.config
    shape = ToyConfig(
        n_trigrams=task.n_trigrams, n_heads=c.n_heads, d_head=c.d_head, n_positions=task.n_positions
    )
    toy = build_toy(shape).to(block.W_O.device, print_details=False)
    toy.to(block.W_O.dtype, print_details=False)
    model = splice(toy, 0, block, other_layer=True)
    # What splice put aside are fresh random weights, nobody's original.
    keep_originals(model, {})
    model.toy_config = None
    return model
