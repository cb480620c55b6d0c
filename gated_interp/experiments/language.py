"""A language model trained on text, measured beside simpler models, and written."""

import dataclasses
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from gated_interp.analysis.heads import head_name
from gated_interp.analysis.induction import induction_scores
from gated_interp.core.errors import GatedInterpError
from gated_interp.experiments.single import (
    changed,
    refuse,
    state_for,
    write_trained,
)
from gated_interp.metrics.ngrams import Ngrams
from gated_interp.metrics.predictions import next_token_loss
from gated_interp.models.language_model import (
    LanguageModelConfig,
    LanguageTransformer,
    build_language_model,
    folded,
    require_text,
)
from gated_interp.models.toy import HookedTransformer
from gated_interp.tasks.text import RepeatedText, TextPart, TextTask
from gated_interp.training.config import TrainConfig
from gated_interp.training.loop import train_model
from gated_interp.training.processes import group_for
from gated_interp.training.trackers import Tracker


@dataclasses.dataclass(frozen=True)
class LanguageRun:
    """What trains a language model.

    Attributes:
        repeat: the share of sequences that repeat a stretch of text; see
            :class:`~gated_interp.tasks.text.RepeatedText`.
    """

    model: LanguageModelConfig
    config: TrainConfig
    task: TextTask
    repeat: float = 0.0

    @property
    def data(self) -> RepeatedText | TextTask:
        """What it is trained on."""
        return RepeatedText(self.task.part("train"), self.repeat) if self.repeat else self.task


@dataclasses.dataclass(frozen=True)
class TrainedLanguage:
    """A language model that was trained and written.

    Attributes:
        path: its checkpoint; the history lies beside it as ``<stem>-history.csv``.
        measures: see :func:`language_measures`.
        heads: see :func:`~gated_interp.analysis.induction.induction_scores`.
    """

    model: LanguageTransformer
    measures: dict[str, float]
    heads: pd.DataFrame
    history: pd.DataFrame
    path: Path


def language_settings(
    text: str | os.PathLike[str] | Iterable[str | os.PathLike[str]] = "austen",
    *,
    seed: int = 0,
    n_ctx: int = 64,
    repeat: float = 0.0,
    vocab: int | None = None,
    tokenizer: str | os.PathLike[str] | None = None,
    folder: str | os.PathLike[str] | None = None,
    **given: Any,
) -> LanguageRun:
    r"""What trains a language model on ``text``.

    Args:
        text, vocab, tokenizer, folder: as in :class:`~gated_interp.tasks.text.TextTask`.
        seed: of the initial weights and the data.
        n_ctx: tokens in a sequence.
        repeat: see :class:`LanguageRun`.
        **given: fields of :class:`~gated_interp.models.language_model.LanguageModelConfig` or of
            :class:`~gated_interp.training.config.TrainConfig`; ``None`` leaves one as it is.

    Examples:
        >>> import tempfile
        >>> folder = tempfile.TemporaryDirectory()
        >>> path = Path(folder.name, "text.txt")
        >>> _ = path.write_text("The cat sat on the mat.\n" * 100)
        >>> run = language_settings(path, n_layers=2, steps=10, vocab=260, folder=folder.name)
        >>> run.model.name, run.config.steps, run.task.d_vocab
        ('2L8H128', 10, 260)
        >>> folder.cleanup()
    """
    given["d_head"] = given.get("d_head") or 0  # the width's share
    # Whatever else is wrong is said before the text is read.
    shape, rest = changed(LanguageModelConfig(d_vocab=1, n_ctx=n_ctx, seed=seed), given)
    config, unknown = changed(TrainConfig.language(seed=seed), rest)
    refuse(unknown)
    with group_for(config).first_here():  # the others find its ids
        task = TextTask(text, n_ctx, tokenizer, vocab=vocab, folder=folder)
    run = LanguageRun(shape.replace(d_vocab=task.d_vocab), config, task, repeat)
    _ = run.data  # refuses a share that cannot be
    return run


def run_language(
    run: LanguageRun,
    path: Path | str,
    *,
    resume: bool = False,
    progress: bool = False,
    tracker: Tracker | None = None,
) -> TrainedLanguage:
    """Train a language model and write it to ``path``, with its tokenizer.

    The state of the training lies beside it as ``<path>.state`` until it ends.

    Args:
        resume: go on from that state.
    """
    path = Path(path)
    state = state_for(path, resume)
    model = build_language_model(run.model, run.task)
    result = train_model(
        model,
        run.config,
        data=run.data,
        held_out=run.task.part("validation"),
        checkpoint=state,
        resume=state if resume else None,
        progress=progress,
        tracker=tracker,
    )
    model = folded(model)
    measures = language_measures(model)
    heads = induction_scores(model)
    matched = heads.sort_values("prefix_matching").iloc[-1]
    best = head_name((int(matched["layer"]), int(matched["head"])))
    notes = {
        "training": {**run.config.to_dict(), "repeat": run.repeat},
        **measures,
        "prefix_matching": {best: round(float(matched["prefix_matching"]), 4)},
    }
    write_trained(model, path, notes, result.history)
    return TrainedLanguage(model, measures, heads, result.history, path)


@torch.no_grad()
def language_measures(
    model: HookedTransformer, part: TextPart | None = None, *, batch_size: int = 64
) -> dict[str, float]:
    r"""The cross-entropy of a model on a part of a text, beside n-gram models on the same tokens.

    Args:
        part: the ``test`` part of the model's own text unless given.

    Returns:
        ``cross_entropy``, ``unigram`` and ``bigram``, in nats per token, the n-gram models counted
        on the ``train`` part and the bigram's weight fitted on ``validation``; ``standard_error``
        of ``cross_entropy``, from sequence to sequence; ``tokens``, how many are predicted.

    Raises:
        GatedInterpError: the model names no text and none is given, or one of another vocabulary.

    Examples:
        >>> import tempfile
        >>> folder = tempfile.TemporaryDirectory()
        >>> path = Path(folder.name, "text.txt")
        >>> _ = path.write_text("The cat sat on the mat.\n" * 100)
        >>> task = TextTask(path, n_positions=16, vocab=260, folder=folder.name)
        >>> model = build_language_model(LanguageModelConfig(d_vocab=260, d_model=32), task)
        >>> found = language_measures(model)
        >>> found["bigram"] < found["unigram"] < found["cross_entropy"]  # not trained yet
        True
        >>> folder.cleanup()
    """
    if part is None:
        task = getattr(model, "task", None)
        if not isinstance(task, TextTask):
            raise GatedInterpError("no-text-to-measure")
        part = task.part("test")
    require_text(model, part)
    task = part.task
    train, validation = task.part("train"), task.part("validation")
    ngrams = Ngrams.counted(train.ids, task.d_vocab)
    ngrams = ngrams.fitted(tokens.numpy() for tokens in validation.in_order(batch_size))
    device = model.embed.W_E.device
    each, simple = [], []
    for tokens in part.in_order(batch_size):
        each.append(next_token_loss(model(tokens.to(device)), tokens.to(device)).double().cpu())
        simple.append([losses.mean(1) for losses in ngrams.losses(tokens.numpy())])
    losses = torch.cat(each)
    unigram, bigram = (np.concatenate(x).mean() for x in zip(*simple, strict=True))
    return {
        "cross_entropy": losses.mean().item(),
        "standard_error": losses.std().item() / len(losses) ** 0.5,
        "unigram": float(unigram),
        "bigram": float(bigram),
        "tokens": len(losses) * (part.n_positions - 1),
    }
