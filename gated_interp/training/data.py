"""Where the tokens of each step come from: every batch is a function of (seed, step)."""

import dataclasses
import hashlib
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from gated_interp.anatomy.batch import Batch, Mask, Tokens, position_mask, token_vocabulary
from gated_interp.core.errors import GatedInterpError
from gated_interp.core.seeds import derive, generator
from gated_interp.core.streams import Stream
from gated_interp.models.language_model import require_text
from gated_interp.models.toy import HookedTransformer
from gated_interp.tasks.encoded_text import Part
from gated_interp.tasks.task import KnownAnswers
from gated_interp.tasks.text import RepeatedText, TextPart, TextTask, TokenBatch
from gated_interp.training.config import TrainConfig

# Streams of a training's seed; because each step has its own, resuming needs no generator state.


@runtime_checkable
class Sampler(Protocol):
    """Anything that samples sequences, such as a task."""

    def sample(self, n: int, seed: int) -> Any:
        """An object whose ``tokens`` are ``n`` sequences, ``[batch pos]``."""
        ...


Source = Sampler | Callable[[int, torch.Generator], Any]
DataSource = Source | Tokens | tuple[Tokens, Mask]
"""A :class:`Sampler`, a function of (n, generator) that returns tokens ``[batch pos]``, or tokens
``[sequence pos]`` to draw from. Padded tokens come with their attention mask, as a pair."""


@dataclasses.dataclass(frozen=True, eq=False)
class Sequences:
    """Tokens as a source of data: sequences are drawn from them, each as likely.

    Attributes:
        batch: all of them.
    """

    batch: Batch

    @property
    def identity(self) -> str:
        """What a training must share with a saved one to go on from it."""
        real = self.batch.real
        parts = [self.batch.tokens] if real is None else [self.batch.tokens, real]
        content = b"".join(part.cpu().contiguous().numpy().tobytes() for part in parts)
        digest = hashlib.sha256(content).hexdigest()
        return f"tokens of shape {tuple(self.batch.tokens.shape)}, {digest[:12]}"

    def sample(self, n: int, seed: int) -> Batch:
        """``n`` of the sequences, with replacement; the same seed gives the same."""
        rows = torch.randint(len(self.batch), (n,), generator=generator(seed))
        return self.batch[rows.to(self.batch.tokens.device)]


def data_for(
    model: HookedTransformer, data: DataSource | None, attention_mask: Mask | None = None
) -> Source:
    """``data``, or where there is none the task that ``model`` was built for.

    Args:
        attention_mask: of ``data``, where they are tokens.
    """
    data = getattr(model, "task", None) if data is None else data
    if data is None:
        raise GatedInterpError("no-training-data")
    if isinstance(data, Tensor | np.ndarray | list | tuple | Batch):
        return Sequences(read_batch(model, data, "data", attention_mask))
    if attention_mask is not None:
        raise GatedInterpError("mask-without-tokens")
    if isinstance(data, type) or not (isinstance(data, Sampler) or callable(data)):
        raise GatedInterpError("data-not-repeatable", kind=type(data).__name__)
    if isinstance(data, KnownAnswers):
        data.require_vocabulary(token_vocabulary(model))
    if isinstance(data, TextTask | TextPart | RepeatedText):
        require_text(model, data.part if isinstance(data, RepeatedText) else data)
    return data


def read_batch(
    model: HookedTransformer, given: Any, name: str, attention_mask: Mask | None = None
) -> Batch:
    """Tokens, alone or as ``(tokens, attention_mask)``, on the device of ``model``."""
    if isinstance(given, tuple) and len(given) == 2 and not isinstance(given[0][0], int):
        given, attention_mask = given
    if isinstance(given, Tensor):
        given = given.to(model.embed.W_E.device)
    found = Batch.of(model, given, attention_mask, name)
    shortest = found.tokens.shape[1] if found.real is None else int(found.real.sum(1).min())
    if shortest < 2:
        raise GatedInterpError("sequence-too-short", name=name, n=shortest)
    return found


def name_of(data: Any) -> str:
    """How a saved state remembers its data: a task by its identity, a function by its name."""
    named = getattr(data, "__qualname__", type(data).__name__)
    return str(getattr(data, "identity", named))


def draw(data: Source, n: int, seed: int, model: HookedTransformer) -> Batch:
    """``n`` sequences from ``data``, on the device of ``model``."""
    given = data.sample(n, seed) if isinstance(data, Sampler) else data(n, generator(seed))
    mask = focus = None
    if isinstance(data, Sampler) and not isinstance(given, Batch):
        # A document may end where a sequence of text does; that token is no padding.
        mask = torch.ones_like(given.tokens) if isinstance(given, TokenBatch) else None
        given, focus = given.tokens, getattr(given, "focus", None)
    found = read_batch(model, given, "tokens of the data source", mask)
    if focus is not None:
        focus = position_mask("focus", torch.as_tensor(focus), found.tokens)
        found = dataclasses.replace(found, focus=focus)
    if len(found) != n:
        raise GatedInterpError("wrong-number-of-sequences", found=len(found), n=n)
    return found


def batches(data: Source, config: TrainConfig, model: HookedTransformer) -> Callable[[int], Batch]:
    """The tokens of each update, as a function of its step."""
    if (shuffled := getattr(data, "shuffled", None)) is not None:  # a store's own order
        found: Callable[[int], Batch] = shuffled(config.update_size, config.seed)
        return found
    if config.data == "fresh":

        def fresh(step: int) -> Batch:
            seed = derive(config.seed, Stream.FRESH_BATCH, step)
            return draw(data, config.update_size, seed, model)

        return fresh

    whole = draw(data, config.n_sequences, derive(config.seed, Stream.FIXED_SET), model)
    per_epoch = config.n_sequences // config.update_size

    def in_order(step: int) -> Batch:
        start = (step % per_epoch) * config.update_size
        return whole[start : start + config.update_size]

    return in_order


def held_out_of(data: DataSource, config: TrainConfig, model: HookedTransformer) -> Batch | None:
    """The held-out sequences, from a seed of their own; ``None`` where none are asked for."""
    if not config.evaluate_every:
        return None
    source = held_out_part(data_for(model, data), "validation")
    return draw(source, config.n_held_out, derive(config.seed, Stream.HELD_OUT_SET), model)


def held_out_part(data: Source, name: Part) -> Source:
    """A text's ``validation`` or ``test`` part; other sources hold nothing out and are themselves.

    A part that is named already stays what it is, unless it is ``train``.
    """
    if isinstance(data, RepeatedText):
        data = data.part
    if isinstance(data, TextPart) and data.name == "train":
        data = data.task
    return data.part(name) if isinstance(data, TextTask) else data
