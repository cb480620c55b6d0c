"""Open the model that a checkpoint refers to, and put its blocks in."""

import os
from pathlib import Path
from typing import Any

from gated_interp.checkpoints.foreign import from_memory, from_place, is_foreign, may_be_a_name
from gated_interp.checkpoints.reference_format import Reference, ReferenceInfo
from gated_interp.core.errors import CheckpointError
from gated_interp.core.shipped import shipped_names
from gated_interp.core.tensor_file import Header
from gated_interp.models.pretrained import PretrainedTransformer
from gated_interp.models.toy import HookedTransformer, TaskTransformer, clone
from gated_interp.replacements.replacement import Replacement
from gated_interp.replacements.splice import originals, require_fit, splice_in, unsplice
from gated_interp.replacements.stored import block_of


def referenced(path: Path, header: Header, info: ReferenceInfo, base: Any) -> TaskTransformer:
    """The model of the checkpoint at ``path``, its blocks in place.

    Args:
        base: the model that it refers to, or where that is; found by the reference if ``None``.
    """
    model = _opened(path, info.reference, base)
    for layer, block in blocks_of(path, header, info, model).items():
        require_fit(model, layer, block)
        splice_in(model, layer, block)
    return model


def blocks_of(
    path: Path, header: Header, info: ReferenceInfo, model: HookedTransformer
) -> dict[int, Replacement]:
    """The blocks in the file, by layer; ``model`` is the one that they stand in."""
    own = {layer: block.attn for layer, block in enumerate(model.blocks)} | originals(model)
    return {
        layer: block_of(path, header, stored, own[layer]) for layer, stored in info.stored().items()
    }


def _opened(path: Path, reference: Reference, base: Any) -> TaskTransformer:
    if base is not None:
        if isinstance(base, str | os.PathLike):
            model: Any = _at(os.path.expanduser(os.fspath(base)), reference)
        elif isinstance(base, PretrainedTransformer):
            model = unsplice(base) if originals(base) else clone(base)
        else:
            model = clone(from_memory(base, reference.text, reference.n_ctx))
        if not reference.is_of(model):
            raise CheckpointError("another-model-given", path=str(path))
        return model
    places = _places(path, reference)
    for place in places:
        model = _at(place, reference)
        if reference.is_of(model):
            return model
    if places:
        raise CheckpointError("another-model-there", path=str(path), places=places)
    which = reference.said
    if reference.path is None:
        raise CheckpointError("referenced-model-in-memory", path=str(path), model=which)
    looked = dict.fromkeys([reference.path, str(_beside(path, reference) or reference.path)])
    raise CheckpointError("referenced-model-missing", path=str(path), model=which, looked=[*looked])


def _at(place: str, reference: Reference) -> Any:
    from gated_interp.checkpoints.checkpoint import load  # which asks here

    if place in shipped_names():
        return load(place)
    return from_place(place, reference.text, reference.n_ctx)


def _places(path: Path, reference: Reference) -> list[str]:
    """Where there is a model to be looked at, the likeliest first."""
    if reference.name is not None:
        if reference.name not in shipped_names() and not may_be_a_name(reference.name):
            raise CheckpointError("cannot-load", path=path, reason=f"{reference.name!r} is no name")
        return [reference.name]
    found = [Path(reference.path)] if reference.path else []
    beside = _beside(path, reference)
    found += [] if beside is None or beside in found else [beside]
    return [str(place) for place in found if is_foreign(place)]


def _beside(path: Path, reference: Reference) -> Path | None:
    if reference.relative is None:
        return None
    return Path(os.path.normpath(path.resolve().parent / reference.relative))


def require_same(
    path: Path, header: Header, info: ReferenceInfo, model: PretrainedTransformer
) -> None:
    """Refuse a file whose blocks cannot be put into ``model``, without a copy of that."""
    for layer, block in blocks_of(path, header, info, model).items():
        require_fit(model, layer, block)
