"""A program as a task: what it answers at the last position, and pairs of clean and corrupted."""

import dataclasses
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from gated_interp.core.errors import GatedInterpError
from gated_interp.core.seeds import generator
from gated_interp.tasks.programs import NONE, PROGRAMS, Program
from gated_interp.tasks.task import KnownAnswers, Probes, require_whole


@dataclasses.dataclass(frozen=True)
class ProgramBatch:
    """Sequences and what is right after the last token of each.

    Attributes:
        tokens: ``[batch pos]``.
        answer: ``[batch]``, a token.
    """

    tokens: Int[Tensor, "batch pos"]
    answer: Int[Tensor, " batch"]


@dataclasses.dataclass(frozen=True)
class PromptPairs:
    """Clean and corrupted prompts of the same length, whose answers differ, and their metric.

    Attributes:
        clean, corrupted: ``[prompt pos]``, token ids.
        right, wrong: ``[prompt]``, the answer to the clean and to the corrupted prompt.
    """

    clean: Int[Tensor, "prompt pos"]
    corrupted: Int[Tensor, "prompt pos"]
    right: Int[Tensor, " prompt"]
    wrong: Int[Tensor, " prompt"]

    def metric(
        self,
        logits: Float[Tensor, "prompt pos d_vocab"],
        _tokens: Int[Tensor, "prompt pos"] | None = None,
    ) -> Float[Tensor, " prompt"]:
        """How far the clean answer is ahead of the corrupted one after the last token, in logits.

        Tokens are taken and not looked at, so that it is a metric for ``attribute_heads``.

        Examples:
            >>> pairs = ProgramTask("induction").pairs(4, seed=0)
            >>> pairs.metric(torch.zeros(4, 12, 12)).tolist()
            [0.0, 0.0, 0.0, 0.0]
        """
        last = logits[:, -1]
        return (last.gather(1, self.right[:, None]) - last.gather(1, self.wrong[:, None]))[:, 0]

    def __len__(self) -> int:
        return len(self.clean)


@dataclasses.dataclass(frozen=True)
class ProgramTask(KnownAnswers):
    """A program of :data:`~gated_interp.tasks.programs.PROGRAMS`, asked after the last token.

    Args:
        program: its name.

    Raises:
        GatedInterpError: no program has this name.

    Examples:
        >>> task = ProgramTask("either")
        >>> task.d_vocab, task.cases
        (10, {1: 'no', 2: 'yes'})
    """

    program: str

    case_word: ClassVar = "answer"

    def __post_init__(self) -> None:
        if self.program not in PROGRAMS:
            raise GatedInterpError("no-such-program", name=self.program, known=[*PROGRAMS])

    @property
    def rule(self) -> Program:
        """The program itself."""
        return PROGRAMS[self.program]

    @property
    def d_vocab(self) -> int:
        """Size of the vocabulary, answers included."""
        return len(self.rule.tokens)

    @property
    def n_positions(self) -> int:
        """Tokens in a sequence."""
        return self.rule.n_positions

    @property
    def token_names(self) -> list[str]:
        """A readable name per token."""
        return list(self.rule.tokens)

    @property
    def answers(self) -> list[int]:
        """The tokens that are an answer, ascending."""
        there = self.rule.answers(self.rule.draw(4000, generator(0)))[:, -1]
        return sorted(set(there.tolist()) - {NONE})

    @property
    def cases(self) -> dict[int, str]:
        """The answers, numbered from 1."""
        return {i: self.token_names[token] for i, token in enumerate(self.answers, 1)}

    def sample(self, n: int, seed: int | torch.Generator) -> ProgramBatch:
        """``n`` sequences that have an answer; the same seed gives the same.

        Raises:
            GatedInterpError: ``n`` is not positive, or a bad seed.
        """
        require_whole("n", n)
        source = generator(seed)
        tokens, answer = self._asked(n, source)
        while len(tokens) < n:
            more = self._asked(n, source)
            tokens, answer = torch.cat([tokens, more[0]]), torch.cat([answer, more[1]])
        return ProgramBatch(tokens[:n], answer[:n])

    def pairs(self, n: int, seed: int) -> PromptPairs:
        """``n`` pairs of prompts drawn independently, save that their answers differ.

        Args:
            n: how many.
            seed: the prompts are drawn from it; the same gives the same.

        Raises:
            GatedInterpError: ``n`` is not positive, or a bad seed.

        Examples:
            >>> pairs = ProgramTask("either").pairs(3, seed=0)
            >>> pairs.clean.shape, bool((pairs.right != pairs.wrong).all())
            (torch.Size([3, 10]), True)
        """
        require_whole("n", n)
        source, found = generator(seed), list[tuple[Tensor, ...]]()
        while sum(len(part[0]) for part in found) < n:
            clean, other = self.sample(n, source), self.sample(n, source)
            differ = clean.answer != other.answer
            columns = (clean.tokens, other.tokens, clean.answer, other.answer)
            found.append(tuple(column[differ] for column in columns))
        return PromptPairs(*(torch.cat(column)[:n] for column in zip(*found, strict=True)))

    def probes(self, n: int, seed: int) -> Probes:
        """The last position of each of ``n`` sequences and the answer there."""
        batch = self.sample(n, seed)
        return self._at_the_end(batch.tokens, batch.answer)

    def foils(self, n: int, seed: int) -> Probes:
        """The same places, and another answer there, which must not come."""
        batch, source = self.sample(n, seed), generator(seed)
        known = torch.tensor(self.answers)
        step = torch.randint(1, len(known), (n,), generator=source)
        return self._at_the_end(
            batch.tokens, known[(torch.searchsorted(known, batch.answer) + step) % len(known)]
        )

    def answered(self, batch: ProgramBatch) -> Int[Tensor, "batch pos"]:
        """The case of the answer at each last position; 0 elsewhere."""
        answered = torch.zeros_like(batch.tokens)
        answered[:, -1] = self._case(batch.answer)
        return answered

    def _asked(self, n: int, source: torch.Generator) -> tuple[Tensor, Tensor]:
        tokens = self.rule.draw(n, source)
        answer = self.rule.answers(tokens)[:, -1]
        return tokens[answer != NONE], answer[answer != NONE]

    def _case(self, answer: Tensor) -> Tensor:
        return torch.searchsorted(torch.tensor(self.answers), answer) + 1

    def _at_the_end(self, tokens: Tensor, target: Tensor) -> Probes:
        row = torch.arange(len(tokens))
        at = torch.full_like(row, tokens.shape[1] - 1)
        return Probes(tokens, row, at, target, self._case(target))
