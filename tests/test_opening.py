"""Training with closed gates opened: what is opened, on both paths, and what it does."""

import pytest
import torch
from closeness import assert_close
from refusals import refuses

import gated_interp as gi
from gated_interp.core.seeds import derive, generator
from gated_interp.core.streams import Stream
from gated_interp.replacements.gated_attention import GatedAttention, GatedConfig
from gated_interp.replacements.topk import TopKAttention, TopKConfig
from gated_interp.tasks.contexts import contexts_of
from gated_interp.training.config import TrainConfig
from gated_interp.training.loop import train_gated
from gated_interp.training.opening import coins, opened_error, opens
from gated_interp.training.stacked.blocks import StackedAttention, StackedGated
from gated_interp.training.stacked.data import batch_of
from gated_interp.training.stacked.losses import reconstruction, residual, with_one
from gated_interp.training.stacked.runs import GatedRun, train_gated_runs, why_not_stackable

TOY = gi.load("2H3ST-toy")
TOKENS = TOY.task.sample(6, seed=0).tokens
SHORT = TrainConfig(steps=3, data="fixed", n_sequences=1000, log_every=1, device="cpu")


def block(seed=1, **changes):
    made = GatedAttention(GatedConfig(d_model=8, n_heads=5, value_bias=False, seed=seed, **changes))
    with torch.no_grad():
        made.b_gate_Q.sub_(0.9)  # some gates are closed
    return made


def error_of(made, model=TOY):
    with torch.no_grad():
        _, seen = model.run_with_cache(TOKENS)
    read, wrote = seen["blocks.0.hook_resid_pre"], seen["blocks.0.hook_attn_out"]
    return lambda: (made(read) - wrote).square().mean()


def gates(made):
    seen = {}
    handle = made.hook_gate.register_forward_hook(lambda _m, _a, gate: seen.update(gate=gate))
    error_of(made)()
    handle.remove()
    return seen["gate"].detach()


def with_gates(made, put):
    handle = made.hook_gate.register_forward_hook(lambda _m, _a, _gate: put)
    found = error_of(made)().detach()
    handle.remove()
    return found


def test_what_is_opened_at_random_is_what_an_edit_by_hand_opens():
    made = block()
    gate = gates(made)
    shut = gate <= 1e-3
    assert bool(shut.any())
    tossed = torch.rand(gate.shape, generator=generator(5)) < 0.5
    by_hand = with_gates(made, gate.where(~(shut & tossed), 1.0))
    assert_close(opened_error(made, error_of(made), 0, generator(5)), by_hand)
    assert not made.hook_gate._forward_hooks


def test_the_adversary_opens_what_raises_the_error():
    made = block()
    gate = gates(made)
    leaf = gate.where(gate > 1e-3, 0.5).requires_grad_()
    handle = made.hook_gate.register_forward_hook(lambda _m, _a, _gate: leaf)
    (slope,) = torch.autograd.grad(error_of(made)(), leaf)
    handle.remove()
    by_hand = with_gates(made, gate.where(~((gate <= 1e-3) & (slope > 0)), 1.0))
    found = [opened_error(made, error_of(made), n, generator(0)).detach() for n in (0, 1, 2)]
    assert_close(found[1], by_hand)
    assert found[1] > found[0]
    assert found[1] > error_of(made)()


def test_where_all_gates_are_open_nothing_is_opened():
    made = GatedAttention(GatedConfig(d_model=8, n_heads=3, gate="open"))
    for steps in (0, 1):
        assert torch.equal(
            opened_error(made, error_of(made), steps, generator(0)), error_of(made)()
        )


@pytest.mark.parametrize("steps", [1, 3])
def test_stacked_heads_are_opened_as_the_hooked_ones_are(steps):
    blocks = [block(seed) for seed in (1, 2)]
    original = StackedAttention([TOY.blocks[0].attn] * 2)
    stack = StackedGated(blocks, original)
    batch = batch_of([contexts_of(TOKENS, 8)] * 2, TOKENS.shape[1])
    known = with_one(original.z(batch.counts)), original.W_O
    bias = stack.weights["b_O"] - original.weights["b_O"]
    config = TrainConfig(opened_share=1.0, opened_steps=steps)

    def missing(z):
        return residual(z, stack.W_O, bias, *known)

    written = stack.written(batch.counts)
    z = stack.opened(batch.counts, written, 0, [config] * 2, missing)
    found = reconstruction(z, stack.W_O, bias, *known, batch.weight)
    by_hand = [opened_error(made, error_of(made), steps, generator(0)) for made in blocks]
    assert_close(found, torch.stack(by_hand))
    stack.weights.backward(found.sum())
    for run, made in enumerate(blocks):
        by_hand[run].backward()
        for name in ("raw_W_V", "raw_W_O", "W_Q", "W_K"):
            # Each sums over the pairs of tokens of all sequences, positive and negative.
            assert_close(
                stack.weights.grad_of(name)[run], made.get_parameter(name).grad, roundings=256
            )


def test_stacked_heads_are_opened_at_random_by_pairs_of_tokens():
    stack = StackedGated([block(1), block(2)])
    batch = batch_of([contexts_of(TOKENS, 8)] * 2, TOKENS.shape[1])
    configs = [TrainConfig(opened_share=1.0, seed=seed) for seed in (3, 4)]
    written = stack.written(batch.counts)
    z = stack.opened(batch.counts, written, 7, configs, lambda z: z)
    gate = written.gate
    tossed = [coins(gate.shape[1:], generator(derive(s, Stream.OPENED, 7))) for s in (3, 4)]
    put = gate.where(~((gate <= 1e-3) & torch.stack(tossed)), 1.0)
    assert_close(z, stack.z(batch.counts, put))


def test_gates_are_opened_in_their_share_of_the_steps():
    for share, wanted in ((0.0, 0), (0.1, 10), (0.25, 25), (0.3, 30), (1.0, 100)):
        config = TrainConfig(opened_share=share)
        assert sum(opens(step, config) for step in range(100)) == wanted
        assert not share or opens(0, config)


@pytest.mark.parametrize("path", ["hooked", "stacked"])
@pytest.mark.parametrize("steps", [0, 1])
def test_a_training_opens_gates_and_repeats_itself(path, steps):
    def history(**changes):
        made, config = block(), SHORT.replace(**changes)
        if path == "hooked":
            return train_gated(TOY, made, config, progress=False).history
        run = GatedRun(TOY, made, config, TOY.task)
        return train_gated_runs([run], progress=False)[0].history

    plain = history()
    opened = history(opened_share=0.5, opened_steps=steps, opened_weight=4.0)
    assert "opened" not in plain
    assert opened["opened"].isna().tolist() == [False, True, False]
    assert opened["fvu"][0] == plain["fvu"][0]  # the first batch, before any update
    assert opened["loss"][0] == pytest.approx(plain["loss"][0] + 4 * opened["opened"][0])
    assert opened["fvu"][2] != plain["fvu"][2]
    assert history(opened_share=0.5, opened_steps=steps, opened_weight=4.0).equals(opened)
    assert history(opened_share=0.5, opened_weight=0.0).drop(columns="opened").equals(plain)


@pytest.mark.slow
def test_training_against_the_adversary_leaves_it_less_to_open():
    how = TrainConfig(steps=600, data="fixed", n_sequences=2000, lr=0.02, device="cpu")
    made = [GatedAttention.from_attention(TOY.blocks[0].attn, 4, seed=3) for _ in range(2)]
    configs = [how, how.replace(opened_share=1.0, opened_steps=1, opened_weight=3.0)]
    runs = [GatedRun(TOY, b, c, TOY.task) for b, c in zip(made, configs, strict=True)]
    train_gated_runs(runs, progress=False)
    kl = [
        gi.adversary_ladder(gi.splice(TOY, 0, b), 0, TOKENS, seed=0, rungs=(5,), restarts=1).kl
        for b in made
    ]
    assert kl[1]["5 steps"].mean() < 0.7 * kl[0]["5 steps"].mean()


def test_bad_input_in_one_sentence():
    opened = SHORT.replace(opened_share=0.5)
    heads = TopKAttention(TopKConfig(d_model=8, n_heads=6, k=1, value_bias=False))
    with refuses("opened-needs-gates"):
        train_gated(TOY, heads, opened, progress=False)
    with refuses("opened-needs-gates"):
        train_gated_runs([GatedRun(TOY, heads, opened, TOY.task)], progress=False)
    with refuses("config-not-a-share"):
        TrainConfig(opened_share=1.5)
    for name in ("opened_weight", "opened_steps"):
        with refuses("config-negative"):
            TrainConfig(**{name: -1})


def test_an_adversary_of_wide_heads_takes_the_hooked_path():
    wide = block(d_head=2)
    for steps, stacked in ((0, True), (1, False)):
        config = TrainConfig(opened_share=1.0, opened_steps=steps)
        assert (why_not_stackable(GatedRun(TOY, wide, config, TOY.task)) is None) is stacked
