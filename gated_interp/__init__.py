"""Find and undo attention head superposition with gated attention blocks, on TransformerLens.

The public names are listed in the stub ``__init__.pyi``, which is also what type checkers read,
and imported when first used, so that ``import gated_interp`` and the command line's ``--help`` are
quick.
"""

from typing import Any

from gated_interp.core.lazy import names_from_stub as _names_from_stub
from gated_interp.core.renamed import RENAMED as _RENAMED

__version__ = "0.3.0"

_names, _get = _names_from_stub(__name__, __path__[0], _RENAMED)
__all__ = sorted([*_names, "__version__"])


def __getattr__(name: str) -> Any:
    return _get(name)


def __dir__() -> list[str]:
    return __all__
