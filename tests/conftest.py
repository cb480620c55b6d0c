"""Small models without training, for whoever wants them; how close float arithmetic came."""

import contextlib
import inspect
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import CodeType, FunctionType

import closeness
import pytest
import site_build
from filelock import FileLock

from gated_interp.experiments.backends import Backend
from gated_interp.experiments.processes import run_jobs
from gated_interp.models.analytic import manual_model
from gated_interp.models.toy import HookedTransformer, ToyConfig, build_toy
from gated_interp.replacements.gated_attention import GatedAttention
from gated_interp.replacements.splice import splice

# It runs in an environment of its own, which has the compiler and not this package.
collect_ignore = ["compile_circuits.py"]


@pytest.fixture
def toy() -> HookedTransformer:
    """An untrained 2H3ST toy: 8 tokens, 11 positions."""
    return build_toy(ToyConfig(n_trigrams=3, n_heads=2, seed=5))


@pytest.fixture(scope="module")
def spliced() -> HookedTransformer:
    """The manual 2H3ST model with a random gated block of 5 heads spliced in."""
    toy = manual_model(2, 3).model
    block = GatedAttention.from_attention(toy.blocks[0].attn, 2.5, seed=3, gate_bias_init=0.4)
    return splice(toy, 0, block)


@pytest.fixture
def cluster(tmp_path):
    """A function that starts a real scheduler with ``n`` workers, all on loopback."""
    pytest.importorskip("distributed")
    started = []

    def dask(*arguments):
        process = subprocess.Popen(
            [sys.executable, "-m", "dask", *arguments, "--no-dashboard"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=tmp_path,
        )
        started.append(process)
        return process

    def start(n_workers):
        file = tmp_path / "scheduler.json"
        place = ["--host", "127.0.0.1", "--port", "0", "--scheduler-file", str(file)]
        scheduler = dask("scheduler", *place)
        end = time.monotonic() + 60
        address = None
        while address is None and time.monotonic() < end:
            with contextlib.suppress(OSError, ValueError):
                address = json.loads(file.read_text())["address"]
            time.sleep(0.05)
        assert address is not None, "the scheduler did not start"
        workers = [
            dask("worker", address, "--host", "127.0.0.1", "--nthreads", "1", "--no-nanny",
                 "--memory-limit", "0", "--local-directory", str(tmp_path))
            for _ in range(n_workers)
        ]  # fmt: skip
        return address, scheduler, workers

    yield start
    for process in reversed(started):
        process.kill()
    for process in started:
        process.wait()


@pytest.fixture
def told(monkeypatch):
    """Of a study: the jobs that it sends and whom it asks, as on a cluster; they run here."""

    def of(study):
        sent, asked = [], []

        def run(function, jobs):
            sent.extend(jobs)
            yield from run_jobs(function, jobs, 1)

        def connected(workers):
            asked.append(workers)
            return contextlib.nullcontext(Backend(run, 1, 1, None))

        monkeypatch.setattr(study, "connected", connected)
        return sent, asked

    return of


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the built documentation, which the processes of one run share."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "site"
    with FileLock(f"{folder}.lock"):
        if not (folder / "built").exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            site_build.build(folder)
            (folder / "built").touch()
    return folder / "html"


@pytest.fixture(scope="session", autouse=True)
def _ctrl_c_is_heard():
    """Started in the background, tests would ignore Ctrl-C, which some of them send."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="session", autouse=True)
def _ids_stay_with_the_tests(tmp_path_factory):
    """Encoded texts go to a folder of the tests, not to the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GATED_INTERP_CACHE", str(tmp_path_factory.mktemp("ids")))
        yield


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--show-closeness",
        action="store_true",
        help="print each float comparison's error as a share of its tolerance; more than "
        f"{closeness.ALLOWED:g} fails",
    )


def pytest_configure(config: pytest.Config) -> None:
    closeness.strict = config.getoption("--show-closeness")


def _names(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)


def _compares(function: FunctionType, seen: set[FunctionType]) -> bool:
    """Whether the function, or one of its module that it calls, calls ``assert_close``."""
    seen.add(function)
    used = [function.__globals__.get(name) for name in _names(function.__code__)]
    return any(
        f is closeness.assert_close
        or (f.__module__ == function.__module__ and f not in seen and _compares(f, seen))
        for f in used
        if isinstance(f, FunctionType)
    )


@pytest.hookimpl(tryfirst=True)  # before -m chooses
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that compare through ``assert_close`` are numeric; others may be marked by hand."""
    for item in items:
        function = inspect.unwrap(getattr(item, "obj", None))
        if isinstance(function, FunctionType) and _compares(function, set()):
            item.add_marker("numeric")


def pytest_sessionfinish(session: pytest.Session) -> None:
    """A worker of pytest-xdist hands over how close its comparisons came."""
    if (output := getattr(session.config, "workeroutput", None)) is not None:
        output["closeness"] = dict(closeness.shares)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node) -> None:
    for where, share in getattr(node, "workeroutput", {}).get("closeness", {}).items():
        closeness.shares[where] = max(closeness.shares[where], share)


def pytest_terminal_summary(terminalreporter, config: pytest.Config) -> None:
    if not config.getoption("--show-closeness"):
        return
    terminalreporter.section("error as a share of its tolerance")
    for where, share in sorted(closeness.shares.items(), key=lambda x: -x[1]):
        terminalreporter.write_line(f"{share:8.4f}  {where}")
