"""Names that are imported when first used, read from the stub that type checkers read."""

import importlib
from collections.abc import Callable, Mapping
from typing import Any

Namespace = tuple[list[str], Callable[[str], Any]]


def names_from_stub(module: str, folder: str, old: Mapping[str, str] | None = None) -> Namespace:
    """``__all__`` and ``__getattr__`` of a package whose stub has one name a line.

    Args:
        module: the package's name.
        folder: where its ``__init__.pyi`` is, with lines ``from module import name as name``.
        old: by name of version 0.2, where the object is now, from ``gated_interp`` on.
    """
    with open(f"{folder}/__init__.pyi", encoding="utf-8") as stub:
        words = [line.split() for line in stub if line.startswith("from ")]
    old = old or {}
    home = {name: source for _, source, *_, name in words}
    original = {name: found for _, _, _, found, *_, name in words}

    def get(name: str) -> Any:
        if name in old:
            from gated_interp.core.renamed import warn_old

            warn_old(f"gi.{name}", f"gi.{old[name]}")
            found = importlib.import_module(module)
            for part in old[name].split("."):
                found = getattr(found, part)
            return found
        if name not in home:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        from gated_interp.core.launch import require_docstrings

        require_docstrings()
        if home[name] == module:  # a module, not a name in one
            return importlib.import_module(f"{module}.{name}")
        return getattr(importlib.import_module(home[name]), original[name])

    return sorted(home), get
