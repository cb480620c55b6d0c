"""The explorer as a local page: ``gated-interp explore``."""

from gated_interp.explorer_server.serve import explore

__all__ = ["explore"]
