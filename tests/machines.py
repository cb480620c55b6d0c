"""Run tests as on other machines, and as on one with nothing on it: `make test-machines`.

PyTorch and MKL choose their instructions by the processor, so sums are added in other orders
elsewhere. These settings take instructions away; none adds those that the processor lacks: on one
with AVX-512 "native" uses them and "avx2" is a machine without, on one with AVX2 both are the same.
Natively with one thread is how `make test` runs them.

The bare machine has no home to write to, no language and no terminal; all
quick tests run on it.
"""

import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

# A second thread changed no comparison under any of these settings, so two of them have one.
MACHINES = [
    {"OMP_NUM_THREADS": "2"},
    {"ATEN_CPU_CAPABILITY": "avx2", "OMP_NUM_THREADS": "2"},
    {"ATEN_CPU_CAPABILITY": "default", "OMP_NUM_THREADS": "1"},
    {"MKL_CBWR": "COMPATIBLE", "OMP_NUM_THREADS": "1"},
]
# Collecting all others takes longer than running some of these.
FILES = [
    str(path)
    for path in sorted(Path("tests").glob("test_*.py"))
    if re.search(r"assert_close|mark\.numeric", path.read_text())
]
TESTS = ["-m", "pytest", "-q", *FILES, "-m", "numeric and not slow", "--show-closeness"]
BARE = {
    "HOME": "/nowhere",
    "LC_ALL": "C",
    "CI": "",
    "OMP_NUM_THREADS": "1",
}
QUICK = [
    "-m",
    "pytest",
    "-q",
    "-n",
    "logical",
    "--maxprocesses",
    "8",
    "--dist",
    "loadfile",
    "-m",
    "not slow",
    "--show-closeness",
]


def passes(setting: dict[str, str], tests: list[str] = TESTS) -> bool:
    done = subprocess.run(
        [sys.executable, *tests],
        env=os.environ | setting,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    lines = done.stdout.splitlines()
    heading = next((i for i, line in enumerate(lines) if "share of its tolerance" in line), None)
    said = [lines[heading + 1], lines[-1]] if heading and not done.returncode else lines
    name = " ".join(f"{k}={v}" for k, v in setting.items())
    print("\n".join([f"== {name}", *said]), done.stderr, flush=True)
    return done.returncode == 0


def main() -> int:
    """Two settings at a time, whose waiting threads leave the cores to each other."""
    settings = [machine | {"OMP_WAIT_POLICY": "PASSIVE"} for machine in MACHINES]
    with ThreadPoolExecutor(2) as pool:
        found = [*pool.map(passes, settings), passes(BARE, QUICK)]
    return int(not all(found))


if __name__ == "__main__":
    sys.exit(main())
