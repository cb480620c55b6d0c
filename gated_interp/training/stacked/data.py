"""Each run's own positions, sorted by query token so that a step is a few matrix products."""

import dataclasses

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from gated_interp.core.errors import GatedInterpError
from gated_interp.core.seeds import derive
from gated_interp.tasks.contexts import Contexts, contexts_of
from gated_interp.tasks.skip_trigrams import SkipTrigramTask

# The sub-stream of a run's seed that its sequences come from.
DATA_STREAM = 1


@dataclasses.dataclass(frozen=True)
class StackedBatch:
    """Positions of R runs, in one bucket per query token.

    Attributes:
        counts: ``[run query context key]``, prefix counts; ``query`` and ``key`` are tokens.
        weight: ``[run query context]``, what each position counts for in a mean; every run's
            weights sum to one. Padding weighs nothing.
        target: ``[run query context]``, the next token (0 where the weight is 0).
        pairs: ``[run query key]``, weighted (query, key) pairs that the penalty averages over.
    """

    counts: Float[Tensor, "run query context key"]
    weight: Float[Tensor, "run query context"]
    target: Int[Tensor, "run query context"]
    pairs: Float[Tensor, "run query key"]


def batch_of(
    contexts: list[Contexts],
    n_positions: int,
    *,
    all_pairs: bool = False,
    scored_only: bool = False,
) -> StackedBatch:
    """One batch with exactly these positions, one :class:`Contexts` per run, padded.

    Args:
        n_positions: length of the sequences they come from.
        all_pairs: count non-causal pairs too, see :class:`GatedConfig`.
        scored_only: leave out last positions, which have no next token.
    """
    runs, v = len(contexts), contexts[0].counts.shape[1]
    if scored_only:
        contexts = [_select(c, c.target >= 0) for c in contexts]
    width = max(int(torch.bincount(c.query, minlength=v).max()) for c in contexts)
    counts = torch.ones(runs, v, width, v)  # padding must not divide by zero
    weight = torch.zeros(runs, v, width)
    target = torch.zeros(runs, v, width, dtype=torch.long)
    pairs = torch.zeros(runs, v, v)
    for run, c in enumerate(contexts):
        order = c.query.argsort(stable=True)
        query = c.query[order]
        start = torch.searchsorted(query, torch.arange(v))
        slot = torch.arange(len(c)) - start[query]
        counts[run, query, slot] = c.counts[order]
        weight[run, query, slot] = 1 / len(c)
        target[run, query, slot] = c.target[order].clamp(min=0)
        keys = c.total_counts if all_pairs else c.counts
        per_query = n_positions if all_pairs else (n_positions + 1) / 2
        pairs[run].index_add_(0, c.query, keys / (len(c) * per_query))
    return StackedBatch(counts, weight, target, pairs)


def _select(c: Contexts, keep: Tensor) -> Contexts:
    return Contexts(c.query[keep], c.counts[keep], c.total_counts[keep], c.target[keep])


class ContextPool:
    """R fixed data sets, one per run's data seed, served as slices without any gathering.

    Every bucket (query token) of every run holds the same number of positions; a step takes the
    next ``per_query`` of each, weighted by how frequent the token is, so that means are the data
    set's own. After the last slice it starts over.

    Args:
        task: what to sample.
        seeds: one per run.
        n_sequences: sequences of each run's data set.
        per_query: positions per run, step and query token.
        stream: which of a run's data sets this is.
        scored_only: leave out last positions (the toy's loss has no target there).
        all_pairs: the penalty counts non-causal pairs too.
        device: where the batches are wanted.

    Raises:
        GatedInterpError: too few sequences for one step.
    """

    def __init__(
        self,
        task: SkipTrigramTask,
        seeds: list[int],
        *,
        n_sequences: int,
        per_query: int,
        stream: int = 0,
        scored_only: bool = False,
        all_pairs: bool = False,
        device: str | torch.device = "cpu",
    ):
        v = task.d_vocab
        self.per_query = per_query
        buckets: list[tuple[Contexts, Tensor, Tensor]] = []
        for seed in seeds:
            tokens = task.sample(n_sequences, derive(seed, DATA_STREAM, stream)).tokens
            c = contexts_of(tokens, v)
            if scored_only:
                c = _select(c, c.target >= 0)
            order = c.query.argsort(stable=True)
            buckets.append((c, order, torch.bincount(c.query, minlength=v)))
        size = min(int(sizes.min()) for _, _, sizes in buckets) // per_query * per_query
        if size == 0:
            raise GatedInterpError(
                f"{n_sequences} sequences do not hold {per_query} positions of every query token; "
                "take more sequences or a smaller batch."
            )
        self.n_slices = size // per_query
        counts, targets, frequency, totals = [], [], [], []
        for c, order, sizes in buckets:
            start = sizes.cumsum(0) - sizes
            rows = order[(start[:, None] + torch.arange(size)).flatten()]
            counts.append(c.counts[rows].to(torch.uint8).view(v, size, v))
            targets.append(c.target[rows].clamp(min=0).view(v, size))
            frequency.append(sizes / sizes.sum())
            keys = c.total_counts if all_pairs else c.counts
            per = task.n_positions if all_pairs else (task.n_positions + 1) / 2
            pairs = torch.zeros(v, v).index_add_(0, c.query, keys / (len(c) * per))
            totals.append(pairs)
        self.counts: UInt8[Tensor, "run query size key"] = torch.stack(counts).to(device)
        self.target: Int[Tensor, "run query size"] = torch.stack(targets).to(device)
        self.frequency: Float[Tensor, "run query"] = torch.stack(frequency).to(device)
        # The mean number of pairs per (query, key) over the whole data set: the penalty needs no
        # sampling, because gates depend on the two tokens only.
        self.pairs: Float[Tensor, "run query key"] = torch.stack(totals).to(device)

    def batch(self, step: int) -> StackedBatch:
        """The batch of ``step``."""
        here = slice((step % self.n_slices) * self.per_query, None)
        here = slice(here.start, here.start + self.per_query)
        weight = (self.frequency / self.per_query)[..., None].expand(-1, -1, self.per_query)
        return StackedBatch(
            self.counts[:, :, here].float(), weight, self.target[:, :, here], self.pairs
        )
