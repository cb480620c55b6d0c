"""A table that grows row by row: a CSV and a Parquet file, each written whole after every row.

And whose folder results are in: a study goes on with its own and leaves others as they are.
"""

import csv
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from gated_interp.core.errors import GatedInterpError
from gated_interp.core.files import write_table, write_whole

Row = dict[str, Any]


def require_same(
    notes: Path,
    wanted: Mapping[str, Any],
    results: bool,
    read: Callable[[dict[str, Any]], Mapping[str, Any]] = dict,
) -> None:
    """Refuse a folder with results of other settings, in words that name the first difference.

    Args:
        notes: the file in the folder that says its settings.
        wanted: the settings now, as JSON has them.
        results: whether the folder holds any.
        read: from what the file holds to settings.

    Raises:
        GatedInterpError: they differ, nobody knows what they were, or the folder is a file.
    """
    if notes.parent.exists() and not notes.parent.is_dir():
        raise GatedInterpError(f"{notes.parent} is a file; name a folder.")
    if not results:
        return
    try:
        there = read(json.loads(notes.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise GatedInterpError(
            f"{notes} does not say how the results beside it were made; name another folder."
        ) from error
    for name in {**wanted, **there}:
        then, now = there.get(name), wanted.get(name)
        if then != now:
            raise GatedInterpError(
                f"{notes.parent} holds a run with {name} {then!r} instead of {now!r}; name another "
                "folder, or ask for the same run."
            )


class GrowingTable:
    """``folder/stem.csv`` and ``folder/stem.parquet``.

    A kill at any moment leaves the rows before. Nothing is written before :meth:`write`.

    Args:
        columns: the type of each, ``str``, ``int`` or ``float`` (NaN is an empty field). The first
            is the key: no two rows share it. Further columns of a file are left out.

    Attributes:
        rows: in the order they came.

    Raises:
        GatedInterpError: the CSV is another table, or holds a row that is damaged or there twice.
    """

    def __init__(self, folder: Path | str, stem: str, columns: Mapping[str, type]):
        self.csv = Path(folder) / f"{stem}.csv"
        self.parquet = Path(folder) / f"{stem}.parquet"
        self.columns = dict(columns)
        self.key = next(iter(self.columns))
        self.rows: list[Row] = self._read() if self.csv.exists() else []

    @property
    def keys(self) -> set[Any]:
        """The keys of the rows that are there."""
        return {row[self.key] for row in self.rows}

    def append(self, row: Row) -> None:
        """Add a row to both files.

        Raises:
            GatedInterpError: the disk is full; the files hold the rows before.
        """
        self.rows.append({name: kind(row[name]) for name, kind in self.columns.items()})
        try:
            self.write()
        except GatedInterpError:
            self.rows.pop()
            raise

    def write(self) -> None:
        """Write both files.

        Raises:
            GatedInterpError: the disk is full, or the folder cannot be written.
        """
        write_table(self._in_order(), self.csv, float_format=None)
        write_whole(self.parquet, lambda p: self.frame().to_parquet(p, index=False))

    def frame(self) -> pd.DataFrame:
        """The rows, ordered by the columns after the key."""
        return self._in_order().sort_values(list(self.columns)[1:], ignore_index=True)

    def _in_order(self) -> pd.DataFrame:
        return pd.DataFrame(self.rows, columns=list(self.columns)).astype(self.columns)

    def _read(self) -> list[Row]:
        try:
            with self.csv.open(encoding="utf-8", newline="") as file:
                header, *lines = csv.reader(file)
            if not {*self.columns} <= {*header}:
                raise ValueError("a column is missing")
            # Earlier versions appended, each row with a checksum last: a kill could cut one off.
            if lines and len(lines[-1]) < len(header):
                lines.pop()
            rows = [
                {name: _value(kind, fields[name]) for name, kind in self.columns.items()}
                for fields in (dict(zip(header, line, strict=True)) for line in lines)
            ]
        except (OSError, ValueError, csv.Error) as error:
            raise self._refused("cannot be read as the table that belongs there") from error
        names = {row[self.key] for row in rows}
        if len(names) < len(rows) or "" in names:
            raise self._refused("holds a row without a name, or one twice")
        return rows

    def _refused(self, what: str) -> GatedInterpError:
        return GatedInterpError(
            f"{self.csv} {what}; name another folder, or delete the line that is damaged and it is "
            "made anew."
        )


def _value(kind: type, written: str) -> Any:
    return math.nan if kind is float and written == "" else kind(written)
