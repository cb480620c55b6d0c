"""The 2024 post's own files, written here by their description, load like any checkpoint."""

from pathlib import Path

import pytest
import safetensors.torch
import torch
from closeness import assert_close
from refusals import refuses

from gated_interp.checkpoints.checkpoint import load, read_info, save
from gated_interp.core.errors import CheckpointError
from gated_interp.replacements.gated_attention import GatedConfig
from gated_interp.replacements.splice import originals
from gated_interp.tasks.skip_trigrams import SkipTrigramTask

Tensors = dict[str, torch.Tensor]


def attention(heads: int, d_model: int, d_head: int, prefix: str) -> Tensors:
    source = torch.Generator().manual_seed(3)
    shapes = dict.fromkeys(("W_Q", "W_K", "W_V"), (heads, d_model, d_head))
    shapes |= {"W_O": (heads, d_head, d_model)}
    shapes |= dict.fromkeys(("b_Q", "b_K", "b_V"), (heads, d_head))
    return {prefix + n: torch.randn(*s, generator=source) for n, s in shapes.items()}


def published_toy(heads: int = 3, d_model: int = 10, d_head: int = 1) -> Tensors:
    return attention(heads, d_model, d_head, "attn.") | {"attn.IGNORE": torch.tensor(-1e5)}


def published_gated(heads: int = 5, d_model: int = 8) -> Tensors:
    source = torch.Generator().manual_seed(4)
    gates = {f"W_gate_{x}": torch.randn(heads, d_model, 1, generator=source) for x in "QK"}
    gates |= {f"b_gate_{x}": torch.randn(heads, 1, generator=source) for x in "QK"}
    return attention(heads, d_model, 1, "") | gates


def written(path: Path, tensors: Tensors) -> Path:
    path.write_bytes(safetensors.torch.save(tensors))
    return path


@pytest.mark.parametrize("d_head", [1, 3])
def test_a_published_toy_is_what_its_formulas_say(tmp_path: Path, d_head: int) -> None:
    t = published_toy(d_head=d_head)
    model = load(written(tmp_path / "toy.st", t))
    assert model.task == SkipTrigramTask(4, 11)
    assert (model.info.kind, model.info.format, model.model_name) == ("toy", "published", "toy")
    tokens = torch.tensor([[9, 0, 4, 8, 2]])
    x = torch.eye(10)[tokens[0]]
    expected = x.clone()
    for h in range(3):
        q, k, v = (x @ t[f"attn.W_{p}"][h] + t[f"attn.b_{p}"][h] for p in "QKV")
        scores = q @ k.T / d_head**0.5
        scores[torch.ones(5, 5).triu(1).bool()] = t["attn.IGNORE"]
        expected += scores.softmax(-1) @ v @ t["attn.W_O"][h]
    assert_close(model(tokens)[0], expected)


def test_a_published_gated_block_is_what_its_formulas_say(tmp_path: Path) -> None:
    t = published_gated()
    model = load(written(tmp_path / "block.st", t))
    block = model.blocks[0].attn
    assert block.config == GatedConfig.reference(8, 5)
    assert torch.equal(block.raw_W_V, t["W_V"])
    assert torch.equal(block.raw_W_O, t["W_O"])
    assert (model.task, model.toy_config) == (SkipTrigramTask(3, 11), None)
    assert originals(model) == {}

    tokens = torch.tensor([[7, 0, 3, 6, 2]])
    x = torch.eye(8)[tokens[0]]
    expected = x.clone()
    for h in range(5):
        q, k = (x @ t[f"W_{p}"][h] + t[f"b_{p}"][h] for p in "QK")
        scores = q @ k.T
        scores[torch.ones(5, 5).triu(1).bool()] = -1e5
        gate_q, gate_k = (x @ t[f"W_gate_{p}"][h] + t[f"b_gate_{p}"][h] for p in "QK")
        gate = (gate_q @ gate_k.T).clamp(0, 1)
        v = x @ (t["W_V"][h] / t["W_V"][h].norm()) + t["b_V"][h]
        expected += gate * scores.softmax(-1) @ v @ (t["W_O"][h] / t["W_O"][h].norm())
    assert_close(model(tokens)[0], expected)


@pytest.mark.parametrize("tensors", [published_toy(), published_gated()], ids=["toy", "gated"])
def test_saved_again_it_is_the_same_model_in_our_format(tmp_path: Path, tensors: Tensors) -> None:
    model = load(written(tmp_path / "theirs.st", tensors))
    again = load(save(model, tmp_path / "ours.safetensors"))
    assert again.info.format == "gated_interp 1"
    assert again.info.to_json() == model.info.to_json()
    for name, value in model.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name


def drop(tensors: Tensors, name: str) -> Tensors:
    return {n: t for n, t in tensors.items() if n != name}


REFUSED = {
    "toy without W_Q": (drop(published_toy(), "attn.W_Q"), "published-tensor-missing"),
    "toy without b_V": (drop(published_toy(), "attn.b_V"), "tensor-missing"),
    "toy without mask": (drop(published_toy(), "attn.IGNORE"), "tensor-missing"),
    "toy with b_O": (published_toy() | {"attn.b_O": torch.zeros(10)}, "tensor-unexpected"),
    "block without gate": (drop(published_gated(), "W_gate_K"), "tensor-missing"),
    "block without W_Q": (drop(published_gated(), "W_Q"), "published-tensor-missing"),
    "block with more": (published_gated() | {"IGNORE": torch.zeros(())}, "tensor-unexpected"),
    "toy and block": (published_toy() | published_gated(), "tensor-unexpected"),
    "odd width": (published_toy(d_model=9), "published-tensor-wrong-shape"),
    "no trigram": (published_toy(d_model=2), "published-tensor-wrong-shape"),
    "too wide": (
        {"attn.W_Q": torch.zeros(1, 5000, 1)},
        "number-beyond-limit",
    ),
    "misshapen": (
        published_toy() | {"attn.W_O": torch.zeros(3, 10, 1)},
        "tensor-wrong-shape",
    ),
    "no mask": (published_toy() | {"attn.IGNORE": torch.tensor(0.0)}, "bad-mask-value"),
    "NaN": (published_gated() | {"b_gate_Q": torch.full((5, 1), torch.nan)}, "tensor-not-finite"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_spoilt_published_file_is_refused(tmp_path: Path, case: str) -> None:
    tensors, code = REFUSED[case]
    path = written(tmp_path / "m.st", tensors)
    with refuses(code, CheckpointError) as refused:
        load(path)
    assert str(path) in str(refused.value)


def test_info_reads_a_published_file(tmp_path: Path) -> None:
    info = read_info(written(tmp_path / "m.st", published_gated()))
    assert (info.kind, info.n_parameters) == ("gated", 5 * (6 * 8 + 5))


@pytest.mark.parametrize("only", ["W_gate_Q", "W_gate_K"])
def test_one_gate_is_enough_to_recognise_a_published_block(tmp_path: Path, only: str) -> None:
    other = {"W_gate_Q": "W_gate_K", "W_gate_K": "W_gate_Q"}[only]
    path = written(tmp_path / "m.st", drop(published_gated(), other))
    with refuses("tensor-missing", CheckpointError):
        load(path)
