"""OV-incoherent skip trigrams: one source token, many answers.

Task of the 2024 post *Gated Attention Blocks: Preliminary Progress toward Removing Attention Head
Superposition*. Trigram ``b`` reads ``[A] ... [b] -> [b + n_trigrams]``. Every trigram starts with
the same source token A, so the OV circuit of one head, which sees A but not ``b``, cannot tell
which answer to write.
"""

import dataclasses
from functools import cached_property
from typing import ClassVar

import torch
from jaxtyping import Int
from torch import Tensor

from gated_interp.core.seeds import derive, generator
from gated_interp.tasks.task import KnownAnswers, Probes, require_whole


@dataclasses.dataclass(frozen=True, repr=False)
class TrigramBatch:
    """Sequences and the trigrams completed in them.

    Attributes:
        tokens: ``[batch pos]``, each row starting with BOS.
        example: ``[trigram_occurrence]``, the row of each completed trigram, ascending.
        source_pos: ``[trigram_occurrence]``, where its A sits.
        destination_pos: ``[trigram_occurrence]``, where its B sits; C follows at once.
        trigram: ``[trigram_occurrence]``, B's token, 1..n_trigrams.
        truncated: ``[truncated_occurrence]``, rows whose last token is a B that A had armed: there
            is no room for its C, so it is not scored.

    Examples:
        >>> batch = SkipTrigramTask(n_trigrams=3).sample_single(5, seed=0)
        >>> batch
        TrigramBatch(5 sequences of 11 tokens, 5 trigrams)
        >>> bool((batch.tokens[batch.example, batch.source_pos] == 0).all())  # A
        True
    """

    tokens: Int[Tensor, "batch pos"]
    example: Int[Tensor, " occurrence"]
    source_pos: Int[Tensor, " occurrence"]
    destination_pos: Int[Tensor, " occurrence"]
    trigram: Int[Tensor, " occurrence"]
    truncated: Int[Tensor, " truncated"]

    def __len__(self) -> int:
        return self.tokens.shape[0]

    def __repr__(self) -> str:
        rows, pos = self.tokens.shape
        return f"TrigramBatch({rows} sequences of {pos} tokens, {len(self.trigram)} trigrams)"

    @cached_property
    def trigrams_per_example(self) -> Int[Tensor, " batch"]:
        """How many trigrams each sequence completes, ``[batch]``."""
        return torch.bincount(self.example, minlength=len(self))

    def select(self, rows: Int[Tensor, " kept"]) -> "TrigramBatch":
        """The batch with only ``rows`` (ascending, each at most once), renumbered."""
        device = self.tokens.device
        new_row = torch.full((len(self),), -1, device=device)
        new_row[rows] = torch.arange(rows.numel(), device=device)
        keep = new_row[self.example] >= 0
        cut = new_row[self.truncated]
        return TrigramBatch(
            tokens=self.tokens[rows],
            example=new_row[self.example[keep]],
            source_pos=self.source_pos[keep],
            destination_pos=self.destination_pos[keep],
            trigram=self.trigram[keep],
            truncated=cut[cut >= 0],
        )

    def to(self, device: str | torch.device) -> "TrigramBatch":
        """The batch with every tensor on ``device``."""
        return TrigramBatch(
            **{f.name: getattr(self, f.name).to(device) for f in dataclasses.fields(self)}
        )


@dataclasses.dataclass(frozen=True)
class SkipTrigramTask(KnownAnswers):
    """Skip trigrams ``[0] … [b] -> [b + n_trigrams]`` for ``b`` in 1..n_trigrams.

    Vocabulary: ``0`` = A; ``1..n`` = B; ``n+1..2n`` = C; ``2n+1`` = BOS. A sequence starts with
    BOS. Every next token is uniform over the whole vocabulary, except: while an A is open (no B
    has come since), A is not drawn again; the first B after an open A closes it and is followed
    by its C.

    Args:
        n_trigrams: how many trigrams.
        n_positions: tokens in a sequence, BOS included.

    Raises:
        GatedInterpError: no trigram, or too few positions for one (BOS, A, B, C).

    Examples:
        >>> task = SkipTrigramTask(n_trigrams=3)
        >>> batch = task.sample(1000, seed=0)
        >>> batch.tokens.shape
        torch.Size([1000, 11])
        >>> task.check(batch, min_examples=50)
        []
    """

    n_trigrams: int
    n_positions: int = 11

    case_word = "trigram"
    least: ClassVar = {"n_trigrams": 1, "n_positions": 4}

    @property
    def d_vocab(self) -> int:
        """Size of the vocabulary, ``2 * n_trigrams + 2``."""
        return 2 * self.n_trigrams + 2

    @property
    def source(self) -> int:
        """The token A that starts every trigram."""
        return 0

    @property
    def bos(self) -> int:
        """The token that starts every sequence."""
        return 2 * self.n_trigrams + 1

    @property
    def trigrams(self) -> range:
        """The B tokens, which name the trigrams (1..n_trigrams)."""
        return range(1, self.n_trigrams + 1)

    @property
    def cases(self) -> dict[int, str]:
        """The trigrams by their B, such as ``A…B1→C1``."""
        return {b: f"A…B{b}→C{b}" for b in self.trigrams}

    @property
    def described(self) -> str:
        return f"a task of {self.n_trigrams} trigrams"

    def completion(self, trigram: int) -> int:
        """The token C that completes ``trigram``."""
        return trigram + self.n_trigrams

    @property
    def token_names(self) -> list[str]:
        """A readable name per token, ``A``, ``B1``.., ``C1``.., ``BOS``."""
        numbered = [f"{letter}{b}" for letter in "BC" for b in self.trigrams]
        return ["A", *numbered, "BOS"]

    def sample(self, n: int, seed: int | torch.Generator) -> TrigramBatch:
        """``n`` sequences with their trigrams; the same seed gives the same batch.

        All sequences advance together, one position at a time.

        Raises:
            GatedInterpError: ``n`` is not positive, or a bad seed.
        """
        require_whole("n", n)
        source = generator(seed)
        v = self.d_vocab
        # One draw serves both cases exactly: x % v is uniform over v tokens and x % (v - 1)
        # over v - 1, because v * (v - 1) is a multiple of both.
        draws = torch.randint(v * (v - 1), (self.n_positions, n), generator=source)
        anything = draws % v
        not_a = draws % (v - 1) + 1
        tokens = torch.empty(self.n_positions, n, dtype=torch.long)
        tokens[0] = self.bos
        is_open = torch.zeros(n, dtype=torch.bool)
        open_at = torch.zeros(n, dtype=torch.long)
        closes = torch.zeros(self.n_positions, n, dtype=torch.bool)
        source_of = torch.zeros(self.n_positions, n, dtype=torch.long)
        for pos in range(1, self.n_positions):
            drawn = torch.where(is_open, not_a[pos], anything[pos])
            token = torch.where(closes[pos - 1], tokens[pos - 1] + self.n_trigrams, drawn)
            tokens[pos] = token
            is_b = (token >= 1) & (token <= self.n_trigrams)
            torch.logical_and(is_b, is_open, out=closes[pos])
            source_of[pos] = open_at
            is_a = token == self.source
            open_at.masked_fill_(is_a, pos)
            is_open = (is_open | is_a) & ~closes[pos]
        truncated = closes[-1].nonzero().flatten()
        closes[-1] = False
        example, destination_pos = closes.T.nonzero(as_tuple=True)
        tokens = tokens.T.contiguous()
        return TrigramBatch(
            tokens=tokens,
            example=example,
            source_pos=source_of.T[example, destination_pos],
            destination_pos=destination_pos,
            trigram=tokens[example, destination_pos],
            truncated=truncated,
        )

    def sample_single(self, n: int, seed: int) -> TrigramBatch:
        """``n`` sequences that each complete exactly one trigram (the verdict's examples).

        Raises:
            GatedInterpError: ``n`` is not positive, or a bad seed.
        """
        require_whole("n", n)
        kept: list[TrigramBatch] = []
        found, stream = 0, 0
        while found < n:
            # Counted, not named: published verdicts on many trigrams take further batches.
            batch = self.sample(4 * n, derive(seed, stream) if stream else seed)
            rows = (batch.trigrams_per_example == 1).nonzero().flatten()[: n - found]
            kept.append(batch.select(rows))
            found, stream = found + rows.numel(), stream + 1
        return kept[0] if len(kept) == 1 else concatenate(kept)

    def probes(self, n: int, seed: int) -> Probes:
        """Each B of ``n`` sequences that complete exactly one trigram; the answer is its C.

        Raises:
            GatedInterpError: ``n`` is not positive, or a bad seed.
        """
        batch = self.sample_single(n, seed)
        c = batch.trigram + self.n_trigrams
        return Probes(batch.tokens, batch.example, batch.destination_pos, c, batch.trigram)

    def foils(self, n: int, seed: int) -> Probes:
        """Each B of ``n`` sequences that no A precedes: its C must not come.

        Raises:
            GatedInterpError: ``n`` is not positive, or a bad seed.
        """
        return self.foils_in(self.sample(n, seed).tokens)

    def foils_in(self, tokens: Int[Tensor, "batch pos"]) -> Probes:
        """The foils that ``tokens`` hold."""
        seen = (tokens == self.source).cumsum(1) > 0
        is_b = (tokens >= 1) & (tokens <= self.n_trigrams)
        row, position = (is_b & ~seen).nonzero(as_tuple=True)
        b = tokens[row, position]
        return Probes(tokens, row, position, b + self.n_trigrams, b)

    def answered(self, batch: TrigramBatch) -> Int[Tensor, "batch pos"]:
        """The trigram that each position is to answer (a B with an A open before it); else 0."""
        answered = torch.zeros_like(batch.tokens)
        answered[batch.example, batch.destination_pos] = batch.trigram
        answered[batch.truncated, -1] = batch.tokens[batch.truncated, -1]
        return answered

    def check(self, batch: TrigramBatch, min_examples: int = 1) -> list[str]:
        """What is wrong with ``batch`` as data for this task, in words; empty when it is sound.

        The reference's checks: every B occurs as a completed trigram, at least ``min_examples``
        of each; the token after each scored B is its C; few trigrams run out of room; tokens are
        roughly uniform after BOS.
        """
        problems = []
        tokens, at = batch.tokens, batch.destination_pos
        counts = torch.bincount(batch.trigram, minlength=self.n_trigrams + 1)[1:].tolist()
        for b, count in zip(self.trigrams, counts[: self.n_trigrams], strict=True):
            if count < min_examples:
                problems.append(
                    f"trigram {b} is completed {count} times; at least {min_examples} are wanted."
                )
        # A B at the last position has no C behind it; the pad stands for none.
        behind = torch.nn.functional.pad(tokens, (0, 1), value=-1)[batch.example, at + 1]
        wrong = (behind != batch.trigram + self.n_trigrams).sum()
        if wrong:
            problems.append(f"{int(wrong)} scored trigrams are not followed by their C.")
        if (tokens[batch.example, at] != batch.trigram).any():
            problems.append("some recorded B positions do not hold their B.")
        if (tokens[batch.example, batch.source_pos] != self.source).any():
            problems.append("some recorded A positions do not hold an A.")
        if (tokens[:, 0] != self.bos).any():
            problems.append("some sequences do not start with BOS.")
        # Uniform draws cut about 1 in (n_positions - 2) of all trigrams; twice that is suspicious.
        cut, scored = batch.truncated.numel(), batch.trigram.numel()
        limit = 2 / (self.n_positions - 2)
        if cut + scored >= 100 and cut > limit * (cut + scored):
            problems.append(
                f"{cut} of {cut + scored} trigrams run out of room at the last position; "
                f"at most {limit:.0%} should."
            )
        if tokens.numel() and (tokens.min() < 0 or tokens.max() >= self.d_vocab):
            problems.append(f"some tokens are outside the vocabulary 0..{self.d_vocab - 1}.")
        else:
            rest = tokens[:, 1:].flatten()
            share = torch.bincount(rest, minlength=self.d_vocab) / max(rest.numel(), 1)
            for token in (share * self.d_vocab < 0.5).nonzero().flatten().tolist():
                problems.append(
                    f"{self.token_names[token]} is {share[token]:.1%} of the tokens, less than "
                    "half of a uniform share."
                )
            for token in (share * self.d_vocab > 2).nonzero().flatten().tolist():
                problems.append(
                    f"{self.token_names[token]} is {share[token]:.1%} of the tokens, more than "
                    "twice a uniform share."
                )
        return problems


def concatenate(batches: list[TrigramBatch]) -> TrigramBatch:
    """One batch of all the rows of ``batches``, in order."""
    offsets = [0]
    for batch in batches:
        offsets.append(offsets[-1] + len(batch))
    shifted = {
        name: torch.cat([getattr(b, name) + o for b, o in zip(batches, offsets[:-1], strict=True)])
        for name in ("example", "truncated")
    }
    plain = {
        name: torch.cat([getattr(b, name) for b in batches])
        for name in ("tokens", "source_pos", "destination_pos", "trigram")
    }
    return TrigramBatch(**shifted, **plain)
