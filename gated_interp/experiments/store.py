"""One store for every study: whose rows a folder holds, each added whole or not at all.

A folder holds the rows of one study (``NAME.csv``) and what they were made with (``NAME.json``).
Each file is written whole after every row, so that a kill at any moment leaves the rows before.
"""

import contextlib
import csv
import dataclasses
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import UnionType
from typing import Any, ClassVar, Generic, TypeVar, get_args

import pandas as pd

from gated_interp.core.errors import GatedInterpError
from gated_interp.core.files import write_table, write_text, write_whole

# What an earlier call may have had, and a later one has not: cells that agree are kept.
MERGED = "recipes"


# Not Self: the shape checker decorates methods one by one, where Self means nothing.
R = TypeVar("R", bound="Row")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """A row of a study's table. The fields are its columns, in their order.

    A float may be missing (NaN). Other columns may be missing where their type allows ``None``.
    """

    KEY: ClassVar[tuple[str, ...]] = ("experiment", "recipe")
    """The columns that name a row; no two rows agree in them."""
    ORDER: ClassVar[tuple[str, ...]] = ()
    """The columns that rows are sorted by in :meth:`Store.frame`; as they came if empty."""

    @classmethod
    def columns(cls) -> dict[str, Any]:
        """The type of each column."""
        return {field.name: field.type for field in dataclasses.fields(cls)}

    @classmethod
    def of(cls: type[R], values: Mapping[str, Any]) -> R:
        """The row of these values, which may be those of a CSV; others are left out."""
        kinds = cls.columns()
        return cls(**{n: _value(kinds[n], v) for n, v in values.items() if n in kinds})

    @property
    def names(self) -> tuple[Any, ...]:
        """Its values in the columns ``KEY``."""
        return tuple(getattr(self, name) for name in self.KEY)


class Store(Generic[R]):
    """The rows of one study in ``folder``. Nothing is written before :meth:`writing`.

    Args:
        name: of the files.
        row: the type of the rows.
        notes: what the rows are made with, as JSON has it. A folder of other settings is refused;
            cells under ``recipes`` may come and go, as long as those of the same name agree.
        notes_file: where they are written; ``NAME.json`` unless given.
        same: brings notes to what has to agree.
        digits: of floats in the CSV, as a format; all of them if ``None``.
        parquet: whether to write ``NAME.parquet`` too.
        with_runs: whether rows come with a table of their runs, ``NAME-runs.csv``.
        results: further files that show that the folder holds results.
        earlier: the rows that an earlier version left in another form.

    Attributes:
        rows: by key, in the order in which they came.
        runs: the runs of all rows.
    """

    def __init__(
        self,
        folder: Path | str,
        name: str,
        row: type[R],
        notes: Mapping[str, Any],
        *,
        notes_file: str | None = None,
        same: Callable[[dict[str, Any]], Mapping[str, Any]] = dict,
        digits: str | None = "%.6g",
        parquet: bool = False,
        with_runs: bool = False,
        results: Sequence[str] = (),
        earlier: Callable[[], Sequence[R]] = tuple,
    ):
        self.folder = Path(folder)
        self.csv, self.parquet = self.folder / f"{name}.csv", self.folder / f"{name}.parquet"
        self.runs_csv, self.lock = self.folder / f"{name}-runs.csv", self.folder / f".{name}.lock"
        self.notes_path = self.folder / (notes_file or f"{name}.json")
        self.row, self.digits = row, digits
        self.notes: dict[str, Any] = json.loads(json.dumps(notes))  # as it is read
        self._same, self._results, self._earlier = same, results, earlier
        self._parquet, self._with_runs = parquet, with_runs
        self.rows: dict[tuple[Any, ...], R] = {}
        self._none = pd.DataFrame(columns=[*row.KEY, "seed", "toy_seed"])
        self.runs = self._none

    def read(self) -> "Store[R]":
        """Read what is there."""
        if self.folder.exists() and not self.folder.is_dir():
            raise GatedInterpError("folder-is-a-file", path=self.folder)
        if any(path.exists() for path in (self.csv, *map(self.folder.joinpath, self._results))):
            self._require_same()
        rows = self._read()
        self.rows = {row.names: row for row in rows}
        if len(self.rows) < len(rows) or any("" in key for key in self.rows):
            raise GatedInterpError("stored-table-row-twice", path=self.csv)
        self.runs = self._none
        if self._with_runs and rows:
            runs = read_table(self.runs_csv, self.row.KEY)
            # A command that ended between the two files left runs without their row.
            keys = runs[list(self.row.KEY)].itertuples(index=False, name=None)
            self.runs = runs[[key in self.rows for key in keys]]
        return self

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Inside, rows can be added, and no other process adds any.

        The lock ends with the process, however it ends.
        """
        with _locked(self.folder, self.lock):
            self.read()
            write_text(self.notes_path, json.dumps(self.notes, indent=2) + "\n")
            if self.rows:
                self.write()
            yield

    def append(self, row: R, runs: pd.DataFrame | None = None) -> None:
        """Add a row, and its runs, to all files."""
        before = self.rows, self.runs
        self.rows = {**self.rows, row.names: row}
        if runs is not None and len(runs):
            self.runs = pd.concat([self.runs, runs], ignore_index=True) if len(self.runs) else runs
        try:
            self.write()
        except GatedInterpError:
            self.rows, self.runs = before
            raise

    def write(self) -> None:
        """Write all files."""
        if self._with_runs:
            write_table(self.runs if len(self.runs) else self._none, self.runs_csv)
        write_table(self._in_order(), self.csv, self.digits)
        if self._parquet:
            write_whole(self.parquet, lambda p: self.frame().to_parquet(p, index=False))

    def frame(self) -> pd.DataFrame:
        """The rows as a table, sorted as they want to be."""
        table, order = self._in_order(), list(self.row.ORDER)
        return table.sort_values(order, ignore_index=True) if order else table

    def complete(self, keys: Sequence[tuple[Any, ...]]) -> bool:
        """Whether these rows are there, in every file."""
        return {*keys} <= {*self.rows} and (self.parquet.exists() or not self._parquet)

    def remove(self) -> None:
        """Leave nothing of the rows; for a study that has brought them together elsewhere."""
        self.csv.unlink(missing_ok=True)

    def _in_order(self) -> pd.DataFrame:
        kinds = self.row.columns()
        rows = [
            {n: json.dumps(v) if isinstance(v, dict | list) else v for n, v in vars(row).items()}
            for row in self.rows.values()
        ]
        table = pd.DataFrame(rows, columns=list(kinds))
        return (
            table if rows else table.astype({n: k for n, k in kinds.items() if k in (int, float)})
        )

    def _read(self) -> list[R]:
        try:
            if not self.csv.exists():
                return [*self._earlier()]
            with self.csv.open(encoding="utf-8", newline="") as file:
                header, *lines = csv.reader(file)
            # Earlier versions appended, each row with a checksum last: a kill could cut one off.
            if lines and len(lines[-1]) < len(header):
                lines.pop()
            return [self.row.of(dict(zip(header, line, strict=True))) for line in lines] or (
                self._require_columns(header)
            )
        except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
            raise GatedInterpError("stored-table-unreadable", path=self.csv) from error

    def _require_columns(self, header: Sequence[str]) -> list[R]:
        if not {*self.row.KEY} <= {*header}:
            raise ValueError("a column is missing")
        return []

    def _require_same(self) -> None:
        """Refuse results of other settings; what earlier cells were made with joins the notes."""
        try:
            there = json.loads(self.notes_path.read_text(encoding="utf-8"))
            merged = {**there[MERGED], **self.notes[MERGED]} if MERGED in self.notes else None
            found = _difference(self._same(there), self._same(self.notes))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise GatedInterpError("table-without-settings", path=self.notes_path) from error
        if found:
            name, then, now, where = found
            raise GatedInterpError(
                "results-of-another-run",
                path=self.folder,
                name=name,
                then=then,
                now=now,
                where=where,
            )
        if merged is not None:
            self.notes[MERGED] = merged


def read_table(path: Path | str, columns: Sequence[str] = ()) -> pd.DataFrame:
    """The CSV at ``path``."""
    try:
        table = pd.read_csv(path)
    except (OSError, ValueError) as error:
        raise GatedInterpError("bad-table-file", path=path) from error
    lacks = [c for c in columns if c not in table]
    if lacks:
        raise GatedInterpError("table-file-lacks-a-column", path=path, column=lacks[0])
    return table


def _value(kind: Any, value: Any) -> Any:
    """``value``, or what a CSV has written of it, as the type of its column."""
    missing = value is None or value == "" or value != value
    if isinstance(kind, UnionType):
        return None if missing else _value(get_args(kind)[0], value)
    if kind is float:
        return math.nan if missing else float(value)
    if kind is bool:
        return {"True": True, "False": False}[str(value)]
    if kind in (int, str):
        return kind(value)
    return json.loads(value) if isinstance(value, str) else value


def _difference(
    then: Mapping[str, Any], now: Mapping[str, Any], *where: str
) -> tuple[str, Any, Any, str] | None:
    """The first setting that differs: its name, both values, and in which cell."""
    for name in {**now, **then}:
        a, b = then.get(name), now.get(name)
        if isinstance(a, dict) and isinstance(b, dict):
            if name == MERGED:
                a, b = ({k: v for k, v in each.items() if k in a and k in b} for each in (a, b))
            if found := _difference(a, b, *where, name):
                return found
        elif a != b:
            return name, a, b, f" in {where[1]}" if where[:1] == (MERGED,) else ""
    return None


@contextlib.contextmanager
def _locked(folder: Path, lock: Path) -> Iterator[None]:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(lock, os.O_RDWR | os.O_CREAT)
    except OSError as error:
        raise GatedInterpError(
            "cannot-write-to-folder", path=folder, reason=error.strerror or error
        ) from error
    try:
        try:
            import fcntl

            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise GatedInterpError("folder-in-use", path=folder) from error
        except (ImportError, OSError):  # no such locks on this system
            pass
        yield
    finally:
        os.close(handle)
