"""The commands together, and how a command ends: 0, 1, 2, 130 (Ctrl-C) or 143 (SIGTERM)."""

import os
import shlex
import signal
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from cyclopts import App, Group, Parameter
from cyclopts.exceptions import CycloptsError, UnusedCliTokensError

from gated_interp import __version__
from gated_interp.cli import (
    decompose,
    explore,
    frontier,
    heads,
    paper,
    read,
    reliability,
    report,
    study,
    sweep,
    train,
)
from gated_interp.cli.console import console, tell
from gated_interp.cli.options import WrongUsage
from gated_interp.cli.settings import complete
from gated_interp.core.errors import GatedInterpError, is_out_of_memory
from gated_interp.core.files import home, kept
from gated_interp.core.launch import is_main, n_processes, require_docstrings
from gated_interp.core.shipped import MODEL_FILE
from gated_interp.core.signals import signal_behind, stop_on_sigterm

FAILED, WRONG_USAGE = 1, 2
# Commands that resume when the same command is given again.
RESUME = ("reproduce", "sweep", "reliability", "phase", "repeats", "frontier", "decompose")
# Commands whose one training several processes can share.
SHARED = ("train-toy", "train-gated", "train-lm", "plant")
# Parameters that say where to write, and the run folder that figures are drawn from (see drawn_in).
WRITTEN = ("out", "figures", "cache", "run")

GROUPS: dict[str, dict[str, Callable[..., None]]] = {
    "Look at a model": {
        "info": read.info,
        "verdict": read.verdict,
        "ablate": heads.ablate,
        "circuits": heads.circuits,
        "report": report.report,
        "explore": explore.explore,
    },
    "Train": {
        "train-toy": train.train_toy,
        "train-gated": train.train_gated,
        "train-lm": train.train_lm,
        "plant": train.plant,
        "decompose": decompose.decompose,
    },
    "Studies": {
        "reproduce": paper.reproduce,
        "figures": paper.figures,
        "sweep": sweep.sweep,
        "reliability": reliability.reliability,
        "phase": reliability.phase,
        "repeats": reliability.repeats,
        "frontier": frontier.frontier,
        "study": study.study,
    },
}
INSTALL = "--install-completion"

app = App(
    name="gated-interp",
    help="Find and undo attention head superposition with gated attention blocks.",
    version=f"gated-interp {__version__}",
    version_flags=["--version"],
    help_flags=["--help", "-h"],
    help_format="plaintext",
    result_action="return_value",
    default_parameter=Parameter(negative_iterable=(), negative_none=()),
    group_parameters=Group("Options", sort_key=0),
    group_commands=Group("Other", sort_key=9),
)
app.register_install_completion_command(name=INSTALL)
for _place, (_title, _commands) in enumerate(GROUPS.items()):
    _group = Group(_title, sort_key=_place)
    for _name, _command in _commands.items():
        app.command(_command, name=_name, group=_group)


def run(tokens: Sequence[str]) -> None:
    """Run the command that ``tokens`` name.

    What goes wrong becomes one sentence on stderr and an exit code.
    """
    app.console = console()
    # Boxes only where somebody sees them as boxes.
    app.help_formatter = "default" if app.console.is_terminal else "plain"
    name = tokens[0] if tokens else ""
    code: int | str = FAILED
    try:
        if not tokens:
            app.help_print([])
            raise SystemExit(WRONG_USAGE)
        _run(name, list(tokens))
        return
    except KeyboardInterrupt as stop:
        if is_main():
            tell(_stopped(name, stop))
        code = 128 + signal_behind(stop)
    except CycloptsError as error:
        code = WRONG_USAGE
        if isinstance(error, UnusedCliTokensError):
            tell(f"Error: {name} has no place for {shlex.join(error.unused_tokens or [])}.")
        else:
            tell(f"Error: {error}")
    except GatedInterpError as error:
        tell(f"Error: {error}")
        code = WRONG_USAGE if isinstance(error, WrongUsage) else FAILED
    except BrokenPipeError:
        raise  # whoever read has left; main() ends in silence
    except OSError as error:
        tell(_from_the_system(error))
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        tell("Error: there is not enough memory; ask for fewer heads, seeds or sequences.")
    raise SystemExit(code)


def _run(name: str, tokens: list[str]) -> None:
    require_docstrings()
    if n_processes() > 1 and name not in SHARED:
        raise GatedInterpError("not-for-several-processes", command=name, shared=SHARED)
    for commands in GROUPS.values():
        for each, command in commands.items():
            if name in (each, INSTALL):  # completions say all options of all commands
                complete(command)
    chosen, bound, _ = app.parse_args(tokens, exit_on_error=False, print_error=False)
    given = {n: v if isinstance(v, list | tuple) else [v] for n, v in bound.arguments.items()}
    read = (v for n, values in given.items() if n not in WRITTEN for v in values)
    # A command replaces none of the files that it is given to read.
    with kept(f for v in read if isinstance(v, str | Path) for f in _files(Path(v))):
        chosen(*bound.args, **bound.kwargs)


def _files(path: Path) -> list[Path]:
    """What is read of ``path``: of a folder its texts, or else its model and tokenizer."""
    if not os.path.isdir(path):
        return [path] if os.path.isfile(path) else []
    from gated_interp.tasks.text_files import texts_in

    return texts_in(path) or [path / name for name in (MODEL_FILE, "tokenizer.json")]


def _from_the_system(error: OSError) -> str:
    where = f"{error.filename}: " if error.filename else ""
    return f"Error: {where}{error.strerror or error}."


def _stopped(command: str, stop: KeyboardInterrupt) -> str:
    ended = "Terminated" if signal_behind(stop) == signal.SIGTERM else "Interrupted"
    again = shlex.join(["gated-interp", *sys.argv[1:]])
    if command in RESUME:
        return f"{ended}; what had finished is kept. To go on: {again}"
    if getattr(stop, "checkpoint", None) is not None:
        resume = again if "--resume" in sys.argv else f"{again} --resume"
        if n_processes() > 1:
            resume = "launch the same again, with --resume"
        steps = f"after {stop.step} steps" if hasattr(stop, "step") else ""
        return f"{ended} {steps}; to go on: {resume}"
    return f"{ended}."


def main() -> None:
    """The console script."""
    unicode_everywhere()
    # Tensors are small here: a second thread gains little on a core that is free, and beside
    # another process it makes everything ten times slower.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("HOME", str(home()))  # libraries fail without any
    stop_on_sigterm()
    warnings.showwarning = _warn
    try:
        try:
            run(sys.argv[1:])
        finally:
            sys.stdout.flush()
    except OSError as error:
        if not isinstance(error, BrokenPipeError):  # whoever read has left: no news
            tell(_from_the_system(error))
        # Python would complain once more when it flushes stdout at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(FAILED)


def _warn(message: Warning | str, *_: Any, **__: Any) -> None:
    """A warning as a sentence, without the place in the code."""
    tell(f"Warning: {message}")


def unicode_everywhere() -> None:
    """Let a terminal that cannot show an arrow show a question mark, instead of failing."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
