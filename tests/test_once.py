"""What used to be written twice or more stays written once."""

import re
from pathlib import Path

import pytest

import gated_interp

SOURCES = {
    p: p.read_text(encoding="utf-8") for p in Path(gated_interp.__file__).parent.rglob("*.py")
}


@pytest.mark.parametrize(
    ("pattern", "home"),
    [
        (r"def one_thread\b", "core/threads.py"),
        (r"OPEN = 1e-3", "metrics/reconstruction.py"),
        (r"varies\.clamp\(min=torch\.finfo", "metrics/reconstruction.py"),
        (r"target\.mean\(\(0, 1\)\)", "metrics/reconstruction.py"),
        (r"> (OPEN|threshold|smallest)\)\.sum\(1\)", "metrics/reconstruction.py"),
        (r"def (next_token_loss|next_token_cross_entropy)", "metrics/predictions.py"),
        (r"low, high = wilson\(count", "metrics/intervals.py"),
    ],
)
def test_written_once(pattern, home):
    found = [p for p, text in SOURCES.items() for _ in re.findall(pattern, text)]
    assert [p.as_posix()[-len(home) :] for p in found] == [home]
