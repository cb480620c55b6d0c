"""train-lm: what trains, what is written, what is said, and what an interruption keeps."""

import json
import math
import signal
import subprocess
import sys
import time

import pandas as pd
import pytest
import torch
from closeness import assert_close
from commands import cli, one_sentence
from refusals import refuses, says

from gated_interp.analysis import circuit_tables
from gated_interp.analysis.circuits import ov_circuit
from gated_interp.checkpoints.checkpoint import load
from gated_interp.core.errors import CheckpointError
from gated_interp.core.seeds import derive
from gated_interp.core.shipped import shipped_names
from gated_interp.core.streams import Stream
from gated_interp.experiments.language import language_measures, language_settings, run_language
from gated_interp.experiments.single import state_of
from gated_interp.models.language_model import (
    LanguageModelConfig,
    LanguageTransformer,
    build_language_model,
)
from gated_interp.tasks.text import TextTask
from gated_interp.training.config import TrainConfig
from gated_interp.training.interrupt import TrainingInterrupted
from gated_interp.training.loop import train_model
from gated_interp.training.stacked.runs import why_not_in_config

TEXT = "".join(f"line {i} of a text, in which {i % 7} is said again\n" for i in range(300))
TINY = {"n_ctx": 12, "vocab": 270, "n_layers": 2, "n_heads": 3, "d_model": 15, "batch_size": 8}
FLAGS = ["--layers", "2", "--heads", "3", "--d-model", "15", "--context", "12", "--vocab", "270",
         "--batch-size", "8"]  # fmt: skip


@pytest.fixture
def text(tmp_path, monkeypatch):
    monkeypatch.setenv("GATED_INTERP_CACHE", str(tmp_path / "ids"))
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    return path


def weights(model):
    return {name: p.detach() for name, p in model.named_parameters()}


# ---- the loop


def test_the_training_is_adamw_with_warmup_cosine_decay_and_clipping(text):
    """The same by hand: every second step of 8 is looked at on held-out text."""
    task = TextTask(text, 12, vocab=270)
    shape = LanguageModelConfig(d_vocab=270, n_ctx=12, d_model=15, n_heads=3, seed=4)
    config = TrainConfig.language(
        steps=8, batch_size=5, lr=0.01, warmup=0.25, lr_decay=0.5, weight_decay=0.3,
        clip_norm=0.5, log_every=1, evaluate_every=2, n_held_out=6, seed=9, device="cpu",
    )  # fmt: skip
    result = train_model(build_language_model(shape, task), config, progress=False)

    model = build_language_model(shape, task)
    own = dict(model.named_parameters())
    matrices = [p for n, p in own.items() if ".W_" in n]
    others = [p for n, p in own.items() if ".W_" not in n]
    adam = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.3}, {"params": others, "weight_decay": 0.0}]
    )
    validation = task.part("validation").sample(6, derive(9, Stream.HELD_OUT_SET)).tokens
    rates = [0.005, 0.01, 0.01, 0.01, 0.01]
    rates += [0.005 * (1 + math.cos(math.pi * done)) for done in (0.25, 0.5, 0.75)]
    losses, held_out = [], []
    for step, rate in enumerate(rates):
        tokens = task.sample(5, derive(9, Stream.FRESH_BATCH, step)).tokens
        loss = model(tokens, return_type="loss")
        adam.zero_grad()
        loss.backward()
        losses.append(loss.item())
        if step % 2 == 0 or step == 7:
            with torch.no_grad():
                held_out.append(model(validation, return_type="loss").item())
        torch.nn.utils.clip_grad_norm_(own.values(), 0.5)
        for group in adam.param_groups:
            group["lr"] = rate
        adam.step()
    assert_close(result.history["lr"].tolist(), rates)
    assert_close(result.history["loss"].tolist(), losses)
    assert_close(result.history["held_out_cross_entropy"].dropna().tolist(), held_out)
    for name, parameter in own.items():
        assert_close(result.model.get_parameter(name), parameter, scale=1.0)


def test_biases_do_not_decay():
    """Without gradients only decay moves anything: weights shrink, biases and norms stay."""
    shape = LanguageModelConfig(d_vocab=300, n_ctx=5, d_model=16, normalization="LN")
    model = build_language_model(shape)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.ones_like(parameter) if ".W_U" not in name else 0 * parameter)
    before = {n: p.clone() for n, p in weights(model).items()}
    config = TrainConfig.language(
        steps=1, lr=0.1, warmup=0.0, weight_decay=0.5, clip_norm=None, evaluate_every=0
    )
    train_model(model, config, data=lambda n, source: torch.zeros(n, 5, dtype=torch.long),
              progress=False)  # fmt: skip
    for name in ("embed.W_E", "blocks.0.attn.W_Q"):
        assert_close(model.get_parameter(name), 0.95 * before[name])
    for name in ("blocks.0.attn.b_Q", "blocks.0.ln1.w"):
        assert torch.equal(model.get_parameter(name), before[name])


@pytest.mark.parametrize(
    ("wrong", "code"),
    [
        ({"warmup": 0.6, "lr_decay": 0.5}, "config-warmup-too-long"),
        ({"warmup": -0.1}, "config-not-a-share"),
        ({"weight_decay": -1.0}, "config-negative"),
        ({"decay_shape": "step"}, "config-wrong-type"),
    ],
)
def test_settings_that_cannot_be(wrong, code):
    with refuses(code):
        TrainConfig(**wrong)


def test_the_stacked_loop_leaves_these_settings_to_the_hooked_one():
    for changes in ({"warmup": 0.1}, {"weight_decay": 0.1}, {"decay_shape": "cosine"}):
        assert why_not_in_config(TrainConfig(**changes)) is not None


# ---- one training, written


@pytest.mark.parametrize("norm", ["LNPre", "LN", "none"])
def test_a_training_learns_and_is_written(norm, text, tmp_path):
    run = language_settings(text, **TINY, normalization=norm, steps=60, evaluate_every=20)
    out = tmp_path / "model.safetensors"
    trained = run_language(run, out)
    model = load(out)
    assert isinstance(model, LanguageTransformer)
    wanted = "LNPre" if norm == "LN" else norm
    assert model.language_config.normalization == wanted
    assert trained.history["loss"].iloc[-1] < trained.history["loss"].iloc[0] - 1
    assert trained.measures["cross_entropy"] < 0.7 * math.log(270)
    again = language_measures(model)
    assert_close(again["cross_entropy"], trained.measures["cross_entropy"])
    assert model.notes["cross_entropy"] == trained.measures["cross_entropy"]
    assert model.notes["training"]["steps"] == 60
    history = pd.read_csv(tmp_path / "model-history.csv")
    assert len(history) == 7
    assert not state_of(out).exists()


def test_repeated_text_trains_on_other_sequences(text, tmp_path):
    settings = {**TINY, "steps": 3, "log_every": 1, "evaluate_every": 0}
    plain, repeated = (
        run_language(language_settings(text, **settings, repeat=r), tmp_path / f"{r}.safetensors")
        for r in (0.0, 0.9)
    )
    assert plain.history["loss"][0] != repeated.history["loss"][0]
    assert repeated.model.notes == {}
    assert load(repeated.path).notes["training"]["repeat"] == 0.9


class Stopped:
    """Interrupts a training on its way to one batch."""

    def __init__(self, monkeypatch, at: int):
        sample, bad = TextTask.sample, derive(0, Stream.FRESH_BATCH, at)

        def stopping(task, n, seed):
            if seed == bad:
                monkeypatch.setattr(TextTask, "sample", sample)
                raise KeyboardInterrupt
            return sample(task, n, seed)

        monkeypatch.setattr(TextTask, "sample", stopping)


def test_a_resumed_training_ends_as_if_it_had_not_stopped(text, tmp_path, monkeypatch):
    run = language_settings(text, **TINY, steps=12, log_every=2, evaluate_every=4)
    whole = run_language(run, tmp_path / "whole.safetensors")
    Stopped(monkeypatch, at=7)
    parts = tmp_path / "parts.safetensors"
    with pytest.raises(TrainingInterrupted, match="after 7 of 12 steps"):
        run_language(run, parts)
    assert not parts.exists()
    with refuses("unfinished-training"):
        run_language(run, parts)
    resumed = run_language(run, parts, resume=True)
    assert parts.read_bytes() == (tmp_path / "whole.safetensors").read_bytes()
    pd.testing.assert_frame_equal(resumed.history, whole.history)
    with refuses("no-state-to-resume"):
        run_language(run, parts, resume=True)


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"seed": 1}, "resume-with-other-settings"),
        ({"steps": 13}, "resume-with-other-settings"),
        ({"vocab": 271}, "resume-with-other-settings"),
        ({"repeat": 0.5}, "resume-with-other-settings"),
        ({"n_heads": 5}, "resume-with-other-settings"),
    ],
)
def test_only_the_same_training_is_resumed(changes, code, text, tmp_path, monkeypatch):
    settings = {**TINY, "steps": 12, "log_every": 2, "evaluate_every": 4}
    out = tmp_path / "model.safetensors"
    Stopped(monkeypatch, at=3)
    with pytest.raises(TrainingInterrupted):
        run_language(language_settings(text, **settings), out)
    before = state_of(out).read_bytes()
    with refuses(code, CheckpointError):
        run_language(language_settings(text, **{**settings, **changes}), out, resume=True)
    assert state_of(out).read_bytes() == before
    assert not out.exists()


# ---- the command


def test_the_command_trains_writes_and_says(text, tmp_path):
    out = tmp_path / "model.safetensors"
    said = cli("train-lm", text, *FLAGS, "--steps", 4, "--positions", "shortformer",
               "--norm", "none", "--repeat", 0.2, "--seed", 3, "--out", out).stdout  # fmt: skip
    for words in ("cross_entropy", "unigram", "bigram", "L1H2", f"The model is in {out}."):
        assert words in said
    model = load(out)
    config = model.language_config
    assert (config.n_layers, config.n_heads, config.d_model, config.d_head) == (2, 3, 15, 5)
    assert (config.positions, config.normalization, config.seed) == ("shortformer", "none", 3)
    shown = cli("info", out).stdout
    assert "language_model" in shown
    assert f"TextTask('{text}', 270 tokens, 12 positions)" in shown
    as_json = json.loads(cli("info", out, "--json").stdout)
    assert as_json["model"]["config"]["n_layers"] == 2
    assert len(as_json["task"]["tokenizer"]) < 100


def test_commands_that_read_heads(text, tmp_path):
    out = tmp_path / "model.safetensors"
    cli("train-lm", text, *FLAGS, "--steps", 1, "--out", out)
    said = cli("ablate", out, "--out", tmp_path / "tables").stdout
    assert "Change in cross-entropy" in said
    table = pd.read_csv(tmp_path / "tables" / "model-ablation.csv")
    heads = {f"L{i}H{h}" for i in (0, 1) for h in range(3)}
    assert set(table["heads"]) == heads | {"all of layer 0", "all of layer 1", "all heads"}
    assert not table.duplicated(["heads", "method", "metric"]).any()
    assert set(table["method"]) == {"zero", "mean", "resample"}
    said = cli("circuits", out, "--out", tmp_path / "tables").stdout
    assert "L1H2" in said
    assert len(pd.read_csv(tmp_path / "tables" / "model-circuits.csv")) == 6
    assert "not known" in one_sentence(cli("verdict", out, code=1))
    cli("ablate", out, "--layer", 1, "--out", tmp_path / "layer")
    table = pd.read_csv(tmp_path / "layer" / "model-ablation.csv")
    wanted = {"L1H0", "L1H1", "L1H2", "all of layer 1", "all heads"}
    assert set(table["heads"]) == wanted
    cli("circuits", out, "--layer", 0, "--out", tmp_path / "layer")
    table = pd.read_csv(tmp_path / "layer" / "model-circuits.csv")
    assert table["head"].tolist() == ["L0H0", "L0H1", "L0H2"]
    for command in ("ablate", "circuits"):
        refused = one_sentence(cli(command, out, "--trigram", 1, code=1))
        assert says("no-trigrams-in-text", refused)
        assert says("no-such-layer", one_sentence(cli(command, out, "--layer", 2, code=1)))


def test_the_largest_entries_are_those_of_the_whole_matrix(monkeypatch):
    monkeypatch.setattr(circuit_tables, "ROWS", 7)
    model = build_language_model(LanguageModelConfig(d_vocab=31, n_ctx=5, d_model=16, n_heads=4))
    circuit = ov_circuit(model, 0, 2)
    for centred in (False, True):
        whole = circuit.matrix
        whole = whole - whole.mean(1, keepdim=True) if centred else whole
        found = circuit_tables.largest(circuit, 4, centred=centred)
        values, index = whole.flatten().topk(4)
        assert [row * 31 + column for row, column, _ in found] == index.tolist()
        assert_close([value for *_, value in found], values)


@pytest.mark.parametrize(
    ("args", "code"),
    [
        (["gone.txt"], "no-such-text"),
        (["--lr", "-1"], "config-not-positive"),
        (["--d-model", "2", "--heads", "4"], "config-not-positive"),
        (["--repeat", "2"], "share-out-of-range"),
        (["--tokenizer", "gone.json"], "cannot-read-tokenizer"),
        (["--context", "100000"], "text-too-short"),
        (["--resume"], "no-state-to-resume"),
        (["--evaluate-every", "3"], "config-measures-off-the-log"),
    ],
)
def test_bad_input_to_the_command(args, code, text, tmp_path):
    out = tmp_path / "model.safetensors"
    texts = [] if args[0] == "gone.txt" else [text]
    assert says(code, one_sentence(cli("train-lm", *texts, *args, "--out", out, code=1)))
    assert not list(tmp_path.glob("model*"))


def test_a_folder_as_out_is_refused_before_the_training(text, tmp_path):
    assert says(
        "output-is-a-folder", one_sentence(cli("train-lm", text, "--out", tmp_path, code=1))
    )


@pytest.mark.slow
def test_ctrl_c_saves_and_the_command_goes_on(text, tmp_path):
    whole, parts = tmp_path / "whole.safetensors", tmp_path / "parts.safetensors"
    command = [sys.executable, "-m", "gated_interp.cli", "train-lm", text, *FLAGS,
               "--steps", "400", "--checkpoint-every", "5", "--device", "cpu", "--out"]  # fmt: skip
    command = [str(word) for word in command]
    subprocess.run([*command, whole], check=True, capture_output=True)
    with subprocess.Popen([*command, parts], stderr=subprocess.PIPE, text=True) as process:
        end = time.monotonic() + 300
        while not state_of(parts).exists() and time.monotonic() < end:
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=120)
    assert process.returncode == 130
    assert said.startswith("Interrupted after ")
    assert said.endswith(" --resume\n")
    assert not parts.exists()
    subprocess.run([*command, parts, "--resume"], check=True, capture_output=True)
    assert parts.read_bytes() == whole.read_bytes()


# ---- the models that ship


SHIPPED = [name for name in ("austen-1l", "austen-2l") if name in shipped_names()]


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_model_is_small_and_knows_its_text(name):
    model = load(name)
    assert model.task.text == ("austen",)
    assert model.notes["cross_entropy"] < model.notes["bigram"] < model.notes["unigram"]
    assert sum(p.numel() for p in model.parameters()) * 4 < 5_000_000


@pytest.mark.slow
@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_model_has_the_loss_that_its_notes_say(name, tmp_path, monkeypatch):
    monkeypatch.setenv("GATED_INTERP_CACHE", str(tmp_path))
    model = load(name)
    found = language_measures(model)
    for measure in ("cross_entropy", "unigram", "bigram"):
        assert_close(found[measure], model.notes[measure], scale=10.0)
    assert found["tokens"] == model.notes["tokens"]
