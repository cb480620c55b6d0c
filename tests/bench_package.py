"""What the package weighs, and how long it takes to begin: a section of ``make bench``."""

import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
# MB (10^6 bytes) and seconds.
GOALS = {"wheel": 8.0, "import": 0.1, "help": 0.3, "report": 30.0, "ablate": 30.0}
MODELS = ("austen-2l", "austen-2l-gated")
IMPORT = """
import time
start = time.perf_counter()
import gated_interp
print(time.perf_counter() - start)
"""


def bench_package() -> list[dict[str, Any]]:
    """The wheel's size, and times that a user waits, each beside its goal."""
    commands = [*(("report", model) for model in MODELS), ("ablate", MODELS[0])]
    return [
        {"what": "wheel (MB)", "found": wheel_size() / 1e6, "goal": GOALS["wheel"]},
        {"what": "import gated_interp (s)", "found": import_time(), "goal": GOALS["import"]},
        {"what": "gated-interp --help (s)", "found": help_time(), "goal": GOALS["help"]},
        *(
            {
                "what": f"{command} {model} (s of processor)",
                "found": processor_time(command, model),
                "goal": GOALS[command],
            }
            for command, model in commands
        ),
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


def processor_time(command: str, model: str) -> float:
    """Seconds of processor time of a command, whatever else the machine does."""
    with tempfile.TemporaryDirectory() as folder:
        out = f"{folder}/page.html" if command == "report" else f"{folder}/figures"
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        _run("-m", "gated_interp.cli", command, model, "--out", out)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return (after.ru_utime - before.ru_utime) + (after.ru_stime - before.ru_stime)


def _run(*arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, *arguments], check=True, cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    return done.stdout
