"""The public names: all there, none by surprise, and cheap to import."""

import ast
import inspect
import os
import subprocess
import sys
import typing
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


def public():
    """Every public thing by its path, such as ``analytic.manual_model``."""
    for name in gated_interp.__all__:
        thing = getattr(gated_interp, name)
        yield name, thing
        if inspect.ismodule(thing):
            yield from ((f"{name}.{inner}", getattr(thing, inner)) for inner in thing.__all__)


def named_in(annotation):
    """The classes that an annotation names, its arguments' too."""
    for argument in typing.get_args(annotation):
        yield from named_in(argument)
    yield typing.get_origin(annotation) or annotation


def test_what_public_functions_return_is_public():
    things = dict(public())
    known, missing = {id(thing) for thing in things.values()}, []
    for path, thing in things.items():
        if not inspect.isfunction(thing):
            continue
        for found in named_in(inspect.signature(thing).return_annotation):
            ours = getattr(found, "__module__", "").startswith("gated_interp")
            if ours and not isinstance(found, typing.TypeVar) and id(found) not in known:
                missing.append((path, found.__name__))
    assert not missing


def test_there_are_no_more_than_eighty_names_at_the_top():
    modules = [n for n in gated_interp.__all__ if inspect.ismodule(getattr(gated_interp, n))]
    assert len(gated_interp.__all__) - len(modules) <= 80
    assert set(modules) == {"analytic", "anatomy", "plots", "studies", "tasks", "text", "types"}


def test_importing_the_package_imports_nothing_heavy():
    code = "import sys, gated_interp; print('torch' in sys.modules, 'plotly' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["False", "False"]


@pytest.mark.parametrize("package", [gated_interp, gated_interp.studies])
def test_the_stub_names_every_public_name_once(package):
    """The package reads it line by line; Python's own parser finds the same."""
    stub = ast.parse(Path(package.__file__).with_suffix(".pyi").read_text(encoding="utf-8"))
    imports = [node for node in stub.body if isinstance(node, ast.ImportFrom)]
    names = [alias.asname for node in imports for alias in node.names]
    assert sorted(names) == [name for name in package.__all__ if name != "__version__"]
    assert len(names) == len(set(names)) > 10


USERS_FILE = """
from typing import assert_type

import gated_interp as gi
from gated_interp import SkipTrigramTask, load
from gated_interp.types import Verdict

task = SkipTrigramTask(n_trigrams=3)
assert_type(task, gi.SkipTrigramTask)
assert_type(task.sample(5, seed=0), gi.tasks.TrigramBatch)
model = load("2H3ST-gated")
assert_type(model, gi.types.TaskTransformer)
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
    # Of what others wrote only the standard library is read: the rest takes a minute.
    settings = "[mypy]\nfollow_imports = skip\n[mypy-gated_interp.*]\nfollow_imports = silent\n"
    (tmp_path / "mypy.ini").write_text(settings, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--no-pretty",
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
