"""The errors of the package: a class and a code to check for, and a sentence to read."""

import string
import tomllib
from collections.abc import Iterable, Mapping
from functools import cache
from importlib import resources
from typing import Any


class GatedInterpError(ValueError):
    """Bad input. The sentence says what happened, why, and what to do next.

    Sentences are in ``sentences.toml``, by code, and may be improved from version to version; the
    codes stay. A code that is not there is shown as it is, with its fields.

    Attributes:
        code: what is wrong, in short, such as ``"no-such-layer"``.
        fields: the names and numbers in the sentence; what is neither is given as text.

    Examples:
        >>> from gated_interp.tasks.skip_trigrams import SkipTrigramTask
        >>> try:
        ...     SkipTrigramTask(n_trigrams=0)
        ... except GatedInterpError as error:
        ...     error.code, error.fields
        ('not-a-whole-number', {'name': 'n_trigrams', 'value': 0, 'least': 1})
    """

    def __init__(self, code: str, /, **fields: Any) -> None:
        super().__init__(sentence(code, fields))
        self.code, self.fields = code, {name: _plain(value) for name, value in fields.items()}


class CheckpointError(GatedInterpError):
    """A file that is not a checkpoint this version can load.

    Examples:
        >>> from gated_interp.checkpoints.checkpoint import load
        >>> load("model.bin")
        Traceback (most recent call last):
        gated_interp.core.errors.CheckpointError: There is no file model.bin...
    """


class GatedInterpWarning(UserWarning):
    """A result that is there but is not what was asked for, and what to try.

    Examples:
        >>> import warnings
        >>> from gated_interp.models.toy import ToyConfig, build_toy
        >>> from gated_interp.training.fit import fit_gated
        >>> toy = build_toy(ToyConfig(n_trigrams=3, n_heads=2))
        >>> with warnings.catch_warnings(record=True) as said:
        ...     warnings.simplefilter("always")
        ...     _ = fit_gated(toy, steps=2, fvu=0.01, init="random", progress=False)
        >>> str(said[0].message)
        'the training of the block ended with an error of ...
    """


@cache
def sentences() -> dict[str, str]:
    """What each code says, with its fields in the syntax of :meth:`str.format`."""
    text = resources.files("gated_interp.core").joinpath("sentences.toml").read_text("utf-8")
    return {c: said for room in tomllib.loads(text).values() for c, said in room.items()}


def sentence(code: str, fields: Mapping[str, Any]) -> str:
    """What the error of that code says."""
    try:
        return _Sentence().vformat(sentences()[code], (), fields)
    except Exception:  # whatever is wrong with the sentence must not hide what is wrong
        said = ", ".join(f"{name}={_plain(value)!r}" for name, value in fields.items())
        return f"{code} ({said})" if said else code


class _Sentence(string.Formatter):
    """Writes lists with commas between their items."""

    def format_field(self, value: Any, format_spec: str) -> Any:
        if isinstance(value, Iterable) and not isinstance(value, str):
            value = ", ".join(map(str, value)) or "none"
        return super().format_field(value, format_spec)


def _plain(value: Any) -> Any:
    """``value`` as any process can read it: numbers, text, and flat lists of them."""
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, list | tuple):
        return [v if type(v) in (bool, int, float, str) else str(v) for v in value]
    return str(value)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether there was too little memory, in the words of Python, of torch or of its drivers.

    Examples:
        >>> is_out_of_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory: 16 GB"))
        True
    """
    said = str(error).lower()
    words = ("allocate memory", "not enough memory", "out of memory", "bad_alloc", "alloc_failed")
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(word in said for word in words)
    )
