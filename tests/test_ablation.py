"""Head ablation: exact identities, methods against their definitions, no hook left behind."""

import math

import attention_models as models
import pytest
import torch
from closeness import assert_close
from refusals import refuses

from gated_interp.analysis.ablation import ablate, without_heads
from gated_interp.analysis.heads import all_heads, head_counts, intervened, require_heads
from gated_interp.metrics.predictions import (
    kl_by_position,
    log_probabilities,
    loss_and_kl_by_position,
    losses_by_position,
)
from gated_interp.models.analytic import manual_model
from gated_interp.tasks.skip_trigrams import SkipTrigramTask

TASK = SkipTrigramTask(3)
BATCH = TASK.sample(101, seed=0)
TOKENS = BATCH.tokens
REFERENCE = TASK.sample(53, seed=1).tokens

MAKE = {
    "toy": lambda: models.toy(TASK),
    "gated": lambda: models.gated(TASK),
    "two layers": lambda: models.two_layers(TASK),
    "two layers, RMS": lambda: models.two_layers(TASK, normalization_type="RMS"),
    "two layers, one gated": lambda: models.gated_layer(TASK),
}


@pytest.fixture(params=MAKE)
def model(request):
    return MAKE[request.param]()


def hooks_of(model):
    return sum(len(p._forward_hooks) + len(p.fwd_hooks) for p in model.hook_dict.values())


def test_heads_are_counted_where_they_are():
    spliced = models.gated_layer(TASK)
    assert head_counts(spliced) == [3, 5]
    assert all_heads(spliced)[-1] == (1, 4)
    assert require_heads(spliced, [(1, 4), (0, 2)]) == [(1, 4), (0, 2)]


def test_ablating_every_head_is_the_model_without_attention(model):
    without = {
        f"blocks.{i}.hook_attn_out": lambda out, b=block.attn.b_O: b.expand_as(out)
        for i, block in enumerate(model.blocks)
    }
    with intervened(model, without):
        expected = model(TOKENS)
    with without_heads(model, all_heads(model)) as bare:
        assert torch.equal(bare(TOKENS), expected)
    assert not torch.allclose(model(TOKENS), expected, atol=1e-2)


def test_a_toy_without_heads_is_its_embedding():
    model = models.toy(TASK)
    with without_heads(model, all_heads(model)):
        logits = model(TOKENS)
    expected = model.embed.W_E[TOKENS] + model.blocks[0].attn.b_O
    assert torch.equal(logits, expected @ model.unembed.W_U)


def test_one_head_is_removed_and_b_O_stays(model):
    """Ablating head 1 takes away z W_O of head 1 and nothing else."""
    _, cache = model.run_with_cache(TOKENS)
    z, W_O = cache["blocks.0.attn.hook_z"], model.blocks[0].attn.W_O
    with without_heads(model, [(0, 1)]):
        _, after = model.run_with_cache(TOKENS)
    lost = cache["blocks.0.hook_attn_out"] - after["blocks.0.hook_attn_out"]
    assert_close(lost, z[:, :, 1] @ W_O[1])
    assert lost.abs().max() > 1e-2


def test_mean_and_resample_put_what_they_say(model):
    name = "blocks.0.attn.hook_z"
    _, cache = model.run_with_cache(REFERENCE)
    reference = cache[name][:, :, 2]
    with without_heads(model, [(0, 2)], "mean", reference_tokens=REFERENCE):
        _, seen = model.run_with_cache(TOKENS)
    expected = reference.mean((0, 1)).expand_as(seen[name][:, :, 2])
    assert_close(seen[name][:, :, 2], expected)

    with without_heads(model, [(0, 2)], "resample", reference_tokens=REFERENCE, seed=7):
        _, seen = model.run_with_cache(TOKENS)
        again = model(TOKENS)
        assert torch.equal(again, model(TOKENS))
    distance = (seen[name][:, None, :, 2] - reference[None]).abs().amax((2, 3))
    assert (distance.amin(1) == 0).all()  # every row is some reference row
    assert len(set(distance.argmin(1).tolist())) > 20
    with without_heads(model, [(0, 2)], "resample", reference_tokens=REFERENCE, seed=8):
        assert not torch.equal(again, model(TOKENS))


def test_resampled_heads_of_all_layers_come_from_one_row():
    model = models.two_layers(TASK)
    _, cache = model.run_with_cache(REFERENCE)
    heads = [(0, 0), (1, 2)]
    with without_heads(model, heads, "resample", reference_tokens=REFERENCE, seed=3):
        _, seen = model.run_with_cache(TOKENS)
    rows = []
    for layer, head in heads:
        name = f"blocks.{layer}.attn.hook_z"
        distance = (seen[name][:, None, :, head] - cache[name][None, :, :, head]).abs()
        rows.append(distance.amax((2, 3)).argmin(1))
    assert torch.equal(*rows)


@pytest.mark.parametrize(
    ("name", "objective"),
    [
        ("toy", "loss"),
        ("toy", "kl"),
        ("two layers, one gated", "kl"),
        pytest.param("two layers, one gated", "loss", marks=pytest.mark.slow),
    ],
)
def test_optimal_is_better_than_mean_and_zero(name, objective):
    model, reference = MAKE[name](), REFERENCE[:17]
    heads = [(0, 0), (model.cfg.n_layers - 1, 2)]
    costs = {}
    for method in ("zero", "mean", "optimal"):
        table = ablate(
            model, reference, heads, method, reference_tokens=reference, objective=objective
        )
        rows = table[(table.metric == objective) & (table.kind == "set")]
        costs[method] = rows.ablated.item()
    assert costs["optimal"] < costs["mean"] - 1e-4
    assert costs["optimal"] < costs["zero"] - 1e-4


def test_optimal_constant_of_a_linear_layer_is_stationary():
    """In one linear layer the problem is convex: a zero gradient is the optimum."""
    model = models.toy(TASK, n_heads=2, d_head=1)
    name = "blocks.0.attn.hook_z"
    with (
        without_heads(model, [(0, 0)], "optimal", reference_tokens=REFERENCE, objective="loss"),
        torch.no_grad(),
    ):
        _, cache = model.run_with_cache(REFERENCE)
    constant = cache[name][0, 0, 0].item()

    def loss(value):
        def edit(z):
            return torch.cat([torch.full_like(z[:, :, :1], value), z[:, :, 1:]], 2)

        with intervened(model, {name: edit}), torch.no_grad():
            log_p = model(REFERENCE).double().log_softmax(-1)
        return -log_p[:, :-1].gather(-1, REFERENCE[:, 1:, None]).mean().item()

    at = loss(constant)
    assert loss(constant + 0.1) > at
    assert loss(constant - 0.1) > at
    assert (
        abs(loss(constant + 0.1) - loss(constant - 0.1)) < 0.2 * (loss(constant + 0.1) - at) + 1e-4
    )


def test_optimal_leaves_gradients_alone():
    model = models.toy(TASK)
    with without_heads(model, [(0, 0)], "optimal", reference_tokens=REFERENCE), torch.no_grad():
        model(TOKENS)
    assert all(p.grad is None for p in model.parameters())
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("method", ["zero", "mean", "resample", "optimal"])
def test_no_hook_survives(model, method):
    kept = []
    model.hook_dict["hook_embed"].add_hook(lambda x, hook: kept.append(1))
    before, intact = hooks_of(model), model(TOKENS[:5])
    with (
        pytest.raises(KeyboardInterrupt),
        without_heads(model, [(0, 0)], method, reference_tokens=REFERENCE[:5], seed=0),
    ):
        raise KeyboardInterrupt
    with (
        pytest.raises(IndexError),
        without_heads(model, [(0, 0)], method, reference_tokens=REFERENCE[:5], seed=0),
    ):
        model(TOKENS[:5] + 1000)
    assert hooks_of(model) == before == 2
    seen = len(kept)
    assert torch.equal(model(TOKENS[:5]), intact)
    assert len(kept) == seen + 1  # somebody else's hook is still there


def test_no_hook_survives_an_interrupt_in_the_forward_pass():
    model = models.toy(TASK)

    def interrupt(scores, hook):
        raise KeyboardInterrupt

    with (
        pytest.raises(KeyboardInterrupt),
        model.hooks(fwd_hooks=[("blocks.0.attn.hook_pattern", interrupt)]),
    ):
        ablate(model, TOKENS)
    assert hooks_of(model) == 0


def test_tidy_table_of_the_manual_model():
    """Known weights: head 0 holds trigram 1, head 1 holds 2, both hold 3."""
    truth = manual_model(2, 3)
    batch = truth.task.sample(500, seed=0)
    table = ablate(truth.model, batch, task=truth.task)
    assert table.groupby(["kind", "heads"], sort=False).ngroups == 3
    assert list(table.columns) == [
        *("kind", "heads", "method", "metric", "trigram"),
        *("intact", "ablated", "change", "low", "high", "n"),
    ]

    def value(heads, metric, trigram, column="change", kind="head"):
        t = table[(table.kind == kind) & (table.heads == heads) & (table.metric == metric)]
        return t[t.trigram == trigram][column].item()

    # Head 0 writes +2 to C1 (on 1), -2 to C2 (never on 2), +1 of the 2 to C3.
    assert_close([value("L0H0", "logit", b) for b in (1, 2, 3)], [-2, 0, -1])
    assert [value("L0H0", "accuracy", b, "ablated") for b in (1, 2, 3)] == [0, 1, 0]
    assert [value("L0H1", "accuracy", b, "ablated") for b in (1, 2, 3)] == [1, 0, 0]
    assert [value("all heads", "accuracy", b, kind="all") for b in (1, 2, 3)] == [-1, -1, -1]
    kl = table[table.metric == "kl"]
    assert (kl.intact == 0).all()
    assert (kl.change > 0).all()
    loss = table[(table.metric == "loss") & (table.kind == "all")]
    assert_close(loss.change.item(), loss.ablated.item() - loss.intact.item())
    assert loss.change.item() > 0
    assert loss.low.item() < loss.change.item() < loss.high.item()


def test_table_equals_the_model(model):
    """Loss, KL, logits and accuracy worked out a second way from the logits."""
    table = ablate(model, BATCH, [(0, 1), (0, 2)], task=TASK)
    assert set(table.kind) == {"head", "set", "all"}
    with without_heads(model, [(0, 1), (0, 2)]):
        after = model(TOKENS).double()
    before = model(TOKENS).double()
    rows = table[table.kind == "set"].set_index(["metric", "trigram"])
    ce = torch.nn.functional.cross_entropy(after[:, :-1].flatten(0, 1), TOKENS[:, 1:].flatten())
    assert_close(rows.ablated["loss"].item(), ce)
    kl = torch.nn.functional.kl_div(
        after.log_softmax(-1), before.log_softmax(-1), log_target=True, reduction="sum"
    )
    assert_close(rows.ablated["kl"].item(), kl / TOKENS.numel())
    mine = BATCH.trigram == 2
    at = after[BATCH.example[mine], BATCH.destination_pos[mine]]
    assert_close(rows.ablated["logit", 2], at[:, 5].mean(), scale=after.abs().max())
    assert_close(rows.ablated["accuracy", 2], (at.argmax(-1) == 5).double().mean(), scale=1.0)
    assert rows.n["logit", 2] == int(mine.sum())


@pytest.mark.parametrize(
    ("heads", "code"),
    [
        ([(0, 3)], "no-such-head"),
        ([(2, 0)], "no-such-layer"),
        ([(-1, 0)], "no-such-layer"),
        ([], "no-heads"),
        ([(0, 0), (0, 0)], "head-named-twice"),
    ],
)
def test_heads_that_are_not_there(heads, code):
    model = models.two_layers(TASK)
    with refuses(code), without_heads(model, heads):
        pass
    with refuses(code):
        ablate(model, TOKENS, heads)


def test_a_head_is_a_pair_or_a_name():
    model = models.gated_layer(TASK)
    assert require_heads(model, ["L1H4", (0, 2), [1, 0]]) == [(1, 4), (0, 2), (1, 0)]
    assert require_heads(model, "L1H4") == [(1, 4)]
    for bad in (0, "L1", "l0h1", "L0H1+L0H2", "L-1H0", (0, 1, 2), (0, True)):
        with refuses("not-a-head"):
            require_heads(model, [bad])
    with refuses("no-such-head", head=5, layer=1, last=4):
        require_heads(model, ["L1H5"])
    with refuses("head-named-twice", head="L0H1"):
        require_heads(model, ["L0H1", (0, 1)])


def test_sets_are_named_for_what_they_are():
    model = models.gated_layer(TASK)
    layer = [f"L1H{h}" for h in range(5)]
    named = ablate(model, TOKENS, layer)
    assert named[named.kind == "set"].heads.unique().tolist() == ["all of layer 1"]
    assert named[named.kind == "all"].heads.unique().tolist() == ["all heads"]
    assert ablate(model, TOKENS, layer[:2]).heads.unique().tolist() == [
        *("L1H0", "L1H1", "L1H0+L1H1", "all heads")
    ]
    single = ablate(models.toy(TASK, n_heads=1), TOKENS)
    assert single.heads.unique().tolist() == ["L0H0", "all heads"]


def last_logit(logits, tokens):
    return logits[:, -1, 0]


def test_a_metric_of_ones_own(model):
    """By sequence, by position and of all of them, against the logits themselves."""
    heads = [(0, 1)]
    with torch.no_grad(), without_heads(model, heads):
        after = model(TOKENS)
    with torch.no_grad():
        before = model(TOKENS)
    table = ablate(model, BATCH, heads, metric=last_logit)  # the batch's own metrics are left out
    assert table.metric.tolist() == ["last_logit"] * 2
    row = table[table.kind == "head"].iloc[0]
    change = (after - before)[:, -1, 0].double()
    assert row.n == len(TOKENS)
    assert row.change == pytest.approx(change.mean().item(), abs=1e-5)
    half_width = 1.96 * change.std().item() / len(change) ** 0.5
    assert (row.high - row.low) / 2 == pytest.approx(half_width, rel=1e-4)

    whole = ablate(model, TOKENS, heads, metric=lambda logits, tokens: logits[..., 0].mean())
    row = whole[whole.kind == "head"].iloc[0]
    assert (row.metric, row.n) == ("metric", 1)
    assert math.isnan(row.low)
    assert row.ablated == pytest.approx(after[..., 0].mean().item(), abs=1e-5)

    mask = torch.rand(TOKENS.shape, generator=torch.Generator().manual_seed(0)) < 0.3
    each = ablate(model, TOKENS, heads, metric=lambda logits, _: logits[..., 0], positions=mask)
    row = each[each.kind == "head"].iloc[0]
    wanted = [after[i, mask[i], 0].mean().item() for i in range(len(mask)) if mask[i].any()]
    assert row.n == len(wanted)
    assert row.ablated == pytest.approx(sum(wanted) / len(wanted), abs=1e-5)


def test_positions_where_predictions_are_measured(model):
    """Loss and KL at the named positions alone, worked out position by position."""
    mask = torch.rand(TOKENS.shape, generator=torch.Generator().manual_seed(1)) < 0.2
    mask[:9] = False  # these sequences are left out
    table = ablate(model, TOKENS, [(0, 1)], positions=mask)
    with torch.no_grad():
        log_q = model(TOKENS).double().log_softmax(-1)
        with without_heads(model, [(0, 1)]):
            log_p = model(TOKENS).double().log_softmax(-1)
    losses, kls = [], []
    for i, row in enumerate(mask):
        where = row.nonzero().flatten().tolist()
        loss = [-log_p[i, p, TOKENS[i, p + 1]] for p in where if p + 1 < len(row)]
        kl = [(log_q[i, p].exp() * (log_q[i, p] - log_p[i, p])).sum() for p in where]
        losses += [sum(loss) / len(loss)] if loss else []
        kls += [sum(kl) / len(kl)] if kl else []
    got = table[table.kind == "head"].set_index("metric")
    for name, wanted in (("loss", losses), ("kl", kls)):
        assert got.n[name] == len(wanted) <= len(TOKENS) - 9
        assert got.ablated[name] == pytest.approx(float(sum(wanted)) / len(wanted), rel=1e-4)
    by_position = torch.arange(TOKENS.shape[1]) % 2 == 0
    one, all_rows = (
        ablate(model, TOKENS, [(0, 1)], positions=m)
        for m in (by_position, by_position.expand(TOKENS.shape))
    )
    assert one.equals(all_rows)


def test_heads_are_off_at_some_positions_only():
    """Elsewhere a one-layer model predicts what it did; there, what it does without the head."""
    model, where = models.toy(TASK), torch.arange(TOKENS.shape[1]) > 4
    with torch.no_grad():
        intact = model(TOKENS)
        with without_heads(model, [(0, 1)]):
            everywhere = model(TOKENS)
        with without_heads(model, [(0, 1)], at=where):
            got = model(TOKENS)
    assert torch.equal(got[:, :5], intact[:, :5])
    assert torch.equal(got[:, 5:], everywhere[:, 5:])
    table = ablate(model, TOKENS, [(0, 1)], at=where, positions=~where)
    assert (table[(table.metric == "kl")].change == 0).all()
    table = ablate(model, TOKENS, [(0, 1)], at=where, positions=where)
    assert (table[(table.metric == "kl")].change > 0).all()


def test_masks_and_metrics_that_cannot_be():
    model = models.toy(TASK)
    n = TOKENS.shape[1]
    last = torch.arange(n) == n - 1
    bad = [
        ({"positions": torch.ones(3, dtype=torch.bool)}, "bad-mask"),
        ({"at": torch.ones(3, dtype=torch.bool)}, "bad-mask"),
        ({"positions": last}, "no-positions-to-measure"),
        ({"positions": last & False}, "no-positions-to-measure"),
        ({"metric": lambda logits, _: logits}, "metric-wrong-shape"),
        ({"metric": last_logit, "positions": last}, "metric-not-by-position"),
    ]
    for arguments, code in bad:
        with refuses(code):
            ablate(model, TOKENS, [(0, 0)], **arguments)


def test_bad_input_in_one_sentence():
    model = models.toy(TASK)
    two = TASK.sample(2, seed=0)
    bad = [
        ({"tokens": TOKENS + 8}, "token-outside-vocabulary"),
        ({"tokens": TOKENS.repeat(1, 2)}, "sequence-too-long"),
        ({"tokens": TOKENS[:0]}, "tokens-wrong-shape"),
        ({"tokens": TOKENS.to("meta")}, "tokens-on-another-device"),
        ({"tokens": TOKENS, "method": "mean"}, "no-reference-tokens"),
        ({"tokens": TOKENS, "method": "resample"}, "no-reference-tokens"),
        ({"tokens": TOKENS, "method": "optimal"}, "no-reference-tokens"),
        (
            {"tokens": TOKENS, "method": "resample", "reference_tokens": REFERENCE},
            "resample-without-seed",
        ),
        (
            {
                "tokens": TOKENS,
                "method": "resample",
                "reference_tokens": REFERENCE[:, :5],
                "seed": 0,
            },
            "reference-too-short",
        ),
        (
            {"tokens": TOKENS, "method": "mean", "reference_tokens": REFERENCE[:0]},
            "tokens-wrong-shape",
        ),
        ({"tokens": TOKENS, "task": TASK}, "bare-tokens"),
        ({"tokens": two, "task": TASK}, "case-without-examples"),
    ]
    for arguments, code in bad:
        with refuses(code):
            ablate(model, **arguments)
    with refuses("tokens-on-another-device", there="cpu", here="meta"):
        ablate(models.toy(TASK).to("meta"), TOKENS)
    with refuses("no-such-hook", name="hook_embd"):
        intervened(model, {"hook_embd": lambda x: x}).__enter__()


def test_the_interval_is_that_of_a_mean():
    """change ± 1.96 standard deviations / sqrt(n), worked out from each occurrence's logit."""
    model = models.toy(TASK)
    table = ablate(model, BATCH, [(0, 1)])
    with torch.no_grad():
        before = model(TOKENS).double()
        with without_heads(model, [(0, 1)]):
            after = model(TOKENS).double()
    mine = BATCH.trigram == 2
    at = (BATCH.example[mine], BATCH.destination_pos[mine])
    change = (after - before)[at][:, 5]
    margin = 1.96 * change.std().item() / len(change) ** 0.5
    row = table[(table.kind == "head") & (table.metric == "logit") & (table.trigram == 2)].iloc[0]
    assert len(change) > 5
    assert row.change == pytest.approx(change.mean().item(), abs=1e-5)
    assert (row.high - row.low) / 2 == pytest.approx(margin, rel=1e-4)
    assert (row.high + row.low) / 2 == pytest.approx(row.change)


def test_loss_and_kl_from_one_softmax_are_those_of_two():
    source = torch.Generator().manual_seed(0)
    p, q = torch.randn(2, 3, 40, 50, generator=source)
    tokens = torch.randint(50, (3, 40), generator=source)
    loss, kl = loss_and_kl_by_position(log_probabilities(p), q, tokens)
    assert_close(loss, losses_by_position(q, tokens))
    assert_close(kl, kl_by_position(p, q))
    _, nothing = loss_and_kl_by_position(log_probabilities(p), p, tokens)
    assert not nothing.any()
