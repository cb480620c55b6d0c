"""Commands where something is missing or set oddly: a home, docstrings."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pytest
from commands import cli, one_sentence
from refusals import refuses, says

from gated_interp.core import files
from gated_interp.tasks.encoded_text import cache_folders, encoded
from gated_interp.tasks.text import TextTask

COMMAND = [sys.executable, "-m", "gated_interp.cli"]
# No HOME, and nobody of this number is known.
NOBODY = """
import os, pwd, sys
os.environ.pop("HOME", None)
def unknown(number):
    raise KeyError(number)
pwd.getpwuid = unknown
sys.argv = ["gated-interp", *sys.argv[1:]]
from gated_interp.cli import main
main()
"""


def ended(command, *args, **environment):
    """What a process printed; both streams, after it ended with 0."""
    found = subprocess.run(
        [*command, *map(str, args)], env=os.environ | environment, capture_output=True, text=True
    )
    assert found.returncode == 0, found.stderr
    assert "Traceback" not in found.stderr
    return found.stdout + found.stderr


@pytest.mark.slow
def test_a_user_without_a_home(tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("a line like many others, no more\n" * 300)
    out = tmp_path / "m.safetensors"
    nobody = [sys.executable, "-c", NOBODY]
    ended(nobody, "train-lm", text, "--vocab", 262, "--steps", 1, "--context", 8, "--d-model", 8,
          "--heads", 2, "--out", out)  # fmt: skip
    ended(nobody, "info", out)
    ended(nobody, "report", "2H3ST-toy", "--sequences", 9, "--out", tmp_path / "r.html")
    ended(nobody, "figures", "--help")


@pytest.fixture
def no_cache_chosen(monkeypatch):
    for name in ("GATED_INTERP_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)


def test_a_user_without_a_home_has_that_of_temporary_files(no_cache_chosen, monkeypatch):
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    assert files.home() == Path(tempfile.gettempdir())
    assert cache_folders()[0].parent.parent == files.home()


@pytest.mark.parametrize("variable", ["HOME", "XDG_CACHE_HOME"])
@pytest.mark.parametrize(
    "place", ["/proc", "/dev/null", "/proc/self/fdinfo/a", "{}/file", "{}/a/b"]
)
def test_ids_that_cannot_be_kept_are_temporary(
    variable, place, tmp_path, monkeypatch, no_cache_chosen
):
    (tmp_path / "file").write_text("")
    (tmp_path / "a").symlink_to("a")
    monkeypatch.setenv(variable, place.format(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    text = tmp_path / "text.txt"
    text.write_text("words and more of them\n" * 90)

    def sampled():
        encoded.cache_clear()
        return TextTask(text, 9, vocab=259).sample(3, seed=0).tokens

    tokens = sampled()
    (kept,) = (tmp_path / "temporary").iterdir()
    assert len(list(kept.iterdir())) == 2  # the ids and the tokenizer
    monkeypatch.setenv(variable, str(tmp_path / "usual"))
    assert sampled().equal(tokens)
    assert not (tmp_path / "usual").exists()  # what is there already is read
    text.write_text("other words\n" * 90)
    sampled()
    assert len(list((tmp_path / "usual").rglob("*.json"))) == 1
    assert len(list(kept.iterdir())) == 2
    monkeypatch.setenv("GATED_INTERP_CACHE", place.format(tmp_path))
    with refuses("cannot-write"):  # it was asked for
        sampled()


@pytest.mark.parametrize("how", [["-OO"], []])
def test_python_without_docstrings_is_a_sentence(how):
    set_ = {} if how else {"PYTHONOPTIMIZE": "2"}
    command = [sys.executable, *how, *COMMAND[1:], "verdict", "2H3ST-toy"]
    found = subprocess.run(command, env=os.environ | set_, capture_output=True, text=True)
    assert found.returncode == 1
    assert says("no-docstrings", found.stderr)
    assert found.stderr.count("\n") == 1
    ended([sys.executable, *how, "-c", "import gated_interp"], **set_)
    command = [sys.executable, *how, "-c", "import gated_interp as gi; gi.load('2H3ST-toy')"]
    found = subprocess.run(command, env=os.environ | set_, capture_output=True, text=True)
    assert says("no-docstrings", found.stderr)
    assert "transformers/" not in found.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    "args",
    [
        ["verdict", "3H4ST-gated"],
        ["report", "2H3ST-toy", "--sequences", "9", "--out", "r.html"],
        ["train-toy", "--steps", "1", "--out", "t.safetensors"],
        ["decompose", "2H3ST-toy", "--steps", "1", "--seeds", "2", "--workers", "2", "--out", "d"],
    ],
)
def test_warnings_that_are_errors(args, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))
    ended([sys.executable, "-W", "error", *COMMAND[1:]], *args)


def test_models_are_made_without_a_warning():
    """Also where nothing filters TransformerLens' own, as these tests do."""
    code = "import gated_interp as gi; gi.load('2H3ST-gated'); gi.load('austen-1l')"
    ended([sys.executable, "-W", "error::DeprecationWarning:transformer_lens", "-c", code])


@pytest.mark.parametrize("name", ["WORLD_SIZE", "RANK"])
@pytest.mark.parametrize("value", ["x", "", "-1", "2.0", "9" * 5000])
def test_a_launcher_that_names_no_number_is_a_sentence(name, value, monkeypatch):
    for other, usual in (("RANK", "0"), ("MASTER_ADDR", "localhost"), ("WORLD_SIZE", "1")):
        monkeypatch.setenv(other, usual)
    monkeypatch.setenv(name, value)
    said = one_sentence(cli("train-lm", code=1))
    assert says("bad-launcher-variable", said)


WORKING = """
import sys, time
from gated_interp.experiments.processes import in_processes
if __name__ == "__main__":
    list(in_processes([(k, time.sleep, (600,)) for k in range(4)], 2))
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_workers_run_nothing_from_here_and_end_at_once_without_a_word(number, tmp_path):
    for name in ("joblib", "multiprocessing", "gated_interp", "torch"):
        (tmp_path / f"{name}.py").write_text(f"open({str(tmp_path / 'RUN')!r}, 'w')")
    script = tmp_path / "scripts" / "start.py"
    script.parent.mkdir()
    script.write_text(WORKING)
    with subprocess.Popen(
        [sys.executable, script],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])},
        stderr=subprocess.PIPE,
        text=True,
    ) as started:
        process = psutil.Process(started.pid)
        end = time.monotonic() + 300

        def workers():
            family = process.children(recursive=True)
            return [c for c in family if "LokyProcess" in str(c.cmdline())]

        # Their first import, of torch, takes seconds; they are stopped in the midst of it.
        while len(workers()) < 2 and time.monotonic() < end:
            time.sleep(0.05)
        time.sleep(1)
        found = workers()
        started.send_signal(number)
        said = started.communicate(timeout=120)[1]
        assert not psutil.wait_procs(found, timeout=60)[1]
    assert "leaked" not in said
    assert not (tmp_path / "RUN").exists()
