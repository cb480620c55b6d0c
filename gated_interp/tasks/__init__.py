"""What a model must learn: the vocabulary, the sequences, and where the answers are known.

A task of your own is a class with what :class:`ProbedTask` asks for, or :class:`Task` where no
answers are known.

Examples:
    >>> import gated_interp as gi
    >>> isinstance(gi.tasks.TwoSourcesTask(), gi.tasks.ProbedTask)
    True
"""

from gated_interp.tasks.conditional import ConditionalBatch, ConditionalTask
from gated_interp.tasks.contexts import Contexts, contexts_of
from gated_interp.tasks.ov_coherent import OVCoherentTask, PairBatch
from gated_interp.tasks.program import ProgramBatch, ProgramTask
from gated_interp.tasks.repeated_tokens import RepeatedBatch, RepeatedTokensTask
from gated_interp.tasks.skip_trigrams import SkipTrigramTask, TrigramBatch
from gated_interp.tasks.task import KnownAnswers, ProbedTask, Probes, Task
from gated_interp.tasks.two_layers import MarkedBatch, TwoLayersTask
from gated_interp.tasks.two_sources import QuestionBatch, TwoSourcesTask
from gated_interp.tasks.wide_content import ContentBatch, WideContentTask

__all__ = [
    "ConditionalBatch",
    "ConditionalTask",
    "ContentBatch",
    "Contexts",
    "KnownAnswers",
    "MarkedBatch",
    "OVCoherentTask",
    "PairBatch",
    "ProbedTask",
    "Probes",
    "ProgramBatch",
    "ProgramTask",
    "QuestionBatch",
    "RepeatedBatch",
    "RepeatedTokensTask",
    "SkipTrigramTask",
    "Task",
    "TrigramBatch",
    "TwoLayersTask",
    "TwoSourcesTask",
    "WideContentTask",
    "contexts_of",
]
