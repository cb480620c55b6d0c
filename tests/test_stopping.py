"""Commands that are stopped from outside: what they keep, what they leave running, how they end."""

import contextlib
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import psutil
import pytest
from commands import invoke
from refusals import says

from gated_interp.core.errors import GatedInterpError
from gated_interp.core.signals import Terminated, signal_behind, stop_on_sigterm, uninterrupted
from gated_interp.experiments import single
from gated_interp.experiments.processes import in_processes
from gated_interp.experiments.study import StudyInterrupted
from gated_interp.training.interrupt import TrainingInterrupted

COMMAND = [sys.executable, "-m", "gated_interp.cli"]


# ---- the signal


@pytest.fixture
def sigterm_heard():
    before = signal.getsignal(signal.SIGTERM)
    stop_on_sigterm()
    yield
    signal.signal(signal.SIGTERM, before)


def test_sigterm_is_a_ctrl_c_that_knows_its_name(sigterm_heard):
    with pytest.raises(Terminated) as stop:
        signal.raise_signal(signal.SIGTERM)
    outer = TrainingInterrupted(3, 9, None)
    outer.__cause__ = StudyInterrupted("stopped")
    assert signal_behind(outer) == signal.SIGINT
    outer.__cause__.__cause__ = stop.value
    assert signal_behind(outer) == signal.SIGTERM


@pytest.mark.parametrize("checkpoint", [None, Path("a b.state")])
def test_an_interrupted_training_comes_whole_out_of_another_process(checkpoint):
    was = TrainingInterrupted(5, 8, checkpoint)
    found = pickle.loads(pickle.dumps(was))
    assert (str(found), found.step, found.checkpoint) == (str(was), 5, checkpoint)


def test_sigterm_is_held_back_like_ctrl_c(sigterm_heard):
    done, before = [], signal.getsignal(signal.SIGTERM)

    def work():
        with uninterrupted():
            signal.raise_signal(signal.SIGTERM)
            done.append("the rest")

    with pytest.raises(Terminated):
        work()
    assert done == ["the rest"]
    assert signal.getsignal(signal.SIGTERM) is before


def test_sigterm_ends_with_143_and_says_how_to_go_on(monkeypatch, tmp_path):
    def terminated(*_, checkpoint, **__):
        raise TrainingInterrupted(3, 9, checkpoint) from Terminated()

    monkeypatch.setattr(single, "train_model", terminated)
    monkeypatch.setattr(sys, "argv", ["gated-interp", "train-toy"])
    result = invoke(["train-toy", "--out", str(tmp_path / "toy.safetensors")])
    assert result.exit_code == 128 + signal.SIGTERM == 143
    assert result.stderr == (
        "Terminated after 3 steps; to go on: gated-interp train-toy --resume\n"
    )


def test_a_command_that_goes_on_by_itself_is_not_told_to_resume(monkeypatch, tmp_path):
    """Even where one training of its own was stopped, whose state it keeps."""

    def terminated(*_, **__):
        raise TrainingInterrupted(3, 9, tmp_path / "L0-seed0.safetensors.state") from Terminated()

    given = ["decompose", "2H3ST-toy", "--out", str(tmp_path)]
    monkeypatch.setattr("gated_interp.experiments.decompose.decompose", terminated)
    monkeypatch.setattr(sys, "argv", ["gated-interp", *given])
    result = invoke(given)
    assert result.exit_code == 143
    again = " ".join(["gated-interp", *given])
    assert result.stderr.endswith(f"Terminated; what had finished is kept. To go on: {again}\n")


# ---- real processes


@contextlib.contextmanager
def started(*args, cwd=None):
    """A process, ended with all its children whatever happens."""
    process = psutil.Popen(
        [str(a) for a in args], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=cwd
    )
    try:
        yield process
    finally:
        family = [process]
        with contextlib.suppress(psutil.NoSuchProcess):
            family += process.children(recursive=True)
        for member in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                member.kill()
        process.communicate()


def wait_for(what, seconds=500):
    end = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < end, "it never came"
        time.sleep(0.05)
    return found


def workers_of(process, n=2):
    """The ``n`` processes that compute for ``process``, once they do."""

    def busy():
        there = [c for c in process.children(recursive=True) if "LokyProcess" in str(c.cmdline())]
        return there if len(there) == n and all(c.cpu_times().user > 2 for c in there) else None

    return wait_for(busy)


def gone(members, seconds=60):
    """Whether all of these processes end."""
    _, alive = psutil.wait_procs(members, timeout=seconds)
    return not alive


# Cells that take minutes.
LONG = {
    "reproduce": ["--seeds", 64, "--workers", 2],
    "sweep": ["--heads", "1,8", "--trigrams", "1,12", "--seeds", 32, "--toy-steps", 9000,
              "--workers", 2],
    "reliability": ["--only", "8H12ST", "--seeds", 64, "--workers", 2],
    "phase": ["--heads", "8", "--trigrams", "11:12", "--seeds", 64, "--workers", 2],
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("command", LONG)
def test_a_stop_is_one_sentence_and_leaves_no_worker_behind(command, number, tmp_path):
    args = [*COMMAND, command, *LONG[command], "--out", tmp_path / "run"]
    with started(*args, cwd=tmp_path) as process:
        workers = workers_of(process)
        for member in [process, *(workers if number == signal.SIGINT else [])]:
            member.send_signal(number)  # a scheduler may stop the parent alone, Ctrl-C stops all
        out, err = process.communicate(timeout=120)
        assert process.returncode == 128 + number
        ended = "Terminated" if number == signal.SIGTERM else "Interrupted"
        again = " ".join(map(str, args[3:]))
        assert err == f"{ended}; what had finished is kept. To go on: gated-interp {again}\n"
        assert out == ""
        assert gone(workers)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_program_that_uses_the_package_leaves_no_worker_behind(number, tmp_path):
    script = tmp_path / "main.py"
    script.write_text(
        "import time\n"
        "from gated_interp.experiments.processes import in_processes\n"
        "from gated_interp.tasks.skip_trigrams import SkipTrigramTask\n"
        "if __name__ == '__main__':\n"
        "    many = [(k, SkipTrigramTask(9).sample, (10**7, k)) for k in range(99)]\n"
        "    list(in_processes(many, 2))\n"
    )
    with started(sys.executable, script) as process:
        workers = workers_of(process)
        process.send_signal(number)
        process.wait(60)
        assert gone(workers)


@pytest.mark.slow
@pytest.mark.parametrize("command", ["reproduce", "sweep"])
def test_a_killed_worker_is_one_sentence(command, tmp_path):
    args = [*COMMAND, command, *LONG[command], "--out", tmp_path / "run"]
    with started(*args, cwd=tmp_path) as process:
        workers = workers_of(process)
        workers[0].kill()
        out, err = process.communicate(timeout=120)
        assert process.returncode == 1
        assert says("worker-ended", err)
        assert err.count("\n") == 1
        assert out == ""
        assert gone(workers)


@pytest.mark.slow
def test_a_terminated_sweep_keeps_its_cells(tmp_path):
    args = [*COMMAND, "sweep", "--heads", "1,8", "--trigrams", "1", "--seeds", 4, "--steps", 300,
            "--toy-steps", 3000, "--workers", 2, "--out", tmp_path / "run"]  # fmt: skip
    with started(*args) as process:
        table = tmp_path / "run" / "sweep.csv"
        wait_for(lambda: table.exists() and table.read_text().count("\n") > 1)
        process.terminate()
        process.communicate(timeout=120)
    assert len(pd.read_csv(table)) >= 1


@pytest.mark.slow
def test_a_terminated_training_goes_on(tmp_path):
    path, state = tmp_path / "toy.safetensors", tmp_path / "toy.safetensors.state"
    args = [*COMMAND, "train-toy", "--steps", 100_000, "--checkpoint-every", 5, "--out", path]
    with started(*args) as process:
        wait_for(state.exists)
        process.terminate()
        out, err = process.communicate(timeout=120)
        assert process.returncode == 143
        assert err.startswith("Terminated after ")
        assert err.endswith(" --resume\n")
        assert err.count("\n") == 1
        assert out == ""
    assert sorted(os.listdir(tmp_path)) == [state.name]


@pytest.mark.slow
@pytest.mark.parametrize("error", [KeyboardInterrupt(), GatedInterpError("disk-full")])
def test_workers_end_when_what_uses_their_results_fails(error):
    """A disk that is full, Ctrl-C between two results: nobody waits for the rest."""
    jobs = [(k, time.sleep, (0.01 if k == 0 else 600,)) for k in range(4)]
    found = []

    def use():
        for _ in in_processes(jobs, 2):
            found.extend(psutil.Process().children(recursive=True))
            raise error

    with pytest.raises(type(error)):
        use()
    workers = [c for c in found if not c.is_running() or "LokyProcess" in str(c.cmdline())]
    assert len(workers) >= 2
    assert gone(workers)
