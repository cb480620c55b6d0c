"""Any number of conditional answers, which two heads give without superposition.

The rule is that of OV-incoherent skip trigrams: after B comes its C, if an A stood before. One head
can write every C from B itself and another keep it quiet unless A came (Conerly, Jermyn & Olah,
*Transformer Circuits updates*, July 2023). The computation is distributed over the two, yet each
does one thing and nothing is superposed. A benchmark for methods that give every answer a head: a
model that passes is not what this one does, and with fewer heads than answers none can.

It differs from :class:`~gated_interp.tasks.skip_trigrams.SkipTrigramTask` in that each sequence
asks once, at its end, and as often as not without an A: half of all questions are foils.
"""

import dataclasses
from typing import ClassVar

import torch
from jaxtyping import Int
from torch import Tensor

from gated_interp.core.seeds import generator
from gated_interp.tasks.task import (
    KnownAnswers,
    Probes,
    answered_at_the_end,
    asked_at_the_end,
    require_whole,
)


@dataclasses.dataclass(frozen=True)
class ConditionalBatch:
    """Sequences, the question at the end of each, and whether an A stands before it.

    Attributes:
        tokens: ``[batch pos]``.
        case, has_source: ``[batch]``.
    """

    tokens: Int[Tensor, "batch pos"]
    case: Int[Tensor, " batch"]
    has_source: Int[Tensor, " batch"]


@dataclasses.dataclass(frozen=True)
class ConditionalTask(KnownAnswers):
    """``BOS … [A] … [Bi] -> [Ci]``; without the A, noise.

    Vocabulary: ``0`` = BOS, ``1`` = A; then questions B, answers C and noise. The question is
    uniform; an A is there in half of the sequences, at a place drawn uniformly; the rest is noise.

    Args:
        n_cases: questions.
        n_noise: noise tokens.
        n_positions: tokens in a sequence, BOS included.

    Raises:
        GatedInterpError: no question, no noise, or too few positions for BOS, A, B and C.

    Examples:
        >>> task = ConditionalTask()
        >>> task.d_vocab, task.cases[1]
        (18, 'A…B1→C1')
    """

    n_cases: int = 6
    n_noise: int = 4
    n_positions: int = 8

    case_word = "question"
    least: ClassVar = {"n_cases": 1, "n_noise": 1, "n_positions": 4}

    @property
    def d_vocab(self) -> int:
        """Size of the vocabulary."""
        return 2 + 2 * self.n_cases + self.n_noise

    @property
    def source(self) -> int:
        """The token A, which answers need."""
        return 1

    @property
    def cases(self) -> dict[int, str]:
        """The questions, such as ``A…B1→C1``."""
        return {i: f"A…B{i}→C{i}" for i in range(1, self.n_cases + 1)}

    @property
    def token_names(self) -> list[str]:
        """A readable name per token, ``BOS``, ``A``, ``B1``.., ``C1``.., ``N1``.."""
        numbered = [f"{letter}{i}" for letter in "BC" for i in self.cases]
        return ["BOS", "A", *numbered, *(f"N{i}" for i in range(1, self.n_noise + 1))]

    def question(self, case: Int[Tensor, "*any"]) -> Int[Tensor, "*any"]:
        """The token of each question."""
        return case + 1

    def answer(self, case: Int[Tensor, "*any"]) -> Int[Tensor, "*any"]:
        """The token that answers each question."""
        return case + 1 + self.n_cases

    def sample(self, n: int, seed: int | torch.Generator) -> ConditionalBatch:
        """``n`` sequences; the same seed gives the same.

        Raises:
            GatedInterpError: ``n`` is not positive, or a bad seed.
        """
        require_whole("n", n)
        source = generator(seed)
        tokens = torch.randint(self.n_noise, (n, self.n_positions), generator=source)
        tokens += 2 + 2 * self.n_cases
        case = torch.randint(1, self.n_cases + 1, (n,), generator=source)
        has = torch.randint(2, (n,), generator=source)
        at = 1 + torch.randint(self.n_positions - 3, (n,), generator=source)
        (there,) = (has > 0).nonzero(as_tuple=True)
        tokens[there, at[there]] = self.source
        tokens[:, 0], tokens[:, -2] = 0, self.question(case)
        tokens[there, -1] = self.answer(case[there])
        return ConditionalBatch(tokens, case, has)

    def probes(self, n: int, seed: int) -> Probes:
        """The questions of ``n`` sequences that an A precedes; the answer must come."""
        batch = self.sample(n, seed)
        return asked_at_the_end(
            batch.tokens, batch.case, self.answer(batch.case), batch.has_source > 0
        )

    def foils(self, n: int, seed: int) -> Probes:
        """The questions of ``n`` sequences without an A: the answer must not come."""
        batch = self.sample(n, seed)
        return asked_at_the_end(
            batch.tokens, batch.case, self.answer(batch.case), batch.has_source == 0
        )

    def answered(self, batch: ConditionalBatch) -> Int[Tensor, "batch pos"]:
        """The question at the end of each sequence that has an A; 0 elsewhere."""
        return answered_at_the_end(batch.tokens, batch.case * batch.has_source)
