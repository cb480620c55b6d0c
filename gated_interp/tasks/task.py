"""What a task is: sequences to train on and, where its answers are known, probes and foils.

A new task is one file: a frozen dataclass that gives what :class:`ProbedTask` asks for (or
:class:`Task`, for data without known answers such as text), and a line in
:mod:`gated_interp.tasks.kinds`.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from jaxtyping import Int
from torch import Tensor

from gated_interp.core.errors import GatedInterpError


@dataclasses.dataclass(frozen=True)
class Probes:
    """Positions of sequences and the token that is right (or, of foils, wrong) after each.

    Attributes:
        tokens: ``[batch pos]``.
        row, position: ``[probe]``, where in ``tokens`` each is.
        target: ``[probe]``, the token in question there.
        case: ``[probe]``, which of the task's cases it is of, as ``task.cases`` numbers them.
    """

    tokens: Int[Tensor, "batch pos"]
    row: Int[Tensor, " probe"]
    position: Int[Tensor, " probe"]
    target: Int[Tensor, " probe"]
    case: Int[Tensor, " probe"]

    def __len__(self) -> int:
        return self.row.shape[0]

    @property
    def cases(self) -> list[int]:
        """The cases that occur, ascending."""
        return sorted(set(self.case.tolist()))

    def in_rows(self, first: int, n: int) -> "Probes":
        """Those in ``n`` rows of the batch, from ``first`` on."""
        mine = (self.row >= first) & (self.row < first + n)
        of_probe = (x[mine] for x in (self.row - first, self.position, self.target, self.case))
        return Probes(self.tokens[first : first + n], *of_probe)

    def to(self, device: str | torch.device) -> "Probes":
        """The same with every tensor on ``device``."""
        fields = dataclasses.fields(self)
        return Probes(**{f.name: getattr(self, f.name).to(device) for f in fields})


@runtime_checkable
class Task(Protocol):
    """Sequences of tokens to predict."""

    @property
    def n_positions(self) -> int:
        """Tokens in a sequence."""
        ...

    @property
    def d_vocab(self) -> int:
        """Size of the vocabulary."""
        ...

    @property
    def token_names(self) -> Sequence[str]:
        """A readable name per token."""
        ...

    def sample(self, n: int, seed: int) -> Any:
        """``n`` sequences, as something with ``tokens``; the same seed gives the same."""
        ...


@runtime_checkable
class ProbedTask(Task, Protocol):
    """A task whose answers are known: a model *represents* each case somewhere.

    Attributes:
        cases: a readable name for each case, by its number; numbers count up from 1.
        case_word: what a case is called.
    """

    case_word: ClassVar[str]

    @property
    def cases(self) -> Mapping[int, str]: ...

    def probes(self, n: int, seed: int) -> Probes:
        """Places where a case's answer must come, from ``n`` sequences."""
        ...

    def foils(self, n: int, seed: int) -> Probes:
        """Places like those of each case where its answer must *not* come, from ``n`` sequences."""
        ...

    def answered(self, batch: Any) -> Int[Tensor, "batch pos"]:
        """The case that each position of a sampled batch is to answer; 0 for none."""
        ...

    def require_vocabulary(self, d_vocab: int) -> None:
        """Refuse a model of another vocabulary, see :class:`KnownAnswers`."""
        ...

    def require_each(self, case: Tensor, code: str = ...) -> None:
        """Refuse examples without one of the cases, see :class:`KnownAnswers`."""
        ...


class KnownAnswers:
    """What every :class:`ProbedTask` refuses, in the task's own words.

    Attributes:
        case_word: what a case is called.
        least: the smallest value of each of the task's numbers.

    Raises:
        GatedInterpError: a number that is not whole, or smaller than that.
    """

    case_word: ClassVar[str] = "case"
    least: ClassVar[Mapping[str, int]] = {}
    d_vocab: Any
    cases: Any

    # Wrong types get their sentence here, so the tests' shape checker must not come first.
    __no_type_check__ = True

    def __post_init__(self) -> None:
        for name, least in self.least.items():
            require_whole(name, getattr(self, name), least)

    @property
    def described(self) -> str:
        """The task, in a sentence."""
        return repr(self)

    @property
    def identity(self) -> str:
        """What of it a training must share with a saved one to go on from it."""
        return repr(self)

    def require_vocabulary(self, d_vocab: int) -> None:
        """Refuse a model of another vocabulary.

        Raises:
            GatedInterpError: ``d_vocab`` is not this task's.
        """
        if d_vocab != self.d_vocab:
            raise GatedInterpError(
                "vocabulary-mismatch", d_vocab=d_vocab, task=self.described, wanted=self.d_vocab
            )

    def require_each(self, case: Tensor, code: str = "case-without-examples") -> None:
        """Refuse examples among whose cases, ``[example]``, one of the task's is missing.

        Raises:
            GatedInterpError: naming the first that is, by that ``code``.
        """
        there = set(case.tolist())
        for b in self.cases:
            if b not in there:
                raise GatedInterpError(code, word=self.case_word, case=b)


def probes_for(task: Any, d_vocab: int, n: int, seed: int) -> Probes:
    """The probes of ``task`` for a model of ``d_vocab`` tokens, with some of every case."""
    return _with_each(task, "probes", d_vocab, n, seed)


def foils_for(task: Any, d_vocab: int, n: int, seed: int) -> Probes:
    """The foils of ``task``; see :func:`probes_for`."""
    return _with_each(task, "foils", d_vocab, n, seed)


def require_answers(task: Any) -> None:
    """Refuse a task whose answers are not known."""
    if task is None:
        raise GatedInterpError("no-task")
    if not isinstance(task, ProbedTask):
        raise GatedInterpError("task-without-answers", task=type(task).__name__)


def _with_each(task: Any, what: str, d_vocab: int, n: int, seed: int) -> Probes:
    require_answers(task)
    task.require_vocabulary(d_vocab)
    found: Probes = getattr(task, what)(n, seed)
    task.require_each(found.case)
    return found


def require_whole(name: str, value: Any, least: int = 1) -> None:
    """Refuse what is not a whole number, or is smaller than ``least``."""
    if type(value) is not int or value < least:
        raise GatedInterpError("not-a-whole-number", name=name, value=value, least=least)


def two_places(
    n: int, room: int, source: torch.Generator
) -> tuple[Int[Tensor, " n"], Int[Tensor, " n"]]:
    """Two different places of ``room``, ``n`` times, every ordered pair as likely."""
    first = torch.randint(room, (n,), generator=source)
    # The other place is one of the rest: as many steps further on, all the way round.
    return first, (first + torch.randint(1, room, (n,), generator=source)) % room


def places(n: int, count: int, room: int, source: torch.Generator) -> Int[Tensor, "n count"]:
    """``count`` different places of ``room``, ``n`` times, every order as likely."""
    return torch.rand(n, room, generator=source, dtype=torch.double).argsort(1)[:, :count]


def asked_at_the_end(
    tokens: Int[Tensor, "batch pos"],
    case: Int[Tensor, " batch"],
    target: Int[Tensor, " batch"],
    kept: Tensor | None = None,
) -> Probes:
    """The last position but one of each row, or of those ``kept``: what comes there is asked."""
    row = torch.arange(len(tokens)) if kept is None else kept.nonzero()[:, 0]
    at = torch.full_like(row, tokens.shape[1] - 2)
    return Probes(tokens, row, at, target[row], case[row])


def answered_at_the_end(
    tokens: Int[Tensor, "batch pos"], case: Int[Tensor, " batch"]
) -> Int[Tensor, "batch pos"]:
    """``case`` at the last position but one of each row, 0 elsewhere."""
    answered = torch.zeros_like(tokens)
    answered[:, -2] = case
    return answered
