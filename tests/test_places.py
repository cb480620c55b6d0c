"""Where files go: never over an input, a device, a pipe or a socket; a link is followed."""

import json
import os
import socket
import stat

import pytest
from commands import cli, one_sentence
from refusals import refuses, says

from gated_interp.checkpoints.checkpoint import load, save
from gated_interp.core.files import kept, require_place, write_text
from gated_interp.experiments.single import history_of, state_of
from gated_interp.models.analytic import manual_model
from gated_interp.tasks.tokenizers import trained_tokenizer

TEXT = "".join(f"{i} lines of a text, {i % 5} of them again\n" for i in range(150))
FEW = ["--steps", "1", "--batch-size", "5"]
TINY = [*FEW, "--context", "8", "--d-model", "8", "--heads", "2"]


@pytest.fixture
def pipe(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    return tmp_path / "pipe"


@pytest.fixture
def listening(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # a socket's path is short
    with socket.socket(socket.AF_UNIX) as made:
        made.bind("socket")
        yield tmp_path / "socket"


@pytest.fixture
def loop(tmp_path):
    (tmp_path / "loop").symlink_to("loop")
    return tmp_path / "loop"


@pytest.mark.parametrize("kind", ["pipe", "listening", "loop"])
def test_what_is_no_file_stays(kind, request):
    path = request.getfixturevalue(kind)
    for target in (path, path.with_name("link")):
        if target != path:
            target.symlink_to(path)
        before = path.lstat()
        with refuses("not-an-ordinary-file"):
            write_text(target, "x")
        assert path.lstat() == before
        assert target.lstat().st_ino == before.st_ino or target.is_symlink()


def test_a_device_is_no_file(tmp_path):
    """One of our own, which nothing is behind."""
    device = tmp_path / "device"
    try:
        os.mknod(device, stat.S_IFCHR | 0o600, os.makedev(1, 3))
    except PermissionError:
        pytest.skip("no device may be made here")
    with refuses("not-an-ordinary-file"):
        write_text(device, "x")
    assert stat.S_ISCHR(device.stat().st_mode)


def test_a_link_leads_to_what_is_written(tmp_path):
    (tmp_path / "far").mkdir()
    target = tmp_path / "far" / "b.txt"
    for name in ("direct", "twice"):
        (tmp_path / name).symlink_to("far/b.txt" if name == "direct" else "direct")
        assert write_text(tmp_path / name, name) == tmp_path / name  # at first there is no target
        assert (tmp_path / name).is_symlink()
        assert target.read_text() == name
    assert sorted(os.listdir(tmp_path / "far")) == ["b.txt"]
    (tmp_path / "to a folder").symlink_to("far")
    with refuses("output-is-a-folder"):
        require_place(tmp_path / "to a folder")


def ways_to(path):
    """Other paths to the file: relative, through a link, through a folder's link, a second name."""
    folder = path.parent
    (folder / "link").symlink_to(path.name)
    (folder / "around").symlink_to(".")
    os.link(path, folder / "second")
    return [
        path, os.path.relpath(path), folder / "link", folder / "around" / path.name,
        folder / ".." / folder.name / path.name, folder / "second",
    ]  # fmt: skip


def test_an_input_is_kept_whatever_leads_to_it(tmp_path):
    path = write_text(tmp_path / "a.txt", "what was read")
    ways = ways_to(path)
    with kept([tmp_path / "gone", path]):
        for way in ways:
            with refuses("output-is-an-input"):
                write_text(way, "x")
        write_text(tmp_path / "c.txt", "x")
    assert path.read_text() == "what was read"
    for way in ways:
        write_text(way, str(way))
    assert path.read_text() == str(ways[-2])  # the second name has its own file now


def model_at(path):
    return save(manual_model(2, 3).model, path)


# What is read, the command, and what would be written over it.
COMMANDS = {
    "a toy": ("a.safetensors", ["train-gated", "IN", *FEW, "--out", "IN"]),
    "a toy in a folder": ("model.safetensors", ["train-gated", "FOLDER", *FEW, "--out", "IN"]),
    "a history": ("a-history.csv", ["train-gated", "IN", *FEW, "--out", "FOLDER/a.safetensors"]),
    "a text": ("a.txt", ["train-lm", "IN", *TINY, "--out", "IN"]),
    "one of two texts": ("a.txt", ["train-lm", "OTHER", "IN", *TINY, "--out", "IN"]),
    "a text in a folder": ("a.jsonl", ["train-lm", "FOLDER", *TINY, "--out", "IN"]),
    "a text as history": ("b-history.csv", ["train-lm", "IN", *TINY, "--out", "FOLDER/b.bin"]),
    "a tokenizer": ("t.json", ["train-lm", "OTHER", "--tokenizer", "IN", *TINY, "--out", "IN"]),
    "a tokenizer in a folder": (
        "tokenizer.json", ["train-lm", "OTHER", "--tokenizer", "FOLDER", *TINY, "--out", "IN"]
    ),
    "an original": ("original.safetensors", ["decompose", "IN", *FEW[:2], "--out", "FOLDER"]),
    "a block's file": ("L0-seed4.safetensors", ["decompose", "IN", "--first-seed", "4", "--seeds",
                                                "1", *FEW[:2], "--out", "FOLDER"]),
}  # fmt: skip


@pytest.mark.parametrize("case", COMMANDS)
def test_no_command_replaces_what_it_reads(case, tmp_path):
    name, words = COMMANDS[case]
    folder = tmp_path / "in"
    folder.mkdir()
    path = folder / name
    other = tmp_path / "other.txt"
    other.write_text(TEXT)
    if words[0] != "train-lm":
        model_at(path)
    elif "tokenizer" in case:
        path.write_text(trained_tokenizer([TEXT], 262))
    elif name.endswith(".jsonl"):
        path.write_text(json.dumps({"text": TEXT}) + "\n")
    else:
        path.write_text(TEXT)
    before, there = path.read_bytes(), sorted(folder.iterdir())
    places = {"IN": path, "FOLDER": folder, "OTHER": other}
    given = []
    for word in words:
        first, _, rest = word.partition("/")
        given.append(places.get(first, first) / rest if rest else places.get(word, word))
    said = one_sentence(cli(*given, code=1))
    assert says("output-is-an-input", said)
    assert path.read_bytes() == before
    assert sorted(folder.iterdir()) == there


@pytest.mark.parametrize("command", [["train-toy"], ["train-gated", "2H3ST-toy"], ["train-lm"]])
@pytest.mark.parametrize("of", [lambda p: p, history_of, state_of])
def test_no_training_begins_that_cannot_be_written(command, of, tmp_path):
    out = tmp_path / "m.safetensors"
    os.mkfifo(of(out))
    said = one_sentence(cli(*command, "--steps", 10**9, "--out", out, code=1))
    assert says("not-an-ordinary-file", said)
    assert list(tmp_path.iterdir()) == [of(out)]


def test_a_model_goes_where_a_link_leads(tmp_path):
    (tmp_path / "far").mkdir()
    (tmp_path / "m.safetensors").symlink_to("far/real.safetensors")
    cli("train-toy", *FEW, "--data", "fresh", "--out", tmp_path / "m.safetensors")
    assert (tmp_path / "m.safetensors").is_symlink()
    assert load(tmp_path / "far" / "real.safetensors").cfg.n_heads == 2


@pytest.mark.parametrize(
    "command",
    [["reproduce"], ["reproduce", "--only", "conditional"], ["sweep"], ["reliability"], ["phase"],
     ["frontier"]],
)  # fmt: skip
def test_figures_do_not_replace_the_tables_of_their_run(command, tmp_path):
    (tmp_path / "link").symlink_to("run")
    for figures in (tmp_path / "run", tmp_path / "link", tmp_path / "run" / "x" / ".."):
        result = cli(*command, "--out", tmp_path / "run", "--figures", figures, code=2)
        assert "is the run folder" in result.stderr
    assert "is the run folder" in cli("figures", tmp_path, "--out", tmp_path, code=2).stderr
