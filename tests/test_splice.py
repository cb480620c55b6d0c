"""Splicing a block into a model, and taking it out again."""

import pytest
import torch
from closeness import assert_close
from refusals import refuses
from transformer_lens import HookedTransformerConfig

import gated_interp as gi
from gated_interp.core.seeds import generator
from gated_interp.models.toy import (
    AttentionConfig,
    HookedTransformer,
    attention_only,
    build_attention,
)
from gated_interp.replacements.gated_attention import GatedAttention, GatedConfig
from gated_interp.replacements.splice import gated_block, originals, splice, unsplice
from gated_interp.tasks.repeated_tokens import RepeatedTokensTask

BATCH, POS, HEADS, D_HEAD, D_MODEL, D_VOCAB, GATED_HEADS, D_GATE = 2, 5, 3, 7, 11, 13, 17, 1


def deep_model(n_layers: int = 3) -> HookedTransformer:
    """Attention layers with LayerNorm and positional embeddings, all weights random."""
    config = HookedTransformerConfig(
        n_layers=n_layers, d_model=D_MODEL, d_vocab=D_VOCAB, n_ctx=POS, d_head=D_HEAD,
        n_heads=HEADS, attn_only=True, normalization_type="LN", act_fn="relu", device="cpu",
    )  # fmt: skip
    model = attention_only(config)
    source = generator(31)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.4 * torch.randn(parameter.shape, generator=source))
    return model


def new_block(seed: int = 1, **config) -> GatedAttention:
    fields = {"d_model": D_MODEL, "n_heads": GATED_HEADS, "d_head": D_HEAD, "d_gate": D_GATE}
    return GatedAttention(GatedConfig(**{**fields, **config}, seed=seed))


def equal_block(model: HookedTransformer, layer: int) -> GatedAttention:
    """A block that computes what the layer's attention computes."""
    block = GatedAttention.from_attention(
        model.blocks[layer].attn, 2, init="duplicate", noise=0, normalize_weights=False
    )
    block.force_gates(1)
    return block


TOKENS = torch.randint(D_VOCAB, (BATCH, POS), generator=generator(2))


def test_every_hook_point_is_in_the_cache_with_its_shape():
    spliced = splice(deep_model(), 1, new_block())
    _, cache = spliced.run_with_cache(TOKENS)
    heads = (BATCH, POS, GATED_HEADS, D_HEAD)
    pairs = (BATCH, GATED_HEADS, POS, POS)
    shapes = {
        "q": heads, "k": heads, "v": heads, "z": heads,
        "attn_scores": pairs, "pattern": pairs, "gate_scores": pairs, "gate": pairs,
        "gated_pattern": pairs, "result": (BATCH, POS, GATED_HEADS, D_MODEL),
    }  # fmt: skip
    there = {n for n in cache if n.startswith("blocks.1.attn.")}
    assert there == {f"blocks.1.attn.hook_{name}" for name in shapes}
    for name, shape in shapes.items():
        assert tuple(cache[f"blocks.1.attn.hook_{name}"].shape) == shape, name
    # The other layers are as they were.
    assert cache["blocks.0.attn.hook_z"].shape == (BATCH, POS, HEADS, D_HEAD)


def test_the_cache_holds_what_the_layer_wrote():
    spliced = splice(deep_model(), 1, new_block())
    logits, cache = spliced.run_with_cache(TOKENS)
    at = "blocks.1.attn.hook_"
    result, written = cache[at + "result"], cache["blocks.1.hook_attn_out"]
    assert_close(result.sum(2) + spliced.blocks[1].attn.b_O, written)
    assert_close(cache[at + "gate"] * cache[at + "pattern"], cache[at + "gated_pattern"])
    assert_close(logits, spliced(TOKENS))
    assert written.abs().max() > 1e-3


def test_a_hook_on_the_gate_is_obeyed():
    spliced = splice(deep_model(), 1, new_block(value_bias=False))
    shut = spliced.run_with_hooks(
        TOKENS, fwd_hooks=[("blocks.1.attn.hook_gate", lambda gate, hook: gate * 0)]
    )
    silent = spliced.run_with_hooks(
        TOKENS, fwd_hooks=[("blocks.1.hook_attn_out", lambda out, hook: out * 0)]
    )
    assert_close(shut, silent)
    assert (shut - spliced(TOKENS)).abs().max() > 1e-3
    assert not any(point.fwd_hooks for point in spliced.hook_dict.values())


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_an_equal_block_leaves_the_model_as_it_was(layer):
    model = deep_model()
    spliced = splice(model, layer, equal_block(model, layer))
    assert_close(spliced(TOKENS), model(TOKENS))
    other = splice(model, layer, new_block())
    assert (other(TOKENS) - model(TOKENS)).abs().max() > 1e-2


def test_the_original_is_untouched():
    model = deep_model()
    weights = {n: p.clone() for n, p in model.state_dict().items()}
    points, logits = set(model.hook_dict), model(TOKENS)
    spliced = splice(model, 1, new_block())
    with torch.no_grad():
        for parameter in spliced.parameters():
            parameter += 1
    assert set(model.hook_dict) == points
    assert all(torch.equal(p, weights[n]) for n, p in model.state_dict().items())
    assert torch.equal(model(TOKENS), logits)
    assert gated_block(model, 1) is None
    assert model.cfg.n_heads == HEADS


def test_the_block_is_shared_and_nothing_else():
    model, block = deep_model(), new_block()
    spliced = splice(model, 1, block)
    assert gated_block(spliced, 1) is block
    assert gated_block(spliced, 0) is None
    before = spliced(TOKENS)
    with torch.no_grad():
        block.raw_W_O.neg_()
    assert (spliced(TOKENS) - before).abs().max() > 1e-3
    ours = {p.data_ptr() for p in model.parameters()}
    assert ours.isdisjoint({p.data_ptr() for p in spliced.parameters()})


def test_splicing_writes_to_the_block_what_it_says_and_no_more(toy):
    """Hook points are named for their place, and a toy tells its trigrams; nothing is unsaid."""
    block = GatedAttention(GatedConfig(d_model=8, n_heads=5))
    weights = {n: p.clone() for n, p in block.named_parameters()}
    splice(toy, 0, block)
    assert (block.hook_z.name, block.n_trigrams) == ("blocks.0.attn.hook_z", 3)
    assert all(torch.equal(p, weights[n]) for n, p in block.named_parameters())
    config = HookedTransformerConfig(
        n_layers=2, d_model=8, d_vocab=4, n_ctx=POS, d_head=D_HEAD, n_heads=HEADS,
        attn_only=True, device="cpu",
    )  # fmt: skip
    splice(attention_only(config), 1, block)  # no toy: there is nothing to tell
    assert (block.hook_z.name, block.n_trigrams) == ("blocks.1.attn.hook_z", 3)


def test_the_originals_are_kept_by_layer():
    model = deep_model()
    assert originals(model) == {}
    spliced = splice(splice(model, 1, new_block()), 2, new_block(seed=3))
    assert sorted(originals(spliced)) == [1, 2]
    assert torch.equal(originals(spliced)[1].W_Q, model.blocks[1].attn.W_Q)
    assert sorted(originals(unsplice(spliced, 1))) == [2]
    originals(spliced).clear()  # a copy
    assert sorted(originals(spliced)) == [1, 2]


def test_unsplicing_gives_the_original_back_bit_by_bit():
    model = deep_model()
    spliced = splice(splice(model, 1, new_block()), 2, new_block(seed=3))
    for restored in (unsplice(spliced), unsplice(unsplice(spliced, 2), 1)):
        assert set(restored.hook_dict) == set(model.hook_dict)
        for (name, ours), (other, theirs) in zip(
            restored.state_dict().items(), model.state_dict().items(), strict=True
        ):
            assert name == other
            assert torch.equal(ours, theirs)
        assert torch.equal(restored(TOKENS), model(TOKENS))
        assert restored.cfg.n_heads == HEADS
    half = unsplice(spliced, 1)
    assert gated_block(half, 1) is None
    assert gated_block(half, 2) is not None
    # Splicing over a block keeps the original, not the first block.
    twice = unsplice(splice(spliced, 1, new_block(seed=4)), 1)
    assert torch.equal(twice.blocks[1].attn.W_Q, model.blocks[1].attn.W_Q)


def test_a_one_layer_model_counts_the_heads_it_has(toy):
    block = GatedAttention.from_attention(toy.blocks[0].attn, 2)
    spliced = splice(toy, 0, block)
    assert (toy.cfg.n_heads, spliced.cfg.n_heads, unsplice(spliced).cfg.n_heads) == (2, 4, 2)
    _, cache = spliced.run_with_cache(torch.tensor([[7, 0, 1]]))
    stacked, labels = cache.stack_head_results(layer=1, return_labels=True)
    assert labels == ["L0H0", "L0H1", "L0H2", "L0H3"]
    assert_close(stacked.sum(0), cache["blocks.0.hook_attn_out"])


def test_hooks_on_the_model_are_not_carried_over():
    model = deep_model()
    model.add_hook("blocks.0.hook_attn_out", lambda out, hook: out * 0)
    model.add_hook("blocks.2.hook_resid_pre", lambda out, hook: out * 0, is_permanent=True)
    spliced = splice(model, 1, equal_block(model, 1))
    assert not any(point.fwd_hooks for point in spliced.hook_dict.values())
    hooked = model(TOKENS)
    assert (spliced(TOKENS) - hooked).abs().max() > 1e-3
    # The model's own hooks are still there.
    assert len(model.hook_dict["blocks.0.hook_attn_out"].fwd_hooks) == 1
    model.reset_hooks(including_permanent=True)
    assert_close(spliced(TOKENS), model(TOKENS))


@pytest.mark.parametrize("layer", [-1, 3])
def test_layers_that_are_not_there_are_refused(layer):
    model = deep_model()
    for act in (lambda: splice(model, layer, new_block()), lambda: gated_block(model, layer)):
        with refuses("no-such-layer", last=2):
            act()


def test_blocks_that_do_not_fit_are_refused():
    with refuses("block-width-mismatch", block=12, model=11):
        splice(deep_model(), 1, new_block(d_model=12))


def test_unsplicing_what_was_not_spliced_is_refused():
    model = deep_model()
    with refuses("nothing-spliced"):
        unsplice(model)
    with refuses("nothing-spliced-in-layer", layer=0):
        unsplice(splice(model, 1, new_block()), 0)


def block_of(model, layer):
    return GatedAttention.from_attention(model.blocks[layer].attn, 2, init="duplicate", seed=layer)


def test_a_block_comes_out_of_a_file_by_its_layer(tmp_path):
    task = RepeatedTokensTask()
    model = build_attention(AttentionConfig.of(task, n_layers=2, n_heads=2), task)
    one = gi.save(gi.splice(model, 1, block_of(model, 1)), tmp_path / "one.safetensors")
    both = gi.splice(gi.splice(model, 0, block_of(model, 0)), 1, block_of(model, 1))
    both = gi.save(both, tmp_path / "both.safetensors")
    only = GatedAttention.from_pretrained(one)
    assert torch.equal(only.W_Q, GatedAttention.from_pretrained(both, layer=1).W_Q)
    assert not torch.equal(only.W_Q, GatedAttention.from_pretrained(both, layer=0).W_Q)
    code = "which-layer"
    with refuses(code):
        GatedAttention.from_pretrained(both)
    with refuses("no-replacement-in-file-layer", layer=0, layers="1"):
        GatedAttention.from_pretrained(one, layer=0)
