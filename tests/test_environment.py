"""Commands where something is missing or set oddly: a home, docstrings, a browser."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from gated_interp.core import files
from gated_interp.tasks.encoded_text import cache_folder

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


@pytest.mark.parametrize("browser", ["/nowhere", None])
@pytest.mark.slow
def test_a_user_without_a_home(browser, tmp_path):
    chosen = {} if browser is None else {"BROWSER_PATH": browser}
    text = tmp_path / "text.txt"
    text.write_text("a line like many others, no more\n" * 300)
    out = tmp_path / "m.safetensors"
    nobody = [sys.executable, "-c", NOBODY]
    ended(nobody, "train-lm", text, "--vocab", 262, "--steps", 1, "--context", 8, "--d-model", 8,
          "--heads", 2, "--out", out, **chosen)  # fmt: skip
    ended(nobody, "info", out, **chosen)
    ended(nobody, "report", "2H3ST-toy", "--sequences", 9, "--out", tmp_path / "r.html", **chosen)
    ended(nobody, "figures", "--help", **chosen)


def test_ids_of_a_user_without_a_home_are_temporary(monkeypatch):
    for name in ("GATED_INTERP_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    assert files.home() == Path(tempfile.gettempdir())
    assert cache_folder().parent.parent == files.home()


@pytest.mark.parametrize("how", [["-OO"], []])
def test_python_without_docstrings_is_a_sentence(how):
    set_ = {} if how else {"PYTHONOPTIMIZE": "2"}
    command = [sys.executable, *how, *COMMAND[1:], "verdict", "2H3ST-toy"]
    found = subprocess.run(command, env=os.environ | set_, capture_output=True, text=True)
    assert found.returncode == 1
    assert found.stderr.startswith("Error: Python was started without docstrings (-OO or PYTHONOP")
    assert found.stderr.count("\n") == 1
    ended([sys.executable, *how, *COMMAND[1:]], "--help", **set_)


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
