"""Repeated random tokens: what induction heads of two-layer models are for.

Random tokens, then the same again. Where a token has come before, what followed it then follows
again; which token that is no table of tokens can say, and as the period differs between sequences,
no table of positions either. Two layers of attention solve it: a previous-token head in the first,
an induction head, which matches the prefix, in the second (Elhage et al., *A Mathematical Framework
for Transformer Circuits*, 2021; Olsson et al., *In-context Learning and Induction Heads*, 2022).
"""

import dataclasses
from typing import ClassVar

import torch
from jaxtyping import Int
from torch import Tensor

from gated_interp.core.errors import GatedInterpError
from gated_interp.core.seeds import generator
from gated_interp.tasks.task import KnownAnswers, Probes, places, require_whole


@dataclasses.dataclass(frozen=True)
class RepeatedBatch:
    """Sequences and after how many tokens each begins again.

    Attributes:
        tokens: ``[batch pos]``, each row starting with BOS.
        period: ``[batch]``.
    """

    tokens: Int[Tensor, "batch pos"]
    period: Int[Tensor, " batch"]


@dataclasses.dataclass(frozen=True)
class RepeatedTokensTask(KnownAnswers):
    """``BOS, t1 … tp, t1 … tp, t1 …``: different random tokens, repeated to the sequence's end.

    Vocabulary: ``0`` = BOS; then tokens. The period is uniform between its bounds, and its tokens
    are drawn without repetition, so that only one token has followed each. From the second copy on
    every next token can be predicted; it is a case of the token that stands before it.

    Args:
        n_tokens: tokens besides BOS; more than the longest period.
        shortest, longest: bounds of the period, both included.
        n_positions: tokens in a sequence, BOS included.

    Raises:
        GatedInterpError: a period of less than 2 (a token that repeats at once needs no second
            layer), bounds in the wrong order, too few tokens, or positions for less than one
            prediction after the longest period.

    Examples:
        >>> task = RepeatedTokensTask()
        >>> task.d_vocab, task.cases[2]
        (13, 'T2 X…T2→X')
    """

    n_tokens: int = 12
    shortest: int = 4
    longest: int = 8
    n_positions: int = 16

    case_word = "token"
    least: ClassVar = {"n_tokens": 3, "shortest": 2, "longest": 2, "n_positions": 5}

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.shortest <= self.longest < self.n_tokens:
            raise GatedInterpError(
                "bad-periods", shortest=self.shortest, longest=self.longest, n_tokens=self.n_tokens
            )
        require_whole("n_positions", self.n_positions, self.longest + 3)

    @property
    def d_vocab(self) -> int:
        """Size of the vocabulary."""
        return 1 + self.n_tokens

    @property
    def cases(self) -> dict[int, str]:
        """The tokens whose follower is to come again, such as ``T1 X…T1→X``."""
        return {i: f"T{i} X…T{i}→X" for i in range(1, self.n_tokens + 1)}

    @property
    def token_names(self) -> list[str]:
        """A readable name per token, ``BOS``, ``T1``.."""
        return ["BOS", *(f"T{i}" for i in self.cases)]

    def sample(self, n: int, seed: int | torch.Generator) -> RepeatedBatch:
        """``n`` sequences; the same seed gives the same.

        Raises:
            GatedInterpError: ``n`` is not positive, or a bad seed.
        """
        require_whole("n", n)
        source = generator(seed)
        drawn = 1 + places(n, self.longest, self.n_tokens, source)
        period = torch.randint(self.shortest, self.longest + 1, (n,), generator=source)
        tokens = torch.zeros(n, self.n_positions, dtype=torch.long)
        tokens[:, 1:] = drawn.gather(1, torch.arange(self.n_positions - 1) % period[:, None])
        return RepeatedBatch(tokens, period)

    def probes(self, n: int, seed: int) -> Probes:
        """Every position of ``n`` sequences whose token has come before, but the last."""
        batch = self.sample(n, seed)
        case = self.answered(batch)[:, :-1]
        row, position = case.nonzero(as_tuple=True)
        target = batch.tokens[row, position + 1]
        return Probes(batch.tokens, row, position, target, case[row, position])

    def foils(self, n: int, seed: int) -> Probes:
        """One such position in each of ``n`` sequences, its token replaced by one that is new.

        No prefix matches there, so what would have come must not: a head that goes by position, or
        by the token before, answers it. The case is that of the token replaced.
        """
        source = generator(seed)
        batch = self.sample(n, source)
        first, rows = batch.period + 1, torch.arange(n)
        room = self.n_positions - 1 - first
        at = first + (torch.rand(n, generator=source, dtype=torch.double) * room).long()
        case, target = batch.tokens[rows, at], batch.tokens[rows, at + 1]
        fresh = torch.ones(n, self.d_vocab).scatter(1, batch.tokens, 0)
        tokens = batch.tokens.clone()
        tokens[rows, at] = torch.multinomial(fresh, 1, generator=source)[:, 0]
        return Probes(tokens, rows, at, target, case)

    def answered(self, batch: RepeatedBatch) -> Int[Tensor, "batch pos"]:
        """The token at each position from the second copy on; 0 before."""
        return batch.tokens * (torch.arange(self.n_positions) > batch.period[:, None])
