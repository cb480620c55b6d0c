"""Heads to switch on and off by hand, in a notebook or on a local page.

``bench`` and ``session`` hold every number and no widget; ``figure`` and ``widgets`` show them.
"""

from gated_interp.explorer.session import ExplorerState
from gated_interp.explorer.widgets import HeadExplorer

__all__ = ["ExplorerState", "HeadExplorer"]
