"""Accumulation, clipping, bfloat16, held-out measures: against sums by hand and plain trainings."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from refusals import refuses
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from test_training_loop import SHORT, TASK, TOY, block_for, equal, uniform, weights
from test_training_parts import deep_model

from gated_interp.analysis.faithfulness import faithfulness
from gated_interp.core.seeds import derive
from gated_interp.core.streams import Stream
from gated_interp.models.toy import build_toy
from gated_interp.replacements.splice import splice
from gated_interp.training.config import TrainConfig
from gated_interp.training.interrupt import TrainingInterrupted
from gated_interp.training.loop import train_gated, train_model
from gated_interp.training.stacked.runs import GatedRun, ToyRun, train_gated_runs, train_toys

HELD = {"fvu_target": 0.3, "fvu_from": 0.0, "overlap": 0.3, "penalty_off": 0.0}
# Added to nothing that decides today's results.
NEW = ("accumulate", "clip_norm", "precision", "evaluate_every", "n_held_out")


def trained(config, **gates):
    model = build_toy(TOY)
    block = block_for(model, **gates)
    return train_gated(model, block, config, progress=False)


def exact_toy():
    """In float64: where a gradient is 0 but for rounding, Adam steps far in float32."""
    return build_toy(TOY).to(torch.float64, print_details=False)


def close(first, second):
    for name, value in weights(first).items():
        assert value.dtype == torch.float64
        torch.testing.assert_close(value, second.get_parameter(name), atol=1e-8, rtol=0)


# Parts of a batch.


@pytest.mark.parametrize("gate", ["clamp", "hard_concrete"])
@pytest.mark.parametrize("data", ["fresh", "fixed"])
def test_parts_make_the_update_of_the_whole(data, gate):
    whole = SHORT.replace(batch_size=12, steps=8, data=data, n_sequences=36, **HELD)
    parts = whole.replace(batch_size=3, accumulate=4)
    toy = exact_toy()
    one, four = (
        train_gated(toy, block_for(toy, gate=gate).double(), config, progress=False)
        for config in (whole, parts)
    )
    close(one.model, four.model)
    same = ["loss", "reconstruction", "penalty", "overlap", "l0", "factor", "alpha", "lr"]
    np.testing.assert_allclose(one.history[same], four.history[same], rtol=1e-6, atol=1e-7)
    assert not torch.allclose(one.model.W_Q, block_for(toy).W_Q.double(), atol=1e-3)


def test_parts_of_a_toys_batch_too():
    whole = TrainConfig.toy(steps=8, batch_size=12)
    one = train_model(exact_toy(), whole, progress=False)
    four = train_model(exact_toy(), whole.replace(batch_size=3, accumulate=4), progress=False)
    close(one.model, four.model)


def test_a_fixed_set_holds_whole_updates():
    with refuses("config-batches-not-whole", batch="batch_size * accumulate", size=20):
        TrainConfig.plain(data="fixed", n_sequences=30, batch_size=10, accumulate=2)


# Clipping.


def test_long_gradients_are_scaled_to_the_norm_by_hand():
    config = TrainConfig.toy(steps=5, batch_size=10, seed=3, clip_norm=0.05)
    result = train_model(exact_toy(), config, progress=False)
    model = exact_toy()
    moving = [p for p in model.parameters() if p.requires_grad]
    adam = torch.optim.Adam(moving, lr=0.03)
    lengths = []
    for step in range(5):
        adam.param_groups[0]["lr"] = 0.03 * min(1, (5 - step) / 2.5)
        loss = model(
            TASK.sample(10, derive(3, Stream.FRESH_BATCH, step)).tokens, return_type="loss"
        )
        adam.zero_grad()
        loss.backward()
        length = sum(float(p.grad.square().sum()) for p in moving) ** 0.5
        for p in moving:
            p.grad *= 0.05 / (length + 1e-6)
        lengths.append(length)
        adam.step()
    assert min(lengths) > 0.05  # it was clipped
    close(result.model, model)
    plain = train_model(exact_toy(), config.replace(clip_norm=None), progress=False)
    assert not torch.allclose(plain.model.blocks[0].attn.W_Q, model.blocks[0].attn.W_Q, atol=1e-4)


def test_short_gradients_stay_as_they_are():
    plain, clipped = trained(SHORT), trained(SHORT.replace(clip_norm=1e6))
    assert equal(weights(plain.model), weights(clipped.model))


def test_stacked_runs_are_clipped_one_by_one(monkeypatch):
    from gated_interp.training.stacked import optimizer

    seen, step = [], optimizer.StackedAdam.step

    def watched(self, grad, lr):
        seen.append(grad.norm(dim=1))
        step(self, grad, lr)

    monkeypatch.setattr(optimizer.StackedAdam, "step", watched)
    how = TrainConfig.toy(steps=3, batch_size=10)
    runs = [ToyRun(TOY.replace(seed=s), how.replace(seed=s)) for s in (1, 2)]
    train_toys(runs, progress=False)
    free, seen[:] = list(seen), []
    limit = float(free[0].mean())  # one run's first gradient is longer, the other's is not
    clipped = [ToyRun(r.model, r.config.replace(clip_norm=limit)) for r in runs]
    train_toys(clipped, progress=False)
    torch.testing.assert_close(seen[0], free[0].clamp(max=limit), rtol=1e-4, atol=0)
    assert seen[0][0] != seen[0][1]


# bfloat16.


def test_bfloat16_stays_near_and_keeps_weights_in_float32():
    config = SHORT.replace(steps=60, batch_size=50, alpha=0.0)
    exact, rough = trained(config), trained(config.replace(precision="bfloat16"))
    assert rough.model.W_Q.dtype == torch.float32
    assert not equal(weights(exact.model), weights(rough.model))
    start, end = exact.history["fvu"].iloc[0], exact.history["fvu"].iloc[-1]
    assert end < start / 2
    assert abs(rough.history["fvu"].iloc[-1] - end) < 0.1 * (start - end)
    toys = [
        train_model(TOY, TrainConfig.toy(steps=60, precision=p), progress=False).history["loss"]
        for p in ("float32", "bfloat16")
    ]
    assert toys[0].iloc[-1] != toys[1].iloc[-1]
    assert toys[1].iloc[-1] == pytest.approx(toys[0].iloc[-1], rel=0.02)


# Held-out sequences.


@pytest.mark.parametrize("gate", ["clamp", "hard_concrete"])
def test_looking_at_held_out_sequences_changes_nothing(gate):
    config = SHORT.replace(**HELD)
    plain = trained(config, gate=gate)
    state = torch.get_rng_state()
    watched = trained(config.replace(evaluate_every=6), gate=gate)
    assert torch.equal(torch.get_rng_state(), state)
    assert equal(weights(plain.model), weights(watched.model))
    columns = plain.history.columns.tolist()
    pd.testing.assert_frame_equal(watched.history[columns], plain.history, check_exact=True)
    there = watched.history.dropna()
    assert there["step"].tolist() == [0, 6, 12, 18, 19]
    more = [c for c in watched.history if c not in columns]
    assert more == [f"held_out_{n}" for n in ("reconstruction", "fvu", "penalty", "overlap", "l0")]
    empty = watched.history[~watched.history["step"].isin(there["step"])]
    assert empty[more].isna().all().all()


def test_held_out_measures_are_those_of_the_model_on_those_sequences():
    config = SHORT.replace(evaluate_every=3, n_held_out=50, lr=1e-12, seed=4)
    result = trained(config)
    toy, tokens = build_toy(TOY), TASK.sample(50, derive(4, Stream.HELD_OUT_SET)).tokens
    found = faithfulness(splice(toy, 0, result.model), tokens).measures()
    last = result.history.iloc[-1]
    assert last["held_out_fvu"] == pytest.approx(float(found["fvu"]), rel=1e-4)
    assert last["held_out_l0"] == pytest.approx(float(found["l0"]), rel=1e-4)
    toy_history = train_model(
        TOY, TrainConfig.toy(**config_changes(config)), progress=False
    ).history
    loss = build_toy(TOY)(tokens, return_type="loss")
    assert toy_history["held_out_cross_entropy"].iloc[-1] == pytest.approx(loss.item(), rel=1e-4)


def config_changes(config):
    names = ("steps", "batch_size", "lr", "evaluate_every", "n_held_out", "seed", "log_every")
    return {n: getattr(config, n) for n in names}


def test_other_data_may_be_held_out():
    seen = []

    def other(n, source):
        seen.append(n)
        return uniform(n, source)

    model = deep_model()
    config = SHORT.replace(evaluate_every=6, n_held_out=7)
    history = train_gated(
        model, block_for(model, 1), config, layer=1, data=uniform, held_out=other, progress=False
    ).history
    assert seen == [7]
    assert history["held_out_fvu"].notna().sum() == 5


def test_measurements_need_rows():
    with refuses("config-measures-off-the-log", value=5):
        TrainConfig.plain(evaluate_every=5, log_every=3)


# Stopped and resumed with all of it.


def test_a_resumed_training_with_everything_is_the_unbroken_one(tmp_path):
    path, model = tmp_path / "state", build_toy(TOY)
    config = SHORT.replace(
        accumulate=3, clip_norm=0.1, precision="bfloat16", evaluate_every=6, **HELD
    )
    wanted = trained(config, gate="hard_concrete")
    block = block_for(model, gate="hard_concrete")
    calls = []

    def stop(*_):
        calls.append(1)
        if len(calls) == 27:
            raise KeyboardInterrupt  # in the middle of an update's parts

    handle = block.register_forward_pre_hook(stop)
    with pytest.raises(TrainingInterrupted) as stopped:
        train_gated(model, block, config, checkpoint=path, progress=False)
    handle.remove()
    assert 0 < stopped.value.step < 20
    fresh = block_for(model, gate="hard_concrete")
    history = train_gated(model, fresh, config, resume=path, progress=False).history
    assert equal(weights(fresh), weights(wanted.model))
    pd.testing.assert_frame_equal(history, wanted.history, check_exact=True)


def test_a_state_of_the_first_version_goes_on(tmp_path):
    """It lacks the new settings, and calls the controller's state a weight."""
    config, path, model = SHORT.replace(**HELD), tmp_path / "state", build_toy(TOY)
    wanted, block = trained(config), block_for(model)

    def source(n, generator):
        drawn.append(n)
        if len(drawn) == 9:
            raise KeyboardInterrupt
        return TASK.sample(n, generator).tokens

    drawn, source.__qualname__ = [], "source"
    with pytest.raises(TrainingInterrupted):
        train_gated(model, block, config, data=source, checkpoint=path, progress=False)
    tensors = load_file(path)
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    identity = json.loads(metadata["identity"])
    identity["data"] = repr(TASK)
    for name in NEW:
        del identity["config"][name]
    tensors["weight.fvu_control"] = tensors.pop("state.fvu_control")
    old = {**metadata, "version": "1", "identity": json.dumps(identity)}
    save_file(tensors, path, old)

    fresh = block_for(model)
    with refuses("resume-with-other-settings", key="accumulate", saved=1, wanted=2):
        train_gated(model, fresh, config.replace(accumulate=2), resume=path, progress=False)
    history = train_gated(model, fresh, config, resume=path, progress=False).history
    assert equal(weights(fresh), weights(wanted.model))
    pd.testing.assert_frame_equal(history, wanted.history, check_exact=True)


def test_configs_saved_before_these_settings_are_read():
    values = {k: v for k, v in SHORT.to_dict().items() if k not in NEW}
    assert TrainConfig.from_dict(values) == SHORT


def test_a_loss_that_is_not_finite_is_never_saved_over_a_good_state(tmp_path):
    path, model = tmp_path / "state", build_toy(TOY)
    config = SHORT.replace(log_every=100, checkpoint_every=1, steps=50)

    def explode(parameters, norm):
        calls.append(1)
        if len(calls) == 4:
            for p in parameters:
                p.data.fill_(float("nan"))

    calls = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.nn.utils, "clip_grad_norm_", explode)
        with refuses("loss-not-finite", step=4):
            train_gated(
                model, block_for(model), config.replace(clip_norm=1.0), checkpoint=path,
                progress=False,
            )  # fmt: skip


# What a stack cannot do.


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"precision": "bfloat16"}, "its products are not made in bfloat16"),
        ({"evaluate_every": 10}, "it measures nothing on held-out sequences"),
        ({"downstream": 0.5}, "it reads no predictions"),
    ],
)
def test_what_a_stack_cannot_do_goes_through_the_hooked_loop(change, reason):
    said, model = [], build_toy(TOY)
    config = SHORT.replace(log_every=10, **change)
    blocks = [block_for(model), block_for(model)]
    runs = [
        GatedRun(model, blocks[0], config, TASK),
        GatedRun(model, blocks[1], SHORT, TASK),
    ]
    results = train_gated_runs(runs, progress=False, say=said.append)
    assert said == [f"1 of 2 runs go through the hooked loop, one by one: {reason}."]
    assert equal(weights(blocks[0]), weights(trained(config).model))
    assert results[1].model is blocks[1]
    said.clear()
    how = TrainConfig.toy(steps=5, log_every=5, **change)
    (toy,) = train_toys([ToyRun(TOY, how)], progress=False, say=said.append)
    assert said == [f"1 of 1 runs go through the hooked loop, one by one: {reason}."]
    assert equal(weights(toy.model), weights(train_model(TOY, how, progress=False).model))
