"""What goes to the terminal: tables and colours there, plain text into a pipe or a file."""

import os
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich import box, markup
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from gated_interp.core.launch import is_main, rank

# Wide enough that nothing wraps where nobody looks.
PLAIN_WIDTH = 10_000
# Seconds between lines of progress where nobody watches.
EVERY = 20.0
# What moves a terminal's cursor, recolours or retitles it, or turns the direction of writing; a
# model's notes and tokens may hold any of it.
CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def escape(text: str) -> str:
    """``text`` as a console shows it: no markup, and control characters written out."""
    return markup.escape(CONTROLS.sub(lambda found: ascii(found[0])[1:-1], text))


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Whoever read has left: go on without a word, files may still have to be written."""
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self.file.fileno())


def console(*, stderr: bool = False) -> Console:
    """Of several processes only the first has results to show."""
    quiet = not stderr and not is_main()
    made = _Console(stderr=stderr, highlight=False, emoji=False, quiet=quiet)
    if not made.is_terminal:
        made = _Console(
            stderr=stderr,
            highlight=False,
            emoji=False,
            width=PLAIN_WIDTH,
            no_color=True,
            quiet=quiet,
        )
    return made


def say(sentence: str = "") -> None:
    """A sentence on stdout."""
    console().print(escape(sentence))


def tell(sentence: str) -> None:
    """A sentence on stderr, where it does not mix with results."""
    who = "" if is_main() else f"Process {rank()}: "
    console(stderr=True).print(escape(who + sentence))


def say_exactly(text: str) -> None:
    """``text`` as it is, for programs to read (JSON, which has no control characters)."""
    console().out(text, highlight=False)


def show(title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """A table on stdout; columns after the first stand to the right."""
    where = console()
    pretty = where.is_terminal
    table = Table(
        header_style="bold" if pretty else "",
        box=box.SIMPLE_HEAD if pretty else None,
        pad_edge=False,
    )
    for i, name in enumerate(columns):
        table.add_column(escape(name), justify="left" if i == 0 else "right")
    for row in rows:
        table.add_row(*(escape(cell(value)) for value in row))
    _print(where, title, table)


def show_facts(title: str, facts: Iterable[tuple[str, Any]]) -> None:
    """A table of names and values."""
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column()
    table.add_column(overflow="fold")
    for name, value in facts:
        table.add_row(escape(name), escape(cell(value)))
    _print(console(), title, table)


def _print(where: Console, title: str, table: Table) -> None:
    where.print(escape(title), style="bold")
    if where.is_terminal:
        where.print(table)
    else:  # without the spaces that fill a cell
        with where.capture() as captured:
            where.print(table)
        lines = [line.rstrip() for line in captured.get().splitlines()]
        where.out("\n".join(lines), highlight=False)
    where.print()


def cell(value: Any) -> str:
    """A value as a table shows it: four digits, and a dash where there is none."""
    if value is None or value != value:
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value)) or "none"
    return str(value)


@contextmanager
def progress(what: str, unit: str = "") -> Iterator[Callable[[int, int], None]]:
    """Progress on stderr, with the time left; yields what takes (done, total).

    On a terminal it is a bar; elsewhere a line now and then, so that a log says that work goes on.

    Args:
        unit: what is counted; without one only the time that has passed is shown.
    """
    where = console(stderr=True)
    counted = (BarColumn(), MofNCompleteColumn(), TextColumn(unit), TimeElapsedColumn(),
               TextColumn("left"), TimeRemainingColumn())  # fmt: skip
    watched = where.is_terminal and is_main()
    bar = Progress(
        TextColumn("{task.description}"),
        *(counted if unit else (SpinnerColumn(), TimeElapsedColumn())),
        console=where,
        disable=not watched,
        transient=True,
        # A batch may take longer than the half minute after which speeds are forgotten.
        speed_estimate_period=24 * 3600,
    )
    task = bar.add_task(what, total=None)
    ended, started = threading.Event(), time.monotonic()

    def lines() -> None:
        while not ended.wait(EVERY):
            counted = bar.tasks[task]
            done = (
                f" {counted.completed:.0f} of {counted.total:.0f} {unit}," if counted.total else ""
            )
            tell(f"{what}:{done} {time.monotonic() - started:.0f} s so far")

    writer = threading.Thread(target=lines, daemon=True)
    if not watched and is_main():
        writer.start()
    try:
        with bar:
            yield lambda done, total: bar.update(task, completed=done, total=total)
    finally:
        ended.set()
        if writer.is_alive():
            writer.join()
