"""Whatever the bytes: a CheckpointError of one sentence, or a model that is what the file says.

"What the file says" is strict: saving the loaded model again gives the same tensors, bit for bit,
and the same metadata as an independent reader finds in the damaged file. So a flipped bit in a
weight gives that weight, a changed note that note; nothing is repaired, guessed or left out, but
for a config's field that the file lacks: that is its default.
"""

import contextlib
import dataclasses
import json
import struct
import tempfile
import time
from dataclasses import MISSING
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from gated_interp.checkpoints.checkpoint import load, read_info, save
from gated_interp.checkpoints.checkpoint_format import KEY
from gated_interp.core.errors import CheckpointError
from gated_interp.models.toy import ToyConfig, build_toy
from gated_interp.replacements.gated_attention import GatedAttention, GatedConfig
from gated_interp.replacements.splice import splice
from gated_interp.replacements.topk import TopKAttention, TopKConfig
from gated_interp.tasks.skip_trigrams import SkipTrigramTask

FUZZ = settings(
    max_examples=120,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
SLOWEST_LOAD = 5.0  # seconds, far above the 0.02 s that a load takes: a hang, not a slow machine

Tensors = dict[str, torch.Tensor]


def files() -> dict[str, bytes]:
    """A toy, a gated, a TopK and both kinds of published checkpoint, as bytes."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "m.safetensors"
        toy = build_toy(ToyConfig(n_trigrams=2, n_heads=3))
        block = GatedAttention(GatedConfig(d_model=6, n_heads=5, d_head=2, value_bias=False))
        made = {
            "toy": save(toy, path, notes={"seed": 3, "text": "ä"}).read_bytes(),
            "gated": save(splice(toy, 0, block), path).read_bytes(),
        }
        layer = TopKAttention.from_attention(toy.blocks[0].attn, expansion=2, k=2)
        made["topk"] = save(splice(toy, 0, layer), path).read_bytes()
    source = torch.Generator().manual_seed(0)
    shapes = dict.fromkeys(("W_Q", "W_K", "W_V"), (3, 6, 1)) | {"W_O": (3, 1, 6)}
    shapes |= dict.fromkeys(("b_Q", "b_K", "b_V"), (3, 1))
    plain = {n: torch.randn(*s, generator=source) for n, s in shapes.items()}
    gates = {f"W_gate_{x}": torch.ones(3, 6, 1) for x in "QK"}
    gates |= {f"b_gate_{x}": torch.ones(3, 1) for x in "QK"}
    prefixed = {f"attn.{n}": t for n, t in plain.items()} | {"attn.IGNORE": torch.tensor(-1e5)}
    made["published toy"] = safetensors.torch.save(prefixed)
    made["published gated"] = safetensors.torch.save(plain | gates)
    return made


FILES = files()
each_file = pytest.mark.parametrize("kind", FILES)


def header_of(data: bytes) -> dict[str, Any]:
    size = struct.unpack("<Q", data[:8])[0]
    found: dict[str, Any] = json.loads(data[8 : 8 + size])
    return found


def with_header(data: bytes, text: bytes) -> bytes:
    """``data`` with another header over the same tensors."""
    size = struct.unpack("<Q", data[:8])[0]
    return struct.pack("<Q", len(text)) + text + data[8 + size :]


def published_names(tensors: Tensors) -> Tensors:
    """Our names for the tensors of a published file, the mask value left out."""
    if any(name.startswith("attn.") for name in tensors):
        return {n.replace("attn.", "toy."): t for n, t in tensors.items() if n != "attn.IGNORE"}
    raw = ("W_V", "W_O")
    return {f"block.{'raw_' * (n in raw)}{n}": t for n, t in tensors.items()}


def with_defaults(said: dict[str, Any]) -> dict[str, Any]:
    """The metadata with what it may leave out."""
    if said["format_version"] == 2:
        said = json.loads(json.dumps(said))
        holders = [(said, "task", SkipTrigramTask), (said["model"], "config", ToyConfig)]
        holders += [(p, "config", TopKConfig) for p in said["replacements"].values()]
        for holder, name, cls in holders:
            fields = dataclasses.fields(cls)
            defaults = {f.name: f.default for f in fields if f.default is not MISSING}
            holder[name] = defaults | holder[name]
        return said
    optional = {
        part: {
            f.name: f.default
            for f in dataclasses.fields(cls)
            # Not written where nothing is rotated.
            if f.default is not MISSING and f.name != "gate_rotary"
        }
        for part, cls in (
            ("task", SkipTrigramTask), ("toy_config", ToyConfig), ("gated_config", GatedConfig)
        )
    }  # fmt: skip
    return said | {n: d | said[n] for n, d in optional.items() if said[n] is not None}


def check(folder: Path, data: bytes) -> bool:
    """The property of this file; whether ``data`` was accepted."""
    path = folder / "fuzzed.safetensors"
    path.write_bytes(data)
    begun = time.perf_counter()
    try:
        model = load(path)
    except CheckpointError as error:
        sentence = str(error)
        assert str(path) in sentence
        assert sentence.endswith(".")
        assert "\n" not in sentence
        with contextlib.suppress(CheckpointError):
            read_info(path)
        return False
    finally:
        assert time.perf_counter() - begun < SLOWEST_LOAD
    assert read_info(path) == model.info
    assert model(torch.zeros(1, 3, dtype=torch.long)).shape == (1, 3, model.cfg.d_vocab)

    again = save(model, folder / "again.safetensors").read_bytes()
    in_file, in_model = safetensors.torch.load(data), safetensors.torch.load(again)
    said = header_of(data).get("__metadata__", {})
    if KEY in said:
        now = json.loads(header_of(again)["__metadata__"][KEY])
        assert with_defaults(json.loads(said[KEY])) == now
    else:
        in_file = published_names(in_file)
    assert in_file.keys() == in_model.keys()
    for name, tensor in in_file.items():
        assert torch.equal(tensor.view(torch.int32), in_model[name].view(torch.int32)), name
        assert tensor.isfinite().all()
    return True


# ---------------------------------------------------------------- bytes


@each_file
def test_the_whole_file_is_accepted(tmp_path: Path, kind: str) -> None:
    assert check(tmp_path, FILES[kind])


@each_file
@FUZZ
@given(data=st.data())
def test_flipped_bytes(tmp_path: Path, kind: str, data: st.DataObject) -> None:
    damaged = bytearray(FILES[kind])
    place = st.integers(0, len(damaged) - 1)
    for at, flip in data.draw(st.lists(st.tuples(place, st.integers(1, 255)), min_size=1)):
        damaged[at] ^= flip
    check(tmp_path, bytes(damaged))


@each_file
def test_every_bit_of_the_header_flipped(tmp_path: Path, kind: str) -> None:
    """One bit in each byte of the first 8 and of every 5th after them, exhaustively."""
    whole = FILES[kind]
    end = 8 + struct.unpack("<Q", whole[:8])[0]
    for at in [*range(8), *range(8, end, 5)]:
        damaged = bytearray(whole)
        damaged[at] ^= 1 << (at % 7)
        check(tmp_path, bytes(damaged))


@each_file
@FUZZ
@given(data=st.data())
def test_cut_and_spliced_bytes(tmp_path: Path, kind: str, data: st.DataObject) -> None:
    whole = FILES[kind]
    a, b = (data.draw(st.integers(0, len(whole))) for _ in "ab")
    damaged = whole[:a] + data.draw(st.binary(max_size=20)) + whole[b:]
    assert check(tmp_path, damaged) <= (len(damaged) == len(whole))


@FUZZ
@given(st.binary(max_size=300))
def test_any_bytes(tmp_path: Path, damaged: bytes) -> None:
    assert not check(tmp_path, damaged)
    assert not check(tmp_path, struct.pack("<Q", len(damaged)) + damaged)


# ---------------------------------------------------------------- tensors

odd_names = st.sampled_from(["W_Q", "attn.W_Q", "W_gate_Q", "block.W_Q", "toy.b_O", "", "a\nb"])
dtypes = st.sampled_from(
    [torch.float16, torch.bfloat16, torch.float64, torch.int32, torch.bool, torch.complex64]
)
bad_numbers = st.sampled_from([float("nan"), float("inf"), -float("inf")])


@each_file
@FUZZ
@given(data=st.data())
def test_damaged_tensors(tmp_path: Path, kind: str, data: st.DataObject) -> None:
    tensors: Tensors = {n: t.clone() for n, t in safetensors.torch.load(FILES[kind]).items()}
    name = data.draw(st.sampled_from(sorted(tensors)))
    tensor = tensors.pop(name)
    damage = data.draw(st.sampled_from(["drop", "rename", "extra", "shape", "size", "type", "nan"]))
    if damage == "rename":
        tensors[data.draw(odd_names | st.text(max_size=9))] = tensor
    elif damage == "extra":
        tensors |= {name: tensor, data.draw(odd_names | st.text(max_size=9)): torch.ones(2)}
    elif damage == "shape":
        other = data.draw(st.permutations(tensor.shape)) if tensor.ndim else [1]
        tensors[name] = tensor.reshape(data.draw(st.sampled_from([other, [-1], [1, -1, 1, 1]])))
    elif damage == "size":
        tensors[name] = torch.ones(data.draw(st.lists(st.integers(0, 9), max_size=4)))
    elif damage == "type":
        tensors[name] = tensor.to(data.draw(dtypes))
    elif damage == "nan":
        tensor.view(-1)[data.draw(st.integers(0, tensor.numel() - 1))] = data.draw(bad_numbers)
        tensors[name] = tensor
    whole = safetensors.torch.load(FILES[kind])
    same = tensors.keys() == whole.keys() and all(
        t.shape == whole[n].shape and t.dtype == whole[n].dtype and bool(t.isfinite().all())
        for n, t in tensors.items()
    )
    masked = float(tensors.get("attn.IGNORE", torch.tensor(-1e5)).view(-1)[:1].sum()) <= -1e4
    accepted = check(tmp_path, safetensors.torch.save(tensors, saved_metadata(kind)))
    assert accepted == (same and masked)


def saved_metadata(kind: str) -> dict[str, str] | None:
    return header_of(FILES[kind]).get("__metadata__")


# ---------------------------------------------------------------- metadata

scalars = (
    st.none()
    | st.booleans()
    | st.integers(-3, 12)
    | st.sampled_from([2**31, 2**63 - 1, 2**63, -(10**30), 10**400, 1e-320, 1e38, 1e300, -0.0])
    | st.floats(allow_nan=True)
    | st.sampled_from(["clamp", "relu", "all", "toy", "gated", "1", "", "\ud800"])
    | st.text(max_size=5)
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)


def places(said: Any, here: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Every path of keys into nested dictionaries."""
    if not isinstance(said, dict):
        return [here] if here else []
    found = [here] if here else []
    for key, value in said.items():
        found += places(value, (*here, key))
    return found


@pytest.mark.parametrize("kind", ["toy", "gated", "topk"])
@FUZZ
@given(data=st.data())
def test_damaged_metadata(tmp_path: Path, kind: str, data: st.DataObject) -> None:
    metadata = saved_metadata(kind)
    assert metadata is not None
    said = json.loads(metadata[KEY])
    for _ in range(data.draw(st.integers(1, 3))):
        *folders, last = data.draw(st.sampled_from(places(said)))
        holder = said
        for folder in folders:
            holder = holder[folder]
        how = data.draw(st.sampled_from(["value", "value", "drop", "add"]))
        if how == "drop":
            del holder[last]
        else:
            key = last if how == "value" else data.draw(st.text(max_size=5))
            holder[key] = data.draw(values)
    tensors = safetensors.torch.load(FILES[kind])
    check(tmp_path, safetensors.torch.save(tensors, {KEY: json.dumps(said)}))


@pytest.mark.parametrize("kind", ["toy", "gated", "topk"])
@FUZZ
@given(text=st.text(max_size=40) | values.map(json.dumps))
@example(text="[" * 100_000)
@example(text='{"format_version": 1, "format_version": 1}')
def test_any_metadata(tmp_path: Path, kind: str, text: str) -> None:
    tensors = safetensors.torch.load(FILES[kind])
    header = header_of(FILES[kind]) | {"__metadata__": {KEY: text}}
    assert not check(tmp_path, with_header(FILES[kind], json.dumps(header).encode()))
    assert not check(tmp_path, safetensors.torch.save(tensors, {"other": "metadata"}))


# ---------------------------------------------------------------- the header's numbers

numbers = st.integers(-1, 9) | st.sampled_from([2**31, 2**32 + 3, 2**62, 2**63, 2**64 - 1, 2**64])


@each_file
@FUZZ
@given(data=st.data())
def test_absurd_sizes_in_the_header(tmp_path: Path, kind: str, data: st.DataObject) -> None:
    header = header_of(FILES[kind])
    name = data.draw(st.sampled_from(sorted(set(header) - {"__metadata__"})))
    field = data.draw(st.sampled_from(["shape", "data_offsets"]))
    before = header[name][field]
    header[name][field] = data.draw(st.lists(numbers, max_size=4))
    accepted = check(tmp_path, with_header(FILES[kind], json.dumps(header).encode()))
    assert accepted == (header[name][field] == before)
