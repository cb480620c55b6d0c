"""Old names and old orders of arguments: they work for one version and say what to write."""

import functools
import inspect
import numbers
import warnings
from collections.abc import Callable
from typing import Any, TypeVar

Function = TypeVar("Function", bound=Callable[..., Any])


class GatedInterpDeprecationWarning(FutureWarning):
    """A name or an order of arguments of version 0.2, which version 0.4 will not know.

    A ``FutureWarning``, because Python hides a ``DeprecationWarning`` from most users.
    """


def warn_old(old: str, new: str, *, stacklevel: int = 3) -> None:
    """Say that ``old`` still works, and what to write instead."""
    warnings.warn(
        f"{old} works in this version only; write {new}.",
        GatedInterpDeprecationWarning,
        stacklevel=stacklevel,
    )


def layer_first(function: Function) -> Function:
    """Let ``f(model, layer, tokens)`` be called without a layer, or as in version 0.2.

    ``f(model, tokens)`` names no layer. ``f(model, tokens, layer)`` is the old order and warns.
    """
    layer, tokens = list(inspect.signature(function).parameters)[1:3]

    @functools.wraps(function)
    def called(model: Any, *args: Any, **kwargs: Any) -> Any:
        if args and not _is_layer(args[0]):
            rest = args[1:]
            if rest or layer in kwargs:
                name = function.__name__
                warn_old(f"{name}(model, {tokens}, {layer})", f"{name}(model, {layer}, {tokens})")
            chosen = rest[0] if rest else kwargs.pop(layer, None)
            args = (chosen, args[0], *rest[1:])
        return function(model, *args, **kwargs)

    return called  # type: ignore[return-value]


def _is_layer(value: Any) -> bool:
    """Whether this may name layers or a head, and cannot be a batch of tokens."""
    if isinstance(value, list | tuple | range):
        return all(isinstance(entry, numbers.Number) for entry in value)
    return value is None or isinstance(value, numbers.Number | str)
