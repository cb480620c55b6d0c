"""What a model must learn: the vocabulary, the sequences, and where each trigram sits."""

from gated_interp.tasks.contexts import Contexts, contexts_of
from gated_interp.tasks.skip_trigrams import SkipTrigramTask, TrigramBatch

__all__ = ["Contexts", "SkipTrigramTask", "TrigramBatch", "contexts_of"]
