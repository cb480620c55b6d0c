"""Sharing by geometry and by intervention, as ``ablate`` and reports show it."""

import copy

import pytest
import torch
from commands import cli, one_sentence

import gated_interp as gi
import gated_interp.subject as subject_module
from gated_interp.analysis.induction import repeated_random_tokens, repeats
from gated_interp.anatomy.batch import Batch
from gated_interp.subject import Subject
from gated_interp.tasks.text import TextTask
from gated_interp.views import sharing
from gated_interp.views.registry import shown_of

TEXT = "".join(f"line {i} of a text, in which {i % 7} is said again\n" for i in range(300))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(TEXT)
    task = TextTask(path, 12, vocab=270, folder=path.parent)
    shape = {"d_vocab": 270, "n_ctx": 12, "n_layers": 2, "d_model": 16, "n_heads": 2}
    made = gi.text.build_language_model(gi.text.LanguageModelConfig(**shape), task)
    config = gi.TrainConfig.language(steps=60, batch_size=16, lr=0.02, evaluate_every=0)
    return gi.train_model(made, config, progress=False).model


@pytest.fixture(scope="module")
def spliced(model):
    return gi.splice(model, 1, gi.GatedAttention.from_attention(model.blocks[1].attn))


def _shown(subject):
    return {s.name: s for s in shown_of(subject, "ablations")}


def test_original_and_block_side_by_side(spliced):
    found = _shown(Subject.of(spliced))
    measures = found["sharing-L1"].table.set_index("measure")
    tokens = repeated_random_tokens(spliced, 32, seed=0)
    where = repeats(Batch.of(spliced, tokens))
    for side, m in (("block", spliced), ("original", gi.unsplice(spliced))):
        effects = gi.head_effects(m, 1, tokens, positions=where, permutations=2)
        assert measures[side]["effect"] == pytest.approx(float(effects.effect.mean()))
        table = gi.head_sharing(m, 1, tokens).table(where).set_index("measure")
        assert measures[side]["participation"] == pytest.approx(table["median"]["participation"])
    heads = found["head-effects-L1"]
    assert heads.table["model"].unique().tolist() == ["original", "block"]
    assert heads.table["head"].tolist() == [
        *("L1H0", "L1H1", "all"),
        *(f"L1H{h}" for h in range(spliced.blocks[1].attn.W_O.shape[0])),
        "all",
    ]
    assert heads.figure.data


def test_a_layer_that_does_nothing_has_no_shares(model):
    silent = copy.deepcopy(model)
    with torch.no_grad():
        silent.blocks[1].attn.W_O.zero_()
    found = _shown(Subject.of(silent, 1))
    assert found["sharing-L1"].words.startswith(sharing.NOTHING)
    assert found["head-effects-L1"].table["share"].isna().all()


def test_a_model_with_many_weights_is_measured_on_less_and_says_so(model, monkeypatch):
    monkeypatch.setattr(subject_module, "WEIGHTS", 1)
    found = _shown(Subject.of(model, 1))
    assert found["sharing-L1"].words.endswith("Measured on 8 sequences.")
    assert found["head-effects-L1"].table["n"].unique().tolist() == [8]
    assert "12 sequences of the validation part" in found["ablation"].words
    assert found["ablation"].table["method"].unique().tolist() == ["zero", "mean"]
    assert found["ablation"].table["n"].unique().tolist() == [8]


def test_the_command_prints_them_on_repeats_and_on_prompts(model, tmp_path):
    file = gi.save(model, tmp_path / "lm.safetensors")
    said = cli("ablate", file or tmp_path / "lm.safetensors", "--layer", 1).stdout
    assert "on repeated random tokens" in said
    assert "heads that carry 90% of it" in said or "hardly matters" in said
    lines = tmp_path / "prompts.txt"
    lines.write_text("line 7 of a text\n\nline 9 of\n")
    path = tmp_path / "lm.safetensors"
    said = cli("ablate", path, "--layer", 1, "--prompt", "is said", "--prompt-file", lines).stdout
    assert "on your prompts" in said
    sentence = one_sentence(cli("ablate", path, "--prompt", "", code=1))
    assert "fewer than two tokens" in sentence
    sentence = one_sentence(cli("ablate", path, "--prompt-file", tmp_path / "none", code=1))
    assert "Cannot read prompts" in sentence
    sentence = one_sentence(cli("ablate", "2H3ST-toy", "--prompt", "a b c", code=1))
    assert "does not read text" in sentence
