"""What a task is: sequences to train on and, where its answers are known, probes and foils.

A new task is one file: a frozen dataclass that gives what :class:`ProbedTask` asks for (or
:class:`Task`, for data without known answers such as text), and a line in
:mod:`gated_interp.tasks.kinds`.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, TypeGuard, runtime_checkable

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

    def to(self, device: str | torch.device) -> "Probes":
        """The same with every tensor on ``device``."""
        fields = dataclasses.fields(self)
        return Probes(**{f.name: getattr(self, f.name).to(device) for f in fields})


class Batch(Protocol):
    """Anything that holds sequences."""

    tokens: Int[Tensor, "batch pos"]


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
        """``n`` sequences (a :class:`Batch`); the same seed gives the same."""
        ...


@runtime_checkable
class ProbedTask(Task, Protocol):
    """A task whose answers are known: a model *represents* each case somewhere.

    Attributes:
        cases: a readable name for each case, by its number; numbers count up from 1.
    """

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


class KnownAnswers:
    """What every :class:`ProbedTask` refuses, in the task's own words.

    Attributes:
        case_word: what a case is called.
    """

    case_word = "case"
    d_vocab: Any
    cases: Any

    @property
    def described(self) -> str:
        """The task, in a sentence."""
        return repr(self)

    def require_vocabulary(self, d_vocab: int) -> None:
        """Refuse a model of another vocabulary.

        Raises:
            GatedInterpError: ``d_vocab`` is not this task's.
        """
        if d_vocab != self.d_vocab:
            raise GatedInterpError(
                f"the model has {d_vocab} tokens; {self.described} has {self.d_vocab}."
            )

    def require_each(
        self, case: Tensor, complaint: str = "{word} {case} never occurs in the examples"
    ) -> None:
        """Refuse examples among whose cases, ``[example]``, one of the task's is missing.

        Raises:
            GatedInterpError: naming the first that is, in the words of ``complaint``.
        """
        there = set(case.tolist())
        for b in self.cases:
            if b not in there:
                sentence = complaint.format(word=self.case_word, case=b)
                raise GatedInterpError(f"{sentence}; take more sequences.")


def has_answers(task: Any) -> TypeGuard[ProbedTask]:
    """Whether the answers of ``task`` are known."""
    return isinstance(task, ProbedTask)


def probes_for(task: Any, d_vocab: int, n: int, seed: int) -> Probes:
    """The probes of ``task`` for a model of ``d_vocab`` tokens, with some of every case.

    Raises:
        GatedInterpError: a task without known answers, a model of another vocabulary, or a case
            that never occurs.
    """
    return _with_each(task, "probes", d_vocab, n, seed)


def foils_for(task: Any, d_vocab: int, n: int, seed: int) -> Probes:
    """The foils of ``task``; see :func:`probes_for`."""
    return _with_each(task, "foils", d_vocab, n, seed)


def _with_each(task: Any, what: str, d_vocab: int, n: int, seed: int) -> Probes:
    if not has_answers(task):
        raise GatedInterpError(
            f"the answers of {type(task).__name__} are not known (it has no probes), so nobody can "
            "say which head holds what; give a task such as SkipTrigramTask."
        )
    task.require_vocabulary(d_vocab)  # type: ignore[attr-defined]
    found: Probes = getattr(task, what)(n, seed)
    task.require_each(found.case)  # type: ignore[attr-defined]
    return found
