"""What a checkpoint file says about its model, and which tensors that makes.

A file is safetensors. One metadata string, ``gated_interp``, is a JSON object (one string, because
safetensors writes several in random order and the same model should give the same bytes)::

    {"format_version": 1, "kind": "toy" | "gated", "task": {...}, "toy_config": {...} | null,
     "gated_config": {...} | null, "notes": {...}}

Tensors, all float32: ``toy.*`` is the toy's attention as it was trained, ``block.*`` what trains in
the gated block. A gated file holds both; one without a toy (a block that stands alone) only the
latter. Identities, zeros and everything else that does not train is not stored.

A file may lack any field of its task and configs that has a default: it was written before there
was such a field, so the default must be what the field's absence meant.
"""

import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

from gated_interp.checkpoints.tensor_file import Shapes
from gated_interp.core.config import Config
from gated_interp.core.errors import CheckpointError, GatedInterpError
from gated_interp.models.toy_config import ToyConfig
from gated_interp.replacements.gated_attention import GatedConfig
from gated_interp.tasks.skip_trigrams import SkipTrigramTask

KEY = "gated_interp"
# A new config field does not raise it, only what would make an older file mean something else.
FORMAT_VERSION = 1
NEWER = "it was written by a newer version of gated_interp, so update to read it"
NATIVE = f"{KEY} {FORMAT_VERSION}"
PUBLISHED = "published"

ConfigKind = TypeVar("ConfigKind", bound=Config)

FIELDS = ("format_version", "kind", "task", "toy_config", "gated_config", "notes")

# A small file must not be able to ask for any amount of memory or time (embeddings and the context
# are not stored but made), nor for a number that float32 cannot hold.
LIMITS = {
    **{"n_trigrams": 2048, "n_positions": 4096, "n_heads": 4096, "d_head": 1024, "d_gate": 1024},
    **dict.fromkeys(("output_scale", "attn_scale", "penalty_p", "gate_bias_init"), 1e30),
}


@dataclasses.dataclass(frozen=True)
class CheckpointInfo:
    """What a checkpoint says about its model, without its weights.

    Attributes:
        kind: ``toy``, or ``gated`` for a toy with a gated block in the place of its attention.
        task: what the model was trained on.
        toy_config: of the toy; ``None`` where a gated block came without one.
        gated_config: of the gated block; ``None`` for a toy.
        notes: anything the writer recorded, such as recipe, seed, FVU or L0.
        format: ``gated_interp 1``, or ``published`` for the files of the 2024 post.

    Raises:
        CheckpointError: the parts contradict each other, or are beyond what a checkpoint may hold.
    """

    kind: Literal["toy", "gated"]
    task: SkipTrigramTask
    toy_config: ToyConfig | None = None
    gated_config: GatedConfig | None = None
    notes: dict[str, Any] = dataclasses.field(default_factory=dict)
    format: str = NATIVE

    def __post_init__(self) -> None:
        if self.kind == "toy" and (self.toy_config is None or self.gated_config is not None):
            raise CheckpointError("a checkpoint of kind 'toy' has a toy_config and nothing else.")
        if self.kind == "gated" and self.gated_config is None:
            raise CheckpointError("a checkpoint of kind 'gated' needs a gated_config.")
        for part in (self.task, self.toy_config, self.gated_config):
            for name, most in LIMITS.items():
                value = getattr(part, name, None) or 0
                if abs(value) > most:
                    raise CheckpointError(
                        f"{name} is {value}; a checkpoint may have at most {most:g}."
                    )
        if self.toy_config is not None and self.toy_config.task != self.task:
            raise CheckpointError(
                f"the toy_config is for {self.toy_config.task}, but the task is {self.task}."
            )
        if self.gated_config is not None and self.gated_config.d_model != self.task.d_vocab:
            raise CheckpointError(
                f"the gated_config has d_model {self.gated_config.d_model}, but "
                f"{self.task.n_trigrams} trigrams make it {self.task.d_vocab}."
            )

    @property
    def shapes(self) -> Shapes:
        """The shape of every tensor the file holds, by its name in the file."""
        found: Shapes = {}
        if self.toy_config is not None:
            c = self.toy_config
            shapes = _attention_shapes(c.task.d_vocab, c.n_heads, c.d_head, "", True, c.output_bias)
            found |= {f"toy.{name}": shape for name, shape in shapes.items()}
        if self.gated_config is not None:
            found |= {f"block.{name}": s for name, s in _block_shapes(self.gated_config).items()}
        return found

    @property
    def n_parameters(self) -> int:
        """How many numbers train in the model (its gated block alone where it has one)."""
        own = "toy." if self.kind == "toy" else "block."
        return sum(math.prod(s) for name, s in self.shapes.items() if name.startswith(own))

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON-ready values, in the order of the file's metadata."""
        return {
            "format_version": FORMAT_VERSION,
            "kind": self.kind,
            "task": dataclasses.asdict(self.task),
            "toy_config": None if self.toy_config is None else self.toy_config.to_dict(),
            "gated_config": None if self.gated_config is None else self.gated_config.to_dict(),
            "notes": self.notes,
        }


def _attention_shapes(m: int, h: int, d: int, raw: str, b_V: bool, b_O: bool) -> Shapes:
    shapes: Shapes = {
        "W_Q": (h, m, d),
        "W_K": (h, m, d),
        f"{raw}W_V": (h, m, d),
        f"{raw}W_O": (h, d, m),
        "b_Q": (h, d),
        "b_K": (h, d),
    }
    return shapes | ({"b_V": (h, d)} if b_V else {}) | ({"b_O": (m,)} if b_O else {})


def _block_shapes(c: GatedConfig) -> Shapes:
    h, m, g = c.n_heads, c.d_model, c.d_gate
    return _attention_shapes(m, h, c.d_head, "raw_", c.value_bias, c.output_bias) | {
        "W_gate_Q": (h, m, g),
        "W_gate_K": (h, m, g),
        "b_gate_Q": (h, g),
        "b_gate_K": (h, g),
    }


def encode(info: CheckpointInfo) -> str:
    """``info`` as the file's metadata string.

    Raises:
        GatedInterpError: notes that JSON cannot hold.
    """
    try:
        return json.dumps(info.to_json(), allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise GatedInterpError(
            f"the notes cannot be written as JSON ({error}); use text, finite numbers, lists and "
            "dictionaries."
        ) from error


def decode(path: Path, text: str) -> CheckpointInfo:
    """What the metadata string ``text`` of the file ``path`` says.

    Raises:
        CheckpointError: not JSON, of a newer version, or anything missing that has no default,
            unknown, impossible or contradictory.
    """
    try:
        said = json.loads(text, parse_constant=_refuse_number, parse_float=_finite)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"the metadata of {path} is not JSON ({error}).") from error
    if not isinstance(said, dict):
        raise CheckpointError(f"the metadata of {path} is not a JSON object.")
    version = said.get("format_version")
    if type(version) is not int or not 1 <= version <= FORMAT_VERSION:
        newer = f": {NEWER}" if type(version) is int and version > FORMAT_VERSION else ""
        raise CheckpointError(
            f"{path} has format version {version!r}; "
            f"this release reads version {FORMAT_VERSION}{newer}."
        )
    try:
        _require_keys("the metadata", said, FIELDS, FIELDS)
        if said["kind"] not in ("toy", "gated"):
            raise CheckpointError(f"the kind is {said['kind']!r}; it must be 'toy' or 'gated'.")
        if not isinstance(said["notes"], dict):
            raise CheckpointError("the notes are not a JSON object.")
        _require_fields("the task", said["task"], SkipTrigramTask)
        return CheckpointInfo(
            kind=said["kind"],
            task=SkipTrigramTask(**said["task"]),
            toy_config=_config("toy_config", ToyConfig, said),
            gated_config=_config("gated_config", GatedConfig, said),
            notes=said["notes"],
        )
    except GatedInterpError as error:
        raise CheckpointError(f"{path} cannot be loaded: {error}") from error


def _config(name: str, cls: type[ConfigKind], said: dict[str, Any]) -> ConfigKind | None:
    if said[name] is None:
        return None
    _require_fields(f"the {name}", said[name], cls)
    return cls.from_dict(said[name])


def _require_fields(what: str, values: Any, cls: type[Any]) -> None:
    fields = dataclasses.fields(cls)
    needed = [f.name for f in fields if f.default is f.default_factory is dataclasses.MISSING]
    _require_keys(what, values, needed, [f.name for f in fields])


def _require_keys(what: str, values: Any, needed: Sequence[str], known: Sequence[str]) -> None:
    if not isinstance(values, dict):
        raise CheckpointError(f"{what} is not a JSON object.")
    for name in needed:
        if name not in values:
            raise CheckpointError(f"{what} lacks {name!r}.")
    for name in values:
        if name not in known:
            raise CheckpointError(f"{what} has an unknown key {name!r}: {NEWER}.")


def _refuse_number(text: str) -> float:
    raise ValueError(f"{text} is no JSON number")


def _finite(text: str) -> float:
    number = float(text)
    return number if math.isfinite(number) else _refuse_number(text)
