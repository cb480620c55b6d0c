"""The gated block: equal to an old one, equal to its formulas in plain loops, and by hand."""

import math

import numpy as np
import pytest
import torch
from closeness import assert_close
from refusals import refuses
from torch import nn
from transformer_lens import HookedTransformerConfig

from gated_interp.core.seeds import generator
from gated_interp.models.toy import attention_only
from gated_interp.replacements.gated_attention import GatedAttention, GatedConfig
from gated_interp.replacements.gates import (
    GateActivation,
    gate_activation,
    head_norm,
    logistic_noise,
)
from gated_interp.replacements.heads import softmax

ACTIVATIONS: list[GateActivation] = ["clamp", "relu", "tanh", "binary", "hard_concrete"]
BATCH, POS, D_MODEL, HEADS, D_HEAD = 2, 7, 13, 5, 3


def randomise(module: nn.Module, seed: int, scale: float = 0.5) -> None:
    """Every parameter, biases too, becomes a draw."""
    source = generator(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(scale * torch.randn(parameter.shape, generator=source))


def residual(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=generator(seed))


def attention(d_model: int = D_MODEL, n_heads: int = 2, d_head: int = D_HEAD, **extras):
    """An attention layer of TransformerLens with random weights and biases."""
    config = HookedTransformerConfig(
        n_layers=1, d_model=d_model, d_vocab=d_model, n_ctx=POS, d_head=d_head, n_heads=n_heads,
        attn_only=True, normalization_type=None, act_fn="relu", device="cpu", **extras,
    )  # fmt: skip
    attn = attention_only(config).blocks[0].attn
    randomise(attn, seed=17)
    return attn


def block_of(**config) -> GatedAttention:
    """A block with random weights and biases, in double precision."""
    fields = {"d_model": D_MODEL, "n_heads": HEADS, "d_head": D_HEAD, **config}
    block = GatedAttention(GatedConfig(**fields)).double()
    randomise(block, seed=23)
    with torch.no_grad():
        if not block.config.value_bias:
            block.b_V.zero_()
        if not block.config.output_bias:
            block.b_O.zero_()
    return block


# The block equals an old one.


@pytest.mark.parametrize(("n_heads", "d_head"), [(1, 1), (2, 1), (3, 5), (11, 2)])
@pytest.mark.parametrize("one_hot", [True, False])
def test_open_gates_and_copied_weights_are_the_original_attention(n_heads, d_head, one_hot):
    attn = attention(n_heads=n_heads, d_head=d_head)
    block = GatedAttention.from_attention(
        attn, 1, init="duplicate", noise=0, normalize_weights=False
    )
    block.force_gates(1)
    if one_hot:
        tokens = torch.randint(D_MODEL, (BATCH, POS), generator=generator(1))
        x = nn.functional.one_hot(tokens, D_MODEL).float()
    else:
        x = residual(BATCH, POS, D_MODEL)
    assert block.config.output_bias
    assert_close(block(x), attn(x, x, x))


@pytest.mark.parametrize("expansion", [2, 3])
def test_duplicated_heads_share_the_output_out(expansion):
    attn = attention(n_heads=3)
    block = GatedAttention.from_attention(
        attn, expansion, init="duplicate", noise=0, normalize_weights=False
    )
    block.force_gates(1)
    assert block.config.n_heads == 3 * expansion
    assert torch.equal(block.W_Q[4], attn.W_Q[1])
    x = residual(BATCH, POS, D_MODEL)
    assert_close(block(x), attn(x, x, x))


@pytest.mark.parametrize("scale", [None, 3.0])
def test_wider_duplicates_are_the_original_attention_until_they_learn(scale):
    attn = attention(n_heads=3, d_head=4)
    if scale is not None:
        attn.attn_scale = scale
    block = GatedAttention.from_attention(
        attn, 2, init="duplicate", noise=0, normalize_weights=False, d_head=9
    )
    block.force_gates(1)
    x = residual(BATCH, POS, D_MODEL)
    assert block.W_O.shape == (6, 9, D_MODEL)
    assert_close(block(x), attn(x, x, x))
    (block(x) - x).square().sum().backward()
    assert block.raw_W_O.grad[:, 4:].abs().min() > 0  # they can: what they read is not nothing


def test_uneven_duplicates_share_the_output_out():
    # 5 heads of 2: head 0 is there three times, head 1 twice.
    attn = attention(n_heads=2)
    block = GatedAttention.from_attention(
        attn, 2.5, init="duplicate", noise=0, normalize_weights=False
    )
    block.force_gates(1)
    assert_close(block.W_O[2], attn.W_O[0] / 3)
    assert_close(block.W_O[3], attn.W_O[1] / 2)
    x = residual(BATCH, POS, D_MODEL)
    assert_close(block(x), attn(x, x, x))


def test_a_scale_of_its_own_is_kept():
    attn = attention(d_head=4)
    attn.attn_scale = 3.0
    block = GatedAttention.from_attention(
        attn, 1, init="duplicate", noise=0, normalize_weights=False
    )
    block.force_gates(1)
    assert block.config.attn_scale == 3.0
    x = residual(BATCH, POS, D_MODEL)
    assert_close(block(x), attn(x, x, x))


@pytest.mark.parametrize("gate", ["clamp", "relu", "tanh", "binary"])
def test_shut_gates_write_nothing(gate):
    block = block_of(gate=gate)
    block.force_gates(0)
    x = residual(BATCH, POS, D_MODEL).double()
    assert torch.equal(block(x), torch.zeros_like(x))


def test_strongly_negative_scores_shut_hard_concrete_gates():
    block = block_of(gate="hard_concrete")
    block.force_gates(-10)
    x = residual(BATCH, POS, D_MODEL).double()
    assert torch.equal(block(x), torch.zeros_like(x))


def test_a_block_called_as_transformer_lens_calls_attention_is_the_same():
    block = block_of()
    x, y, z = (residual(BATCH, POS, D_MODEL, seed=s).double() for s in (1, 2, 3))
    named = block(
        query_input=x, key_input=x, value_input=x, past_kv_cache_entry=None, attention_mask=None
    )
    assert torch.equal(block(x), named)
    assert not torch.allclose(block(x, y, z), named)


def test_causality():
    block = block_of()
    x = residual(BATCH, POS, D_MODEL).double()
    changed = x.clone()
    changed[:, 4:] += 1
    assert_close(block(changed)[:, :4], block(x)[:, :4])
    assert (block(changed)[:, 4:] - block(x)[:, 4:]).abs().amax((0, 2)).min() > 1e-4


# By hand.


def test_two_tokens_by_hand():
    # r_0 = (1, 0), r_1 = (0, 1); one head, d_head = d_gate = 1.
    #
    # Scores: q = (0, ln 3), k = (1, 0), so the query at 1 scores its keys ln 3 and 0:
    #   pattern_1 = (3, 1) / 4; the query at 0 sees only itself: pattern_0 = (1, 0).
    # Gates: g_q = (0, 1), g_k = (0.5, 2): gate_0 = (0, 0), gate_1 = (0.5, clamp(2) = 1).
    # Values: W_V = (4, 0) has length 4 and acts as (1, 0); b_V = 2: v = (3, 2).
    # z_1 = 0.5 * 0.75 * 3 + 1 * 0.25 * 2 = 1.625; z_0 = 0.
    # W_O = (3, 4) has length 5 and acts as (0.6, 0.8): output_1 = (0.975, 1.3).
    block = GatedAttention(GatedConfig(d_model=2, n_heads=1, gate_bias_init=0.0))
    with torch.no_grad():
        block.W_Q.copy_(torch.tensor([[[0.0], [math.log(3)]]]))
        block.W_K.copy_(torch.tensor([[[1.0], [0.0]]]))
        block.raw_W_V.copy_(torch.tensor([[[4.0], [0.0]]]))
        block.raw_W_O.copy_(torch.tensor([[[3.0, 4.0]]]))
        block.W_gate_Q.copy_(torch.tensor([[[0.0], [1.0]]]))
        block.W_gate_K.copy_(torch.tensor([[[0.5], [2.0]]]))
        block.b_V.fill_(2.0)
    output = block(torch.eye(2)[None])
    assert_close(output, torch.tensor([[[0.0, 0.0], [0.975, 1.3]]]))


def test_the_penalty_by_hand():
    # Two heads, p = 0.5: (sqrt(g1) + sqrt(g2))^2 per pair.
    #   (q0, k0): gates 0.25, 0.25 -> (0.5 + 0.5)^2   = 1
    #   (q0, k1): gates 1, 0       -> 1, and no causal pair
    #   (q1, k0): gates 0, 0       -> 0
    #   (q1, k1): gates 0.04, 0.36 -> (0.2 + 0.6)^2   = 0.64
    gate = torch.tensor([[[[0.25, 1.0], [0.0, 0.04]], [[0.25, 0.0], [0.0, 0.36]]]])
    config = GatedConfig(d_model=2, n_heads=2, penalty_p=0.5)
    causal = GatedAttention(config).gate_penalty(gate)
    every = GatedAttention(config.replace(penalty_pairs="all")).gate_penalty(gate)
    assert_close(causal, (1 + 0 + 0.64) / 3)
    assert_close(every, (1 + 1 + 0 + 0.64) / 4)


@pytest.mark.parametrize("p", [0.6, 1, 2])
def test_the_penalty_is_the_mean_over_sequences_and_pairs(p):
    block = block_of(penalty_p=p)
    gate = residual(BATCH, HEADS, POS, POS).abs()
    norms = [
        sum(float(gate[b, h, q, k]) ** p for h in range(HEADS)) ** (1 / p)
        for b in range(BATCH)
        for q in range(POS)
        for k in range(q + 1)
    ]
    assert_close(block.gate_penalty(gate), sum(norms) / len(norms))


def test_gate_activations_by_hand():
    scores = torch.tensor([-1.0, 0.25, 0.5, 0.75, 3.0])
    wanted = {
        "clamp": [0, 0.25, 0.5, 0.75, 1],
        "relu": [0, 0.25, 0.5, 0.75, 3],
        "tanh": [0] + [math.tanh(s) for s in (0.25, 0.5, 0.75, 3)],
        "binary": [0, 0, 0, 1, 1],
        "hard_concrete": [1.2 / (1 + math.exp(-s)) - 0.1 for s in (-1, 0.25, 0.5, 0.75)] + [1],
    }
    for kind in ACTIVATIONS:
        got = gate_activation(scores, kind)
        assert_close(got, torch.tensor(wanted[kind], dtype=torch.float32))


def test_the_overlap_penalty_by_hand():
    # Writes of length 3 and 4 at position 0: (3 + 4)^2 - 9 - 16 = 24; of 5 alone at position 1: 0.
    # Mean over the two positions, divided by d_model = 2: 6.
    config = GatedConfig(d_model=2, n_heads=2, normalize_weights=True, output_scale=1.0)
    z = torch.tensor([[[[3.0], [-4.0]], [[0.0], [5.0]]]])
    block = GatedAttention(config)
    assert_close(block.overlap_penalty(z), 6)
    # In units of variance * d_model = 6, position 0 has 4 of them: 6 * 4^1.5 = 48, mean 24, by 2.
    assert_close(block.overlap_penalty(z, variance=3.0, power=1.5), 12)


# The block equals the reference's formulas, in plain loops over heads, queries and keys.


def plain_gate(score: float, kind: str) -> float:
    if kind == "binary":
        return float(score > 0.5)
    if kind == "hard_concrete":
        return min(max(1.2 / (1 + math.exp(-score)) - 0.1, 0), 1)
    opened = max(score, 0.0)
    return {"clamp": min(opened, 1.0), "relu": opened, "tanh": math.tanh(opened)}[kind]


def plain_block(block: GatedAttention, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The output [batch pos d_model] and the gates [batch head query key] of the formulas."""
    w = {n: p.detach().numpy() for n, p in block.named_parameters()}
    c = block.config
    out = np.zeros_like(x) + w["b_O"]
    gates = np.zeros((len(x), c.n_heads, x.shape[1], x.shape[1]))
    for b in range(len(x)):
        for h in range(c.n_heads):
            W_V, W_O = w["raw_W_V"][h].copy(), w["raw_W_O"][h].copy()
            if c.normalize_weights:
                for d in range(c.d_head):
                    W_V[:, d] /= math.sqrt(sum(W_V[:, d] ** 2))
                    W_O[d, :] /= math.sqrt(sum(W_O[d, :] ** 2))
            for q in range(x.shape[1]):
                query = x[b, q] @ w["W_Q"][h] + w["b_Q"][h]
                gate_query = x[b, q] @ w["W_gate_Q"][h] + w["b_gate_Q"][h]
                for k in range(x.shape[1]):
                    gate_key = x[b, k] @ w["W_gate_K"][h] + w["b_gate_K"][h]
                    gates[b, h, q, k] = plain_gate(float(gate_query @ gate_key), c.gate)
                exps, z = [], np.zeros(c.d_head)
                for k in range(q + 1):
                    key = x[b, k] @ w["W_K"][h] + w["b_K"][h]
                    exps.append(math.exp(query @ key / math.sqrt(c.d_head)))
                for k in range(q + 1):
                    value = x[b, k] @ W_V + w["b_V"][h]
                    z += gates[b, h, q, k] * exps[k] / sum(exps) * value
                out[b, q] += z @ W_O * c.output_scale
    return out, gates


@pytest.mark.parametrize("d_gate", [1, 3])
@pytest.mark.parametrize("value_bias", [True, False])
@pytest.mark.parametrize("normalize_weights", [True, False])
@pytest.mark.parametrize("gate", ACTIVATIONS)
def test_the_block_is_its_formulas(gate, normalize_weights, value_bias, d_gate):
    block = block_of(
        gate=gate, normalize_weights=normalize_weights, value_bias=value_bias, d_gate=d_gate
    )
    assert block.b_V.requires_grad is value_bias
    x = residual(BATCH, POS, D_MODEL, seed=d_gate).double()
    seen = []
    handle = block.hook_gate.register_forward_hook(lambda _m, _i, gates: seen.append(gates))
    output = block(x).detach()
    handle.remove()
    wanted, gates = plain_block(block, x.numpy())
    assert 0.1 < (gates > 0.1).mean() < 0.95
    assert_close(output, torch.tensor(wanted))
    assert_close(seen[0].detach(), torch.tensor(gates))


def test_output_scale_and_output_bias_are_in_the_formulas():
    block = block_of(output_scale=2.5, output_bias=True)
    x = residual(BATCH, POS, D_MODEL).double()
    wanted, _ = plain_block(block, x.numpy())
    assert block.b_O.abs().min() > 1e-3
    assert_close(block(x).detach(), torch.tensor(wanted))


def test_the_reference_preset():
    config = GatedConfig.reference(d_model=8, n_heads=4)
    block = GatedAttention(config)
    assert (config.d_head, config.d_gate, config.gate, config.penalty_p) == (1, 1, "clamp", 0.6)
    assert (config.normalize_weights, config.penalty_pairs) == (True, "all")
    assert block.b_V.requires_grad
    assert not block.b_O.requires_grad
    assert not block.b_gate_Q.any()
    assert not block.b_gate_K.any()
    # Orthogonal init of one column per head: length one.
    assert_close(block.W_gate_Q.norm(dim=1), torch.ones(4, 1))


def test_per_head_results_sum_to_the_output():
    block = block_of(output_bias=True)
    x = residual(BATCH, POS, D_MODEL).double()
    plain = block(x)
    seen = []
    block.hook_result.add_hook(lambda result, hook: seen.append(result))
    hooked = block(x)
    assert seen[0].shape == (BATCH, POS, HEADS, D_MODEL)
    assert_close(seen[0].sum(2) + block.b_O, plain)
    assert_close(hooked, plain)
    block.hook_result.remove_hooks()
    # One head's result is what the block writes when the others' z is gone.
    block.hook_z.add_hook(lambda value, hook: value.index_fill(2, torch.arange(1, HEADS), 0.0))
    assert_close(block(x), seen[0][:, :, 0] + block.b_O)


def test_what_a_hook_on_the_results_returns_is_used():
    block = block_of()
    x = residual(BATCH, POS, D_MODEL).double()
    block.hook_result.add_hook(lambda result, hook: result * 0)
    assert torch.equal(block(x), torch.zeros_like(x))


@pytest.mark.parametrize("kind", ["forward", "forward_pre", "full_backward", "full_backward_pre"])
def test_the_results_are_made_for_torch_hooks_too(kind):
    block = block_of()
    x = residual(BATCH, POS, D_MODEL).double()
    seen = []
    add = getattr(block.hook_result, f"register_{kind}_hook")
    handle = add(lambda module, *given: seen.append(given[0]))
    block(x).sum().backward()
    assert [g[0].shape for g in seen] == [(BATCH, POS, HEADS, D_MODEL)]
    handle.remove()
    block(x).sum().backward()
    assert len(seen) == 1


def test_effective_weights_have_the_length_they_should():
    block = block_of(output_scale=3.0)
    ones = torch.ones(HEADS, D_HEAD).double()
    assert_close(block.W_V.norm(dim=1), ones)
    assert_close(block.W_O.norm(dim=2), 3 * ones)
    assert (block.raw_W_V.norm(dim=1) - 1).abs().max() > 0.1
    assert_close(block.OV.AB, block.W_V @ block.W_O)
    assert_close(block.QK.AB, block.W_Q @ block.W_K.mT)
    plain = block_of(normalize_weights=False)
    assert torch.equal(plain.W_V, plain.raw_W_V)
    assert torch.equal(plain.W_O, plain.raw_W_O)


# Gradients.


def test_the_norm_of_shut_gates_has_a_gradient_of_zero():
    gate = torch.zeros(BATCH, HEADS, POS, POS, requires_grad=True)
    norm = head_norm(gate, 0.6)
    assert torch.equal(norm, torch.zeros(BATCH, POS, POS))
    norm.sum().backward()
    assert torch.equal(gate.grad, torch.zeros_like(gate))


def test_the_gradient_of_the_norm_by_hand():
    # p = 0.5, gates 0.25, 0.25 and 0: norm (0.5 + 0.5)^2 = 1; d/dg = (s / sqrt(g)) = 1 / 0.5 = 2.
    gate = torch.tensor([0.25, 0.25, 0.0])[:, None, None].requires_grad_()
    norm = head_norm(gate, 0.5)
    norm.sum().backward()
    assert_close(norm.flatten(), [1])
    assert_close(gate.grad.flatten(), [2, 2, 0])


@pytest.mark.parametrize("gate", ACTIVATIONS)
def test_all_gradients_are_finite_where_every_gate_is_shut(gate):
    block = block_of(gate=gate)
    block.force_gates(-10 if gate == "hard_concrete" else 0)
    seen = []
    handle = block.hook_gate.register_forward_hook(lambda _m, _i, gates: seen.append(gates))
    x = residual(BATCH, POS, D_MODEL).double()
    (block(x).square().sum() + block.gate_penalty(seen[0])).backward()
    handle.remove()
    assert all(p.grad is None or p.grad.isfinite().all() for p in block.parameters())


def test_binary_gates_take_the_gradient_of_clamp():
    values = [-0.5, 0.2, 0.49, 0.51, 0.9, 1.5]
    weight = torch.tensor([1.0, 2.0, 3.0, 5.0, 7.0, 11.0])
    gradients = {}
    for kind in ("binary", "clamp"):
        scores = torch.tensor(values, requires_grad=True)
        (gate_activation(scores, kind) * weight).sum().backward()
        gradients[kind] = scores.grad
    assert torch.equal(gradients["binary"], gradients["clamp"])
    assert gradients["binary"].tolist() == [0, 2, 3, 5, 7, 0]


# Hard-concrete noise.


def test_noise_is_drawn_only_from_a_generator_that_was_given():
    block = block_of(gate="hard_concrete")
    x = residual(BATCH, POS, D_MODEL).double()
    quiet = block(x)
    assert torch.equal(block(x), quiet)
    block.noise_generator = generator(3)
    noisy, next_noisy = block(x), block(x)
    assert not torch.equal(noisy, next_noisy)
    block.noise_generator = generator(3)
    assert torch.equal(block(x), noisy)
    block.noise_generator = None
    assert torch.equal(block(x), quiet)


def test_noisy_gates_are_the_papers_formula():
    scores, shape = torch.tensor([[-1.0, 0.3], [0.0, 2.0]]), (2, 2)
    noise = logistic_noise(shape, generator(5))
    got = gate_activation(scores, "hard_concrete", noise)
    for s, n, g in zip(scores.flatten(), noise.flatten(), got.flatten(), strict=True):
        wanted = 1.2 / (1 + math.exp(-(float(s) + float(n)) * 1.5)) - 0.1
        assert_close(g, min(max(wanted, 0), 1), scale=1.0)
    many = logistic_noise((100_000,), generator(6))
    # Logistic noise: mean 0, variance pi^2 / 3.
    assert many.mean().item() == pytest.approx(0, abs=0.02)
    assert many.var().item() == pytest.approx(math.pi**2 / 3, rel=0.02)


# Built from an attention layer.


@pytest.mark.parametrize(("expansion", "heads"), [(1, 2), (2, 4), (1.5, 3), (0.5, 1), (4, 8)])
def test_expansion_counts_heads(expansion, heads):
    block = GatedAttention.from_attention(attention(d_head=5), expansion, seed=9)
    assert (block.config.n_heads, block.config.d_head, block.config.d_model) == (heads, 5, D_MODEL)
    assert block.config.attn_scale is None


@pytest.mark.parametrize("expansion", [0, -1, 1.25, 0.1, float("nan"), float("inf")])
def test_expansions_that_make_no_whole_heads_are_refused(expansion):
    with refuses("bad-expansion"):
        GatedAttention.from_attention(attention(), expansion)


def test_random_init_is_decided_by_the_seed():
    attn = attention()
    first, again, other = (GatedAttention.from_attention(attn, 2, seed=s) for s in (1, 1, 2))
    for (name, a), b, c in zip(
        first.named_parameters(), again.parameters(), other.parameters(), strict=True
    ):
        assert torch.equal(a, b)
        if "W_" in name:
            assert not torch.equal(a, c)
    assert not torch.equal(first.W_Q[0], attn.W_Q[0])


def test_duplicates_differ_by_noise_of_the_size_asked_for():
    attn = attention(d_model=101, n_heads=3, d_head=11)
    block = GatedAttention.from_attention(attn, 2, init="duplicate", noise=0.1, seed=3)
    for ours, theirs in ((block.W_Q, attn.W_Q), (block.raw_W_V, attn.W_V)):
        noise = ours - torch.cat([theirs, theirs])
        assert noise.std().item() == pytest.approx(0.1, rel=0.03)
    assert not torch.equal(block.W_Q[0], block.W_Q[3])


def test_bad_inits_are_refused():
    code = "cannot-copy-narrow-heads"
    with refuses(code):
        GatedAttention.from_attention(attention(d_head=3), 2, init="duplicate", d_head=2)


@pytest.mark.parametrize(
    ("extras", "code"),
    [
        ({"attention_dir": "bidirectional"}, "layer-beyond-replacements"),
        (
            {"original_architecture": "Olmo2ForCausalLM"},
            "layer-beyond-replacements",
        ),
    ],
)
def test_attention_that_no_block_can_do_is_refused(extras, code):
    with refuses(code):
        GatedAttention.from_attention(attention(d_head=2, **extras))


def test_what_is_no_attention_layer_is_refused():
    with refuses("not-an-attention-layer"):
        GatedAttention.from_attention(nn.Linear(2, 2))


@pytest.mark.parametrize(("name", "code"), [
    ("past_kv_cache_entry", "replacement-takes-no-cache"),
    ("additive_attention_mask", "replacement-takes-no-argument"),
])  # fmt: skip
def test_what_the_block_has_not_is_refused(name, code):
    with refuses(code):
        block_of()(torch.zeros(1, 2, D_MODEL).double(), **{name: object()})


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"n_heads": 0}, "config-not-positive"),
        ({"penalty_p": 0}, "config-not-positive"),
        ({"output_scale": -1.0}, "config-not-positive"),
        ({"attn_scale": 0.0}, "config-not-positive"),
        ({"gate": "sigmoid"}, "config-wrong-type"),
        ({"penalty_p": float("nan")}, "config-wrong-type"),
    ],
)
def test_impossible_blocks_are_refused(change, code):
    with refuses(code):
        GatedConfig(**{"d_model": 8, "n_heads": 4, **change})


@pytest.mark.parametrize("keys", [1, 3, 11, 15, 16, 17])
def test_softmax_over_few_keys_is_softmax(keys):
    scores = 9 * torch.randn(2, 5, keys, generator=torch.Generator().manual_seed(keys))
    scores[0, 0, 1:] = -torch.inf  # a query that sees one key
    scores.requires_grad_()
    probe = torch.rand(2, 5, keys, generator=torch.Generator().manual_seed(0))
    exact = scores.detach().double().requires_grad_()
    made, wanted = softmax(scores), exact.softmax(-1)
    assert made.shape == scores.shape
    assert_close(made, wanted, roundings=64)  # exp makes of a score's rounding several of its own
    grads = [
        torch.autograd.grad((x * probe).sum(), y)[0] for x, y in ((made, scores), (wanted, exact))
    ]
    assert_close(*grads, scale=1.0, roundings=64)
