"""Sequences of several sources in fixed shares, such as text and repeated tokens."""

import dataclasses
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from gated_interp.core.errors import GatedInterpError
from gated_interp.core.seeds import derive, generator
from gated_interp.core.streams import Stream
from gated_interp.tasks.task import require_whole
from gated_interp.tasks.text import RepeatedText, TextTask, TokenBatch


@dataclasses.dataclass(frozen=True)
class RandomRepeats:
    """Random tokens, then the same again: what an induction head copies, in any vocabulary.

    Args:
        d_vocab: tokens are drawn from all of these.
        n_positions: tokens in a sequence, the one that it begins with included.
        bos: the token that it begins with, or ``None`` for nothing.

    Examples:
        >>> RandomRepeats(100, 7, bos=0).sample(1, seed=0).tokens.tolist()
        [[0, 44, 39, 33, 44, 39, 33]]
    """

    d_vocab: int
    n_positions: int
    bos: int | None = 0

    def __post_init__(self) -> None:
        require_whole("n_positions", self.n_positions, 5)

    @property
    def identity(self) -> str:
        """See :attr:`~gated_interp.tasks.text.TextTask.identity`."""
        return f"random repeats of {self.d_vocab} tokens, {self.n_positions} positions"

    def sample(self, n: int, seed: int) -> TokenBatch:
        """``n`` sequences; the same seed gives the same."""
        width = self.n_positions - (self.bos is not None)
        once = torch.randint(self.d_vocab, (n, -(-width // 2)), generator=generator(seed))
        lead = self.n_positions - width
        first = torch.full((n, lead), self.bos or 0)
        tokens = torch.cat([first, once, once], 1)[:, : self.n_positions]
        again = torch.arange(self.n_positions) >= lead + once.shape[1]
        return TokenBatch(tokens, again.expand(tokens.shape))


@dataclasses.dataclass(frozen=True)
class Mixture:
    """Sequences of several sources, each drawn with its share.

    Args:
        sources: what samples sequences, all of one length, such as the parts of a text.
        shares: of each, above 0; their sum is taken as the whole.

    Examples:
        >>> mixed = Mixture((RandomRepeats(9, 7), RandomRepeats(99, 7)), (1, 3))
        >>> mixed.sample(4, seed=0).tokens.shape
        torch.Size([4, 7])
    """

    sources: tuple[Any, ...]
    shares: tuple[float | int, ...]

    def __post_init__(self) -> None:
        if len(self.sources) != len(self.shares) or not self.shares or not min(self.shares) > 0:
            raise GatedInterpError("bad-shares", sources=len(self.sources), shares=self.shares)

    @property
    def identity(self) -> str:
        """See :attr:`~gated_interp.tasks.text.TextTask.identity`."""
        parts = zip(self.shares, self.sources, strict=True)
        return "; ".join(f"{share:g} of {source.identity}" for share, source in parts)

    def sample(self, n: int, seed: int) -> TokenBatch:
        """``n`` sequences, from each source as many as chance has it."""
        source = generator(derive(seed, Stream.MIXTURE))
        chances = torch.tensor(self.shares, dtype=torch.double)
        which = torch.multinomial(chances, n, replacement=True, generator=source)
        rows: list[Int[Tensor, " pos"]] = [torch.empty(0)] * n
        focus: list[Bool[Tensor, " pos"]] = [torch.empty(0)] * n
        for i, sampler in enumerate(self.sources):
            mine = (which == i).nonzero()[:, 0].tolist()
            if mine:
                drawn = sampler.sample(len(mine), derive(seed, Stream.MIXTURE, i))
                marked = getattr(drawn, "focus", None)
                marked = torch.zeros_like(drawn.tokens).bool() if marked is None else marked
                for row, tokens, where in zip(mine, drawn.tokens, marked, strict=True):
                    rows[row], focus[row] = tokens, where
        if len({len(row) for row in rows}) > 1:
            raise GatedInterpError("mixture-of-lengths", lengths=sorted({len(r) for r in rows}))
        return TokenBatch(torch.stack(rows), torch.stack(focus))


def with_repeats(text: TextTask) -> Mixture:
    """Text, text that repeats itself, and random tokens that do, in shares of 3 : 2 : 2.

    Plain text has few positions at which a model copies, so a block that is trained on it alone
    learns little of what induction heads do. Only the train part of ``text`` is used.
    """
    part = text.part("train")
    random = RandomRepeats(text.d_vocab, text.n_positions, text.bos)
    return Mixture((part, RepeatedText(part, 1.0), random), (3, 2, 2))
