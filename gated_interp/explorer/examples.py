"""Sequences typed by hand, and what the task says comes next."""

from collections.abc import Sequence

from gated_interp.core.errors import GatedInterpError
from gated_interp.tasks.skip_trigrams import SkipTrigramTask


def parse_tokens(words: str, task: SkipTrigramTask, longest: int) -> tuple[int, ...]:
    """The tokens that ``words`` names, by name or number, apart by spaces or commas.

    Args:
        longest: how many tokens the model reads at most.

    Raises:
        GatedInterpError: a token that does not exist, no token, or too many.

    Examples:
        >>> parse_tokens("BOS a, C2 1", SkipTrigramTask(n_trigrams=3), longest=11)
        (7, 0, 5, 1)
    """
    number_of = {name: i for i, name in enumerate(task.token_names)}
    number_of |= {str(i): i for i in range(task.d_vocab)}
    found = words.upper().replace(",", " ").split()
    for word in found:
        if word not in number_of:
            last = task.n_trigrams
            numbered = "B1, C1" if last == 1 else f"B1 to B{last}, C1 to C{last}"
            shown = word if len(word) <= 20 else f"{word[:20]}…"
            raise GatedInterpError(
                f"{shown!r} is not a token; write A, {numbered}, BOS, "
                f"or numbers from 0 to {task.d_vocab - 1}."
            )
    if not found:
        raise GatedInterpError("there is no token; write at least one, such as BOS A B1.")
    if len(found) > longest:
        raise GatedInterpError(
            f"{len(found)} tokens are too many; the model reads at most {longest}."
        )
    return tuple(number_of[word] for word in found)


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
