"""OV-coherent pairs: an answer that adds up from what two sources say.

From the discussion of attention head superposition in *Transformer Circuits updates*, May 2023.
Two signals and some noise, then a read-off; the answer names the unordered pair of signals. What a
head reads of each source is the same whatever the other is (the OV circuits are coherent), so one
head with as many dimensions as there are signals solves it; two heads of one dimension each are the
case in which superposition pays.
"""

import dataclasses
from functools import cached_property
from itertools import combinations_with_replacement
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
    two_places,
)


@dataclasses.dataclass(frozen=True)
class PairBatch:
    """Sequences and the pair that each asks for.

    Attributes:
        tokens: ``[batch pos]``.
        case: ``[batch]``, the pair, as ``task.cases`` numbers them.
    """

    tokens: Int[Tensor, "batch pos"]
    case: Int[Tensor, " batch"]


@dataclasses.dataclass(frozen=True)
class OVCoherentTask(KnownAnswers):
    """Sequences ``[signal] … [signal] … [read-off] -> [answer]``, noise between.

    Vocabulary: ``0`` = read-off; then signals, noise, answers (one for each unordered pair of
    signals, equal ones included). The two signals are drawn uniformly and stand at two places drawn
    uniformly among the first ``n_positions - 2``; noise is uniform. The read-off and the answer end
    every sequence: only the answer can be predicted.

    Args:
        n_signals, n_noise: tokens of each kind; 4 and 7 in the discussion, so 10 answers.
        n_positions: tokens in a sequence.

    Raises:
        GatedInterpError: no signal, no noise, or too few positions for two signals.

    Examples:
        >>> task = OVCoherentTask()
        >>> task.d_vocab, len(task.cases), task.cases[2]
        (22, 10, 'S1…S2→C12')
    """

    n_signals: int = 4
    n_noise: int = 7
    n_positions: int = 8

    case_word = "pair"
    least: ClassVar = {"n_signals": 1, "n_noise": 1, "n_positions": 4}

    @cached_property
    def pairs(self) -> list[tuple[int, int]]:
        """The unordered pairs of signals, ``(1, 1), (1, 2) ...``; case 1 first."""
        return list(combinations_with_replacement(range(1, self.n_signals + 1), 2))

    @property
    def d_vocab(self) -> int:
        """Size of the vocabulary."""
        return 1 + self.n_signals + self.n_noise + len(self.pairs)

    @property
    def read_off(self) -> int:
        """The token after which the answer comes."""
        return 0

    @property
    def cases(self) -> dict[int, str]:
        """The pairs, such as ``S1…S2→C12``."""
        return {i: f"S{a}…S{b}→C{a}{b}" for i, (a, b) in enumerate(self.pairs, 1)}

    @property
    def token_names(self) -> list[str]:
        """A readable name per token, ``?``, ``S1``.., ``N1``.., ``C11``.."""
        signals = [f"S{i}" for i in range(1, self.n_signals + 1)]
        noise = [f"N{i}" for i in range(1, self.n_noise + 1)]
        return ["?", *signals, *noise, *(f"C{a}{b}" for a, b in self.pairs)]

    def answer(self, case: Int[Tensor, "*any"]) -> Int[Tensor, "*any"]:
        """The token that answers each case."""
        return case + self.n_signals + self.n_noise

    def sample(self, n: int, seed: int | torch.Generator) -> PairBatch:
        """``n`` sequences; the same seed gives the same.

        Raises:
            GatedInterpError: ``n`` is not positive, or a bad seed.
        """
        require_whole("n", n)
        source = generator(seed)
        room = self.n_positions - 2
        tokens = torch.randint(self.n_noise, (n, self.n_positions), generator=source)
        tokens += 1 + self.n_signals
        signals = torch.randint(1, self.n_signals + 1, (n, 2), generator=source)
        tokens.scatter_(1, torch.stack(two_places(n, room, source), 1), signals)
        number = torch.zeros(self.n_signals + 1, self.n_signals + 1, dtype=torch.long)
        for i, (a, b) in enumerate(self.pairs, 1):
            number[a, b] = number[b, a] = i
        case = number[signals[:, 0], signals[:, 1]]
        tokens[:, -2], tokens[:, -1] = self.read_off, self.answer(case)
        return PairBatch(tokens, case)

    def probes(self, n: int, seed: int) -> Probes:
        """The read-off of each of ``n`` sequences; the answer is its pair's."""
        batch = self.sample(n, seed)
        return asked_at_the_end(batch.tokens, batch.case, self.answer(batch.case))

    def foils(self, n: int, seed: int) -> Probes:
        """The read-off of each of ``n`` sequences; the answer of the next pair must not come."""
        probes = self.probes(n, seed)
        other = probes.case % len(self.pairs) + 1
        return dataclasses.replace(probes, case=other, target=self.answer(other))

    def answered(self, batch: PairBatch) -> Int[Tensor, "batch pos"]:
        """The pair at each read-off; 0 elsewhere."""
        return answered_at_the_end(batch.tokens, batch.case)
