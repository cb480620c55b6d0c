"""What a training tells: trackers, progress, and a target that it missed."""

import sys
import types

import pytest
from commands import cli, one_sentence

from gated_interp.cli import console
from gated_interp.core.errors import GatedInterpError, GatedInterpWarning
from gated_interp.experiments import decompose
from gated_interp.models.toy import ToyConfig, build_toy
from gated_interp.replacements.gated_attention import GatedAttention
from gated_interp.training import trackers
from gated_interp.training.config import TrainConfig
from gated_interp.training.fit import fit_gated
from gated_interp.training.loop import train_gated, train_model

SHAPE = ToyConfig(n_trigrams=2, n_heads=3, seed=4)


class Told:
    """A tracker that keeps what it is told."""

    def __init__(self):
        self.rows = []

    def __call__(self, step, numbers):
        self.rows.append({"step": step, **numbers})


def test_a_tracker_is_told_every_row_of_the_history():
    toy = build_toy(SHAPE)
    config = TrainConfig.toy(steps=7, log_every=3, evaluate_every=3, n_held_out=5)
    trained = []
    for train in (
        lambda t: train_model(SHAPE, config, tracker=t, progress=False),
        lambda t: train_gated(
            toy,
            GatedAttention.from_attention(toy.blocks[0].attn, 2),
            TrainConfig(steps=7, log_every=3),
            tracker=t,
            progress=False,
        ),
        lambda t: fit_gated(toy, steps=7, log_every=3, tracker=t, progress=False),
    ):
        told = Told()
        history = train(told).history
        assert [row["step"] for row in told.rows] == history["step"].tolist() == [0, 3, 6]
        assert told.rows == history.to_dict("records")
        trained.append(told.rows[-1])
    assert "held_out_cross_entropy" in trained[0]
    assert "fvu" in trained[1]
    assert "kl" in trained[2]


def test_the_commands_report_to_a_tracker_by_name(monkeypatch, tmp_path):
    said = []

    class SummaryWriter:
        def __init__(self, folder):
            self.folder = folder

        def add_scalar(self, name, value, step):
            said.append((self.folder, name, step))

        def flush(self):
            """Nothing waits."""

    run = types.SimpleNamespace(log=lambda numbers, step: said.append((set(numbers), step)))
    client = types.SimpleNamespace(init=lambda **how: said.append(how) or run)
    board = types.SimpleNamespace(SummaryWriter=SummaryWriter)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", board)
    monkeypatch.setitem(sys.modules, "wandb", client)
    few = ["--steps", 4, "--log-every", 2, "--batch-size", 5, "--data", "fresh"]
    cli("train-toy", *few, "--out", tmp_path / "a.safetensors", "--tracker", "tensorboard")
    assert {(name, step) for _, name, step in said} >= {("loss", 0), ("loss", 2), ("loss", 3)}
    assert {folder for folder, *_ in said} == {str(tmp_path / "a.tensorboard")}
    said.clear()
    cli("train-gated", "2H3ST-toy", *few, "--out", tmp_path / "b.safetensors", "--tracker", "wandb")
    how, *rows = said
    assert (how["project"], how["name"], how["config"]["steps"]) == ("gated-interp", "b", 4)
    assert [step for _, step in rows] == [0, 2, 3]
    assert all({"loss", "fvu"} <= names for names, _ in rows)


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_a_tracker_that_is_not_installed_is_a_sentence(name, monkeypatch, tmp_path):
    for module in ("torch.utils.tensorboard", "wandb"):
        monkeypatch.setitem(sys.modules, module, None)
    out = tmp_path / "t.safetensors"
    sentence = one_sentence(cli("train-toy", "--tracker", name, "--out", out, code=1))
    assert f"pip install {name}" in sentence
    assert not list(tmp_path.iterdir())
    with pytest.raises(GatedInterpError):
        trackers.tracker_named("paper", out, TrainConfig())


@pytest.mark.filterwarnings("error::gated_interp.core.errors.GatedInterpWarning")
def test_a_training_that_ends_above_its_target_warns(tmp_path):
    toy = build_toy(SHAPE)
    random = {"init": "random", "batch_size": 10, "lr": 1e-5, "progress": False}
    for fvu in (0.01, 0.3):
        with pytest.warns(GatedInterpWarning, match=f"above its target of {fvu}") as said:
            result = fit_gated(toy, steps=30, fvu=fvu, **random)
        assert str(said[0].message) == result.missed
    # Copies are exact from the start: however short their training, they are on target.
    assert fit_gated(toy, steps=3, fvu=0.05, lr=1e-6, progress=False).missed is None
    assert fit_gated(toy, steps=30, fvu_target=None, **random).missed is None
    with pytest.warns(GatedInterpWarning, match="layer 0, seed 5: the training"):
        decompose.decompose(toy, tmp_path, steps=20, seeds=1, first_seed=5, sequences=10, workers=1,
                            pages=False, init="random", lr=1e-5)  # fmt: skip


def test_progress_says_a_line_now_and_then_without_a_terminal(monkeypatch, capsys):
    monkeypatch.setattr(console, "EVERY", 0.02)
    said = []
    monkeypatch.setattr(console, "tell", said.append)
    with console.progress("reporting", "parts") as update:
        while not any("of 9" in line for line in said):
            update(4, 9)
    assert any(line.startswith("reporting: 4 of 9 parts, 0 s") for line in said)
    said.clear()
    with console.progress("drawing"):
        while not said:
            pass
    assert said[0].startswith("drawing: 0 s")
    monkeypatch.setattr(console, "is_main", lambda: False)
    said.clear()
    with console.progress("drawing") as update:
        update(1, 2)
    assert not said


def test_what_explore_cannot_open_is_only_an_error(tmp_path):
    (tmp_path / "m.safetensors").write_text("no model")
    assert "m.safetensors" in one_sentence(cli("explore", tmp_path / "m.safetensors", code=1))


def test_the_verdict_on_a_language_model_names_the_report():
    assert "gated-interp report austen-1l" in one_sentence(cli("verdict", "austen-1l", code=1))
