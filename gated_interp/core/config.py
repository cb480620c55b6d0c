"""Frozen configs that refuse unknown keys and travel as JSON with the weights."""

import dataclasses
import sys
from collections.abc import Mapping
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

from gated_interp.core.errors import GatedInterpError

Shapes = dict[str, tuple[int, ...]]
"""The shape of each tensor, by its name."""

# Not Self: the shape checker decorates methods one by one, where Self means nothing.
ConfigType = TypeVar("ConfigType", bound="Config")


def _accepts(annotation: Any, value: Any) -> bool:
    """Whether ``value`` is of the (simple) type that ``annotation`` names."""
    origin = get_origin(annotation)
    if origin is Literal:
        # 1 == True in Python; a config must still tell them apart.
        return any(type(value) is type(a) and value == a for a in get_args(annotation))
    if origin is Union or type(annotation).__name__ == "UnionType":
        return any(_accepts(a, value) for a in get_args(annotation))
    if origin is list:
        return type(value) is list
    if origin is dict:
        return type(value) is dict and all(type(key) is str for key in value)
    if annotation is float:
        return type(value) in (int, float) and abs(value) <= sys.float_info.max
    if annotation is None or annotation is type(None):
        return value is None
    return type(value) is annotation


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Base of every config. Wrong types, unknown keys and impossible values are refused.

    Subclasses override :meth:`problems` to name impossible values.
    """

    # Wrong types get their sentence here, so the tests' shape checker must not come first.
    __no_type_check__ = True

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if not _accepts(field.type, value):
                raise GatedInterpError(
                    "config-wrong-type",
                    config=type(self).__name__,
                    field=field.name,
                    value=value,
                    wanted=_words(field.type),
                )
            if field.type is float:
                object.__setattr__(self, field.name, float(value))  # 1 was meant as 1.0
        for problem in self.problems():
            raise problem

    def problems(self) -> list[GatedInterpError]:
        """What cannot be, each made by :meth:`problem`; empty when the config is sound."""
        return []

    def problem(self, code: str, **fields: Any) -> GatedInterpError:
        """The error of that code, which says as ``config`` whose it is."""
        return GatedInterpError(code, config=type(self).__name__, **fields)

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON-ready values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls: type[ConfigType], values: Mapping[str, Any]) -> ConfigType:
        """The config with these fields."""
        known = {f.name: f for f in dataclasses.fields(cls)}
        unknown = sorted(set(values) - set(known))
        if unknown:
            raise GatedInterpError(
                "config-unknown-field", config=cls.__name__, field=unknown[0], known=[*known]
            )
        missing = [
            n
            for n, f in known.items()
            if n not in values
            and f.default is dataclasses.MISSING
            and f.default_factory is dataclasses.MISSING
        ]
        if missing:
            raise GatedInterpError("config-missing-field", config=cls.__name__, field=missing[0])
        return cls(**values)

    def replace(self: ConfigType, **changes: Any) -> ConfigType:
        """A copy with some fields changed."""
        return self.from_dict({**self.to_dict(), **changes})


def _words(annotation: Any) -> str:
    if get_origin(annotation) is Literal:
        return "one of " + ", ".join(repr(a) for a in get_args(annotation))
    if get_origin(annotation) is dict:
        return "a dictionary with names as keys"
    if annotation is float:
        return "a finite number"
    return getattr(annotation, "__name__", str(annotation))


def positive(config: Config, *names: str) -> list[GatedInterpError]:
    """The problems of the named fields that are not positive."""
    return [
        config.problem("config-not-positive", field=name, value=getattr(config, name))
        for name in names
        if not getattr(config, name) > 0
    ]
