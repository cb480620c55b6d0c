"""Each run's own positions, sorted by query token so that a step is a few matrix products."""

import dataclasses
from functools import cache
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, Integer
from torch import Tensor

from gated_interp.core.errors import GatedInterpError
from gated_interp.core.seeds import derive
from gated_interp.core.streams import Stream
from gated_interp.tasks.contexts import Contexts
from gated_interp.tasks.task import Task
from gated_interp.tasks.tokens import sample_tokens

# The sub-stream of a run's seed that its sequences come from.
# Sequences that are sampled together: they fit into a core's cache.
GROUP = 64_000
# Sequences on which the tokens' frequencies are measured.
CALIBRATION = 20_000


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

    Every bucket (query token) of every run holds the same number of positions, what the rarest
    token is expected to have; a step takes the next ``per_query`` of each, weighted by how
    frequent the token is, so that means are the data set's own. After the last slice it starts
    over. What one run gets does not depend on the other runs. A token that the task never has as a
    query fills its bucket with positions of no weight.

    Args:
        task: what to sample.
        seeds: one per run.
        n_sequences: sequences of each run's data set.
        per_query: positions per run, step and query token.
        stream: which of a run's data sets this is.
        scored_only: leave out last positions (the toy's loss has no target there).
        all_pairs: the penalty counts non-causal pairs too.
        device: where the batches are wanted.
    """

    def __init__(
        self,
        task: Task,
        seeds: list[int],
        *,
        n_sequences: int,
        per_query: int,
        stream: int = 0,
        scored_only: bool = False,
        all_pairs: bool = False,
        device: str | torch.device = "cpu",
    ):
        v, runs = task.d_vocab, len(seeds)
        self.per_query = per_query
        if n_sequences < 1 or per_query < 1:
            raise GatedInterpError("pool-of-nothing", n_sequences=n_sequences, per_query=per_query)
        samples: list[np.ndarray] = []
        group = max(1, GROUP // n_sequences)
        for at in range(0, runs, group):
            derived = [derive(seed, Stream.FRESH_BATCH, stream) for seed in seeds[at : at + group]]
            samples.extend(sample_tokens(task, n_sequences, derived))
        last = task.n_positions - 1 if scored_only else task.n_positions
        sizes = np.stack([np.bincount(s[:, :last].ravel(), minlength=v) for s in samples])
        # Not the smallest bucket there is: what a run sees must not depend on the runs beside it.
        hashable: Any = task  # a frozen dataclass
        often = per_sequence(hashable, last)
        size = int(min(n for n in often if n) * n_sequences) // per_query * per_query
        if size == 0 or any(n and not sizes[:, token].all() for token, n in enumerate(often)):
            raise GatedInterpError("pool-too-small", n_sequences=n_sequences, per_query=per_query)
        self.n_slices = size // per_query
        # A prefix holds at most every position, so this type holds every count.
        count_type = np.min_scalar_type(task.n_positions)
        counts = np.empty((runs, v, size, v), dtype=count_type)
        targets = np.empty((runs, v, size), dtype=np.int64)
        pairs = np.empty((runs, v, v), dtype=np.float32)
        for run, tokens in enumerate(samples):
            counts[run], targets[run], pairs[run] = _buckets(
                tokens, last, size, sizes[run], counts.dtype, all_pairs
            )
        per_context = task.n_positions if all_pairs else (task.n_positions + 1) / 2
        pairs /= n_sequences * last * per_context
        self.counts: Integer[Tensor, "run query size key"] = torch.from_numpy(counts).to(device)
        self.target: Int[Tensor, "run query size"] = torch.from_numpy(targets).to(device)
        frequency = torch.from_numpy(sizes / sizes.sum(1, keepdims=True)).float()
        self.frequency: Float[Tensor, "run query"] = frequency.to(device)
        # The mean number of pairs per (query, key) over the whole data set: the penalty needs no
        # sampling, because gates depend on the two tokens only.
        self.pairs: Float[Tensor, "run query key"] = torch.from_numpy(pairs).to(device)

    def batch(self, step: int) -> StackedBatch:
        """The batch of ``step``."""
        here = slice((step % self.n_slices) * self.per_query, None)
        here = slice(here.start, here.start + self.per_query)
        weight = (self.frequency / self.per_query)[..., None].expand(-1, -1, self.per_query)
        return StackedBatch(
            self.counts[:, :, here].float(), weight, self.target[:, :, here], self.pairs
        )


@cache
def per_sequence(task: Any, last: int) -> tuple[float, ...]:
    """How often each token occurs in the first ``last`` positions of a sequence, on average.

    Measured on a fixed sample.
    """
    tokens = sample_tokens(task, CALIBRATION, [0])[0, :, :last]
    return tuple(np.bincount(tokens.ravel(), minlength=task.d_vocab) / CALIBRATION)


def _buckets(
    tokens: Integer[np.ndarray, "batch pos"],
    last: int,
    size: int,
    sizes: Integer[np.ndarray, " query"],
    count_type: Any,
    all_pairs: bool,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One run's first ``size`` positions per query token, in reading order, and all its pairs.

    A token that occurs less often starts over; one that never does gets positions of others.

    Args:
        last: positions of each sequence that count.
        sizes: how many of those each query token has.

    Returns:
        prefix counts ``[query size key]``, next tokens ``[query size]`` (0 behind the end of a
        sequence) and the summed counts ``[query key]`` of all positions.
    """
    n, v = len(tokens), len(sizes)
    # Position first, so that adding up a prefix is a few contiguous sums; take, because it is
    # several times faster than an index.
    one_hot = np.eye(v, dtype=count_type).take(tokens.T, axis=0)
    counts = one_hot.copy()
    for pos in range(1, counts.shape[0]):
        counts[pos] += counts[pos - 1]
    query = np.ascontiguousarray(tokens[:, :last]).ravel()
    start = sizes.cumsum() - sizes
    # A stable sort of small integers is a radix sort.
    wanted = start[:, None] + np.arange(size) % sizes.clip(1)[:, None]
    kept = query.argsort(kind="stable").take(wanted.ravel(), mode="clip")
    following = np.zeros_like(tokens)
    following[:, :-1] = tokens[:, 1:]
    position_first = np.arange(last * n).reshape(last, n).T.ravel()
    rows = counts.reshape(-1, v).take(position_first.take(kept), axis=0)

    keys = np.broadcast_to(counts[-1:], counts.shape) if all_pairs else counts
    queries = one_hot[:last].reshape(-1, v).astype(np.float32)
    pairs = queries.T @ keys[:last].reshape(-1, v).astype(np.float32)
    return rows.reshape(v, size, v), following[:, :last].ravel().take(kept).reshape(v, size), pairs
