"""What the conformance matrix found, written down: a CSV, and the tables of a page of the docs.

    python tests/what_works.py
    python tests/what_works.py head_scores qk_circuit

measures every cell on all cores (some ten minutes on two), or those of some functions (of none,
where the word is no function's: then only the sentences are written anew), and writes
``figures/what-works.csv``, ``figures/what-works-sentences.csv`` and what stands in
``docs/what-works.md`` below its marks.
"""

import collections
import concurrent.futures
import dataclasses
import json
import os
import sys
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path

import pandas as pd
import torch
from conformance import RAW, REFUSED, RIGHT, ROWS_OF_MATRIX, WRONG, Outcome, outcome
from model_kinds import BLOCKS, DTYPES, FAMILIES, KINDS, SEES_POSITIONS, Column, columns

from gated_interp.core.errors import sentence

ROOT = Path(__file__).parents[1]
CELLS = ROOT / "figures" / "what-works.csv"
SENTENCES = ROOT / "figures" / "what-works-sentences.csv"
PAGE = ROOT / "docs" / "what-works.md"
ROWS = {str(row): row for row in ROWS_OF_MATRIX}
# What is varied of one kind of model: its dtype, or what stands in the place of its attention.
VARIANTS = {dtype: {"dtype": dtype} for dtype in DTYPES}
VARIANTS |= {f"{block} block": {"block": block} for block in (*BLOCKS[1:], SEES_POSITIONS)}
YES = "✓"
MARK = "<!-- {}: written by tests/what_works.py -->"
Record = dict[tuple[str, Column], Outcome]


def measured(column: Column, names: Collection[str] = ROWS.keys()) -> Record:
    """The cells of some rows in a column."""
    torch.set_num_threads(1)
    found = {}
    for name in names:
        if ROWS[name].applies(column):
            # How far right it was differs from machine to machine.
            cell = outcome(ROWS[name], column)
            found[name, column] = dataclasses.replace(cell, said="") if cell.word == RIGHT else cell
    return found


def measure(wanted: Mapping[Column, Collection[str]]) -> Record:
    """Rows of some columns, on all cores."""
    record: Record = {}
    with concurrent.futures.ProcessPoolExecutor() as pool:
        found = pool.map(measured, wanted.keys(), wanted.values())
        for i, (column, cells) in enumerate(zip(wanted, found, strict=True), 1):
            record |= cells
            print(f"{i} of {len(wanted)}: {column}", flush=True)
    return record


def in_order(record: Record) -> Record:
    """The cells that there are in the matrix, row by row."""
    every = [(name, column) for name in ROWS for column in columns()]
    return {key: record[key] for key in every if key in record and ROWS[key[0]].applies(key[1])}


def written(record: Record) -> tuple[str, str]:
    """The two CSVs: the cells, and the sentences that they name by number."""
    numbers: dict[str, int] = {}
    table: dict[tuple[str, str], dict[str, str]] = collections.defaultdict(dict)
    for (name, column), cell in in_order(record).items():
        plain = dataclasses.replace(column, dtype="float32", block="")
        variant = f"{column.block} block" if column.block else column.dtype
        number = (
            YES if cell.word == RIGHT else str(numbers.setdefault(_said(cell), len(numbers) + 1))
        )
        table[name, str(plain)][variant] = number
    rows = [
        {"function": name, "model": model, **{v: cells.get(v, "") for v in VARIANTS}}
        for (name, model), cells in table.items()
    ]
    said = [{"number": n, "code": code, "fields": json.dumps(fields)}
            for key, n in numbers.items() for code, fields in [json.loads(key)]]  # fmt: skip
    sentences = pd.DataFrame(said, columns=["number", "code", "fields"])
    cells_csv: str = pd.DataFrame(rows).to_csv(index=False, lineterminator="\n")
    return cells_csv, sentences.to_csv(index=False, lineterminator="\n")


def recorded() -> Record:
    """What the CSVs say."""
    lines = pd.read_csv(SENTENCES, dtype=str).itertuples(index=False, name=None)
    errors = {number: (code, json.loads(fields)) for number, code, fields in lines}
    plain = {str(c): c for c in columns() if c.dtype == "float32" and not c.block}
    record: Record = {}
    for line in pd.read_csv(CELLS, dtype=str, keep_default_na=False).to_dict("records"):
        for variant, changes in VARIANTS.items():
            if not line.get(variant) or line["function"] not in ROWS or line["model"] not in plain:
                continue
            column = dataclasses.replace(plain[line["model"]], **changes)
            cell = Outcome(RIGHT)
            if line[variant] != YES:
                code, fields = errors[line[variant]]
                cell = Outcome(REFUSED, json.dumps([code, fields]))
                if code in (WRONG, RAW):
                    cell = Outcome(code, fields["said"])
            record[line["function"], column] = cell
    return in_order(record)


def refused_share(record: Record, families: Iterable[str] = FAMILIES) -> float:
    """Of the cells on models of these families as they are, the share that are refusals."""
    cells = [c for (_, at), c in record.items() if at.family in families and not at.block]
    return sum(cell.word == REFUSED for cell in cells) / len(cells)


# The page.

GROUPS = {
    "Norms": ["no norm", "LN", "LNPre", "RMS", "RMSPre", "final RMS norm"],
    "Norms in other places": [
        "norm before and after",
        "norm after (OLMo 2)",
        "norm of the embedding",
        "query-key norm",
    ],
    "Heads that share keys and values, and one layer": [
        "grouped queries",
        "multi-query",
        "one layer, no norm",
    ],
    "Positions": [
        "rotary",
        "rotary, adjacent pairs",
        "rotary, partial",
        "rotary, scaled",
        "rotary, by parts",
        "ALiBi",
        "shortformer",
    ],
    "Attention scores": [
        "score soft cap",
        "clipped q, k, v",
        "log-n attention",
        "scores by inverse layer",
        "no attention scale",
    ],
    "Who attends to whom, and the output": [
        "local windows",
        "bidirectional",
        "attention sinks",
        "output soft cap",
        "fewer outputs than inputs",
    ],
}


def tables(record: Record) -> dict[str, str]:
    """What stands below each mark of the page, as Markdown."""
    numbers: dict[str, int] = {}

    def cell(found: list[Outcome]) -> str:
        """A tick, the numbers of the sentences, or both where it depends."""
        if not found:
            return "–"
        said = list(dict.fromkeys(_said(c) for c in found if c.word != RIGHT))
        links = [f"[{numbers.setdefault(s, len(numbers) + 1)}](#sentences)" for s in said]
        right = [YES] if any(c.word == RIGHT for c in found) else []
        return " ".join([*right, *links])

    def table(heads: dict[str, Callable[[Column], bool]]) -> str:
        lines = [f"| | {' | '.join(heads)} |", f"|---|{'---|' * len(heads)}"]
        for name in ROWS:
            mine = [(column, c) for (n, column), c in record.items() if n == name]
            cells = [cell([c for column, c in mine if of(column)]) for of in heads.values()]
            if any(c != "–" for c in cells):
                lines.append(f"| {_name(name)} | {' | '.join(cells)} |")
        return "\n".join(lines)

    def family(name: str) -> Callable[[Column], bool]:
        return lambda c: c.family == name and not c.block

    def kind(name: str) -> Callable[[Column], bool]:
        return lambda c: c.kind == name and not c.block and c.dtype == "float32"

    def variant(name: str) -> Callable[[Column], bool]:
        changes = VARIANTS[name]
        return lambda c: bool(c.family) and all(getattr(c, f) == v for f, v in changes.items())

    cells = [c for (_, column), c in record.items()]
    share = {word: sum(c.word == word for c in cells) for word in (RIGHT, REFUSED, WRONG, RAW)}
    of_families = refused_share(record)
    counts = (
        f"We tested {len(cells):,} cells, each of them one function on one model. {share[RIGHT]:,} "
        f"give the right numbers and {share[REFUSED]:,} refuse in a sentence. {share[WRONG]:,} "
        f"give wrong numbers and {share[RAW]:,} end in another error. On models like those of the "
        f"six families, {of_families:.1%} of the cells are refusals."
    )
    found = {"counts": counts, "families": table({n: family(n) for n in FAMILIES})}
    found["kinds"] = "\n\n".join(
        f"### {title}\n\n{table({n: kind(n) for n in names})}" for title, names in GROUPS.items()
    )
    found["variants"] = table({n: variant(n) for n in list(VARIANTS)[1:]})
    lines = [f"{n}. {_escaped(sentence(*json.loads(said)))}" for said, n in numbers.items()]
    return {**found, "sentences": "\n".join(lines)}


def _said(cell: Outcome) -> str:
    """The code and fields of a cell that is not right, as JSON."""
    return cell.said if cell.word == REFUSED else json.dumps([cell.word, {"said": cell.said}])


def _name(row: str) -> str:
    function, _, case = row.partition(": ")
    return f"`{function}`{', ' + _escaped(case) if case else ''}"


def _escaped(words: str) -> str:
    for sign in "\\*_[]|<>`":
        words = words.replace(sign, f"\\{sign}")
    return words


def page(text: str, found: dict[str, str]) -> str:
    """``text`` with what stands between each pair of marks replaced."""
    for name, words in found.items():
        start, end = MARK.format(name), MARK.format(f"end of {name}")
        before, _, rest = text.partition(start)
        _, _, after = rest.partition(end)
        text = f"{before}{start}\n\n{words}\n\n{end}{after}"
    return text


def main(again: Sequence[str]) -> None:
    """Measure, and write it all down.

    Args:
        again: functions whose cells are measured; the others are kept as they are recorded, and
            measured where they are not. None is every function.
    """
    assert {name for names in GROUPS.values() for name in names} == set(KINDS)
    record = recorded() if again and CELLS.exists() else {}
    wanted = {
        column: [
            name
            for name, row in ROWS.items()
            if row.applies(column) and (row.function in again or (name, column) not in record)
        ]
        for column in columns()
    }
    record |= measure({column: names for column, names in wanted.items() if names})
    cells, sentences = written(record)
    CELLS.write_text(cells, encoding="utf-8")
    SENTENCES.write_text(sentences, encoding="utf-8")
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8"), tables(recorded())), encoding="utf-8")
    for (name, column), cell in in_order(record).items():
        if cell.word in (WRONG, RAW):
            print(f"{cell.word}: {name} on {column}: {cell.said}")


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main(sys.argv[1:])
