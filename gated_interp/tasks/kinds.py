"""The kinds of task, by name, as checkpoints name them."""

from typing import Any

from gated_interp.tasks.conditional import ConditionalTask
from gated_interp.tasks.ov_coherent import OVCoherentTask
from gated_interp.tasks.program import ProgramTask
from gated_interp.tasks.repeated_tokens import RepeatedTokensTask
from gated_interp.tasks.skip_trigrams import SkipTrigramTask
from gated_interp.tasks.text import TextTask
from gated_interp.tasks.two_layers import TwoLayersTask
from gated_interp.tasks.two_sources import TwoSourcesTask
from gated_interp.tasks.wide_content import WideContentTask

TASK_KINDS: dict[str, type[Any]] = {
    "skip_trigrams": SkipTrigramTask,
    "ov_coherent": OVCoherentTask,
    "two_sources": TwoSourcesTask,
    "repeated_tokens": RepeatedTokensTask,
    "two_layers": TwoLayersTask,
    "wide_content": WideContentTask,
    "conditional": ConditionalTask,
    "program": ProgramTask,
    "text": TextTask,
}
"""Every kind of task, by name; a new one is a line here."""
