"""Where the tokens of each step come from: every batch is a function of (seed, step)."""

import dataclasses
import hashlib
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Int
from torch import Tensor

from gated_interp.anatomy.batch import token_vocabulary
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


Source = Sampler | Callable[[int, torch.Generator], Tensor]
DataSource = Source | Tensor
"""A :class:`Sampler`, a function of (n, generator) that returns tokens ``[batch pos]``, or tokens
``[sequence pos]`` to draw from."""


@dataclasses.dataclass(frozen=True, eq=False)
class Sequences:
    """Tokens as a source of data: sequences are drawn from them, each as likely.

    Attributes:
        tokens: ``[sequence pos]``.
    """

    tokens: Int[Tensor, "sequence pos"]

    @property
    def identity(self) -> str:
        """What a training must share with a saved one to go on from it."""
        digest = hashlib.sha256(self.tokens.cpu().contiguous().numpy().tobytes()).hexdigest()
        return f"tokens of shape {tuple(self.tokens.shape)}, {digest[:12]}"

    def sample(self, n: int, seed: int) -> TokenBatch:
        """``n`` of the sequences, with replacement; the same seed gives the same."""
        rows = torch.randint(len(self.tokens), (n,), generator=generator(seed))
        return TokenBatch(self.tokens[rows.to(self.tokens.device)])


def data_for(model: HookedTransformer, data: DataSource | None) -> Source:
    """``data``, or where there is none the task that ``model`` was built for.

    Raises:
        GatedInterpError: neither is there, the task is not for this model, or something else.
    """
    data = getattr(model, "task", None) if data is None else data
    if data is None:
        raise GatedInterpError("the model names no task; give data=, a task or a function.")
    if isinstance(data, Tensor):
        require_tokens_of(data)
        return Sequences(data)
    if isinstance(data, type) or not (isinstance(data, Sampler) or callable(data)):
        raise GatedInterpError(
            f"data is a {type(data).__name__}, whose batches are not a function of seed and step; "
            "give tokens [sequence pos] (of a DataLoader torch.cat(list(loader))), a task, or a "
            "function of (n, generator)."
        )
    if isinstance(data, KnownAnswers):
        data.require_vocabulary(token_vocabulary(model))
    if isinstance(data, TextTask | TextPart | RepeatedText):
        require_text(model, data.part if isinstance(data, RepeatedText) else data)
    return data


def require_tokens_of(tokens: Tensor) -> None:
    """Refuse a tensor that is not sequences of tokens.

    Raises:
        GatedInterpError: naming what it is.
    """
    if tokens.ndim != 2 or tokens.is_floating_point() or not len(tokens):
        raise GatedInterpError(
            f"data is {tokens.dtype} of shape {tuple(tokens.shape)}; it must be whole numbers of "
            "shape [sequence, pos], at least one sequence."
        )


def name_of(data: Any) -> str:
    """How a saved state remembers its data: a task by its identity, a function by its name."""
    named = getattr(data, "__qualname__", type(data).__name__)
    return str(getattr(data, "identity", named))


def draw(data: Source, n: int, seed: int, model: HookedTransformer) -> Int[Tensor, "n pos"]:
    """``n`` sequences from ``data``, on the device of ``model``.

    Raises:
        GatedInterpError: what came is not for ``model``, see :func:`require_batch`.
    """
    given = data.sample(n, seed).tokens if isinstance(data, Sampler) else data(n, generator(seed))
    require_batch(given, n, model)
    return given.to(model.embed.W_E.device)


def batches(
    data: Source, config: TrainConfig, model: HookedTransformer
) -> Callable[[int], Int[Tensor, "batch pos"]]:
    """The tokens of each update, as a function of its step.

    Raises:
        GatedInterpError: (by that function) tokens that ``model`` cannot read.
    """

    if config.data == "fresh":

        def fresh(step: int) -> Int[Tensor, "batch pos"]:
            seed = derive(config.seed, Stream.FRESH_BATCH, step)
            return draw(data, config.update_size, seed, model)

        return fresh

    whole = draw(data, config.n_sequences, derive(config.seed, Stream.FIXED_SET), model)
    per_epoch = config.n_sequences // config.update_size

    def in_order(step: int) -> Int[Tensor, "batch pos"]:
        start = (step % per_epoch) * config.update_size
        return whole[start : start + config.update_size]

    return in_order


def held_out_of(
    data: DataSource, config: TrainConfig, model: HookedTransformer
) -> Int[Tensor, "n pos"] | None:
    """The held-out sequences, from a seed of their own; ``None`` where none are asked for.

    Raises:
        GatedInterpError: as :func:`data_for`; tokens that ``model`` cannot read.
    """
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


def require_batch(tokens: Any, n: int, model: HookedTransformer) -> None:
    """Refuse a batch that is not ``n`` sequences of next-token data for ``model``.

    Raises:
        GatedInterpError: wrong shape or type, outside the vocabulary, or longer than the context.
    """
    if not isinstance(tokens, Tensor):
        raise GatedInterpError(
            f"the data source gave a {type(tokens).__name__}; it must give a tensor of tokens."
        )
    if tokens.ndim != 2 or tokens.is_floating_point() or len(tokens) != n or tokens.shape[1] < 2:
        raise GatedInterpError(
            f"the data source gave {tokens.dtype} of shape {tuple(tokens.shape)}; it must give "
            f"whole numbers of shape [{n}, pos], pos at least 2."
        )
    if tokens.shape[1] > model.cfg.n_ctx:
        raise GatedInterpError(
            f"the data source gave {tokens.shape[1]} positions; the model's context has "
            f"{model.cfg.n_ctx}."
        )
    low, high = int(tokens.min()), int(tokens.max())
    if low < 0 or high >= model.cfg.d_vocab:
        raise GatedInterpError(
            f"the data source gave token {low if low < 0 else high}, which is outside the model's "
            f"vocabulary 0 to {model.cfg.d_vocab - 1}."
        )
