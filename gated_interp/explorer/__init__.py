"""Heads to switch on and off by hand, in a notebook or on a local page.

``bench`` and ``session`` hold every number, ``view`` says what is shown of them, ``explorer.js``
draws it; ``explorer`` is the notebook's widget.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gated_interp.explorer.explorer import HeadExplorer
    from gated_interp.explorer.state import ExplorerState

__all__ = ["ExplorerState", "HeadExplorer"]


def __getattr__(name: str) -> Any:
    # The served page needs no notebook packages, so they are asked for only here.
    if name in __all__:
        home = "state" if name == "ExplorerState" else "explorer"
        return getattr(importlib.import_module(f"{__name__}.{home}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
