"""What the package weighs, and how long it takes to begin: a section of ``make bench``."""

import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
# MB (10^6 bytes) and seconds.
GOALS = {"wheel": 8.0, "import": 0.1, "help": 1.0}
IMPORT = """
import time
start = time.perf_counter()
import gated_interp
print(time.perf_counter() - start)
"""


def bench_package() -> list[dict[str, Any]]:
    """The wheel's size, the time of an import and of ``--help``, each beside its goal."""
    return [
        {"what": "wheel (MB)", "found": wheel_size() / 1e6, "goal": GOALS["wheel"]},
        {"what": "import gated_interp (s)", "found": import_time(), "goal": GOALS["import"]},
        {"what": "gated-interp --help (s)", "found": help_time(), "goal": GOALS["help"]},
    ]


def wheel_size() -> int:
    """Bytes of the wheel, built from the checkout."""
    with tempfile.TemporaryDirectory() as out:
        command = ["-m", "build", "-q", "--wheel", "--no-isolation", "-o", out, str(ROOT)]
        subprocess.run([sys.executable, *command], check=True, capture_output=True)
        (wheel,) = Path(out).glob("*.whl")
        return wheel.stat().st_size


def import_time(repeats: int = 5) -> float:
    """Seconds of the fastest import, each in an interpreter of its own."""
    return min(float(_run("-c", IMPORT)) for _ in range(repeats))


def help_time(repeats: int = 5) -> float:
    """Seconds of the fastest ``--help``, the interpreter's start included."""
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        said = _run("-m", "gated_interp.cli", "--help")
        times.append(time.perf_counter() - started)
        assert "decompose" in said
    return min(times)


def _run(*arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, *arguments], check=True, cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    return done.stdout
