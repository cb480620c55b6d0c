"""Several processes, one training: the same as one process has it, stopped and killed."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import psutil
import pytest
import torch
from commands import cli, one_sentence
from refusals import refuses, says
from safetensors import safe_open
from shared_trainings import CASES, SHAPE, bigrams, told
from test_train_lm import FLAGS, TEXT

from gated_interp.cli.console import say, tell
from gated_interp.core.launch import is_main, n_processes, rank
from gated_interp.core.signals import STOPS, Terminated
from gated_interp.experiments.single import state_of, write_trained
from gated_interp.metrics.reconstruction import variation
from gated_interp.models.language_model import build_language_model
from gated_interp.training.config import TrainConfig
from gated_interp.training.loop import train_model
from gated_interp.training.processes import Several

ROOT = Path(__file__).parent.parent


@pytest.fixture
def second_of_two(monkeypatch):
    """As a launcher would start the second of two processes."""
    for name, value in (("WORLD_SIZE", "2"), ("RANK", "1"), ("MASTER_ADDR", "127.0.0.1")):
        monkeypatch.setenv(name, value)


def test_a_launcher_says_how_many_and_which(second_of_two, monkeypatch):
    assert (n_processes(), rank(), is_main()) == (2, 1, False)
    monkeypatch.setenv("RANK", "0")
    assert is_main()
    monkeypatch.delenv("MASTER_ADDR")  # a scheduler's WORLD_SIZE is no launcher
    monkeypatch.setenv("RANK", "1")
    assert (n_processes(), rank(), is_main()) == (1, 0, True)


def test_a_batch_that_cannot_be_shared_equally_is_refused(second_of_two):
    model = build_language_model(SHAPE)
    config = TrainConfig.language(batch_size=5, device="cpu")
    with refuses("batch-not-shared-equally", batch_size=5, size=2):
        train_model(model, config, data=bigrams, progress=False)


def test_without_accelerate_a_sentence_names_the_extra(second_of_two, monkeypatch):
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with refuses("accelerate-package-missing"):
        train_model(build_language_model(SHAPE), TrainConfig.language(device="cpu"), data=bigrams)


def test_only_the_first_prints_results_and_writes_files(second_of_two, capsys, tmp_path):
    say("a result")
    tell("Error: no.")
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err == "Process 1: Error: no.\n"
    write_trained(build_language_model(SHAPE), tmp_path / "model.safetensors", {}, pd.DataFrame())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", [["reproduce"], ["info", "2H3ST"]])
def test_commands_that_processes_cannot_share_are_refused(command, second_of_two, monkeypatch):
    monkeypatch.setenv("RANK", "0")
    sentence = one_sentence(cli(*command, code=1))
    assert says("not-for-several-processes", sentence)


def test_the_variation_of_shares_adds_up_to_that_of_the_whole():
    target = torch.randn(6, 4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    centre = target.mean((0, 1))
    parts = [variation(part, centre) for part in target.chunk(2)]
    torch.testing.assert_close(torch.cat(parts), variation(target))
    assert not torch.allclose(parts[0], variation(target[:3]))


def environment(tmp_path) -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT), "GATED_INTERP_CACHE": str(tmp_path / "ids")}


@pytest.mark.parametrize(("heard", "error"), [([0, 1], Terminated), ([1, 0], KeyboardInterrupt)])
def test_a_step_ends_where_any_process_heard_a_signal_a_step_ago(heard, error):
    """Without a group to join: what its messages say is put in by hand."""
    group = Several.__new__(Several)
    group.heard, group.asked, group.asked_before = [signal.SIGTERM], None, None
    group.stop()
    assert STOPS == (signal.SIGINT, signal.SIGTERM)
    for asked in ([0.0, 0.0], [h / 2 for h in heard]):
        group.asked = torch.tensor(asked)
        group.stop()
    with pytest.raises(error) as raised:
        group.stop()
    assert raised.type is error
    assert group.heard == []


@pytest.mark.slow
@pytest.mark.numeric
@pytest.mark.timeout(1800)
def test_two_processes_have_the_history_and_weights_of_one(tmp_path):
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    subprocess.run(
        [sys.executable, *command, ROOT / "tests" / "shared_trainings.py", tmp_path],
        check=True, capture_output=True, env=environment(tmp_path),
    )  # fmt: skip
    first, second = (json.loads((tmp_path / f"{n}.json").read_text()) for n in (0, 1))
    assert json.dumps(first) == json.dumps(second)
    for name, case in CASES.items():
        alone, together = told(case()), first[name]
        assert list(alone) == list(together)
        single = "float32" in name
        columns = ["loss"] if single else list(alone)
        for column in columns:
            # Adam divides by the size of gradients: where they vanish, roundings make steps.
            torch.testing.assert_close(
                torch.tensor(together[column], dtype=torch.float64),
                torch.tensor(alone[column], dtype=torch.float64),
                rtol=0, atol=1e-4 if single else 1e-9, equal_nan=True, msg=f"{name}: {column}",
            )  # fmt: skip
        # A block that starts as an exact copy has no loss to lose: its gates shut.
        falls = "l0" if "gated" in name else "loss"
        assert alone[falls][-1] < alone[falls][0]
        assert "factor" not in alone or alone["factor"][-1] != 1


class Launched:
    """``train-lm`` in two processes of this machine."""

    def __init__(self, tmp_path: Path, out: Path, *options: str):
        text = tmp_path / "text.txt"
        text.write_text(TEXT)
        launcher = [
            "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2",
            "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no",
            "--main_process_port", "0", "-m", "gated_interp.cli",
        ]  # fmt: skip
        self.state = state_of(out)
        command = [
            "train-lm", text, *FLAGS, "--steps", "60", "--checkpoint-every", "5", "--log-every",
            "5", "--evaluate-every", "20", "--device", "cpu", "--out", out, *options,
        ]  # fmt: skip
        self.process = subprocess.Popen(
            [sys.executable, *launcher, *map(str, command)], text=True, env=environment(tmp_path),
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def send(self, number: signal.Signals, at: int) -> None:
        """Send a signal to the second process once ``at`` steps are saved."""
        end = time.monotonic() + 600
        while self.saved() < at and self.process.poll() is None and time.monotonic() < end:
            time.sleep(0.05)
        children = psutil.Process(self.process.pid).children(recursive=True)
        (second,) = [child for child in children if child.environ().get("RANK") == "1"]
        second.send_signal(number)

    def saved(self) -> int:
        """Steps in the saved state."""
        if not self.state.exists():
            return 0
        with safe_open(self.state, framework="pt") as file:
            return int(file.metadata()["done"])

    def end(self) -> str:
        """What was printed."""
        return self.process.communicate(timeout=600)[0]


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_a_training_whose_processes_are_killed_or_stopped_goes_on(tmp_path):
    whole, parts = tmp_path / "whole.safetensors", tmp_path / "parts.safetensors"
    launched = Launched(tmp_path, whole)
    said = launched.end()
    assert launched.process.returncode == 0, said
    assert said.count("The model is in") == 1

    launched = Launched(tmp_path, parts)
    launched.send(signal.SIGKILL, at=5)
    said = launched.end()
    assert launched.process.returncode != 0
    assert not parts.exists()
    killed_at = launched.saved()
    assert 5 <= killed_at < 50
    assert killed_at % 5 == 0

    launched = Launched(tmp_path, parts, "--resume")
    launched.send(signal.SIGTERM, at=killed_at + 5)
    said = launched.end()
    assert launched.process.returncode != 0
    assert f"Terminated after {launched.saved()} steps; to go on: launch the same again" in said
    assert killed_at + 5 <= launched.saved() < 60
    assert not parts.exists()

    launched = Launched(tmp_path, parts, "--resume")
    said = launched.end()
    assert launched.process.returncode == 0, said
    assert parts.read_bytes() == whole.read_bytes()
    assert not launched.state.exists()
