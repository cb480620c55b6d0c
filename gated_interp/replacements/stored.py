"""A replacement in a file: written alone, or read out of a checkpoint, without any model.

A file of one block is safetensors. Its metadata string ``gated_interp_block`` is a JSON object::

    {"format_version": 1, "kind": "gated", "config": {...}, "l0": 1.2 | null, "layer": [...]}

where ``layer`` is the sketch of the layer that the block stands in for
(:mod:`gated_interp.replacements.layer_sketch`), absent where that is not known, as before 0.3; of a
checkpoint it is made of the attention in the file. Its tensors, all float32, are what its kind's
``stored_shapes`` names. In a checkpoint of a model
(:mod:`gated_interp.checkpoints.checkpoint_format`) they are ``replacement.0.*`` for the one in
layer 0 (``block.*`` in version 1) beside everything else; of version 3, whose model is elsewhere,
the metadata says ``l0`` and ``layer`` of each. Nothing is ever unpickled.
"""

import dataclasses
import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from gated_interp.core.components import require_attention
from gated_interp.core.config import Config
from gated_interp.core.errors import CheckpointError, GatedInterpError
from gated_interp.core.files import write_whole
from gated_interp.core.hub import downloaded
from gated_interp.core.metadata import (
    KEY,
    MOST_OF_BLOCK,
    VERSIONS,
    config_from,
    require_keys,
    require_limits,
    said_in,
)
from gated_interp.core.shipped import MODEL_FILE, SUFFIX, located
from gated_interp.core.tensor_file import (
    MAX_BYTES,
    Header,
    read_header,
    read_tensors,
    require_finite,
    require_shapes,
    written,
)
from gated_interp.replacements.layer_sketch import BUCKETS, Sketch, layer_sketch
from gated_interp.replacements.replacement import Block, Replacement, kind_named

BLOCK_KEY = f"{KEY}_block"
FIELDS = ("format_version", "kind", "config", "l0")
LAYER = "layer"


@dataclasses.dataclass(frozen=True)
class Stored:
    """A replacement in a file: its kind and config, and what its tensors' names begin with.

    ``layer`` is the sketch of what it stands in for, or what the names of that begin with.
    """

    kind: type[Replacement]
    config: Config
    prefix: str
    l0: Any
    layer: Sketch | str | None


def save_block(block: Replacement, path: str | os.PathLike[str]) -> Path:
    """:meth:`Replacement.save_pretrained`."""
    path = Path(path)
    path = path if path.suffix == SUFFIX else path / MODEL_FILE
    require_limits(block.config, MOST_OF_BLOCK)
    shapes = block.stored_shapes(block.config)
    tensors = {n: stored_value(block, n, shape, n) for n, shape in shapes.items()}
    for name, parameter in block.named_parameters():
        if is_bias(name) and name not in shapes and bool(parameter.ne(0).any()):
            raise GatedInterpError("bias-would-be-lost", name=name)
    require_finite("the block", tensors)
    said = {
        "format_version": 1,
        "kind": block.kind,
        "config": block.config.to_dict(),
        "l0": block.l0,
        **({} if block.stands_for is None else {LAYER: block.stands_for}),
    }
    data = safetensors.torch.save(tensors, metadata={BLOCK_KEY: json.dumps(said, allow_nan=False)})
    if len(data) > MAX_BYTES:
        raise CheckpointError("model-too-large", what="block", size=len(data), most=MAX_BYTES)
    original = getattr(block, "original", None)
    return write_whole(
        path, lambda p: written(p, data, lambda back: read_block(type(block), back, None, original))
    )


def read_block(
    cls: type[Block],
    name_or_path: str | os.PathLike[str],
    layer: int | None,
    original: nn.Module | None,
    **hub: Any,
) -> Block:
    """:meth:`Replacement.from_pretrained`."""
    with _found(name_or_path, **hub) as path:
        header = read_header(path)
        with in_a_sentence(path):
            stored = _chosen(path, _blocks_in(path, header), layer)
            _require_kind(path, stored.kind, cls)
        block = block_of(path, header, stored, original)
    assert isinstance(block, cls)  # _require_kind has seen to it
    return block


def block_of(path: Path, header: Header, stored: Stored, original: nn.Module | None) -> Replacement:
    """The replacement that a file's header says is in it.

    Args:
        original: the attention that it stands in for, where its kind asks.
    """
    with in_a_sentence(path):
        require_limits(stored.config, MOST_OF_BLOCK)
        shapes = stored.kind.stored_shapes(stored.config)
    theirs = {stored.prefix + name: shape for name, shape in shapes.items()}
    mine = {n: s for n, s in header.shapes.items() if n.startswith(stored.prefix)}
    require_shapes(path, dataclasses.replace(header, shapes=mine), theirs)
    block = stored.kind.from_config(stored.config, _original(stored, original))
    fill(block, read_tensors(path, theirs), stored.prefix)
    at = stored.layer
    if isinstance(at, str):
        beside = {n: s for n, s in header.shapes.items() if n.startswith(at)}
        weights = {n.removeprefix(at): w for n, w in read_tensors(path, beside).items()}
        at = layer_sketch(weights) if weights else None
    block.stands_for = at
    block.l0 = float(stored.l0) if type(stored.l0) in (int, float) else None
    return block


@contextmanager
def in_a_sentence(path: Path) -> Iterator[None]:
    """What is wrong with the file is said with its name."""
    try:
        yield
    except CheckpointError:
        raise
    except GatedInterpError as error:
        raise CheckpointError("cannot-load", path=path, reason=error) from error


def referenced_in(said: Any) -> dict[int, Stored]:
    """By layer, the replacements under ``replacements`` in the metadata of version 3."""
    found = replacements_in(said, ("l0", LAYER))
    return {
        i: Stored(*part, f"replacement.{i}.", said[str(i)]["l0"], sketch_of(said[str(i)][LAYER]))
        for i, part in found.items()
    }


def replacements_in(
    said: Any, more: tuple[str, ...] = ()
) -> dict[int, tuple[type[Replacement], Config]]:
    """By layer, the kinds and configs under ``replacements`` in a checkpoint's metadata.

    Args:
        more: keys that each has besides.
    """
    if not isinstance(said, dict):
        raise CheckpointError("not-a-json-object", what="The replacements entry")
    found, keys = {}, ("kind", "config", *more)
    for layer, part in said.items():
        what = f"the replacement in layer {layer}"
        require_keys(what, part, keys, keys)
        if not layer.isdecimal() or str(int(layer)) != layer:
            raise CheckpointError("not-a-layer-number", layer=layer)
        kind = kind_named(str(part["kind"]))
        config = config_from(f"the config of {what}", kind.config_type, part["config"])
        found[int(layer)] = kind, config
    return found


def fill(module: nn.Module, tensors: Mapping[str, Tensor], prefix: str) -> None:
    """Put the tensors whose name begins with ``prefix`` into the parameters of that name."""
    with torch.no_grad():
        # What is not in the file does not train: biases are zero, whatever they started as.
        for name, parameter in module.named_parameters():
            if is_bias(name) and not parameter.requires_grad and not name.startswith("original."):
                parameter.zero_()
        for name, tensor in tensors.items():
            if name.startswith(prefix):
                module.get_parameter(name.removeprefix(prefix)).copy_(tensor)


def stored_value(module: nn.Module, name: str, shape: tuple[int, ...], called: str) -> Tensor:
    """A copy of a parameter, on the CPU, as it goes into a file."""
    value = dict(module.named_parameters(remove_duplicate=False)).get(name)  # may be tied
    if value is None or tuple(value.shape) != shape or value.dtype != torch.float32:
        found = "missing" if value is None else f"{list(value.shape)} of {value.dtype}"
        raise GatedInterpError(
            "parameter-cannot-be-saved", name=called, found=found, wanted=list(shape)
        )
    return value.detach().cpu().contiguous().clone()


def is_bias(name: str) -> bool:
    """Whether a parameter is a bias that a config may leave out: zero where no file holds it."""
    return name.rpartition(".")[2] in ("b_V", "b_O") and not name.startswith("original.")


@contextmanager
def _found(source: str | os.PathLike[str], **hub: Any) -> Iterator[Path]:
    """The file that ``source`` means: a shipped model's, a path's, else a hub repository's."""
    repository = isinstance(source, str) and re.fullmatch(r"[\w.-]+/[\w.-]+", source)
    if repository and not str(source).endswith(SUFFIX) and not Path(source).exists():
        try:
            yield downloaded(str(source), MODEL_FILE, **hub)
        except CheckpointError:
            raise
        except GatedInterpError as error:
            raise GatedInterpError(
                "not-found-here-or-on-hub", source=source, reason=error
            ) from error
        return
    with located(source) as (path, _):
        yield path


def _blocks_in(path: Path, header: Header) -> dict[int | None, Stored]:
    """What the header says of replacements, by layer; of a file of one block under ``None``."""
    if BLOCK_KEY in header.metadata:
        said, _ = said_in(path, header.metadata[BLOCK_KEY], (1,))
        require_keys("the metadata", said, FIELDS, (*FIELDS, LAYER))
        kind = kind_named(str(said["kind"]))
        config = config_from("the config", kind.config_type, said["config"])
        return {None: Stored(kind, config, "", said["l0"], sketch_of(said.get(LAYER)))}
    if KEY not in header.metadata:
        raise CheckpointError("published-model", path=path)
    said, version = said_in(path, header.metadata[KEY], VERSIONS)
    notes = said.get("notes")
    l0 = notes.get("l0") if isinstance(notes, dict) else None
    if version == 1:
        if said.get("gated_config") is None:
            return {}
        kind = kind_named("gated")
        config = config_from("the gated_config", kind.config_type, said["gated_config"])
        return {0: Stored(kind, config, "block.", l0, "toy.")}
    if version == 3:
        return dict(referenced_in(said.get("replacements")).items())
    found = replacements_in(said.get("replacements"))
    return {
        i: Stored(*part, f"replacement.{i}.", l0, f"model.blocks.{i}.attn.")
        for i, part in found.items()
    }


def sketch_of(said: Any) -> Sketch | None:
    """A sketch, as JSON has it."""
    if said is None:
        return None
    if not isinstance(said, list) or [type(x) in (int, float) for x in said] != [True] * BUCKETS:
        raise CheckpointError("bad-layer-sketch", n=BUCKETS)
    return tuple(map(float, said))


def _chosen(path: Path, there: Mapping[int | None, Stored], layer: int | None) -> Stored:
    """The one in ``layer``, or where none is named the only one."""
    if not there:
        raise CheckpointError("model-without-replacement", path=path)
    if layer is None and len(there) == 1:
        return next(iter(there.values()))
    layers = ", ".join(str(i) for i in there)
    if None in there:
        raise CheckpointError("single-block-has-no-layer", path=path)
    if layer is None:
        raise CheckpointError("which-layer", path=path, layers=layers)
    if layer not in there:
        raise CheckpointError("no-replacement-in-file-layer", path=path, layer=layer, layers=layers)
    return there[layer]


def _require_kind(path: Path, kind: type[Replacement], wanted: type[Replacement]) -> None:
    if not issubclass(kind, wanted):
        raise CheckpointError(
            "another-kind-in-file",
            path=path,
            kind=kind.kind,
            reader=kind.__name__,
            wanted=wanted.__name__,
        )


def _original(stored: Stored, original: nn.Module | None) -> nn.Module:
    """What the replacement stands in for, where its kind asks; refuses another width."""
    if not stored.kind.needs_original:
        return nn.Identity()
    if original is None:
        raise GatedInterpError("original-needed", kind=stored.kind.__name__)
    require_attention(original)
    width, wanted = original.get_parameter("W_O").shape[-1], vars(stored.config)["d_model"]
    if width != wanted:
        raise GatedInterpError("original-width-mismatch", width=width, wanted=wanted)
    return original
