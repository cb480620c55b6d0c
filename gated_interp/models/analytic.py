"""Models whose answer is known: weights written down by rule, not trained.

Three ways to solve OV-incoherent skip trigrams, one to solve OV-coherent pairs and one for answers
that need two sources, each with what an analysis must find in it:

- :func:`manual_model`: every trigram is held by its own *set* of heads and the sets overlap. With
  2 heads and 3 trigrams these are the hand-set weights published with the 2024 gated attention
  post. What several overlapping heads hold is distributed **and** superposed.
- :func:`paired_model`: every trigram is held by two heads of its own that each need the other.
  Everything is distributed, nothing is superposed: no head carries two representations.
- :func:`conditional_pair`: two heads solve any number of trigrams. One writes the answer to the
  query token whether or not A came, the other cancels it unless A came (Conerly, Jermyn & Olah,
  Transformer Circuits updates, July 2023). The *computation* is distributed over the two heads,
  one writing and one deciding, but no representation is superposed.
- :func:`coherent_head`: one head holds every pair, because what it reads of two sources adds up.
- :func:`two_readers`: two heads, one for each source of every answer; neither alone is enough.

Models for further tasks are in :mod:`~gated_interp.models.analytic_tasks`.
"""

import dataclasses
import math
from collections.abc import Sequence
from fractions import Fraction
from itertools import combinations
from typing import Any

import torch

from gated_interp.core.errors import GatedInterpError
from gated_interp.models.toy import (
    AttentionConfig,
    HookedTransformer,
    TaskTransformer,
    ToyConfig,
    ToyTransformer,
    build_attention,
    build_toy,
)
from gated_interp.tasks.ov_coherent import OVCoherentTask
from gated_interp.tasks.task import Task
from gated_interp.tasks.two_sources import TwoSourcesTask

# The published manual model's weights: a score of 1 is attended to, one of -100 is not.
ATTEND, IGNORE = 1.0, -100.0
WRITE = 2


@dataclasses.dataclass(frozen=True)
class AnalyticModel:
    """A model and the truth about it.

    Attributes:
        model: attention-only, without normalisation.
        task: what it solves.
        heads_of: per case, the heads whose writes hold it.
        owners: per case, its sole owners as the verdict defines them.
        distributed: cases without a sole owner.
        composed: cases whose owner writes the answer but needs another head to keep quiet when
            there is no A.
        superposed: distributed cases that share a head with another case.
        layer: the one whose heads these are; those of other layers are intact.
        spread: cases that no head of any one layer can answer with the other layers ablated.
    """

    model: HookedTransformer = dataclasses.field(repr=False)
    task: Any
    heads_of: dict[int, list[int]]
    owners: dict[int, list[int]]
    distributed: list[int]
    composed: list[int]
    superposed: list[int]
    layer: int = 0
    spread: list[int] = dataclasses.field(default_factory=list)


def manual_model(
    n_heads: int,
    n_trigrams: int,
    heads_of: Sequence[Sequence[int]] | None = None,
    *,
    n_positions: int = 11,
) -> AnalyticModel:
    """A model that holds each trigram in a set of heads of its own.

    Head ``h`` attends to A where the query is a B it holds, and elsewhere to anything but A. From
    A it writes ``2 / |heads of c|`` to the C of every trigram ``c`` it holds and -2 to every other
    C. Summed over the heads of ``b`` that is 2 for C(b) and less for every other C, whatever the
    (distinct) sets.

    Args:
        n_heads, n_trigrams: of the model.
        heads_of: the set of heads of each trigram 1..n; by default single heads first, then
            pairs, then triples: 2 heads and 3 trigrams give {0}, {1}, {0, 1}.
        n_positions: longest sequence.

    Raises:
        GatedInterpError: more trigrams than there are sets of heads, two trigrams with one set,
            an empty set, or a head that is not there.

    Examples:
        >>> manual_model(2, 3).distributed
        [3]
    """
    config = ToyConfig(n_trigrams=n_trigrams, n_heads=n_heads, n_positions=n_positions)
    sets = _head_sets(n_heads, n_trigrams, heads_of)
    task = config.task
    model = _blank(config)
    attn = model.blocks[0].attn
    with torch.no_grad():
        attn.W_K.fill_(IGNORE)
        attn.W_Q.fill_(IGNORE)
        attn.W_K[:, task.source] = ATTEND
        attn.W_V[:, task.source] = 1
        for b, heads in zip(task.trigrams, sets, strict=True):
            for h in range(n_heads):
                held = h in heads
                attn.W_O[h, 0, task.completion(b)] = WRITE / len(heads) if held else -WRITE
                if held:
                    attn.W_Q[h, b] = ATTEND
    owners = {b: _sole_owners(b - 1, sets) for b in task.trigrams}
    distributed = [b for b in task.trigrams if not owners[b]]
    shared = {
        b: any(sets[b - 1] & other for i, other in enumerate(sets) if i != b - 1)
        for b in task.trigrams
    }
    return AnalyticModel(
        model=model,
        task=task,
        heads_of={b: sorted(sets[b - 1]) for b in task.trigrams},
        owners=owners,
        distributed=distributed,
        composed=[],
        superposed=[b for b in distributed if shared[b]],
    )


def paired_model(n_trigrams: int, *, n_positions: int = 11) -> AnalyticModel:
    """A model that holds each trigram in two heads of its own: distributed, not superposed.

    Heads ``2b - 2`` and ``2b - 1`` attend to A where the query is B(b). Both write +2 to C(b);
    one adds +3 to A and -3 to BOS, the other the opposite. Alone each is wrong, together right.

    Raises:
        GatedInterpError: no trigram, or too few positions for one.

    Examples:
        >>> truth = paired_model(2)
        >>> truth.distributed, truth.superposed
        ([1, 2], [])
    """
    config = ToyConfig(n_trigrams=n_trigrams, n_heads=2 * n_trigrams, n_positions=n_positions)
    task = config.task
    model = _blank(config)
    attn = model.blocks[0].attn
    heads_of = {b: [2 * b - 2, 2 * b - 1] for b in task.trigrams}
    with torch.no_grad():
        attn.W_K.fill_(IGNORE)
        attn.W_Q.fill_(IGNORE)
        attn.W_K[:, task.source] = ATTEND
        attn.W_V[:, task.source] = 1
        for b, heads in heads_of.items():
            for h, sign in zip(heads, (1, -1), strict=True):
                attn.W_Q[h, b] = ATTEND
                attn.W_O[h, 0, task.completion(b)] = WRITE
                attn.W_O[h, 0, task.source] = sign * (WRITE + 1)
                attn.W_O[h, 0, task.bos] = -sign * (WRITE + 1)
    return AnalyticModel(
        model=model,
        task=task,
        heads_of=heads_of,
        owners={b: [] for b in task.trigrams},
        distributed=list(task.trigrams),
        composed=[],
        superposed=[],
    )


def conditional_pair(
    n_trigrams: int, *, n_positions: int = 11, sharpness: float = 50.0
) -> AnalyticModel:
    """Two heads that solve any number of OV-incoherent trigrams, ``d_head = n_trigrams + 2``.

    Both attend from B(b) to B(b) itself and both read b there; head 0 writes +2 to C(b), head 1
    writes -2, so without an A nothing is written. An A draws head 1's attention, it writes
    nothing, and head 0's answer stands. Other queries rest on BOS, from which nothing is written.

    The verdict looks at sequences that hold the trigram, where head 0 is right whether or not
    head 1 is there: it is the sole owner of every trigram. But alone it answers C(b) to every
    B(b): deciding whether A came is head 1's work (``composed``).

    Args:
        sharpness: the score of what is attended to, over 0 for the rest.

    Raises:
        GatedInterpError: no trigram, too few positions for one, or a sharpness that is not
            positive.

    Examples:
        >>> truth = conditional_pair(5)
        >>> truth.model.cfg.n_heads, truth.owners[5], truth.superposed
        (2, [0], [])
    """
    if not (math.isfinite(sharpness) and sharpness > 0):
        raise GatedInterpError("not-positive", name="sharpness", value=sharpness)
    d_head = n_trigrams + 2
    config = ToyConfig(n_trigrams=n_trigrams, n_heads=2, d_head=d_head, n_positions=n_positions)
    task = config.task
    model = _blank(config)
    attn = model.blocks[0].attn
    answers = {b: task.completion(b) for b in task.trigrams}
    write_and_cancel(attn, task.bos, task.source, answers, sharpness)
    return AnalyticModel(
        model=model,
        task=task,
        heads_of={b: [0] for b in task.trigrams},
        owners={b: [0] for b in task.trigrams},
        distributed=[],
        composed=list(task.trigrams),
        superposed=[],
    )


def write_and_cancel(
    attn: Any, bos: int, source: int, answers: dict[int, int], sharpness: float
) -> None:
    """Let head 0 write the answer to each query token, and head 1 cancel it unless A came.

    Args:
        attn: two heads of ``len(answers) + 2`` dimensions, all zero, on identity embeddings.
        bos, source: tokens; the source is the A that keeps head 1 quiet.
        answers: by query token.
    """
    score = sharpness * math.sqrt(len(answers) + 2)
    on_source, on_bos = len(answers), len(answers) + 1
    with torch.no_grad():
        attn.W_Q[:, :, on_bos] = score
        attn.W_K[:, bos, on_bos] = 1
        attn.W_K[1, source, on_source] = 1
        for i, (b, c) in enumerate(answers.items()):
            attn.W_Q[:, b, on_bos] = 0
            attn.W_Q[:, b, i] = score
            attn.W_Q[1, b, on_source] = 2 * score
            attn.W_K[:, b, i] = 1
            attn.W_V[:, b, i] = 1
            attn.W_O[0, i, c] = WRITE
            attn.W_O[1, i, c] = -WRITE


def blank_for(task: Task, **fields: Any) -> TaskTransformer:
    """A model for ``task`` of an ``AttentionConfig`` with these fields, all its weights zero."""
    config = AttentionConfig.of(task, **fields)
    model = build_attention(config, task)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.zero_()
    return model


def coherent_head(task: OVCoherentTask | None = None, sharpness: float = 50.0) -> AnalyticModel:
    """One head that answers OV-coherent pairs, ``d_head = n_signals``.

    The read-off attends to signals alone, so that ``z`` is the mean of two unit vectors, one for
    each; every answer's direction is that mean's, of length one, so the right answer's logit is the
    largest.

    Args:
        task: ``OVCoherentTask()`` unless given.
        sharpness: the score of what is attended to, over 0 for the rest.

    Examples:
        >>> truth = coherent_head()
        >>> truth.model.cfg.n_heads, truth.owners[3]
        (1, [0])
    """
    task = OVCoherentTask() if task is None else task
    d = task.n_signals
    model = blank_for(task, n_heads=1, d_head=d)
    attn = model.blocks[0].attn
    with torch.no_grad():
        attn.W_Q[0, task.read_off] = sharpness * math.sqrt(d)
        attn.W_K[0, 1 : d + 1] = torch.eye(d)
        attn.W_V[0, 1 : d + 1] = torch.eye(d)
        for case, (a, b) in enumerate(task.pairs, 1):
            said = torch.nn.functional.one_hot(torch.tensor([a - 1, b - 1]), d).float().mean(0)
            attn.W_O[0, :, case + task.n_signals + task.n_noise] = 20 * said / said.norm()
    every = {case: [0] for case in task.cases}
    return AnalyticModel(model, task, every, every, [], [], [])


def two_readers(task: TwoSourcesTask | None = None, sharpness: float = 50.0) -> AnalyticModel:
    """Two heads that answer where both sources stand, ``d_head = n_cases + 1``.

    From a question head 0 attends to its first source, head 1 to its second, and each to BOS where
    that is missing. Each writes 0.8 to the answer: one of them is less than the question's own
    logit of 1, both are more, so that every case is distributed over the two and no head holds any.
    The post's rule leaves the question's own logit out and calls each head a sole owner of every
    case.

    Args:
        task: ``TwoSourcesTask()`` unless given.
        sharpness: the score of what is attended to, over 0 for the rest.

    Examples:
        >>> truth = two_readers()
        >>> truth.heads_of[3], truth.owners[3]
        ([0, 1], [0, 1])
    """
    task = TwoSourcesTask() if task is None else task
    d = task.n_cases + 1
    model = blank_for(task, n_heads=2, d_head=d)
    attn = model.blocks[0].attn
    score = sharpness * math.sqrt(d)
    with torch.no_grad():
        attn.W_K[:, 0, -1] = 1  # BOS
        attn.W_Q[:, :, -1] = score
        for case in task.cases:
            attn.W_Q[:, task.token("B", case), case - 1] = 2 * score
            for h, letter in enumerate("AX"):
                attn.W_K[h, task.token(letter, case), case - 1] = 1
                attn.W_V[h, task.token(letter, case), case - 1] = 1
            attn.W_O[:, case - 1, task.token("C", case)] = 0.8
    both = {c: [0, 1] for c in task.cases}
    return AnalyticModel(model, task, both, both, [], [], [])


def _blank(config: ToyConfig) -> ToyTransformer:
    """The toy with attention weights of zero."""
    model = build_toy(config)
    with torch.no_grad():
        for parameter in model.blocks[0].attn.parameters():
            parameter.zero_()
    return model


def _head_sets(
    n_heads: int, n_trigrams: int, heads_of: Sequence[Sequence[int]] | None
) -> list[frozenset[int]]:
    if n_trigrams > 2**n_heads - 1:
        raise GatedInterpError(
            "too-few-head-sets", n_heads=n_heads, sets=2**n_heads - 1, n_trigrams=n_trigrams
        )
    if heads_of is None:
        sizes = range(1, n_heads + 1)
        every = (frozenset(s) for k in sizes for s in combinations(range(n_heads), k))
        return [s for s, _ in zip(every, range(n_trigrams), strict=False)]
    sets = [frozenset(heads) for heads in heads_of]
    if len(sets) != n_trigrams:
        raise GatedInterpError("wrong-number-of-head-sets", sets=len(sets), n_trigrams=n_trigrams)
    for b, heads in enumerate(sets, 1):
        if not heads:
            raise GatedInterpError("trigram-without-head", trigram=b)
        if not heads <= set(range(n_heads)):
            raise GatedInterpError(
                "trigram-with-unknown-head", trigram=b, heads=sorted(heads), last=n_heads - 1
            )
        if heads in sets[: b - 1]:
            raise GatedInterpError(
                "same-heads-twice", first=sets.index(heads) + 1, second=b, heads=sorted(heads)
            )
    return sets


def _sole_owners(b: int, sets: list[frozenset[int]]) -> list[int]:
    """The heads of set ``b`` that are right with any part of it, by exact arithmetic.

    Heads outside the set write nothing at this B, so only its own members matter; a head outside
    it, left alone, writes nothing and so owns nothing.
    """

    def right(kept: set[int]) -> bool:
        def total(s: frozenset[int]) -> Fraction:
            return Fraction(WRITE * len(kept & s), len(s)) - WRITE * len(kept - s)

        mine = total(sets[b])
        return mine > 0 and all(mine > total(s) for i, s in enumerate(sets) if i != b)

    owners = []
    for h in sorted(sets[b]):
        rest = sorted(sets[b] - {h})
        parts = ({h, *more} for k in range(len(rest) + 1) for more in combinations(rest, k))
        if all(right(kept) for kept in parts):
            owners.append(h)
    return owners
