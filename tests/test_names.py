"""Names that users of TransformerLens and SAELens try first."""

import inspect
import typing
from pathlib import Path
from typing import Any

import pandas as pd
import plotly.graph_objects as go
import pytest
import torch
from refusals import refuses
from safetensors.torch import load_file, save_file
from test_plots import FIGURES

import gated_interp as gi
from gated_interp.analysis.heads import heads_in
from gated_interp.core.errors import CheckpointError
from gated_interp.experiments.methods import at
from gated_interp.experiments.recipes import RELIABLE, recipe_named
from gated_interp.replacements.replacement import KINDS, Replacement
from gated_interp.replacements.sae import OutputAutoencoder
from gated_interp.replacements.topk import TopKAttention
from gated_interp.training.fit import fit_settings
from gated_interp.training.methods import METHODS, tuned

TASK = gi.SkipTrigramTask(n_trigrams=3)
TWO_LAYERS = gi.analytic.induction_model()
TEXT = TWO_LAYERS.task.sample(20, seed=0).tokens


def toy() -> gi.types.ToyTransformer:
    return gi.build_toy(gi.ToyConfig(n_trigrams=3, n_heads=2))


def same_weights(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    ours, theirs = a.state_dict(), b.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[n], theirs[n]) for n in ours)


# A block alone.


def blocks() -> dict[str, Replacement]:
    attn = toy().blocks[0].attn
    return {
        "gated": gi.GatedAttention.from_attention(attn, 3, d_gate=2, seed=1),
        "topk": TopKAttention.from_attention(attn, 3, k=2, seed=1),
        "sae": OutputAutoencoder.from_attention(attn, 3, seed=1),
    }


@pytest.mark.parametrize("kind", sorted(KINDS.keys() & blocks().keys()))
@pytest.mark.parametrize("place", ["block.safetensors", "folder"])
def test_a_block_of_every_kind_comes_back_bit_for_bit(
    tmp_path: Path, kind: str, place: str
) -> None:
    block, attn = blocks()[kind], toy().blocks[0].attn
    with torch.no_grad():  # nothing must come back by being drawn again
        for parameter in block.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=torch.manual_seed(3)))
    block.l0 = 1.25
    path = block.save_pretrained(tmp_path / place)
    assert path.name == ("model.safetensors" if place == "folder" else place)
    for reader in (type(block), Replacement):
        back = reader.from_pretrained(tmp_path / place, original=attn)
        assert type(back) is type(block)
        assert (back.config, back.l0) == (block.config, 1.25)
        assert same_weights(back, block)
    x = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(back(x), block(x))
    again = block.save_pretrained(tmp_path / "again.safetensors")
    assert again.read_bytes() == path.read_bytes()


def test_a_block_of_a_shipped_model_is_the_models_own() -> None:
    block = gi.GatedAttention.from_pretrained("2H3ST-gated")
    model = gi.load("2H3ST-gated")
    assert same_weights(block, model.blocks[0].attn)
    assert block.l0 == model.blocks[0].attn.l0 is not None
    with refuses("block-of-another-layer"):
        gi.splice(toy(), 0, block)
    spliced = gi.splice(toy(), 0, block, other_layer=True)
    assert spliced.blocks[0].attn is block


def test_a_block_of_a_checkpoint_is_that_of_its_layer(tmp_path: Path) -> None:
    model = gi.build_attention(gi.AttentionConfig.of(TASK, n_layers=3, n_heads=2, d_head=2))
    model.task = TASK
    gated = gi.GatedAttention.from_attention(model.blocks[0].attn, 2, seed=1)
    topk = TopKAttention.from_attention(model.blocks[2].attn, 2, seed=2)
    sae = OutputAutoencoder.from_attention(model.blocks[1].attn, 2, seed=3)
    path = tmp_path / "model.safetensors"
    both = gi.splice(gi.splice(model, 0, gated), 2, topk)
    gi.save(gi.splice(both, 1, sae), path, notes={"l0": 0.5})
    assert same_weights(gi.GatedAttention.from_pretrained(path, layer=0), gated)
    assert same_weights(TopKAttention.from_pretrained(tmp_path, layer=2), topk)
    with refuses("original-needed"):
        OutputAutoencoder.from_pretrained(path, 1)
    back = OutputAutoencoder.from_pretrained(path, 1, original=model.blocks[1].attn)
    assert same_weights(back, sae)
    said = {
        (gi.GatedAttention, None): "which-layer",
        (gi.GatedAttention, 3): "no-replacement-in-file-layer",
        (gi.GatedAttention, 2): "another-kind-in-file",
    }
    for (kind, layer), code in said.items():
        with refuses(code, CheckpointError):
            kind.from_pretrained(path, layer)


def test_what_is_no_block_gets_a_sentence(tmp_path: Path) -> None:
    block = gi.GatedAttention(gi.GatedConfig(d_model=8, n_heads=3))
    path = block.save_pretrained(tmp_path / "block.safetensors")
    (tmp_path / "text.safetensors").write_text("no")
    save_file({"W": torch.zeros(1)}, tmp_path / "bare.safetensors")
    save_file(load_file(path), tmp_path / "later.safetensors", {
        "gated_interp_block": '{"format_version": 2}'
    })  # fmt: skip
    wide = gi.build_toy(gi.ToyConfig(n_trigrams=5, n_heads=2)).blocks[0].attn
    sae = blocks()["sae"].save_pretrained(tmp_path / "sae.safetensors")
    read = gi.GatedAttention.from_pretrained
    cases: dict[str, Any] = {
        "no-such-file": lambda: read(tmp_path / "gone.safetensors"),
        "no-such-model": lambda: read("2H3ST"),
        "model-without-replacement": lambda: read("2H3ST-toy"),
        "not-safetensors": lambda: read(tmp_path / "text.safetensors"),
        "published-model": lambda: read(tmp_path / "bare.safetensors"),
        "newer-format-version": lambda: read(tmp_path / "later.safetensors"),
        "single-block-has-no-layer": lambda: read(path, 0),
        "block-without-model": lambda: gi.load(path),
        "original-width-mismatch": lambda: Replacement.from_pretrained(sae, original=wide),
    }
    for code, case in cases.items():
        with refuses(code):
            case()


def test_a_block_that_would_not_come_back_is_not_written(tmp_path: Path) -> None:
    block = gi.GatedAttention(gi.GatedConfig(d_model=8, n_heads=3, value_bias=False))
    before = block.save_pretrained(tmp_path).read_bytes()
    with torch.no_grad():
        block.b_V.fill_(1.0)
    with refuses("bias-would-be-lost", name="b_V"):
        block.save_pretrained(tmp_path)
    with torch.no_grad():
        block.b_V.zero_()
        block.W_Q[0, 0, 0] = torch.nan
    with refuses("tensor-not-finite", CheckpointError, bad=1):
        block.save_pretrained(tmp_path)
    with refuses("parameter-cannot-be-saved", name="W_Q"):
        block.double().save_pretrained(tmp_path)
    assert [p.read_bytes() for p in tmp_path.iterdir()] == [before]


# Heads by their TransformerLens name.


def calls() -> dict[str, Any]:
    """What takes a head, as a function of how the one in layer 1 is named."""
    model = TWO_LAYERS.model
    other = TEXT.flip(0)
    hook = "blocks.1.attn.hook_z"
    return {
        "ablate": lambda h: gi.ablate(model, TEXT, [h]),
        "without_heads": lambda h: logits_without(model, h),
        "subset_values": lambda h: gi.subset_values(model, TEXT, heads=[h]).to_frame(),
        "shapley": lambda h: gi.shapley(model, TEXT, heads=[(0, 0), h]),
        "pair_interactions": lambda h: gi.pair_interactions(model, TEXT, heads=["L0H0", h])["loss"],
        "activation_patch": lambda h: gi.activation_patch(model, TEXT, other, hook, head=h),
        "path_patch": lambda h: gi.path_patch(
            model, TEXT, other, "L0H0", "blocks.1.attn.hook_k", receiver_head=h
        ),
        "path_patch, sender": lambda h: gi.path_patch(
            model, TEXT, other, h, "blocks.1.hook_resid_post"
        ),
        "induction_paths": lambda h: gi.induction_paths(model, h, ["L0H0"], n=3, bos=0),
        "skip_trigrams": lambda h: gi.text.skip_trigrams(model, 1, TEXT, heads=[h], least=1),
        "ov_circuit": lambda h: gi.ov_circuit(model, h).matrix,
        "qk_circuit": lambda h: gi.qk_circuit(model, h).matrix,
        "gate_circuit": lambda h: gi.gate_circuit(gated(), h).matrix,
        "qk_attribution": lambda h: gi.qk_attribution(model, h, tokens=TEXT).score.pairs,
    }


def logits_without(model: Any, head: Any) -> torch.Tensor:
    with gi.without_heads(model, [head]) as without:
        found: torch.Tensor = without(TEXT)
    return found


def gated() -> Any:
    block = gi.GatedAttention.from_attention(TWO_LAYERS.model.blocks[1].attn, 2, seed=1)
    return gi.splice(TWO_LAYERS.model, 1, block)


def equal(a: Any, b: Any) -> bool:
    return bool(a.equals(b)) if isinstance(a, pd.DataFrame) else torch.equal(a, b)


BY_NUMBER = ("activation_patch", "path_patch", "skip_trigrams")


@pytest.mark.parametrize("name", calls())
def test_a_head_may_be_named_wherever_its_layer_and_number_do(name: str) -> None:
    call = calls()[name]
    named = call("L1H0")
    assert equal(named, call((1, 0)))
    if name in BY_NUMBER:
        assert equal(named, call(0))
    for wrong, code in (("L1H9", "no-such-head"), ("H0", "not-a-head")):
        with refuses(code):
            call(wrong)
    if name in BY_NUMBER:
        with refuses("head-in-another-layer", head="L0H0", layer=1):
            call("L0H0")


def test_every_public_function_that_takes_heads_takes_their_names() -> None:
    """What has an argument for a head is in the list above."""
    takes = {
        name
        for name, thing in [*vars(gi.text).items(), *((n, getattr(gi, n)) for n in gi.__all__)]
        if inspect.isfunction(thing)
        and {"head", "heads", "receiver_head", "senders"}
        & inspect.signature(thing).parameters.keys()
    }
    # A block's number of heads, not which of them.
    assert takes - {"fit_gated"} <= calls().keys()


def test_a_circuit_needs_one_head() -> None:
    model = TWO_LAYERS.model
    assert torch.equal(gi.ov_circuit(model, "L1H0").matrix, gi.ov_circuit(model, 1, 0).matrix)
    with refuses("layer-without-head", layer=1):
        gi.ov_circuit(model, 1)
    with refuses("two-heads"):
        gi.ov_circuit(model, "L1H0", 0)


def test_heads_say_their_layer_where_none_is_named() -> None:
    model = TWO_LAYERS.model
    assert heads_in(model, None, ["L1H0"]) == (1, [0])
    assert heads_in(model, None, "L1H0") == (1, [0])
    assert heads_in(toy(), None, None) == (0, [0, 1])
    for heads, code in (
        (["L0H0", "L1H0"], "head-in-another-layer"),
        (["L1H0", (1, 0)], "head-named-twice"),
        ([], "which-layer-of-heads"),
        ([0], "which-layer-of-heads"),
    ):
        with refuses(code):
            heads_in(model, None, heads)
    with refuses("no-heads"):
        heads_in(model, 1, [])


# Figures.


def drawing() -> set[str]:
    functions = {n for n in gi.plots.__all__ if inspect.isfunction(getattr(gi.plots, n))}
    return functions - {"save_figure", "save_figures"}


def test_what_draws_says_that_it_returns_a_figure() -> None:
    returned = {n: typing.get_type_hints(getattr(gi.plots, n))["return"] for n in drawing()}
    assert returned.pop("attention_view") is gi.plots.AttentionView
    assert len(returned) > 15
    assert set(returned.values()) == {go.Figure}


def test_what_draws_returns_a_figure() -> None:
    called = {name for draw in FIGURES.values() for name in draw.__code__.co_names}
    assert drawing() - {"attention_view"} <= called
    for name, draw in FIGURES.items():
        assert type(draw()) is go.Figure, name


def test_figures_are_an_attribute_of_the_package() -> None:
    assert "plots" in dir(gi)
    assert {"ablation_bars", "save_figure"} <= set(dir(gi.plots))


# The default training.

# Of one run, or of how it is written down; they do not decide what is learnt.
FREE = {"seed", "log_every", "data", "n_sequences"}
PLAIN = {
    "alpha": 0.2, "alpha_unit": "absolute", "overlap": 0.0, "overlap_power": 1.0,
    "penalty_off": 0.2, "penalty_ramp": 0.2, "fvu_target": None, "fvu_from": 0.2,
    "factor_floor": 1e-3,
}  # fmt: skip


def differences(config: gi.TrainConfig, other: gi.TrainConfig) -> dict[str, Any]:
    theirs = other.to_dict()
    return {n: v for n, v in config.to_dict().items() if v != theirs[n]}


def test_the_default_training_is_the_reliable_recipes() -> None:
    assert recipe_named("reliable", 2, 3) == RELIABLE
    run = RELIABLE.gated_run(toy(), TASK, seed=5)
    assert set(differences(gi.TrainConfig(), run.config)) == FREE


def test_what_the_default_was_has_a_name() -> None:
    assert differences(gi.TrainConfig.plain(), gi.TrainConfig()) == PLAIN
    assert gi.TrainConfig.plain(alpha=0.5).alpha == 0.5


def test_presets_are_what_they_were() -> None:
    plain, preset = gi.TrainConfig.plain(), gi.TrainConfig
    assert differences(preset.toy(), plain) == {"lr": 0.03, "alpha": 0.0}
    assert differences(preset.language(), plain) == {
        "batch_size": 64, "clip_norm": 1.0, "lr": 4e-3, "lr_decay": 0.95, "decay_shape": "cosine",
        "warmup": 0.05, "weight_decay": 0.05, "alpha": 0.0, "evaluate_every": 100,
    }  # fmt: skip
    assert differences(preset.fit(), plain) == {
        "lr": 3e-3, "alpha": 0.03, "alpha_unit": "variance", "overlap": 0.1, "downstream": 0.67,
        "penalty_off": 0.0, "penalty_ramp": 0.3, "fvu_from": 0.0,
    }  # fmt: skip
    assert differences(preset.reference(), plain) == {
        "steps": 100_000, "batch_size": 1000, "lr": 1e-3, "lr_decay": 0.0, "alpha": 0.0,
        "penalty_off": 0.0, "penalty_ramp": 0.0, "data": "fixed", "log_every": 100,
    }  # fmt: skip


RECIPES = {f"{name} {n}": recipe_named(name, n, n + 1) for name in ("reliable", "reference")
           for n in (2, 3, 4, 5)}  # fmt: skip
RECIPES |= {name: at(METHODS[name], METHODS[name].values[-1]) for name in tuned()}


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_says_every_field_that_the_default_changed(name: str) -> None:
    """Whatever ``TrainConfig()`` is, a recipe's training is what the recipe says."""
    recipe = RECIPES[name]
    assert PLAIN.keys() <= recipe.training.to_dict().keys()
    runs = recipe.gated_run(toy(), TASK, seed=5), recipe.toy_run(2, TASK, seed=5)
    for run, training in zip(runs, (recipe.training, recipe.original), strict=True):
        assert differences(run.config, training).keys() <= {"seed", "log_every"}
    toys = runs[1].config
    assert not differences(toys, gi.TrainConfig.toy()).keys() & PLAIN.keys()


@pytest.mark.parametrize("name", METHODS)
def test_a_fit_changes_only_what_its_method_says(name: str) -> None:
    _, config = fit_settings(toy(), method=name)
    changed = differences(config, gi.TrainConfig.fit())
    assert changed.keys() == {"batch_size", "fvu_target"} | {
        n for n, v in METHODS[name].train.items() if v != getattr(gi.TrainConfig.fit(), n)
    }
