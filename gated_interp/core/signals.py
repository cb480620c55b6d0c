"""SIGTERM, which schedulers send, stops a command as Ctrl-C does; neither splits an update."""

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

STOPS = (signal.SIGINT, signal.SIGTERM)


class Terminated(KeyboardInterrupt):
    """SIGTERM came: whatever keeps its work on Ctrl-C keeps it now."""


def _terminated(number: int, frame: FrameType | None) -> NoReturn:
    raise Terminated


def stop_on_sigterm() -> None:
    """Let SIGTERM raise :class:`Terminated` from now on; for a program's start, not a library."""
    signal.signal(signal.SIGTERM, _terminated)


@contextmanager
def terminating() -> Iterator[None]:
    """Inside, SIGTERM raises :class:`Terminated`; outside the main thread nothing changes."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, _terminated)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def signal_behind(stop: BaseException | None) -> signal.Signals:
    """Which of the two signals ``stop``, or what it was raised from, came from.

    Examples:
        >>> signal_behind(KeyboardInterrupt()).name, signal_behind(Terminated()).name
        ('SIGINT', 'SIGTERM')
    """
    while stop is not None:
        if isinstance(stop, Terminated):
            return signal.SIGTERM
        stop = stop.__cause__
    return signal.SIGINT


def belong_to(parent: int) -> None:
    """From now on this worker ends with the process ``parent``, and only with it.

    What a terminal or a scheduler sends to all processes is for the parent to answer. A worker's
    first act, so that nothing here may take long to import.
    """
    for number in STOPS:
        signal.signal(number, signal.SIG_IGN)
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@contextmanager
def held_back() -> Iterator[list[int]]:
    """A list of the signals that came; until the context ends they do nothing else."""
    held: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield held  # signals only ever reach the main thread
        return
    before = {n: signal.signal(n, lambda number, frame: held.append(number)) for n in STOPS}
    try:
        yield held
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Hold Ctrl-C and SIGTERM back until the context ends, then let them do what they do."""
    with held_back() as held:
        yield
    if held:
        signal.raise_signal(held[0])
