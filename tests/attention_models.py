"""Models with random weights that the analysis tests share."""

import torch
from transformer_lens import HookedTransformerConfig

from gated_interp.models.toy import HookedTransformer, ToyConfig, attention_only, build_toy
from gated_interp.replacements.gated_attention import GatedAttention, GatedConfig
from gated_interp.replacements.splice import splice
from gated_interp.tasks.skip_trigrams import SkipTrigramTask


def fill(model, seed, scale=0.7):
    """Normal weights everywhere (normalisation weights around 1), from a seed."""
    source = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(scale * torch.randn(parameter.shape, generator=source))
            if name.endswith(".w"):
                parameter.add_(1.0)
    return model


def two_layers(task: SkipTrigramTask, seed=0, normalization_type="LN") -> HookedTransformer:
    """Two layers, LayerNorm, positional embeddings, d_model 13, 3 heads of 5."""
    return fill(
        attention_only(
            HookedTransformerConfig(
                n_layers=2,
                d_model=13,
                d_vocab=task.d_vocab,
                n_ctx=task.n_positions,
                d_head=5,
                n_heads=3,
                attn_only=True,
                normalization_type=normalization_type,
                act_fn="relu",
                device="cpu",
            )
        ),
        seed,
    )


def toy(task: SkipTrigramTask, n_heads=3, d_head=2, seed=0) -> HookedTransformer:
    """A toy whose biases are not zero."""
    model = build_toy(ToyConfig(n_trigrams=task.n_trigrams, n_heads=n_heads, d_head=d_head))
    fill(model.blocks[0].attn, seed)
    return model


def gated(task: SkipTrigramTask, n_heads=5, d_head=2, seed=0, **config) -> HookedTransformer:
    """A toy with a random gated block spliced in, every bias there and some gates shut."""
    block = GatedAttention(
        GatedConfig(d_model=task.d_vocab, n_heads=n_heads, d_head=d_head, d_gate=3, **config)
    )
    return splice(toy(task, seed=seed), 0, fill(block, seed + 1))


def gated_layer(task: SkipTrigramTask, layer=1, n_heads=5, seed=0) -> HookedTransformer:
    """The two-layer model with a gated block of another head count in one layer."""
    block = GatedAttention(GatedConfig(d_model=13, n_heads=n_heads, d_head=7))
    return splice(two_layers(task, seed), layer, fill(block, seed + 1))
