"""Tokens as an analysis takes them: whole numbers that the model can read, with padding known."""

import dataclasses
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformer_lens import ActivationCache
from transformer_lens.utilities.tokenize_utils import get_attention_mask

from gated_interp.core.errors import GatedInterpError
from gated_interp.models.toy import HookedTransformer

Mask = Tensor | np.ndarray | Sequence[Any]
"""``[batch pos]``, 1 (or True) at tokens and 0 at padding."""

AT_ONCE, FEW, MOST = 2**22, 2**8, 2**24
"""How many logits are there at once, beyond those of one sequence. ``AT_ONCE`` logits stay in the
cache. With a large vocabulary they are those of a few positions, and every pass reads all weights
for so little: then there are as many as ``FEW`` positions have, but at most ``MOST``."""


@dataclasses.dataclass(frozen=True)
class Batch:
    """Sequences that a model can read, and which of their positions are padding.

    Attributes:
        tokens: ``[batch pos]``.
        real: ``[batch pos]``, where there is a token; ``None`` where nothing is padding.
        masked: whether the model must be told that nothing is padding: with a tokenizer that pads
            on the left, TransformerLens would look for pads by itself.
        next_token: whether the model predicts tokens of its own vocabulary, so that there is a
            loss.
        focus: ``[batch pos]``, the positions that a training with ``focus_weight`` weighs more;
            ``None`` where none is marked.
    """

    tokens: Int[Tensor, "batch pos"]
    real: Bool[Tensor, "batch pos"] | None = None
    masked: bool = False
    next_token: bool = True
    focus: Bool[Tensor, "batch pos"] | None = None

    @classmethod
    def of(
        cls,
        model: HookedTransformer,
        tokens: "Tokens | None",
        attention_mask: Mask | None = None,
        name: str = "tokens",
        *,
        padding: bool = True,
    ) -> "Batch":
        """``tokens`` as ``model`` reads them.

        Args:
            attention_mask: which positions hold a token; needed where rows begin or end with the
                tokenizer's pad token.
            name: of the argument, for messages.
            padding: whether the caller takes padded rows at all.

        Raises:
            GatedInterpError: not whole numbers of shape [batch, pos], empty, outside the
                vocabulary, longer than the context, or on another device; a mask of another shape,
                with gaps, of a row without tokens, or for a model that cannot take one; pad tokens
                without a mask.
        """
        if isinstance(tokens, Batch):
            return tokens
        ids = read_tokens(tokens, name, None if isinstance(tokens, Tensor) else _device(model))
        require_known(model, ids, name)
        tokenizer = getattr(model, "tokenizer", None)
        left = tokenizer is not None and getattr(tokenizer, "padding_side", "") == "left"
        found = cls(ids, None, left, model.cfg.d_vocab_out in (-1, model.cfg.d_vocab))
        if attention_mask is None:
            _require_no_pads(tokenizer, ids, name, padding)
            return found
        real = _real(attention_mask, ids)
        if bool(real.all()):
            return found
        if model.cfg.attention_dir != "causal":
            raise GatedInterpError("padding-in-both-directions")
        return dataclasses.replace(found, real=real, masked=True)

    @classmethod
    def of_rows(cls, model: HookedTransformer, rows: Sequence[Sequence[int]]) -> "Batch":
        """Rows of any lengths, the shorter ones padded on the right; raises as :meth:`of`."""
        longest = max(map(len, rows))
        real = [[1] * len(row) + [0] * (longest - len(row)) for row in rows]
        return cls.of(model, [[*row, *[0] * (longest - len(row))] for row in rows], real)

    def __len__(self) -> int:
        return len(self.tokens)

    @cached_property
    def attention_mask(self) -> Int[Tensor, "batch pos"] | None:
        """What the model is given beside the tokens; ``None`` where it needs nothing."""
        return self.counted.long() if self.masked else None

    @property
    def counted(self) -> Bool[Tensor, "batch pos"]:
        """Where there is a token: the positions that a mean counts."""
        return torch.ones_like(self.tokens, dtype=torch.bool) if self.real is None else self.real

    @property
    def later(self) -> Bool[Tensor, "batch pos"]:
        """Where there is a token that is not the first of its row."""
        return self.counted & (self.counted.cumsum(1) > 1)

    def require_loss(self) -> None:
        """Refuse a model that predicts no tokens of its vocabulary.

        Raises:
            GatedInterpError: d_vocab_out differs from d_vocab.
        """
        if not self.next_token:
            raise GatedInterpError("no-next-token")

    @property
    def predicts(self) -> Bool[Tensor, "batch next_pos"]:
        """The positions whose next token is known: the loss counts these."""
        return self.counted[:, :-1] & self.counted[:, 1:]

    @property
    def known(self) -> Bool[Tensor, "batch next_pos"] | None:
        """:attr:`predicts`; ``None`` where nothing is padding, so that every position counts."""
        return None if self.real is None else self.predicts

    def logits(self, model: HookedTransformer, **kwargs: Any) -> Float[Tensor, "batch pos _"]:
        """What ``model`` predicts; ``kwargs`` (such as ``stop_at_layer``) as for its forward."""
        found: Tensor = model(self.tokens, attention_mask=self.attention_mask, **kwargs)
        return found

    def cache(
        self, model: HookedTransformer, names: Any = None, **kwargs: Any
    ) -> tuple[Float[Tensor, "batch pos _"], ActivationCache]:
        """What ``model`` predicts, and its activations at hook points ``names`` (all: ``None``)."""
        mask = self.attention_mask
        logits, cache = model.run_with_cache(
            self.tokens, attention_mask=mask, names_filter=names, **kwargs
        )
        named = [names] if isinstance(names, str) else names if isinstance(names, list) else []
        for name in named:
            if name in model.hook_dict and name not in cache:
                raise GatedInterpError("hook-not-reached", hook=name, what="nothing was read there")
        return logits, cache

    def chunk(self, parts: int) -> "list[Batch]":
        """The same in at most so many parts of equal size, as ``torch.chunk``."""
        return self.split(-(-len(self) // parts))

    def split(self, rows: int) -> "list[Batch]":
        """The same in parts of at most ``rows`` sequences."""
        return [self[first : first + rows] for first in range(0, len(self), rows)]

    def __getitem__(self, rows: Any) -> "Batch":
        """Some of the sequences."""
        return dataclasses.replace(self, **self._each(lambda table: table[rows]))

    def repeated(self, times: int) -> "Batch":
        """The same, so many times below each other."""
        return dataclasses.replace(self, **self._each(lambda table: table.repeat(times, 1)))

    def _each(self, change: Callable[[Tensor], Tensor]) -> dict[str, Any]:
        """What each table of positions is after ``change``."""
        tables = {"tokens": self.tokens, "real": self.real, "focus": self.focus}
        return {name: change(table) for name, table in tables.items() if table is not None}

    def mean(self, values: Float[Tensor, "batch pos *rest"]) -> Float[Tensor, "*rest"]:
        """The mean over the positions that hold a token."""
        if self.real is None:
            return values.mean((0, 1))
        return values[self.real].mean(0)


# No shape here: what is wrong with it is said by Batch.of.
Tokens = Tensor | np.ndarray | Sequence[Any] | Batch
"""Token numbers ``[batch pos]``: a tensor or array of any integer type, a list of lists, or a batch
that has been read already."""


def attention_mask(model: HookedTransformer, tokens: Tokens) -> Int[Tensor, "batch pos"]:
    """Where ``tokens`` are no padding, by the pad token of the model's tokenizer.

    As TransformerLens finds it, on both sides: what a row begins or ends with is padding while it
    is the pad token, and a BOS that is the same token counts as one. A row that really ends with
    that token needs a mask of your own.

    Args:
        tokens: ``[batch pos]``, padded on either side.

    Returns:
        1 at tokens and 0 at padding, what functions take as ``attention_mask``.

    Raises:
        GatedInterpError: no tokenizer that names a pad token, or tokens the model cannot read.

    Examples:
        >>> from types import SimpleNamespace
        >>> from gated_interp.models.toy import ToyConfig, build_toy
        >>> model = build_toy(ToyConfig(n_trigrams=3, n_heads=2))
        >>> model.tokenizer = SimpleNamespace(pad_token_id=7, bos_token_id=0, padding_side="left")
        >>> attention_mask(model, [[7, 7, 2, 3], [2, 7, 3, 7]]).tolist()
        [[0, 0, 1, 1], [1, 1, 1, 0]]
    """
    if isinstance(tokens, Batch):
        return tokens.counted.long()
    tokenizer: Any = getattr(model, "tokenizer", None)
    if getattr(tokenizer, "pad_token_id", None) is None:
        raise GatedInterpError("padding-unknown")
    ids = read_tokens(tokens, "tokens", _device(model))
    require_known(model, ids, "tokens")
    left, right = (
        get_attention_mask(tokenizer, ids, model.cfg.default_prepend_bos, side)
        for side in ("left", "right")
    )
    return left * right


def logit_rows(batch: Batch, d_vocab: int) -> int:
    """Sequences whose logits are there at once; at least one."""
    return max(1, logits_at_once(d_vocab) // (batch.tokens.shape[1] * d_vocab))


def logits_at_once(d_vocab: int) -> int:
    """See :data:`AT_ONCE`."""
    return max(AT_ONCE, min(MOST, FEW * d_vocab))


def position_mask(name: str, mask: Tensor, tokens: Tensor) -> Bool[Tensor, "batch pos"]:
    """``mask``, ``[batch pos]`` or ``[pos]``, for every position of ``tokens``."""
    if mask.dtype != torch.bool or mask.shape not in (tokens.shape, tokens.shape[1:]):
        raise GatedInterpError(
            "bad-mask",
            name=name,
            shape=tuple(mask.shape),
            dtype=str(mask.dtype),
            wanted=tuple(tokens.shape),
            positions=tuple(tokens.shape[1:]),
        )
    return mask.to(tokens.device).expand(tokens.shape)


def token_vocabulary(model: HookedTransformer) -> int:
    """How many tokens the model reads and predicts."""
    if model.cfg.d_vocab_out not in (-1, model.cfg.d_vocab):
        raise GatedInterpError("no-next-token")
    return int(model.cfg.d_vocab)


def read_tokens(
    tokens: Any, name: str = "tokens", device: torch.device | None = None
) -> Int[Tensor, "batch pos"]:
    """``tokens`` as a tensor of whole numbers."""
    try:
        ids = tokens if isinstance(tokens, Tensor) else torch.as_tensor(np.asarray(tokens))
    except (TypeError, ValueError, RuntimeError):
        raise GatedInterpError("tokens-not-a-table", name=name) from None
    whole = not (ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool)
    if ids.ndim != 2 or not whole or ids.numel() == 0:
        raise GatedInterpError(
            "tokens-wrong-shape", name=name, shape=tuple(ids.shape), dtype=str(ids.dtype)
        )
    return ids.to(device=device, dtype=torch.long) if device else ids.long()


def require_known(model: HookedTransformer, ids: Int[Tensor, "batch pos"], name: str) -> None:
    """Refuse tokens that ``model`` does not know, too many of them, or on another device."""
    here, there = _device(model), ids.device
    if here != there:
        raise GatedInterpError(
            "tokens-on-another-device", name=name, there=str(there), here=str(here)
        )
    low, high, size = int(ids.min()), int(ids.max()), model.cfg.d_vocab
    if low < 0 or high >= size:
        raise GatedInterpError(
            "token-outside-vocabulary", name=name, token=low if low < 0 else high, last=size - 1
        )
    if ids.shape[1] > model.cfg.n_ctx:
        raise GatedInterpError(
            "sequence-too-long", name=name, n=ids.shape[1], n_ctx=model.cfg.n_ctx
        )


def _device(model: HookedTransformer) -> torch.device:
    device: torch.device = model.embed.W_E.device
    return device


def _real(attention_mask: Any, ids: Int[Tensor, "batch pos"]) -> Bool[Tensor, "batch pos"]:
    mask = torch.as_tensor(attention_mask).to(ids.device)
    if mask.shape != ids.shape or bool(((mask != 0) & (mask != 1)).any()):
        raise GatedInterpError(
            "bad-attention-mask", shape=tuple(mask.shape), wanted=tuple(ids.shape)
        )
    real = mask.bool()
    if not bool(real.any(1).all()):
        row = int((~real.any(1)).nonzero()[0])
        raise GatedInterpError("row-all-padding", row=row)
    starts = real[:, 0].long() + (real[:, 1:] & ~real[:, :-1]).sum(1)
    if bool((starts > 1).any()):
        row = int((starts > 1).nonzero()[0])
        raise GatedInterpError("gap-in-attention-mask", row=row)
    return real


def _require_no_pads(
    tokenizer: Any, ids: Int[Tensor, "batch pos"], name: str, padding: bool
) -> None:
    """Refuse rows that begin or end with the tokenizer's pad token: nobody said what they are."""
    pad = getattr(tokenizer, "pad_token_id", None)
    if pad is None or ids.shape[1] < 2:
        return
    # Many tokenizers pad with the token that a sequence begins with: one of these is no padding.
    first = ids[:, 1] if pad == getattr(tokenizer, "bos_token_id", None) else ids[:, 0]
    padded = (ids[:, -1] == pad) | (first == pad)
    if bool(padded.any()):
        raise GatedInterpError(
            "unmarked-padding" if padding else "padding-not-allowed",
            row=int(padded.nonzero()[0]),
            name=name,
            pad=pad,
        )
