"""The stacked forms against the hooked modules: outputs, losses and gradients."""

import math
from itertools import product

import attention_models
import pytest
import torch
from closeness import assert_close, twin
from refusals import refuses

from gated_interp.metrics.predictions import next_token_loss
from gated_interp.models.analytic import manual_model
from gated_interp.models.toy import ToyConfig, build_toy
from gated_interp.replacements.gated_attention import GatedAttention, GatedConfig
from gated_interp.replacements.gates import head_norm
from gated_interp.tasks.contexts import contexts_of
from gated_interp.tasks.skip_trigrams import SkipTrigramTask
from gated_interp.training.stacked import forward
from gated_interp.training.stacked.blocks import StackedAttention, StackedGated
from gated_interp.training.stacked.data import batch_of
from gated_interp.training.stacked.forward import GAP, TOP, compress_scores, stacked_z
from gated_interp.training.stacked.losses import (
    cross_entropy,
    overlap_penalty,
    reconstruction,
    with_one,
)
from gated_interp.training.stacked.optimizer import StackedAdam

TASK = SkipTrigramTask(n_trigrams=3, n_positions=7)
V = TASK.d_vocab
RUNS = 3
SEQUENCES = 13
# A gradient sums over all positions, each a difference of products of numbers as large.
GRADIENT = 4 * SEQUENCES * TASK.n_positions


def toys(n_heads, d_head, runs=RUNS):
    models = []
    for run in range(runs):
        config = ToyConfig(n_trigrams=3, n_heads=n_heads, d_head=d_head, n_positions=7,
                           output_bias=True)  # fmt: skip
        models.append(build_toy(config))
        attention_models.fill(models[-1].blocks[0].attn, seed=run)
    return models


def gated_blocks(runs=RUNS, **config):
    blocks = []
    for run in range(runs):
        scale = config.get("output_scale", 1.0) * (1 + run)
        block = GatedAttention(GatedConfig(**{"d_model": V, **config, "output_scale": scale}))
        attention_models.fill(block, seed=10 + run)
        if not block.config.value_bias:
            block.b_V.data.zero_()
        if not block.config.output_bias:
            block.b_O.data.zero_()
        blocks.append(block)
    return blocks


def data(scored_only=False, all_pairs=False, task=TASK):
    tokens = [task.sample(SEQUENCES, seed=run).tokens for run in range(RUNS)]
    contexts = [contexts_of(t, task.d_vocab) for t in tokens]
    batch = batch_of(contexts, task.n_positions, all_pairs=all_pairs, scored_only=scored_only)
    return tokens, batch


def one_hot(tokens, dtype=torch.float32):
    return torch.nn.functional.one_hot(tokens, V).to(dtype)


def in_reading_order(stacked, tokens):
    """``[run query context x]`` back as ``[batch pos x]`` per run: plain loops, own order."""
    runs = []
    for run, rows in enumerate(tokens):
        seen = dict.fromkeys(range(V), 0)
        picked = []
        for token in rows.flatten().tolist():
            picked.append(stacked[run, token, seen[token]])
            seen[token] += 1
        runs.append(torch.stack(picked).view(*rows.shape, -1))
    return runs


def doubled(modules):
    return [twin(m) for m in modules]


def largest_gradient(module):
    return max(p.grad.abs().max() for p in module.parameters() if p.grad is not None)


def same_gradients(weights, modules, saturated=False):
    """``modules`` are in float64. ``saturated``: patterns of 1 leave scores next to no gradient."""
    compared = 0
    for name in weights.spans:
        for run, module in enumerate(modules):
            parameter = module.get_parameter(name)
            if not parameter.requires_grad:
                assert (weights.grad_of(name) == 0).all()
                continue
            scale = largest_gradient(module) if saturated else None
            if name == "b_K":  # softmax does not see it: W_K's gradients, whose sum is zero
                scale = scale or module.W_K.grad.abs().max()
            assert_close(
                weights.grad_of(name)[run], parameter.grad, scale=scale, roundings=GRADIENT
            )
            compared += 1
    assert compared >= len(modules) * 7
    return compared


# ---- plain attention, the toys


@pytest.mark.parametrize("d_head", [1, 3])
@pytest.mark.parametrize("n_heads", [1, 2, 5])
def test_plain_attention_equals_the_hooked_layer(n_heads, d_head):
    models = toys(n_heads, d_head)
    tokens, batch = data()
    stack = StackedAttention([m.blocks[0].attn for m in models])
    made = in_reading_order(stack.output(batch.counts), tokens)
    probe = torch.randn(SEQUENCES, 7, V, generator=torch.Generator().manual_seed(5))
    exacts = doubled(m.blocks[0].attn for m in models)
    for exact, rows, output in zip(exacts, tokens, made, strict=True):
        x = one_hot(rows, torch.float64)
        hooked = exact(x, x, x)
        assert_close(output, hooked)
        (hooked * probe).mean().backward()
    stack.weights.backward(sum((output * probe).mean() for output in made))
    same_gradients(stack.weights, exacts)


@pytest.mark.parametrize("n_heads", [1, 2, 5])
@pytest.mark.parametrize("d_head", [1, 3])
def test_cross_entropy_equals_the_hooked_model(n_heads, d_head):
    models = toys(n_heads, d_head)
    tokens, batch = data(scored_only=True)
    stack = StackedAttention([m.blocks[0].attn for m in models])
    z = stack.z(batch.counts)
    loss = cross_entropy(z, stack.W_O, stack.weights["b_O"], batch.target, batch.weight)
    exacts = doubled(models)
    hooked = [next_token_loss(m(t), t).mean() for m, t in zip(exacts, tokens, strict=True)]
    assert_close(loss, torch.stack(hooked))
    assert loss.std() > 0.01  # the runs are different runs
    stack.weights.backward(loss.sum())
    sum(hooked).backward()
    assert same_gradients(stack.weights, [m.blocks[0].attn for m in exacts]) == RUNS * 8


# ---- gated blocks

GATES = ["clamp", "relu", "tanh", "binary", "hard_concrete"]
OPTIONS = [
    {"normalize_weights": True, "value_bias": True, "penalty_pairs": "causal", "penalty_p": 0.6},
    {"normalize_weights": True, "value_bias": False, "penalty_pairs": "all", "penalty_p": 0.6,
     "output_scale": 3.7},
    {"normalize_weights": False, "value_bias": True, "penalty_pairs": "all", "penalty_p": 1.0,
     "output_bias": True},
    {"normalize_weights": False, "value_bias": False, "penalty_pairs": "causal", "penalty_p": 1.0,
     "output_scale": 0.3, "attn_scale": 1.9},
]  # fmt: skip


@pytest.mark.parametrize("options", OPTIONS, ids=["plain", "all-pairs", "raw", "scaled"])
@pytest.mark.parametrize(
    ("gate", "d_head", "d_gate", "n_heads"),
    [(*case, 5 if i % 2 else 2) for i, case in enumerate(product(GATES, (1, 3), (1, 2)))],
)
def test_gated_losses_and_gradients_equal_the_hooked_block(gate, d_head, d_gate, n_heads, options):
    blocks = gated_blocks(gate=gate, d_head=d_head, d_gate=d_gate, n_heads=n_heads, **options)
    originals = toys(n_heads=2, d_head=1)
    tokens, batch = data(all_pairs=options["penalty_pairs"] == "all")
    stack = StackedGated(blocks)
    original = StackedAttention([m.blocks[0].attn for m in originals])
    made = in_reading_order(stack.output(batch.counts), tokens)

    gates = stack.gate()
    z, z_0 = stack.z(batch.counts, gates), original.z(batch.counts).detach()
    bias = stack.weights["b_O"] - original.weights["b_O"].detach()
    error = reconstruction(z, stack.W_O, bias, with_one(z_0), original.W_O.detach(), batch.weight)
    penalty = (head_norm(gates, options["penalty_p"]) * batch.pairs).sum((1, 2))
    stack.weights.backward((error + 0.3 * penalty).sum())

    exacts = doubled(blocks)
    for run, (block, model) in enumerate(zip(exacts, doubled(originals), strict=True)):
        x = one_hot(tokens[run], torch.float64)
        seen = []
        block.hook_gate.add_hook(lambda gate, hook, seen=seen: seen.append(gate))
        output = block(x)
        target = model.blocks[0].attn(x, x, x).detach()
        assert_close(made[run], output, roundings=64)
        hooked_error = (output - target).square().mean()
        hooked_penalty = block.gate_penalty(seen[0])
        assert_close(error[run], hooked_error)
        assert_close(penalty[run], hooked_penalty)
        (hooked_error + 0.3 * hooked_penalty).backward()
    same_gradients(stack.weights, exacts)


@pytest.mark.parametrize("power", [1.0, 2.0])
@pytest.mark.parametrize(("d_head", "n_heads"), [(1, 2), (1, 5), (3, 5), (3, 1)])
@pytest.mark.parametrize("normalize", [True, False])
def test_overlap_penalty_equals_the_hooked_block(d_head, n_heads, normalize, power):
    blocks = gated_blocks(
        d_head=d_head, n_heads=n_heads, normalize_weights=normalize, output_scale=1.3
    )
    tokens, batch = data()
    stack = StackedGated(blocks)
    variance = torch.tensor([0.5, 1.1, 0.7])
    z = stack.z(batch.counts, stack.gate())
    shared = overlap_penalty(z, stack.W_O, n_heads, batch.weight, variance, power)
    hooked, exacts = [], doubled(blocks)
    for run, block in enumerate(exacts):
        seen = []
        block.hook_z.add_hook(lambda z, hook, seen=seen: seen.append(z))
        block(one_hot(tokens[run], torch.float64))
        hooked.append(block.overlap_penalty(seen[0], variance[run].double(), power))
    # (sum n)^2 - sum n^2: of one head alone both are the same.
    alone = None if n_heads > 1 else 1.0
    assert_close(shared, torch.stack(hooked), scale=alone)
    assert (shared > 0).all() == (n_heads > 1)
    stack.weights.backward(shared.sum())
    if n_heads > 1:
        sum(hooked).backward()
        for name in ("W_Q", "W_K", "raw_W_V", "raw_W_O", "b_V", "W_gate_Q", "b_gate_K"):
            for run, block in enumerate(exacts):
                # Lengths are all that counts: one direction of fixed length has no gradient.
                scale = largest_gradient(block) if name == "raw_W_O" else None
                gradient = block.get_parameter(name).grad
                mine = stack.weights.grad_of(name)[run]
                assert_close(mine, gradient, scale=scale, roundings=GRADIENT)


def test_unstacked_blocks_are_the_blocks_that_went_in():
    blocks = gated_blocks(n_heads=5, d_head=3, d_gate=2, output_bias=True)
    stack = StackedGated(blocks)
    assert stack.runs == RUNS
    for block, back in zip(blocks, stack.unstack(), strict=True):
        assert back.config == block.config
        for name, parameter in block.named_parameters():
            assert torch.equal(back.get_parameter(name), parameter), name


def test_blocks_of_two_shapes_are_refused():
    two, five = gated_blocks(1, n_heads=2), gated_blocks(1, n_heads=5)
    with refuses("stack-of-different-configs"):
        StackedGated(two + five)


# ---- scores of any size


def saturated(dtype, keys, queries, d_head=1):
    """Two toys' attention whose scores are the products of ``queries`` and ``keys``."""
    models = toys(n_heads=2, d_head=d_head, runs=2)
    for model in models:
        model.to(dtype)
        attn = model.blocks[0].attn
        with torch.no_grad():
            for name in ("W_Q", "W_K", "b_Q", "b_K"):
                getattr(attn, name).zero_()
            attn.W_Q[..., 0] = torch.tensor(queries, dtype=dtype) * math.sqrt(d_head)
            attn.W_K[0, :, 0] = torch.tensor(keys, dtype=dtype)
            attn.W_K[1, :, 0] = torch.tensor(keys[::-1], dtype=dtype)
    return models


# Scores of +-100 that tie in two groups, that spread evenly (BOS, alone with itself, gets the
# lowest), and the manual model's +-10^4.
TWO_LEVELS = ([10.0, -10.0, -9.9, 10.0, 9.9, -10.0, 10.0, -10.0], [10.0, -10.0] * 4)
SPREAD = ([-10.0, -7.0, -4.0, -1.0, 2.0, 5.0, 8.0, 10.0], [5.0, -5.0, 10.0, -10.0] * 2)
HUGE = ([1.0, -100.0, -100.0, 1.0, -100.0, 1.0, -100.0, -100.0], [100.0, 1.0] * 4)


@pytest.mark.parametrize(("keys", "queries"), [TWO_LEVELS, SPREAD, HUGE])
@pytest.mark.parametrize("d_head", [1, 3])
def test_large_scores_give_the_exact_answer(keys, queries, d_head):
    exact = saturated(torch.float64, keys, queries, d_head)
    tokens, batch = data()
    single = saturated(torch.float32, keys, queries, d_head)
    stack = StackedAttention([m.blocks[0].attn for m in single])
    made = in_reading_order(stack.output(batch.counts[:2]), tokens[:2])
    for model, rows, output in zip(exact, tokens, made, strict=False):
        x = one_hot(rows, torch.float64)
        hooked = model.blocks[0].attn(x, x, x)
        assert output.isfinite().all()
        assert_close(output, hooked)
        hooked.square().mean().backward()
    stack.weights.backward(sum(output.square().mean() for output in made))
    same_gradients(stack.weights, [m.blocks[0].attn for m in exact], saturated=True)


@pytest.mark.parametrize(
    ("keys", "queries", "safe"), [(*TWO_LEVELS, False), (*SPREAD, True), (*HUGE, False)]
)
def test_both_ways_through_large_scores_are_taken(keys, queries, safe, monkeypatch):
    taken = []
    real = forward._safe_z
    monkeypatch.setattr(forward, "_safe_z", lambda *a: taken.append(1) or real(*a))
    stack = StackedAttention([m.blocks[0].attn for m in saturated(torch.float32, keys, queries)])
    stack.z(data()[1].counts[:2])
    assert bool(taken) == safe


@pytest.mark.parametrize("safe", [False, True])
def test_gated_blocks_with_large_scores(safe):
    keys, queries = SPREAD if safe else TWO_LEVELS
    blocks = gated_blocks(n_heads=2, d_head=1, d_gate=2, gate="relu")
    for block in blocks:
        with torch.no_grad():
            block.b_Q.zero_(), block.b_K.zero_()
            block.W_Q[..., 0] = torch.tensor(queries)
            block.W_K[..., 0] = torch.tensor(keys)
    tokens, batch = data()
    stack = StackedGated(blocks)
    made = in_reading_order(stack.output(batch.counts), tokens)
    exacts = []
    for run, block in enumerate(blocks):
        exact = twin(block)
        output = exact(one_hot(tokens[run], torch.float64))
        assert_close(made[run], output)
        output.square().mean().backward()
        exacts.append(exact)
    stack.weights.backward(sum(output.square().mean() for output in made))
    same_gradients(stack.weights, exacts, saturated=True)


def test_a_small_gate_beside_a_large_score_still_writes():
    # Where only a key with a score of -70 is present, its gate alone decides.
    scores = torch.tensor([[[[0.0, -69.0]]]])
    gate = torch.tensor([[[[1.0, 1e-5]]]])
    counts = torch.tensor([[[[0.0, 2.0], [1.0, 2.0]]]])
    torch.set_flush_denormal(True)
    try:
        z = stacked_z(counts, scores, gate, torch.ones(1, 1, 2, 1))
    finally:
        torch.set_flush_denormal(False)
    wanted = torch.tensor([1e-5, 1.0])
    assert_close(z.flatten(), wanted, scale=wanted)


def test_the_manual_model_with_scores_of_ten_thousand():
    task = SkipTrigramTask(3)
    attn = manual_model(2, 3).model.blocks[0].attn
    tokens = task.sample(50, seed=0).tokens
    batch = batch_of([contexts_of(tokens, V)], task.n_positions)
    (output,) = in_reading_order(StackedAttention([attn]).output(batch.counts), [tokens])
    x = one_hot(tokens)
    with torch.no_grad():
        assert_close(output, attn(x, x, x))
        scores = (attn.W_Q + attn.b_Q[:, None]) @ (attn.W_K + attn.b_K[:, None]).mT
    assert scores.abs().max() >= 100


def test_compressed_scores_keep_the_softmax_of_every_subset_of_keys():
    source = torch.Generator().manual_seed(3)
    scores = 100 * torch.randn(2, 3, 5, 6, generator=source)
    small = compress_scores(scores)
    assert_close(small.amax(-1), torch.full((2, 3, 5), TOP))
    assert small.amin() >= TOP - 5 * GAP - 1e-3
    for subset in range(1, 2**6):
        keys = [k for k in range(6) if subset >> k & 1]
        # exp makes of a score's rounding that many more of its own.
        assert_close(small[..., keys].softmax(-1), scores[..., keys].softmax(-1), roundings=600)


def test_what_lies_far_below_a_key_that_is_always_there_is_lifted():
    scores = torch.tensor([[[[0.0, -40.0, -80.0, -120.0, -160.0, -200.0, -240.0, -280.0]]]])
    always = torch.tensor([[[False, False, True] + [False] * 5]])
    small = compress_scores(scores, always)
    assert small.amin() == TOP - 80 - GAP
    for subset in range(2**8):
        keys = [k for k in range(8) if k == 2 or subset >> k & 1]
        # exp makes of a score's rounding that many more of its own.
        assert_close(small[..., keys].softmax(-1), scores[..., keys].softmax(-1), roundings=600)
    # Without it, gaps are cut as far as they can be.
    assert compress_scores(scores).amin() == TOP - 7 * GAP


def test_a_run_beyond_the_range_leaves_the_others_on_the_fast_path(monkeypatch):
    source = torch.Generator().manual_seed(5)
    scores = torch.randn(3, 2, 9, 9, generator=source)
    scores[1] = -40.0 * torch.arange(9.0)
    counts = torch.randint(0, 3, (3, 9, 7, 9), generator=source).float()
    counts[..., 8] += 1  # the lowest
    values = torch.randn(3, 2, 9, 1, generator=source)
    wanted = forward._safe_z(counts, scores, None, values)
    taken = []
    real = forward._safe_z
    monkeypatch.setattr(forward, "_safe_z", lambda *a: taken.append(len(a[0])) or real(*a))
    assert_close(stacked_z(counts, scores, None, values), wanted)
    assert taken == [1]


def test_small_ranges_of_scores_are_only_shifted():
    scores = torch.tensor([[[[3.0, -60.0, 1.0]]]])
    assert compress_scores(scores).flatten().tolist() == [TOP, TOP - 63.0, TOP - 2.0]


@pytest.mark.parametrize("d_head", [1, 3])
@pytest.mark.parametrize("gated", [False, True])
def test_the_safe_path_equals_the_fast_one(d_head, gated):
    source = torch.Generator().manual_seed(1)
    shape = (2, 5, 3, 3)
    scores, gate = (torch.randn(shape, generator=source, requires_grad=True) for _ in range(2))
    values = torch.randn(2, 5, 3, d_head, generator=source, requires_grad=True)
    counts = torch.randint(0, 4, (2, 3, 7, 3), generator=source).float()
    counts[..., 0] += 1
    inputs = (scores, gate, values) if gated else (scores, values)
    results = []
    for function in (stacked_z, forward._safe_z):
        z = function(counts, scores, gate if gated else None, values)
        results.append((z, *torch.autograd.grad(z.square().sum(), inputs)))
    for fast, safe in zip(*results, strict=True):
        assert_close(fast, safe, roundings=GRADIENT)


# ---- the optimiser


def test_stacked_adam_is_adam_with_a_rate_for_each_run():
    source = torch.Generator().manual_seed(0)
    weights = torch.randn(3, 7, generator=source)
    apart = [torch.nn.Parameter(row.clone()) for row in weights]
    adams = [torch.optim.Adam([p], lr=1.0) for p in apart]
    stacked = StackedAdam(weights)
    for step in range(40):
        grad = torch.randn(3, 7, generator=source) * 10.0 ** (step % 5 - 3)
        rates = torch.tensor([0.1, 0.01, 0.002 * step])
        stacked.step(grad, rates[:, None])
        for parameter, adam, g, rate in zip(apart, adams, grad, rates, strict=True):
            adam.param_groups[0]["lr"] = float(rate)
            parameter.grad = g.clone()
            adam.step()
    assert_close(weights, torch.stack([p.detach() for p in apart]))


def test_a_gap_of_a_hundred_is_cut_to_twenty():
    """exp(-20) is below float32's resolution, however often the lower key occurs."""
    scores = torch.tensor([[[[0.0, -100.0, -107.0, -207.0]]]])
    assert compress_scores(scores).flatten().tolist() == [60.0, 40.0, 33.0, 13.0]
