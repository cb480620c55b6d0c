"""Trainings over many seeds, layers or settings, with their tables and figures.

The names are listed in the stub ``__init__.pyi`` and imported when first used.

Examples:
    >>> import gated_interp as gi
    >>> gi.studies.recipe_named("reliable", 2, 3).expansion
    4
"""

from typing import Any

from gated_interp.core.lazy import names_from_stub as _names_from_stub

__all__, _get = _names_from_stub(__name__, __path__[0])


def __getattr__(name: str) -> Any:
    return _get(name)


def __dir__() -> list[str]:
    return __all__
