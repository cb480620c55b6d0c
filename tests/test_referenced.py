"""Checkpoints that hold blocks and a reference to their model, never the model's weights."""

import json
import re
import shutil
from pathlib import Path
from unittest import mock

import pandas as pd
import pytest
import torch
import transformers
from commands import cli, invoke, one_sentence
from refusals import refuses, says
from safetensors import safe_open
from safetensors.torch import save_file
from test_open_model import CONFIGS, D_VOCAB, SIZES, tiny, tokenizer, tokens

import gated_interp as gi
import gated_interp.explorer_server.serve as serve
from gated_interp.checkpoints import foreign
from gated_interp.checkpoints.checkpoint import read_info, save
from gated_interp.core.errors import CheckpointError
from gated_interp.models.pretrained import from_transformers
from gated_interp.replacements.layer_sketch import model_sketch, same_model
from gated_interp.replacements.splice import own_weights
from gated_interp.types import PretrainedTransformer

WORDS = "w3 w5 w7 w2 w90 w11 w4 w8\n"


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(WORDS * 400)
    return path


def written(place: Path, kind: str = "Llama", seed: int = 3) -> Path:
    """A folder of a tiny model, with its tokenizer, which leaves some of its tokens unused."""
    tiny(CONFIGS[kind](), seed).save_pretrained(place)
    tokenizer(D_VOCAB - 4).save_pretrained(place)
    return place


@pytest.fixture
def folder(tmp_path):
    return written(tmp_path / "models" / "mine")


@pytest.fixture
def model(folder, text):
    return gi.open_model(folder, text=text)


def block(model, layer, **settings):
    attn = model.blocks[layer].attn
    return gi.GatedAttention.from_attention(attn, expansion=2, noise=0.1, seed=layer, **settings)


@pytest.fixture
def spliced(model):
    return gi.splice(gi.splice(model, 1, block(model, 1)), 2, block(model, 2))


@pytest.fixture
def path(spliced, tmp_path):
    return save(spliced, tmp_path / "out" / "blocks.safetensors", notes={"by": "hand"})


def contents(path):
    with safe_open(path, "pt") as file:
        found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return found, json.loads(file.metadata()["gated_interp"])


def respell(path, change):
    """Write the file again with other metadata."""
    found, said = contents(path)
    change(said)
    save_file(found, path, {"gated_interp": json.dumps(said)})


def test_a_file_holds_the_blocks_and_none_of_the_models_weights(spliced, path) -> None:
    found, said = contents(path)
    own = sum(p.numel() for i in (1, 2) for p in spliced.blocks[i].attn.parameters())
    assert {name.split(".")[1] for name in found} == {"1", "2"}
    assert all(name.startswith("replacement.") for name in found)
    assert sum(t.numel() for t in found.values()) <= own
    assert path.stat().st_size < 4 * own + 12_000
    assert len(json.dumps(said)) < 12_000
    theirs = dict(own_weights(spliced))
    for tensor in found.values():
        same = [n for n, w in theirs.items() if w.shape == tensor.shape and torch.equal(w, tensor)]
        assert not any(same) or not tensor.any()


def test_the_model_comes_back_with_its_blocks_text_and_notes(spliced, path, folder) -> None:
    for found in (gi.load(path), gi.open_model(path)):
        assert type(found) is PretrainedTransformer
        assert torch.equal(found(tokens()), spliced(tokens()))
        assert found.task == spliced.task
        assert found.task.sample(2, seed=0).tokens.shape == (2, 64)
        assert (found.notes, found.model_name, found.place) == ({"by": "hand"}, "blocks", folder)
        assert found.info == read_info(path)
        assert found.info.kind == "gated"
        assert found.blocks[1].attn.stands_for == spliced.blocks[1].attn.stands_for
        original = gi.unsplice(found)
        assert torch.equal(original(tokens()), gi.unsplice(spliced)(tokens()))


def test_a_loaded_model_is_saved_as_it_was(path, tmp_path) -> None:
    again = save(gi.load(path), tmp_path / "out" / "again.safetensors")
    assert again.read_bytes() == path.read_bytes()


def test_a_model_without_blocks_is_a_reference_alone(model, tmp_path) -> None:
    path = save(model, tmp_path / "original.safetensors")
    assert contents(path)[0] == {}
    assert path.stat().st_size < 3000
    found = gi.load(path)
    assert torch.equal(found(tokens()), model(tokens()))
    assert found.info.kind == "pretrained"


@pytest.mark.parametrize("kind", ["GPT-2", "GPT-NeoX", "Qwen 3", "Gemma 3"])
def test_other_architectures_come_back_too(kind, tmp_path, text) -> None:
    model = gi.open_model(written(tmp_path / "m", kind), text=text, n_ctx=40)
    spliced = gi.splice(model, 1, block(model, 1))
    found = gi.load(save(spliced, tmp_path / "b.safetensors"))
    assert found.cfg.n_ctx == 40
    assert found.processed == model.processed
    assert torch.equal(found(tokens(length=40)), spliced(tokens(length=40)))


def test_every_kind_of_block_comes_back(model, tmp_path) -> None:
    for kind in ("topk", "sae on output"):
        made = gi.fit_replacement(model, 1, method=kind, steps=1, progress=False).model
        spliced = gi.splice(model, 1, made)
        found = gi.load(save(spliced, tmp_path / f"{kind}.safetensors"))
        assert torch.equal(found(tokens()), spliced(tokens()))


def test_a_block_is_read_without_the_model(path, spliced, monkeypatch) -> None:
    monkeypatch.setattr(foreign, "_read", lambda *_: pytest.fail("the model was opened"))
    found = gi.GatedAttention.from_pretrained(path, layer=2)
    mine = spliced.blocks[2].attn
    assert all(
        torch.equal(a, b) for a, b in zip(found.parameters(), mine.parameters(), strict=True)
    )
    assert found.stands_for == mine.stands_for
    assert read_info(path).n_parameters > 0
    assert json.loads(cli("info", path, "--json").stdout)["model"]["n_layers"] == 3
    with refuses("which-layer", CheckpointError):
        gi.GatedAttention.from_pretrained(path)


# Where the model is.


def test_both_may_move_together(path, spliced, tmp_path) -> None:
    home = tmp_path / "elsewhere"
    home.mkdir()
    for part in ("models", "out"):
        shutil.move(tmp_path / part, home / part)
    found = gi.load(home / "out" / "blocks.safetensors")
    assert found.place == home / "models" / "mine"
    assert torch.equal(found(tokens()), spliced(tokens()))


def test_the_file_may_move_alone(path, spliced, tmp_path) -> None:
    moved = shutil.move(path, tmp_path / "b.safetensors")
    assert torch.equal(gi.load(moved)(tokens()), spliced(tokens()))


def test_a_model_that_moved_is_given(path, folder, spliced, tmp_path) -> None:
    moved = shutil.move(folder, tmp_path / "moved")
    with refuses("referenced-model-missing", CheckpointError) as caught:
        gi.load(path)
    assert str(folder) in str(caught.value)
    assert "base=" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert one_sentence(invoke(["circuits", path])).count(str(folder)) == 1
    found = gi.load(path, base=moved)
    assert torch.equal(found(tokens()), spliced(tokens()))
    assert torch.equal(gi.load(save(found, path))(tokens()), spliced(tokens()))  # found from now on


def test_commands_take_a_model_that_moved(path, folder, spliced, tmp_path, monkeypatch) -> None:
    moved = shutil.move(folder, tmp_path / "moved")
    assert "--base" in one_sentence(invoke(["circuits", path]))
    for command in (["circuits", path], ["ablate", path]):
        assert "L1H2" in cli(*command, "--layer", "1", "--base", moved).stdout
    page = tmp_path / "page.html"
    cli("report", path, "--layer", "1", "--out", page, "--base", moved)
    assert "--base moved" in page.read_text()
    opened = []
    monkeypatch.setattr(serve, "page_server", lambda *about: opened.append(about[2]) or mock.Mock())
    cli("explore", path, "--base", moved, "--no-browser")
    assert opened[0]({"do": "look"})
    assert "base=" in one_sentence(invoke(["decompose", "2H3ST-gated", "--base", moved]))
    assert torch.equal(gi.open_model(path, base=moved)(tokens()), spliced(tokens()))
    for whole in (moved, spliced):
        with refuses("base-not-needed", CheckpointError):
            gi.open_model(whole, base=moved)


@pytest.mark.parametrize("kind", ["another seed", "trained further", "another shape"])
def test_another_model_at_the_place_is_refused(kind, path, folder) -> None:
    model = tiny(CONFIGS["Llama"](), seed=4 if kind == "another seed" else 3)
    if kind == "another shape":
        model = tiny(CONFIGS["Qwen 2"]())
    if kind == "trained further":
        with torch.no_grad():
            model.model.layers[0].mlp.up_proj.weight += 1e-3
    model.save_pretrained(folder)
    with refuses("another-model-there", CheckpointError) as caught:
        gi.load(path)
    assert str(folder) in str(caught.value)
    with refuses("another-model-given", CheckpointError):
        gi.load(path, base=folder)


def test_the_right_model_of_two_places_is_taken(path, spliced, tmp_path) -> None:
    home = tmp_path / "elsewhere"
    shutil.copytree(tmp_path / "models", home / "models")
    shutil.copytree(tmp_path / "out", home / "out")
    tiny(CONFIGS["Llama"](), 4).save_pretrained(tmp_path / "models" / "mine")
    found = gi.load(home / "out" / "blocks.safetensors")
    assert found.place == home / "models" / "mine"


def test_a_model_from_memory_is_given_again(text, tmp_path) -> None:
    theirs = tiny(CONFIGS["Llama"]())
    model = gi.open_model(theirs)
    spliced = gi.splice(model, 1, block(model, 1))
    path = save(spliced, tmp_path / "b.safetensors")
    with refuses("referenced-model-in-memory", CheckpointError):
        gi.load(path)
    for base in (theirs, model, spliced, written(tmp_path / "m")):
        found = gi.load(path, base=base)
        assert torch.equal(found(tokens()), spliced(tokens()))
    assert (model.info, model.notes) == (None, {})  # what is given stays as it is
    with refuses("another-model-given", CheckpointError):
        gi.load(path, base=tiny(CONFIGS["Llama"](), 4))


def test_a_base_for_a_whole_checkpoint_is_refused(model) -> None:
    with refuses("base-not-needed", CheckpointError):
        gi.load("2H3ST-gated", base=model)


def test_a_hub_model_is_found_by_its_name(model, tmp_path, monkeypatch) -> None:
    model.place = "somebody/mine"
    path = save(gi.splice(model, 1, block(model, 1)), tmp_path / "b.safetensors")
    assert contents(path)[1]["model"]["path"] is None
    asked = []

    def opened(source, text, n_ctx):
        asked.append((source, n_ctx))
        return model

    monkeypatch.setattr("gated_interp.checkpoints.referenced.from_place", opened)
    assert gi.load(path).model_name == "b"
    assert asked == [("somebody/mine", 64)]
    respell(path, lambda said: said["model"].update(name="../../etc"))
    with refuses("cannot-load", CheckpointError):
        gi.load(path)


def test_the_tokenizer_is_kept_where_the_model_has_none(tmp_path, text) -> None:
    place = tmp_path / "bare"
    tiny(CONFIGS["Llama"]()).save_pretrained(place)
    task = gi.text.TextTask(text, 32, tokenizer().backend_tokenizer.to_str())
    model = gi.open_model(place, text=task)
    found = gi.load(save(model, tmp_path / "b.safetensors"))
    assert found.task == task
    bare = gi.load(save(gi.open_model(place), tmp_path / "c.safetensors"))
    assert bare.task is None


# Damaged, or wrong.


def test_a_model_that_was_changed_in_memory_is_not_mistaken(model, tmp_path) -> None:
    with torch.no_grad():
        model.blocks[0].attn.W_O[1] = 0
    with refuses("another-model-there", CheckpointError):
        gi.load(save(model, tmp_path / "b.safetensors"))


@pytest.mark.parametrize(
    "change",
    [
        lambda said: said.pop("model"),
        lambda said: said["model"].pop("sketch"),
        lambda said: said["model"].update(sketch=[1.0]),
        lambda said: said["model"].update(n_ctx="long"),
        lambda said: said["model"].update(n_layers=2),
        lambda said: said["model"].update(text={"text": "austen"}),
        lambda said: said["replacements"]["1"].pop("layer"),
        lambda said: said["replacements"].pop("1"),
        lambda said: said.update(format_version=4),
        lambda said: said.update(notes=[]),
    ],
)
def test_damaged_metadata_is_refused_before_anything_is_opened(change, path, monkeypatch) -> None:
    monkeypatch.setattr(foreign, "_read", lambda *_: pytest.fail("the model was opened"))
    respell(path, change)
    for read in (gi.load, read_info):
        with pytest.raises(CheckpointError) as caught:
            read(path)
        assert "\n" not in str(caught.value)


def test_blocks_of_another_layer_are_refused(path) -> None:
    def swap(said):
        parts = said["replacements"]
        parts["1"]["layer"], parts["2"]["layer"] = parts["2"]["layer"], parts["1"]["layer"]

    respell(path, swap)
    with refuses("block-of-another-layer"):
        gi.load(path)


def test_a_damaged_file_beside_the_model_is_not_taken_for_the_model(spliced, folder) -> None:
    path = save(spliced, folder / "blocks.safetensors")
    assert torch.equal(gi.open_model(path)(tokens()), spliced(tokens()))
    respell(path, lambda said: said.pop("notes"))
    with pytest.raises(CheckpointError):
        gi.open_model(path)


def test_a_save_that_fails_leaves_what_was_there(spliced, path) -> None:
    before = path.read_bytes()
    with torch.no_grad():
        spliced.blocks[1].attn.W_Q[0, 0, 0] = float("nan")
    with pytest.raises(CheckpointError):
        save(spliced, path)
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_a_model_is_told_by_all_its_weights_but_not_by_their_last_bits() -> None:
    model = from_transformers(tiny(CONFIGS["GPT-NeoX"]()))
    here = model_sketch(own_weights(model))
    rounded = [(n, w * (1 + 1e-7 * torch.randn(w.shape))) for n, w in own_weights(model)]
    assert same_model(here, model_sketch(rounded))
    for name, _ in own_weights(model):
        other = [(n, w + 0.01 * (n == name)) for n, w in own_weights(model)]
        assert not same_model(here, model_sketch(other)), name
    large = torch.randn(3, 70_000, generator=torch.Generator().manual_seed(0))
    swapped = large[[1, 0, 2]]
    assert not same_model(model_sketch([("W", large)]), model_sketch([("W", swapped)]))


# text= and n_ctx= of what is a model already.


def test_a_text_is_honoured_or_refused(path, tmp_path, model) -> None:
    other = tmp_path / "other.txt"
    other.write_text("w1 w9 w4\n" * 800)
    for source in (path, model, "austen-1l"):
        before = gi.open_model(source).task
        found = gi.open_model(source, text=other)
        assert found.task.text == (str(other),)
        assert found.task.tokenizer == before.tokenizer
    assert model.task.text != (str(other),)
    for source in ("2H3ST-toy", gi.load("2H3ST-toy")):
        with refuses("not-a-language-model"):
            gi.open_model(source, text=other)


def test_a_context_is_honoured_or_refused(path, folder, model) -> None:
    assert gi.open_model(folder, n_ctx=20).cfg.n_ctx == 20
    for source in (path, model, "2H3ST-toy", "austen-1l"):
        own = gi.open_model(source).cfg.n_ctx
        assert gi.open_model(source, n_ctx=own).cfg.n_ctx == own
        with refuses("context-cannot-change", n_ctx=own - 1):
            gi.open_model(source, n_ctx=own - 1)


def test_documents_may_end_where_sequences_do(folder, tmp_path) -> None:
    lines = tmp_path / "lines.jsonl"
    lines.write_text((json.dumps({"text": "w3 w5 w7 w2 w9 w4 w1 w8"}) + "\n") * 600)
    model = gi.open_model(folder, text=lines)
    assert gi.fit_gated(model, 1, steps=2, progress=False).model.config.n_heads == 8
    cli("ablate", save(model, tmp_path / "b.safetensors"), "--layer", 1)


# Decomposing.


@pytest.mark.parametrize("kind", ["Llama", "GPT-NeoX"])
def test_a_folder_is_decomposed_and_its_block_looked_at(kind, tmp_path, text, monkeypatch) -> None:
    """In processes of their own, each of which opens the model."""
    monkeypatch.chdir(tmp_path)
    written(tmp_path / "mine", kind)
    args = ["mine", "--layer", 1, "--text", "text.txt", "--steps", 2, "--seeds", 2]
    args += ["--captured", 80]
    said = cli("decompose", *args, "--sequences", 8, "--out", "run", "--workers", 2)
    run = tmp_path / "run"
    assert (run / "L1.html").is_file(), said.output
    table = pd.read_csv(run / "runs.csv")
    assert set(table["seed"]) == {0, 1}
    # Trained from what was captured once, and measured as a layer in the middle of a model is.
    captured = json.loads((run / "activations" / "activations.json").read_text())
    assert captured["done"] == captured["sequences"] == 80
    assert captured["layers"] == [1]
    assert table["held_share"].isna().all()
    assert (table[["participation", "participation_original"]] >= 1).all(axis=None)
    assert "participation" in said.stdout
    for name in ("original", "L1-seed0", "L1-seed1"):
        found = contents(run / f"{name}.safetensors")[0]
        assert all(tensor.startswith("replacement.1.") for tensor in found)
    monkeypatch.chdir(run)
    file = run / "L1-seed0.safetensors"
    gated = gi.load(file)
    assert gated.notes["layer"] == 1
    assert gated.task.text == (str(text),)
    cli("report", file, "--layer", 1, "--sequences", 4, "--out", run / "page.html")
    assert (run / "page.html").stat().st_size > 10_000
    for command in ("ablate", "circuits"):
        assert "L1H0" in cli(command, file, "--layer", 1).stdout
    assert "mine" in cli("info", file).stdout


def test_a_model_from_memory_is_decomposed_in_this_process(tmp_path) -> None:
    theirs = tiny(CONFIGS["Llama"]())
    found = gi.studies.decompose(
        theirs, tmp_path, layers=[0, 2], data=tokens(), steps=2, seeds=1, sequences=4, workers=2
    )
    assert set(found.runs["layer"]) == {-1, 0, 2}
    assert torch.isfinite(found.model(2, 0)(tokens())).all()


def test_the_explorer_takes_such_a_file(path) -> None:
    from gated_interp.explorer.session import Session

    assert Session(gi.open_model(path))


def test_a_raw_model_is_still_opened_first(tmp_path) -> None:
    from gated_interp.models.toy import HookedTransformer

    model = from_transformers(tiny(CONFIGS["GPT-2"]()))
    model.__class__ = HookedTransformer
    with refuses("cannot-save-this-model") as caught:
        save(model, tmp_path / "m.safetensors")
    assert says("cannot-save-this-model", str(caught.value))
    assert save(gi.open_model(model), tmp_path / "m.safetensors").stat().st_size < 3000


@pytest.mark.slow
def test_the_page_for_newcomers_is_true(tmp_path, text, monkeypatch) -> None:
    """Its commands and its Python run one after the other, with two steps for each training."""
    page = Path(__file__).parent.parent / "docs" / "your-own-model.md"
    part = page.read_text().split("## From a Hugging Face folder")[1].split("\n## ")[0]
    monkeypatch.chdir(tmp_path)
    tiny(
        transformers.GPTNeoXConfig(**SIZES | {"num_hidden_layers": 4, "rotary_pct": 0.4})
    ).save_pretrained("pythia-160m")
    tokenizer(D_VOCAB - 4).save_pretrained("pythia-160m")
    ran = 0
    for language, code in re.findall(r"```(sh|py)\n(.*?)```", part, flags=re.DOTALL):
        if language == "py":
            exec(compile(code.replace("steps=3000", "steps=2"), "block", "exec"), {})
            continue
        for line in code.strip().splitlines():
            program, command, *args = re.sub("--steps 100", "", line).split()
            assert program == "gated-interp"
            if command == "decompose":
                args += ["--steps", 2, "--sequences", 8, "--workers", 1]
            if command == "report":
                args += ["--sequences", 4]
            if command != "explore":
                cli(command, *args)
            ran += 1
    assert ran == 6
    assert Path("run/L3.html").is_file()
