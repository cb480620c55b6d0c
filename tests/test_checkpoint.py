"""Checkpoints come back bit for bit, and whatever is not one is refused in a sentence."""

import dataclasses
import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from closeness import assert_close
from refusals import refuses
from transformer_lens import HookedTransformer, HookedTransformerConfig

from gated_interp.analysis.verdict import verdict
from gated_interp.checkpoints import checkpoint, checkpoint_format
from gated_interp.checkpoints.checkpoint import load, read_info, save, save_pretrained
from gated_interp.checkpoints.checkpoint_format import KEY
from gated_interp.core import shipped
from gated_interp.core.errors import CheckpointError
from gated_interp.models.toy import ToyConfig, build_toy
from gated_interp.replacements.gated_attention import GatedAttention, GatedConfig
from gated_interp.replacements.sae import OutputAutoencoder
from gated_interp.replacements.splice import originals, splice, unsplice
from gated_interp.replacements.standalone import standalone
from gated_interp.replacements.topk import TopKAttention
from gated_interp.tasks.skip_trigrams import SkipTrigramTask

TOKENS = torch.tensor([[7, 0, 3, 6, 2, 1, 4, 5, 0, 0, 2]])


def randomised(module: Any, seed: int) -> Any:
    """``module`` with every trained weight, zero-initialised biases too, drawn anew."""
    source = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.randn(parameter.shape, generator=source))
    return module


def a_toy(**config: Any) -> HookedTransformer:
    fields = {"n_trigrams": 3, "n_heads": 2, "seed": 5} | config
    return randomised(build_toy(ToyConfig(**fields)), seed=1)


def a_gated(toy: HookedTransformer | None = None, **config: Any) -> HookedTransformer:
    block = GatedAttention(GatedConfig(**({"d_model": 8, "n_heads": 5, "seed": 7} | config)))
    return splice(toy or a_toy(), 0, randomised(block, seed=2))


def assert_same_bits(a: Any, b: Any) -> None:
    """Two modules with the same parameters, to the last bit, training the same ones."""
    mine, theirs = dict(a.named_parameters()), dict(b.named_parameters())
    assert mine.keys() == theirs.keys()
    for name, parameter in mine.items():
        other = theirs[name]
        assert torch.equal(parameter.view(torch.int32), other.view(torch.int32)), name
        assert parameter.requires_grad == other.requires_grad, name


def parts(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The tensors and the metadata object of a file, read without the package."""
    data = path.read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    said = json.loads(data[8 : 8 + size]).get("__metadata__", {})
    return safetensors.torch.load(data), json.loads(said[KEY]) if KEY in said else {}


def write(path: Path, tensors: dict[str, torch.Tensor], said: dict[str, Any] | str | None) -> Path:
    text = said if isinstance(said, str) or said is None else json.dumps(said)
    metadata = None if text is None else {KEY: text}
    path.write_bytes(safetensors.torch.save(tensors, metadata))
    return path


# ---------------------------------------------------------------- what is saved comes back


@pytest.mark.parametrize(
    "config",
    [{}, {"d_head": 3}, {"output_bias": True}, {"n_trigrams": 5, "n_heads": 7, "n_positions": 13}],
)
def test_a_toy_comes_back_bit_for_bit(tmp_path: Path, config: dict[str, Any]) -> None:
    toy = a_toy(**config)
    path = save(toy, tmp_path / "2H3ST.safetensors", notes={"fvu": 0.25, "steps": [1, 2]})
    loaded = load(path)
    assert_same_bits(loaded, toy)
    assert torch.equal(loaded(TOKENS), toy(TOKENS))
    assert loaded.toy_config == toy.toy_config
    assert loaded.task == toy.toy_config.task
    assert loaded.notes == {"fvu": 0.25, "steps": [1, 2]}
    assert loaded.model_name == "2H3ST"
    assert loaded.info == read_info(path)
    assert loaded.info.n_parameters == sum(p.numel() for p in toy.parameters() if p.requires_grad)


GATED_OPTIONS: list[dict[str, Any]] = [
    {},
    {"d_head": 3},
    {"d_gate": 2, "n_heads": 4},
    {"value_bias": False},
    {"output_bias": True, "value_bias": False, "d_head": 3},
    {"normalize_weights": False},
    {"output_scale": 2.5, "attn_scale": 0.7},
    {"penalty_p": 1.0, "penalty_pairs": "all", "gate_bias_init": -0.25},
    {"gate": "relu"},
    {"gate": "tanh"},
    {"gate": "binary"},
    {"gate": "hard_concrete", "gate_per": "head"},
    {"gate": "bernoulli", "penalty": "expected"},
    {"gate": "open"},
]


@pytest.mark.parametrize("config", GATED_OPTIONS, ids=str)
def test_a_gated_model_and_its_original_come_back_bit_for_bit(
    tmp_path: Path, config: dict[str, Any]
) -> None:
    toy = a_toy(d_head=3)
    model = a_gated(toy, **config)
    loaded = load(save(model, tmp_path / "gated.safetensors"))
    assert_same_bits(loaded.blocks[0].attn, model.blocks[0].attn)
    assert loaded.blocks[0].attn.config == model.blocks[0].attn.config
    assert torch.equal(loaded(TOKENS), model(TOKENS))
    assert loaded.toy_config == toy.toy_config

    before = unsplice(loaded)
    assert_same_bits(before, toy)
    assert torch.equal(before(TOKENS), toy(TOKENS))
    assert not torch.equal(before(TOKENS), loaded(TOKENS))

    _, cache = loaded.run_with_cache(TOKENS)
    assert cache["blocks.0.attn.hook_gate"].shape == (1, model.cfg.n_heads, 11, 11)


def test_the_options_tested_name_every_field_of_the_block() -> None:
    """A field added to the block's config must be added to the round trip above."""
    always = {"d_model", "n_heads", "seed"}
    tried = set().union(*GATED_OPTIONS) | always
    assert tried == set(GatedConfig(d_model=8, n_heads=1).to_dict())


def test_the_verdict_of_a_loaded_model_is_that_of_the_saved_one(tmp_path: Path) -> None:
    model = a_gated()
    loaded = load(save(model, tmp_path / "m.safetensors"))
    assert verdict(loaded, loaded.task) == verdict(model, SkipTrigramTask(3))


def test_a_block_alone_comes_back_without_an_original(tmp_path: Path) -> None:
    block = randomised(GatedAttention(GatedConfig(d_model=8, n_heads=5, d_head=3)), seed=3)
    model = standalone(block, SkipTrigramTask(3, n_positions=12))
    path = save(model, tmp_path / "alone.safetensors")
    assert not any(name.startswith("toy.") for name in parts(path)[0])
    loaded = load(path)
    assert_same_bits(loaded.blocks[0].attn, block)
    assert torch.equal(loaded(TOKENS), model(TOKENS))
    # identity in, identity out: logits are the one-hot token plus what the block writes
    one_hot = torch.nn.functional.one_hot(TOKENS, 8).float()
    assert_close(loaded(TOKENS), one_hot + block(one_hot))
    assert loaded.toy_config is None
    assert originals(loaded) == {}
    assert loaded.task == SkipTrigramTask(3, n_positions=12)
    with refuses("nothing-spliced"):
        unsplice(loaded)


def test_a_block_alone_refuses_another_vocabulary() -> None:
    with refuses("block-width-mismatch", block=8, model=10):
        standalone(GatedAttention(GatedConfig(d_model=8, n_heads=2)), SkipTrigramTask(4))


def test_the_same_model_gives_the_same_bytes(tmp_path: Path) -> None:
    model = a_gated()
    first = save(model, tmp_path / "a.safetensors", notes={"a": 1, "b": 2}).read_bytes()
    again = save(load(tmp_path / "a.safetensors"), tmp_path / "b.safetensors").read_bytes()
    assert first == again
    assert first != save(model, tmp_path / "c.safetensors", notes={"a": 2}).read_bytes()


def test_notes_stay_with_the_model_they_were_written_about(tmp_path: Path) -> None:
    path = save(a_toy(), tmp_path / "toy.safetensors", notes={"loss": 1.5})
    toy = load(path)
    assert read_info(save(toy, tmp_path / "again.safetensors")).notes == {"loss": 1.5}
    assert read_info(save(a_gated(toy), tmp_path / "gated.safetensors")).notes == {}
    assert read_info(save(toy, tmp_path / "new.safetensors", notes={})).notes == {}


def test_a_folder_holds_one_model(tmp_path: Path) -> None:
    toy = a_toy()
    path = save_pretrained(toy, tmp_path / "some" / "my-toy")
    assert path == tmp_path / "some" / "my-toy" / "model.safetensors"
    loaded = load(str(path.parent))
    assert_same_bits(loaded, toy)
    assert loaded.model_name == "my-toy"


def test_info_is_read_without_the_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(a_gated(), tmp_path / "m.safetensors")
    monkeypatch.setattr(checkpoint, "read_tensors", None)
    info = read_info(path)
    assert (info.kind, info.toy_config.name, info.gated_config.n_heads) == ("gated", "2H3ST", 5)


# ---------------------------------------------------------------- an interrupted or refused save


def test_an_interrupted_save_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save(a_toy(), tmp_path / "m.safetensors")
    before = path.read_bytes()

    def interrupted(_: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save(a_gated(), path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["m.safetensors"]


def test_a_full_disk_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with refuses("disk-full"):
        save(a_toy(), tmp_path / "m.safetensors")
    assert os.listdir(tmp_path) == []


def spoilt_toy(name: str, value: float) -> HookedTransformer:
    toy = a_toy()
    with torch.no_grad():
        toy.get_parameter(name).view(-1)[0] = value
    return toy


def without_layers(n_layers: int) -> HookedTransformer:
    return HookedTransformer(
        HookedTransformerConfig(
            n_layers=n_layers, d_model=8, d_vocab=8, n_ctx=11, d_head=1, n_heads=2,
            attn_only=True, normalization_type=None, device="cpu", init_weights=False,
        ),
        move_to_device=False,
    )  # fmt: skip


UNSAVEABLE: dict[str, tuple[Callable[[], Any], str]] = {
    "another model": (lambda: without_layers(1), "cannot-save-this-model"),
    "a NaN": (lambda: spoilt_toy("blocks.0.attn.W_K", float("nan")), "tensor-not-finite"),
    "an infinity": (lambda: spoilt_toy("blocks.0.attn.b_V", float("inf")), "tensor-not-finite"),
    "an embedding": (lambda: spoilt_toy("embed.W_E", 0.5), "model-differs-from-config"),
    "an unembedding": (lambda: spoilt_toy("unembed.b_U", 0.5), "model-differs-from-config"),
    "a position": (lambda: spoilt_toy("pos_embed.W_pos", 0.5), "model-differs-from-config"),
    "a frozen bias": (lambda: spoilt_toy("blocks.0.attn.b_O", 0.5), "model-differs-from-config"),
    "doubles": (lambda: a_toy().double(), "parameter-cannot-be-saved"),
}


@pytest.mark.parametrize("case", UNSAVEABLE)
def test_what_would_not_come_back_is_not_saved(tmp_path: Path, case: str) -> None:
    make, code = UNSAVEABLE[case]
    with refuses(code):
        save(make(), tmp_path / "m.safetensors")
    assert os.listdir(tmp_path) == []


def test_a_frozen_value_bias_that_is_not_zero_is_not_saved(tmp_path: Path) -> None:
    model = a_gated(value_bias=False)
    with torch.no_grad():
        model.blocks[0].attn.b_V[0] = 1.0
    with refuses("model-differs-from-config", name="block.b_V"):
        save(model, tmp_path / "m.safetensors")


@pytest.mark.parametrize("notes", [{"fvu": float("nan")}, {"x": {1, 2}}, {"t": torch.zeros(1)}])
def test_notes_must_be_json(tmp_path: Path, notes: dict[str, Any]) -> None:
    with refuses("notes-not-json"):
        save(a_toy(), tmp_path / "m.safetensors", notes=notes)


def test_a_folder_is_not_overwritten_by_a_file(tmp_path: Path) -> None:
    with refuses("output-is-a-folder"):
        save(a_toy(), tmp_path)


# ---------------------------------------------------------------- what load refuses


Spoil = Callable[[dict[str, torch.Tensor], dict[str, Any]], Any]


def at(path: str, value: Any) -> Spoil:
    """Put ``value`` at a dotted path of the metadata."""

    def spoil(_: dict[str, torch.Tensor], said: dict[str, Any]) -> None:
        *folders, last = path.split(".")
        for folder in folders:
            said = said[folder]
        said[last] = value

    return spoil


REFUSED: dict[str, tuple[Spoil, str]] = {
    "missing": (lambda t, m: t.pop("block.W_gate_K"), "tensor-missing"),
    "missing of the toy": (lambda t, m: t.pop("toy.b_K"), "tensor-missing"),
    "extra": (lambda t, m: t.update(W_E=torch.zeros(2)), "tensor-unexpected"),
    "bias that is off": (
        lambda t, m: t.update({"block.b_O": torch.zeros(8)}),
        "tensor-unexpected",
    ),
    "misshapen": (
        lambda t, m: t.update({"block.W_Q": torch.zeros(8, 5, 1)}),
        "tensor-wrong-shape",
    ),
    "flat": (lambda t, m: t.update({"toy.b_V": torch.zeros(2)}), "tensor-wrong-shape"),
    "half": (lambda t, m: t.update({"toy.W_V": t["toy.W_V"].half()}), "tensor-wrong-type"),
    "double": (lambda t, m: t.update({"toy.W_V": t["toy.W_V"].double()}), "tensor-wrong-type"),
    "integers": (lambda t, m: t.update({"toy.W_V": t["toy.W_V"].int()}), "tensor-wrong-type"),
    "NaN": (lambda t, m: t["toy.W_O"].fill_(float("nan")), "tensor-not-finite"),
    "infinity": (lambda t, m: t["block.b_V"][1].fill_(-float("inf")), "tensor-not-finite"),
    "newer version": (
        at("format_version", 4),
        "newer-format-version",
    ),
    "older version": (
        at("format_version", 0),
        "unknown-format-version",
    ),
    "version as text": (at("format_version", "1"), "unknown-format-version"),
    "version as truth": (at("format_version", True), "unknown-format-version"),
    "no version": (lambda t, m: m.pop("format_version"), "unknown-format-version"),
    "other kind": (at("kind", "mlp"), "bad-checkpoint-kind"),
    "kind without its config": (at("gated_config", None), "gated-without-config"),
    "kind with too much": (at("kind", "toy"), "toy-with-more"),
    "unknown key": (
        at("licence", 1),
        "unknown-key",
    ),
    "lacking key": (lambda t, m: m.pop("notes"), "missing-key"),
    "notes": (at("notes", [1]), "not-a-json-object"),
    "task": (at("task", 3), "not-a-json-object"),
    "unknown task key": (at("task.language", "en"), "unknown-key"),
    "impossible task": (at("task.n_positions", 3), "not-a-whole-number"),
    "config that is a list": (at("toy_config", []), "not-a-json-object"),
    "unknown config key": (
        at("gated_config.dropout", 0),
        "unknown-key",
    ),
    "lacking config key": (
        lambda t, m: m["gated_config"].pop("n_heads"),
        "missing-key",
    ),
    "lacking task key": (lambda t, m: m["task"].pop("n_trigrams"), "missing-key"),
    "wrong type": (at("toy_config.n_heads", "2"), "config-wrong-type"),
    "impossible value": (
        at("gated_config.penalty_p", 0.0),
        "config-not-positive",
    ),
    "unknown choice": (at("gated_config.gate", "sigmoid"), "config-wrong-type"),
    "negative seed": (at("toy_config.seed", -1), "bad-seed"),
    "contradicts the shapes": (at("gated_config.n_heads", 4), "tensor-wrong-shape"),
    "contradicts the task": (
        at("gated_config.d_model", 10),
        "stored-width-mismatch",
    ),
    "toy contradicts the task": (at("toy_config.n_trigrams", 4), "stored-config-contradicts-task"),
    "positions contradict": (at("toy_config.n_positions", 12), "stored-config-contradicts-task"),
    "many positions": (
        lambda t, m: [at(f"{c}.n_positions", 10**9)(t, m) for c in ("task", "toy_config")],
        "number-beyond-limit",
    ),
    "many trigrams": (at("task.n_trigrams", 10**12), "number-beyond-limit"),
    "many heads": (at("gated_config.n_heads", 10**30), "number-beyond-limit"),
    "huge number": (at("gated_config.gate_bias_init", -1e300), "number-beyond-limit"),
    "huge whole number": (at("gated_config.output_scale", 10**400), "config-wrong-type"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_spoilt_checkpoint_is_refused_before_anything_is_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    spoil, code = REFUSED[case]
    tensors, said = parts(save(a_gated(), tmp_path / "good.safetensors"))
    spoil(tensors, said)
    path = write(tmp_path / "bad.safetensors", tensors, said)
    if case != "negative seed":  # the only one that building itself finds
        monkeypatch.setattr(checkpoint, "_build", None)
    with refuses(code, CheckpointError) as refused:
        load(path)
    assert str(path) in str(refused.value)
    assert "\n" not in str(refused.value)
    assert str(refused.value).endswith(".")


# ---------------------------------------------------------------- version 2: any kind


def a_replaced(kind: str) -> HookedTransformer:
    toy = a_toy()
    attn = toy.blocks[0].attn
    block: Any = {
        "topk": lambda: TopKAttention.from_attention(attn, 3, k=2, value_bias=False),
        "sae": lambda: OutputAutoencoder.from_attention(attn, 4, k=2, output_scale=2.0),
    }[kind]()
    return splice(toy, 0, randomised(block, seed=2))


@pytest.mark.parametrize("kind", ["topk", "sae"])
def test_a_replacement_of_any_kind_comes_back_bit_for_bit(tmp_path: Path, kind: str) -> None:
    model = a_replaced(kind)
    path = save(model, tmp_path / "m.safetensors", notes={"fvu": 0.5})
    said = parts(path)[1]
    assert said["format_version"] == 2
    assert said["replacements"]["0"]["kind"] == kind
    loaded = load(path)
    assert_same_bits(loaded.blocks[0].attn, model.blocks[0].attn)
    assert torch.equal(loaded(TOKENS), model(TOKENS))
    assert_same_bits(unsplice(loaded), unsplice(model))
    assert loaded.info == read_info(path)
    assert (loaded.info.kind, loaded.info.format) == (kind, "gated_interp 2")
    trained = model.blocks[0].attn.parameters()
    assert loaded.info.n_parameters == sum(p.numel() for p in trained if p.requires_grad)
    again = save(loaded, tmp_path / "again.safetensors")
    assert again.read_bytes() == path.read_bytes()


def test_what_version_1_can_hold_is_written_as_version_1(tmp_path: Path) -> None:
    """So that 0.1.0 reads it."""
    for model in (a_toy(), a_gated()):
        assert parts(save(model, tmp_path / "m.safetensors"))[1]["format_version"] == 1


REFUSED_2: dict[str, tuple[Spoil, str]] = {
    "missing": (
        lambda t, m: t.pop("replacement.0.raw_W_Q"),
        "tensor-missing",
    ),
    "missing of the model": (
        lambda t, m: t.pop("model.blocks.0.attn.W_Q"),
        "tensor-missing",
    ),
    "unknown kind": (
        at("replacements.0.kind", "magic"),
        "no-such-kind",
    ),
    "unknown model": (at("model.kind", "lm"), "no-such-model-kind"),
    "unknown task": (at("task.kind", "recall"), "no-such-task-kind"),
    "no task": (at("task", None), "not-a-json-object"),
    "no model": (at("model", 3), "not-a-json-object"),
    "kind that is no word": (at("model.kind", []), "no-such-model-kind"),
    "no layers": (at("replacements", [1]), "not-a-json-object"),
    "layer that is no number": (
        lambda t, m: m["replacements"].update({"00": m["replacements"].pop("0")}),
        "not-a-layer-number",
    ),
    "layer beyond": (
        lambda t, m: m["replacements"].update({"1": m["replacements"].pop("0")}),
        "stored-layer-missing",
    ),
    "lacking config": (
        lambda t, m: m["replacements"]["0"].pop("config"),
        "missing-key",
    ),
    "unknown config key": (
        at("replacements.0.config.dropout", 0),
        "unknown-key",
    ),
    "impossible value": (at("replacements.0.config.k", 99), "config-k-too-large"),
    "many circuits": (at("replacements.0.config.d_qk", 10**9), "number-beyond-limit"),
    "contradicts the shapes": (at("replacements.0.config.d_qk", 3), "tensor-wrong-shape"),
    "contradicts the model": (at("replacements.0.config.d_model", 10), "stored-width-mismatch"),
    "model contradicts the task": (
        at("model.config.n_trigrams", 4),
        "stored-config-contradicts-task",
    ),
    "nothing": (
        lambda t, m: m.update(model=None, replacements={}),
        "checkpoint-of-nothing",
    ),
}


@pytest.mark.parametrize("case", REFUSED_2)
def test_a_spoilt_file_of_version_2_is_refused_before_anything_is_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    spoil, code = REFUSED_2[case]
    tensors, said = parts(save(a_replaced("topk"), tmp_path / "good.safetensors"))
    spoil(tensors, said)
    path = write(tmp_path / "bad.safetensors", tensors, said)
    monkeypatch.setattr(checkpoint, "_build", None)
    with refuses(code, CheckpointError) as refused:
        load(path)
    assert str(path) in str(refused.value)
    assert "\n" not in str(refused.value)
    assert str(refused.value).endswith(".")


def test_an_autoencoder_without_its_model_is_refused(tmp_path: Path) -> None:
    tensors, said = parts(save(a_replaced("sae"), tmp_path / "good.safetensors"))
    tensors = {n: t for n, t in tensors.items() if n.startswith("replacement")}
    path = write(tmp_path / "bad.safetensors", tensors, said | {"model": None})
    with refuses("replacement-needs-model", CheckpointError):
        load(path)


@pytest.mark.parametrize(
    "text",
    ["", "no", "[]", "1", "{", "\x00", '{"a": NaN}', '{"a": 1e999}', "[" * 9999, "9" * 9999],
    ids=lambda t: t[:12],
)
def test_metadata_that_is_not_json_is_refused(tmp_path: Path, text: str) -> None:
    tensors, _ = parts(save(a_toy(), tmp_path / "good.safetensors"))
    path = write(tmp_path / "bad.safetensors", tensors, text)
    code = "metadata-not-an-object" if text in ("[]", "1") else "metadata-not-json"
    with refuses(code, CheckpointError):
        load(path)


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "other.safetensors", {"weight": torch.zeros(3)}, None)
    with refuses("not-a-checkpoint", CheckpointError):
        load(path)


def test_a_file_from_before_a_field_is_read_with_the_fields_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every shipped and every saved file goes on being read when a config gains a field."""

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class NewerToy(ToyConfig):
        dropout: float = 0.0

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class NewerGated(GatedConfig):
        temperature: float = 1.0

    model, path = a_gated(), tmp_path / "old.safetensors"
    save(model, path)
    monkeypatch.setattr(checkpoint_format, "ToyConfig", NewerToy)
    monkeypatch.setattr(checkpoint_format, "GatedConfig", NewerGated)
    toys = [name for name in shipped.shipped_names() if "ST-" in name]
    assert len(toys) == 6
    for source in (path, *toys):
        loaded = load(source)
        assert loaded.info.toy_config.dropout == 0.0
        if loaded.info.kind == "gated":
            assert loaded.info.gated_config.temperature == 1.0
    assert_same_bits(load(path), model)


@pytest.mark.parametrize("part", ["task", "toy_config", "gated_config"])
def test_a_field_that_a_file_lacks_has_its_default(tmp_path: Path, part: str) -> None:
    tensors, said = parts(save(a_gated(), tmp_path / "whole.safetensors"))
    info = read_info(tmp_path / "whole.safetensors")
    fields = dataclasses.fields(getattr(info, part))
    optional = [f for f in fields if f.default is not dataclasses.MISSING]
    assert optional
    for field in optional:
        without = {**said, part: {k: v for k, v in said[part].items() if k != field.name}}
        path = write(tmp_path / "older.safetensors", tensors, without)
        assert getattr(getattr(load(path).info, part), field.name) == field.default


def header(text: bytes, size: int | None = None, data: bytes = b"") -> bytes:
    return struct.pack("<Q", len(text) if size is None else size) + text + data


NOT_SAFETENSORS: dict[str, bytes] = {
    "empty": b"",
    "few bytes": b"abc",
    "text": b"a model, honestly\n" * 9,
    "header longer than the file": header(b"{}", size=1000),
    "header of 2**63 bytes": header(b"{}", size=2**63),
    "header is not JSON": header(b"{]"),
    "header is not text": header(b'{"\xff": 1}'),
    "deep header": header(b"[" * 50_000),
    "terabytes of tensor": header(
        b'{"W_Q":{"dtype":"F32","shape":[1099511627776,1099511627776],"data_offsets":[0,8]}}',
        data=bytes(8),
    ),
    "tensor beyond the file": header(
        b'{"W_Q":{"dtype":"F32","shape":[1024],"data_offsets":[0,4096]}}', data=bytes(8)
    ),
    "negative shape": header(b'{"W_Q":{"dtype":"F32","shape":[-2],"data_offsets":[0,8]}}'),
}


@pytest.mark.parametrize("case", NOT_SAFETENSORS)
def test_what_is_not_safetensors_is_refused(tmp_path: Path, case: str) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes(NOT_SAFETENSORS[case])
    for read in (load, read_info):
        with refuses("not-safetensors", CheckpointError):
            read(path)


def test_a_tensor_with_no_elements_but_endless_axes_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    text = b'{"attn.W_Q":{"dtype":"F32","shape":[0,1152921504606846976,1],"data_offsets":[0,0]}}'
    path.write_bytes(header(text))
    with refuses("published-tensor-wrong-shape", CheckpointError):
        load(path)


def test_every_cut_of_a_file_is_refused(tmp_path: Path) -> None:
    whole = save(a_toy(), tmp_path / "m.safetensors").read_bytes()
    path = tmp_path / "cut.safetensors"
    for length in range(0, len(whole), 7):
        path.write_bytes(whole[:length])
        with refuses("not-safetensors", CheckpointError):
            load(path)


def test_a_file_beyond_the_limit_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    with path.open("wb") as file:
        file.truncate(2**32 + 1)  # sparse: nothing is written
    with refuses("file-too-large", CheckpointError, size=2**32 + 1):
        load(path)


class Bomb:
    """Unpickling it would leave a trace."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.trace),)


def test_a_pickle_is_never_unpickled(tmp_path: Path) -> None:
    path, trace = tmp_path / "m.safetensors", tmp_path / "trace"
    torch.save(Bomb(trace), path)
    with refuses("not-safetensors", CheckpointError):
        load(path)
    assert not trace.exists()


def test_places_without_a_checkpoint_are_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    cases: list[tuple[Any, str]] = [
        (tmp_path / "none.safetensors", "no-such-file"),
        (tmp_path, "folder-without-checkpoint"),
        (tmp_path / "pipe", "checkpoint-not-an-ordinary-file"),
        ("x" * 5000, "not-a-path"),
        ("a\0b", "no-such-model"),
    ]
    for source, code in cases:
        with refuses(code, CheckpointError):
            load(source)
    (tmp_path / "model.safetensors").mkdir()
    with refuses("checkpoint-is-a-folder", CheckpointError):
        load(tmp_path)


# ---------------------------------------------------------------- models by name


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "shipped_models"
    save(a_toy(), folder / "2H3ST.safetensors")
    save(a_gated(), folder / "2H3ST-gated.safetensors", notes={"fvu": 0.02})
    (folder / "README.md").write_text("not a model")
    monkeypatch.setattr(shipped, "_folder", lambda: folder)
    return folder


def test_a_shipped_model_loads_by_name(shelf: Path) -> None:
    assert shipped.shipped_names() == ["2H3ST", "2H3ST-gated"]
    model = load("2H3ST-gated")
    assert (model.model_name, model.notes) == ("2H3ST-gated", {"fvu": 0.02})
    assert_same_bits(unsplice(model), load("2H3ST"))
    assert read_info("2H3ST").kind == "toy"


def test_an_unknown_name_lists_those_there_are(shelf: Path) -> None:
    with refuses("no-such-model", CheckpointError, source="4H9ST"):
        load("4H9ST")


def test_a_file_does_not_hide_a_shipped_name(
    shelf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    save(a_toy(n_heads=3), "2H3ST")
    assert load("2H3ST").toy_config.n_heads == 2
    assert load("./2H3ST").toy_config.n_heads == 3
    assert load(Path("2H3ST")).toy_config.n_heads == 3


def test_every_model_that_really_ships_loads() -> None:
    for name in shipped.shipped_names():
        assert load(name).model_name == name
    assert all(not name.startswith(".") for name in shipped.shipped_names())
