"""A checkpoint whose model is elsewhere: blocks, and where their model was opened.

Version 3 of the format (see :mod:`gated_interp.checkpoints.checkpoint_format`). The metadata is ::

    {"format_version": 3, "model": {"path": ..., "relative": ..., "name": ..., "n_ctx": ..., ...},
     "replacements": {"3": {"kind": ..., "config": {...}, "l0": ..., "layer": [...]}},
     "notes": {...}}

where ``model`` has the fields of :class:`Reference`, and ``l0`` and ``layer`` are as in a file of
one block (:mod:`gated_interp.replacements.stored`). Tensors are ``replacement.3.*`` alone.
"""

import dataclasses
import os
from pathlib import Path
from typing import Any

from gated_interp.checkpoints.checkpoint_format import CheckpointInfo, Part
from gated_interp.core.config import Config, Shapes, positive
from gated_interp.core.errors import CheckpointError, GatedInterpError
from gated_interp.core.metadata import (
    KEY,
    MOST_OF_BLOCK,
    config_from,
    require_keys,
    require_limits,
)
from gated_interp.core.shipped import shipped_names
from gated_interp.models.pretrained import PretrainedTransformer
from gated_interp.models.toy import HookedTransformer
from gated_interp.replacements.layer_sketch import model_sketch, same_model
from gated_interp.replacements.replacement import kind_named
from gated_interp.replacements.splice import own_weights, sketch_at
from gated_interp.replacements.stored import Stored, in_a_sentence, referenced_in, sketch_of
from gated_interp.tasks.text import TextTask

VERSION = 3
KIND = "pretrained"
TEXT = [field.name for field in dataclasses.fields(TextTask)]
FIELDS = ("format_version", "model", "replacements", "notes")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reference(Config):
    """Where a pretrained model is, and which one it is.

    Attributes:
        path, relative: of its folder or file: absolute, and from the folder of the checkpoint.
        name: of a shipped model, or of one on the hub; without it and ``path`` the model was given
            from memory.
        architecture: as the library transformers calls it.
        n_layers, d_model, n_ctx: as it was opened.
        sketch: of its weights, see :mod:`gated_interp.replacements.layer_sketch`.
        text: of the model, as :meth:`~gated_interp.tasks.text.TextTask.stored` takes it; an empty
            tokenizer is the model's own.
    """

    path: str | None
    relative: str | None
    name: str | None
    architecture: str
    n_layers: int
    d_model: int
    n_ctx: int
    sketch: list[float]
    text: dict[str, Any] | None

    @classmethod
    def of(cls, model: PretrainedTransformer, path: Path) -> "Reference":
        """How a checkpoint at ``path`` names ``model``."""
        place, text = model.place, model.task
        relative = None
        if isinstance(place, Path):
            try:
                relative = Path(os.path.relpath(place, path.resolve().parent)).as_posix()
            except ValueError:  # on another drive
                relative = None
        fields = dataclasses.asdict(text) if isinstance(text, TextTask) else None
        if fields is not None:
            # A path is read from wherever the checkpoint is loaded.
            fields["text"] = [
                os.path.abspath(name) if os.path.exists(name) else name for name in fields["text"]
            ]
            fields["tokenizer"] = "" if model.own_tokenizer else fields["tokenizer"]
        return cls(
            path=str(place) if isinstance(place, Path) else None,
            relative=relative,
            name=place if isinstance(place, str) else None,
            architecture=str(model.cfg.original_architecture),
            text=fields,
            **_told_by(model),
        )

    def facts(self) -> list[tuple[str, Any]]:
        """What a reader asks of it, with a name each."""
        text = None if self.text is None else ", ".join(map(str, self.text["text"]))
        if self.name in shipped_names():
            text = "its own"
        return [
            ("model", self.path or self.name or "was given from memory"),
            ("architecture", self.architecture),
            ("layers", self.n_layers),
            ("d_model", self.d_model),
            ("positions", self.n_ctx),
            ("text", text or "none"),
        ]

    @property
    def said(self) -> str:
        """Which model it is, in words."""
        return f"a {self.architecture} of {self.n_layers} layers and d_model {self.d_model}"

    @classmethod
    def of_shipped(cls, model: HookedTransformer, name: str) -> "Reference":
        """How a checkpoint names a model that comes with the package."""
        kind = type(model).__name__
        return cls(
            path=None, relative=None, name=name, architecture=kind, text=None, **_told_by(model)
        )

    def problems(self) -> list[GatedInterpError]:
        return positive(self, "n_layers", "d_model", "n_ctx")

    def is_of(self, model: HookedTransformer) -> bool:
        """Whether ``model`` is the one that is named."""
        shape = _shape(model)
        if shape != {name: getattr(self, name) for name in shape}:
            return False
        return same_model(tuple(self.sketch), model_sketch(own_weights(model)))


def _shape(model: HookedTransformer) -> dict[str, int]:
    return {name: getattr(model.cfg, name) for name in ("n_layers", "d_model", "n_ctx")}


def _told_by(model: HookedTransformer) -> dict[str, Any]:
    """The fields of a :class:`Reference` that say which model it is."""
    return _shape(model) | {"sketch": [*model_sketch(own_weights(model))]}


@dataclasses.dataclass(frozen=True)
class BlockPart(Part):
    """A replacement whose model is elsewhere; ``l0`` and ``layer`` are its own and its layer's."""

    l0: Any = None
    layer: Any = None

    def to_json(self) -> dict[str, Any]:
        return {**super().to_json(), "l0": self.l0, "layer": self.layer}

    def stored(self, layer: int) -> Stored:
        """As what reads blocks takes it."""
        kind = kind_named(self.kind)
        return Stored(kind, self.config, f"replacement.{layer}.", self.l0, self.layer)


@dataclasses.dataclass(frozen=True)
class ReferenceInfo(CheckpointInfo):
    """What a checkpoint says whose model is elsewhere; ``model`` is a :class:`Reference`."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "format", f"{KEY} {self.version}")
        last = self.reference.n_layers - 1
        for layer, part in self.replacements.items():
            require_limits(part.config, MOST_OF_BLOCK)
            if layer > last:
                raise CheckpointError("stored-layer-missing", layer=layer, last=last)

    @classmethod
    def of(
        cls, model: HookedTransformer, blocks: dict[int, Any], reference: Reference
    ) -> "ReferenceInfo":
        """What a checkpoint says of ``model``, with ``blocks`` by layer."""
        parts: dict[int, Part] = {
            layer: BlockPart(b.kind, b.config, b.l0, b.stands_for or sketch_at(model, layer))
            for layer, b in blocks.items()
        }
        return cls(None, Part(KIND, reference), parts)

    @property
    def reference(self) -> Reference:
        """Where the model is, and which one it is."""
        assert self.model is not None
        assert isinstance(self.model.config, Reference)
        return self.model.config

    def stored(self) -> dict[int, Stored]:
        """By layer, the replacements as what reads them takes them."""
        return {i: p.stored(i) for i, p in self.replacements.items() if isinstance(p, BlockPart)}

    def _about_the_model(self) -> list[tuple[str, Any]]:
        return self.reference.facts()

    @property
    def version(self) -> int:
        return VERSION

    @property
    def shapes(self) -> Shapes:
        return {
            f"replacement.{layer}.{name}": shape
            for layer, part in self.replacements.items()
            for name, shape in kind_named(part.kind).stored_shapes(part.config).items()
        }

    def to_json(self) -> dict[str, Any]:
        return {
            "format_version": VERSION,
            "model": self.reference.to_dict(),
            "replacements": {str(i): part.to_json() for i, part in self.replacements.items()},
            "notes": self.notes,
        }


def decode_reference(path: Path, said: dict[str, Any]) -> ReferenceInfo:
    """What the metadata of version 3 of the file ``path`` says."""
    with in_a_sentence(path):
        require_keys("the metadata", said, FIELDS, FIELDS)
        if not isinstance(said["notes"], dict):
            raise CheckpointError("not-a-json-object", what="The notes entry")
        reference: Any = config_from("the model", Reference, said["model"])
        sketch_of(reference.sketch)
        if reference.text is not None:
            require_keys("the text", reference.text, TEXT, TEXT)
        parts: dict[int, Part] = {
            layer: BlockPart(s.kind.kind, s.config, s.l0, s.layer)
            for layer, s in referenced_in(said["replacements"]).items()
        }
        return ReferenceInfo(None, Part(KIND, reference), parts, said["notes"])
