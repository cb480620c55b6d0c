"""Texts, and language models trained on them.

Examples:
    >>> import gated_interp as gi
    >>> gi.text.TextTask().sample(1, seed=0).tokens.shape
    torch.Size([1, 64])
"""

from gated_interp.analysis.induction import repeated_random_tokens
from gated_interp.analysis.skip_trigrams import skip_trigrams
from gated_interp.experiments.language import language_measures
from gated_interp.models.language_model import (
    LanguageModelConfig,
    LanguageTransformer,
    build_language_model,
    give_text,
)
from gated_interp.tasks.mixture import Mixture, RandomRepeats, with_repeats
from gated_interp.tasks.text import RepeatedText, TextPart, TextTask, TokenBatch

__all__ = [
    "LanguageModelConfig",
    "LanguageTransformer",
    "Mixture",
    "RandomRepeats",
    "RepeatedText",
    "TextPart",
    "TextTask",
    "TokenBatch",
    "build_language_model",
    "give_text",
    "language_measures",
    "repeated_random_tokens",
    "skip_trigrams",
    "with_repeats",
]
