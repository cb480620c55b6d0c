"""What a killed process was writing is cleared away by whoever writes there next."""

import os
import signal
import subprocess
import sys
import time

import pandas as pd
import pytest

from gated_interp.core import files
from gated_interp.core.files import write_folder, write_table, write_text

KINDS = {
    "a text": (write_text, "notes.json", "x"),
    "a table": (write_table, "runs-of-all.csv", pd.DataFrame({"a": [1]})),
    "a folder": (write_folder, "ids", lambda folder: (folder / "part").write_text("x")),
    "no suffix": (write_text, "LICENSE", "x"),
    "a long name": (write_text, "ä" * 100 + ".txt", "x"),
}
# Writes half and is killed, by itself.
KILLED = """
import os, signal, sys
from gated_interp.core.files import write_folder, write_whole
def half(path):
    (path / "half" if path.is_dir() else path).write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
(write_folder if sys.argv[2] else write_whole)(sys.argv[1], half)
"""


def killed(path, folder=False):
    ended = subprocess.run([sys.executable, "-c", KILLED, str(path), "yes" if folder else ""])
    assert ended.returncode == -signal.SIGKILL


@pytest.mark.parametrize("kind", KINDS)
def test_the_next_to_write_there_clears_what_was_left(kind, tmp_path):
    write, name, content = KINDS[kind]
    killed(tmp_path / name, folder=kind == "a folder")
    (left,) = os.listdir(tmp_path)
    assert left.startswith(".")
    write_text(tmp_path / "another.md", "x")
    assert os.listdir(tmp_path) == ["another.md"]
    killed(tmp_path / name, folder=kind == "a folder")
    write(content, tmp_path / name) if kind == "a table" else write(tmp_path / name, content)
    assert sorted(os.listdir(tmp_path)) == sorted(["another.md", name])


def test_what_somebody_still_writes_stays(tmp_path):
    """Another process, this one, and one elsewhere; and what only looks like it."""
    sleeping = "import sys, time; from gated_interp.core.files import write_whole\n"
    sleeping += "write_whole(sys.argv[1], lambda p: time.sleep(600))"
    with subprocess.Popen([sys.executable, "-c", sleeping, str(tmp_path / "far.csv")]) as other:
        try:
            end = time.monotonic() + 300
            while not os.listdir(tmp_path) and time.monotonic() < end:
                time.sleep(0.02)
            (theirs,) = os.listdir(tmp_path)

            def meanwhile(mine):
                alike = [".a~b-1-c.txt", "~12345678-1-12345678-x.txt", ".notes-abcdefgh.json"]
                for name in alike:
                    (tmp_path / name).write_text("mine")
                foreign = f".x~00000000-{other.pid + 10**6}-00000000-abc.csv"
                (tmp_path / foreign).write_text("")
                write_text(tmp_path / "b.txt", "x")
                there = set(os.listdir(tmp_path))
                assert {*alike, foreign, theirs, mine.name, "b.txt"} == there
                mine.write_text("done")

            files.write_whole(tmp_path / "a.txt", meanwhile)
        finally:
            other.kill()
    write_text(tmp_path / "c.txt", "x")
    assert theirs not in os.listdir(tmp_path)


def test_a_process_of_the_same_number_is_not_the_same(tmp_path, monkeypatch):
    """In a container every program may be process 1."""
    seen = []
    files.write_whole(tmp_path / "a.txt", lambda p: (seen.append(p.name), p.write_text("x")))
    (tmp_path / seen[0]).write_text("half")
    monkeypatch.setattr(files, "RUN", "0" * 8)
    write_text(tmp_path / "b.txt", "x")
    assert sorted(os.listdir(tmp_path)) == ["a.txt", "b.txt"]
