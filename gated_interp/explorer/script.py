"""What the explorer runs in a browser: one module, from its files."""

from importlib.resources import files

# The last one starts the page.
FILES = ("notes.js", "second.js", "explorer.js")


def script() -> str:
    """The module, for a notebook and for the page alike."""
    folder = files(__package__)
    return "\n".join((folder / name).read_text(encoding="utf-8") for name in FILES)
