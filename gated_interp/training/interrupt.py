"""Ctrl-C during training: never between two halves of an update."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType


class TrainingInterrupted(KeyboardInterrupt):
    """Ctrl-C stopped a training; the message says how to resume.

    Attributes:
        step: updates made.
        checkpoint: where the state was saved; ``None`` where no path had been given.
    """

    def __init__(self, step: int, steps: int, checkpoint: Path | None) -> None:
        self.step, self.checkpoint = step, checkpoint
        how = (
            f"resume with resume={str(checkpoint)!r}"
            if checkpoint is not None
            else "nothing was saved, give checkpoint=PATH to be able to resume"
        )
        super().__init__(f"training was interrupted after {step} of {steps} steps; {how}.")


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Hold Ctrl-C back until the context ends, then let it do what it does."""
    if threading.current_thread() is not threading.main_thread():
        yield  # Ctrl-C only ever reaches the main thread
        return
    held: list[tuple[int, FrameType | None]] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: held.append((number, frame)))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if held and callable(before):
        before(*held[-1])
