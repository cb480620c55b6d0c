"""Sweeps: the grid, the table that survives kills, resuming, refusals, processes and clusters."""

import contextlib
import fcntl
import itertools
import json
import math
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import pandas as pd
import pytest
from commands import invoke
from refusals import refuses

from gated_interp.core.errors import GatedInterpError
from gated_interp.experiments import study, sweep
from gated_interp.experiments.backends import connected
from gated_interp.experiments.grid import numbers, whole_numbers
from gated_interp.experiments.memory import cell_bytes, require_memory
from gated_interp.experiments.originals import Toys
from gated_interp.experiments.phase import run_phase
from gated_interp.experiments.recipes import Recipe
from gated_interp.experiments.seeds import train_seeds
from gated_interp.experiments.store import Row, Store
from gated_interp.experiments.study import StudyInterrupted
from gated_interp.experiments.sweep import SweepConfig, SweepRow, run_sweep
from gated_interp.metrics.intervals import wilson
from gated_interp.tasks.skip_trigrams import SkipTrigramTask

TINY = {"seeds": 2, "steps": 3, "toy_steps": 40, "n_sequences": 500}


def config(out, **changes):
    grid = {"heads": "1:2", "trigrams": "1:3", "alphas": "0.01,0.1", **TINY}
    return SweepConfig(**{**grid, "out": str(out), **changes})


def quiet(sentence):
    pass


def run(made, **options):
    return run_sweep(made, **{"workers": 1, "say": quiet, **options})


def a_row(cell):
    """A row that is quick to make."""
    row = {name: kind(1) for name, kind in SweepRow.columns().items()}
    row |= {"key": cell.key, "heads": cell.originals.heads}
    row["trigrams"] = cell.originals.trigrams
    row |= {"alpha": cell.recipe.alpha, "fvu_median": math.nan, "seconds": 0.1 + 0.2}
    return SweepRow.of(row)


@pytest.fixture
def shapes_run(monkeypatch):
    """Sweeps run nothing; what they would have run is listed here."""
    ran = []

    def fake(shapes, seeds, train, workers, on_progress):
        for key, (originals, recipe) in shapes.items():
            ran.append((originals.heads, originals.trigrams, recipe.alpha))
            yield key, [], [], 0.3

    monkeypatch.setattr(study, "train_batches", fake)
    monkeypatch.setattr(sweep, "SWEEP", replace(sweep.SWEEP, summary=lambda cell, _: a_row(cell)))
    return ran


def rows_of(made):
    """The rows of a sweep, in the order of its cells."""
    frame = run(made)
    return [frame[frame["key"] == c.key].iloc[0].to_dict() for c in made.cells()]


def contents(folder):
    return {p.name: p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def every_cell_once(out, made):
    """The CSV, the Parquet file and the config hold each cell once."""
    table = pd.read_csv(out / "sweep.csv")
    assert sorted(table["key"]) == sorted(c.key for c in made.cells())
    parquet = pd.read_parquet(out / "sweep.parquet")
    order = ["heads", "trigrams", "alpha"]
    csv = table.sort_values(order, ignore_index=True)
    pd.testing.assert_frame_equal(csv, parquet, check_exact=True)
    return parquet


# ---- the grid


@pytest.mark.parametrize(
    ("written", "found"),
    [("2:4", [2, 3, 4]), ("3", [3]), ("7,2", [2, 7]), ("1:2,2:3", [1, 2, 3]), (" 2 : 3 ", [2, 3])],
)
def test_whole_numbers_of_an_axis(written, found):
    assert whole_numbers(written, "heads") == found


@pytest.mark.parametrize(
    ("written", "code"),
    [
        ("4:2", "range-empty"),
        ("0:2", "range-too-low"),
        ("-1", "range-too-low"),
        ("", "not-a-range"),
        ("2:", "not-a-range"),
        ("2.5", "not-a-range"),
        ("a:b", "not-a-range"),
        ("1:1000000000000", "range-too-long"),
    ],
)
def test_an_axis_that_cannot_be_is_refused(written, code):
    with refuses(code) as error:
        whole_numbers(written, "heads")
    assert (error.value.fields["name"], error.value.fields["written"]) == ("heads", written)
    with refuses(code):
        SweepConfig(heads=written)


def test_alphas_of_a_grid():
    assert numbers("0.5,0.05,0.5", "alphas") == [0.05, 0.5]
    for bad in ("", "x", "-0.1", "nan", "inf", "0.1,"):
        with refuses("not-numbers", name="alphas"):
            numbers(bad, "alphas")


def test_the_cells_of_a_grid():
    cells = SweepConfig(heads="2:4", trigrams="3:6", alphas="0.05,0.2,0.5", expansion=3).cells()
    assert len(cells) == 3 * 4 * 3
    found = {(c.originals.heads, c.originals.trigrams, c.recipe.alpha) for c in cells}
    assert found == {(h, t, a) for h in (2, 3, 4) for t in (3, 4, 5, 6) for a in (0.05, 0.2, 0.5)}
    assert len({c.key for c in cells}) == 36
    assert cells[0].originals == Toys(4, 6)  # the dearest first
    assert {c.recipe.expansion for c in cells} == {3}
    assert {c.seeds for c in cells} == {64}


def test_what_decides_a_cell_is_in_its_key():
    (cell,) = SweepConfig(heads="2", trigrams="3").cells()
    keys = {cell.key}
    for change in (
        {"alphas": "0.3"}, {"seeds": 8}, {"first_seed": 1}, {"steps": 7}, {"toy_steps": 7},
        {"n_sequences": 700}, {"expansion": 2}, {"hold_fvu": False}, {"recipe": "reference"},
    ):  # fmt: skip
        (other,) = SweepConfig(heads="2", trigrams="3", **change).cells()
        keys.add(other.key)
    assert len(keys) == 10
    assert SweepConfig(heads="2", trigrams="3", out="elsewhere").cells() == [cell]


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"seeds": 0}, "config-not-positive"),
        ({"steps": -1}, "config-not-positive"),
        ({"first_seed": -2}, "config-negative"),
        ({"n_sequences": 150}, "config-batches-not-whole"),
        ({"recipe": "best"}, "config-wrong-type"),
        ({"heads": 2}, "config-wrong-type"),
    ],
)
def test_configs_that_cannot_be_are_refused(change, code):
    with refuses(code):
        SweepConfig(**change)


def test_wilson_by_hand():
    # z = 1.96: centre (1 + z^2/2) / (2 + z^2) = 0.5 for 1 of 2, half-width as in Wilson's paper.
    z = 1.959964
    half = z * math.sqrt(0.5 * 0.5 / 2 + z**2 / 16) / (1 + z**2 / 2)
    assert wilson(1, 2) == pytest.approx((0.5 - half, 0.5 + half), abs=1e-6)
    assert wilson(0, 5)[0] == 0
    with refuses("interval-of-nothing"):
        wilson(0, 0)


# ---- the table


@dataclass(frozen=True, kw_only=True)
class Small(Row):
    KEY: ClassVar[tuple[str, ...]] = ("name",)
    ORDER: ClassVar[tuple[str, ...]] = ("heads",)

    name: str
    heads: int
    fvu: float


def small_store(folder):
    return Store(folder, "t", Small, {}, digits=None, parquet=True)


def the_small(folder):
    """The rows of a folder that is known to be ours."""
    (folder / "t.json").write_text("{}")
    return small_store(folder).read()


def small_table(folder, rows=3):
    table = small_store(folder)
    with table.writing():
        for i in range(rows):
            table.append(Small(name=f"{i}e3", heads=10 - i, fvu=math.nan if i == 1 else i / 3))
    return table


def test_rows_come_back_as_they_went_in(tmp_path):
    table = small_table(tmp_path)
    again = the_small(tmp_path)
    assert [*again.rows] == [("0e3",), ("1e3",), ("2e3",)]  # a name is no number
    assert again.rows[("2e3",)] == Small(name="2e3", heads=8, fvu=2 / 3)
    assert math.isnan(again.rows[("1e3",)].fvu)
    frame = again.frame()
    assert frame["heads"].tolist() == [8, 9, 10]
    assert frame["heads"].dtype == int
    pd.testing.assert_frame_equal(frame, table.frame(), check_exact=True)
    pd.testing.assert_frame_equal(frame, pd.read_parquet(tmp_path / "t.parquet"), check_exact=True)
    again.append(Small(name="3e3", heads=7, fvu=0.1 + 0.2))
    assert the_small(tmp_path).rows[("3e3",)].fvu == 0.1 + 0.2


def test_a_table_of_an_earlier_version_is_read(tmp_path):
    """It had a checksum behind each row."""
    path = tmp_path / "t.csv"
    path.write_text("name,heads,fvu,checksum\nr0,10,0.0,0badcafe\nr1,9,,00000000\n")
    table = the_small(tmp_path)
    assert [*table.rows] == [("r0",), ("r1",)]
    table.append(Small(name="r2", heads=8, fvu=0.5))
    assert path.read_text() == "name,heads,fvu\nr0,10,0.0\nr1,9,\nr2,8,0.5\n"


def test_a_row_that_an_earlier_version_left_cut_off_is_dropped(tmp_path):
    path = tmp_path / "t.csv"
    whole = b"name,heads,fvu,checksum\nr0,10,0.25,0badcafe\n"
    last = b"r1,9,0.125,00000000\n"
    for cut in range(len(last) + 1):
        path.write_bytes(whole + last[:cut])
        kept = the_small(tmp_path).rows.values()
        both = cut >= len(b"r1,9,0.125,")  # all but its checksum is there
        assert [row.fvu for row in kept] == ([0.25, 0.125] if both else [0.25]), cut
    path.write_bytes(whole + b"\0" * 20)
    assert len(the_small(tmp_path).rows) == 1


def test_a_damaged_table_is_refused(tmp_path):
    small_table(tmp_path)
    path = tmp_path / "t.csv"
    whole = path.read_bytes()
    lines = whole.splitlines(keepends=True)
    damaged = {
        whole.replace(b"10", b"1o"): "stored-table-unreadable",
        whole.replace(b"\n1e3,9,", b"\n1e3,9"): "stored-table-unreadable",
        whole + b"\xff\xfe": "stored-table-unreadable",
        b"": "stored-table-unreadable",
        b"a,b\n1,2\n": "stored-table-unreadable",
        b"a,b\n": "stored-table-unreadable",
        whole + lines[1]: "stored-table-row-twice",
        whole + b",3,0.5\n": "stored-table-row-twice",
    }
    for data, code in damaged.items():
        path.write_bytes(data)
        with refuses(code):
            the_small(tmp_path)
        assert path.read_bytes() == data


# ---- cells


@pytest.mark.slow
def test_a_cell_says_what_its_seeds_did(tmp_path):
    made = config(tmp_path, heads="2", trigrams="1", alphas="0.01,0.4", seeds=3, toy_steps=150)
    cells = made.cells()
    rows = rows_of(made)
    for cell, row in zip(cells, rows, strict=True):
        # The toys are shared, and are what the cell alone would have trained.
        outcome = train_seeds(2, SkipTrigramTask(1), cell.recipe, [0, 1, 2])
        table, toys = outcome.table(), outcome.toy_table()
        assert row["key"] == cell.key
        assert row["gated_heads"] == 8
        assert row["seeds"] == 3
        assert row["toys_learnt"] == toys["learnt_all"].sum() > 0
        assert row["gated_runs"] == len(table) == 3
        assert row["successes"] == table["success"].sum()
        assert row["success"] == row["successes"] / 3
        assert (row["success_low"], row["success_high"]) == wilson(row["successes"], 3)
        assert row["fvu_median"] == pytest.approx(table["fvu"].median())
        assert row["l0_median"] == pytest.approx(table["l0"].median())
        assert row["seconds"] > 0
    assert rows[0]["fvu_median"] != rows[1]["fvu_median"]
    assert [r["alpha"] for r in rows] == [0.01, 0.4]


def test_a_cell_in_which_no_toy_learns_has_no_success_rate(tmp_path):
    made = config(tmp_path, heads="1", trigrams="3", alphas="0.1", toy_steps=1)
    (row,) = rows_of(made)
    assert row["toys_learnt"] == row["gated_runs"] == row["successes"] == 0
    assert row["learnt"] == 0
    for name in ("success", "success_low", "success_high", "distributed", "fvu_median"):
        assert math.isnan(row[name])


# ---- running and resuming


def test_a_sweep_fills_its_table(tmp_path):
    made = config(tmp_path / "s", heads="1:2", trigrams="1", alphas="0.1")
    seen = []
    frame = run(made, on_progress=lambda done, total: seen.append((done, total)))
    assert seen == [(n, 4) for n in range(5)]  # of each cell the toys, then the gated runs
    assert frame["heads"].tolist() == [1, 2]
    assert list(frame.columns) == list(SweepRow.columns())
    pd.testing.assert_frame_equal(frame, every_cell_once(tmp_path / "s", made))
    assert json.loads((tmp_path / "s" / "sweep.json").read_text()) == made.to_dict()


def test_a_finished_sweep_runs_nothing_again(tmp_path, shapes_run):
    made = config(tmp_path)
    first = run(made)
    assert len(shapes_run) == len(set(shapes_run)) == 12
    before, said = contents(tmp_path), []
    # Not even a cluster is asked for.
    again = run(made, say=said.append, workers="tcp://127.0.0.1:1")
    assert len(shapes_run) == 12
    assert said == ["12 of 12 cells are there already and are kept."]
    assert contents(tmp_path) == before
    pd.testing.assert_frame_equal(again, first)


def test_a_missing_row_is_run_again_and_nothing_else(tmp_path, shapes_run):
    made = config(tmp_path)
    first = run(made)
    path = tmp_path / "sweep.csv"
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-1]))
    shapes_run.clear()
    said = []
    again = run(made, say=said.append)
    assert shapes_run == [(1, 1, 0.1)]
    assert said == [
        "11 of 12 cells are there already and are kept.",
        "1H1ST, alpha 0.1: 1 of 1 are clean.",
    ]
    pd.testing.assert_frame_equal(again, first)
    every_cell_once(tmp_path, made)


def test_ctrl_c_keeps_what_is_done(tmp_path, monkeypatch, shapes_run):
    made = config(tmp_path)
    real = study.train_batches

    def interrupted(*args, **options):
        yield from itertools.islice(real(*args, **options), 4)
        raise KeyboardInterrupt

    monkeypatch.setattr(study, "train_batches", interrupted)
    with pytest.raises(StudyInterrupted, match=r"after 4 of 12 cells, which are kept"):
        run(made)
    kept = (tmp_path / "sweep.csv").read_bytes()
    monkeypatch.setattr(study, "train_batches", real)
    run(made)
    assert len(shapes_run) == len(set(shapes_run)) == 12
    assert (tmp_path / "sweep.csv").read_bytes().startswith(kept)
    every_cell_once(tmp_path, made)


def test_one_grid_may_be_written_in_two_ways(tmp_path, shapes_run):
    run(config(tmp_path, heads="1:2", alphas="0.01,0.1"))
    shapes_run.clear()
    run(config(tmp_path, heads="2,1", alphas="0.10,0.01"))
    assert shapes_run == []


@pytest.mark.slow
def test_two_processes_find_what_one_finds(tmp_path):
    frames = [
        run(config(tmp_path / str(workers), trigrams="1:2", alphas="0.1"), workers=workers)
        for workers in (1, 2)
    ]
    one, two = (f.drop(columns="seconds") for f in frames)
    pd.testing.assert_frame_equal(one, two)


# ---- refusals: one sentence, nothing overwritten


def refused(made, code, folder, **options):
    before = contents(folder) if folder.is_dir() else None
    with refuses(code) as error:
        run(made, **options)
    sentence = str(error.value)
    assert sentence.endswith(".")
    assert "\n" not in sentence
    assert (contents(folder) if folder.is_dir() else None) == before


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"heads": "1:3"}, "results-of-another-run"),
        ({"alphas": None}, "results-of-another-run"),
        ({"seeds": 5}, "results-of-another-run"),
        ({"hold_fvu": False}, "results-of-another-run"),
    ],
)
def test_a_folder_with_another_sweep_is_refused(change, words, tmp_path, shapes_run):
    run(config(tmp_path))
    refused(config(tmp_path, **change), words, tmp_path)
    assert len(shapes_run) == 12


def test_folders_that_hold_something_else_are_refused(tmp_path, shapes_run):
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.tex").write_text("years of work")
    refused(config(other), "folder-not-a-sweep", other)
    file = tmp_path / "file"
    file.write_text("x")
    refused(config(file), "folder-is-a-file", tmp_path)
    refused(config(file / "below"), "cannot-write-to-folder", tmp_path)
    damaged = tmp_path / "damaged"
    run(config(damaged))
    for text in ("{", "[]", '{"heads": 3}', '{"colour": "red"}'):
        (damaged / "sweep.json").write_text(text)
        refused(config(damaged), "table-without-settings", damaged)
    stale = tmp_path / "stale"
    run(config(stale))
    notes = (stale / "sweep.json").read_text().replace('"steps": 3', '"steps": 4')
    (stale / "sweep.json").write_text(notes)
    refused(config(stale, steps=4), "another-sweep", stale)


def test_a_folder_in_use_is_refused(tmp_path, shapes_run):
    run(config(tmp_path, alphas="0.1"))
    (tmp_path / "sweep.parquet").unlink()  # so that there is something to do
    with (tmp_path / ".sweep.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        refused(config(tmp_path, alphas="0.1"), "folder-in-use", tmp_path)
    run(config(tmp_path, alphas="0.1"))
    with (tmp_path / ".phase.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with refuses("folder-in-use"):
            run_phase(tmp_path, heads=[1], trigrams=[1], workers=1)
    assert not (tmp_path / "phase.json").exists()


def test_more_heads_than_memory_allows_are_refused(tmp_path, shapes_run):
    out = tmp_path / "s"
    refused(config(out, heads="9999"), "too-little-memory", out)
    refused(config(out, heads="1,1000000"), "too-little-memory", out)
    assert shapes_run == []
    with refuses("too-little-memory", heads=2, workers=2):
        require_memory(2, 3, Recipe(), 8, 2, 2**30)
    require_memory(2, 3, Recipe(), 8, 1, 2**30)
    require_memory(10**9, 3, Recipe(), 8, 1, None)


def test_memory_grows_with_all_that_costs_it():
    base = cell_bytes(8, 12, Recipe(), 32)
    assert cell_bytes(16, 12, Recipe(), 32) > base
    assert cell_bytes(8, 24, Recipe(), 32) > base
    assert cell_bytes(8, 12, Recipe(), 4) < base
    assert cell_bytes(8, 12, Recipe(), 3200) == base  # stacks are of bounded size
    assert cell_bytes(8, 12, Recipe(expansion=8), 32) > base


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def test_a_scheduler_that_does_not_answer_is_refused(tmp_path, monkeypatch):
    pytest.importorskip("distributed")
    monkeypatch.setattr("gated_interp.experiments.backends.CONNECT", 1)
    out = tmp_path / "s"
    for address in (f"tcp://127.0.0.1:{free_port()}", "nonsense://x", "tcp://", "127.0.0.1:x"):
        refused(config(out), "no-scheduler", out, workers=address)


def test_no_process_is_refused(tmp_path):
    out = tmp_path / "s"
    refused(config(out), "too-small", out, workers=0)


# ---- kills


def end_process(*_):
    os._exit(9)


@pytest.mark.slow
def test_a_worker_that_ends_by_itself_is_a_sentence():
    with (
        connected(2) as backend,
        refuses("worker-ended"),
    ):
        list(backend.run(end_process, [(1,), (2,), (3,)]))


def wait_for_rows(path, n, process, seconds=120):
    """Wait until the CSV holds ``n`` whole rows."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if path.exists() and path.read_bytes().count(b"\n") > n:
            return
        assert process.poll() is None, "the sweep ended by itself"
        time.sleep(0.02)
    raise AssertionError("the sweep was too slow")


SWEEP = """
import json, sys
from gated_interp.experiments.sweep import SweepConfig, run_sweep
if __name__ == "__main__":
    made = SweepConfig.from_dict(json.loads(sys.argv[1]))
    run_sweep(made, workers=int(sys.argv[2]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_a_sweep_killed_half_way_goes_on(workers, tmp_path):
    out = tmp_path / "s"
    made = config(out, heads="1:3", trigrams="1:3", alphas="0.01,0.1", steps=60, toy_steps=60)
    script = tmp_path / "main.py"
    script.write_text(SWEEP)
    process = subprocess.Popen(
        [sys.executable, script, json.dumps(made.to_dict()), str(workers)], start_new_session=True
    )
    try:
        wait_for_rows(out / "sweep.csv", 4, process)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    kept = (out / "sweep.csv").read_bytes()
    rows = kept.count(b"\n") - 1
    assert 4 <= rows < 18
    pd.read_parquet(out / "sweep.parquet")  # whole, whenever the kill came
    frame = run(made, workers=1)
    assert (out / "sweep.csv").read_bytes().startswith(kept[: kept.rindex(b"\n") + 1])
    pd.testing.assert_frame_equal(frame, every_cell_once(out, made))
    assert len(frame) == 18


@pytest.mark.slow
def test_ctrl_c_on_processes_leaves_a_table_that_resumes(tmp_path):
    out = tmp_path / "s"
    made = config(out, heads="1:3", trigrams="1:3", alphas="0.1", steps=60, toy_steps=60)
    script = tmp_path / "main.py"
    script.write_text(SWEEP)
    process = subprocess.Popen(
        [sys.executable, script, json.dumps(made.to_dict()), "2"],
        start_new_session=True,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        wait_for_rows(out / "sweep.csv", 2, process)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        _, err = process.communicate(timeout=60)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert "interrupted after" in err
    assert 2 <= len(pd.read_csv(out / "sweep.csv")) < 9
    run(made)
    every_cell_once(out, made)


# ---- a Dask cluster


@pytest.mark.slow
def test_a_cluster_of_two_loses_a_worker_and_finishes(tmp_path, cluster):
    address, _, workers = cluster(2)
    out = tmp_path / "s"
    made = config(out, heads="1:3", trigrams="1:3", alphas="0.01,0.1", steps=100, toy_steps=100)
    killed_at = []

    def rows():
        return pd.read_csv(out / "sweep.csv") if (out / "sweep.csv").exists() else []

    def kill_one(done, total):
        if len(rows()) >= 4 and not killed_at:
            workers[0].kill()
            workers[0].wait()
            killed_at.append(len(rows()))

    frame = run(made, workers=address, on_progress=kill_one)
    assert killed_at
    assert killed_at[0] < 18
    assert workers[0].returncode == -signal.SIGKILL
    assert workers[1].poll() is None
    assert len(frame) == 18
    pd.testing.assert_frame_equal(frame, every_cell_once(out, made))
    # The cluster finds what this process finds.
    here = run(config(tmp_path / "here", heads="3", trigrams="1", steps=100, toy_steps=100))
    there = frame[(frame["heads"] == 3) & (frame["trigrams"] == 1)].reset_index(drop=True)
    pd.testing.assert_frame_equal(there.drop(columns="seconds"), here.drop(columns="seconds"))


ASKING = """
import sys, time
from gated_interp.core.errors import GatedInterpError
from gated_interp.experiments.backends import connected
with connected(sys.argv[1]) as cluster:
    try:
        for found in cluster.run(divmod, [(9, 2)]):
            print(found, flush=True)
        list(cluster.run(time.sleep, [(600,)] * 3))
    except GatedInterpError as error:
        print(error)
"""


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_scheduler_that_is_lost_is_one_sentence(number, tmp_path, cluster):
    address, scheduler, _ = cluster(1)
    command = [sys.executable, "-c", ASKING, address]
    with subprocess.Popen(
        command, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as asking:
        assert asking.stdout.readline() == "(4, 1)\n"
        scheduler.send_signal(number)
        said = asking.communicate(timeout=120)[0]
    assert asking.returncode == 0
    assert said == (
        f"The connection to the Dask scheduler at {address} was lost. Finished jobs are kept. Run "
        "it again when the scheduler is back.\n"
    )


@pytest.mark.slow
def test_other_studies_run_on_a_cluster(tmp_path, cluster):
    address, *_ = cluster(1)
    tiny = {"heads": [2], "trigrams": [1], "seeds": 2, "steps": 3, "toy_steps": 150}
    there, here = (
        run_phase(tmp_path / name, workers=workers, **tiny)
        for name, workers in (("there", address), ("here", 1))
    )
    assert there["runs"].tolist() == [2]
    pd.testing.assert_frame_equal(there.drop(columns="seconds"), here.drop(columns="seconds"))


def test_a_study_is_refused_a_scheduler_that_does_not_answer(tmp_path, monkeypatch):
    pytest.importorskip("distributed")
    monkeypatch.setattr("gated_interp.experiments.backends.CONNECT", 1)
    address = f"tcp://127.0.0.1:{free_port()}"
    args = ["phase", "--heads", "1", "--trigrams", "1", "--workers"]
    for workers, words in ((address, "No Dask scheduler"), ("0", "a whole number")):
        result = invoke([*args, workers, "--out", str(tmp_path / "s")])
        assert result.exit_code > 0
        assert words in " ".join((result.output + str(result.exception)).split())
        assert not (tmp_path / "s" / "phase.csv").exists()


@pytest.mark.slow
def test_a_cluster_without_workers_is_refused(tmp_path, cluster, monkeypatch):
    monkeypatch.setattr("gated_interp.experiments.backends.FIRST_WORKER", 1)
    address, *_ = cluster(0)
    out = tmp_path / "s"
    refused(config(out), "no-dask-workers", out, workers=address)


def test_configs_travel(tmp_path):
    made = config(Path("here"))
    assert SweepConfig.from_dict(json.loads(json.dumps(made.to_dict()))) == made


def test_a_sweep_changes_fields_of_its_recipe_by_name_or_path():
    settings = {"training.lr": 0.125, "d_gate": 3, "original.steps": 70}
    recipe = SweepConfig(settings=settings, alphas="0.3").recipe_for(2, 3, 0.3)
    assert (recipe.training.lr, recipe.original.steps, recipe.alpha) == (0.125, 70, 0.3)
    assert recipe.block.config["d_gate"] == 3
    with pytest.raises(GatedInterpError) as caught:
        SweepConfig(settings={"color": "red"})
    assert "color" in str(caught.value)
