"""Save a model with everything that says what it is, and load it back, bit for bit.

The file format is described in :mod:`gated_interp.checkpoints.checkpoint_format`; the post's own
files (:mod:`gated_interp.checkpoints.published`) load too. Nothing is ever unpickled.
"""

import os
from pathlib import Path
from typing import Any, Literal

import safetensors.torch
import torch
from torch import Tensor

from gated_interp.checkpoints.checkpoint_format import KEY, CheckpointInfo, decode, encode
from gated_interp.checkpoints.published import IGNORE, is_published, published_info, require_mask
from gated_interp.checkpoints.shipped import MODEL_FILE, located
from gated_interp.checkpoints.tensor_file import (
    MAX_BYTES,
    read_header,
    read_tensors,
    require_finite,
    require_shapes,
)
from gated_interp.core.errors import CheckpointError, GatedInterpError
from gated_interp.core.files import write_whole
from gated_interp.models.toy import HookedTransformer, ToyTransformer, build_toy
from gated_interp.replacements.gated_attention import GatedAttention
from gated_interp.replacements.splice import gated_block, originals, splice
from gated_interp.replacements.standalone import standalone

__all__ = ["CheckpointInfo", "load", "read_info", "save", "save_pretrained"]


def load(source: str | os.PathLike[str]) -> ToyTransformer:
    """The model in a checkpoint, on the CPU.

    A gated model comes spliced: its attention *is* the block, and ``unsplice`` gives the toy it
    was trained from. A file with a block alone (the published gated ones) has no original to go
    back to, see :func:`gated_interp.replacements.standalone.standalone`.

    Args:
        source: a checkpoint file, a folder with ``model.safetensors``, or the name of a model
            that comes with the package (:func:`gated_interp.checkpoints.shipped.shipped_names`).

    Returns:
        A ``HookedTransformer`` that knows its ``task``, ``notes``, ``toy_config``, ``model_name``
        and ``info`` (:class:`CheckpointInfo`). A published file names no seed; its configs say 0.

    Raises:
        CheckpointError: no such file or name, or a file that is not a sound checkpoint.

    Examples:
        >>> import tempfile
        >>> from gated_interp.models.toy import ToyConfig
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = save_pretrained(build_toy(ToyConfig(n_trigrams=3, n_heads=2)), folder)
        ...     model = load(folder)
        >>> model.task
        SkipTrigramTask(n_trigrams=3, n_positions=11)
    """
    with located(source) as (path, name):
        info, theirs = _checked(path)
        wanted = {theirs[ours]: shape for ours, shape in info.shapes.items()}
        if IGNORE in theirs:
            wanted[IGNORE] = ()
        read = read_tensors(path, wanted)
        require_mask(path, read)
        try:
            model = _build(info, {ours: read[theirs[ours]] for ours in info.shapes})
        except CheckpointError:
            raise
        except GatedInterpError as error:
            raise CheckpointError(f"{path} cannot be loaded: {error}") from error
    model.info, model.notes, model.model_name = info, info.notes, name
    return model


def read_info(source: str | os.PathLike[str]) -> CheckpointInfo:
    """What a checkpoint says about its model; only the header is read, and checked.

    Raises:
        CheckpointError: as :func:`load`, except for what only the weights show.

    Examples:
        >>> info = read_info("2H3ST-gated")  # it comes with the package
        >>> info.kind, info.toy_config.name, info.gated_config.n_heads
        ('gated', '2H3ST', 8)
    """
    with located(source) as (path, _):
        return _checked(path)[0]


def save(
    model: HookedTransformer,
    path: str | os.PathLike[str],
    *,
    notes: dict[str, Any] | None = None,
) -> Path:
    """Write a toy, or a toy with a gated block spliced in, to one safetensors file.

    The file is written whole or not at all: what stood at ``path`` stays when anything goes wrong.
    The same model and notes give the same bytes.

    Args:
        model: from :func:`build_toy`, from :func:`splice` into one, from :func:`load`, or from
            :func:`gated_interp.replacements.standalone.standalone`.
        notes: anything JSON can hold. ``None`` keeps the notes that ``model`` carries, unless it
            was loaded as a toy and is gated now (or the other way round).

    Returns:
        The path.

    Raises:
        GatedInterpError: a model that such a file cannot describe, notes that JSON cannot hold,
            or a place that cannot be written.
        CheckpointError: NaN or infinite weights, or a model beyond the format's limits.

    Examples:
        >>> import tempfile
        >>> from gated_interp.models.toy import ToyConfig, build_toy
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     toy = build_toy(ToyConfig(n_trigrams=3, n_heads=2))
        ...     path = save(toy, Path(folder) / "toy.safetensors", notes={"made": "by hand"})
        ...     load(path).notes
        {'made': 'by hand'}
    """
    info, tensors = _contents(model, notes)
    data = safetensors.torch.save(tensors, metadata={KEY: encode(info)})
    if len(data) > MAX_BYTES:
        raise CheckpointError(f"the model makes {len(data)} bytes; a file may have {MAX_BYTES}.")
    return write_whole(Path(path), lambda temporary: temporary.write_bytes(data))


def save_pretrained(
    model: HookedTransformer,
    folder: str | os.PathLike[str],
    *,
    notes: dict[str, Any] | None = None,
) -> Path:
    """Write ``folder/model.safetensors``, which ``load(folder)`` reads; see :func:`save`.

    Raises:
        GatedInterpError: as :func:`save`.

    Examples:
        >>> import tempfile
        >>> from gated_interp.models.toy import ToyConfig, build_toy
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_pretrained(build_toy(ToyConfig(n_trigrams=3, n_heads=2)), folder).name
        'model.safetensors'
    """
    return save(model, Path(folder) / MODEL_FILE, notes=notes)


def _checked(path: Path) -> tuple[CheckpointInfo, dict[str, str]]:
    """What the header says, once it is sound, and the file's name for each of our tensors."""
    header = read_header(path)
    if KEY in header.metadata:
        info = decode(path, header.metadata[KEY])
        theirs = {name: name for name in info.shapes}
        wanted = dict(info.shapes)
    elif is_published(header):
        info, theirs = published_info(path, header)
        wanted = {theirs[ours]: shape for ours, shape in info.shapes.items()}
        if info.kind == "toy":
            wanted[IGNORE] = ()
            theirs[IGNORE] = IGNORE
    else:
        raise CheckpointError(
            f"{path} is not a checkpoint of this package: it has neither its metadata nor the "
            "tensor names of the published files."
        )
    require_shapes(path, header, wanted)
    return info, theirs


def _build(info: CheckpointInfo, tensors: dict[str, Tensor]) -> ToyTransformer:
    model: ToyTransformer | None = None
    if info.toy_config is not None:
        model = build_toy(info.toy_config)
        _fill(model.blocks[0].attn, "toy.", tensors)
        if info.gated_config is None:
            return model
    assert info.gated_config is not None  # CheckpointInfo has either or both
    block = GatedAttention(info.gated_config)
    _fill(block, "block.", tensors)
    l0 = info.notes.get("l0")
    block.l0 = float(l0) if isinstance(l0, int | float) else None
    return standalone(block, info.task) if model is None else splice(model, 0, block)


def _fill(attn: Any, prefix: str, tensors: dict[str, Tensor]) -> None:
    with torch.no_grad():
        # What is not in the file does not train: it is zero, whatever the initial biases were.
        for name in ("b_V", "b_O"):
            getattr(attn, name).zero_()
        for name, tensor in tensors.items():
            if name.startswith(prefix):
                getattr(attn, name.removeprefix(prefix)).copy_(tensor)


def _contents(
    model: HookedTransformer, notes: dict[str, Any] | None
) -> tuple[CheckpointInfo, dict[str, Tensor]]:
    """What the file of ``model`` says and holds; refuses what would not come back the same."""
    if not isinstance(model, ToyTransformer):
        raise GatedInterpError(
            "only a toy (build_toy) with or without a gated block spliced in can be saved; for "
            "another model save its own state and the block's config."
        )
    block = gated_block(model)
    kind: Literal["toy", "gated"] = "toy" if block is None else "gated"
    if notes is None:
        notes = model.notes if model.info is None or model.info.kind == kind else {}
    info = CheckpointInfo(
        kind=kind,
        task=model.task,
        toy_config=model.toy_config,
        gated_config=None if block is None else block.config,
        notes=notes,
    )
    parts: dict[str, Any] = {"block.": block}
    parts["toy."] = originals(model).get(0) if block is not None else model.blocks[0].attn
    tensors = {}
    for name, shape in info.shapes.items():
        prefix = "toy." if name.startswith("toy.") else "block."
        value = getattr(parts[prefix], name.removeprefix(prefix), None)
        if value is None or tuple(value.shape) != shape or value.dtype != torch.float32:
            found = "missing" if value is None else f"{list(value.shape)} of {value.dtype}"
            raise GatedInterpError(
                f"{name} is {found}; to be saved it must be {list(shape)} of torch.float32, as the "
                "model's config says."
            )
        tensors[name] = value.detach().cpu().contiguous().clone()
    _require_plain_rest(model, parts, set(tensors))
    require_finite("the model", tensors)
    return info, tensors


def _require_plain_rest(model: HookedTransformer, parts: dict[str, Any], stored: set[str]) -> None:
    """Refuse a model in which something that is not stored is not what loading would make it."""
    rest = {
        "W_E": model.embed.W_E - torch.eye(model.cfg.d_model, device=model.embed.W_E.device),
        "W_U": model.unembed.W_U - torch.eye(model.cfg.d_model, device=model.unembed.W_U.device),
        "W_pos": model.pos_embed.W_pos,
        "b_U": model.unembed.b_U,
    }
    for prefix, part in parts.items():
        for bias in ("b_V", "b_O"):
            if part is not None and prefix + bias not in stored:
                rest[prefix + bias] = getattr(part, bias)
    for name, difference in rest.items():
        if bool(difference.ne(0).any()):
            raise GatedInterpError(
                f"{name} is not what a toy's config makes it (identity embeddings, no other "
                "biases than those that train), so that a checkpoint would not give it back."
            )
