"""The kinds of task, by name, as checkpoints name them."""

from gated_interp.tasks.skip_trigrams import SkipTrigramTask

TASK_KINDS = {"skip_trigrams": SkipTrigramTask}
"""Every kind of task, by name; a new one is a line here."""
