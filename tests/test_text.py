"""Text: where it comes from, how it becomes tokens, and which sequences are drawn from it."""

import bz2
import json
import lzma
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from refusals import refuses

from gated_interp.core.errors import GatedInterpError
from gated_interp.tasks import encoded_text
from gated_interp.tasks.task import Task
from gated_interp.tasks.text import RepeatedText, TextTask
from gated_interp.tasks.text_files import PIECE, pieces, shipped_texts
from gated_interp.tasks.tokenizers import (
    BOS,
    read_tokenizer,
    size_of,
    token_names,
    trained_tokenizer,
)

LINES = [f"line {i} of a text, in which {i % 7} is said again\n" for i in range(200)]
TEXT = "".join(LINES)
VOCAB = 280


@pytest.fixture
def written(tmp_path):
    """A text of 200 lines, about 5,000 tokens."""
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    return path


@pytest.fixture
def task(written, tmp_path):
    return TextTask(written, n_positions=16, vocab=VOCAB, folder=tmp_path / "ids")


def decoded(task, part) -> str:
    return task.decode(task.part(part).ids)


# ---- where it comes from


def said(*sources) -> str:
    return "".join("|" if piece is None else piece for piece in pieces(map(str, sources)))


def test_files_of_every_kind_say_the_same(tmp_path):
    (tmp_path / "a.txt").write_text("one\ntwö\n", encoding="utf-8")
    (tmp_path / "a.txt.xz").write_bytes(lzma.compress("one\ntwö\n".encode()))
    (tmp_path / "a.txt.bz2").write_bytes(bz2.compress("one\ntwö\n".encode()))
    (tmp_path / "a.xz").write_bytes(lzma.compress("one\ntwö\n".encode()))
    both = json.dumps({"text": "one\ntwö\n", "id": 3}) + "\n\n" + json.dumps("three") + "\n"
    (tmp_path / "b.jsonl").write_text(both)
    (tmp_path / "b.jsonl.xz").write_bytes(lzma.compress(both.encode()))
    for name in ("a.txt", "a.txt.xz", "a.txt.bz2", "a.xz"):
        assert said(tmp_path / name) == "one\ntwö\n|"
    for name in ("b.jsonl", "b.jsonl.xz"):
        assert said(tmp_path / name) == "one\ntwö\n|three|"
    assert said(tmp_path / "a.txt", tmp_path / "b.jsonl") == "one\ntwö\n|one\ntwö\n|three|"


def test_a_folder_is_its_texts_by_path(tmp_path):
    for name in ("b.txt", "a/z.txt", "a/b/c.jsonl", "c.txt.xz"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        line = json.dumps(name) if "jsonl" in name else name
        path.write_bytes(lzma.compress(line.encode()) if name.endswith("xz") else line.encode())
    (tmp_path / "notes.md").write_text("not this")
    assert said(tmp_path) == "a/b/c.jsonl|a/z.txt|b.txt|c.txt.xz|"


def test_the_shipped_text_is_there_and_ordinary():
    assert shipped_texts() == ["austen"]
    first = next(pieces(["austen"]))
    assert first == "EMMA\n"
    n = sum(len(piece) for piece in pieces(["austen"]) if piece)
    assert n == 4_012_029


def test_a_line_without_end_comes_in_pieces(tmp_path):
    path = tmp_path / "long.txt"
    path.write_text("x" * (3 * PIECE + 5))
    assert [len(p) for p in pieces([str(path)]) if p] == [PIECE, PIECE, PIECE, 5]


class Rows(list):
    column_names = ("text", "id")


def test_a_dataset_by_name(monkeypatch):
    datasets = pytest.importorskip("datasets")
    asked = []

    def load_dataset(*args, **kwargs):
        asked.append((args, kwargs))
        return Rows([{"text": "one\ntwo"}, {"text": "three"}])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert said("datasets:someone/stories:small:test") == "one\ntwo|three|"
    assert said("datasets:someone/stories") == "one\ntwo|three|"
    assert asked == [
        (("someone/stories", "small"), {"split": "test"}),
        (("someone/stories", None), {"split": "train"}),
    ]
    monkeypatch.setattr(Rows, "column_names", ("story",))
    with refuses("dataset-without-text"):
        said("datasets:someone/stories")


def test_a_dataset_without_network_or_library(monkeypatch):
    datasets = pytest.importorskip("datasets")

    def load_dataset(*_, **__):
        raise ConnectionError("Couldn't reach the hub.\nmore")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with refuses("dataset-unavailable"):
        said("datasets:someone/stories")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with refuses("datasets-package-missing"):
        said("datasets:someone/stories")


# ---- the tokenizer


def test_every_byte_comes_back(task):
    odd = "naïve \x00 \U0001f600 …\r\n\t<|"
    assert task.decode(task.encode(odd)) == odd
    assert task.decode(task.part("train").ids[1:40]) in TEXT


def test_merges_are_the_commonest_pairs():
    """By hand: in "ab ab ab ac" the pair a b is commonest, then the space before it."""
    tokenizer = read_tokenizer(trained_tokenizer([" ab ab ab ac"], 259))
    names = token_names(tokenizer)
    assert names[0] == BOS
    assert names[257:] == [" a", " ab"]
    assert size_of(tokenizer) == 259
    assert len(set(names)) == 259


TRAIN = """
import hashlib, sys
from gated_interp.tasks.tokenizers import trained_tokenizer
lines = [f"line {i} of a text, in which {i % 7} is said again\\n" for i in range(200)]
print(hashlib.sha256(trained_tokenizer(lines, 300).encode()).hexdigest())
"""


@pytest.mark.slow
def test_two_processes_train_the_same_tokenizer():
    found = {
        subprocess.run(
            [sys.executable, "-c", TRAIN], capture_output=True, text=True, check=True
        ).stdout
        for _ in range(2)
    }
    assert len(found) == 1


def test_the_tokenizer_sees_the_train_part_only(tmp_path):
    """The end of the text is full of a word that no merge knows."""
    path = tmp_path / "text.txt"
    path.write_text(TEXT + ("zyx " * 20 + "\n") * 10)
    task = TextTask(path, n_positions=8, vocab=400, folder=tmp_path / "ids")
    assert "zy" in decoded(task, "test")
    assert not any("zy" in name or "yx" in name for name in task.token_names)


def test_a_tokenizer_from_a_file_is_used_as_it_is(written, tmp_path):
    given = trained_tokenizer(["another text altogether"], 270)
    (tmp_path / "tokenizer.json").write_text(given)
    for source in (given, tmp_path / "tokenizer.json", tmp_path):
        task = TextTask(written, 16, source, folder=tmp_path / "ids")
        assert task.tokenizer == given
        assert task.d_vocab == 270
        assert decoded(task, "train").startswith(BOS + LINES[0])


# ---- parts and ids


def test_the_parts_are_the_whole_text_in_order(task):
    parts = [decoded(task, part) for part in ("train", "validation", "test")]
    assert "".join(parts) == BOS + TEXT
    assert all(part.endswith("\n") for part in parts)
    shares = np.array([len(part) for part in parts]) / len(TEXT)
    assert np.abs(shares - [0.9, 0.05, 0.05]).max() < 0.01


def test_every_document_begins_with_its_token(tmp_path):
    path = tmp_path / "docs.jsonl"
    path.write_text("".join(json.dumps(f"document {i}, no end") + "\n" for i in range(100)))
    task = TextTask(path, n_positions=8, vocab=VOCAB, folder=tmp_path / "ids")
    whole = "".join(decoded(task, part) for part in ("train", "validation", "test"))
    assert whole == "".join(f"{BOS}document {i}, no end" for i in range(100))


def test_ids_are_mapped_and_as_small_as_they_can_be(task, tmp_path):
    ids = task.part("train").ids
    assert isinstance(ids, np.memmap)
    assert ids.dtype == np.uint16
    assert not ids.flags.writeable
    (folder,) = (p for p in (tmp_path / "ids").iterdir() if p.is_dir())
    assert {p.name for p in folder.iterdir()} == {"train.npy", "validation.npy", "test.npy"}


def test_large_vocabularies_take_four_bytes(written, tmp_path, monkeypatch):
    monkeypatch.setattr(encoded_text, "size_of", lambda tokenizer: 2**16 + 1)
    task = TextTask(written, n_positions=16, vocab=VOCAB, folder=tmp_path / "ids")
    assert task.part("train").ids.dtype == np.uint32


def test_a_text_is_encoded_once(written, tmp_path, monkeypatch):
    first = TextTask(written, n_positions=16, vocab=VOCAB, folder=tmp_path / "ids")
    monkeypatch.setattr(encoded_text, "_write", None)
    encoded_text.encoded.cache_clear()
    again = TextTask(written, n_positions=16, vocab=VOCAB, folder=tmp_path / "ids")
    assert again == first
    assert len(again.part("test").ids) > 15


def test_the_folder_can_be_named_by_the_environment(written, tmp_path, monkeypatch):
    monkeypatch.setenv("GATED_INTERP_CACHE", str(tmp_path / "there"))
    TextTask(written, n_positions=16, vocab=VOCAB)
    assert any((tmp_path / "there").iterdir())


def test_how_much_is_encoded_at_once_changes_nothing(written, tmp_path, monkeypatch):
    one = TextTask(written, n_positions=16, vocab=VOCAB, folder=tmp_path / "one")
    monkeypatch.setattr(encoded_text, "AT_ONCE", 100)
    encoded_text.encoded.cache_clear()
    other = TextTask(written, n_positions=16, vocab=VOCAB, folder=tmp_path / "other")
    for part in ("train", "validation", "test"):
        assert (one.part(part).ids == other.part(part).ids).all()


def peak(path: Path, folder: Path, tokenizer: str) -> int:
    """Bytes that Python held at most while it encoded ``path``."""
    encoded_text.encoded.cache_clear()
    tracemalloc.start()
    try:
        TextTask(path, 16, tokenizer, folder=folder).part("train").ids  # noqa: B018
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_memory_does_not_grow_with_the_text(tmp_path, monkeypatch):
    monkeypatch.setattr(encoded_text, "AT_ONCE", 2**14)
    tokenizer = trained_tokenizer(LINES, VOCAB)
    peaks = []
    for times in (8, 64):
        path = tmp_path / f"{times}.txt"
        path.write_text(TEXT * times)
        peaks.append(peak(path, tmp_path / str(times), tokenizer))
    assert peaks[1] < 1.5 * peaks[0] + 10_000
    assert peaks[1] < (tmp_path / "64.txt").stat().st_size


# ---- sequences


def test_it_is_a_task(task):
    assert isinstance(task, Task)
    assert isinstance(task.part("test"), Task)


def test_a_batch_is_a_function_of_its_seed(task, written, tmp_path):
    tokens = task.sample(7, seed=3).tokens
    assert tokens.shape == (7, 16)
    assert tokens.dtype == torch.int64
    assert (task.sample(7, seed=3).tokens == tokens).all()
    assert (task.sample(7, seed=4).tokens != tokens).any()
    other = TextTask(written, n_positions=16, vocab=VOCAB, folder=tmp_path / "elsewhere")
    assert (other.sample(7, seed=3).tokens == tokens).all()
    before = torch.get_rng_state()
    task.sample(7, seed=3)
    assert (torch.get_rng_state() == before).all()


def test_sequences_are_stretches_of_their_part_from_anywhere(task):
    ids = task.part("validation").ids
    windows = {tuple(ids[i : i + 15]): i for i in range(len(ids) - 14)}
    tokens = task.part("validation").sample(3000, seed=0).tokens
    assert (tokens[:, 0] == task.bos).all()
    starts = {windows[tuple(row)] for row in tokens[:, 1:].tolist()}
    assert min(starts) == 0
    assert max(starts) == len(ids) - 15  # the last token is reached


def test_in_order_every_token_comes_once(task):
    part = task.part("test")
    batches = list(part.in_order(batch_size=4))
    assert [len(b) for b in batches[:-1]] == [4] * (len(batches) - 1)
    together = torch.cat(batches)
    n = len(part.ids) // 15 * 15
    assert (together[:, 1:].flatten().numpy() == part.ids[:n]).all()
    assert (together[:, 0] == task.bos).all()


def test_repeated_text_repeats_a_share_of_the_sequences(task):
    part = task.part("train")
    plain = part.sample(400, seed=5).tokens
    tokens = RepeatedText(part, 0.25).sample(400, seed=5).tokens
    changed = (tokens != plain).any(1)
    assert 60 < int(changed.sum()) < 140
    for row, was in zip(tokens[changed], plain[changed], strict=True):
        periods = [n for n in range(2, 8) if bool((row[1 + n :] == row[1:-n]).all())]
        assert periods
        assert (row[1 : 1 + periods[0]] == was[1 : 1 + periods[0]]).all()
    assert (RepeatedText(part, 0.0).sample(400, seed=5).tokens == plain).all()
    with refuses("share-out-of-range", value=1.5):
        RepeatedText(part, 1.5)


# ---- bad input


def bad_inputs(folder: Path) -> dict[str, tuple[dict, str]]:
    """By name: what is given, and what the sentence says."""
    files = {
        "good.txt": TEXT.encode(),
        "empty.txt": b"",
        "empty.jsonl": b"\n\n",
        "latin.txt": TEXT.encode() + "caf\xe9\n".encode("latin-1"),
        "short.txt": b"too short\n" * 3,
        "cut.txt.xz": lzma.compress(TEXT.encode())[:-9],
        "cut.txt.bz2": bz2.compress(TEXT.encode())[:-9],
        "no.xz": b"not packed at all",
        "no.bz2": b"not packed at all",
        "bad.jsonl": b'{"text": "fine"}\n{"text": \n',
        "none.jsonl": b'{"story": "fine"}\n',
        "half.jsonl": b'{"text": "\\ud800"}\n',
        "broken.json": b"{}",
    }
    for name, data in files.items():
        (folder / name).write_bytes(data)
    (folder / "bare").mkdir()
    good, here = folder / "good.txt", str(folder)
    return {
        "missing": ({"text": here + "/gone.txt"}, "no-such-text"),
        "nothing": ({"text": []}, "no-text-given"),
        "empty": ({"text": here + "/empty.txt"}, "file-empty"),
        "no lines": ({"text": here + "/empty.jsonl"}, "file-empty"),
        "latin": ({"text": here + "/latin.txt"}, "not-utf8"),
        "short": ({"text": here + "/short.txt"}, "text-too-short"),
        "cut": ({"text": here + "/cut.txt.xz"}, "not-packed"),
        "cut bz2": ({"text": here + "/cut.txt.bz2"}, "not-packed"),
        "not bz2": ({"text": here + "/no.bz2"}, "not-packed"),
        "not xz": ({"text": here + "/no.xz"}, "not-packed"),
        "no JSON": ({"text": here + "/bad.jsonl"}, "line-not-json"),
        "no text": ({"text": here + "/none.jsonl"}, "line-without-text"),
        "surrogate": ({"text": here + "/half.jsonl"}, "half-a-surrogate-pair"),
        "bare folder": ({"text": here + "/bare"}, "folder-without-text"),
        "tiny vocabulary": ({"text": good, "vocab": 100}, "vocab-too-small"),
        "one position": ({"text": good, "n_positions": 1}, "not-a-whole-number"),
        "no tokenizer": (
            {"text": good, "vocab": None, "tokenizer": here + "/gone.json"},
            "cannot-read-tokenizer",
        ),
        "broken tokenizer": (
            {"text": good, "vocab": None, "tokenizer": here + "/broken.json"},
            "bad-tokenizer",
        ),
        "two sizes": (
            {"text": good, "tokenizer": trained_tokenizer(["abc"], 257)},
            "vocab-contradicts-tokenizer",
        ),
        "another text": ({"text": good, "digest": "0" * 64}, "text-changed"),
    }


@pytest.mark.parametrize("case", [
    "missing", "nothing", "empty", "no lines", "latin", "short", "cut", "not xz",
    "no JSON", "no text", "surrogate", "bare folder", "tiny vocabulary", "one position",
    "no tokenizer", "broken tokenizer", "two sizes", "another text",
])  # fmt: skip
def test_bad_input_gets_a_sentence_and_nothing_is_written(case, tmp_path):
    given, code = bad_inputs(tmp_path)[case]
    settings = {"n_positions": 16, "vocab": VOCAB, "folder": tmp_path / "ids", **given}
    with refuses(code) as refused:
        TextTask(**settings)
    sentence = str(refused.value)
    assert sentence.endswith(".")
    assert "\n" not in sentence
    assert not list(tmp_path.glob("ids/*"))


def test_a_damaged_cache_says_what_to_delete(task, tmp_path):
    (folder,) = (p for p in (tmp_path / "ids").iterdir() if p.is_dir())
    (folder / "test.npy").write_bytes((folder / "test.npy").read_bytes()[:-7])
    encoded_text.encoded.cache_clear()
    with refuses("text-cache-damaged"):
        task.opened()


def test_a_text_that_went_or_changed_is_refused_when_it_is_read(task, written):
    written.write_text(TEXT.replace("again", "never"))
    encoded_text.encoded.cache_clear()
    assert task.decode(task.encode("said again")) == "said again"
    with refuses("text-changed"):
        task.sample(1, 0)
    written.unlink()
    with refuses("no-such-text"):
        task.sample(1, 0)


@pytest.mark.parametrize(
    "fields",
    [
        {"text": "austen"},
        {"text": [3]},
        {"tokenizer": "/etc/hostname"},
        {"tokenizer": "{}"},
        {"digest": ""},
        {"digest": "x"},
        {"n_positions": 0},
        {"n_positions": 1.0},
    ],
)
def test_what_a_file_says_of_a_text_is_checked(fields, task):
    good = {
        "text": list(task.text),
        "n_positions": 16,
        "tokenizer": task.tokenizer,
        "digest": task.digest,
    }
    assert TextTask.stored(**good) == task
    with pytest.raises(GatedInterpError):
        TextTask.stored(**{**good, **fields})


def test_a_tokenizer_without_text_cannot_be_sampled(task):
    bare = TextTask.stored([], 16, task.tokenizer, "")
    assert bare.d_vocab == VOCAB
    assert repr(bare) == "TextTask(no text, 280 tokens, 16 positions)"
    with refuses("text-not-included"):
        bare.sample(1, 0)
