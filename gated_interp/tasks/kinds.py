"""The kinds of task, by name, as checkpoints name them."""

from typing import Any

from gated_interp.tasks.ov_coherent import OVCoherentTask
from gated_interp.tasks.skip_trigrams import SkipTrigramTask
from gated_interp.tasks.text import TextTask
from gated_interp.tasks.two_sources import TwoSourcesTask

TASK_KINDS: dict[str, type[Any]] = {
    "skip_trigrams": SkipTrigramTask,
    "ov_coherent": OVCoherentTask,
    "two_sources": TwoSourcesTask,
    "text": TextTask,
}
"""Every kind of task, by name; a new one is a line here."""
