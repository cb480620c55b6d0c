"""A table that grows row by row and survives being killed at any moment.

The CSV is the record: rows are only ever appended, each with a checksum of itself, and forced to
the disk. A row that a kill cut off fails its checksum and is dropped. The Parquet file beside it
holds the same rows and is written anew, whole, after each.
"""

import contextlib
import math
import os
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from gated_interp.core.errors import GatedInterpError
from gated_interp.core.files import refused, write_text, write_whole

CHECKSUM = "checksum"
Row = dict[str, Any]


class GrowingTable:
    """``folder/stem.csv`` and ``folder/stem.parquet``.

    Args:
        columns: the type of each, ``str`` (without comma, quote or newline), ``int`` or ``float``
            (NaN is an empty field). The first is the key: no two rows share it.

    Attributes:
        rows: the whole rows, in the order they came.
        torn: whether the file ended in a row that is not whole.

    Raises:
        GatedInterpError: the CSV is another table, or is damaged before its last row.
    """

    def __init__(self, folder: Path | str, stem: str, columns: Mapping[str, type]):
        self.csv = Path(folder) / f"{stem}.csv"
        self.parquet = Path(folder) / f"{stem}.parquet"
        self.columns = dict(columns)
        self.key = next(iter(self.columns))
        self.rows: list[Row] = []
        self.torn = False
        self.read()

    @property
    def header(self) -> str:
        return ",".join([*self.columns, CHECKSUM])

    def read(self) -> None:
        """Read what is there; nothing is written."""
        self.rows, self.torn, self._whole = [], False, 0
        if not self.csv.exists():
            return
        data = self.csv.read_bytes()
        header = (self.header + "\n").encode()
        if not data.startswith(header):
            if header.startswith(data):
                self.torn = bool(data)
                return
            raise GatedInterpError(
                f"{self.csv} is not the table that belongs there; name another folder."
            )
        self._whole = len(header)
        lines = [line + b"\n" for line in data[len(header) :].split(b"\n")]
        lines[-1] = lines[-1][:-1]  # what stands behind the last newline: nothing, or a torn row
        lines = lines if lines[-1] else lines[:-1]
        for number, line in enumerate(lines, 2):
            row = self._parse(line)
            if row is None and number == len(lines) + 1:
                self.torn = True
                return
            if row is None or row[self.key] in self.keys:
                raise GatedInterpError(
                    f"line {number} of {self.csv} is damaged or there twice; delete that line and "
                    "it is made anew."
                )
            self.rows.append(row)
            self._whole += len(line)

    @property
    def keys(self) -> set[Any]:
        """The keys of the rows that are there."""
        return {row[self.key] for row in self.rows}

    def start(self) -> None:
        """Make both files what :meth:`read` found: cut off a torn row, write what is missing."""
        if self._whole == 0:
            write_text(self.csv, self.header + "\n")
            self._whole = len(self.header) + 1
        elif self.torn:
            os.truncate(self.csv, self._whole)
        self.torn = False
        self._write_parquet()

    def append(self, row: Row) -> None:
        """Add a row to both files.

        Raises:
            GatedInterpError: the disk is full; the CSV holds the rows before.
        """
        row = {name: kind(row[name]) for name, kind in self.columns.items()}
        text = ",".join(_written(value) for value in row.values())
        line = f"{text},{_checksum(text)}\n".encode()
        try:
            with self.csv.open("ab") as file:
                file.write(line)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            with contextlib.suppress(OSError):
                os.truncate(self.csv, self._whole)
            raise refused(self.csv, error) from error
        self._whole += len(line)
        self.rows.append(row)
        self._write_parquet()

    def frame(self) -> pd.DataFrame:
        """The rows, ordered by the columns after the key."""
        frame = pd.DataFrame(self.rows, columns=list(self.columns)).astype(self.columns)
        return frame.sort_values(list(self.columns)[1:], ignore_index=True)

    def _write_parquet(self) -> None:
        write_whole(self.parquet, lambda p: self.frame().to_parquet(p, index=False))

    def _parse(self, line: bytes) -> Row | None:
        """The row in ``line``; ``None`` where it is not whole."""
        if not line.endswith(b"\n"):
            return None
        text, _, checksum = line[:-1].decode(errors="replace").rpartition(",")
        values = text.split(",")
        if checksum != _checksum(text) or len(values) != len(self.columns):
            return None
        pairs = zip(self.columns.items(), values, strict=True)
        return {name: kind(value) if value else math.nan for (name, kind), value in pairs}


def _written(value: Any) -> str:
    return "" if value != value else repr(value) if isinstance(value, float) else str(value)


def _checksum(text: str) -> str:
    return f"{zlib.crc32(text.encode()):08x}"
