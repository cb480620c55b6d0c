"""Options that several commands share, and how lists and ranges are written."""

from typing import Annotated

import typer

FORMATS = ("svg", "png", "pdf", "html")

File = Annotated[
    str, typer.Argument(metavar="FILE", help="A checkpoint, or the name of a shipped model.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, for programs to read.")]
Formats = Annotated[
    str,
    typer.Option("--format", metavar="LIST", help="Of svg, png, pdf, html; commas between them."),
]


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
    """``2:4`` (both ends count) or ``2,3,4`` as whole numbers.

    Raises:
        typer.BadParameter: anything else, or a range without numbers.
    """
    found: list[int] = []
    try:
        for part in written.split(","):
            first, _, last = part.partition(":")
            found += range(int(first), int(last or first) + 1)
    except ValueError:
        found = []
    if not found or min(found) < 1:
        raise typer.BadParameter(
            f"{written!r} must be a range such as 2:4 or a list such as 2,3,4, from 1 up.",
            param_hint=option,
        )
    return list(dict.fromkeys(found))


def numbers(written: str, option: str) -> list[float]:
    """``0.05,0.2`` as numbers.

    Raises:
        typer.BadParameter: anything else.
    """
    try:
        return list(dict.fromkeys(float(part) for part in written.split(",")))
    except ValueError as error:
        raise typer.BadParameter(
            f"{written!r} must be numbers with commas between them, such as 0.05,0.2.",
            param_hint=option,
        ) from error
