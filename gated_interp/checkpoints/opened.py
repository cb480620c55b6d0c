"""Open any language model: ours, TransformerLens', or one of the library transformers."""

import copy
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from transformer_lens import HookedTransformer

from gated_interp.checkpoints.checkpoint import is_checkpoint, load
from gated_interp.checkpoints.foreign import (
    CONFIG,
    from_memory,
    from_place,
    is_foreign,
    may_be_a_name,
)
from gated_interp.core.errors import CheckpointError, GatedInterpError
from gated_interp.core.shipped import SUFFIX, shipped_names
from gated_interp.models.language_model import TextTransformer, give_text
from gated_interp.models.toy import TaskTransformer
from gated_interp.tasks.text import TextTask


def open_model(
    source: str | os.PathLike[str] | HookedTransformer | Any,
    *,
    text: str | os.PathLike[str] | Iterable[str | os.PathLike[str]] | TextTask | None = None,
    n_ctx: int | None = None,
    base: Any = None,
) -> TaskTransformer:
    """A model that every command and analysis of this package takes.

    What is on the disk needs no network. Nothing is unpickled, and no code of a repository is run.

    Args:
        source: one of these:

            - the name of a shipped model, a checkpoint of this package or the folder of one (where
              it holds blocks of a model of another library, see
              :func:`~gated_interp.checkpoints.checkpoint.load`);
            - a folder of a Hugging Face model with weights in safetensors (an architecture of
              :data:`~gated_interp.models.pretrained.ARCHITECTURES`), or its name on the hub, or the
              name by which TransformerLens knows it;
            - a ``.gguf`` file, which the package ``gguf`` reads;
            - a ``HookedTransformer``, a model of the library transformers, or a
              ``TransformerBridge`` around one, in memory.
        text: what a language model is asked about unless tokens are given: see
            :class:`~gated_interp.tasks.text.TextTask`. It is read in the model's own tokens. The
            text ``austen`` unless given, or what a checkpoint names.
        n_ctx: the longest sequence of a model of another library: its own, but at most 2,048,
            unless given.
        base: of a checkpoint that holds blocks alone, their model, where it is not at the place
            that the checkpoint names; see :func:`~gated_interp.checkpoints.checkpoint.load`.

    Returns:
        The model on the CPU. What came from transformers says in ``processed`` what was done to its
        weights, and predicts what it predicted there, to 0.001 nats.

    Raises:
        CheckpointError: no such file, folder or name, or one that holds no whole model.
        GatedInterpError: an architecture that is not converted, another thing than a model, a text
            for a model that reads none, another context for one that has its own already, or a
            ``base`` for a whole model.

    Examples:
        >>> open_model("2H3ST-gated").model_name
        '2H3ST-gated'
    """
    place = isinstance(source, str | os.PathLike)
    if base is not None and not place:
        raise CheckpointError("base-not-needed", path=type(source).__name__)
    if isinstance(source, TaskTransformer):
        return _as_asked(source, text, n_ctx)
    if isinstance(source, HookedTransformer):
        return _as_asked(from_memory(source, text, n_ctx), None, n_ctx)
    if place:
        return _of_place(os.path.expanduser(os.fspath(source)), text, n_ctx, base)
    return from_memory(source, text, n_ctx)


def _of_place(source: str, text: Any, n_ctx: int | None, base: Any) -> TaskTransformer:
    path = Path(source)
    if source in shipped_names() or not is_foreign(path):
        try:
            return _as_asked(load(source, base=base), text, n_ctx)
        except CheckpointError:
            part = path.name == CONFIG or path.suffix == SUFFIX
            if part and is_foreign(path.parent) and not is_checkpoint(path):
                return _of_place(str(path.parent), text, n_ctx, base)
            if os.path.exists(path) or not may_be_a_name(source):
                raise
    if base is not None:
        raise CheckpointError("base-not-needed", path=source)
    return from_place(source, text, n_ctx)


def _as_asked(model: TaskTransformer, text: Any, n_ctx: int | None) -> TaskTransformer:
    """A model that is there already, with another text where one is asked for."""
    if n_ctx not in (None, model.cfg.n_ctx):
        raise GatedInterpError("context-cannot-change", n_ctx=n_ctx, own=model.cfg.n_ctx)
    if text is None:
        return model
    own = model.task
    if not isinstance(text, TextTask):
        if not isinstance(own, TextTask):
            raise GatedInterpError("not-a-language-model")
        text = TextTask(text, own.n_positions, own.tokenizer)
    if not isinstance(model, TextTransformer):
        raise GatedInterpError("not-a-language-model")
    other = copy.copy(model)  # it shares the weights
    give_text(other, text)
    return other
