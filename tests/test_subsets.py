"""Every subset from one pass equals every subset through hooks; the games' identities hold."""

from contextlib import ExitStack
from itertools import permutations

import attention_models as models
import pytest
import torch
from closeness import assert_close
from refusals import refuses

from gated_interp.analysis import subset_games
from gated_interp.analysis.ablation import without_heads
from gated_interp.analysis.heads import all_heads
from gated_interp.analysis.subsets import (
    harsanyi_dividends,
    pair_interactions,
    shapley,
    shapley_values,
    subset_values,
)
from gated_interp.metrics.predictions import leads, next_token_loss
from gated_interp.models.analytic import manual_model
from gated_interp.tasks.skip_trigrams import SkipTrigramTask

TASK = SkipTrigramTask(3)
FLOAT = {"dtype": torch.float32}
MAKE = {"toy": models.toy, "gated": models.gated}


@pytest.mark.parametrize("make", MAKE)
def test_subsets_from_one_pass_equal_hooks(make):
    model = MAKE[make](TASK)
    values = subset_values(model, TASK, n=200, seed=5)
    batch = TASK.sample_single(200, 5)
    heads = all_heads(model)
    for subset in range(2 ** len(heads)):
        kept = values.heads(subset)
        gone = [h for h in heads if h[1] not in kept]
        with torch.no_grad():
            if gone:
                with without_heads(model, gone):
                    logits = model(batch.tokens)
            else:
                logits = model(batch.tokens)
        at = logits[batch.example, batch.destination_pos].double()
        for b in TASK.trigrams:
            mine = at[batch.trigram == b]
            lead = leads(mine, torch.full((len(mine),), b + 3))
            got = [getattr(values, m)[b - 1, subset].item() for m in ("logit", "lead", "accuracy")]
            want = [mine[:, b + 3].mean(), lead.mean(), (mine.argmax(-1) == b + 3).double().mean()]
            assert_close(got, [w.item() for w in want])


def test_values_of_the_manual_model_by_hand():
    """On 3 head 0 writes C1 +2, C2 -2, C3 +1 and head 1 C1 -2, C2 +2, C3 +1; B3 itself is 1."""
    truth = manual_model(2, 3)
    values = subset_values(truth.model, truth.task)
    # Subsets: none, {0}, {1}, both.
    assert_close(values.logit[2].tolist(), [0, 1, 1, 2])
    assert_close(values.lead[2].tolist(), [-1, -1, -1, 1])
    assert values.accuracy[2].tolist() == [0, 0, 0, 1]
    assert values.accuracy[0].tolist() == [0, 1, 0, 1]
    # Accuracy on 3 is worth 1 only together: half each, all of it interaction.
    assert_close(shapley_values(values.accuracy)[2].tolist(), [0.5, 0.5])
    assert_close(harsanyi_dividends(values.accuracy)[2].tolist(), [0, 0, 0, 1])
    pairs = pair_interactions(truth.model, truth.task)["accuracy"]
    assert pairs[2].tolist() == [[0, 1], [1, 0]]
    assert pairs[0].tolist() == [[1, 0], [0, 0]]
    frame = values.to_frame()
    assert len(frame) == 12
    assert frame[(frame.trigram == 3) & (frame.heads == "L0H0+L0H1")].lead.item() == 1
    assert set(frame.heads) == {"none", "L0H0", "L0H1", "L0H0+L0H1"}


def test_shapley_equals_the_mean_over_orders():
    """The definition, with a plain loop over all orders of 4 heads; two games at once."""
    source = torch.Generator().manual_seed(0)
    values = torch.randn(2, 16, generator=source, dtype=torch.double)
    expected = torch.zeros(2, 4, dtype=torch.double)
    for order in permutations(range(4)):
        subset = 0
        for h in order:
            expected[:, h] += (values[:, subset | 1 << h] - values[:, subset]) / 24
            subset |= 1 << h
    assert_close(shapley_values(values), expected)
    assert_close(expected.sum(1), values[:, -1] - values[:, 0])


def test_dividends_add_up_to_values_and_to_shapley():
    source = torch.Generator().manual_seed(1)
    values = torch.randn(3, 32, generator=source, dtype=torch.double)
    dividends = harsanyi_dividends(values)
    for s in range(32):
        parts = [t for t in range(32) if t & s == t]
        assert_close(dividends[:, parts].sum(1), values[:, s], roundings=3**5)  # all parts of parts
    for h in range(5):
        with_h = [(t, bin(t).count("1")) for t in range(32) if t >> h & 1]
        share = sum(dividends[:, t] / size for t, size in with_h)
        assert_close(share, shapley_values(values)[:, h], roundings=3**5)


def test_pairs_equal_the_dividends_and_logit_is_additive():
    model = models.gated(TASK, n_heads=5)
    values = subset_values(model, TASK, n=100)
    pairs = pair_interactions(model, TASK, n=100)
    for metric, found in pairs.items():
        game = getattr(values, metric)
        dividends = harsanyi_dividends(game)
        for i in range(5):
            for j in range(5):
                of_pair = dividends[:, 1 << i | 1 << j]
                assert_close(found[:, i, j], of_pair, scale=game.abs().max())
    off_diagonal = pairs["logit"] * (1 - torch.eye(5))
    assert off_diagonal.abs().max() < 1e-9
    assert (pairs["lead"] * (1 - torch.eye(5))).abs().max() > 0.01


def test_sampling_covers_the_exact_values():
    model = models.gated(TASK, n_heads=5)
    exact = shapley(model, TASK, n=100)
    sampled = shapley(model, TASK, n=100, permutations=400, permutation_seed=0)
    assert exact.exact.all()
    assert not sampled.exact.any()
    assert (exact.low == exact.value).all()
    lead = sampled.metric != "logit"
    inside = (sampled.low - 1e-9 <= exact.value) & (exact.value <= sampled.high + 1e-9)
    assert inside[lead].mean() > 0.85
    assert (sampled.high - sampled.low)[sampled.metric == "lead"].max() > 0.001
    # The logit is additive: any order gives the same gain.
    assert_close(sampled.value[~lead].tolist(), exact.value[~lead].tolist())
    same = shapley(model, TASK, n=100, permutations=400, permutation_seed=0)
    assert same.equals(sampled)
    other = shapley(model, TASK, n=100, permutations=400, permutation_seed=1)
    assert not other.equals(sampled)
    # Each metric's values add up to all heads minus none.
    values = subset_values(model, TASK, n=100)
    for table in (exact, sampled):
        total = table[(table.metric == "lead") & (table.trigram == 2)].value.sum()
        assert_close(total, (values.lead[1, -1] - values.lead[1, 0]).item())


def test_more_than_sixteen_heads():
    model = models.gated(TASK, n_heads=17)
    with refuses("too-many-heads", size=17, most=16):
        subset_values(model, TASK, n=50)
    with refuses("too-many-heads", size=17):
        shapley(model, TASK, n=50)
    table = shapley(model, TASK, n=50, permutations=30, permutation_seed=0)
    assert len(table) == 3 * 3 * 17
    assert pair_interactions(model, TASK, n=50)["lead"].shape == (3, 17, 17)


def test_sixteen_heads_exactly():
    values = subset_values(models.gated(TASK, n_heads=16), TASK, n=300)
    assert values.accuracy.shape == (3, 2**16)
    total = shapley_values(values.lead).sum(1)
    assert_close(total, values.lead[:, -1] - values.lead[:, 0])


@pytest.mark.parametrize("make", MAKE)
def test_intervention_agrees_with_the_closed_form(make):
    """The same heads, once as sums of one pass and once switched off through hooks."""
    model = MAKE[make](TASK)
    heads = all_heads(model)[::-1]
    fast = subset_values(model, TASK, n=100)
    slow = subset_values(model, TASK, n=100, heads=heads)
    assert slow.members == tuple(heads)
    assert (fast.layer, fast.cases, slow.cases) == (0, (1, 2, 3), (1, 2, 3))
    size = len(heads)
    mirrored = [sum(1 << size - 1 - h for h in fast.heads(s)) for s in range(2**size)]
    for metric in ("logit", "lead", "accuracy"):
        want = fast.values[metric]
        assert_close(slow.values[metric][:, mirrored], want, scale=want.abs().max(), **FLOAT)
    exact, hooked = shapley(model, TASK, n=100), shapley(model, TASK, n=100, heads=heads[::-1])
    assert_close(hooked.value.tolist(), exact.value.tolist(), scale=9.0, **FLOAT)
    pairs = pair_interactions(model, TASK, n=100)
    again = pair_interactions(model, TASK, n=100, heads=heads[::-1])
    for metric in pairs:
        assert_close(again[metric], pairs[metric], scale=9.0, **FLOAT)


def mean_of_last(logits, tokens):
    return logits[:, -1, :2].sum(-1)


@pytest.mark.parametrize("method", ["zero", "mean"])
def test_any_heads_of_any_model_by_any_metric(method):
    """Two layers with LayerNorm, one gated; every subset against its own ablation."""
    model, heads = models.gated_layer(TASK), ["L0H2", (1, 4), (1, 0)]
    tokens, reference = TASK.sample(40, seed=0).tokens, TASK.sample(30, seed=1).tokens
    given = {"method": method, "reference_tokens": reference}
    values = subset_values(model, tokens, heads=heads, metric=mean_of_last, **given)
    losses = subset_values(model, tokens, heads=heads, **given).values["loss"]
    assert (values.n_heads, values.layer, values.cases) == (3, None, None)
    assert values.members == ((0, 2), (1, 4), (1, 0))
    for subset in range(8):
        gone = [h for i, h in enumerate(values.members) if not subset >> i & 1]
        with ExitStack() as stack, torch.no_grad():
            if gone:
                stack.enter_context(without_heads(model, gone, **given))
            logits = model(tokens)
        want = mean_of_last(logits, tokens).mean().item()
        assert_close(values.values["mean_of_last"][0, subset].item(), want, **FLOAT)
        loss = next_token_loss(logits, tokens).mean().item()
        assert_close(losses[0, subset].item(), loss, **FLOAT)
    game = values.values["mean_of_last"][0]
    assert game.max() - game.min() > 0.01
    frame = values.to_frame()
    assert frame.trigram.isna().all()
    assert frame.heads[6] == "L1H4+L1H0"

    table = shapley(model, tokens, heads=heads, metric=mean_of_last, **given)
    assert table["head"].tolist() == ["L0H2", "L1H4", "L1H0"]
    assert_close(table.value.tolist(), shapley_values(game).tolist(), scale=game.abs().max())
    dividends = harsanyi_dividends(game)
    pairs = pair_interactions(model, tokens, heads=heads, metric=mean_of_last, **given)
    assert_close(pairs["mean_of_last"][0, 0, 2], dividends[0b101], scale=game.abs().max())
    sampled = shapley(
        model,
        tokens,
        heads=heads,
        metric=mean_of_last,
        permutations=60,
        permutation_seed=0,
        **given,
    )
    assert not sampled.exact.any()
    total = (game[-1] - game[0]).item()
    assert_close(sampled.value.sum(), total, scale=game.abs().max().item())
    width = (sampled.high - sampled.value).max()
    assert (sampled.value - table.value).abs().max() < 3 * width + 1e-9


def test_answers_below_a_norm_or_a_layer():
    """A task with known answers in models that are not linear in these heads."""
    for model, layer in ((models.two_layers(TASK), 0), (models.gated_layer(TASK), 1)):
        values = subset_values(model, TASK, layer=layer, n=60)
        batch = TASK.sample_single(60, 42)
        others = [(layer, h) for h in range(1, values.n_heads)]
        with torch.no_grad(), without_heads(model, others):
            logits = model(batch.tokens)
        at = logits[batch.example, batch.destination_pos].double()
        wanted = [at[batch.trigram == b][:, b + 3].mean().item() for b in TASK.trigrams]
        assert values.layer == layer
        assert_close(values.logit[:, 1].tolist(), wanted, **FLOAT)


def test_what_is_sampled_of_a_task_without_answers():
    class Plain:
        n_positions, d_vocab, token_names = TASK.n_positions, TASK.d_vocab, TASK.token_names

        def sample(self, n, seed):
            return TASK.sample(n, seed)

    model = models.two_layers(TASK)
    got = subset_values(model, Plain(), layer=1, n=20, seed=3).values["loss"]
    want = subset_values(model, TASK.sample(20, 3).tokens, layer=1).values["loss"]
    assert torch.equal(got, want)


def test_in_parts_it_is_the_same(monkeypatch):
    model, tokens = models.two_layers(TASK), TASK.sample(9, seed=0).tokens
    whole = subset_values(model, tokens, layer=1).values["loss"]
    room = 3 * tokens.numel() * TASK.d_vocab
    monkeypatch.setattr(subset_games, "logits_at_once", lambda _d_vocab: room)
    assert_close(subset_values(model, tokens, layer=1).values["loss"], whole, **FLOAT)


def test_too_many_and_too_much():
    model, tokens = models.gated(TASK, n_heads=17), TASK.sample(9, seed=0).tokens
    with refuses("too-many-heads", size=17, most=16):
        subset_values(model, tokens)
    table = shapley(model, tokens, permutations=2, permutation_seed=0)
    assert len(table) == 17
    many = torch.zeros(2**17, TASK.n_positions, dtype=torch.long)
    with refuses("too-many-subsets", subsets=65536, sequences=131072):
        subset_values(models.gated(TASK, n_heads=16), many)
    with refuses("heads-and-layer"):
        subset_values(model, tokens, layer=0, heads=[(0, 1)])
    with refuses("no-reference-tokens", method="mean"):
        subset_values(model, tokens, heads=[(0, 1)], method="mean")
    with refuses("metric-wrong-shape"):
        subset_values(model, tokens, heads=[(0, 1)], metric=lambda logits, _: logits)
    with refuses("no-such-head", head=17):
        subset_values(model, tokens, heads=["L0H17"])


def test_bad_input_in_one_sentence():
    model = models.toy(TASK)
    for call in (subset_values, shapley, pair_interactions):
        with refuses("vocabulary-mismatch", task="a task of 4 trigrams", wanted=10):
            call(model, SkipTrigramTask(4))
        with refuses("case-without-examples"):
            call(model, TASK, n=1)
        with refuses("which-layer-of-heads", n=2):
            call(models.two_layers(TASK), TASK)
    with refuses("sampling-without-seed"):
        shapley(model, TASK, permutations=10)
    with refuses("not-a-power-of-two"):
        shapley_values(torch.zeros(6))
