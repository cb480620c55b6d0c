"""A checkpoint that names a shipped model instead of holding its weights."""

import pytest
import torch
from refusals import refuses

import gated_interp as gi
from gated_interp.core.errors import CheckpointError


@pytest.fixture(scope="module")
def gated():
    return gi.load("2H3ST-gated")


def test_blocks_alone_are_written_and_the_model_comes_back(gated, tmp_path):
    path = gi.save(gated, tmp_path / "blocks.safetensors", notes={"n": 1}, base="2H3ST-toy")
    whole = gi.save(gated, tmp_path / "whole.safetensors")
    assert gi.read_info(path).format == "gated_interp 3"
    assert all(name.startswith("replacement.") for name in gi.read_info(path).shapes)
    back, tokens = gi.load(path), gated.task.sample(20, seed=0).tokens
    assert type(back) is type(gated)
    assert (back.task, back.notes) == (gated.task, {"n": 1})
    assert torch.equal(back(tokens), gated(tokens))
    assert torch.equal(gi.unsplice(back)(tokens), gi.load("2H3ST-toy")(tokens))
    assert torch.equal(gi.GatedAttention.from_pretrained(path).W_Q, gated.blocks[0].attn.W_Q)
    # Saved again without a base it is whole again.
    gi.save(back, tmp_path / "again.safetensors")
    assert gi.read_info(tmp_path / "again.safetensors").shapes == gi.read_info(whole).shapes


def test_another_base_is_refused(gated, tmp_path):
    with refuses("another-base", base="3H4ST-toy"):
        gi.save(gated, tmp_path / "blocks.safetensors", base="3H4ST-toy")
    with refuses("no-such-model", CheckpointError):
        gi.save(gated, tmp_path / "blocks.safetensors", base="5H6ST-toy")
    assert not list(tmp_path.iterdir())


def test_a_base_that_changed_is_refused(gated, tmp_path, monkeypatch):
    path = gi.save(gated, tmp_path / "blocks.safetensors", base="2H3ST-toy")
    named = path.read_bytes().replace(b"2H3ST-toy", b"3H4ST-toy")
    path.write_bytes(named)
    with refuses("another-model-there", CheckpointError):
        gi.load(path)
