"""What a file that nobody vouches for says of itself: JSON, every key and number of it checked."""

import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gated_interp.core.config import Config
from gated_interp.core.errors import CheckpointError

KEY = "gated_interp"
"""The metadata string of a checkpoint, see :mod:`gated_interp.checkpoints.checkpoint_format`."""

# A new config field does not raise it, only what would make an older file mean something else.
VERSIONS = (1, 2, 3)
# A small file must not be able to ask for any amount of memory or time (embeddings and the context
# are not stored but made), nor for a number that float32 cannot hold.
LIMITS = {"n_trigrams": 2048, "n_layers": 8, "d_vocab": 2**18}
LIMITS |= dict.fromkeys(("d_head", "d_gate", "d_qk"), 1024)
MOST, LARGEST = 4096, 1e30
MOST_OF_BLOCK = 2**16
"""Of a block: it is made when its tensors are known to have the shapes that it says."""
FREE = ("seed",)


def said_in(path: Path, text: str, versions: Sequence[int]) -> tuple[dict[str, Any], int]:
    r"""The JSON object ``text`` of the file ``path``, and its format version.

    Half of a surrogate pair, which JSON can say and no text can hold, becomes ``\\ud800``.
    """
    try:
        said = json.loads(text, parse_constant=_refuse_number, parse_float=_finite)
    except (ValueError, RecursionError) as error:
        raise CheckpointError("metadata-not-json", path=path, reason=error) from error
    said = _as_text(said)
    if not isinstance(said, dict):
        raise CheckpointError("metadata-not-an-object", path=path)
    version = said.get("format_version")
    if type(version) is not int or version not in versions:
        newer = type(version) is int and version > versions[-1]
        raise CheckpointError(
            "newer-format-version" if newer else "unknown-format-version",
            path=path,
            version=version,
            readable=versions,
        )
    return said, version


def require_limits(part: Any, most: int = MOST) -> None:
    """Refuse a task or config with a number beyond what a file may ask for.

    Args:
        most: of whole numbers that have no limit of their own.
    """
    for field in dataclasses.fields(part):
        value = getattr(part, field.name)
        if field.name in FREE or type(value) not in (int, float):
            continue
        bound = LIMITS.get(field.name, most) if type(value) is int else LARGEST
        if abs(value) > bound:
            raise CheckpointError("number-beyond-limit", name=field.name, value=value, most=bound)


def config_from(what: str, cls: type[Config], values: Any) -> Config:
    """The config that ``values`` are the fields of; what they lack has its default."""
    require_fields(what, values, cls)
    return cls.from_dict(values)


def require_fields(what: str, values: Any, cls: type[Any]) -> None:
    """Refuse ``values`` that are not the fields of a dataclass, those with a default or not."""
    fields = dataclasses.fields(cls)
    needed = [f.name for f in fields if f.default is f.default_factory is dataclasses.MISSING]
    require_keys(what, values, needed, [f.name for f in fields])


def require_keys(what: str, values: Any, needed: Sequence[str], known: Sequence[str]) -> None:
    """Refuse ``values`` that are not an object with all ``needed`` keys and only ``known`` ones."""
    if not isinstance(values, dict):
        raise CheckpointError("not-a-json-object", what=what)
    for name in needed:
        if name not in values:
            raise CheckpointError("missing-key", what=what, key=name)
    for name in values:
        if name not in known:
            raise CheckpointError("unknown-key", what=what, key=name)


def _as_text(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, list):
        return [_as_text(part) for part in value]
    if isinstance(value, dict):
        return {_as_text(name): _as_text(part) for name, part in value.items()}
    return value


def _refuse_number(text: str) -> float:
    raise ValueError(f"{text} is no JSON number")


def _finite(text: str) -> float:
    number = float(text)
    return number if math.isfinite(number) else _refuse_number(text)
