"""What was called otherwise in version 0.2 still works, warns and says what to write."""

import inspect
from pathlib import Path

import pytest
import torch
from refusals import refuses

import gated_interp as gi
from gated_interp.analysis.faithfulness import dead_heads
from gated_interp.analysis.spare_heads import spare_heads
from gated_interp.analysis.sparsity import sparsity, switching_on
from gated_interp.core.renamed import RENAMED, GatedInterpDeprecationWarning
from gated_interp.replacements.splice import chosen_layer
from gated_interp.training.capture import attention_io

TASK = gi.text.TextTask(n_positions=8)
TOKENS = TASK.sample(6, seed=3).tokens


def block_at(model, layer, noise=0.5):
    attn = model.blocks[layer].attn
    return gi.GatedAttention.from_attention(attn, init="duplicate", noise=noise)


@pytest.fixture(scope="module")
def model():
    """Two layers, the second one spliced."""
    config = gi.text.LanguageModelConfig(
        d_vocab=TASK.d_vocab, n_ctx=8, n_layers=2, d_model=12, n_heads=2
    )
    plain = gi.text.build_language_model(config, TASK)
    return gi.splice(plain, 1, block_at(plain, 1))


IN_ORDER = {
    "attention_io": (lambda *a, **k: attention_io(*a, **k).output, "layer"),
    "dead_heads": (dead_heads, "layer"),
    "block_measures": (gi.block_measures, "layer"),
    "faithfulness": (lambda *a, **k: gi.faithfulness(*a, **k).measures(), "layer"),
    "loss_recovered": (gi.loss_recovered, "layers"),
    "prune_spare_heads": (
        lambda *a, **k: gi.prune_spare_heads(*a, rise=5.0, **k).blocks[1].attn.W_O,
        "layer",
    ),
    "read_heads": (lambda *a, **k: gi.read_heads(*a, **k).table["effect"].tolist(), "layer"),
    "skip_trigrams": (
        lambda *a, **k: gi.text.skip_trigrams(*a, least=2, **k)["ov"].tolist(),
        "layer",
    ),
    "spare_heads": (lambda *a, **k: spare_heads(*a, rise=5.0, **k), "layer"),
    "sparsity": (sparsity, "layer"),
    "switching_on": (lambda *a, **k: switching_on(*a, seed=0, steps=1, **k), "layer"),
    "text_holders": (lambda *a, **k: gi.text_holders(*a, **k).effect, "layer"),
}
MAY_OMIT = set(IN_ORDER) - {"attention_io"}  # a training's: no layer is spliced then


@pytest.mark.parametrize("name", IN_ORDER)
def test_the_layer_comes_before_the_tokens_and_the_old_order_warns(name, model):
    function, keyword = IN_ORDER[name]
    layer = [1] if keyword == "layers" else 1
    wanted = function(model, layer, TOKENS)
    same = [function(model, tokens=TOKENS, **{keyword: layer})]
    for old in ((TOKENS, layer), (TOKENS.tolist(), layer), (TOKENS.numpy(), layer)):
        with pytest.warns(GatedInterpDeprecationWarning, match=rf"write {name}\(model, {keyword}"):
            same.append(function(model, *old))
    with pytest.warns(GatedInterpDeprecationWarning, match="this version only"):
        same.append(function(model, TOKENS, **{keyword: layer}))
    for found in same:
        torch.testing.assert_close(found, wanted, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("name", sorted(MAY_OMIT))
def test_the_layer_may_be_left_out_where_one_is_spliced(name, model):
    function, keyword = IN_ORDER[name]
    wanted = function(model, [1] if keyword == "layers" else 1, TOKENS)
    for found in (function(model, tokens=TOKENS), function(model, TOKENS)):
        torch.testing.assert_close(found, wanted, rtol=0, atol=0, equal_nan=True)


def test_which_layer_is_meant(model):
    assert chosen_layer(model, None) == 1
    assert chosen_layer(model, 0) == 0
    plain = gi.unsplice(model)
    for several in (plain, gi.splice(model, 0, block_at(plain, 0))):
        with refuses("which-layer-of-heads"):
            chosen_layer(several, None)
    toy = gi.build_toy(gi.ToyConfig(n_trigrams=1, n_heads=2))
    assert chosen_layer(toy, None) == 0
    assert chosen_layer(gi.splice(toy, 0, block_at(toy, 0)), None) == 0


def test_a_head_is_named_without_its_layer_where_one_is_spliced(model):
    wanted = gi.ov_circuit(model, 1, 3).matrix
    for name in ({"head": 3}, {"head": "L1H3"}, {"head": (1, 3)}, {"layer": "L1H3"}):
        torch.testing.assert_close(gi.ov_circuit(model, **name).matrix, wanted)
    with refuses("no-head"):
        gi.qk_circuit(model)


def test_layer_0_of_several_is_still_taken_and_warned_of(model):
    plain = gi.unsplice(model)
    both = gi.splice(model, 0, block_at(plain, 0))
    with pytest.warns(GatedInterpDeprecationWarning, match="write layer=0"):
        smaller = gi.prune_spare_heads(both, tokens=TOKENS, rise=1e9)
    assert [len(block.attn.W_O) for block in smaller.blocks] == [1, 4]
    with pytest.warns(GatedInterpDeprecationWarning, match="write layer=0") as said:
        fitted = gi.fit_gated(plain, steps=1, progress=False).model
    assert {warning.filename for warning in said} == {__file__}
    gi.splice(plain, 0, fitted)  # which layer 1 would refuse


# Every name of version 0.2.
NAMES = {
    "ablate", "ablated", "activation_patch", "AttentionConfig", "AttentionTransformer",
    "build_attention", "build_language_model", "build_toy", "CheckpointError", "coherent_head",
    "composition_scores", "conditional_heads", "conditional_pair", "ConditionalTask",
    "confirm_skip_trigrams", "copying_scores", "decompose", "Decomposition", "decomposition",
    "edge_loadings", "faithfulness", "false_alarms", "fit_gated", "from_hub", "gate_circuit",
    "GatedAttention", "GatedConfig", "GatedInterpError", "GatedRun", "head_scores",
    "HeadExplorer", "holders", "induction_heads", "induction_paths", "induction_scores",
    "language_measures", "LanguageModelConfig", "LanguageTransformer", "load", "loading_matrix",
    "logit_attribution", "loss_recovered", "manual_model", "marked_relay", "ov_circuit",
    "OVCoherentTask", "pair_interactions", "paired_model", "patch_effects", "path_patch",
    "plots", "predict_from_circuits", "prune_dead_heads", "prune_spare_heads", "push_to_hub",
    "qk_circuit", "read_heads", "read_info", "Readings", "Recipe", "recipe_named",
    "repeated_random_tokens", "RepeatedTokensTask", "report", "save", "save_pretrained",
    "shapley", "shipped_names", "skip_trigram_bugs", "skip_trigram_holders", "skip_trigrams",
    "SkipTrigramEffects", "SkipTrigramTask", "source_attribution", "splice", "subset_values",
    "superposition_report", "TaskTransformer", "text_holders", "TextHolders", "TextTask",
    "ToyConfig", "ToyRun", "ToyTransformer", "train_gated", "train_gated_runs", "train_seeds",
    "train_toy", "train_toys", "TrainConfig", "TrainResult", "TrigramBatch", "two_readers",
    "TwoLayersTask", "TwoSourcesTask", "unsplice", "Verdict", "verdict", "wide_pairs",
    "WideContentTask",
}  # fmt: skip
GONE = {  # without a successor; the changelog says what to use
    "SkipTrigramEffects", "confirm_skip_trigrams", "skip_trigram_bugs", "skip_trigram_holders",
}  # fmt: skip


def at(path):
    found = gi
    for part in path.split("."):
        found = getattr(found, part)
    return found


@pytest.mark.parametrize("name", sorted(NAMES - GONE))
def test_every_name_of_version_0_2_works_or_warns_and_is_the_same_object(name):
    if name not in RENAMED:
        assert name in gi.__all__
        return
    assert name not in gi.__all__
    new = RENAMED[name]
    with pytest.warns(GatedInterpDeprecationWarning, match=rf"gi\.{name} .* write gi\.{new}\."):
        found = getattr(gi, name)
    assert found is at(new)
    room, _, last = new.rpartition(".")
    assert last in (at(room).__all__ if room else gi.__all__)
    assert last == found.__name__


def test_an_import_of_an_old_name_warns_where_it_stands():
    with pytest.warns(GatedInterpDeprecationWarning) as said:
        from gated_interp import ablated  # noqa: F401
    assert {warning.filename for warning in said} == {__file__}


def test_what_was_renamed_was_public():
    assert RENAMED.keys() <= NAMES


def test_a_name_that_is_gone_is_an_attribute_error():
    for name in GONE:
        with pytest.raises(AttributeError, match=name):
            getattr(gi, name)


def test_the_reference_says_what_was_renamed():
    page = Path(__file__).parents[1] / "docs" / "reference.md"
    _, _, renamed = page.read_text(encoding="utf-8").partition("## Renamed in 0.3")
    for old, new in RENAMED.items():
        (line,) = [line for line in renamed.splitlines() if f"`gi.{old}`" in line]
        assert f"`gi.{new}`" in line or f"`gi.{new.partition('.')[0]}`" in line


def test_other_kinds_of_replacement_are_not_called_gated():
    toy = gi.build_toy(gi.ToyConfig(n_trigrams=1, n_heads=2))
    how = {"method": "top1", "heads": 4, "steps": 1, "progress": False}
    with pytest.warns(GatedInterpDeprecationWarning, match="write fit_replacement"):
        old = gi.fit_gated(toy, **how).model
    assert torch.equal(old.W_O, gi.fit_replacement(toy, **how).model.W_O)


def test_every_public_function_takes_the_layer_before_the_tokens():
    seen = 0
    for name in gi.__all__:
        thing = getattr(gi, name)
        if not callable(thing) or isinstance(thing, type):
            continue
        positional = [
            p.name
            for p in inspect.signature(thing).parameters.values()
            if p.kind is p.POSITIONAL_OR_KEYWORD
        ]
        layer = [i for i, p in enumerate(positional) if p in ("layer", "layers")]
        if layer and positional[0] == "model":
            seen += 1
            assert layer == [1], name
    assert seen > 10
