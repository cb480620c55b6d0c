"""Ctrl-C or SIGTERM during training: how far it came, and where its state is."""

from pathlib import Path
from typing import Any


class TrainingInterrupted(KeyboardInterrupt):
    """Ctrl-C stopped a training; the message says how to resume.

    Attributes:
        step: updates made, of ``steps``.
        checkpoint: where the state was saved; ``None`` where no path had been given.
    """

    def __init__(self, step: int, steps: int, checkpoint: Path | None) -> None:
        self.step, self.steps, self.checkpoint = step, steps, checkpoint
        how = (
            f"resume with resume={str(checkpoint)!r}"
            if checkpoint is not None
            else "nothing was saved, give checkpoint=PATH to be able to resume"
        )
        super().__init__(f"training was interrupted after {step} of {steps} steps; {how}.")

    def __reduce__(self) -> tuple[Any, ...]:
        """Whole in another process too, which makes it of its arguments."""
        return type(self), (self.step, self.steps, self.checkpoint)
