"""The comparison itself: it fails where it should, and says how much of its tolerance was used."""

import subprocess
import sys
from pathlib import Path

import closeness
import pytest
import torch
from closeness import ALLOWED, HEADROOM, assert_close

WANTED = torch.tensor([3.0, -0.001, 0.5])
EPS = torch.finfo(torch.float32).eps


@pytest.fixture(autouse=True)
def own_record(monkeypatch):
    """What fails here on purpose is no comparison of the package's."""
    monkeypatch.setattr(closeness, "shares", closeness.defaultdict(float))
    monkeypatch.setattr(closeness, "strict", False)


def test_rounding_passes_and_a_wrong_factor_does_not():
    assert_close(WANTED * (1 + 10 * EPS), WANTED)
    for wrong in (1.01 * WANTED, WANTED + 1e-3, WANTED.flip(0), torch.full((3,), torch.nan)):
        with pytest.raises(AssertionError, match="of the tolerance"):
            assert_close(wrong, WANTED)
    # Not even where a sum of thousands is excused.
    with pytest.raises(AssertionError, match="of the tolerance"):
        assert_close(1.01 * WANTED, WANTED, roundings=8000)


def test_the_tolerance_is_counted_in_roundings_of_the_largest_entry():
    tolerance = HEADROOM * 7 * EPS * 3
    for share in (0.1, 0.9):
        assert_close(WANTED.double() + share * tolerance, WANTED.double(), roundings=7,
                     dtype=torch.float32)  # fmt: skip
        assert max(closeness.shares.values()) == pytest.approx(share, rel=1e-3)
    with pytest.raises(AssertionError):  # in float64 that is no rounding
        assert_close(WANTED.double() + 0.1 * tolerance, WANTED.double(), roundings=7)
    with pytest.raises(AssertionError):  # nor where each entry has a size of its own
        assert_close(WANTED + 0.1 * tolerance, WANTED, roundings=7, scale=WANTED.abs())


def test_more_than_a_fifth_fails_when_shares_are_asked_for(monkeypatch):
    moved = WANTED.double() + 1.1 * ALLOWED * HEADROOM * 32 * EPS * 3
    assert_close(moved, WANTED.double(), dtype=torch.float32)
    monkeypatch.setattr(closeness, "strict", True)
    with pytest.raises(AssertionError, match=r"0\.22 of the tolerance; 0\.2 is allowed"):
        assert_close(moved, WANTED.double(), dtype=torch.float32)


def test_what_cannot_be_compared_is_refused():
    with pytest.raises(AssertionError, match="give the scale"):
        assert_close(torch.zeros(3), torch.zeros(3))
    assert_close(torch.full((3,), EPS), torch.zeros(3), scale=1.0)
    for other in (WANTED[None], WANTED[:1], WANTED.half()):
        with pytest.raises(AssertionError):
            assert_close(WANTED, other)


@pytest.mark.slow
def test_the_option_prints_shares_and_finds_tests_that_compare(tmp_path):
    here = Path(__file__).parent
    (tmp_path / "conftest.py").write_text((here / "conftest.py").read_text())
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = numeric\n")
    (tmp_path / "test_it.py").write_text(
        "from closeness import assert_close\n"
        "def compare(x): assert_close(x, 1.0)\n"
        "def test_near(): compare(1 + 1e-6)\n"
        "def test_far(): compare(1 + 1.5e-5)\n"
        "def test_other(): pass\n"
    )
    command = [sys.executable, "-m", "pytest", "-m", "numeric", "-p", "no:cacheprovider"]
    for option, ends in (([], "2 passed, 1 deselected"), (["--show-closeness"], "1 failed, 1 pa")):
        done = subprocess.run(
            [*command, "--rootdir", tmp_path, "-o", f"pythonpath={here}", *option, tmp_path],
            capture_output=True, text=True, cwd=tmp_path,
        )  # fmt: skip
        assert ends in done.stdout
    lines = [line.split() for line in done.stdout.splitlines() if "test_it.py::" in line]
    assert [(float(share) > ALLOWED, where.split("::")[1]) for share, where in lines[:2]] == [
        (True, "test_far:4"), (False, "test_near:3")
    ]  # fmt: skip
