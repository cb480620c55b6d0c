"""Errors are checked by class, code and fields; what they say is free to change."""

import re
import string
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from gated_interp.core.errors import GatedInterpError, sentences


@contextmanager
def refuses(
    code: str, kind: type[GatedInterpError] = GatedInterpError, /, **fields: Any
) -> Iterator[pytest.ExceptionInfo[GatedInterpError]]:
    """Something inside is refused by an error of that code with these fields, or one quoting it."""
    with pytest.raises(kind) as caught:
        yield caught
    error: BaseException | None = caught.value
    codes = []
    while isinstance(error, GatedInterpError) and error.code != code:
        codes.append(error.code)
        error = error.__cause__
    assert isinstance(error, GatedInterpError), f"{caught.value} ({codes}, not {code!r})"
    assert error.fields | fields == error.fields


def says(code: str, text: str) -> bool:
    """Whether ``text``, with whatever fields, is or holds the sentence of that code."""
    parts = [re.escape(part[0]) for part in string.Formatter().parse(sentences()[code])]
    return re.search(".*".join(parts), " ".join(text.split())) is not None
