"""The benchmarks' slow twins compute what the package computes; else their ratios mean nothing."""

import random

import bench
import bench_block_step
import bench_package
import pytest
import torch
from closeness import assert_close
from slow_twins import (
    PlainGatedStep,
    PlainLanguageModel,
    PlainLanguageStep,
    owners_by_every_subset,
    sample_token_by_token,
)

from gated_interp.analysis.verdict import verdict
from gated_interp.models.language_model import LanguageModelConfig, build_language_model
from gated_interp.models.toy import ToyConfig, build_toy
from gated_interp.replacements.gated_attention import GatedAttention, GatedConfig
from gated_interp.tasks.skip_trigrams import SkipTrigramTask
from gated_interp.training.config import TrainConfig
from gated_interp.training.loop import train_gated, train_model


def test_the_plain_sampler_follows_the_rules_and_the_frequencies():
    task = SkipTrigramTask(3)
    plain = torch.tensor(sample_token_by_token(task, 4000, random.Random(0)))
    ours = task.sample(4000, 0).tokens
    share = [torch.bincount(t[:, 1:].flatten(), minlength=8) / 40_000 for t in (plain, ours)]
    torch.testing.assert_close(share[0], share[1], atol=0.01, rtol=0)
    is_open = torch.zeros(4000, dtype=torch.bool)
    for pos in range(1, 10):
        token = plain[:, pos]
        closes = is_open & (token >= 1) & (token <= 3)
        assert (plain[closes, pos + 1] == token[closes] + 3).all()
        assert not (is_open & (token == 0)).any()
        is_open = (is_open | (token == 0)) & ~closes


def test_the_plain_step_has_the_loss_of_the_hooked_block():
    block = GatedAttention(GatedConfig.reference(d_model=8, n_heads=4, seed=1).replace(
        gate_bias_init=0.5))  # fmt: skip
    source = torch.Generator().manual_seed(0)
    x, target = torch.randn(2, 7, 5, 8, generator=source)
    gates = []
    handle = block.hook_gate.register_forward_hook(lambda m, a, out: gates.append(out))
    expected = torch.nn.functional.mse_loss(block(x), target)
    handle.remove()
    expected = expected + 0.5 * block.gate_penalty(gates[0])
    before = block.W_Q.detach().clone()
    assert_close(PlainGatedStep(block, lr=1e-3, alpha=0.5)(x, target), expected, roundings=256)
    assert not torch.equal(before, block.W_Q)


def test_the_plain_verdict_names_the_same_owners():
    for heads, seed in ((2, 0), (3, 1), (4, 2)):
        task = SkipTrigramTask(3)
        model = build_toy(ToyConfig(n_trigrams=3, n_heads=heads, seed=seed))
        with torch.no_grad():
            model.blocks[0].attn.W_O[..., 4:7] += 1.0
        batch = task.sample_single(1000, 42)
        found = verdict(model, task)
        assert owners_by_every_subset(model, task, batch) == found.owners


def test_the_plain_language_step_has_the_losses_of_the_loop():
    shape = LanguageModelConfig(d_vocab=31, n_ctx=7, n_layers=2, d_model=12, n_heads=3, seed=2)
    tokens = torch.randint(31, (5, 7), generator=torch.Generator().manual_seed(0))
    config = TrainConfig.language(
        steps=4, batch_size=5, lr=0.01, warmup=0.0, lr_decay=0.0, log_every=1, evaluate_every=0
    )
    expected = [PlainLanguageStep(build_language_model(shape), config), PlainLanguageStep(
        PlainLanguageModel(build_language_model(shape)), config)]  # fmt: skip
    losses = [[float(step(tokens)) for _ in range(4)] for step in expected]
    found = train_model(
        build_language_model(shape), config, data=lambda n, source: tokens, progress=False
    ).history["loss"]
    for each in losses:
        assert_close(each, found.tolist())


def test_the_loops_steps_are_timed_between_others():
    tokens, calls = torch.zeros(3, 5, dtype=torch.long), []
    data = bench.Interleaved(tokens, {"other": lambda: calls.append(1)})
    assert data(7, None).shape == (7, 5)  # as a sample that tells the variance
    for _ in range(4):
        assert data(3, None).shape == (3, 5)
    assert len(calls) == 5
    assert set(data.seconds()) == {"loop", "other"}


def test_the_peak_is_of_what_is_held_at_once():
    def held():
        first = torch.zeros(2**20)  # 4 MiB
        del first
        both = [torch.zeros(2**20), torch.zeros(2**19)]
        del both

    assert bench.peak_of(held) == pytest.approx(6, abs=0.1)


@pytest.fixture
def small_shape(monkeypatch):
    sizes = {"D_MODEL": 32, "HEADS": 2, "D_HEAD": 16, "POSITIONS": 8, "BATCH": 2, "ROUNDS": 3}
    for name, size in sizes.items():
        monkeypatch.setattr(bench_block_step, name, size)


def test_without_lorsa_a_row_says_how_to_get_it(small_shape, monkeypatch):
    monkeypatch.setattr(bench_block_step, "lorsa_module", lambda: None)
    rows = bench_block_step.bench_block_step()
    steps = [row for row in rows if "to the block" in row]
    assert len(steps) == 4  # two precisions, each the block alone and a step that trains it
    assert all(row["tokens/s"] > 0 and row["MiB"] > 0 for row in steps)
    assert [row["to the block"] for row in steps[::2]] == [1.0, 1.0]
    assert [row["goal"] for row in rows if "goal" in row] == [1.3, 1.3, 1.1]
    assert "is not installed" in rows[-2]["what"]
    assert bench_block_step.HOW_TO_GET_IT in bench_block_step.__doc__


def test_a_store_times_the_steps_of_the_loop_alone(small_shape, tmp_path):
    model = bench_block_step.layer_of()
    store = bench_block_step.capture(
        model, 1, tmp_path, bench_block_step.random_tokens, sequences=8, progress=False
    )
    calls = []
    timed = bench_block_step.TimedStore.of(store, lambda: calls.append(1))
    config = bench_block_step.TrainConfig.pretrained(
        steps=4, batch_size=2, fvu_target=10.0, device="cpu"
    )
    block = bench_block_step.block_for(model)
    train_gated(model, block, config, layer=1, data=timed, progress=False)
    assert len(calls) == 4
    assert len(timed.times) == 3  # the last one ends with the training


@pytest.mark.slow
def test_a_section_reports_the_ratio_of_its_times():
    row = bench.bench_generator()[0]
    assert row["ratio"] == pytest.approx(row["plain loop (s)"] / row["ours (s)"])


@pytest.mark.slow
def test_a_stacked_step_counts_its_positions(monkeypatch):
    steps = []

    def counted(runs, **_):
        steps.append(runs[0].config.steps)
        return []

    monkeypatch.setattr(bench, "train_gated_runs", counted)
    _, positions = bench.stacked_step(2, 3, 4, 200, 10)
    assert positions == 104
    assert steps == [36, 12, 36, 12]


def test_the_package_is_measured_beside_its_goals(monkeypatch):
    for name, found in (("wheel_size", 5_000_000), ("import_time", 0.05), ("help_time", 0.2)):
        monkeypatch.setattr(bench_package, name, lambda found=found: found)
    monkeypatch.setattr(bench_package, "processor_time", lambda command, model: 20.0)
    rows = bench_package.bench_package()
    assert [row["found"] for row in rows] == [5.0, 0.05, 0.2, 20.0, 20.0, 20.0]
    assert all(row["found"] <= row["goal"] for row in rows)


@pytest.mark.slow
def test_the_wheel_does_not_grow_and_times_are_taken():
    assert 1e6 < bench_package.wheel_size() <= 8e6  # most of it language models
    assert bench_package.import_time(repeats=1) > 0
    assert bench_package.help_time(repeats=1) > bench_package.import_time(repeats=1)
