"""Options that several commands share, and how lists and ranges are written."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from cyclopts import Parameter, validators

from gated_interp.core.errors import GatedInterpError
from gated_interp.experiments import grid

Number = TypeVar("Number", int, float)

FORMATS = ("svg", "png", "pdf", "html")


class WrongUsage(GatedInterpError):
    """A command that is not called as its help says: the exit code is 2."""


def at_least(least: int, most: int | None = None) -> Parameter:
    """An option whose number is in this range, both ends included."""
    return Parameter(validator=validators.Number(gte=least, lte=most))


def read_by(reader: Callable[[str], Any], **about: Any) -> Parameter:
    """An option whose one word is read by ``reader``."""
    return Parameter(converter=lambda _, tokens: reader(tokens[0].value), n_tokens=1, **about)


def workers_of(written: str) -> int | str:
    """``2`` as a number of processes, ``tcp://127.0.0.1:8786`` as the address of a scheduler."""
    if "://" in written:
        return written
    try:
        count = int(written)
    except ValueError:
        count = 0
    if count < 1:
        raise WrongUsage(
            f"--workers is {written!r}; it must be a whole number from 1 up, or the address of a "
            "Dask scheduler, such as tcp://127.0.0.1:8786."
        )
    return count


def formats_of(written: str | Sequence[str]) -> list[str]:
    """``svg,png`` as a list."""
    words = written.split(",") if isinstance(written, str) else written
    wanted = [part.strip().lower() for part in words if part.strip()]
    unknown = [f for f in wanted if f not in FORMATS]
    if unknown or not wanted:
        raise WrongUsage(
            f"--format is {written!r}; it must name at least one of {', '.join(FORMATS)}, with "
            "commas between them."
        )
    return wanted


Flag = Annotated[bool, Parameter(negative=(), show_default=False)]
Positive = Annotated[int, at_least(1)]
Natural = Annotated[int, at_least(0)]

File = Annotated[
    str,
    Parameter(
        help="Open this model: a shipped name, a checkpoint, a Hugging Face folder or name, or a "
        ".gguf file."
    ),
]
Base = Annotated[
    Path | None,
    Parameter(
        help="Put a checkpoint that holds blocks alone into this model: a folder, a file or a "
        "name. Default: the place that the checkpoint names."
    ),
]
Layer = Annotated[
    Natural | None,
    Parameter(help="Look at the heads of this layer, where the model has several."),
]
Json = Annotated[Flag, Parameter(name="--json", help="Print JSON, for programs to read.")]
Figures = Annotated[
    Path | None, Parameter(help="Write the figures to this folder. Default: OUT/figures.")
]
Formats = Annotated[
    Sequence[str],
    read_by(
        formats_of,
        name="--format",
        help="Write figures as svg, png, pdf or html. Put commas between several.",
    ),
]
DRAWN = ("svg", "png")
FirstSeed = Annotated[Natural, Parameter(help="Count seeds up from this one.")]
Steps = Annotated[
    Positive | None,
    Parameter(help="Train each block for this many steps. Default: the recipe's."),
]
ToySteps = Annotated[
    Positive | None,
    Parameter(help="Train each toy for this many steps. Default: the recipe's."),
]
RecipeName = Annotated[
    Literal["reliable", "reference"],
    Parameter(help="Train as this package recommends, or as the post did (hours)."),
]
Workers = Annotated[
    Any,  # int | str | None
    read_by(
        workers_of,
        help="Use this many processes, or the Dask scheduler at an address such as "
        "tcp://127.0.0.1:8786. Default: all cores.",
    ),
]


def drawn_in(run: Path, figures: Path | None) -> Path:
    """The folder of the figures of ``run``: ``figures`` in it unless given."""
    folder = run / "figures" if figures is None else figures
    if folder.resolve() == run.resolve():
        raise WrongUsage(
            f"{folder} is the run folder, whose tables those of the figures would replace; name "
            "another folder."
        )
    return folder


def model_of(file: str, text: Sequence[str] | None = None, base: Path | None = None) -> Any:
    """The model of a command that measures it on its own task or text, or on ``text``.

    Args:
        base: see :data:`Base`.
    """
    from gated_interp.checkpoints.opened import open_model

    model = open_model(file, text=text or None, base=base)
    if model.task is None:
        raise GatedInterpError("model-without-tokenizer", file=file)
    return model


def first_figure(files: Sequence[Path], folder: Path) -> Path:
    """Which of the files to open first; the folder where no figure was drawn."""
    figures = [path for path in files if path.suffix != ".csv"]
    return next((p for p in figures if "before-after" in p.name), (figures or [folder])[0])


def whole_numbers(written: str, option: str) -> list[int]:
    """``2:4`` (both ends count) or ``2,3,7`` as whole numbers."""
    return _read(grid.whole_numbers, written, option)


def numbers(written: str, option: str) -> list[float]:
    """``0.05,0.2`` as numbers."""
    return _read(grid.numbers, written, option)


def _read(reader: Callable[[str, str], list[Number]], written: str, option: str) -> list[Number]:
    try:
        return reader(written, option.removeprefix("--"))
    except GatedInterpError as error:
        raise WrongUsage(str(error)) from error
