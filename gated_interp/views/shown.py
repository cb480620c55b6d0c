"""What a view shows: a finding, a sentence or two, a table, and perhaps a figure."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import plotly.graph_objects as go

from gated_interp.core import written
from gated_interp.core.files import write_text
from gated_interp.plots.save import save_figures
from gated_interp.subject import Subject

TOPICS = {
    "overview": "Which heads matter",
    "holders": "Who holds what",
    "frontier": "How exact and how sparse",
    "heads": "What each head does",
    "circuits": "Circuits",
    "ablations": "What is lost without each head",
    "provenance": "Provenance",
}
"""What views are about, in the order of a report: each is a section of it. The command ``verdict``
shows ``holders``, ``circuits`` and ``ablate`` those of their names."""


@dataclasses.dataclass(frozen=True)
class Shown:
    """One thing to show.

    Attributes:
        name: how its files begin.
        title: the finding, or what the table says.
        words: how it is read, in a sentence or two.
        table: its numbers, for the CSV; of several, by what is added to the name (``""`` for none).
        draw: makes the figure; called when somebody looks at it.
        face: the rows that a reader sees, where the table has too many of them.
        side: which model it is of (``original``, ``block``), where it is of one of two.
        headline: whether the title says what came out, so that a report begins with it.
        folded: whether a report shows the rows only when asked for.
        cards: what cards of heads are drawn from, see :func:`~gated_interp.plots.head_page.cards`.
    """

    name: str
    title: str
    words: str
    table: pd.DataFrame | Mapping[str, pd.DataFrame]
    draw: Callable[[], go.Figure] | None = None
    face: pd.DataFrame | None = None
    side: str = ""
    headline: bool = False
    folded: bool = False
    cards: Mapping[str, Any] | None = None

    @cached_property
    def figure(self) -> go.Figure | None:
        """The figure; ``None`` where there is none."""
        return None if self.draw is None else self.draw()

    def tables(self, stem: str) -> dict[str, pd.DataFrame]:
        """Its numbers, by the name of their file without ``.csv``."""
        if isinstance(self.table, pd.DataFrame):
            return {stem: self.table}
        return {f"{stem}-{name}" if name else stem: frame for name, frame in self.table.items()}

    def write(
        self,
        stem: Path | str,
        formats: Sequence[str],
        *,
        say: Callable[[str], object] | None = None,
    ) -> list[Path]:
        """Write the CSV and the figure to ``stem`` and an ending; returns the files."""
        return write_all({stem: self}, formats, say=say)


def write_all(
    found: Mapping[Path | str, Shown],
    formats: Sequence[str],
    *,
    say: Callable[[str], object] | None = None,
) -> list[Path]:
    """As :meth:`Shown.write`, of many."""
    drawn = {stem: (shown.figure, shown.table) for stem, shown in found.items() if shown.figure}
    written = save_figures(drawn, formats, say=say)
    for stem, shown in found.items():
        if stem not in drawn:
            for path, table in shown.tables(str(stem)).items():
                written.append(write_text(f"{path}.csv", csv_of(table)))
    return list(dict.fromkeys(map(Path, written)))


@dataclasses.dataclass(frozen=True)
class View:
    """One view, in a file of its own.

    Attributes:
        topic: one of :data:`TOPICS`: the section of a report, and the command, that show it.
        show: what it shows of a subject.
        applies: whether it has something to say of a subject.
        order: its place among the views of the topic.
        gallery: whether a run's figures have it: of each model, of the ``one`` shown in full.
    """

    topic: str
    show: Callable[[Subject], Iterable[Shown]]
    applies: Callable[[Subject], bool] = lambda subject: True
    order: int = 50
    gallery: Literal["each", "one", "no"] = "one"


def csv_of(table: pd.DataFrame) -> str:
    """A table as every file and page has it."""
    return table.to_csv(index=False, lineterminator="\n", float_format="%.7g")


def cells(face: pd.DataFrame) -> list[list[str]]:
    """The rows of a table as a reader sees them: four digits, and a dash where there is nothing."""
    return [
        [written.number(value) for value in row] for row in face.astype(object).to_numpy().tolist()
    ]


def between(low: float, high: float, form: Callable[[float], str] = written.short) -> str:
    """An interval that no line ends in, or a dash where there is none."""
    return written.interval(low, high, form).replace(" ", "\N{NO-BREAK SPACE}")


def change(value: float, low: float, high: float) -> str:
    """A change with its interval: ``+0.012 (+0.010 to +0.014)``."""
    said = written.change(value)
    return f"{said} ({between(low, high, written.change)})" if low == low else said


def marked(title: str, marks: Mapping[int, str]) -> str:
    """A figure's title, and what the marks on it say where there are any."""
    return f"{title} (in blue: what it holds)" if marks else title


def together(tables: Mapping[str, pd.DataFrame], column: str = "model") -> pd.DataFrame:
    """Tables below each other, a first column saying which each row is of."""
    return pd.concat(
        [table.assign(**{column: name}) for name, table in tables.items()], ignore_index=True
    )[[column, *next(iter(tables.values())).columns]]
