"""What a checkpoint file says about its model, and which tensors that makes.

A file is safetensors. One metadata string, ``gated_interp``, is a JSON object (one string, because
safetensors writes several in random order and the same model should give the same bytes)::

    {"format_version": 2, "task": {"kind": "skip_trigrams", ...},
     "model": {"kind": "toy" | "attention" | "language_model", "config": {...}} | null,
     "replacements": {"0": {"kind": "topk", "config": {...}}}, "notes": {...}}

Tensors, all float32: ``model.*`` are the model's parameters as it was trained, the attention that
was replaced included; ``replacement.0.*`` is what trains in the replacement in layer 0. A file
without a model holds a block that stands alone. Identities, zeros and everything else that does
not train is not stored. The task of a language model holds its tokenizer, as a ``tokenizer.json``
does, and the names and SHA-256 of its text. Kinds are those of :mod:`gated_interp.models.kinds`,
:mod:`gated_interp.tasks.kinds` and :mod:`gated_interp.replacements.replacement`.

A toy, and a toy with a gated block, is written as version 1, which 0.1.0 reads too::

    {"format_version": 1, "kind": "toy" | "gated", "task": {...}, "toy_config": {...} | null,
     "gated_config": {...} | null, "notes": {...}}

with ``toy.*`` for the toy's attention and ``block.*`` for the block. What holds blocks of a model
of another library, which stays where it is, is version 3:
:mod:`gated_interp.checkpoints.reference_format`.

A file may lack any field of its task and configs that has a default: it was written before there
was such a field, so the default must be what the field's absence meant.
"""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

from gated_interp.core.config import Shapes
from gated_interp.core.errors import CheckpointError, GatedInterpError
from gated_interp.core.metadata import (
    KEY,
    config_from,
    require_fields,
    require_keys,
    require_limits,
)
from gated_interp.models.kinds import MODEL_KINDS, TOY
from gated_interp.models.toy_config import ToyConfig
from gated_interp.replacements.gated_attention import GatedAttention, GatedConfig
from gated_interp.replacements.heads import HeadAttention
from gated_interp.replacements.replacement import kind_named
from gated_interp.replacements.stored import replacements_in
from gated_interp.tasks.kinds import TASK_KINDS
from gated_interp.tasks.skip_trigrams import SkipTrigramTask

PUBLISHED = "published"

FIELDS = {
    1: ("format_version", "kind", "task", "toy_config", "gated_config", "notes"),
    2: ("format_version", "task", "model", "replacements", "notes"),
}
GATED = GatedAttention.kind


@dataclasses.dataclass(frozen=True)
class Part:
    """A model or a replacement, by its kind and config."""

    kind: str
    config: Any

    def to_json(self) -> dict[str, Any]:
        """As it stands in the file."""
        return {"kind": self.kind, "config": self.config.to_dict()}


def _of_config(part: Part) -> tuple[str, str]:
    config = part.config
    return type(config).__name__, ", ".join(f"{k}={v}" for k, v in config.to_dict().items())


@dataclasses.dataclass(frozen=True)
class CheckpointInfo:
    """What a checkpoint says about its model, without its weights.

    Attributes:
        task: what the model was trained on; of a kind in ``tasks.kinds``.
        model: what it was before anything was replaced; ``None`` where a block came without it.
        replacements: by layer, what stands in for the attention.
        notes: anything the writer recorded, such as recipe, seed, FVU or L0.
        format: ``gated_interp 1`` to ``3``, or ``published`` for the files of the 2024 post.

    Raises:
        CheckpointError: the parts contradict each other, or are beyond what a checkpoint may hold.
    """

    task: Any
    model: Part | None
    replacements: dict[int, Part] = dataclasses.field(default_factory=dict)
    notes: dict[str, Any] = dataclasses.field(default_factory=dict)
    format: str = ""

    def __post_init__(self) -> None:
        if self.model is None and list(self.replacements) != [0]:
            raise CheckpointError("checkpoint-of-nothing")
        if type(self.task) not in TASK_KINDS.values():
            raise CheckpointError(
                "task-cannot-be-stored", known=[*TASK_KINDS], task=type(self.task).__name__
            )
        if self.model is None and type(self.task) is not SkipTrigramTask:
            raise CheckpointError("single-block-of-another-task")
        for part in self.replacements.values() if self.model is None else ():
            if not issubclass(kind_named(part.kind), HeadAttention):
                raise CheckpointError("replacement-needs-model", kind=part.kind)
        if not self.format:
            object.__setattr__(self, "format", f"{KEY} {self.version}")
        parts = [self.model, *self.replacements.values()]
        for part in (self.task, *(p.config for p in parts if p is not None)):
            require_limits(part)
        layers, d_model = 1, self.task.d_vocab
        if self.model is not None:
            config = self.model.config
            layers, d_model = MODEL_KINDS[self.model.kind].sizes(config)
            if other := MODEL_KINDS[self.model.kind].fits(config, self.task):
                raise CheckpointError(
                    "stored-config-contradicts-task", kind=self.model.kind, problem=other
                )
        for layer, part in self.replacements.items():
            if not 0 <= layer < layers:
                raise CheckpointError("stored-layer-missing", layer=layer, last=layers - 1)
            if part.config.d_model != d_model:
                raise CheckpointError(
                    "stored-width-mismatch",
                    kind=part.kind,
                    width=part.config.d_model,
                    task=self.task.described,
                    wanted=d_model,
                )

    @property
    def kind(self) -> str:
        """That of the replacement in the first layer that has one, or of the model."""
        for layer in sorted(self.replacements):
            return self.replacements[layer].kind
        assert self.model is not None
        return self.model.kind

    @property
    def toy_config(self) -> ToyConfig | None:
        """Of the toy; ``None`` where a block came without one, or it is another kind of model."""
        return self.model.config if self.model and self.model.kind == TOY.name else None

    @property
    def gated_config(self) -> GatedConfig | None:
        """Of the gated block in layer 0; ``None`` where there is none."""
        part = self.replacements.get(0)
        return part.config if part is not None and part.kind == GATED else None

    @property
    def version(self) -> int:
        """The oldest version of the format that can hold it."""
        known = {part.kind for part in self.replacements.values()} <= {GATED}
        return 1 if known and (self.model is None or self.model.kind == TOY.name) else 2

    @property
    def shapes(self) -> Shapes:
        """The shape of every tensor that is stored, by our name for it."""
        found: Shapes = {}
        if self.model is not None:
            shapes = MODEL_KINDS[self.model.kind].shapes(self.model.config)
            found |= {f"model.{name}": shape for name, shape in shapes.items()}
        for layer, part in self.replacements.items():
            shapes = kind_named(part.kind).stored_shapes(part.config)
            found |= {f"replacement.{layer}.{name}": shape for name, shape in shapes.items()}
        return found

    def names(self, version: int) -> dict[str, str]:
        """The name in a file of ``version`` for each of our names."""
        return {name: in_file(name, version) for name in self.shapes}

    @property
    def n_parameters(self) -> int:
        """How many numbers train in the model (in its replacements alone where it has some)."""
        own = "replacement." if self.replacements else "model."
        return sum(math.prod(s) for name, s in self.shapes.items() if name.startswith(own))

    def facts(self) -> list[tuple[str, Any]]:
        """What a reader asks of it, with a name each: kind, task, configs and notes."""
        return [
            ("kind", self.kind),
            ("format", self.format),
            ("trained parameters", self.n_parameters),
            *self._about_the_model(),
            *(_of_config(part) for part in self.replacements.values()),
            *((f"notes.{name}", value) for name, value in self.notes.items()),
        ]

    def _about_the_model(self) -> list[tuple[str, Any]]:
        return [("task", self.task)] + ([] if self.model is None else [_of_config(self.model)])

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON-ready values, in the order of the file's metadata."""
        task = dataclasses.asdict(self.task)
        if self.version == 1:
            toy, gated = self.toy_config, self.gated_config
            return {
                "format_version": 1,
                "kind": self.kind,
                "task": task,
                "toy_config": None if toy is None else toy.to_dict(),
                "gated_config": None if gated is None else gated.to_dict(),
                "notes": self.notes,
            }
        (kind,) = (name for name, cls in TASK_KINDS.items() if type(self.task) is cls)
        return {
            "format_version": 2,
            "task": {"kind": kind, **task},
            "model": None if self.model is None else self.model.to_json(),
            "replacements": {str(i): part.to_json() for i, part in self.replacements.items()},
            "notes": self.notes,
        }


def in_file(name: str, version: int) -> str:
    """What a file of ``version`` calls a tensor, whether it holds it or not.

    Examples:
        >>> in_file("replacement.0.b_Q", 1), in_file("replacement.0.b_Q", 2)
        ('block.b_Q', 'replacement.0.b_Q')
    """
    if version == 1:
        for ours, theirs in {"model.blocks.0.attn.": "toy.", "replacement.0.": "block."}.items():
            if name.startswith(ours):
                return theirs + name.removeprefix(ours)
    return name


def encode(info: CheckpointInfo) -> str:
    """``info`` as the file's metadata string."""
    try:
        return json.dumps(info.to_json(), allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise GatedInterpError("notes-not-json", reason=error) from error


def decode(path: Path, said: dict[str, Any], version: int) -> CheckpointInfo:
    """What the metadata of version 1 or 2 of the file ``path`` says."""
    try:
        require_keys("the metadata", said, FIELDS[version], FIELDS[version])
        if not isinstance(said["notes"], dict):
            raise CheckpointError("not-a-json-object", what="The notes entry")
        return _first(said) if version == 1 else _second(said)
    except GatedInterpError as error:
        raise CheckpointError("cannot-load", path=path, reason=error) from error


def _first(said: dict[str, Any]) -> CheckpointInfo:
    """Of version 1."""
    kind = said["kind"]
    if kind not in (TOY.name, GATED):
        raise CheckpointError("bad-checkpoint-kind", kind=kind)
    require_fields("the task", said["task"], SkipTrigramTask)
    toy, gated = (
        None if said[name] is None else Part(part, config_from(f"the {name}", cls, said[name]))
        for name, part, cls in (
            ("toy_config", TOY.name, ToyConfig), ("gated_config", GATED, GatedConfig)
        )
    )  # fmt: skip
    if kind == TOY.name and (toy is None or gated is not None):
        raise CheckpointError("toy-with-more")
    if kind == GATED and gated is None:
        raise CheckpointError("gated-without-config")
    replaced = {} if gated is None else {0: gated}
    return CheckpointInfo(SkipTrigramTask(**said["task"]), toy, replaced, said["notes"], f"{KEY} 1")


def _second(said: dict[str, Any]) -> CheckpointInfo:
    """Of version 2."""
    task = said["task"]
    if not isinstance(task, dict):
        raise CheckpointError("not-a-json-object", what="The task entry")
    cls = TASK_KINDS.get(str(task.get("kind")))
    if cls is None:
        raise CheckpointError("no-such-task-kind", kind=task.get("kind"), known=[*TASK_KINDS])
    fields = {name: value for name, value in task.items() if name != "kind"}
    require_fields("the task", fields, cls)
    model = said["model"]
    if model is not None:
        require_keys("the model", model, ("kind", "config"), ("kind", "config"))
        if str(model["kind"]) not in MODEL_KINDS:
            raise CheckpointError("no-such-model-kind", kind=model["kind"], known=[*MODEL_KINDS])
        known = MODEL_KINDS[model["kind"]].config_type
        model = Part(model["kind"], config_from("the model's config", known, model["config"]))
    found = replacements_in(said["replacements"])
    replaced = {layer: Part(kind.kind, config) for layer, (kind, config) in found.items()}
    # What a user may give (the path of a tokenizer, say) a file may not.
    task = getattr(cls, "stored", cls)(**fields)
    return CheckpointInfo(task, model, replaced, said["notes"], f"{KEY} 2")
