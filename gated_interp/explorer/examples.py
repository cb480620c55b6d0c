"""The sequences that an explorer steps through, and what it measures on."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from gated_interp.anatomy.batch import Batch, Mask, Tokens
from gated_interp.core.errors import GatedInterpError
from gated_interp.core.seeds import derive
from gated_interp.core.streams import Stream
from gated_interp.explorer.vocabulary import Vocabulary
from gated_interp.models.toy import HookedTransformer
from gated_interp.tasks.skip_trigrams import SkipTrigramTask
from gated_interp.tasks.task import ProbedTask, Probes

EXAMPLES = 100
ACCURACY_SEQUENCES = 100  # per case
REFERENCE_SEQUENCES, TEXT_SEQUENCES = 200, 16


@dataclasses.dataclass(frozen=True, eq=False)
class Examples:
    """What is explored.

    Attributes:
        tokens: each example.
        position: where each is read at first.
        target: the token that must come there; ``None`` where any may.
        reference: for ablation by a mean or by other examples.
        probes: where answers are known.
    """

    tokens: Sequence[tuple[int, ...]]
    position: Sequence[int]
    target: Sequence[int | None]
    reference: Batch | None = None
    probes: Probes | None = None

    def __len__(self) -> int:
        return len(self.tokens)


def examples_of(
    model: HookedTransformer,
    task: Any,
    tokens: Tokens | None,
    vocabulary: Vocabulary,
    seed: int,
    attention_mask: Mask | None = None,
) -> Examples:
    """Those of ``tokens``; else sampled from ``task``: its probes, its held-out text, or any.

    A text that does not come with its model leaves one example.
    """
    if tokens is not None:
        batch = Batch.of(model, tokens, attention_mask)
        return _plain(batch[:EXAMPLES], batch[:TEXT_SEQUENCES])
    examples = derive(seed, Stream.EXPLORER_EXAMPLES)
    reference = derive(seed, Stream.EXPLORER_REFERENCE)
    if isinstance(task, ProbedTask):
        return _probed(task, seed, examples, reference)
    if hasattr(task, "sample"):
        part = task.part("test") if hasattr(task, "part") else task
        try:
            return _plain(
                Batch(part.sample(EXAMPLES, examples).tokens),
                Batch(part.sample(TEXT_SEQUENCES, reference).tokens),
            )
        except GatedInterpError:
            if not vocabulary.is_text:
                raise
    elif not vocabulary.is_text:
        raise GatedInterpError("no-examples")
    return one_text(vocabulary.parse("The", model.cfg.n_ctx))


def one_text(tokens: tuple[int, ...]) -> Examples:
    """One example, read at its end."""
    return Examples([tokens], [len(tokens) - 1], [None])


def _plain(batch: Batch, reference: Batch) -> Examples:
    """Sequences of which nothing is known, without padding, read where one more token follows."""
    pairs = zip(batch.tokens, batch.counted, strict=True)
    rows = [tuple(row[real].tolist()) for row, real in pairs]
    return Examples(rows, [max(len(r) - 2, 0) for r in rows], [None] * len(rows), reference)


def _probed(task: ProbedTask, seed: int, examples: int, reference: int) -> Examples:
    """Each sequence is read at the first of its probes; one without is left out."""
    found = task.probes(EXAMPLES, examples)
    first: dict[int, int] = {}
    for i, row in enumerate(found.row.tolist()):
        first.setdefault(row, i)
    rows, at = list(first), list(first.values())
    n = ACCURACY_SEQUENCES * len(task.cases)
    return Examples(
        [tuple(row) for row in found.tokens[rows].tolist()],
        found.position[at].tolist(),
        found.target[at].tolist(),
        Batch(task.sample(REFERENCE_SEQUENCES, reference).tokens),
        task.probes(n, derive(seed, Stream.EXPLORER_ACCURACY)),
    )


def armed_positions(task: SkipTrigramTask, tokens: Sequence[int]) -> list[int]:
    """Where a B stands that an open A before it arms: there, and only there, its C must follow.

    Examples:
        >>> armed_positions(SkipTrigramTask(n_trigrams=3), [7, 2, 0, 2, 5, 2])
        [3]
    """
    found, is_open = [], False
    for position, token in enumerate(tokens):
        if token == task.source:
            is_open = True
        elif token in task.trigrams and is_open:
            found.append(position)
            is_open = False
    return found
