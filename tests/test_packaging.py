"""What a stranger installs: the wheel, the constraints and the make targets."""

import re
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import gated_interp

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
TARGETS = ["setup", "reproduce", "test", "test-all", "check", "format", "bench", "clean", "help"]


def constraints():
    """Version by canonical name."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return {
        canonicalize_name(name): number
        for name, number in (line.split("==") for line in lines if not line.startswith("#"))
    }


def requirements():
    groups = [PROJECT["dependencies"], *PROJECT["optional-dependencies"].values()]
    found = [Requirement(line) for group in groups for line in group]
    return [r for r in found if r.name != PROJECT["name"]]


def test_one_version_everywhere():
    assert gated_interp.__version__ == PROJECT["version"] == version("gated-interp")
    cited = re.search(r"^version: (.*)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)
    changed = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert cited is not None
    assert changed is not None
    assert cited[1] == changed[1] == PROJECT["version"]


def test_every_requirement_has_a_tested_version_that_satisfies_it():
    tested = constraints()
    for requirement in requirements():
        assert requirement.specifier.contains(tested[canonicalize_name(requirement.name)]), (
            requirement
        )


def test_constraints_are_exact_versions_that_plain_pip_finds_anywhere():
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = [line for line in lines if not line.startswith("#")]
    assert len(pinned) > 100
    for line in pinned:
        # No addresses, hashes, editable installs or local builds such as +cpu.
        assert re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.!]+", line), line
    assert "gated-interp" not in constraints()
    assert len(constraints()) == len(pinned)


def test_make_lists_its_targets():
    listed = subprocess.run(["make", "-s"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert set(TARGETS) <= {line.split()[0] for line in listed.stdout.splitlines()}


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("test", '-m "not slow"'),
        ("test-all", "pytest"),
        ("reproduce", "gated-interp reproduce"),
        ("bench", "tests/bench.py"),
        ("check", "lint-imports"),
        ("docs", "sphinx -q -W"),
        ("dist", "tests/smoke.py dist constraints.txt"),
    ],
)
def test_what_make_would_run(target, said):
    plan = subprocess.run(
        ["make", "-n", target], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert said in plan.stdout


def test_ci_checks_builds_and_tests():
    lines = (ROOT / ".ci/run").read_text(encoding="utf-8").splitlines()
    made = [line.removeprefix("make ") for line in lines if line.startswith("make ")]
    assert made == ["setup", "check", "dist", "smollm2", "test-all"]


@pytest.mark.slow
def test_the_wheel_holds_the_package_its_models_and_its_command(tmp_path):
    pip = [sys.executable, "-m", "pip", "-q", "--disable-pip-version-check"]
    subprocess.run(
        [*pip, "wheel", "--no-deps", "--no-build-isolation", "--no-index", "-w", tmp_path, ROOT],
        check=True,
        capture_output=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        (entry_points,) = [n for n in names if n.endswith("entry_points.txt")]
        assert "gated-interp = gated_interp.cli:main" in archive.read(entry_points).decode()
    here = {
        f"gated_interp/{path.relative_to(ROOT / 'gated_interp').as_posix()}"
        for path in (ROOT / "gated_interp").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert {n for n in names if ".dist-info/" not in n} == here
    assert "gated_interp/py.typed" in names

    target = tmp_path / "installed"
    subprocess.run(
        [*pip, "install", "--no-deps", "--no-index", "--target", target, wheel],
        check=True,
        capture_output=True,
    )
    code = (
        f"import sys; sys.path.insert(0, {str(target)!r})\n"
        "import gated_interp\n"
        "from gated_interp.core.shipped import shipped_names\n"
        "print(gated_interp.__file__)\n"
        "for name in shipped_names(): print(gated_interp.load(name).model_name)"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    where, *loaded = found.stdout.split()
    assert Path(where).is_relative_to(target)
    shipped = ROOT / "gated_interp" / "checkpoints" / "shipped_models"
    assert loaded == sorted(path.stem for path in shipped.glob("*.safetensors"))
