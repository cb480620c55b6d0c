"""Find and undo attention head superposition with gated attention blocks, on TransformerLens.

The public names are listed in the stub ``__init__.pyi``, which is also what type checkers read,
and imported when first used, so that ``import gated_interp`` and the command line's ``--help`` are
quick.
"""

import importlib
from typing import Any

__version__ = "0.2.0"

with open(f"{__path__[0]}/__init__.pyi", encoding="utf-8") as _stub:
    # Lines such as: from gated_interp.core.errors import GatedInterpError as GatedInterpError
    _HOME = {line.split()[-1]: line.split()[1] for line in _stub if line.startswith("from ")}

__all__ = sorted([*_HOME, "__version__"])


def __getattr__(name: str) -> Any:
    if name in _HOME:
        from gated_interp.core.launch import require_docstrings

        require_docstrings()
    if _HOME.get(name) == __name__:  # a module, not a name in one
        return importlib.import_module(f"{__name__}.{name}")
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
