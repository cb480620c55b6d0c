"""Files that nobody vouches for: what they say stays off the terminal; claims are checked."""

import json
import re
import resource
import subprocess
import sys

import pytest
import torch
from commands import cli, invoke, one_sentence
from refusals import refuses, says
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tokenizers import Regex, Tokenizer, pre_tokenizers

from gated_interp.analysis.holders import holders
from gated_interp.analysis.verdict import verdict
from gated_interp.checkpoints import attn_only
from gated_interp.checkpoints.checkpoint import load, save
from gated_interp.core.errors import CheckpointError
from gated_interp.explorer_server.serve import _answers as answers
from gated_interp.models.analytic import manual_model
from gated_interp.models.language_model import LanguageModelConfig, build_language_model
from gated_interp.replacements.gated_attention import GatedAttention, GatedConfig
from gated_interp.tasks.text import TextTask
from gated_interp.tasks.tokenizers import trained_tokenizer

HALVES = "a half \udc41, another \ud8ff and \ud83d"
ESCAPES = "\x1b]2;title\x07 \x1b[1;5;42mgreen \x9b2J \x08\r\x00 \u202eleft"


@pytest.mark.parametrize("notes", [
    {HALVES: 1}, {"note": HALVES}, {"list": [HALVES, [HALVES]]}, {"deep": {"in": {HALVES: HALVES}}},
])  # fmt: skip
def test_half_a_character_in_notes_is_written_out(notes, tmp_path):
    path = save(manual_model(2, 3).model, tmp_path / "m.safetensors", notes=notes)
    assert r"a half \udc41" in json.dumps(load(path).notes).replace("\\\\", "\\")
    cli("info", path)
    cli("report", path, "--sequences", 9, "--out", tmp_path / "r.html")
    assert (tmp_path / "r.html").read_text(encoding="utf-8")
    save(load(path), tmp_path / "again.safetensors")


@pytest.mark.parametrize("notes", [{ESCAPES: 1}, {"a": ESCAPES}, {"a": [ESCAPES]},
                                   {"a": {ESCAPES: ESCAPES}}])  # fmt: skip
def test_no_control_character_reaches_the_terminal(notes, tmp_path):
    path = save(manual_model(2, 3).model, tmp_path / "m\x1b[7m.safetensors", notes=notes)
    for args in (
        ["info", path],
        ["info", path, "--json"],
        ["verdict", path],
        ["info", ESCAPES[1:]],
    ):
        result = invoke([str(a).replace("\0", "") for a in args])
        assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", result.stdout + result.stderr)
    assert "[1;5;42mgreen" in cli("info", path).stdout


@pytest.fixture
def slow_pattern(tmp_path):
    """A model whose tokenizer splits words by a pattern that gives up on some of them."""
    text = tmp_path / "text.txt"
    text.write_text(("b" * 60 + " and other words\n") * 90)
    plain = trained_tokenizer(["b and other words " * 9], 262)
    task = TextTask(text, 16, plain, folder=tmp_path / "ids")
    made = Tokenizer.from_str(plain)
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(r"(b|bb)+\1c"), "isolated"),
         pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )  # fmt: skip
    task = TextTask.stored([str(text)], 16, made.to_str(), task.digest)
    shape = LanguageModelConfig(d_vocab=task.d_vocab, n_ctx=16, d_model=8, n_heads=2)
    return save(build_language_model(shape, task), tmp_path / "slow.safetensors")


def test_a_pattern_that_gives_up_is_a_sentence(slow_pattern, tmp_path, capfd):
    for command in ("report", "ablate"):
        said = one_sentence(cli(command, slow_pattern, "--out", tmp_path / "r.html", code=1))
        assert says("tokenizer-too-slow", said)
    task = load(slow_pattern).task
    with refuses("tokenizer-too-slow"):
        task.encode("b" * 70)
    assert task.decode(task.encode("other words")) == "other words"
    print("heard", file=sys.stderr)
    assert capfd.readouterr().err == "heard\n"  # the library's panics are not, this is
    assert len(task.token_names) == task.d_vocab


def test_a_pattern_that_gives_up_is_a_sentence_in_the_explorer(slow_pattern, capfd):
    """Its examples are of a text on which the pattern gives up; a page shows another."""
    page = answers(slow_pattern, None)
    for words, said in (("b" * 70, "pattern takes too long on this text"), ("other words", "")):
        shown = page({"do": "tokens", "value": words})
        view = json.loads(shown[4 : 4 + int.from_bytes(shown[:4], "little")])
        assert said in view["message"]
        assert bool(view["message"]) is bool(said)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("size", [2e38, 1e30])
@pytest.mark.parametrize("command", ["verdict", "ablate", "circuits", "report"])
def test_weights_too_large_to_compute_with(command, size, tmp_path):
    path = save(manual_model(3, 4).model, tmp_path / "m.safetensors")
    weights = {name: torch.full_like(w, size) for name, w in load_file(path).items()}
    with open(path, "rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    save_file(weights, path, metadata=header["__metadata__"])
    out = ["--out", tmp_path / "r.html"] if command == "report" else []
    said = one_sentence(cli(command, path, *out, code=1))
    assert says("logits-not-finite", said)
    cli("info", path)


def test_a_verdict_on_logits_that_are_not_finite_is_refused():
    truth = manual_model(2, 3)
    with torch.no_grad():
        truth.model.blocks[0].attn.W_O[1] = 3e38
        truth.model.blocks[0].attn.W_V[1] *= 1e9
    for ask in (verdict, holders):
        with refuses("logits-not-finite"):
            ask(truth.model, truth.task)


# ---- memory


@pytest.fixture
def folder(tmp_path):
    """As TransformerLens' attention-only models come."""
    config = LanguageModelConfig(d_vocab=262, n_ctx=9, d_model=8, n_heads=2)
    said = {**config.to_dict(), "attn_only": True}
    (tmp_path / "config.json").write_text(json.dumps(said))
    (tmp_path / "tokenizer.json").write_text(trained_tokenizer(["words " * 9], 262))
    torch.save(build_language_model(config).state_dict(), tmp_path / "final.pth")
    return tmp_path


def changed(folder, **fields):
    said = json.loads((folder / "config.json").read_text()) | fields
    (folder / "config.json").write_text(json.dumps(said))


def test_such_a_folder_is_read(folder):
    assert load(folder).cfg.d_vocab == 262


@pytest.mark.parametrize("fields", [
    {"d_vocab": 250_000}, {"d_vocab": 10**7}, {"n_ctx": 4000}, {"n_ctx": 10**6}, {"d_model": 4000},
    {"n_heads": 2000}, {"d_head": 1000}, {"n_layers": 4},
])  # fmt: skip
def test_a_config_larger_than_its_weights_is_refused_before_it_is_made(fields, folder, monkeypatch):
    changed(folder, **fields)
    monkeypatch.setattr(attn_only, "build_language_model", lambda *_: pytest.fail("it was made"))
    with pytest.raises(CheckpointError) as refused:
        load(folder)
    assert refused.value.code in ("number-beyond-limit", "weights-lack-a-tensor")


def test_weights_that_say_one_number_many_times_are_refused(folder, monkeypatch):
    changed(folder, d_vocab=250_000)
    state = torch.load(folder / "final.pth", weights_only=True)
    for name, shape in (("embed.W_E", (250_000, 8)), ("unembed.W_U", (8, 250_000)),
                        ("unembed.b_U", (250_000,))):  # fmt: skip
        state[name] = torch.zeros(1).expand(shape)
    torch.save(state, folder / "final.pth")
    monkeypatch.setattr(attn_only, "build_language_model", lambda *_: pytest.fail("it was made"))
    with refuses("weights-cut-short", CheckpointError):
        load(folder)


@pytest.mark.parametrize("error", [
    MemoryError(), RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't "
    "allocate memory: you tried to allocate 9 bytes."), RuntimeError("not enough memory: you"),
    torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
])  # fmt: skip
def test_too_little_memory_is_a_sentence(error, monkeypatch):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr("gated_interp.checkpoints.opened.open_model", fail)
    said = one_sentence(cli("verdict", "2H3ST-toy", code=1))
    assert said == "Error: there is not enough memory; ask for fewer heads, seeds or sequences."


def test_other_errors_are_not_hidden(monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("a fault of ours")

    monkeypatch.setattr("gated_interp.checkpoints.opened.open_model", fail)
    with pytest.raises(RuntimeError, match="a fault of ours"):
        cli("verdict", "2H3ST-toy")


@pytest.mark.slow
def test_torch_is_out_of_memory_in_a_sentence(tmp_path):
    def little():
        resource.setrlimit(resource.RLIMIT_AS, (5 * 10**9, 5 * 10**9))

    command = [sys.executable, "-m", "gated_interp.cli", "report", "2H3ST-gated", "--sequences",
               "5000000", "--out", str(tmp_path / "r.html")]  # fmt: skip
    ended = subprocess.run(command, preexec_fn=little, capture_output=True, text=True)
    assert ended.returncode == 1
    assert ended.stderr.startswith("Error: there is not enough memory")
    assert ended.stderr.count("\n") == 1


# ---- blocks of wide models


WIDE = 8192  # as Llama 70B


def test_a_block_of_a_wide_layer_is_written_and_read(tmp_path):
    block = GatedAttention(GatedConfig(d_model=WIDE, n_heads=2))
    read = GatedAttention.from_pretrained(block.save_pretrained(tmp_path))
    assert read.config == block.config
    assert read.W_Q.equal(block.W_Q)


@pytest.mark.parametrize(("said", "code"), [
    ({"d_model": 2**16}, "tensor-wrong-shape"), ({"n_heads": 2**16}, "tensor-wrong-shape"),
    ({"d_model": 2**16 + 1}, "number-beyond-limit"), ({"n_heads": 10**9}, "number-beyond-limit"),
    ({"d_head": 2000}, "number-beyond-limit"),
])  # fmt: skip
def test_a_block_larger_than_its_tensors_is_refused_before_it_is_made(
    said, code, tmp_path, monkeypatch
):
    config = GatedConfig(d_model=6, n_heads=2)
    path = GatedAttention(config).save_pretrained(tmp_path / "block.safetensors")
    with safe_open(path, "pt") as file:
        whole = json.loads(file.metadata()["gated_interp_block"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    whole["config"] |= said
    save_file(tensors, path, {"gated_interp_block": json.dumps(whole)})
    monkeypatch.setattr(GatedAttention, "__init__", lambda *_: pytest.fail("it was made"))
    with pytest.raises(CheckpointError) as refused:
        GatedAttention.from_pretrained(path)
    error = refused.value.fields.get("reason", refused.value)  # said with the file's name
    assert error.code == code
