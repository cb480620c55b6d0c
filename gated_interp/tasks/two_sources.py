"""An answer that needs two sources at once: a benchmark for methods that part heads.

After a question the answer comes only if *both* of its sources stood before. Wherever the two are
read by two heads, neither head alone makes the model answer: every case is distributed. A block
that is pressed to part its heads can give a case one head that reads one source, and then answers
where the other is missing, which foils show. Or that head reads both: two sources leave BOS less of
its attention than one does, so that one softmax can tell them apart.
"""

import dataclasses
from typing import Any, ClassVar

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
    two_places,
)


@dataclasses.dataclass(frozen=True)
class QuestionBatch:
    """Sequences and what each asks for.

    Attributes:
        tokens: ``[batch pos]``.
        case: ``[batch]``, the question at the end.
        has_first, has_second: ``[batch]``, whether each of its sources stands before.
    """

    tokens: Int[Tensor, "batch pos"]
    case: Int[Tensor, " batch"]
    has_first: Int[Tensor, " batch"]
    has_second: Int[Tensor, " batch"]


@dataclasses.dataclass(frozen=True)
class TwoSourcesTask(KnownAnswers):
    """``[Ai] … [Xi] … [Bi] -> [Ci]``, in any order of the sources; with one of them, noise.

    Vocabulary: ``0`` = BOS; then first sources A, second sources X, questions B, answers C (one of
    each for every case) and noise. Each source of the question is there with probability 3/4,
    independently, at places drawn uniformly; the rest is noise, and so is what follows a question
    that lacks a source.

    Args:
        n_cases: questions.
        n_noise: noise tokens.
        n_positions: tokens in a sequence, BOS included.

    Raises:
        GatedInterpError: no case, no noise, or too few positions for two sources and a question.

    Examples:
        >>> task = TwoSourcesTask(n_cases=3)
        >>> task.d_vocab, task.cases[1]
        (17, 'A1…X1…B1→C1')
    """

    n_cases: int = 3
    n_noise: int = 4
    n_positions: int = 8

    case_word = "question"
    least: ClassVar = {"n_cases": 1, "n_noise": 1, "n_positions": 5}

    @property
    def d_vocab(self) -> int:
        """Size of the vocabulary."""
        return 1 + 4 * self.n_cases + self.n_noise

    @property
    def cases(self) -> dict[int, str]:
        """The questions, such as ``A1…X1…B1→C1``."""
        return {i: f"A{i}…X{i}…B{i}→C{i}" for i in range(1, self.n_cases + 1)}

    @property
    def token_names(self) -> list[str]:
        """A readable name per token, ``BOS``, ``A1``.., ``X1``.., ``B1``.., ``C1``.., ``N1``.."""
        numbered = [f"{letter}{i}" for letter in "AXBC" for i in self.cases]
        return ["BOS", *numbered, *(f"N{i}" for i in range(1, self.n_noise + 1))]

    def token(self, letter: str, case: Any) -> Any:
        """The token of a case or of each: A and X its sources, B its question, C its answer."""
        return "AXBC".index(letter) * self.n_cases + case

    def sample(self, n: int, seed: int | torch.Generator) -> QuestionBatch:
        """``n`` sequences; the same seed gives the same.

        Raises:
            GatedInterpError: ``n`` is not positive, or a bad seed.
        """
        require_whole("n", n)
        source = generator(seed)
        room = self.n_positions - 3
        tokens = torch.randint(self.n_noise, (n, self.n_positions), generator=source)
        tokens += 1 + 4 * self.n_cases
        case = torch.randint(1, self.n_cases + 1, (n,), generator=source)
        there = torch.randint(4, (n, 2), generator=source) > 0
        first, second = two_places(n, room, source)
        rows = torch.arange(n)
        for letter, place, has in (("A", first, there[:, 0]), ("X", second, there[:, 1])):
            tokens[rows[has], 1 + place[has]] = self.token(letter, case[has])
        both = there.all(1)
        tokens[:, 0], tokens[:, -2] = 0, self.token("B", case)
        tokens[both, -1] = self.token("C", case[both])
        return QuestionBatch(tokens, case, there[:, 0].long(), there[:, 1].long())

    def probes(self, n: int, seed: int) -> Probes:
        """The questions of ``n`` sequences that have both sources."""
        batch = self.sample(n, seed)
        return self._asked(batch, batch.has_first + batch.has_second == 2)

    def foils(self, n: int, seed: int) -> Probes:
        """The questions of ``n`` sequences that have one source: the answer must not come."""
        batch = self.sample(n, seed)
        return self._asked(batch, batch.has_first + batch.has_second == 1)

    def answered(self, batch: QuestionBatch) -> Int[Tensor, "batch pos"]:
        """The case at each question that has both sources; 0 elsewhere."""
        there = batch.case * batch.has_first * batch.has_second
        return answered_at_the_end(batch.tokens, there)

    def _asked(self, batch: QuestionBatch, kept: Tensor) -> Probes:
        return asked_at_the_end(batch.tokens, batch.case, self.token("C", batch.case), kept)
