"""Jobs in processes of this machine; no process outlives the call that started it."""

import os
import warnings
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import BrokenExecutor
from typing import Any

import joblib

from gated_interp.core.errors import GatedInterpError
from gated_interp.core.signals import belong_to
from gated_interp.core.threads import one_thread

# Workers import what this process would, and nothing from the current folder before that; what
# they leave when they are killed is cleared away, which is no news.
FOR_WORKERS = {"PYTHONSAFEPATH": "1", "PYTHONWARNINGS": "ignore:resource_tracker:UserWarning"}
# (key, function, its arguments)
Job = tuple[Any, Callable[..., Any], tuple[Any, ...]]


def in_processes(jobs: Sequence[Job], workers: int | None = None) -> Generator[tuple[Any, Any]]:
    """``(key, function(*args))`` of each job as it finishes; see :func:`run_jobs`."""
    return run_jobs(keyed, jobs, workers)


def run_jobs(
    function: Callable[..., Any], jobs: Sequence[tuple[Any, ...]], workers: int | None = None
) -> Generator[Any]:
    """``function(*job)`` of each job as it finishes, in any order, one thread each.

    Small tensors gain little from two threads; two processes gain nearly two. Where somebody
    stops half-way (an exception, Ctrl-C, SIGTERM, even SIGKILL), the processes end too.

    Args:
        workers: processes; all cores unless given. One is this process itself.
    """
    count = min(workers or os.cpu_count() or 1, len(jobs))
    if count <= 1:
        for job in jobs:
            yield on_one_thread(function, *job)
        return
    parallel = joblib.Parallel(
        n_jobs=count,
        backend="loky",
        return_as="generator_unordered",
        pre_dispatch="n_jobs",
        initializer=belong_to,
        initargs=(os.getpid(),),
    )
    before = {name: os.environ.get(name) for name in FOR_WORKERS}
    for name, value in FOR_WORKERS.items():
        os.environ[name] = ",".join(filter(None, (before[name], value)))
    results = parallel(joblib.delayed(on_one_thread)(function, *job) for job in jobs)
    try:
        # Not `yield from`: joblib would be closed, and warn, before what stands below.
        for result in results:  # noqa: UP028
            yield result
    except BrokenExecutor as error:
        raise GatedInterpError("worker-ended") from error
    finally:
        # Where somebody stops half-way, that jobs are cancelled is no news.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            results.close()
        for name, earlier in before.items():
            os.environ.pop(name)
            if earlier is not None:
                os.environ[name] = earlier


def on_one_thread(function: Callable[..., Any], *args: Any) -> Any:
    """``function(*args)`` with torch on one thread."""
    with one_thread():
        return function(*args)


def keyed(key: Any, function: Callable[..., Any], args: tuple[Any, ...]) -> tuple[Any, Any]:
    """``key`` and ``function(*args)``: of jobs that finish in any order, which one it was."""
    return key, function(*args)
