"""Old names and old orders of arguments: they work for one version and say what to write."""

import functools
import inspect
import numbers
import warnings
from collections.abc import Callable
from typing import Any, TypeVar

_MOVED = {
    "analytic": "coherent_head conditional_heads conditional_pair manual_model marked_relay "
    "paired_model two_readers wide_pairs",
    "studies": "GatedRun Recipe ToyRun decompose recipe_named train_gated_runs train_seeds "
    "train_toys",
    "tasks": "ConditionalTask OVCoherentTask RepeatedTokensTask TrigramBatch TwoLayersTask "
    "TwoSourcesTask WideContentTask",
    "text": "LanguageModelConfig LanguageTransformer TextTask build_language_model "
    "language_measures repeated_random_tokens skip_trigrams",
    "types": "AttentionTransformer Readings TaskTransformer TextHolders ToyTransformer TrainResult "
    "Verdict",
}
RENAMED = {name: f"{room}.{name}" for room, names in _MOVED.items() for name in names.split()} | {
    "Decomposition": "studies.DecomposeResult",
    "ablated": "without_heads",
    "decomposition": "block_measures",
    "induction_heads": "analytic.induction_model",
    "train_toy": "train_model",
}
"""By name of version 0.2, where the object is now: the old name works in 0.3 and warns."""

Function = TypeVar("Function", bound=Callable[..., Any])


class GatedInterpDeprecationWarning(FutureWarning):
    """A name or an order of arguments of version 0.2, which version 0.4 will not know.

    A ``FutureWarning``, because Python hides a ``DeprecationWarning`` from most users.

    Examples:
        >>> import gated_interp as gi
        >>> with warnings.catch_warnings(action="error", category=GatedInterpDeprecationWarning):
        ...     gi.train_toy
        Traceback (most recent call last):
        gated_interp.core.renamed.GatedInterpDeprecationWarning: gi.train_toy works in this...
    """


def warn_old(old: str, new: str) -> None:
    """Say at the caller's line that ``old`` still works, and what to write instead."""
    frame, level = inspect.currentframe(), 0
    while frame is not None and _is_ours(frame.f_globals.get("__name__", "")):
        frame, level = frame.f_back, level + 1
    said = f"{old} works in this version only; write {new}."
    warnings.warn(said, GatedInterpDeprecationWarning, stacklevel=level + 1)


def _is_ours(module: str) -> bool:
    # The tests check types with jaxtyping, in between.
    return module.partition(".")[0] in (__name__.partition(".")[0], "jaxtyping")


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
