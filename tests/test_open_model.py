"""Opening models of other libraries: right, or refused in one sentence."""

import json
import shutil
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
import transformers
from commands import invoke
from refusals import refuses
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers

import gated_interp as gi
from gated_interp.checkpoints import foreign, opened
from gated_interp.core.errors import CheckpointError, GatedInterpError
from gated_interp.models import pretrained
from gated_interp.models.pretrained import ARCHITECTURES, from_transformers

D_VOCAB, N_CTX = 97, 64
SIZES = {"vocab_size": D_VOCAB, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 3}
SIZES |= {"num_attention_heads": 4, "max_position_embeddings": N_CTX}
GROUPED = {**SIZES, "num_key_value_heads": 2}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA3 |= {"original_max_position_embeddings": 16, "rope_theta": 50000.0}
GEMMA = {**GROUPED, "head_dim": 10, "query_pre_attn_scalar": 17, "sliding_window": 7}
CONFIGS = {
    "GPT-2": lambda: transformers.GPT2Config(
        vocab_size=D_VOCAB, n_embd=24, n_layer=3, n_head=4, n_positions=N_CTX, n_inner=36
    ),
    "GPT-2, scores by layer": lambda: transformers.GPT2Config(
        vocab_size=D_VOCAB,
        n_embd=24,
        n_layer=3,
        n_head=4,
        n_positions=N_CTX,
        scale_attn_by_inverse_layer_idx=True,
    ),
    "GPT-NeoX": lambda: transformers.GPTNeoXConfig(**SIZES, rotary_pct=0.4),
    "GPT-NeoX, in turn": lambda: transformers.GPTNeoXConfig(
        **SIZES, rotary_pct=1.0, use_parallel_residual=False
    ),
    "Llama": lambda: transformers.LlamaConfig(**GROUPED),
    "Llama, tied": lambda: transformers.LlamaConfig(**GROUPED, tie_word_embeddings=True),
    "Llama, wide heads": lambda: transformers.LlamaConfig(**GROUPED, head_dim=14),
    "Llama 3": lambda: transformers.LlamaConfig(**GROUPED, rope_parameters=LLAMA3),
    "Llama, linear": lambda: transformers.LlamaConfig(
        **GROUPED, rope_parameters={"rope_type": "linear", "factor": 3.0, "rope_theta": 9000.0}
    ),
    "Mistral": lambda: transformers.MistralConfig(**GROUPED, sliding_window=9),
    "Mistral, no window": lambda: transformers.MistralConfig(**GROUPED, sliding_window=None),
    "Qwen 2": lambda: transformers.Qwen2Config(**GROUPED),
    "Qwen 3": lambda: transformers.Qwen3Config(**GROUPED, head_dim=10),
    "Gemma 2": lambda: transformers.Gemma2Config(**GEMMA),
    "Gemma 3": lambda: transformers.Gemma3TextConfig(**GEMMA),
    "OLMo": lambda: transformers.OlmoConfig(**SIZES, clip_qkv=0.4),
    "Phi": lambda: transformers.PhiConfig(**SIZES, partial_rotary_factor=0.67),
    "Phi 3": lambda: transformers.Phi3Config(**SIZES, pad_token_id=0),
}


def tiny(config, seed=3):
    """A model of ``config`` whose weights and biases are all far from zero, and differ."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = transformers.AutoModelForCausalLM.from_config(config)
        with torch.no_grad():
            for parameter in model.parameters():
                noise = 0.2 * torch.randn_like(parameter)
                parameter.copy_(noise + 0.5 if parameter.ndim == 1 else noise)
    return model.eval()


def tokens(seed=0, length=N_CTX):
    return torch.randint(D_VOCAB, (3, length), generator=torch.Generator().manual_seed(seed))


def same(hooked, model, seed=0):
    with torch.no_grad():
        wanted = model(tokens(seed)).logits.log_softmax(-1)
        return float((hooked(tokens(seed)).log_softmax(-1) - wanted).abs().max()) < 1e-4


def tokenizer(n=D_VOCAB):
    words = {"<|endoftext|>": 0} | {f"w{i}": i for i in range(1, n)}
    made = Tokenizer(models.WordLevel(words, unk_token="w1"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<|endoftext|>")


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("w3 w5 w7 w2 w90 w11\n" * 400)
    return path


@pytest.fixture
def folder(tmp_path):
    """A folder of a model in the architecture of Llama, with its tokenizer."""
    place = tmp_path / "mine"
    tiny(CONFIGS["Llama"]()).save_pretrained(place)
    tokenizer().save_pretrained(place)
    return place


@pytest.mark.parametrize("kind", CONFIGS)
def test_every_architecture_predicts_what_transformers_predicts(kind) -> None:
    model = tiny(CONFIGS[kind]())
    hooked = from_transformers(model)
    assert same(hooked, model)
    assert hooked.cfg.normalization_type in ("LNPre", "RMSPre")
    assert not any(p.requires_grad for p in hooked.parameters())


def test_the_architectures_of_the_docs_are_all_tried() -> None:
    assert {type(tiny(config())).__name__ for config in CONFIGS.values()} == set(ARCHITECTURES)


@pytest.mark.parametrize("name", ["mine", "my-llama", "gemma-2-clone", "bert", "t5"])
def test_a_folder_is_known_by_its_config_and_not_by_its_name(name, tmp_path, text) -> None:
    model = tiny(CONFIGS["GPT-2"]())
    model.save_pretrained(tmp_path / name)
    tokenizer().save_pretrained(tmp_path / name)
    before = torch.get_rng_state()
    found = gi.open_model(tmp_path / name, text=text)
    assert torch.equal(torch.get_rng_state(), before)
    assert found.model_name == name
    assert same(found, model)
    assert found.task.decode(found.task.encode("w3 w5")) == "w3 w5"
    assert found.task.sample(2, seed=0).tokens.shape == (2, N_CTX)
    assert found.to_str_tokens("w3 w5", prepend_bos=False) == ["w3", "w5"]


def test_a_model_in_memory_is_opened_too(text) -> None:
    model = tiny(CONFIGS["Qwen 2"]())
    assert same(gi.open_model(model), model)
    hooked = from_transformers(model)
    again = gi.open_model(hooked)
    assert again is hooked
    ours = gi.open_model("2H3ST-toy")
    assert gi.open_model(ours) is ours


def test_a_hooked_transformer_shares_its_weights_and_gets_its_text(text) -> None:
    from gated_interp.models.toy import HookedTransformer

    model = from_transformers(tiny(CONFIGS["GPT-NeoX"]()))
    model.__class__ = HookedTransformer
    del model.task
    model.tokenizer = tokenizer()
    found = gi.open_model(model, text=text)
    assert found.W_Q.data_ptr() != 0
    assert found.blocks[1].attn.W_Q is model.blocks[1].attn.W_Q
    assert found.task.d_vocab == D_VOCAB
    assert type(model) is HookedTransformer


def test_what_was_done_to_a_model_is_said() -> None:
    assert "context" not in from_transformers(tiny(CONFIGS["GPT-2"]())).processed
    cut = from_transformers(tiny(CONFIGS["GPT-2"]()), n_ctx=20)
    assert "context cut from 64 to 20" in cut.processed
    assert cut.cfg.n_ctx == 20
    gemma = from_transformers(tiny(CONFIGS["Gemma 2"]()))
    assert "unembedding" not in gemma.processed  # its logits are capped


@pytest.mark.parametrize("n_ctx", [1, 65])
def test_a_context_that_the_model_has_not_is_refused(n_ctx) -> None:
    with refuses("bad-context-length", n_ctx=n_ctx, most=64):
        from_transformers(tiny(CONFIGS["GPT-2"]()), n_ctx=n_ctx)


def test_analyses_take_an_opened_model(folder, text) -> None:
    model = gi.open_model(folder, text=text)
    batch = model.task.sample(4, seed=1).tokens
    effects = gi.ablate(model, batch)
    assert len(effects) >= 12
    assert effects["change"].abs().max() > 1e-4


def write_gguf(model, path: Path) -> None:
    """A Llama in the format of llama.cpp, which orders queries and keys in its own way."""
    c, writer = model.config, gguf.GGUFWriter(path, "llama")
    writer.add_block_count(c.num_hidden_layers)
    writer.add_context_length(c.max_position_embeddings)
    writer.add_embedding_length(c.hidden_size)
    writer.add_feed_forward_length(c.intermediate_size)
    writer.add_head_count(c.num_attention_heads)
    writer.add_head_count_kv(c.num_key_value_heads)
    writer.add_layer_norm_rms_eps(c.rms_norm_eps)
    writer.add_rope_freq_base(c.rope_parameters["rope_theta"])
    writer.add_vocab_size(c.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(["<|endoftext|>", *(f"w{i}" for i in range(1, c.vocab_size))])
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, c.num_hidden_layers)
    heads = {"q_proj": c.num_attention_heads, "k_proj": c.num_key_value_heads}
    for name, value in model.state_dict().items():
        found = value.numpy()
        for part, n in heads.items():
            if part in name:
                halves = found.reshape(n, 2, len(found) // n // 2, -1)
                found = halves.swapaxes(1, 2).reshape(found.shape)
        known = names.get_name(name, try_suffixes=(".weight", ".bias"))
        writer.add_tensor(known, np.ascontiguousarray(found))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_a_gguf_file_is_opened(tmp_path, monkeypatch, capfd) -> None:
    model, path = tiny(CONFIGS["Llama"]()), tmp_path / "a model.gguf"
    write_gguf(model, path)
    capfd.readouterr()
    assert same(gi.open_model(path), model)
    assert capfd.readouterr() == ("", "")  # no bars
    monkeypatch.setitem(sys.modules, "gguf", None)
    with refuses("gguf-package-missing"):
        gi.open_model(path)


def test_a_bridge_is_opened(folder, text) -> None:
    from transformer_lens.model_bridge import TransformerBridge

    bridge = TransformerBridge.boot_transformers(str(folder))
    found = gi.open_model(bridge, text=text)
    assert same(found, tiny(CONFIGS["Llama"]()))
    assert found.task.d_vocab == D_VOCAB


def qwen2(**more):
    return transformers.Qwen2Config(**GROUPED, use_sliding_window=True, **more)


# Windows end beyond the first tokens that are asked. A model reads the fields of its class alone.
WINDOWS = {
    "Llama": lambda: transformers.LlamaConfig(**GROUPED, sliding_window=53),
    "Llama, short": lambda: transformers.LlamaConfig(**GROUPED, sliding_window=6),
    "Mistral": lambda: transformers.MistralConfig(
        **GROUPED, sliding_window=51, layer_types=["full_attention"] * 3
    ),
    "Phi 3": lambda: transformers.Phi3Config(**SIZES, pad_token_id=0, sliding_window=55),
    "Qwen 2": lambda: qwen2(sliding_window=50, max_window_layers=1),
}


@pytest.mark.parametrize("kind", WINDOWS)
def test_windows_are_those_that_the_model_reads(kind) -> None:
    model = tiny(WINDOWS[kind]())
    assert same(from_transformers(model), model)


def test_a_window_is_checked_to_its_end(monkeypatch) -> None:
    monkeypatch.setattr(pretrained, "_windows", lambda hf: {})
    with refuses("conversion-predicts-otherwise"):
        from_transformers(tiny(transformers.MistralConfig(**GROUPED, sliding_window=54)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_a_model_in_memory_is_of_any_dtype_and_stays_as_it_is(dtype) -> None:
    model = tiny(CONFIGS["GPT-NeoX"]()).to(dtype).train()
    model.gpt_neox.layers[1].eval()
    found = from_transformers(model)
    assert {p.dtype for p in found.parameters()} == {torch.float32}
    assert {p.dtype for p in model.parameters()} == {dtype}
    assert model.training
    assert model.gpt_neox.layers[0].training
    assert not model.gpt_neox.layers[1].training
    assert same(found, model.float().eval())


def test_modes_of_a_model_are_restored() -> None:
    model = tiny(CONFIGS["GPT-2"]()).train()
    model.transformer.h[2].eval()
    from_transformers(model)
    assert model.training
    assert model.transformer.h[1].training
    assert not model.transformer.h[2].training


# What is not converted.


@pytest.mark.parametrize(
    "config",
    [
        transformers.LlamaConfig(**GROUPED, hidden_act="quick_gelu"),
        transformers.GPTNeoXConfig(**SIZES, attention_bias=False),
        transformers.PhiConfig(**SIZES, partial_rotary_factor=0.9),
        transformers.PhiConfig(**GROUPED),
        transformers.OlmoConfig(**GROUPED),
    ],
    ids=["activation", "no biases", "odd turns", "grouped Phi", "grouped OLMo"],
)
def test_what_the_converter_fails_at_is_refused_in_a_sentence(config) -> None:
    model = tiny(config)
    with refuses("conversion-fails", kind=type(model).__name__):
        from_transformers(model)


def test_predictions_that_are_none_are_refused() -> None:
    model = tiny(CONFIGS["OLMo"]())
    with torch.no_grad():
        model.lm_head.weight[3, 5] = float("nan")
    with refuses("logits-not-finite"):
        from_transformers(model)


def test_a_setting_that_converters_leave_out_shows_in_the_predictions() -> None:
    biased = tiny(transformers.LlamaConfig(**GROUPED, attention_bias=True))
    with refuses("conversion-predicts-otherwise"):
        from_transformers(biased)


def test_a_length_dependent_rotation_is_refused() -> None:
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
    with refuses("rotary-not-converted", kind="dynamic"):
        from_transformers(tiny(transformers.LlamaConfig(**GROUPED, rope_parameters=rope)))


def test_an_architecture_that_nobody_converts_is_refused(tmp_path) -> None:
    model = tiny(transformers.BloomConfig(vocab_size=D_VOCAB, hidden_size=24, n_layer=2, n_head=4))
    with refuses("architecture-not-supported", kind="BloomForCausalLM"):
        gi.open_model(model)
    model.save_pretrained(tmp_path / "b")
    with refuses("architecture-not-supported", kind="BloomForCausalLM"):
        gi.open_model(tmp_path / "b")


@pytest.mark.parametrize("thing", [3, None, {"a": 1}, torch.nn.Linear(2, 2)])
def test_another_thing_than_a_model_is_refused(thing) -> None:
    with refuses("cannot-open-this", kind=type(thing).__name__):
        gi.open_model(thing)


# What is wrong on the disk.


def spoil_no_weights(place: Path) -> str:
    (place / "model.safetensors").unlink()
    return "no weights"


def spoil_pickled(place: Path) -> str:
    (place / "model.safetensors").rename(place / "pytorch_model.bin")
    return "pytorch_model.bin.*safetensors"


def spoil_missing(place: Path) -> str:
    state = load_file(place / "model.safetensors")
    del state["model.layers.1.mlp.up_proj.weight"]
    save_file(state, place / "model.safetensors", {"format": "pt"})
    return "layers.1.mlp.up_proj"


def spoil_shape(place: Path) -> str:
    state = load_file(place / "model.safetensors")
    state["model.norm.weight"] = torch.ones(11)
    save_file(state, place / "model.safetensors", {"format": "pt"})
    return "mine"


def spoil_cut(place: Path) -> str:
    data = (place / "model.safetensors").read_bytes()
    (place / "model.safetensors").write_bytes(data[: len(data) // 2])
    return "mine"


def spoil_config(place: Path) -> str:
    (place / "config.json").write_text('{"architectures": ["Llama')
    return "config.json|mine"


def spoil_kind(place: Path) -> str:
    said = json.loads((place / "config.json").read_text())
    said |= {"model_type": "unheard_of", "architectures": ["UnheardOf"]}
    (place / "config.json").write_text(json.dumps(said))
    return "architecture"


def spoil_code(place: Path) -> str:
    said = json.loads((place / "config.json").read_text())
    said |= {
        "model_type": "own",
        "auto_map": {"AutoConfig": "own.C", "AutoModelForCausalLM": "own.M"},
    }
    (place / "config.json").write_text(json.dumps(said))
    (place / "own.py").write_text(f"open({str(place / 'ran')!r}, 'w')\n")
    return "code of its own"


def spoil_biases(place: Path) -> str:
    tiny(transformers.LlamaConfig(**GROUPED, attention_bias=True)).save_pretrained(place)
    said = json.loads((place / "config.json").read_text())
    (place / "config.json").write_text(json.dumps(said | {"attention_bias": False}))
    return "config knows nothing.*bias"


def spoil_layers(place: Path) -> str:
    said = json.loads((place / "config.json").read_text())
    (place / "config.json").write_text(json.dumps(said | {"num_hidden_layers": 2}))
    return "config knows nothing.*layers.2"


def spoil_classifier(place: Path) -> str:
    config = CONFIGS["GPT-2"]()
    transformers.GPT2ForSequenceClassification(config).save_pretrained(place)
    return "config knows nothing.*score"


def spoil_encoder(place: Path) -> str:
    config = transformers.T5Config(vocab_size=9, d_model=8, d_kv=2, d_ff=8, num_layers=1)
    transformers.T5ForConditionalGeneration(config).save_pretrained(place)
    return "causal language model"


def spoil_damaged_tokenizer(place: Path) -> str:
    (place / "tokenizer.json").write_text("{")
    return "tokenizer.json"


def spoil_tokenizer(place: Path) -> str:
    tokenizer(D_VOCAB + 30).save_pretrained(place)
    return r"127 tokens.*97"


SPOILS = [v for name, v in sorted(globals().items()) if name.startswith("spoil_")]


@pytest.mark.parametrize("spoil", SPOILS, ids=lambda f: f.__name__)
def test_a_folder_that_holds_no_whole_model_is_refused(spoil, folder, text) -> None:
    said = spoil(folder)
    with pytest.raises(CheckpointError, match=said) as caught:
        gi.open_model(folder, text=text)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500
    assert not (folder / "ran").exists()


def test_a_model_larger_than_memory_is_refused(folder, monkeypatch) -> None:
    monkeypatch.setattr(foreign, "_memory", lambda: 1e5)
    with refuses("too-large-to-open", CheckpointError):
        gi.open_model(folder)


def test_weights_that_differ_from_their_config_are_quantized_ones(folder) -> None:
    said = json.loads((folder / "config.json").read_text())
    said["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (folder / "config.json").write_text(json.dumps(said))
    with pytest.raises(GatedInterpError):
        gi.open_model(folder)


@pytest.mark.parametrize("kind", ["GPT-2", "Qwen 3", "Gemma 2", "Llama", "OLMo"])
def test_a_folder_without_a_tokenizer_has_no_text(kind, tmp_path, text) -> None:
    model = tiny(CONFIGS[kind]())
    model.save_pretrained(tmp_path / "bare")
    found = gi.open_model(tmp_path / "bare", text=text)
    assert found.task is None
    assert same(found, model)


def test_old_files_with_the_value_of_the_mask_are_opened(tmp_path) -> None:
    model = tiny(CONFIGS["GPT-2"]())
    model.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    more = {"transformer.h.1.attn.masked_bias": torch.tensor(-1e4)}
    save_file(load_file(file) | more, file, {"format": "pt"})
    assert same(gi.open_model(tmp_path), model)


@pytest.mark.parametrize(
    "place", ["~/mine", "mine/config.json", "mine/model.safetensors", "x.gguf"]
)
def test_a_folder_is_found_from_home_by_its_files_and_whatever_its_name(
    place, folder, text, monkeypatch
) -> None:
    monkeypatch.setenv("HOME", str(folder.parent))
    monkeypatch.setenv("USERPROFILE", str(folder.parent))
    monkeypatch.chdir(folder.parent)
    shutil.copytree(folder, "x.gguf")
    assert same(gi.open_model(place, text=text), tiny(CONFIGS["Llama"]()))


def test_shards_in_half_precision_are_opened(tmp_path) -> None:
    model = tiny(CONFIGS["Qwen 2"]()).bfloat16()
    model.save_pretrained(tmp_path, max_shard_size="9KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    assert same(gi.open_model(tmp_path), model.float())


def test_commands_say_what_they_need_of_a_model(folder, monkeypatch, text) -> None:
    monkeypatch.chdir(folder.parent)
    found = json.loads(invoke(["info", "mine", "--json"]).stdout)
    assert (found["layers"], found["vocabulary"]) == (3, D_VOCAB)
    assert json.loads(invoke(["info", "mine/model.safetensors", "--json"]).stdout) == found
    (folder / "tokenizer.json").unlink()
    for command in ("ablate", "circuits", "report", "decompose"):
        said = invoke([command, "mine"])
        assert said.exit_code == 1
        assert "mine has no tokenizer" in said.stderr


def test_a_command_that_draws_no_figure_names_none(folder, monkeypatch) -> None:
    monkeypatch.chdir(folder.parent)
    said = invoke(["circuits", "mine", "--layer", "0", "--out", "here"]).stdout.splitlines()
    assert said[-1] == "2 files are in here."


def test_info_takes_a_name_of_another_library(monkeypatch) -> None:
    model = from_transformers(tiny(CONFIGS["GPT-2"]()), name="somebody/something")
    monkeypatch.setattr(opened, "open_model", lambda file: model)
    said = invoke(["info", "somebody/something", "--json"])
    assert json.loads(said.stdout)["architecture"] == "GPT2LMHeadModel"


@pytest.mark.parametrize("name", ["nobody/nothing", "gpt2"])
def test_a_name_that_is_not_at_hand_is_refused(name, monkeypatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with refuses("no-such-model-anywhere", source=name):
        gi.open_model(name)


def test_the_hub_is_not_asked_for_a_name_that_it_cannot_have(monkeypatch) -> None:
    monkeypatch.setattr(foreign, "_read", lambda *_: pytest.fail("it was asked"))
    with refuses("no-such-model", source="no-such-model"):
        gi.open_model("no-such-model")


def test_a_folder_of_ours_is_still_ours(tmp_path) -> None:
    gi.save_pretrained(gi.open_model("2H3ST-toy"), tmp_path)
    assert gi.open_model(tmp_path).task == gi.load("2H3ST-toy").task
    shutil.rmtree(tmp_path)
    with pytest.raises(CheckpointError):
        gi.open_model(tmp_path)
