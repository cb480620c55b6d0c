"""Options that several commands share, and how lists and ranges are written."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from gated_interp.core.errors import GatedInterpError
from gated_interp.experiments import grid

Number = TypeVar("Number", int, float)

FORMATS = ("svg", "png", "pdf", "html")

File = Annotated[
    str, typer.Argument(metavar="FILE", help="A checkpoint, or the name of a shipped model.")
]
Layer = Annotated[
    int | None,
    typer.Option(min=0, help="Whose heads are meant, where the model has several layers."),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, for programs to read.")]
Figures = Annotated[
    Path | None,
    typer.Option(help="Folder for the figures: OUT/figures. README's are in `figures`."),
]
Formats = Annotated[
    str,
    typer.Option("--format", metavar="LIST", help="Of svg, png, pdf, html; commas between them."),
]


def workers_of(written: str) -> int | str:
    """``2`` as a number of processes, ``tcp://127.0.0.1:8786`` as the address of a scheduler.

    Raises:
        typer.BadParameter: neither.
    """
    if "://" in written:
        return written
    try:
        count = int(written)
    except ValueError:
        count = 0
    if count < 1:
        raise typer.BadParameter(
            f"{written!r} must be a whole number from 1 up, or the address of a Dask scheduler, "
            "such as tcp://127.0.0.1:8786."
        )
    return count


Processes = Annotated[int | None, typer.Option(min=1, help="Processes; all cores if absent.")]
Workers = Annotated[
    Any,  # int | str | None, which typer cannot read
    typer.Option(
        parser=workers_of,
        metavar="N|ADDRESS",
        help="Processes, all cores if absent; or a Dask scheduler, such as tcp://127.0.0.1:8786.",
    ),
]


def drawn_in(run: Path, figures: Path | None) -> Path:
    """The folder of the figures of ``run``: ``figures`` in it unless given.

    Raises:
        typer.BadParameter: the run folder itself, whose tables the figures' would replace.
    """
    folder = run / "figures" if figures is None else figures
    if folder.resolve() == run.resolve():
        raise typer.BadParameter(
            f"{folder} is the run folder, whose tables those of the figures would replace; name "
            "another folder."
        )
    return folder


def formats_of(written: str) -> list[str]:
    """``svg,png`` as a list.

    Raises:
        typer.BadParameter: an unknown format, or none.
    """
    wanted = [part.strip().lower() for part in written.split(",") if part.strip()]
    unknown = [f for f in wanted if f not in FORMATS]
    if unknown or not wanted:
        raise typer.BadParameter(
            f"{written!r} must name at least one of {', '.join(FORMATS)}, commas between them.",
            param_hint="--format",
        )
    return wanted


def whole_numbers(written: str, option: str) -> list[int]:
    """``2:4`` (both ends count) or ``2,3,7`` as whole numbers.

    Raises:
        typer.BadParameter: anything else, or a range without numbers.
    """
    return _read(grid.whole_numbers, written, option)


def numbers(written: str, option: str) -> list[float]:
    """``0.05,0.2`` as numbers.

    Raises:
        typer.BadParameter: anything else.
    """
    return _read(grid.numbers, written, option)


def _read(reader: Callable[[str, str], list[Number]], written: str, option: str) -> list[Number]:
    try:
        return reader(written, option.removeprefix("--"))
    except GatedInterpError as error:
        raise typer.BadParameter(str(error), param_hint=option) from error
