"""An adversary that opens what is shut: each rung is what an edit by hand gives."""

import pytest
import torch
from closeness import assert_close
from refusals import refuses

import gated_interp as gi
from gated_interp.analysis.adversary import _Opener
from gated_interp.analysis.heads import intervened
from gated_interp.core.seeds import derive, generator
from gated_interp.core.streams import Stream
from gated_interp.metrics.predictions import kl_divergence
from gated_interp.replacements.replacement import active
from gated_interp.replacements.topk import TopKAttention, TopKConfig

MODEL = gi.load("2H3ST-gated")
TOKENS = MODEL.task.sample(7, seed=0).tokens


def topk(n_heads=6, k=1):
    layer = TopKAttention(TopKConfig(d_model=8, n_heads=n_heads, k=k, value_bias=False))
    return gi.splice(gi.unsplice(MODEL), 0, layer)


def moved(model, edits):
    with intervened(model, edits), torch.no_grad():
        return kl_divergence(gi.unsplice(model)(TOKENS), model(TOKENS))


def test_gates_are_opened_as_an_edit_of_each_opens_them():
    ladder = gi.adversary_ladder(MODEL, 0, TOKENS, seed=3, rungs=(1,), draws=1)
    _, seen = MODEL.run_with_cache(TOKENS)
    gate = seen["blocks.0.attn.hook_gate"]
    causal = torch.ones_like(gate[0, 0]).tril().bool()
    shut = (gate <= 1e-3) & causal
    assert_close(ladder.kl["nothing opened"], moved(MODEL, {}), scale=1.0)
    coins = torch.rand(gate.shape, generator=generator(derive(3, Stream.LADDER, 0, 0))) < 0.5
    by_hand = moved(MODEL, {"blocks.0.attn.hook_gate": lambda g: g.where(~(shut & coins), 1.0)})
    assert_close(ladder.kl["opened at random"], by_hand)
    assert ladder.shut == pytest.approx(float(shut.sum() / causal.sum() / len(gate) / 8))
    zeroed = gi.faithfulness(MODEL, TOKENS).kl_zero
    assert zeroed is None  # of a task; by hand then
    original = gi.unsplice(MODEL)
    with intervened(original, {"blocks.0.hook_attn_out": torch.zeros_like}), torch.no_grad():
        after = original(TOKENS)
    assert_close(ladder.kl["layer zeroed"], kl_divergence(gi.unsplice(MODEL)(TOKENS), after))


def test_heads_that_are_not_picked_are_opened_by_what_they_attend_to():
    model = topk()
    block = model.blocks[0].attn
    ladder = gi.adversary_ladder(model, 0, TOKENS, seed=1, rungs=(2,), draws=1)
    _, seen = model.run_with_cache(TOKENS)
    z = seen["blocks.0.attn.hook_z"]
    would = torch.einsum(
        "bhqk,bkhd->bqhd", seen["blocks.0.attn.hook_pattern"], seen["blocks.0.attn.hook_v"]
    )
    shut = ~active(z, block.W_O)
    coins = torch.rand(shut.shape, generator=generator(derive(1, Stream.LADDER, 0, 0))) < 0.5
    put = would.where((shut & coins)[..., None], z)
    by_hand = moved(model, {"blocks.0.attn.hook_z": lambda _: put})
    assert_close(ladder.kl["opened at random"], by_hand)
    assert ladder.shut == pytest.approx(float(shut.double().mean()))


def test_the_gradient_of_the_ascent_is_that_of_the_masks():
    """By differences: opening one gate a little more moves the KL by its slope."""
    batch = gi.anatomy.Batch.of(MODEL, TOKENS[:1])
    opener = _Opener.of(MODEL, gi.unsplice(MODEL), {0: MODEL.blocks[0].attn}, batch, {})
    mask = torch.full_like(opener.shut[0], 0.5).requires_grad_()
    (slope,) = torch.autograd.grad(opener.moved({0: mask}).kl.sum(), mask)
    at = tuple(int(i) for i in (slope.abs() == slope.abs().max()).nonzero()[0])
    step = torch.zeros_like(mask)
    step[at] = 0.05
    up, down = (opener.moved({0: (mask + s).detach()}).kl.sum() for s in (step, -step))
    assert float((up - down).detach() / 0.1) == pytest.approx(float(slope[at]), rel=0.05)


def test_rungs_never_fall_and_an_adversary_is_worse_than_chance():
    for model in (MODEL, topk()):
        found = gi.adversary_ladder(model, None, TOKENS, seed=0, rungs=(3, 6, 20))
        rungs = torch.stack([found.kl[f"{n} steps"] for n in (3, 6, 20)])
        assert bool((rungs.diff(dim=0) >= 0).all())
        assert bool((found.kl["20 steps"] >= found.kl["opened at random"]).all())
        table = found.table()
        assert list(table.rung) == [
            "nothing opened", "opened at random", "3 steps", "6 steps", "20 steps",
            "layer zeroed", "random weights",
        ]  # fmt: skip
        assert table.steps.dropna().tolist() == [0, 3, 6, 20]
        assert (table.kl_low <= table.kl).all()
    again = gi.adversary_ladder(topk(), 0, TOKENS, seed=0, rungs=(3, 6, 20)).table()
    assert again.equals(table)


def test_more_starts_and_more_steps_find_no_less():
    rungs = ("1 steps", "4 steps", "12 steps")
    once, twice, thrice = (
        gi.adversary_ladder(MODEL, 0, TOKENS, seed=0, rungs=(1, 4, 12), draws=1, restarts=n)
        for n in (1, 2, 3)
    )
    for fewer, more in ((once, twice), (twice, thrice)):
        for rung in rungs:
            assert bool((more.kl[rung] >= fewer.kl[rung]).all())
    assert bool((thrice.kl["4 steps"] > once.kl["4 steps"]).any())  # the first is not the best
    for found in (once, thrice):
        assert bool((torch.stack([found.kl[r] for r in rungs]).diff(dim=0) >= 0).all())
    another = gi.adversary_ladder(MODEL, 0, TOKENS, seed=1, rungs=(4,), draws=1, restarts=1)
    assert torch.equal(another.kl["4 steps"], once.kl["4 steps"])  # the first start has no seed


def test_the_loss_is_that_of_the_worst_predictions():
    ladder = gi.adversary_ladder(MODEL, 0, TOKENS, seed=3, rungs=(1,), draws=1)
    with torch.no_grad():
        for rung, model in (("original", gi.unsplice(MODEL)), ("nothing opened", MODEL)):
            log_p = model(TOKENS).log_softmax(-1)[:, :-1]
            by_hand = -log_p.gather(2, TOKENS[:, 1:, None])[..., 0].mean(1)
            assert_close(ladder.loss[rung], by_hand, scale=1.0)
    table = ladder.table().set_index("rung")
    increase = (ladder.loss["1 steps"] - ladder.loss["original"]).double().mean()
    assert table.loss_increase["1 steps"] == pytest.approx(float(increase))


def test_where_nothing_is_shut_nothing_moves():
    block = gi.GatedAttention(gi.GatedConfig(d_model=8, n_heads=4, gate="open"))
    model = gi.splice(gi.unsplice(MODEL), 0, block)
    found = gi.adversary_ladder(model, 0, TOKENS, seed=0, rungs=(2,), draws=2)
    assert found.shut == 0
    assert torch.equal(found.kl["2 steps"], found.kl["nothing opened"])
    assert torch.equal(found.kl["opened at random"], found.kl["nothing opened"])


def test_padding_is_never_opened_and_weights_stay_as_they_are():
    before = {n: p.clone() for n, p in MODEL.named_parameters()}
    padded = torch.cat([TOKENS, torch.zeros_like(TOKENS[:, :0])], 1)[:, :8]
    mask = torch.ones_like(padded)
    mask[:, 6:] = 0
    # One start, at one half: random ones differ with the shape.
    common = {"seed": 0, "rungs": (3,), "draws": 1, "restarts": 1}
    short = gi.adversary_ladder(MODEL, 0, TOKENS[:, :6], **common)
    long = gi.adversary_ladder(MODEL, 0, padded, **common, attention_mask=mask)
    for rung in ("nothing opened", "3 steps", "layer zeroed"):
        assert_close(long.kl[rung], short.kl[rung], scale=1.0)
    assert long.shut == pytest.approx(short.shut)
    assert all(torch.equal(p, before[n]) and p.grad is None for n, p in MODEL.named_parameters())


def test_bad_input_in_one_sentence():
    with refuses("nothing-spliced"):
        gi.adversary_ladder(gi.unsplice(MODEL), None, TOKENS, seed=0)
    with refuses("no-replacement"):
        gi.adversary_ladder(gi.unsplice(MODEL), 0, TOKENS, seed=0)
    with refuses("too-small"):
        gi.adversary_ladder(MODEL, 0, TOKENS, seed=0, restarts=0)
    for rungs in ((), (0, 2), (4, 2)):
        with refuses("bad-rungs"):
            gi.adversary_ladder(MODEL, 0, TOKENS, seed=0, rungs=rungs)
    with refuses("too-small"):
        gi.adversary_ladder(MODEL, 0, TOKENS, seed=0, draws=0)
