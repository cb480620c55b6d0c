"""What the loop is made of: losses, schedules, config, data, and what an attention layer does."""

import math

import pytest
import torch
from closeness import assert_close
from refusals import refuses
from transformer_lens import HookedTransformerConfig

from gated_interp.anatomy.batch import Batch
from gated_interp.core.seeds import derive, generator
from gated_interp.core.streams import Stream
from gated_interp.metrics.predictions import next_token_loss
from gated_interp.metrics.reconstruction import fvu, l0
from gated_interp.models.toy import HookedTransformer, ToyConfig, attention_only, build_toy, clone
from gated_interp.replacements.gated_attention import GatedAttention
from gated_interp.replacements.splice import splice
from gated_interp.tasks import SkipTrigramTask
from gated_interp.training.capture import attention_io
from gated_interp.training.config import TrainConfig
from gated_interp.training.constraint import FvuControl
from gated_interp.training.data import batches, data_for, draw, held_out_of, name_of
from gated_interp.training.device import pick_device
from gated_interp.training.loop import train_gated
from gated_interp.training.losses import output_variance, reconstruction_error
from gated_interp.training.objectives import Imitate
from gated_interp.training.processes import group_for
from gated_interp.training.schedule import learning_rate, penalty_weight

BATCH, POS, D_MODEL, D_VOCAB = 2, 5, 11, 13


def deep_model(**extras) -> HookedTransformer:
    """Three layers of 3 heads of 7, with MLPs unless told otherwise, all weights random."""
    fields = {"normalization_type": "LN", "attn_only": True, **extras}
    model = attention_only(
        HookedTransformerConfig(
            n_layers=3,
            d_model=D_MODEL,
            d_vocab=D_VOCAB,
            n_ctx=POS,
            d_head=7,
            n_heads=3,
            act_fn="relu",
            device="cpu",
            **fields,
        )
    )
    source = generator(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.4 * torch.randn(parameter.shape, generator=source))
    return model


# Losses.


def test_cross_entropy_in_plain_loops():
    logits = torch.randn(BATCH, POS, D_VOCAB, generator=generator(1)).double()
    tokens = torch.randint(D_VOCAB, (BATCH, POS), generator=generator(2))
    terms = []
    for b in range(BATCH):
        for p in range(POS - 1):
            row = logits[b, p].tolist()
            log_sum = math.log(sum(map(math.exp, row)))
            terms.append(log_sum - row[int(tokens[b, p + 1])])
    assert_close(next_token_loss(logits, tokens).mean(), sum(terms) / len(terms))


def test_reconstruction_error_and_fvu_by_hand():
    # Two positions of width 2. Target (0, 0), (2, 4): mean (1, 2); variation 1 + 4 + 1 + 4 = 10.
    # Output off by (1, 0) and (0, 2): squares 1 + 4 = 5, so MSE 5 / 4 and FVU 5 / 10.
    target = torch.tensor([[[0.0, 0.0], [2.0, 4.0]]])
    output = target + torch.tensor([[[1.0, 0.0], [0.0, 2.0]]])
    assert reconstruction_error(output, target).item() == 1.25
    assert fvu(output, target).item() == 0.5
    assert output_variance(target).item() == 2.5
    # The one over the other is the FVU.
    assert fvu(output, target) == reconstruction_error(output, target) / output_variance(target)


def test_fvu_is_0_for_the_target_and_1_for_its_mean():
    target = torch.randn(BATCH, POS, D_MODEL, generator=generator(4))
    assert fvu(target, target).item() == 0
    mean = target.mean((0, 1)).expand_as(target)
    assert_close(fvu(mean, target), 1)
    # A shift or scale of both changes nothing.
    output = target + 0.1 * torch.randn(target.shape, generator=generator(5))
    # The shift cancels: an FVU of 0.01 is the square of differences of a tenth beside 10.
    assert_close(fvu(3 * output + 7, 3 * target + 7), fvu(output, target), roundings=100)


def test_fvu_of_a_target_that_does_not_vary():
    target = torch.ones(BATCH, POS, D_MODEL)
    assert fvu(target, target).item() == 0
    assert fvu(target + 1, target).item() > 1e30


def test_l0_counts_open_gates_of_causal_pairs():
    # Two heads, two positions; open: head 0 at (0, 0) and (1, 0), head 1 at (1, 0) and at the
    # pair (0, 1), which is not causal. 3 open gates over 3 causal pairs. 0.001 is not open.
    gate = torch.zeros(1, 2, 2, 2)
    gate[0, 0, 0, 0], gate[0, 0, 1, 0], gate[0, 1, 1, 0], gate[0, 1, 0, 1] = 1, 0.5, 0.01, 1
    gate[0, 1, 1, 1] = 0.001
    assert_close(l0(gate), 1)
    assert_close(l0(gate, threshold=0.1), 2 / 3)


# Schedules.


def test_the_learning_rate_falls_linearly_to_zero():
    rates = [learning_rate(step, 10, 0.02, 0.4) for step in range(11)]
    assert rates[:7] == [0.02] * 7
    assert rates[7:] == pytest.approx([0.015, 0.01, 0.005, 0])
    assert [learning_rate(step, 10, 0.02, 0.0) for step in (0, 9)] == [0.02, 0.02]
    assert learning_rate(0, 10, 0.02, 1.0) == 0.02
    assert learning_rate(5, 10, 0.02, 1.0) == pytest.approx(0.01)


def test_the_penalty_is_off_then_ramps_then_stays():
    weights = [penalty_weight(step, 20, 0.4, 0.25, 0.5) for step in range(20)]
    assert weights[:6] == [0] * 6
    assert weights[10] == pytest.approx(0.2)
    assert weights[15:] == [0.4] * 5
    assert weights == sorted(weights)
    assert [penalty_weight(step, 10, 0.4, 0.0, 0.0) for step in (0, 9)] == [0.4, 0.4]
    assert [penalty_weight(step, 10, 0.4, 0.5, 0.0) for step in (4, 5)] == [0, 0.4]


def test_the_factor_on_the_penalties_answers_to_the_fvu():
    config = TrainConfig.plain(steps=100, fvu_target=0.02, fvu_rate=0.1, fvu_from=0.5)
    free = config.replace(fvu_target=None)
    control = FvuControl([config, config, free])
    fvus = torch.tensor([0.5, 0.0, 0.5])
    for step in range(50):
        control.observe(fvus, step)
    assert control.factor.tolist() == [1, 1, 1]  # not before fvu_from
    for step in range(50, 450):
        control.observe(fvus, step)
    high, low, unheld = control.factor.tolist()
    # Down to the least while the FVU is above its target, up while it is below.
    assert_close(high, 1e-3)
    assert low > 1
    assert unheld == 1


# Config.


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"steps": 0}, "config-not-positive"),
        ({"lr": -0.1}, "config-not-positive"),
        ({"log_every": 0}, "config-not-positive"),
        ({"lr_decay": 1.5}, "config-not-a-share"),
        ({"penalty_off": -0.1}, "config-not-a-share"),
        ({"penalty_off": 0.7, "penalty_ramp": 0.6}, "config-penalty-too-long"),
        ({"anneal_from": 1.5}, "config-not-a-share"),
        ({"anneal_from": 0.5, "anneal_to": 0.4}, "config-too-small"),
        ({"alpha": -1.0}, "config-negative"),
        ({"checkpoint_every": -1}, "config-negative"),
        ({"seed": -1}, "config-bad-seed"),
        ({"data": "fixed", "n_sequences": 250}, "config-batches-not-whole"),
        ({"data": "stale"}, "config-wrong-type"),
        ({"device": "tpu"}, "config-wrong-type"),
        ({"fvu_target": 0.0}, "config-not-positive"),
    ],
)
def test_impossible_trainings_are_refused(change, code):
    with refuses(code):
        TrainConfig(**change)


def test_the_reference_preset_is_the_posts():
    config = TrainConfig.reference(lr=5e-4, alpha=0.5)
    # 1,000 epochs of the same 100 batches of 1,000 sequences.
    assert config.steps * config.batch_size == 1000 * config.n_sequences
    assert (config.n_sequences, config.batch_size, config.data) == (100_000, 1000, "fixed")
    for step in (0, 50_000, 99_999):
        assert learning_rate(step, config.steps, config.lr, config.lr_decay) == 5e-4
        args = (config.steps, config.alpha, config.penalty_off, config.penalty_ramp)
        assert penalty_weight(step, *args) == 0.5
    assert TrainConfig.reference(steps=10).steps == 10


def test_a_gpu_that_is_not_there_is_refused():
    if torch.cuda.is_available():
        assert pick_device(TrainConfig(device="cuda")).type == "cuda"
        assert pick_device(TrainConfig(device="auto")).type == "cuda"
        return
    with refuses("no-gpu"):
        pick_device(TrainConfig(device="cuda"))
    assert pick_device(TrainConfig(device="auto")) == torch.device("cpu")


# Data.


def test_fresh_data_differ_in_every_step_and_are_a_function_of_the_step(toy):
    task, config = SkipTrigramTask(3), TrainConfig(batch_size=7, seed=3)
    first, again = batches(task, config, toy), batches(task, config, toy)
    other = batches(task, config.replace(seed=4), toy)
    assert first(5).tokens.shape == (7, 11)
    assert not torch.equal(first(5).tokens, first(6).tokens)
    assert torch.equal(first(6).tokens, again(6).tokens)
    assert not torch.equal(first(5).tokens, other(5).tokens)


def test_a_fixed_set_is_read_in_order_over_and_over(toy):
    config = TrainConfig(batch_size=7, n_sequences=21, data="fixed", seed=3)
    batch_of = batches(SkipTrigramTask(3), config, toy)
    epoch = torch.cat([batch_of(step).tokens for step in range(3)])
    assert torch.equal(torch.cat([batch_of(step).tokens for step in range(3, 6)]), epoch)
    assert len({tuple(row) for row in epoch.tolist()}) == 21


def test_a_function_is_a_source_and_gets_a_seeded_generator(toy):
    def uniform(n, source):
        return torch.randint(8, (n, 5), generator=source)

    batch_of = batches(uniform, TrainConfig(batch_size=7), toy)
    assert torch.equal(batch_of(3).tokens, batch_of(3).tokens)
    assert not torch.equal(batch_of(3).tokens, batch_of(4).tokens)
    assert batch_of(3).tokens.shape == (7, 5)


@pytest.mark.parametrize(
    ("tokens", "code"),
    [
        (torch.zeros(7, 3), "tokens-wrong-shape"),
        (torch.zeros(6, 3, dtype=torch.long), "wrong-number-of-sequences"),
        (torch.zeros(7, 1, dtype=torch.long), "sequence-too-short"),
        (torch.zeros(7, 12, dtype=torch.long), "sequence-too-long"),
        (torch.full((7, 3), 8), "token-outside-vocabulary"),
        (torch.full((7, 3), -1), "token-outside-vocabulary"),
        ([[1, 2]], "wrong-number-of-sequences"),
        ((torch.zeros(7, 3).long(), [[1, 1, 1]]), "bad-attention-mask"),
    ],
)
def test_batches_the_model_cannot_read_are_refused(toy, tokens, code):
    with refuses(code):
        batches(lambda n, source: tokens, TrainConfig(batch_size=7), toy)(0)


def test_a_model_without_a_task_needs_data(toy):
    assert data_for(toy, None) == SkipTrigramTask(3)
    with refuses("no-training-data"):
        data_for(deep_model(), None)
    with refuses("vocabulary-mismatch", d_vocab=8, task="a task of 4 trigrams", wanted=10):
        data_for(toy, SkipTrigramTask(4))


def test_tokens_as_data(toy):
    """Rows are drawn by seed alone, from all there are; a training says which tokens it had."""
    tokens = SkipTrigramTask(3).sample(5, seed=0).tokens
    source = data_for(toy, tokens)
    drawn = draw(source, 200, 3, toy).tokens
    assert torch.equal(drawn, draw(data_for(toy, tokens.clone()), 200, 3, toy).tokens)
    assert not torch.equal(drawn, draw(source, 200, 4, toy).tokens)
    found = {tuple(row) for row in drawn.tolist()}
    assert found == {tuple(row) for row in tokens.tolist()}
    assert name_of(source) == name_of(data_for(toy, tokens.clone()))
    assert name_of(source) != name_of(data_for(toy, tokens.flip(0)))
    config = TrainConfig.plain(steps=2, batch_size=3, log_every=1, evaluate_every=1, n_held_out=4)
    block = GatedAttention.from_attention(toy.blocks[0].attn)
    history = train_gated(
        toy, block, config, data=tokens, held_out=tokens[:2], progress=False
    ).history
    assert history["held_out_fvu"].notna().all()
    held_out = held_out_of(tokens[:2], config, toy).tokens
    assert {tuple(row) for row in held_out.tolist()} <= {tuple(r) for r in tokens[:2].tolist()}


# What an attention layer receives and writes.


@pytest.mark.parametrize(
    "extras",
    [
        {},
        {"normalization_type": None},
        {"normalization_type": "RMS"},
        {"positional_embedding_type": "shortformer"},
        {"attn_only": False, "d_mlp": 17},
        {"attn_only": False, "d_mlp": 17, "parallel_attn_mlp": True},
    ],
)
@pytest.mark.parametrize("layer", [0, 1, 2])
def test_what_is_captured_is_what_the_cache_holds(layer, extras):
    model = deep_model(**extras)
    tokens = torch.randint(D_VOCAB, (BATCH, POS), generator=generator(6))
    seen = attention_io(model, layer, tokens)
    _, cache = model.run_with_cache(tokens)
    assert torch.equal(seen.output, cache[f"blocks.{layer}.hook_attn_out"])
    resid = cache[f"blocks.{layer}.hook_resid_pre"]
    assert_close(seen.value_input, model.blocks[layer].ln1(resid))
    same = extras.get("positional_embedding_type") != "shortformer"
    assert torch.equal(seen.query_input, seen.value_input) is same
    # The layer itself, given these, writes that.
    again = model.blocks[layer].attn(*seen.inputs)
    assert_close(again, seen.output)
    assert not seen.output.requires_grad


def test_capturing_leaves_no_hook_not_even_after_an_error():
    model = deep_model()
    modules = [m for m in model.modules() if m._forward_hooks or m._forward_pre_hooks]
    assert modules == []
    attention_io(model, 1, torch.zeros(BATCH, POS, dtype=torch.long))
    with refuses("token-outside-vocabulary"):
        attention_io(model, 1, torch.full((BATCH, POS), D_VOCAB))

    def fail(out, hook):
        raise KeyboardInterrupt

    model.add_hook("blocks.1.hook_attn_out", fail)
    with pytest.raises(KeyboardInterrupt):
        attention_io(model, 1, torch.zeros(BATCH, POS, dtype=torch.long))
    model.reset_hooks()
    modules = [m for m in model.modules() if m._forward_hooks or m._forward_pre_hooks]
    assert modules == []


def test_layers_that_cannot_be_captured_are_refused():
    tokens = torch.zeros(BATCH, POS, dtype=torch.long)
    with refuses("no-such-layer", layer=3):
        attention_io(deep_model(), 3, tokens)
    normalised = deep_model(normalization_type="RMS", use_normalization_before_and_after=True)
    read = attention_io(normalised, 0, tokens)  # what attention returns, before the norm
    assert_close(read.output, normalised.blocks[0].attn(*read.inputs))
    split = deep_model()
    split.set_use_split_qkv_input(True)
    with refuses("split-input"):
        attention_io(split, 0, tokens)


# Near its target the FVU moves the factor in proportion, and a fixed set starts at its start.


@pytest.mark.parametrize(("ratio", "share"), [(1.1, -0.4), (0.9, 0.4), (1.0, 0.0), (2.0, -1.0)])
def test_the_factor_moves_by_four_times_the_relative_distance_from_the_target(ratio, share):
    control = FvuControl([TrainConfig.plain(steps=10, fvu_target=0.5, fvu_rate=0.1, fvu_from=0.0)])
    control.state[1] = fvu = 0.5 * ratio
    control.observe(torch.tensor([fvu]), 0)
    assert control.factor.log().item() == pytest.approx(0.1 * share, abs=1e-5)


def test_a_fixed_set_starts_at_its_first_sequence(toy):
    config = TrainConfig(batch_size=7, n_sequences=21, data="fixed", seed=3)
    tokens_of = batches(SkipTrigramTask(3), config, toy)
    whole = draw(SkipTrigramTask(3), 21, derive(3, Stream.FIXED_SET), toy)
    assert torch.equal(torch.cat([tokens_of(step).tokens for step in range(3)]), whole.tokens)


def test_tasks_of_fewer_trigrams_are_refused_too(toy):
    with refuses("vocabulary-mismatch", d_vocab=8, task="a task of 2 trigrams", wanted=6):
        data_for(toy, SkipTrigramTask(2))


# Predictions beside what is written.


def test_the_error_in_predictions_by_hand(toy):
    tokens = SkipTrigramTask(3).sample(40, seed=1).tokens
    toy.blocks[0].attn.b_O.data += 0.3
    block = GatedAttention.from_attention(toy.blocks[0].attn, 2, seed=4)
    config = TrainConfig(downstream=0.25, alpha=0.0, overlap=0.0, fvu_target=None)
    data, group = data_for(toy, None), group_for(config)
    objective = Imitate(block, toy, 0, config, data, group)
    objective.begin(0)
    loss = objective.loss(Batch(tokens))
    loss.backward()

    @torch.no_grad()
    def divergence(other, where):
        log_p = toy(where).log_softmax(-1)
        return float((log_p.exp() * (log_p - other(where).log_softmax(-1))).sum(-1).mean())

    mute = clone(toy)
    for weight in (mute.blocks[0].attn.W_O, mute.blocks[0].attn.b_O):
        weight.data.zero_()
    sample = draw(data, 200, derive(config.seed, Stream.VARIANCE), toy)[:32].tokens
    kl, silence = divergence(splice(toy, 0, block), tokens), divergence(mute, sample)
    squared = objective.measures()["reconstruction"]
    assert objective.measures()["kl"] == pytest.approx(kl, rel=1e-4)
    wanted = 0.75 * squared + 0.25 * float(objective.variance) * kl / silence
    assert loss.item() == pytest.approx(wanted, rel=1e-4)
    assert all(weight.grad is None for weight in toy.parameters())
    assert not any(point.fwd_hooks for point in toy.hook_dict.values())
    # All of the error in predictions: the gradient is that of the divergence, chain rule and all.
    whole = Imitate(block, toy, 0, config.replace(downstream=1.0), data, group)
    whole.begin(0)
    block.zero_grad()
    whole.loss(Batch(tokens)).backward()
    log_p, spliced = toy(tokens).log_softmax(-1).detach(), splice(toy, 0, block)
    log_q = spliced(tokens).log_softmax(-1)
    scale = float(whole.variance) / silence
    (slope,) = torch.autograd.grad(
        scale * (log_p.exp() * (log_p - log_q)).sum(-1).mean(), spliced.blocks[0].attn.raw_W_O
    )
    assert_close(block.raw_W_O.grad, slope, roundings=4096)


def test_predictions_cannot_be_counted_where_they_do_without_the_layer(toy):
    for weight in (toy.blocks[0].attn.W_O, toy.blocks[0].attn.b_O):
        weight.data.zero_()
    block = GatedAttention.from_attention(
        build_toy(ToyConfig(n_trigrams=3, n_heads=2)).blocks[0].attn
    )
    with refuses("layer-does-not-matter", layer=0):
        train_gated(toy, block, TrainConfig(steps=2, downstream=0.5), progress=False)
