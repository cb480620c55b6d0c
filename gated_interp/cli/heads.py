"""What views show of one model, in a terminal and as files: ``ablate`` and ``circuits``."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from gated_interp.cli.console import progress, say, show, tell
from gated_interp.cli.imports import quick_imports
from gated_interp.cli.options import Base, File, Formats, Layer, Positive, first_figure, model_of
from gated_interp.core.errors import GatedInterpError

if TYPE_CHECKING:
    from gated_interp.subject import Subject

Out = Annotated[
    Path | None,
    Parameter(help="Write figures, and the CSV of each table, to this folder. Default: none."),
]
Trigram = Annotated[
    Positive | None,
    Parameter(help="Take the example from this skip trigram. Default: one that is distributed."),
]
PAGES = ("svg", "png", "html")
# Sequences of text that the commands measure on, where a model is small enough.
TEXT = 50


def ablate(
    file: File,
    /,
    *,
    method: Literal["zero", "mean", "resample", "optimal"] = "zero",
    out: Out = None,
    formats: Formats = PAGES,
    trigram: Trigram = None,
    layer: Layer = None,
    base: Base = None,
    prompts: Annotated[
        list[str] | None,
        Parameter(
            name="--prompt",
            help="Measure on this prompt. Repeat the option for several. Default: the model's "
            "text, and repeated random tokens.",
        ),
    ] = None,
    prompt_file: Annotated[
        Path | None,
        Parameter(help="Measure on the lines of this text file, each a prompt. Default: none."),
    ] = None,
) -> None:
    """Measure how much each head matters by switching it off.

    Of a language model of several layers, an overview of all heads comes first. Of more than four
    layers, it chooses the one that matters most, unless you name one with --layer.

    Heads are ablated by several methods. Where the right answers are known, Shapley values and
    interactions over all subsets of a layer's heads are measured too. For a language model, the
    command also measures how the heads of a layer share its effect on repeated random tokens.

    Args:
        method: Show this method in tables by skip trigram. The others show all methods.
    """
    said = [*(prompts or []), *(_lines(prompt_file) if prompt_file is not None else [])]
    options = {"trigram": trigram, "method": method}
    _render("ablations", file, out, formats, layer=layer, base=base, said=said, **options)


def circuits(
    file: File,
    /,
    *,
    out: Out = None,
    formats: Formats = PAGES,
    trigram: Trigram = None,
    layer: Layer = None,
    base: Base = None,
) -> None:
    """Show what the circuits of each head do.

    These are the OV, QK and gate circuits; how heads of several layers compose; and in one layer
    how far representations are in superposition. Of a language model of several layers, an overview
    of all heads comes first. Of more than four, it chooses the layer, unless you name one.
    """
    _render("circuits", file, out, formats, layer=layer, base=base, trigram=trigram)


def _render(
    topic: str,
    file: str,
    out: Path | None,
    formats: Sequence[str],
    *,
    layer: int | None,
    base: Path | None,
    said: Sequence[str] = (),
    **options: Any,
) -> None:
    """Show a topic's tables, and write its figures and tables to a folder."""
    kinds = list(formats)
    with quick_imports():
        from gated_interp.subject import Subject
        from gated_interp.views.shown import write_all

    model = model_of(file, base=base)
    subject = Subject.of(model, layer, alone=True, **options, **_text_of(model, said))
    found: list[Any] = []
    if layer is None and not said:
        subject, found = overviewed(subject)
    found += show_topic(subject, topic)
    if out is not None:
        with progress("drawing"):
            files = write_all({out / f"{subject.name}-{s.name}": s for s in found}, kinds, say=tell)
        first = first_figure(files, out)
        say(f"{len(files)} files are in {out}{'' if first == out else f'; open {first} first'}.")


def overviewed(subject: "Subject") -> tuple["Subject", list[Any]]:
    """Show all heads of a language model of several layers; of many layers, choose one."""
    if not subject.has_overview:
        return subject, []
    with progress("measuring all heads"):
        found = show_topic(subject, "overview")
    if not subject.too_deep:
        return subject, found
    chosen = subject.narrowed()
    layers = " and ".join(f"layer {layer}" for layer in chosen.layers)
    say(f"{subject.overview.why} What follows is of {layers}; name another with --layer.\n")
    return chosen, found


def _text_of(model: Any, said: Sequence[str] = ()) -> dict[str, Any]:
    """The sequences that the commands measure on: prompts, or of a language model's own text."""
    from gated_interp.anatomy.batch import Batch
    from gated_interp.subject import SEQUENCES, usual_sequences
    from gated_interp.tasks.text import TextTask

    if not isinstance(model.task, TextTask):
        if said:
            raise GatedInterpError("prompts-without-text", model=model.model_name)
        return {}
    if not said:
        usual = usual_sequences(model)
        n = TEXT if usual == SEQUENCES else usual
        return {"tokens": Batch(model.task.part("test").sample(n, 0).tokens)}
    rows = [model.task.begun(text) for text in said]
    if not all(len(row) > 1 + (model.task.bos is not None) for row in rows):
        raise GatedInterpError("prompt-too-short")
    return {"tokens": Batch.of_rows(model, rows), "prompts": True}


def _lines(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise GatedInterpError("cannot-read-prompts", path=path, reason=reason) from error
    return [line for line in lines if line.strip()]


def show_topic(subject: "Subject", topic: str) -> list[Any]:
    """Print the tables of a topic's views; returns all that they show."""
    from gated_interp.views.registry import views_of
    from gated_interp.views.shown import cells

    found: list[Any] = []
    views = views_of(subject, topic)
    with progress("measuring", "%") as update:
        for i, view in enumerate(views):
            at = partial(_told, update, i, len(views))
            at(0, 1)
            subject.listeners[:] = [at]
            found += view.show(subject)
    subject.listeners.clear()
    said = ""
    for shown in found:
        if shown.face is not None:
            title = f"{subject.name}: {shown.title}"
            show(title, list(map(str, shown.face.columns)), cells(shown.face))
            if shown.words != said:
                say(f"{shown.words}\n")
            said = shown.words
    return found


def _told(
    update: Callable[[int, int], None], before: int, views: int, done: int, total: int
) -> None:
    """Say how far the views of a topic are, in per cent."""
    update(100 * (before * total + done) // (views * total), 100)
