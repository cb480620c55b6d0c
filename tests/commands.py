"""Run a command in this process, as a shell would."""

import contextlib
import dataclasses
import io
from collections.abc import Sequence
from unittest import mock

from gated_interp.cli import console, run


@dataclasses.dataclass(frozen=True)
class Result:
    """How a command ended, and what it said."""

    exit_code: int
    stdout: str
    stderr: str
    exception: BaseException | None = None

    @property
    def output(self) -> str:
        return self.stdout + self.stderr


def invoke(args: Sequence[object]) -> Result:
    """The result of ``gated-interp ARGS``; what it raises but an exit is its ``exception``.

    However long it takes, it says nothing of its progress.
    """
    out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True) for _ in range(2))
    code, exception = 0, None
    quiet = mock.patch.object(console, "EVERY", 1e6)
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), quiet:
        try:
            run([str(a) for a in args])
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 1
        except Exception as error:
            code, exception = 1, error
    said = [stream.buffer.getvalue().decode() for stream in (out, err)]
    return Result(code, *said, exception)


def cli(*args, code=0):
    """Run a command in this process; its result, once it ended with ``code``."""
    result = invoke([str(a) for a in args])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, result.output
    return result


def one_sentence(result):
    """What stderr says: one line that ends in a full stop, and no traceback."""
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("Error: ")
    assert lines[0].endswith(".")
    assert result.stdout == ""
    return lines[0]


def options_of(command: str) -> dict[str, list[str]]:
    """The options of a command, each by the name of its parameter."""
    from gated_interp.cli.app import GROUPS, app
    from gated_interp.cli.settings import complete

    for commands in GROUPS.values():
        if command in commands:
            complete(commands[command])
    found = {}
    for argument in app[command].assemble_argument_collection():
        names = [name for name in argument.names if name.startswith("--")]
        if argument.parse and names:
            found[(*argument.keys, argument.field_info.name)[0]] = names
    return found
