"""The command line, ``gated-interp``; what is heavy is imported inside the commands."""

from gated_interp.cli.app import app, main, run

__all__ = ["app", "main", "run"]
