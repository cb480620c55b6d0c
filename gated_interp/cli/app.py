"""The commands together, and how a command ends: 0, 1, 2, 130 (Ctrl-C) or 143 (SIGTERM)."""

import os
import shlex
import signal
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from gated_interp import __version__
from gated_interp.cli import (
    decompose,
    explore,
    frontier,
    heads,
    language,
    paper,
    read,
    reliability,
    report,
    sweep,
    train,
)
from gated_interp.cli.console import tell
from gated_interp.core.errors import GatedInterpError, is_out_of_memory
from gated_interp.core.files import home, kept
from gated_interp.core.launch import is_main, n_processes, require_docstrings
from gated_interp.core.shipped import MODEL_FILE
from gated_interp.core.signals import signal_behind, stop_on_sigterm

FAILED = 1
# Commands that go on where they were when the same command is given again.
GOES_ON = ("reproduce", "sweep", "reliability", "phase", "repeats", "frontier", "decompose")
# Commands whose one training several processes can share.
SHARED = ("train-toy", "train-gated", "train-lm")
# Parameters that say where to write, and the run folder that figures are drawn from (see drawn_in).
WRITTEN = ("out", "figures", "cache", "run")


class Commands(TyperGroup):
    """Runs a command; what goes wrong becomes one sentence on stderr and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as stop:
            if is_main():
                tell(_stopped(ctx.invoked_subcommand, stop))
            raise typer.Exit(128 + signal_behind(stop)) from None
        except GatedInterpError as error:
            tell(f"Error: {error}")
        except BrokenPipeError:
            raise  # whoever read has left; main() ends in silence
        except OSError as error:
            tell(_from_the_system(error))
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            tell("Error: there is not enough memory; ask for fewer heads, seeds or sequences.")
        raise typer.Exit(FAILED)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        require_docstrings()
        if n_processes() > 1 and args[0] not in SHARED:
            raise GatedInterpError(
                f"{args[0]} is not for several processes, only {', '.join(SHARED)} are; start it "
                "without a launcher."
            )
        return super().resolve_command(ctx, args)


class Keeping(TyperCommand):
    """A command that replaces none of the files it is given to read."""

    def invoke(self, ctx: Any) -> Any:
        given = {n: v if isinstance(v, list) else [v] for n, v in ctx.params.items()}
        read = (v for n, values in given.items() if n not in WRITTEN for v in values)
        with kept(f for v in read if isinstance(v, str | Path) for f in _files(Path(v))):
            return super().invoke(ctx)


def _files(path: Path) -> list[Path]:
    """What is read of ``path``: of a folder its texts, or else its model and tokenizer."""
    if not os.path.isdir(path):
        return [path] if os.path.isfile(path) else []
    from gated_interp.tasks.text_files import texts_in

    return texts_in(path) or [path / name for name in (MODEL_FILE, "tokenizer.json")]


def _from_the_system(error: OSError) -> str:
    where = f"{error.filename}: " if error.filename else ""
    return f"Error: {where}{error.strerror or error}."


def _stopped(command: str | None, stop: KeyboardInterrupt) -> str:
    ended = "Terminated" if signal_behind(stop) == signal.SIGTERM else "Interrupted"
    again = shlex.join(["gated-interp", *sys.argv[1:]])
    if command in GOES_ON:
        return f"{ended}; what had finished is kept. To go on: {again}"
    if getattr(stop, "checkpoint", None) is not None:
        resume = again if "--resume" in sys.argv else f"{again} --resume"
        if n_processes() > 1:
            resume = "launch the same again, with --resume"
        steps = f"after {stop.step} steps" if hasattr(stop, "step") else ""
        return f"{ended} {steps}; to go on: {resume}"
    return f"{ended}."


app = typer.Typer(
    cls=Commands,
    name="gated-interp",
    help="Find and undo attention head superposition with gated attention blocks.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    # Boxes only where somebody sees them as boxes.
    rich_markup_mode="rich" if sys.stdout.isatty() else None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool | None) -> None:
    if wanted:
        print(f"gated-interp {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool | None,
        typer.Option(
            "--version", callback=_version, is_eager=True, help="Print the version and leave."
        ),
    ] = None,
) -> None:
    """Find and undo attention head superposition with gated attention blocks."""


_GROUPS = (
    paper,
    train,
    language,
    decompose,
    read,
    heads,
    report,
    sweep,
    reliability,
    frontier,
    explore,
)
for _group in _GROUPS:
    for _name, _command in _group.COMMANDS.items():
        app.command(_name, cls=Keeping)(_command)


def main() -> None:
    """The console script."""
    unicode_everywhere()
    # Tensors are small here: a second thread gains little on a core that is free, and beside
    # another process it makes everything ten times slower.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("HOME", str(home()))  # libraries fail without any
    stop_on_sigterm()
    try:
        try:
            app(prog_name="gated-interp")
        finally:
            sys.stdout.flush()
    except OSError as error:
        if not isinstance(error, BrokenPipeError):  # whoever read has left: no news
            tell(_from_the_system(error))
        # Python would complain once more when it flushes stdout at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(FAILED)


def unicode_everywhere() -> None:
    """Let a terminal that cannot show an arrow show a question mark, instead of failing."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
