"""Options of commands, made from the config classes: their names, types and words are theirs."""

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal, TypedDict, TypeVar, Unpack, get_origin

from cyclopts import Group, Parameter
from docstring_parser import parse

from gated_interp.core.config import Config

Command = TypeVar("Command", bound=Callable[..., None])


@dataclasses.dataclass(frozen=True)
class Options:
    """The fields of config classes as options under one heading; none is required.

    Attributes:
        title: the heading in the help.
        configs: their fields; of two that share a name, the first's.
        names: what the option of a field is called, where that differs.
        omit: fields that are no options.
        defaults: whether the fields' defaults are those of the command.
    """

    title: str
    configs: Sequence[type[Config]]
    names: Mapping[str, str] = dataclasses.field(default_factory=dict)
    omit: Sequence[str] = ()
    defaults: bool = False

    def hints(self) -> dict[str, Any]:
        """For each field its type, with what a command has to know of its option."""
        group = Group(self.title, sort_key=1)
        found: dict[str, Any] = {}
        for config in self.configs:
            said = first_sentences(config)
            for field in dataclasses.fields(config):
                if field.name in self.omit or get_origin(field.type) is dict:
                    continue
                name = "--" + self.names.get(field.name, field.name).replace("_", "-")
                words = said.get(field.name, "")
                if self.defaults and field.default is not None:
                    words += f" Default: {field.default}."
                shown = None if get_origin(field.type) is not Literal else True
                about = Parameter(name=name, help=words, group=group, show_choices=shown)
                found.setdefault(field.name, Annotated[field.type, about])
        return found


def first_sentences(config: type[Config]) -> dict[str, str]:
    """What the docstrings of a config and its bases say of each field first."""
    found: dict[str, str] = {}
    for each in config.__mro__:
        for param in parse(each.__doc__ or "").params:
            words = " ".join((param.description or "").replace("``", "").split())
            words = re.sub(r"(, see|;) :func:.*|, see :func:.*", ".", words)
            found.setdefault(param.arg_name, re.split(r"(?<=\.) ", words)[0])
    return found


def settings_from(made: Callable[[], Sequence[Options]]) -> Callable[[Command], Command]:
    """Give a command with ``**settings`` these options; ``made`` is called when they are needed.

    Only what a user gives arrives in ``settings``, by the names of the fields.
    """

    def mark(command: Command) -> Command:
        command.made = made  # type: ignore[attr-defined]
        return command

    return mark


def complete(command: Any) -> None:
    """Make the options of a command, if it has some that are made from config classes."""
    made = getattr(command, "made", None)
    if made is not None:
        hints: dict[str, Any] = {}
        for options in made():
            hints = options.hints() | hints
        settings = TypedDict("settings", hints, total=False)  # type: ignore[misc]
        command.__annotations__["settings"] = Unpack[settings]
        del command.made
