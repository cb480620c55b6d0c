"""The verdict on text: who holds a position, against every subset of heads, one by one."""

import itertools

import numpy as np
import pytest
import torch
from closeness import assert_close
from refusals import refuses

import gated_interp as gi
from gated_interp.analysis.text_holders import text_holders
from gated_interp.models.analytic import manual_model


@pytest.fixture(scope="module", params=["LNPre", "LN", "none"])
def model(request):
    shape = {"d_vocab": 40, "n_ctx": 9, "n_layers": 2, "d_model": 12, "n_heads": 4}
    config = gi.text.LanguageModelConfig(**shape, normalization=request.param, seed=3)
    made = gi.text.build_language_model(config)
    with torch.no_grad():  # writes that differ in size, and a bias that must not count
        for layer, block in enumerate(made.blocks):
            block.attn.W_O *= torch.tensor([4.0, 1.0, 0.5, 2.0])[:, None, None]
            block.attn.b_O += torch.randn(12, generator=torch.Generator().manual_seed(layer))
        if request.param == "LN":
            made.ln_final.w *= torch.linspace(0.5, 2, 12)
    made.cfg.dtype = torch.float64  # no tie hangs on a last bit
    return made.double()


TOKENS = torch.randint(40, (6, 9), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def by_brute_force(model, layer, about_mean=False):
    """Through the model itself: the residual stream is what a subset of heads writes, no more."""
    name = f"blocks.{layer}.attn.hook_z"
    _, cache = model.run_with_cache(TOKENS)
    heads = cache[name].shape[2]
    writes = torch.einsum("bphd,hdm->bphm", cache[name], model.blocks[layer].attn.W_O)
    if about_mean:
        writes = writes - writes[:, 1:].mean((0, 1))
    scale = cache["ln_final.hook_scale"] if model.cfg.normalization_type else 1.0

    def top(kept):
        kept_writes = writes[:, :, list(kept)].sum(2)
        if model.cfg.normalization_type:
            kept_writes = kept_writes - kept_writes.mean(-1, keepdim=True)
        if model.cfg.normalization_type == "LN":
            kept_writes = kept_writes * model.ln_final.w
        return (kept_writes / scale) @ model.unembed.W_U

    whole = top(range(heads))
    wanted = whole.argmax(-1)
    keeps = torch.ones(*TOKENS.shape, heads, dtype=torch.bool)
    for h in range(heads):
        others = [o for o in range(heads) if o != h]
        for size in range(heads):
            for kept in itertools.combinations(others, size):
                keeps[..., h] &= top([h, *kept]).argmax(-1) == wanted
    sole = keeps.sum(-1) == 1
    effect = whole.amax(-1) - whole.mean(-1)
    return wanted, torch.where(sole, keeps.int().argmax(-1), -1), effect


@pytest.mark.parametrize("about_mean", [False, True])
@pytest.mark.parametrize("layer", [0, 1])
def test_the_closed_form_is_every_subset(model, layer, about_mean):
    found = text_holders(model, layer, TOKENS, about_mean=about_mean)
    top, holder, effect = by_brute_force(model, layer, about_mean)
    assert torch.equal(found.top, top)
    assert torch.equal(found.holder, holder)
    assert_close(found.effect, effect, roundings=64)
    assert 0 < found.share < 1  # else this would say little
    held = holder[:, 1:] != -1
    assert found.share == pytest.approx(float(held.double().mean()))
    weight = effect[:, 1:].double()
    assert found.weighted_share == pytest.approx(float((held * weight).sum() / weight.sum()), 1e-4)


@pytest.mark.parametrize("about_mean", [False, True])
def test_chunks_change_nothing(model, monkeypatch, about_mean):
    tokens = TOKENS.repeat(5, 1)
    whole = text_holders(model, 1, tokens, about_mean=about_mean)
    monkeypatch.setattr("gated_interp.analysis.text_holders.AT_ONCE", 40 * 4 * 5)
    parts = text_holders(model, 1, tokens, about_mean=about_mean)
    assert torch.equal(whole.holder, parts.holder)
    assert torch.equal(whole.top, parts.top)


def test_two_heads_that_say_the_same_are_no_sole_holder():
    """Removing the one leaves the other: the position is held by neither alone."""
    truth = manual_model(2, 3)
    tokens = truth.task.sample_single(60, seed=0)
    found = text_holders(truth.model, tokens.tokens)
    by_trigram = {b: set() for b in (1, 2, 3)}
    for b, row, pos in zip(
        tokens.trigram.tolist(),
        tokens.example.tolist(),
        tokens.destination_pos.tolist(),
        strict=True,
    ):
        by_trigram[b].add(int(found.holder[row, pos]))
    assert by_trigram == {1: {0}, 2: {1}, 3: {-1}}


def test_by_head_counts_what_each_head_holds(model):
    found = text_holders(model, 0, TOKENS)
    table = found.by_head()
    for row in table.to_dict("records"):
        held = found.top[:, 1:][found.holder[:, 1:] == row["head"]].tolist()
        _, counts = np.unique(held, return_counts=True)
        p = counts / max(1, len(held))
        assert row["positions"] == len(held)
        assert row["share"] == pytest.approx(len(held) / (6 * 8))
        assert row["tokens"] == len(counts)
        assert row["entropy"] == pytest.approx(float(-(p * np.log(p)).sum()))
        assert row["top"] in held or (row["top"] == -1 and not held)
    assert table["share"].sum() == pytest.approx(found.share)
    _, counts = np.unique(found.top[:, 1:][found.holder[:, 1:] != -1], return_counts=True)
    p = counts / counts.sum()
    assert found.entropy == pytest.approx(float(-(p * np.log(p)).sum()))


def test_a_constant_that_a_bias_takes_back_holds_everything_and_nothing(model):
    """The predictions are as before; only about the mean does the measure say so."""
    import copy

    attn = copy.deepcopy(model).blocks[1].attn
    loud = copy.deepcopy(model)
    with torch.no_grad():
        constant = 100.0
        loud.blocks[1].attn.b_V[0] += constant
        loud.blocks[1].attn.b_O -= constant * attn.W_O[0].sum(0)
        assert_close(loud(TOKENS), model(TOKENS), roundings=2**12)
    found = text_holders(loud, 1, TOKENS)
    assert (found.share, found.entropy) == (1.0, 0.0)
    assert set(found.holder[:, 1:].unique().tolist()) == {0}
    about_mean = text_holders(loud, 1, TOKENS, about_mean=True)
    wanted = text_holders(model, 1, TOKENS, about_mean=True)
    assert torch.equal(about_mean.holder, wanted.holder)
    assert 0 < wanted.share < 1
    assert wanted.entropy > 0


def test_a_layer_that_writes_nothing_has_no_holder(model):
    import copy

    silent = copy.deepcopy(model)
    with torch.no_grad():
        silent.blocks[1].attn.W_O.zero_()
    found = text_holders(silent, 1, TOKENS)
    assert found.share == 0
    assert found.weighted_share == 0
    assert found.entropy == 0


def test_refusals(model):
    with refuses("which-layer-of-heads"):
        text_holders(model, TOKENS)  # two layers, none named
    with refuses("one-position-only"):
        text_holders(model, 0, TOKENS[:, :1])
    with refuses("token-outside-vocabulary"):
        text_holders(model, 0, TOKENS + 40)
