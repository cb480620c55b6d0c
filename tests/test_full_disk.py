"""A disk that is full: one sentence, no half file, nothing lost that was written before."""

import errno
import os
import resource
import subprocess
import sys
from dataclasses import dataclass, replace
from typing import ClassVar

import pandas as pd
import pytest
from commands import cli, one_sentence
from refusals import refuses, says
from test_sweep import a_row, config, run

from gated_interp.analysis.verdict import verdict
from gated_interp.checkpoints.checkpoint import save
from gated_interp.core.files import write_text, write_whole
from gated_interp.experiments import originals, paper, study, sweep
from gated_interp.experiments.seeds import MEASURES, GatedOutcome, ToyOutcome
from gated_interp.experiments.store import Row, Store
from gated_interp.models.analytic import manual_model
from gated_interp.models.toy import ToyConfig
from gated_interp.replacements.gated_attention import GatedAttention
from gated_interp.replacements.splice import splice
from gated_interp.tasks.skip_trigrams import SkipTrigramTask
from gated_interp.training.config import TrainConfig
from gated_interp.training.loop import train_model

TOY = ToyConfig(n_trigrams=3, n_heads=2)


def pour_into(file):
    while file.write(b"x" * 4096):
        pass


class Disk:
    """A file system of a megabyte."""

    def __init__(self, path):
        self.path = path

    def fill(self):
        """Take all room."""
        with (
            (self.path / "filler").open("wb", buffering=0) as file,
            pytest.raises(OSError, match="No space left"),
        ):
            pour_into(file)

    def files(self):
        found = (p for p in self.path.rglob("*") if p.is_file() and p.name != "filler")
        return sorted(str(p.relative_to(self.path)) for p in found)


@pytest.fixture
def disk(tmp_path):
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    try:
        if subprocess.run(mount, capture_output=True).returncode:
            pytest.skip("no file system may be mounted here")
    except FileNotFoundError:
        pytest.skip("nothing mounts file systems here")
    yield Disk(folder)
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_what_stood_there_stays(disk):
    path = write_text(disk.path / "a.txt", "the old text")
    disk.fill()
    with refuses("disk-full", path=str(path), reason="No space left on device"):
        write_text(path, "y" * 10_000)
    assert path.read_text() == "the old text"
    assert disk.files() == ["a.txt"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO])
@pytest.mark.parametrize("when", ["writing", "syncing"])
def test_every_way_to_have_no_room_is_a_sentence(number, when, tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(number, os.strerror(number))

    if when == "syncing":
        monkeypatch.setattr(os, "fsync", fail)
    write = fail if when == "writing" else lambda p: p.write_text("x")
    code = "cannot-write" if number == errno.EIO else "disk-full"
    with refuses(code, path=str(tmp_path / "x"), reason=os.strerror(number)):
        write_whole(tmp_path / "x", write)
    assert list(tmp_path.iterdir()) == []


def test_a_training_keeps_its_last_state(disk, monkeypatch):
    path = disk.path / "toy.state"
    how = TrainConfig.toy(steps=9, batch_size=5, checkpoint_every=3)
    wanted = train_model(TOY, how, progress=False)
    filled, sample = [], SkipTrigramTask.sample

    def source(task, n, seed):
        if path.exists() and not filled:
            filled.append(disk.fill())
        return sample(task, n, seed)

    monkeypatch.setattr(SkipTrigramTask, "sample", source)
    with refuses("disk-full"):
        train_model(TOY, how, checkpoint=path, progress=False)
    assert disk.files() == ["toy.state"]
    (disk.path / "filler").unlink()
    result = train_model(TOY, how, resume=path, progress=False)
    pd.testing.assert_frame_equal(result.history, wanted.history, check_exact=True)


def test_the_largest_file_that_is_allowed_counts_too(tmp_path):
    """As RLIMIT_FSIZE sets it; needs no rights."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with refuses("disk-full", reason="File too large"):
            train_model(
                TOY, TrainConfig.toy(steps=1), checkpoint=tmp_path / "toy.state", progress=False
            )
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(tmp_path.iterdir()) == []


SHORT = ["--steps", "4", "--batch-size", "5", "--data", "fresh"]


@pytest.mark.parametrize("command", [["train-toy"], ["train-gated", "2H3ST-toy"]])
@pytest.mark.parametrize("full", ["from the start", "at the end"])
def test_training_commands_on_a_full_disk(command, full, disk, monkeypatch):
    if full == "at the end":  # the state fits, the model no longer
        from gated_interp.experiments import single

        def late(*args, **rest):
            disk.fill()
            return save(*args, **rest)

        monkeypatch.setattr(single, "save", late)
    else:
        disk.fill()
    result = cli(*command, *SHORT, "--out", disk.path / "m.safetensors", code=1)
    assert says("disk-full", one_sentence(result))
    # What would be lost is kept to go on from.
    assert disk.files() == (["m.safetensors.state"] if full == "at the end" else [])


def test_a_sweep_on_a_full_disk_keeps_its_rows(disk, monkeypatch):
    def fake(shapes, *args, **options):
        for done, key in enumerate(shapes):
            if done == 5 and len(shapes) == 12:
                disk.fill()
            yield key, [], [], 0.3

    monkeypatch.setattr(study, "train_batches", fake)
    monkeypatch.setattr(sweep, "SWEEP", replace(sweep.SWEEP, summary=lambda cell, _: a_row(cell)))
    made = config(disk.path / "s")
    with refuses("disk-full"):
        run(made)
    assert len(pd.read_csv(disk.path / "s/sweep.csv")) == 5
    pd.read_parquet(disk.path / "s/sweep.parquet")
    assert disk.files() == [f"s/{n}" for n in (".sweep.lock", "sweep.csv", "sweep.json",
                                               "sweep.parquet")]  # fmt: skip
    (disk.path / "filler").unlink()
    assert len(run(made)) == 12


@dataclass(frozen=True, kw_only=True)
class Named(Row):
    KEY: ClassVar[tuple[str, ...]] = ("name",)

    name: str
    n: int


def test_a_row_that_does_not_fit_leaves_no_half_row(tmp_path, monkeypatch):
    def fail(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    table = Store(tmp_path, "t", Named, {})
    with table.writing():
        table.append(Named(name="a", n=1))
        before = table.csv.read_bytes()
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", fail)
            with refuses("disk-full"):
                table.append(Named(name="b", n=2))
        assert table.csv.read_bytes() == before
        assert [*table.rows] == [("a",)]
        table.append(Named(name="b", n=2))
    assert [*Store(tmp_path, "t", Named, {}).read().rows] == [("a",), ("b",)]


def one_toy(heads, task, recipe, stack):
    """Toys without a training."""
    toy = manual_model(heads, task.n_trigrams).model
    return [ToyOutcome(s, toy, verdict(toy, task), 1.0, 0.1) for s in stack]


def one_run(task, recipe, stack, toys):
    """Gated runs without a training."""
    toy = toys[0].model
    model = splice(toy, 0, GatedAttention.from_attention(toy.blocks[0].attn, 2))
    measured = dict.fromkeys(MEASURES, 0.1)
    history = pd.DataFrame({"step": [0], "loss": [1.0]})
    found = verdict(toy, task)
    return [GatedOutcome(s, s, model, found, **measured, history=history) for s in stack]


def test_reproduce_on_a_full_disk(disk, monkeypatch):
    saved = []

    def full_after_one(*args, **rest):
        if saved:
            disk.fill()
        saved.append(save(*args, **rest))

    monkeypatch.setattr(originals, "train_toy_seeds", one_toy)
    monkeypatch.setattr(paper, "train_gated_seeds", one_run)
    monkeypatch.setattr(paper, "save", full_after_one)
    result = cli("reproduce", "--only", "2H3ST", "--seeds", 2, "--workers", 1,
                 "--out", disk.path / "run", code=1)  # fmt: skip
    assert says("disk-full", one_sentence(result))
    files = ["run/.parts.lock", "run/2H3ST-gated.safetensors", "run/config.json"]
    assert disk.files() == files


def test_figures_on_a_full_disk(disk, tmp_path):
    model = save(manual_model(2, 3).model, tmp_path / "manual.safetensors")
    disk.fill()
    result = cli("ablate", model, "--out", disk.path, "--format", "html", code=1)
    assert says("disk-full", result.stderr)
    assert result.stderr.count("\n") == 1
    assert disk.files() == []


@pytest.mark.parametrize(
    "args",
    [
        ["--version"],
        ["--help"],
        pytest.param(["info", "2H3ST-toy", "--json"], marks=pytest.mark.slow),
    ],
)
def test_an_output_that_is_full_is_one_sentence(args):
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "gated_interp.cli", *args]
        ended = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert ended.returncode == 1
    assert ended.stderr == "Error: No space left on device.\n"
