"""The loop: against the same sums done by hand, interrupted and resumed, and refused."""

import json
import os
import signal
import threading
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from closeness import assert_close
from refusals import refuses
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from test_training_parts import D_MODEL, D_VOCAB, POS, deep_model

from gated_interp.analysis.verdict import verdict
from gated_interp.core.errors import CheckpointError
from gated_interp.core.seeds import derive
from gated_interp.core.signals import uninterrupted
from gated_interp.core.streams import Stream
from gated_interp.models.toy import HookedTransformer, ToyConfig, build_toy
from gated_interp.replacements.gated_attention import GatedAttention, GatedConfig
from gated_interp.replacements.splice import splice
from gated_interp.tasks import SkipTrigramTask
from gated_interp.training.capture import attention_io
from gated_interp.training.config import TrainConfig
from gated_interp.training.data import draw
from gated_interp.training.interrupt import TrainingInterrupted
from gated_interp.training.loop import train_gated, train_model
from gated_interp.training.losses import output_variance
from gated_interp.training.objectives import VARIANCE_SAMPLE
from gated_interp.training.state import FORMAT

TOY = ToyConfig(n_trigrams=3, n_heads=2, seed=5)
SHORT = TrainConfig.plain(steps=20, batch_size=10, log_every=3, device="cpu")
TASK = SkipTrigramTask(3)


def block_for(model: HookedTransformer, layer: int = 0, **config) -> GatedAttention:
    return GatedAttention.from_attention(model.blocks[layer].attn, 2, seed=7, **config)


def uniform(n, source):
    """Data for a model that has no task."""
    return torch.randint(D_VOCAB, (n, POS), generator=source)


def weights(module) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in module.named_parameters()}


def equal(first, second) -> bool:
    return set(first) == set(second) and all(torch.equal(p, second[n]) for n, p in first.items())


class Interrupting:
    """The task, whose data raise on the way to one step's batch."""

    def __init__(self, at: int, config: TrainConfig, error=KeyboardInterrupt):
        self.bad_seed = derive(config.seed, Stream.FRESH_BATCH, at)
        self.error = error

    def sample(self, n, seed):
        if seed == self.bad_seed:
            raise self.error
        return TASK.sample(n, seed)


class Plain(Interrupting):
    """The same source, undisturbed; the name by which a state remembers it is the same."""

    def sample(self, n, seed):
        return TASK.sample(n, seed)


Plain.__name__ = "Interrupting"


# The same sums, done by hand.


def test_toy_training_is_adam_on_the_cross_entropy():
    config = TrainConfig.toy(steps=6, batch_size=10, log_every=1, seed=3, device="cpu")
    result = train_model(TOY, config, progress=False)
    model = build_toy(TOY)
    attn = model.blocks[0].attn
    trained = [getattr(attn, n) for n in ("W_Q", "W_K", "W_V", "W_O", "b_Q", "b_K", "b_V")]
    adam = torch.optim.Adam(trained, lr=0.03)
    losses = []
    for step in range(6):
        tokens = TASK.sample(10, derive(3, Stream.FRESH_BATCH, step)).tokens
        # Constant over the first half, then 0.03 * (6 - step) / 3.
        adam.param_groups[0]["lr"] = 0.03 * min(1, (6 - step) / 3)
        loss = model(tokens, return_type="loss")
        adam.zero_grad()
        loss.backward()
        adam.step()
        losses.append(loss.item())
    assert_close(result.history["loss"].tolist(), losses)
    for name, parameter in model.named_parameters():
        assert_close(result.model.get_parameter(name), parameter, scale=1.0)


@pytest.mark.parametrize("layer", [0, 2])
def test_gated_training_is_adam_on_reconstruction_and_penalty(layer):
    model = deep_model()
    config = TrainConfig.plain(
        steps=5, batch_size=10, lr=0.01, lr_decay=0.0, alpha=0.3, penalty_off=0.4,
        penalty_ramp=0.4, log_every=1, seed=2, device="cpu",
    )  # fmt: skip
    alphas = [0, 0, 0, 0.15, 0.3]
    block, other = block_for(model, layer), block_for(model, layer)
    result = train_gated(model, block, config, layer=layer, data=uniform, progress=False)
    adam = torch.optim.Adam([p for p in other.parameters() if p.requires_grad], lr=0.01)
    wanted = []
    for step, alpha in enumerate(alphas):
        source = torch.Generator().manual_seed(derive(2, Stream.FRESH_BATCH, step))
        _, cache = model.run_with_cache(uniform(10, source))
        inputs = model.blocks[layer].ln1(cache[f"blocks.{layer}.hook_resid_pre"]).detach()
        target = cache[f"blocks.{layer}.hook_attn_out"].detach()
        gates = []
        other.hook_gate.add_hook(lambda gate, hook, gates=gates: gates.append(gate))
        output = other(inputs)
        other.hook_gate.remove_hooks()
        error, penalty = (output - target).square().mean(), other.gate_penalty(gates[0])
        adam.zero_grad()
        (error + alpha * penalty).backward()
        adam.step()
        variance = (target - target.mean((0, 1))).square().mean()
        causal = gates[0].tril().gt(1e-3).sum((1, 2, 3)).float().mean().item() / 15
        row = [error + alpha * penalty, error, error / variance, penalty]
        wanted.append([step, *(x.item() for x in row), causal, alpha])
    columns = ["step", "loss", "reconstruction", "fvu", "penalty", "l0", "alpha"]
    for name, values in zip(columns, zip(*wanted, strict=True), strict=True):
        assert_close(result.history[name].tolist(), values)
    for name, parameter in other.named_parameters():
        assert_close(block.get_parameter(name), parameter)


def test_a_penalty_closes_gates_and_its_absence_does_not():
    model = build_toy(TOY)
    config = TrainConfig.plain(steps=100, batch_size=20, penalty_off=0.0, penalty_ramp=0.0)
    ends = {}
    for alpha in (0.0, 5.0):
        history = train_gated(
            model, block_for(model), config.replace(alpha=alpha), progress=False
        ).history
        ends[alpha] = history.iloc[-1]
    assert ends[5.0]["l0"] < ends[0.0]["l0"] / 2
    assert ends[5.0]["penalty"] < ends[0.0]["penalty"] / 2
    assert ends[0.0]["fvu"] < ends[5.0]["fvu"]


def test_the_overlap_weight_parts_heads():
    model = build_toy(TOY)
    config = TrainConfig.plain(
        steps=200, batch_size=20, alpha=0.0, penalty_off=0.0, penalty_ramp=0.0, overlap=1.0
    )
    history = train_gated(model, block_for(model), config, progress=False).history
    assert history["overlap"].iloc[-1] < history["overlap"].iloc[0] / 2


def test_training_a_block_of_a_deep_model_explains_its_layer():
    model = deep_model()
    block = GatedAttention.from_attention(
        model.blocks[1].attn, 2, init="duplicate", noise=0.1, normalize_weights=False
    )
    config = TrainConfig.plain(steps=200, batch_size=20, lr=0.01, alpha=0.0)
    history = train_gated(model, block, config, layer=1, data=uniform, progress=False).history
    assert history["fvu"].iloc[-1] < 0.1 < history["fvu"].iloc[0]


@pytest.mark.slow
def test_a_toy_learns_its_trigrams_and_a_block_takes_over():
    # Half of the toys learn; which ones hangs on the last bit of the arithmetic.
    toys = (train_model(TOY.replace(seed=seed), progress=False).model for seed in range(8))
    toy = next((t for t in toys if verdict(t, TASK).learnt == [1, 2, 3]), None)
    assert toy is not None
    block = GatedAttention.from_attention(toy.blocks[0].attn, 4, seed=1)
    history = train_gated(toy, block, TrainConfig.plain(steps=1500), progress=False).history
    assert history["fvu"].iloc[-1] < 0.1
    assert min(verdict(splice(toy, 0, block), TASK).accuracy.values()) > 0.97


# What is logged, and what is left alone.


def test_history_is_tidy_and_always_has_the_last_step():
    history = train_model(TOY, TrainConfig.toy(steps=8, log_every=3), progress=False).history
    assert history["step"].tolist() == [0, 3, 6, 7]
    assert history["step"].dtype == int
    assert history["loss"].equals(history["cross_entropy"])
    assert history.notna().all().all()


def test_progress_can_be_switched_off(capfd):
    train_model(TOY, TrainConfig.toy(steps=4), progress=False)
    assert capfd.readouterr().err == ""
    train_model(TOY, TrainConfig.toy(steps=4), progress=True)
    assert "4/4" in capfd.readouterr().err


def test_the_original_is_not_touched():
    model = deep_model()
    before, hooks = weights(model), [len(m._forward_hooks) for m in model.modules()]
    state = torch.get_rng_state()
    block = block_for(model, 1)
    start = weights(block)
    train_gated(model, block, SHORT, layer=1, data=uniform, progress=False)
    assert equal(weights(model), before)
    assert all(p.grad is None for p in model.parameters())
    assert all(p.requires_grad for p in model.parameters())
    for module in model.modules():
        assert not module._forward_pre_hooks
    assert [len(m._forward_hooks) for m in model.modules()] == hooks
    assert torch.equal(torch.get_rng_state(), state)
    # ... and the block was trained.
    assert not torch.equal(block.W_Q, start["W_Q"])


def test_hooks_of_the_users_stay():
    model = build_toy(TOY)
    model.add_hook("blocks.0.attn.hook_z", lambda z, hook: z)
    train_gated(model, block_for(model), SHORT, progress=False)
    assert len(model.hook_dict["blocks.0.attn.hook_z"].fwd_hooks) == 1


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_nothing_is_left_behind_when_a_training_stops(error):
    model = build_toy(TOY)
    before = weights(model)
    block = block_for(model, gate="hard_concrete")
    with pytest.raises(error):
        train_gated(model, block, SHORT, data=Interrupting(4, SHORT, error), progress=False)
    assert block.noise_generator is None
    assert equal(weights(model), before)
    for module in [*model.modules(), *block.modules()]:
        assert not module._forward_pre_hooks
        assert not module._forward_hooks


def test_gates_draw_noise_in_training_only():
    model = build_toy(TOY)
    block = block_for(model, gate="hard_concrete")
    seen = []

    def source(n, generator):
        seen.append(block.noise_generator)
        return TASK.sample(n, generator).tokens

    train_gated(model, block, SHORT, data=source, progress=False)
    # Data come before the step's noise, so a step sees the generator of the one before.
    drawn = [g for g in seen if g is not None]
    assert len(drawn) == SHORT.steps - 1
    assert len({g.initial_seed() for g in drawn}) == len(drawn)
    assert block.noise_generator is None


@pytest.mark.numeric
def test_seeds_decide_the_result():
    model, ends = build_toy(TOY), []
    for seed in (1, 1, 2):
        block = block_for(model)
        train_gated(model, block, SHORT.replace(seed=seed), progress=False)
        ends.append(weights(block))
    assert equal(ends[0], ends[1])
    assert not equal(ends[0], ends[2])


def test_training_works_where_gradients_are_switched_off():
    with torch.no_grad():
        history = train_model(TOY, TrainConfig.toy(steps=30), progress=False).history
    assert history["loss"].iloc[-1] < history["loss"].iloc[0]


# Stopped and resumed.


CASES = {
    "fresh data": ({}, {}),
    "fixed data": ({"data": "fixed", "n_sequences": 30}, {}),
    "gate noise": ({}, {"gate": "hard_concrete"}),
    "held fvu": ({"fvu_target": 0.05, "fvu_from": 0.1, "overlap": 0.1}, {}),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("saved_at", [1, 8])
def test_a_resumed_gated_training_is_bit_by_bit_the_unbroken_one(case, saved_at, tmp_path):
    changes, gates = CASES[case]
    config = SHORT.replace(checkpoint_every=saved_at, **changes)
    model = build_toy(TOY)
    unbroken = block_for(model, **gates)
    wanted = train_gated(model, unbroken, config, progress=False).history

    path = tmp_path / "state.safetensors"
    resumed = block_for(model, **gates)
    calls = []

    def stop_after(values, threshold=None):
        calls.append(1)
        if len(calls) == saved_at + 3:
            raise KeyboardInterrupt

    handle = resumed.register_forward_pre_hook(stop_after)
    with pytest.raises(TrainingInterrupted) as stop:
        train_gated(model, resumed, config, checkpoint=path, progress=False)
    handle.remove()
    assert (stop.value.step, stop.value.checkpoint) == (saved_at + 2, path)
    fresh = block_for(model, **gates)  # another process would start from a new block
    history = train_gated(model, fresh, config, resume=path, progress=False).history
    assert equal(weights(fresh), weights(unbroken))
    pd.testing.assert_frame_equal(history, wanted, check_exact=True)


@pytest.mark.numeric
@pytest.mark.parametrize("at", [0, 1, 7, 19])
def test_a_resumed_toy_training_is_bit_by_bit_the_unbroken_one(at, tmp_path):
    config = TrainConfig.toy(steps=20, batch_size=10, log_every=3)
    wanted = train_model(TOY, config, data=Plain(at, config), progress=False)
    path = tmp_path / "new folder" / "state.safetensors"
    with pytest.raises(TrainingInterrupted) as stop:
        train_model(TOY, config, data=Interrupting(at, config), checkpoint=path, progress=False)
    assert str(stop.value) == (
        f"training was interrupted after {at} of 20 steps; resume with resume={str(path)!r}."
    )
    result = train_model(TOY, config, data=Plain(at, config), resume=path, progress=False)
    assert equal(weights(result.model), weights(wanted.model))
    pd.testing.assert_frame_equal(result.history, wanted.history, check_exact=True)


@pytest.mark.numeric
def test_a_training_stopped_twice_is_the_unbroken_one(tmp_path):
    config, path = SHORT, tmp_path / "state.safetensors"
    model = build_toy(TOY)
    wanted, block = block_for(model), block_for(model)
    train_gated(model, wanted, config, data=Plain(0, config), progress=False)
    for at, where in ((3, {"checkpoint": path}), (11, {"resume": path})):
        with pytest.raises(TrainingInterrupted):
            train_gated(
                model, block, config, data=Interrupting(at, config), **where, progress=False
            )
    train_gated(model, block, config, data=Plain(0, config), resume=path, progress=False)
    assert equal(weights(block), weights(wanted))


def test_states_are_saved_on_the_way(tmp_path):
    path = tmp_path / "state.safetensors"
    config = SHORT.replace(checkpoint_every=6)
    model, saved = build_toy(TOY), []

    def source(n, generator):
        if path.exists():
            with safe_open(path, framework="pt") as file:
                saved.append(int(file.metadata()["done"]))
        return TASK.sample(n, generator).tokens

    train_gated(model, block_for(model), config, data=source, checkpoint=path, progress=False)
    assert saved == [6] * 6 + [12] * 6 + [18] * 2
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    assert (metadata["format"], metadata["done"]) == (FORMAT, "20")
    assert json.loads(metadata["identity"])["config"] == config.to_dict()
    assert os.listdir(tmp_path) == ["state.safetensors"]


def test_resuming_a_finished_training_returns_it(tmp_path):
    path = tmp_path / "state.safetensors"
    model, block = build_toy(TOY), block_for(build_toy(TOY))
    wanted = train_gated(model, block, SHORT, checkpoint=path, progress=False).history
    other = block_for(model)
    history = train_gated(model, other, SHORT, resume=path, progress=False).history
    assert equal(weights(other), weights(block))
    pd.testing.assert_frame_equal(history, wanted, check_exact=True)


def test_without_a_path_nothing_is_saved_and_the_sentence_says_so():
    with pytest.raises(KeyboardInterrupt, match="nothing was saved, give checkpoint=PATH"):
        train_model(TOY, SHORT, data=Interrupting(2, SHORT), progress=False)


def test_ctrl_c_in_the_middle_of_an_update_waits_for_its_end(tmp_path, monkeypatch):
    path = tmp_path / "state.safetensors"
    wanted = train_model(TOY, SHORT, progress=False)
    step, calls = torch.optim.Adam.step, []

    def interrupted(self, closure=None):
        calls.append(1)
        if len(calls) == 5:
            signal.raise_signal(signal.SIGINT)
        return step(self, closure)

    monkeypatch.setattr(torch.optim.Adam, "step", interrupted)
    with pytest.raises(TrainingInterrupted, match="after 5 of 20 steps"):
        train_model(TOY, SHORT, checkpoint=path, progress=False)
    monkeypatch.undo()
    result = train_model(TOY, SHORT, resume=path, progress=False)
    assert equal(weights(result.model), weights(wanted.model))
    pd.testing.assert_frame_equal(result.history, wanted.history, check_exact=True)


def test_ctrl_c_is_held_back_and_then_does_what_it_did():
    before, done = signal.getsignal(signal.SIGINT), []

    def work():
        with uninterrupted():
            signal.raise_signal(signal.SIGINT)
            done.append("the rest")

    with pytest.raises(KeyboardInterrupt):
        work()
    assert done == ["the rest"]
    assert signal.getsignal(signal.SIGINT) is before
    with pytest.raises(RuntimeError), uninterrupted():
        raise RuntimeError
    assert signal.getsignal(signal.SIGINT) is before


def test_training_works_in_a_thread():
    found = []
    thread = threading.Thread(
        target=lambda: found.append(train_model(TOY, SHORT, progress=False).history)
    )
    thread.start()
    thread.join()
    pd.testing.assert_frame_equal(found[0], train_model(TOY, SHORT, progress=False).history)


# Refused.


@pytest.fixture(scope="module")
def state(tmp_path_factory) -> Path:
    """A finished gated training's state."""
    path = tmp_path_factory.mktemp("state") / "state.safetensors"
    model = build_toy(TOY)
    train_gated(model, block_for(model), SHORT, checkpoint=path, progress=False)
    return path


def resume(path, config=SHORT, toy=TOY, layer=0, **block):
    model = build_toy(toy)
    return train_gated(
        model, block_for(model, **block), config, layer=layer, resume=path, progress=False
    )


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"config": SHORT.replace(lr=0.5)}, "with lr 0.02; this one has 0.5: resume with the same"),
        ({"config": SHORT.replace(steps=40)}, "with steps 20; this one has 40"),
        ({"toy": ToyConfig(n_trigrams=3, n_heads=2, seed=6)}, "with original weights '"),
        ({"penalty_p": 1.0}, "with penalty_p 0.6; this one has 1.0"),
        ({"d_gate": 2}, "with d_gate 1; this one has 2"),
    ],
)
def test_states_of_another_training_are_refused(state, other, words):
    with refuses("resume-with-other-settings", CheckpointError):
        resume(state, **other)


def test_a_state_of_another_kind_is_refused(state):
    with refuses("resume-with-other-settings", CheckpointError):
        train_model(TOY, SHORT, resume=state, progress=False)


def test_where_to_train_and_how_often_to_save_may_change(state):
    config = SHORT.replace(device="auto", checkpoint_every=7)
    assert resume(state, config).history["step"].iloc[-1] == 19


def test_files_that_are_no_whole_state_are_refused(state, tmp_path):
    with refuses("nothing-to-resume", CheckpointError):
        resume(tmp_path / "missing.safetensors")

    whole, path = state.read_bytes(), tmp_path / "broken.safetensors"
    for data in (b"", b"nonsense", whole[: len(whole) // 2], whole[:-1], whole[:100]):
        path.write_bytes(data)
        with refuses("training-state-incomplete", CheckpointError):
            resume(path)

    with safe_open(state, framework="pt") as file:
        metadata = file.metadata()
    tensors = load_file(state)
    save_file(tensors, path)
    with refuses("not-a-training-state", CheckpointError):
        resume(path)
    save_file(tensors, path, {**metadata, "version": "3"})
    with refuses("unknown-training-state-version", CheckpointError, version="3"):
        resume(path)
    for name in ("weight.W_Q", "adam.W_Q.exp_avg"):
        save_file({n: t for n, t in tensors.items() if n != name}, path, metadata)
        with refuses("training-state-lacks-a-tensor", CheckpointError, name="W_Q"):
            resume(path)
        save_file({**tensors, name: torch.zeros(3)}, path, metadata)
        with refuses("training-state-lacks-a-tensor", CheckpointError, name="W_Q"):
            resume(path)
    for name in ("state.fvu_control", "weight.fvu_control"):
        others = {n: t for n, t in tensors.items() if n != "state.fvu_control"}
        save_file({**others, name: torch.zeros(3)}, path, metadata)
        with refuses("training-state-lacks-a-tensor", CheckpointError, name="fvu_control"):
            resume(path)
    future = json.loads(metadata["identity"])
    future["config"]["colour"] = "red"
    save_file(tensors, path, {**metadata, "identity": json.dumps(future)})
    with refuses("config-unknown-field", CheckpointError):
        resume(path)
    for damage in ({"done": "x"}, {"columns": "["}, {"identity": "{"}):
        save_file(tensors, path, {**metadata, **damage})
        with refuses("training-state-damaged", CheckpointError):
            resume(path)


def test_a_refused_state_leaves_the_block_as_it_was(state):
    model = build_toy(TOY)
    block = block_for(model)
    before = weights(block)
    with pytest.raises(CheckpointError):
        train_gated(model, block, SHORT.replace(alpha=1.0), resume=state, progress=False)
    assert equal(weights(block), before)


def test_a_folder_is_no_checkpoint(tmp_path):
    with refuses("output-is-a-folder"):
        train_model(TOY, SHORT, checkpoint=tmp_path, progress=False)


def test_a_loss_that_is_not_finite_stops_in_one_sentence():
    model = build_toy(TOY)
    with refuses("loss-not-finite", step=1):
        train_gated(model, block_for(model), SHORT.replace(lr=1e25), progress=False)


def test_blocks_and_models_that_cannot_train_are_refused():
    model = deep_model()
    block = block_for(model)
    with refuses("no-such-layer", layer=3):
        train_gated(model, block, SHORT, layer=3, data=uniform)
    wide = GatedAttention(GatedConfig(d_model=D_MODEL + 1, n_heads=2))
    with refuses("block-width-mismatch", block=12, model=11):
        train_gated(model, wide, SHORT, layer=0, data=uniform)
    spliced = splice(model, 1, block, other_layer=True)
    with refuses("block-already-in-model"):
        train_gated(spliced, block, SHORT, layer=1, data=uniform)
    model.requires_grad_(False)
    with refuses("nothing-to-train"):
        train_model(model, SHORT, data=uniform)


def test_bad_data_are_refused_before_they_are_used():
    model = build_toy(TOY)

    def outside(n, source):
        return torch.full((n, 3), 8)

    for train in (
        lambda: train_gated(model, block_for(model), SHORT, layer=0, data=outside, progress=False),
        lambda: train_model(model, SHORT, data=outside, progress=False),
    ):
        with refuses("token-outside-vocabulary", token=8):
            train()


# What the loss is made of, by its own log.


@pytest.mark.parametrize("alpha_unit", ["absolute", "variance"])
def test_the_logged_parts_add_up_to_the_loss(alpha_unit):
    config = TrainConfig.plain(
        steps=8, batch_size=10, log_every=1, alpha=0.3, alpha_unit=alpha_unit, overlap=0.7,
        penalty_off=0.25, penalty_ramp=0.5, fvu_target=0.05, fvu_rate=0.1, fvu_from=0.2, seed=2,
        device="cpu",
    )  # fmt: skip
    model = build_toy(TOY)
    sample = draw(TASK, VARIANCE_SAMPLE, derive(2, Stream.VARIANCE), model)
    variance = output_variance(attention_io(model, 0, sample).output).item()
    rows = train_gated(model, block_for(model), config, progress=False).history
    ramp = rows["alpha"] / 0.3
    assert ramp.tolist() == pytest.approx([0, 0, 0, 0.25, 0.5, 0.75, 1, 1])
    assert (rows["factor"].iloc[3:] < 0.95).all()  # else it could be left out unnoticed
    assert not 0.9 < variance < 1.1
    unit = variance if alpha_unit == "variance" else 1.0
    penalties = unit * rows["alpha"] * rows["penalty"] + ramp * 0.7 * rows["overlap"]
    wanted = rows["reconstruction"] + rows["factor"] * penalties
    np.testing.assert_allclose(rows["loss"], wanted, rtol=1e-5)


def test_a_toy_resumes_with_its_own_frozen_weights_only(tmp_path):
    path = tmp_path / "state.safetensors"
    train_model(TOY, SHORT, checkpoint=path, progress=False)
    # Weights that train come from the file, whatever they were ...
    other = build_toy(TOY.replace(seed=6))
    assert len(train_model(other, SHORT, resume=path, progress=False).history) == 8
    # ... those that do not must be the same.
    frozen = build_toy(TOY)
    with torch.no_grad():
        frozen.embed.W_E[0, 1] = 0.5
    with refuses("resume-with-other-settings", CheckpointError, key="frozen weights"):
        train_model(frozen, SHORT, resume=path, progress=False)
