"""Content wider than a head: a benchmark that heads of one dimension cannot pass.

A question asks for what its source says, and that is one of several contents. A head of one
dimension writes a multiple of one vector, so whatever it reads, one of two tokens is on top: alone
it gives a question two of its contents at most. Several heads that read the same source share what
one of them is too narrow for, and no way of parting heads of that width gives a question to one.
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
    places,
    require_whole,
)


@dataclasses.dataclass(frozen=True)
class ContentBatch:
    """Sequences, the question at the end of each and what its sources say.

    Attributes:
        tokens: ``[batch pos]``.
        case: ``[batch]``, the question.
        content: ``[batch source]``, what each question's source says, from 1.
    """

    tokens: Int[Tensor, "batch pos"]
    case: Int[Tensor, " batch"]
    content: Int[Tensor, "batch source"]


@dataclasses.dataclass(frozen=True)
class WideContentTask(KnownAnswers):
    """``BOS … [S1i] … [S2j] … [B1] -> [Ci]`` and ``… [B2] -> [Cj]``, the sources in any order.

    Vocabulary: ``0`` = BOS; then sources (for each question one token per content), questions,
    answers (one per content, the same for every question) and noise. Every sequence has one source
    of each question, its content uniform; which question ends it is uniform too.

    Args:
        n_cases: questions.
        n_contents: what a source may say; from 3 on it is wider than a head of one dimension.
        n_noise: noise tokens.
        n_positions: tokens in a sequence, BOS included.

    Raises:
        GatedInterpError: fewer than two questions or three contents, no noise, or too few positions
            for BOS, every source, a question and its answer.

    Examples:
        >>> task = WideContentTask()
        >>> task.d_vocab, task.cases[1]
        (19, 'S1x…B1→Cx')
    """

    n_cases: int = 2
    n_contents: int = 4
    n_noise: int = 4
    n_positions: int = 9

    case_word = "question"
    least: ClassVar = {"n_cases": 2, "n_contents": 3, "n_noise": 1}

    def __post_init__(self) -> None:
        super().__post_init__()
        require_whole("n_positions", self.n_positions, self.n_cases + 3)

    @property
    def d_vocab(self) -> int:
        """Size of the vocabulary."""
        return 1 + self.n_cases * (self.n_contents + 1) + self.n_contents + self.n_noise

    @property
    def cases(self) -> dict[int, str]:
        """The questions, such as ``S1x…B1→Cx``."""
        return {i: f"S{i}x…B{i}→Cx" for i in range(1, self.n_cases + 1)}

    @property
    def token_names(self) -> list[str]:
        """A readable name per token, ``BOS``, ``S11``.., ``B1``.., ``C1``.., ``N1``.."""
        contents = range(1, self.n_contents + 1)
        sources = [f"S{i}{x}" for i in self.cases for x in contents]
        rest = [*(f"B{i}" for i in self.cases), *(f"C{x}" for x in contents)]
        return ["BOS", *sources, *rest, *(f"N{i}" for i in range(1, self.n_noise + 1))]

    def source(
        self, case: Int[Tensor, "*#any"], content: Int[Tensor, "*#any"]
    ) -> Int[Tensor, "*any"]:
        """The token of each question's source that says each content."""
        return (case - 1) * self.n_contents + content

    def question(self, case: Int[Tensor, "*any"]) -> Int[Tensor, "*any"]:
        """The token of each question."""
        return case + self.n_cases * self.n_contents

    def answer(self, content: Int[Tensor, "*any"]) -> Int[Tensor, "*any"]:
        """The token that says each content at the end."""
        return content + self.n_cases * (self.n_contents + 1)

    def sample(self, n: int, seed: int | torch.Generator) -> ContentBatch:
        """``n`` sequences; the same seed gives the same.

        Raises:
            GatedInterpError: ``n`` is not positive, or a bad seed.
        """
        require_whole("n", n)
        source = generator(seed)
        tokens = torch.randint(self.n_noise, (n, self.n_positions), generator=source)
        tokens += self.d_vocab - self.n_noise
        case = torch.randint(1, self.n_cases + 1, (n,), generator=source)
        content = torch.randint(1, self.n_contents + 1, (n, self.n_cases), generator=source)
        at = 1 + places(n, self.n_cases, self.n_positions - 3, source)
        tokens.scatter_(1, at, self.source(torch.arange(1, self.n_cases + 1), content))
        tokens[:, 0], tokens[:, -2] = 0, self.question(case)
        tokens[:, -1] = self.answer(content[torch.arange(n), case - 1])
        return ContentBatch(tokens, case, content)

    def probes(self, n: int, seed: int) -> Probes:
        """The question of each of ``n`` sequences; the answer is its own source's content."""
        batch = self.sample(n, seed)
        return asked_at_the_end(batch.tokens, batch.case, batch.tokens[:, -1])

    def foils(self, n: int, seed: int) -> Probes:
        """The questions whose next question's source says something else: that must not come."""
        batch = self.sample(n, seed)
        following = batch.content[torch.arange(n), batch.case % self.n_cases]
        target = self.answer(following)
        return asked_at_the_end(batch.tokens, batch.case, target, target != batch.tokens[:, -1])

    def answered(self, batch: ContentBatch) -> Int[Tensor, "batch pos"]:
        """The question at the end of each sequence; 0 elsewhere."""
        return answered_at_the_end(batch.tokens, batch.case)
