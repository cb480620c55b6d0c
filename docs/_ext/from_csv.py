"""Tables of the pages, filled in from the CSVs of ``figures/`` while the site is built.

A page writes a table with patterns for its lines. They are repeated for every row of the CSV::

    ```{from-csv} reliability-41000-256.csv
    :where: recipe == "reliable"
    :sort: experiment

    | toy model | clean blocks (95% interval) |
    |---|---|
    | {experiment} | {clean} of {runs} ({low:.0%} to {high:.0%}) |
    ```

A line without a pattern behind them is shown once, at the end. Instead of a file the page may name
a table of ``measured.TABLES``. A file, a column or a row that is not there is an error of the
build. A cell whose value is missing holds a dash.
"""

import string
from typing import ClassVar

import measured
import pandas as pd
from docutils.parsers.rst import directives
from sphinx.util.docutils import SphinxDirective

NOTHING = "–"


def filled(lines: list[str], table: pd.DataFrame) -> list[str]:
    """The lines with those behind the table's rule repeated for each row.

    Raises:
        KeyError: a pattern names a column that the table lacks.
        ValueError: there is no rule or no row, or a number cannot be written as the pattern says.
    """
    rules = [i for i, line in enumerate(lines) if line and not set(line) - set("|-: ")]
    if not rules or table.empty:
        raise ValueError("the table has no rule" if not rules else "no row is left")
    head, body = lines[: rules[0] + 1], [line for line in lines[rules[0] + 1 :] if line.strip()]
    patterns = [line for line in body if "{" in line]
    once = [line for line in body if "{" not in line]
    # Records would make floats of whole numbers that stand beside floats.
    columns = {name: table[name].tolist() for name in table}
    rows = [{name: values[i] for name, values in columns.items()} for i in range(len(table))]
    return head + ["|".join(cells(line, row)) for row in rows for line in patterns] + once


def cells(pattern: str, row: dict[str, object]) -> list[str]:
    """The cells of one line, each filled in, or a dash where one of its values is missing."""
    done = []
    for cell in pattern.split("|"):
        names = [name for _, name, _, _ in string.Formatter().parse(cell) if name is not None]
        missing = any(pd.isna(row[name]) for name in names)
        done.append(f" {NOTHING} " if missing else cell.format_map(row))
    return done


class FromCsv(SphinxDirective):
    """``{from-csv}``; see the module."""

    required_arguments = 1
    final_argument_whitespace = True
    has_content = True
    option_spec: ClassVar = {
        "where": directives.unchanged_required,
        "sort": directives.unchanged_required,
    }

    def run(self) -> list:
        name = self.arguments[0]
        try:
            for path in measured.sources():
                self.env.note_dependency(str(path))
            table = measured.table(name)
            if "where" in self.options:
                table = table.query(self.options["where"])
            if "sort" in self.options:
                table = table.sort_values(self.options["sort"].split(", "), kind="stable")
            lines = filled(list(self.content), table)
        except (KeyError, ValueError, OSError, pd.errors.UndefinedVariableError) as error:
            raise self.error(f"{name}: {type(error).__name__}: {error}") from error
        return self.parse_text_to_nodes("\n".join(lines))


def setup(app):
    app.add_directive("from-csv", FromCsv)
    return {"parallel_read_safe": True}
