"""The public names: all there, none by surprise, and cheap to import."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

import gated_interp


@pytest.mark.parametrize("name", gated_interp.__all__)
def test_every_public_name_is_there(name):
    assert getattr(gated_interp, name) is not None
    assert name in dir(gated_interp)


# Their examples need the network, so they are no doctests.
ON_THE_NETWORK = {"from_hub", "push_to_hub"}


@pytest.mark.parametrize("name", [n for n in gated_interp.__all__ if n != "__version__"])
def test_every_public_name_is_explained_with_an_example(name):
    thing = getattr(gated_interp, name)
    # Its own words, not those that dataclasses or a base class make up.
    words = vars(thing)["__doc__"] if isinstance(thing, type) else thing.__doc__
    assert words
    assert not words.startswith(f"{name}(")
    assert "Examples:" in words
    assert (">>> " in words) is (name not in ON_THE_NETWORK)
    assert "+SKIP" not in words


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = gated_interp.nothing


def test_importing_the_package_imports_nothing_heavy():
    code = "import sys, gated_interp; print('torch' in sys.modules, 'plotly' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["False", "False"]


def test_the_stub_names_every_public_name_once():
    """The package reads it line by line; Python's own parser finds the same."""
    stub = ast.parse(Path(gated_interp.__file__).with_suffix(".pyi").read_text(encoding="utf-8"))
    imports = [node for node in stub.body if isinstance(node, ast.ImportFrom)]
    names = [alias.asname for node in imports for alias in node.names]
    assert sorted([*names, "__version__"]) == gated_interp.__all__
    assert len(names) == len(set(names)) > 40


USERS_FILE = """
from typing import assert_type

import gated_interp as gi
from gated_interp import SkipTrigramTask, Verdict, load

task = SkipTrigramTask(n_trigrams=3)
assert_type(task, gi.SkipTrigramTask)
assert_type(task.sample(5, seed=0), gi.TrigramBatch)
model = load("2H3ST-gated")
assert_type(model, gi.TaskTransformer)
toy = gi.build_toy(gi.ToyConfig(n_trigrams=3, n_heads=2))
assert_type(toy.task, SkipTrigramTask)
assert_type(toy.toy_config, gi.ToyConfig | None)
found = gi.verdict(model, model.task)
assert_type(found, Verdict)
assert_type(found.owners, dict[int, list[int]])
assert_type(gi.GatedConfig(d_model=8, n_heads=4).replace(n_heads=5), gi.GatedConfig)
assert_type(gi.__version__, str)
gi.TrainConfig(steps="many")
gi.shaply(model, task)
"""


@pytest.mark.slow
def test_a_users_type_checker_sees_the_public_types(tmp_path):
    """What a user writes is checked: what is right passes, a wrong type and a typo do not."""
    (tmp_path / "user.py").write_text(USERS_FILE, encoding="utf-8")
    settings = "[mypy]\n[mypy-transformer_lens.*]\nfollow_imports = skip\n"
    (tmp_path / "mypy.ini").write_text(settings, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent", "--no-pretty",
         "--cache-dir", tmp_path / "cache", "user.py"],
        cwd=tmp_path, capture_output=True, text=True,
        env={**os.environ, "MYPYPATH": str(Path(gated_interp.__file__).parents[1])},
    )  # fmt: skip
    *said, _ = done.stdout.splitlines()
    lines = USERS_FILE.splitlines()
    at = {n + 1: line for n, line in enumerate(lines) if "many" in line or "shaply" in line}
    assert [int(line.split(":")[1]) for line in said] == list(at), done.stdout + done.stderr
    assert "[arg-type]" in said[0]
    assert "[attr-defined]" in said[1]
