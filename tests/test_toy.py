"""The toy model, against the formulas of the reference."""

import math

import numpy as np
import pytest
import torch
from closeness import assert_close
from refusals import refuses
from transformer_lens import HookedTransformerConfig

from gated_interp.checkpoints.checkpoint import load
from gated_interp.models.toy import (
    HookedTransformer,
    ToyConfig,
    ToyTransformer,
    attention_only,
    build_toy,
    clone,
)
from gated_interp.replacements.gated_attention import GatedAttention, GatedConfig
from gated_interp.replacements.splice import splice, unsplice
from gated_interp.replacements.standalone import standalone
from gated_interp.tasks.skip_trigrams import SkipTrigramTask

SHAPES = [(2, 3, 1), (3, 4, 1), (5, 2, 3)]  # heads, trigrams, d_head


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"n_heads": 0}, "config-not-positive"),
        ({"n_trigrams": -2}, "config-not-positive"),
        ({"d_head": 0}, "config-not-positive"),
        ({"n_heads": 2.0}, "config-wrong-type"),
        ({"output_bias": 1}, "config-wrong-type"),
        ({"seed": "x"}, "config-wrong-type"),
    ],
)
def test_impossible_configs_are_refused(change, code):
    with refuses(code):
        ToyConfig(**{"n_trigrams": 3, "n_heads": 2, **change})


def test_unknown_and_missing_fields_are_refused():
    with refuses("config-unknown-field", field="heads"):
        ToyConfig.from_dict({"n_trigrams": 3, "n_heads": 2, "heads": 2})
    with refuses("config-missing-field", field="n_heads"):
        ToyConfig.from_dict({"n_trigrams": 3})
    config = ToyConfig(n_trigrams=3, n_heads=2, d_head=5)
    assert ToyConfig.from_dict(config.to_dict()) == config
    assert (config.name, config.task.d_vocab) == ("2H3ST", 8)
    with pytest.raises(TypeError, match="positional argument"):
        ToyConfig(3, 2)  # which is which?


@pytest.mark.parametrize(("heads", "trigrams", "d_head"), SHAPES)
def test_embedding_and_unembedding_are_identities_that_do_not_train(heads, trigrams, d_head):
    model = build_toy(ToyConfig(n_trigrams=trigrams, n_heads=heads, d_head=d_head))
    identity = torch.eye(2 * trigrams + 2)
    assert torch.equal(model.embed.W_E, identity)
    assert torch.equal(model.unembed.W_U, identity)
    for bias in (model.pos_embed.W_pos, model.unembed.b_U, model.blocks[0].attn.b_O):
        assert not bias.any()
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    names = {"W_Q", "W_K", "W_V", "W_O", "b_Q", "b_K", "b_V"}
    assert trained == {f"blocks.0.attn.{n}" for n in names}


def test_a_toy_says_what_it_is_however_it_is_copied_and_spliced():
    model = build_toy(ToyConfig(n_trigrams=4, n_heads=3, n_positions=12))
    block = GatedAttention(GatedConfig(d_model=10, n_heads=2))
    spliced = splice(model, 0, block)
    for one in (model, clone(model), spliced, unsplice(spliced)):
        assert isinstance(one, ToyTransformer)
        assert isinstance(one, HookedTransformer)
        assert (one.task, one.model_name) == (SkipTrigramTask(4, 12), "3H4ST")
        assert (one.toy_config, one.info, one.notes) == (model.toy_config, None, {})
    alone = standalone(block, SkipTrigramTask(4))
    assert (alone.task, alone.toy_config) == (SkipTrigramTask(4), None)
    for kind in ("toy", "gated"):
        assert isinstance(load(f"2H3ST-{kind}"), ToyTransformer)


def test_the_output_bias_trains_only_when_asked_for():
    model = build_toy(ToyConfig(n_trigrams=3, n_heads=2, output_bias=True))
    assert model.blocks[0].attn.b_O.requires_grad


def test_one_update_changes_the_attention_and_nothing_else():
    model = build_toy(ToyConfig(n_trigrams=3, n_heads=2))
    before = {n: p.clone() for n, p in model.named_parameters()}
    tokens = model.toy_config.task.sample(20, 0).tokens
    optimizer = torch.optim.SGD((p for p in model.parameters() if p.requires_grad), lr=1.0)
    model(tokens, return_type="loss").backward()
    optimizer.step()
    changed = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    # b_K adds the same to every score of a query, so softmax leaves it without a gradient.
    assert {"blocks.0.attn." + n for n in ("W_Q", "W_K", "W_V", "W_O", "b_Q", "b_V")} <= changed
    assert all(n.startswith("blocks.0.attn.") for n in changed)


def test_the_seed_decides_the_weights_and_global_state_is_untouched():
    states = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    first, again, other = (
        build_toy(ToyConfig(n_trigrams=4, n_heads=3, seed=s)).blocks[0].attn for s in (7, 7, 8)
    )
    for name in ("W_Q", "W_K", "W_V", "W_O"):
        assert torch.equal(getattr(first, name), getattr(again, name))
        assert not torch.equal(getattr(first, name), getattr(other, name))
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (np.random.get_state()[1] == states[1]).all()  # noqa: NPY002


def test_weights_are_xavier_normal():
    attn = build_toy(ToyConfig(n_trigrams=50, n_heads=31, d_head=7)).blocks[0].attn
    # Standard deviation sqrt(2 / (fan in + fan out)), here of 102 and 7 for each head.
    expected = math.sqrt(2 / (102 + 7))
    for name in ("W_Q", "W_K", "W_V", "W_O"):
        weight = getattr(attn, name)
        assert weight.std().item() == pytest.approx(expected, rel=0.03)
        assert weight.mean().item() == pytest.approx(0, abs=0.003)


def test_a_config_that_reseeds_global_state_is_refused():
    config = HookedTransformerConfig(
        n_layers=1, d_model=3, d_vocab=3, n_ctx=5, d_head=1, attn_only=True, device="cpu"
    )
    config.seed = 0
    with refuses("config-has-a-seed"):
        attention_only(config)


def plain_attention(attn, x: np.ndarray) -> np.ndarray:
    """Causal softmax attention of ``x`` [pos d_model], one head, query and key at a time."""
    W = {n: getattr(attn, n).detach().double().numpy() for n in ("W_Q", "W_K", "W_V", "W_O")}
    b = {n: getattr(attn, n).detach().double().numpy() for n in ("b_Q", "b_K", "b_V", "b_O")}
    out = np.zeros_like(x) + b["b_O"]
    for h in range(len(W["W_Q"])):
        for q in range(len(x)):
            query = x[q] @ W["W_Q"][h] + b["b_Q"][h]
            weights, values = [], []
            for k in range(q + 1):
                key = x[k] @ W["W_K"][h] + b["b_K"][h]
                weights.append(math.exp(query @ key / math.sqrt(len(key))))
                values.append(x[k] @ W["W_V"][h] + b["b_V"][h])
            z = sum(w * v for w, v in zip(weights, values, strict=True)) / sum(weights)
            out[q] += z @ W["W_O"][h]
    return out


@pytest.mark.parametrize(("heads", "trigrams", "d_head"), SHAPES)
def test_logits_are_the_token_plus_what_the_heads_write(heads, trigrams, d_head):
    config = ToyConfig(n_trigrams=trigrams, n_heads=heads, d_head=d_head, seed=2)
    model = build_toy(config)
    source = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name in ("b_Q", "b_K", "b_V", "b_O"):
            bias = getattr(model.blocks[0].attn, name)
            bias.copy_(torch.randn(bias.shape, generator=source))
    tokens = config.task.sample(5, seed=1).tokens
    logits = model(tokens)
    for row, got in zip(tokens, logits, strict=True):
        one_hot = np.eye(config.task.d_vocab)[row]
        wanted = one_hot + plain_attention(model.blocks[0].attn, one_hot)
        assert_close(got, torch.tensor(wanted))


def test_the_order_of_earlier_tokens_does_not_matter(toy):
    # No positional signal: the last position sees a set.
    first = toy(torch.tensor([[7, 0, 5, 2, 2, 1]]))[0, -1]
    shuffled = toy(torch.tensor([[2, 5, 7, 2, 0, 1]]))[0, -1]
    assert_close(first, shuffled)
    assert (first - toy(torch.tensor([[7, 0, 5, 2, 5, 1]]))[0, -1]).abs().max() > 1e-3


def test_a_clone_shares_nothing_and_carries_no_hooks(toy):
    tokens = torch.tensor([[7, 0, 1]])
    toy.add_hook("blocks.0.attn.hook_z", lambda z, hook: z * 0)
    copied = clone(toy)
    assert not any(point.fwd_hooks for point in copied.hook_dict.values())
    own = {p.data_ptr() for p in toy.parameters()}
    assert own.isdisjoint({p.data_ptr() for p in copied.parameters()})
    toy_zeroed = toy(tokens)
    assert (copied(tokens) - toy_zeroed).abs().max() > 1e-3
    toy.reset_hooks()
    assert torch.equal(copied(tokens), toy(tokens))


def test_the_smallest_config_is_the_posts():
    config = ToyConfig(n_trigrams=3, n_heads=2)
    assert config == ToyConfig(
        n_trigrams=3, n_heads=2, d_head=1, n_positions=11, output_bias=False, seed=0
    )
