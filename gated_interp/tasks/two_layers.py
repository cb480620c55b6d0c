"""A behaviour spread over two layers: a benchmark that no replacement of one layer can pass.

What is to be answered is the signal that stood before a marker; another signal stands behind it.
Without positions one layer of attention sees which tokens came, not in which order, so it cannot
tell the two apart. Two layers can: at the marker the first reads the signal before it, and at the
read-off the second reads what the first wrote there. Either alone is worth a guess.
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
class MarkedBatch:
    """Sequences, the signal before each marker and the one behind it.

    Attributes:
        tokens: ``[batch pos]``.
        case, other: ``[batch]``, signals, from 1; never the same.
    """

    tokens: Int[Tensor, "batch pos"]
    case: Int[Tensor, " batch"]
    other: Int[Tensor, " batch"]


@dataclasses.dataclass(frozen=True)
class TwoLayersTask(KnownAnswers):
    """``BOS … [Si] … [marker] … [Sj] … [read-off] -> [Ci]``, noise between.

    Vocabulary: ``0`` = BOS, ``1`` = marker, ``2`` = read-off; then signals, answers (one for each
    signal) and noise. The two signals differ, every ordered pair is as likely; the three places are
    uniform, and so is noise.

    Args:
        n_signals, n_noise: tokens of each kind.
        n_positions: tokens in a sequence, BOS included.

    Raises:
        GatedInterpError: fewer than two signals, no noise, or too few positions.

    Examples:
        >>> task = TwoLayersTask()
        >>> task.d_vocab, task.cases[1]
        (13, 'S1…M…?→C1')
    """

    n_signals: int = 3
    n_noise: int = 4
    n_positions: int = 9

    case_word = "signal"
    least: ClassVar = {"n_signals": 2, "n_noise": 1, "n_positions": 6}

    @property
    def d_vocab(self) -> int:
        """Size of the vocabulary."""
        return 3 + 2 * self.n_signals + self.n_noise

    @property
    def marker(self) -> int:
        """The token before which the signal in question stands."""
        return 1

    @property
    def read_off(self) -> int:
        """The token after which the answer comes."""
        return 2

    @property
    def cases(self) -> dict[int, str]:
        """The signals, such as ``S1…M…?→C1``."""
        return {i: f"S{i}…M…?→C{i}" for i in range(1, self.n_signals + 1)}

    @property
    def token_names(self) -> list[str]:
        """A readable name per token, ``BOS``, ``M``, ``?``, ``S1``.., ``C1``.., ``N1``.."""
        numbered = [f"{letter}{i}" for letter in "SC" for i in self.cases]
        return ["BOS", "M", "?", *numbered, *(f"N{i}" for i in range(1, self.n_noise + 1))]

    def signal(self, case: Int[Tensor, "*any"]) -> Int[Tensor, "*any"]:
        """The token of each signal."""
        return case + 2

    def answer(self, case: Int[Tensor, "*any"]) -> Int[Tensor, "*any"]:
        """The token that answers each signal."""
        return case + 2 + self.n_signals

    def sample(self, n: int, seed: int | torch.Generator) -> MarkedBatch:
        """``n`` sequences; the same seed gives the same.

        Raises:
            GatedInterpError: ``n`` is not positive, or a bad seed.
        """
        require_whole("n", n)
        source = generator(seed)
        tokens = torch.randint(self.n_noise, (n, self.n_positions), generator=source)
        tokens += 3 + 2 * self.n_signals
        case, other = (1 + places(n, 2, self.n_signals, source)).unbind(1)
        at = 1 + places(n, 3, self.n_positions - 3, source).sort(1).values
        marker = torch.full((n,), self.marker)
        tokens.scatter_(1, at, torch.stack([self.signal(case), marker, self.signal(other)], 1))
        tokens[:, 0] = 0
        tokens[:, -2], tokens[:, -1] = self.read_off, self.answer(case)
        return MarkedBatch(tokens, case, other)

    def probes(self, n: int, seed: int) -> Probes:
        """The read-off of each of ``n`` sequences; the answer is that of the signal before M."""
        batch = self.sample(n, seed)
        return asked_at_the_end(batch.tokens, batch.case, self.answer(batch.case))

    def foils(self, n: int, seed: int) -> Probes:
        """The same read-offs: the answer of the signal *behind* the marker must not come."""
        batch = self.sample(n, seed)
        return asked_at_the_end(batch.tokens, batch.other, self.answer(batch.other))

    def answered(self, batch: MarkedBatch) -> Int[Tensor, "batch pos"]:
        """The signal at each read-off; 0 elsewhere."""
        return answered_at_the_end(batch.tokens, batch.case)
