"""Heads by (layer, head), counted where they are: spliced layers may hold more than the config."""

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from typing import Any

from torch import Tensor

from gated_interp.core.errors import GatedInterpError
from gated_interp.core.written import head_name as head_name
from gated_interp.models.toy import HookedTransformer
from gated_interp.replacements.splice import chosen_layer as chosen_layer
from gated_interp.replacements.splice import require_layer

Head = tuple[int, int]

HeadLike = Head | list[int] | str
"""How a head may be named: ``(0, 1)`` or ``"L0H1"``."""

HeadOfLayer = int | HeadLike
"""How a head may be named where its layer is known: also ``1``."""


def head_counts(model: HookedTransformer) -> list[int]:
    """How many heads each layer has."""
    return [int(block.attn.W_O.shape[0]) for block in model.blocks]


def all_heads(model: HookedTransformer) -> list[Head]:
    """Every ``(layer, head)``, layer by layer."""
    return [(layer, head) for layer, n in enumerate(head_counts(model)) for head in range(n)]


def heads_of(model: HookedTransformer, layer: int | None) -> list[Head]:
    """Every head of ``layer``, or where none is named of the model."""
    if layer is not None:
        require_layer(model, layer)
    return [head for head in all_heads(model) if layer is None or head[0] == layer]


def heads_name(model: HookedTransformer, heads: Sequence[Head]) -> str:
    """``L0H0+L0H1``; where these are all heads of the model or of a layer, that."""
    there = all_heads(model)
    if set(heads) == set(there):
        return "all heads"
    layers = {layer for layer, _ in heads}
    if len(layers) == 1 and len(heads) > 1 and set(heads) == {h for h in there if h[0] in layers}:
        return f"all of layer {layers.pop()}"
    return "+".join(map(head_name, heads))


def require_heads(model: HookedTransformer, heads: Sequence[Any]) -> list[Head]:
    """``heads`` as a list of ``(layer, head)`` that are all there, each once.

    Args:
        heads: each as ``(layer, head)`` or by its name, such as ``"L0H1"``.

    Examples:
        >>> from gated_interp.models.toy import ToyConfig, build_toy
        >>> require_heads(build_toy(ToyConfig(n_trigrams=1, n_heads=3)), [(0, 2), "L0H1"])
        [(0, 2), (0, 1)]
    """
    if isinstance(heads, str):  # else its letters would be heads
        heads = [heads]
    named: list[Head] = []
    for entry in heads:
        layer, head = _pair(entry)
        require_layer(model, layer)
        n = head_counts(model)[layer]
        if not 0 <= head < n:
            raise GatedInterpError("no-such-head", head=head, layer=layer, last=n - 1)
        if (layer, head) in named:
            raise GatedInterpError("head-named-twice", head=head_name((layer, head)))
        named.append((layer, head))
    if not named:
        raise GatedInterpError("no-heads")
    return named


def head_in(model: HookedTransformer, layer: int, head: HeadOfLayer) -> int:
    """The number of ``head`` within ``layer``, named by it, as ``(layer, head)`` or by its name.

    Examples:
        >>> from gated_interp.models.toy import ToyConfig, build_toy
        >>> toy = build_toy(ToyConfig(n_trigrams=1, n_heads=3))
        >>> [head_in(toy, 0, head) for head in (2, (0, 2), "L0H2")]
        [2, 2, 2]
    """
    named = require_heads(model, [(layer, head) if type(head) is int else head])[0]
    if named[0] != layer:
        raise GatedInterpError("head-in-another-layer", head=head_name(named), layer=layer)
    return named[1]


def heads_in(
    model: HookedTransformer, layer: int | None, heads: Sequence[HeadOfLayer] | None
) -> tuple[int, list[int]]:
    """A layer and which of its heads are meant, all of them where none is named.

    Args:
        layer: may be left out where there is one, or where heads are named with theirs.
        heads: each as :func:`head_in` takes it.
    """
    named: list[Any] | None = None if heads is None else list(heads)
    if isinstance(heads, str):
        named = [heads]
    if layer is None and named and type(named[0]) is not int:
        layer = require_heads(model, named[:1])[0][0]
    layer = chosen_layer(model, layer)
    if named is None:
        return layer, list(range(head_counts(model)[layer]))
    numbers = [head_in(model, layer, head) for head in named]
    return layer, [head for _, head in require_heads(model, [(layer, h) for h in numbers])]


def one_head(
    model: HookedTransformer, layer: HeadOfLayer | None = None, head: HeadOfLayer | None = None
) -> Head:
    """One head, by its layer and number, as ``(layer, head)`` or by its name.

    A number alone, as ``head``, is of the layer that :func:`chosen_layer` finds.

    Examples:
        >>> from gated_interp.models.toy import ToyConfig, build_toy
        >>> toy = build_toy(ToyConfig(n_trigrams=1, n_heads=3))
        >>> one_head(toy, "L0H2"), one_head(toy, 0, 2)
        ((0, 2), (0, 2))
    """
    if head is None and (layer is None or type(layer) is int):
        if layer is None:
            raise GatedInterpError("no-head")
        raise GatedInterpError("layer-without-head", layer=layer)
    if head is None:
        return require_heads(model, [layer])[0]
    if layer is None:
        if type(head) is not int:
            return require_heads(model, [head])[0]
        layer = chosen_layer(model, None)
    if type(layer) is not int:
        raise GatedInterpError("two-heads", first=layer, second=head)
    return layer, head_in(model, layer, head)


def _pair(entry: Any) -> Head:
    if isinstance(entry, str) and (found := re.fullmatch(r"L([0-9]+)H([0-9]+)", entry)):
        return int(found[1]), int(found[2])
    if not isinstance(entry, tuple | list) or [type(i) for i in entry] != [int, int]:
        raise GatedInterpError("not-a-head", entry=entry)
    return entry[0], entry[1]


def require_hook(model: HookedTransformer, name: str) -> None:
    """Refuse the name of a hook point that is not there."""
    if name not in model.hook_dict:
        close = get_close_matches(name, list(model.hook_dict), 1, 0)
        raise GatedInterpError("no-such-hook", name=name, close=close[0])


@contextmanager
def intervened(
    model: HookedTransformer, edits: dict[str, Callable[[Tensor], Tensor | None]]
) -> Iterator[HookedTransformer]:
    """``model`` with the activation at each named hook point replaced by its edit's return.

    An edit that returns ``None`` only looks. The hooks go however the block is left (normally,
    by an exception, by an interrupt), and no other hook is touched. Hooks added inside, such as
    those of ``run_with_cache``, see the replaced activation.
    """
    for name in edits:
        require_hook(model, name)
    handles, ran = [], set[str]()

    def edited(name: str) -> Callable[[Any, Any, Tensor], Tensor | None]:
        def hook(_module: Any, _inputs: Any, output: Tensor) -> Tensor | None:
            ran.add(name)
            return edits[name](output)

        return hook

    try:
        for name in edits:
            handles.append(model.hook_dict[name].register_forward_hook(edited(name)))
        yield model
    finally:
        for handle in handles:
            handle.remove()
    for name in edits:
        if name not in ran:
            raise GatedInterpError(
                "hook-not-reached", hook=name, what="the edit there never happened"
            )
