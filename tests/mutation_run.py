"""Change one thing in the code and see whether a test notices: ``make mutants``.

A mutant meets the tests that run its lines, quickest first, in a process forked from one that has
imported torch and TransformerLens but nothing of ours. Survivors must be explained in
``surviving_mutants.txt``.
"""

import argparse
import ast
import dataclasses
import importlib
import itertools
import json
import multiprocessing
import os
import shutil
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import coverage
import pytest
from mutation_sample import ROOT, Mutant, mutants

EXPLAINED = ROOT / "tests" / "surviving_mutants.txt"
MOST_UNEXPLAINED = 0.05
# A room's own tests, beside its doctests.
ROOMS = {
    "tasks": [
        *("task", "task_kinds", "text", "language_model"),
        *("benchmarks_that_fail", "ov_coherent", "two_sources"),
    ],
    "models": [
        *("analytic", "toy", "task_kinds", "language_model"),
        *("benchmarks_that_fail", "ov_coherent", "two_sources"),
    ],
    "replacements": ["gated_attention", "hub", "pruning", "replacements", "splice"],
    "metrics": [
        *("faithfulness", "gated_attention", "language_model", "read_heads", "superposition"),
        "training_parts",
    ],
    "checkpoints": ["checkpoint*", "hub", "language_model", "published"],
    "analysis": [
        *("ablation", "attribution", "benchmarks_that_fail", "circuits", "faithfulness"),
        *("frontier", "head_scores", "holders", "patching", "read_heads", "skip_trigrams"),
        *("subsets", "superposition", "text_holders", "verdict"),
    ],
    "training": ["decompose", "processes", "replacements", "stacked*", "training*"],
}
IMPORTED_ONCE = ("torch", "transformer_lens", "pandas", "scipy.stats", "plotly", "tqdm.auto")


def forked(work: Callable[[], int], timeout: float | None = None) -> int | None:
    """The exit status of ``work`` in a process of its own; ``None`` if it had to be ended."""

    def quietly() -> None:
        sink = os.open("output.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(sink, 1), os.dup2(sink, 2)
        sys.path.insert(0, os.getcwd())
        os._exit(work())

    process = multiprocessing.get_context("fork").Process(target=quietly)
    process.start()
    process.join(timeout)
    if process.exitcode is None:
        process.kill()
        process.join()
        return None
    return process.exitcode


class Recorder:
    """A pytest plugin: which lines each test runs, and how long it takes."""

    def __init__(self, cov: coverage.Coverage):
        self.cov, self.current = cov, ""
        self.seconds: dict[str, float] = defaultdict(float)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        self.current = item.nodeid
        self.cov.switch_context(item.nodeid)
        return (yield)

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, request: Any) -> Iterator[None]:
        # What a shared fixture runs, it runs for every test of its file.
        self.cov.switch_context(
            self.current if request.scope == "function" else request.node.nodeid
        )
        result = yield
        self.cov.switch_context(self.current)
        return result

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.seconds[report.nodeid] += report.duration


class Chosen:
    """A pytest plugin: only these tests, quickest first."""

    def __init__(self, tests: list[str]):
        self.rank = {test: i for i, test in enumerate(tests)}

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        chosen = [i for i in items if i.nodeid in self.rank]
        items[:] = sorted(chosen, key=lambda i: self.rank[i.nodeid])


class Room:
    """A room's tests, recorded once, in a copy of the repository in the current folder."""

    def __init__(self, room: str):
        found = [sorted(Path("tests").glob(f"test_{name}.py")) for name in ROOMS[room]]
        self.files = [*map(str, itertools.chain(*found)), f"gated_interp/{room}"]

        def record() -> int:
            cov = coverage.Coverage("lines.coverage", source=["gated_interp"])
            recorder = Recorder(cov)
            cov.start()
            status = self.pytest(self.files, recorder)
            cov.stop(), cov.save()
            Path("seconds.json").write_text(json.dumps(recorder.seconds))
            return status

        if forked(record) != 0:
            sys.exit(Path("output.txt").read_text() + f"\nthe tests of {room} fail unchanged.")
        self.tried = 0
        self.data = coverage.CoverageData("lines.coverage")
        self.data.read()
        self.seconds: dict[str, float] = json.loads(Path("seconds.json").read_text())

    @staticmethod
    def pytest(files: list[str], plugin: Any) -> int:
        # What is imported already, pytest cannot rewrite, and says so.
        quiet = "-Wignore::pytest.PytestAssertRewriteWarning"
        return int(pytest.main(["-x", "-q", quiet, "-m", "not slow", *files], plugins=[plugin]))

    def tests_of(self, mutant: Mutant) -> list[str]:
        """The tests that run the mutant's statement, quickest first."""
        by_line = self.data.contexts_by_lineno(os.path.abspath(mutant.path))
        span = statement(Path(mutant.path).read_text(), mutant.line)
        contexts = {c for line in span for c in by_line.get(line, [])}
        if contexts == {""}:  # run on import: all who use the file
            contexts = set(itertools.chain(*by_line.values()))
        contexts -= {""}
        chosen = [t for t in self.seconds if any(t.startswith(c) for c in contexts)]
        return sorted(chosen, key=self.seconds.__getitem__)

    def notices(self, mutant: Mutant) -> bool:
        """Whether a test fails, or does not end."""
        tests = self.tests_of(mutant)
        if not tests:
            return False
        files = [f for f in self.files if any(t.startswith(f) for t in tests)]
        path, limit = Path(mutant.path), 60 + 5 * sum(self.seconds[t] for t in tests)
        whole, before = path.read_text(), path.stat().st_mtime
        path.write_text(mutant.code)
        # A time of its own, because compiled code is found by its source's time and size.
        self.tried += 1
        os.utime(path, (self.tried, self.tried))
        status = forked(lambda: self.pytest(files, Chosen(tests)), limit)
        path.write_text(whole)
        os.utime(path, (before, before))
        if status == pytest.ExitCode.NO_TESTS_COLLECTED:
            sys.exit(f"none of {tests} was found.")
        if status is None:
            print(f"{mutant.key}\n  did not end within {limit:.0f} s: noticed", flush=True)
        return status != 0


def statement(code: str, line: int) -> range:
    """The lines of the innermost statement around ``line``; of a compound one, its head."""
    best = range(line, line + 1)
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.stmt) and node.lineno <= line <= (node.end_lineno or 0):
            body = getattr(node, "body", None)
            end = body[0].lineno if body else (node.end_lineno or 0) + 1
            if line < end:
                best = range(node.lineno, end)
    return best


def run(room: str, number: int, explained: dict[str, str]) -> bool:
    """Try ``number`` mutants of ``room`` and print what survives; whether few enough do."""
    started, survivors, unexplained, tried = time.time(), 0, 0, 0
    tests = Room(room)
    first = next(mutants(room))
    if tests.notices(dataclasses.replace(first, code=(ROOT / first.path).read_text())):
        sys.exit(
            Path("output.txt").read_text()
            + f"\nthe tests of {room} notice a change where there is none."
        )
    for mutant in itertools.islice(mutants(room), number):
        tried += 1
        if tests.notices(mutant):
            continue
        survivors += 1
        unexplained += mutant.key not in explained
        ran = "NOT EXPLAINED" if tests.tests_of(mutant) else "NO TEST RUNS IT"
        print(f"{mutant.path}:{mutant.line}\n  - {mutant.before}\n  + {mutant.after}")
        print(f"  survived: {explained.get(mutant.key, ran)}", flush=True)
    seconds = f"{time.time() - started:.0f} s"
    noticed = f"{tried - survivors} of {tried} mutants were noticed, {survivors} survived"
    print(f"{room}: {noticed}, {unexplained} of them unexplained ({seconds})", flush=True)
    return unexplained <= MOST_UNEXPLAINED * tried


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rooms", nargs="*", default=list(ROOMS))
    parser.add_argument("-n", type=int, default=40, help="mutants per room")
    options = parser.parse_args()
    for name in IMPORTED_ONCE:
        importlib.import_module(name)
    lines = [line for line in EXPLAINED.read_text().splitlines() if "  # " in line]
    explained = dict(line.split("  # ", 1) for line in lines)
    passed = []
    for room in options.rooms:
        with tempfile.TemporaryDirectory() as copy:
            for name in ("gated_interp", "tests"):
                ignored = shutil.ignore_patterns("__pycache__")
                shutil.copytree(ROOT / name, Path(copy) / name, ignore=ignored)
            shutil.copy(ROOT / "pyproject.toml", copy)
            os.chdir(copy)
            passed.append(run(room, options.n, explained))
            os.chdir(ROOT)
    sys.exit(not all(passed))


if __name__ == "__main__":
    main()
