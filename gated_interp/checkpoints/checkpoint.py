"""Save a model with everything that says what it is, and load it back, bit for bit.

The file format is described in :mod:`gated_interp.checkpoints.checkpoint_format`; the post's own
files (:mod:`gated_interp.checkpoints.published`) load too. Nothing is ever unpickled.
"""

import dataclasses
import os
from pathlib import Path
from typing import Any, cast

import safetensors.torch
import torch
from torch import Tensor, nn

from gated_interp.checkpoints.attn_only import (
    REPOSITORIES,
    from_folder,
    from_name,
    is_attn_only,
)
from gated_interp.checkpoints.checkpoint_format import (
    CheckpointInfo,
    Part,
    decode,
    encode,
    in_file,
)
from gated_interp.checkpoints.published import IGNORE, is_published, published_info, require_mask
from gated_interp.checkpoints.reference_format import (
    VERSION,
    Reference,
    ReferenceInfo,
    decode_reference,
)
from gated_interp.checkpoints.referenced import referenced, require_same
from gated_interp.core.errors import CheckpointError, GatedInterpError
from gated_interp.core.files import write_whole
from gated_interp.core.metadata import KEY, VERSIONS, said_in
from gated_interp.core.shipped import MODEL_FILE, located, shipped_names
from gated_interp.core.tensor_file import (
    MAX_BYTES,
    Header,
    read_header,
    read_tensors,
    require_finite,
    require_shapes,
    written,
)
from gated_interp.metrics.predictions import require_finite_logits
from gated_interp.models.kinds import MODEL_KINDS
from gated_interp.models.pretrained import PretrainedTransformer
from gated_interp.models.toy import HookedTransformer, TaskTransformer
from gated_interp.replacements.heads import HeadAttention
from gated_interp.replacements.replacement import kind_named
from gated_interp.replacements.splice import (
    originals,
    replacement_in,
    sketch_at,
    splice,
    unsplice,
)
from gated_interp.replacements.standalone import standalone
from gated_interp.replacements.stored import BLOCK_KEY, fill, in_a_sentence, is_bias, stored_value

__all__ = ["CheckpointInfo", "load", "read_info", "save", "save_pretrained"]

# Tokens that a model must have an answer to before it is given to anybody.
TRIED = 64


def load(source: str | os.PathLike[str], *, base: Any = None) -> TaskTransformer:
    """The model in a checkpoint, on the CPU.

    A checkpoint of a model of another library holds its blocks and where the model was opened. The
    model is opened there, and is refused if its weights are others.

    A gated model comes spliced: its attention *is* the block, and ``unsplice`` gives the toy it
    was trained from. A file with a block alone (the published gated ones) has no original to go
    back to, see :func:`gated_interp.replacements.standalone.standalone`.

    Args:
        source: a checkpoint file, a folder with ``model.safetensors``, or the name of a model
            that comes with the package (:func:`gated_interp.core.shipped.shipped_names`).
            Also TransformerLens' ``attn-only-1l`` to ``attn-only-4l``: by name, which needs the hub
            (or its local cache), or a folder with their ``config.json``, ``*final.pth`` and
            ``tokenizer.json``. They come folded, and :func:`save` writes them as checkpoints.
        base: of a checkpoint that holds blocks alone, their model, in memory or by its folder, file
            or name, where it is not at the place that the checkpoint names. It stays as it is.

    Returns:
        A ``HookedTransformer`` that knows its ``task``, ``notes``, ``model_name`` and ``info``
        (:class:`CheckpointInfo`): a ``ToyTransformer``, which has a ``toy_config``, an
        ``AttentionTransformer``, which has an ``attention_config``, or a
        ``LanguageTransformer``, whose ``task`` has its tokenizer, and its text where that is still
        at hand, or a ``PretrainedTransformer``. A published file names no seed; its configs say 0.

    Raises:
        CheckpointError: no such file or name, a file that is not a sound checkpoint, or one whose
            model is not where it was, or is another one now.

    Examples:
        >>> import tempfile
        >>> from gated_interp.models.toy import ToyConfig, build_toy
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = save_pretrained(build_toy(ToyConfig(n_trigrams=3, n_heads=2)), folder)
        ...     model = load(folder)
        >>> model.task
        SkipTrigramTask(n_trigrams=3, n_positions=11)
    """
    if isinstance(source, str) and source in REPOSITORIES:
        return from_name(source)
    folder = Path(source)
    if is_attn_only(folder) and not (folder / MODEL_FILE).exists():
        return from_folder(folder)
    with located(source) as (path, name):
        info, theirs, header = _checked(path)
        if isinstance(info, ReferenceInfo):
            model: Any = referenced(path, header, info, base)
            if info.replacements:
                with in_a_sentence(path):
                    _require_answers(model)
            model.info, model.notes, model.model_name = info, info.notes, name
            return cast(TaskTransformer, model)
        if base is not None:
            raise CheckpointError("base-not-needed", path=path)
        wanted = {theirs[ours]: shape for ours, shape in info.shapes.items()}
        if IGNORE in theirs:
            wanted[IGNORE] = ()
        read = read_tensors(path, wanted)
        require_mask(path, read)
        with in_a_sentence(path):
            model = _build(info, {ours: read[theirs[ours]] for ours in info.shapes})
            _require_answers(model)
    model.info, model.notes, model.model_name = info, info.notes, name
    return model


@torch.no_grad()
def _require_answers(model: HookedTransformer) -> None:
    """Refuse a model whose predictions are not numbers."""
    tokens = torch.arange(min(model.cfg.n_ctx, model.cfg.d_vocab, TRIED))
    logits, scores = model.run_with_cache(
        tokens[None].to(model.embed.W_E.device),
        names_filter=lambda name: name.endswith("attn_scores"),
    )
    # A pattern of NaN, TransformerLens takes for one of zeros.
    for computed in (logits, *(each.amax(-1) for each in scores.values())):
        require_finite_logits(computed)


def is_checkpoint(path: Path) -> bool:
    """Whether there is a file that says it is of this package, sound or not."""
    try:
        return KEY in read_header(path).metadata
    except CheckpointError:
        return False


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
    base: str | None = None,
) -> Path:
    """Write a model, with or without replacements spliced in, to one safetensors file.

    The file is written whole or not at all: what stood at ``path`` stays when anything goes wrong,
    and nothing gets there that :func:`load` has not read. The same model and notes give the same
    bytes.

    Of a model of another library only the blocks are written, and where the model was opened:
    :func:`load` opens it there again. Nothing of its own weights is in the file.

    Args:
        model: from :func:`build_toy` or :func:`build_language_model` (with its text), from
            :func:`~gated_interp.checkpoints.opened.open_model`, from :func:`splice` into one, from
            :func:`load`, or from :func:`gated_interp.replacements.standalone.standalone`.
        notes: anything JSON can hold. ``None`` keeps the notes that ``model`` carries, unless it
            was loaded as a toy and is gated now (or the other way round).
        base: the name of the shipped model into which replacements were spliced. Only these are
            written, and the name in the place of that model's weights.

    Returns:
        The path.

    Raises:
        GatedInterpError: a model that such a file cannot describe, notes that JSON cannot hold,
            or a place that cannot be written.
        CheckpointError: NaN or infinite weights, a model beyond the format's limits, or one that
            cannot be read back.

    Examples:
        >>> import tempfile
        >>> from gated_interp.models.toy import ToyConfig, build_toy
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     toy = build_toy(ToyConfig(n_trigrams=3, n_heads=2))
        ...     path = save(toy, Path(folder) / "toy.safetensors", notes={"made": "by hand"})
        ...     load(path).notes
        {'made': 'by hand'}
    """
    info, tensors = _contents(model, Path(path), notes, base)
    data = safetensors.torch.save(tensors, metadata={KEY: encode(info)})
    if len(data) > MAX_BYTES:
        raise CheckpointError("model-too-large", what="model", size=len(data), most=MAX_BYTES)

    def read_back(temporary: Path) -> object:
        if not isinstance(model, PretrainedTransformer):
            return load(temporary)
        back, _, header = _checked(temporary)
        assert isinstance(back, ReferenceInfo)
        require_same(temporary, header, back, model)
        return _require_answers(model)

    return write_whole(Path(path), lambda temporary: written(temporary, data, read_back))


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


def _checked(path: Path) -> tuple[CheckpointInfo, dict[str, str], Header]:
    """What the header says, once it is sound, and the file's name for each of our tensors."""
    header = read_header(path)
    if KEY in header.metadata:
        said, version = said_in(path, header.metadata[KEY], VERSIONS)
        refers = version == VERSION
        info = decode_reference(path, said) if refers else decode(path, said, version)
        theirs = info.names(version)
        wanted = {theirs[ours]: shape for ours, shape in info.shapes.items()}
    elif BLOCK_KEY in header.metadata:
        raise CheckpointError("block-without-model", path=path)
    elif is_published(header):
        info, theirs = published_info(path, header)
        wanted = {theirs[ours]: shape for ours, shape in info.shapes.items()}
        if info.kind == "toy":
            wanted[IGNORE] = ()
            theirs[IGNORE] = IGNORE
    else:
        raise CheckpointError("not-a-checkpoint", path=path)
    require_shapes(path, header, wanted)
    return info, theirs, header


def _build(info: CheckpointInfo, tensors: dict[str, Tensor]) -> TaskTransformer:
    model: Any = None
    if info.model is not None:
        model = MODEL_KINDS[info.model.kind].build(info.model.config, info.task)
        fill(model, tensors, "model.")
    for layer, part in info.replacements.items():
        kind = kind_named(part.kind)
        original = nn.Identity() if model is None else model.blocks[layer].attn
        block = kind.from_config(part.config, original)
        fill(block, tensors, f"replacement.{layer}.")
        l0 = info.notes.get("l0")
        block.l0 = float(l0) if isinstance(l0, int | float) else None
        if model is None:
            assert isinstance(block, HeadAttention)  # CheckpointInfo has seen to it
            model = standalone(block, info.task)
        else:
            model = splice(model, layer, block)
            block.stands_for = sketch_at(model, layer)
    return cast(TaskTransformer, model)


def _contents(
    model: HookedTransformer, path: Path, notes: dict[str, Any] | None, base: str | None
) -> tuple[CheckpointInfo, dict[str, Tensor]]:
    """What the file of ``model`` says and holds; refuses what would not come back the same."""
    blocks = {
        layer: block
        for layer in range(model.cfg.n_layers)
        if (block := replacement_in(model, layer)) is not None
    }
    info, fixed = _info(model, blocks, path, base)
    if notes is None:
        notes = model.notes if model.info is None or model.info.kind == info.kind else {}
    info = dataclasses.replace(info, notes=notes)
    parts: dict[str, Any] = {f"replacement.{layer}.": block for layer, block in blocks.items()}
    if not isinstance(info, ReferenceInfo):
        parts["model."] = unsplice(model) if blocks and originals(model) else model
    theirs = info.names(info.version)
    tensors = {}
    for ours, shape in info.shapes.items():
        prefix = next(p for p in parts if ours.startswith(p))
        tensors[theirs[ours]] = stored_value(
            parts[prefix], ours.removeprefix(prefix), shape, theirs[ours]
        )
    _require_plain_rest(fixed, parts, info, theirs)
    require_finite("the model", tensors)
    return info, tensors


def _info(
    model: HookedTransformer, blocks: dict[int, Any], path: Path, base: str | None
) -> tuple[CheckpointInfo, dict[str, Tensor]]:
    """What the file says, without notes, and what must be zero, as no file holds it."""
    if base is not None:
        if base not in shipped_names():
            raise CheckpointError("no-such-model", source=base, names=shipped_names())
        reference = Reference.of_shipped(load(base), base)
        if not reference.is_of(model):
            raise GatedInterpError("another-base", base=base)
        return ReferenceInfo.of(model, blocks, reference), {}
    if isinstance(model, PretrainedTransformer):
        return ReferenceInfo.of(model, blocks, Reference.of(model, path)), {}
    known = next((k for k in MODEL_KINDS.values() if type(model) is k.model_type), None)
    if known is None:
        raise GatedInterpError("cannot-save-this-model")
    config = known.config_of(model)
    if model.task is None:
        raise GatedInterpError("model-without-task")
    info = CheckpointInfo(
        task=model.task,
        model=None if config is None else Part(known.name, config),
        replacements={layer: Part(b.kind, b.config) for layer, b in blocks.items()},
    )
    return info, known.fixed(model)


def _require_plain_rest(
    fixed: dict[str, Tensor], parts: dict[str, Any], info: CheckpointInfo, theirs: dict[str, str]
) -> None:
    """Refuse a model in which something that is not stored is not what loading would make it."""
    rest = dict(fixed)
    for prefix, part in parts.items():
        if prefix == "model." and info.model is None:
            continue  # a block alone: what it was put into is made anew
        for name, parameter in part.named_parameters():
            ours = prefix + name
            # An autoencoder has a copy of the model's own attention, which is stored.
            if is_bias(name) and ours not in theirs:
                rest[in_file(ours, info.version)] = parameter
    for name, difference in rest.items():
        if bool(difference.ne(0).any()):
            raise GatedInterpError("model-differs-from-config", name=name)
