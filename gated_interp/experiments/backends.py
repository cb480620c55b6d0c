"""Where jobs run: processes of this machine, or a Dask cluster."""

import asyncio
import dataclasses
import logging
import os
import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import contextmanager
from functools import partial
from typing import Any

from gated_interp.core.errors import GatedInterpError
from gated_interp.experiments.memory import machine_bytes
from gated_interp.experiments.processes import on_one_thread, run_jobs

# Seconds to wait for a scheduler to answer, and for its first worker.
CONNECT, FIRST_WORKER = 5, 10

# (function, the arguments of each job) -> what each returns, as it finishes, in any order
Runner = Callable[[Callable[..., Any], Sequence[tuple[Any, ...]]], Generator[Any]]


@dataclasses.dataclass(frozen=True)
class Backend:
    """Something that runs jobs.

    Attributes:
        run: gives what each job returns, as it finishes.
        processes: jobs that run at the same time.
        at_once: of those, the ones that share ``memory``.
        memory: bytes; ``None`` where that is not known.
    """

    run: Runner
    processes: int
    at_once: int
    memory: int | None


@contextmanager
def connected(workers: int | str | Backend | None = None) -> Iterator[Backend]:
    """What runs jobs, while the context is open.

    Args:
        workers: processes of this machine, all cores unless given; the address of a Dask scheduler,
            such as ``tcp://127.0.0.1:8786``; or what is connected already.
    """
    if isinstance(workers, Backend):
        yield workers
        return
    if isinstance(workers, str):
        with dask_client(workers) as client:
            members = client.scheduler_info()["workers"].values()  # some of them, if many
            limits = [m["memory_limit"] for m in members if m["memory_limit"]]
            threads = max(m["nthreads"] for m in members)
            everywhere = sum(client.nthreads().values())
            yield Backend(dask(client, workers), everywhere, threads, min(limits, default=None))
        return
    if workers is not None and workers < 1:
        raise GatedInterpError("too-small", name="workers", value=workers, least=1)
    count = workers or os.cpu_count() or 1
    yield Backend(partial(run_jobs, workers=count), count, count, machine_bytes())


@contextmanager
def dask_client(address: str) -> Iterator[Any]:
    """A client of the scheduler at ``address``, closed afterwards."""
    try:
        from distributed import Client
    except ImportError as error:
        raise GatedInterpError("dask-package-missing") from error
    # Of dask's warnings (versions that differ, a slow close) none changes a result.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            client = Client(address, timeout=CONNECT, set_as_default=False)
        except (OSError, ValueError, TypeError, RuntimeError) as error:
            raise GatedInterpError("no-scheduler", address=address) from error
    with unlogged("distributed"):
        try:
            try:
                client.wait_for_workers(1, timeout=FIRST_WORKER)
            except TimeoutError as error:
                raise GatedInterpError("no-dask-workers", address=address) from error
            yield client
        finally:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                client.close(timeout=CONNECT)


@contextmanager
def unlogged(package: str) -> Iterator[None]:
    """Inside, ``package`` logs nothing: what it has to say is raised, and told in a sentence."""
    there = [
        name for name in logging.root.manager.loggerDict if f"{name}.".startswith(f"{package}.")
    ]
    before = {logger: logger.disabled for logger in map(logging.getLogger, there)}
    for logger in before:
        logger.disabled = True
    try:
        yield
    finally:
        for logger, disabled in before.items():
            logger.disabled = disabled


def dask(client: Any, address: str) -> Runner:
    """Jobs on the workers of a Dask cluster; those of a worker that dies go to another."""
    from distributed import KilledWorker, as_completed

    def run(function: Callable[..., Any], jobs: Sequence[tuple[Any, ...]]) -> Generator[Any]:
        futures = [client.submit(on_one_thread, function, *job, pure=False) for job in jobs]
        try:
            for future in as_completed(futures, loop=client.loop):
                yield future.result()
        except KilledWorker as error:
            raise GatedInterpError("workers-killed") from error
        except ModuleNotFoundError as error:
            raise GatedInterpError("workers-lack-a-package", package=error.name) from error
        except (CancelledError, asyncio.CancelledError, OSError) as error:
            raise GatedInterpError("scheduler-lost", address=address) from error
        finally:
            if client.status == "running":
                client.cancel(futures)

    return run
