"""Superposition measures: worked by hand, at the ends of their ranges, on analytic models."""

import attention_models as models
import pandas as pd
import pytest
import torch
from closeness import assert_close
from refusals import refuses

from gated_interp.analysis.faithfulness import dead_heads, faithfulness
from gated_interp.analysis.measures import (
    cancellation,
    example_loadings,
    heads_per_representation,
    participation_ratio,
    purity,
    representations_per_head,
    shares,
    top1_mass,
)
from gated_interp.analysis.superposition import (
    COLUMNS,
    classify,
    false_alarms_by_head,
    loading_matrix,
    superposition_report,
)
from gated_interp.analysis.verdict import Verdict, verdict
from gated_interp.metrics.reconstruction import fvu, l0
from gated_interp.models.analytic import conditional_pair, manual_model, paired_model
from gated_interp.replacements.gated_attention import GatedAttention
from gated_interp.replacements.splice import gated_block, splice
from gated_interp.tasks.skip_trigrams import SkipTrigramTask

TASK = SkipTrigramTask(3)
TOKENS = TASK.sample(71, seed=0).tokens

# Rows: on one head; even over two; 3 to 1; nobody's; even over three.
L = torch.tensor([[4.0, 0, 0], [1, -1, 0], [0, -3, 1], [0, 0, 0], [2, 2, -2]])


def test_measures_by_hand():
    assert shares(L)[2].tolist() == [0, 0.75, 0.25]
    assert_close(participation_ratio(L), [1, 2, 1.6, 0, 3])
    assert_close(top1_mass(L), [1, 0.5, 0.75, 0, 1 / 3])
    assert heads_per_representation(L).tolist() == [1, 2, 2, 0, 3]
    assert representations_per_head(L).tolist() == [3, 3, 2]
    # Best: 1 on head 0, 3 on head 1, 5 on head 2: (1 + 3/4 + 1/3) / 5.
    assert_close(purity(L), (1 + 0.75 + 1 / 3) / 5)
    assert purity(torch.eye(4)[torch.tensor([2, 0, 3, 1])]).item() == 1
    assert_close(purity(torch.ones(2, 5)), 1 / 5)
    # A share below 10% does not count as carrying.
    assert heads_per_representation(torch.tensor([[9.2, 0.8]])).tolist() == [1]


def test_measures_take_replicates():
    stacked = torch.stack([L, 2 * L, L.flip(1)])
    for measure in (participation_ratio, top1_mass, heads_per_representation):
        assert_close(measure(stacked), measure(L).expand(3, 5))
    assert_close(purity(stacked), purity(L).expand(3))
    assert representations_per_head(stacked).tolist() == [[3, 3, 2], [3, 3, 2], [2, 3, 3]]


def test_loadings_do_not_see_a_constant():
    writes = torch.randn(7, 2, 5, generator=torch.Generator().manual_seed(0))
    target = torch.tensor([0, 1, 2, 3, 4, 0, 1])
    got = example_loadings(writes, target)
    e = 2
    want = writes[e, 1, 2] - writes[e, 1, [0, 1, 3, 4]].mean()
    assert_close(got[e, 1], want)
    assert_close(example_loadings(writes + 3, target), got)


def test_cancellation_ends_and_a_hand_case():
    w = torch.zeros(4, 2, 3)
    w[0, 0] = torch.tensor([2.0, -1, -1])  # one head writes alone
    w[1, 0], w[1, 1] = w[0, 0], w[0, 0] / 2  # they agree
    w[2, 0], w[2, 1] = w[0, 0], -w[0, 0]  # they undo each other
    assert cancellation(w).tolist() == [0, 0, 1, 0]
    # 2H3ST on B3: (2, -2, 1) and (-2, 2, 1) on C1..C3 of 8 tokens, each centred by 1/8.
    w = torch.zeros(1, 2, 8)
    w[0, 0, 4:7], w[0, 1, 4:7] = torch.tensor([2.0, -2, 1]), torch.tensor([-2.0, 2, 1])
    assert_close(cancellation(w), [1 - 3.5 / 11])
    assert_close(cancellation(w + 5), cancellation(w))


def get(report, measure, scope="model", **where):
    rows = report[(report.measure == measure) & (report.scope == scope)]
    for column, value in where.items():
        rows = rows[rows[column] == value]
    assert len(rows) == 1, (measure, scope, where)
    return rows.iloc[0]


def words(report):
    rows = report[report.scope == "representation"]
    return {
        word: rows[(rows.measure == word) & (rows.value == 1)].trigram.tolist()
        for word in ("learnt", "distributed", "composed", "superposed")
    }


def test_manual_model_is_in_superposition():
    """Loadings by hand: own head 2 + 1/7, an outsider 0, the shared trigram 1 + 0 each."""
    truth = manual_model(2, 3)
    got = loading_matrix(truth.model, truth.task)
    own = 2 - (-2 + 1) / 7
    want = torch.tensor([[own, 0], [0, own], [1, 1]], dtype=got.dtype)
    assert_close(got, want)
    report = superposition_report(truth.model, truth.task)
    assert list(report.columns) == COLUMNS
    assert words(report) == {
        "learnt": [1, 2, 3],
        "distributed": [3],
        "composed": [],
        "superposed": [3],
    }
    assert_close(get(report, "purity").value, 2 / 3)
    assert get(report, "participation_ratio", "representation", trigram=3).value == 2
    assert_close(get(report, "cancellation", "representation", trigram=3).value, 1 - 3.5 / 11)
    assert_close(get(report, "cancellation", "representation", trigram=1).value, 0, scale=1.0)
    assert get(report, "representations_per_head", "head", head=0).value == 2
    assert_close(get(report, "l0").value, 2)
    assert get(report, "n_dead_heads").value == 0
    assert not {"fvu", "kl", "original_cross_entropy"} & set(report.measure)


@pytest.mark.parametrize("size", [(3, 4), (3, 7), (4, 5), (4, 11), (2, 2)])
def test_manual_models_are_classified(size):
    truth = manual_model(*size)
    found = words(superposition_report(truth.model, truth.task, replicates=2))
    assert found["distributed"] == truth.distributed
    assert found["superposed"] == truth.superposed
    assert found["composed"] == []


def test_distributed_is_not_yet_superposed():
    truth = paired_model(3)
    report = superposition_report(truth.model, truth.task, replicates=2)
    found = words(report)
    assert found["distributed"] == found["learnt"] == [1, 2, 3]
    assert found["superposed"] == found["composed"] == []
    for b in (1, 2, 3):
        assert get(report, "heads_per_representation", "representation", trigram=b).value == 2
        assert get(report, "cancellation", "representation", trigram=b).value > 0.4
    assert get(report, "representations_per_head").value == 1


@pytest.mark.parametrize("n_trigrams", [3, 7])
def test_the_conditional_pair_is_composed_not_superposed(n_trigrams):
    truth = conditional_pair(n_trigrams)
    report = superposition_report(truth.model, truth.task, replicates=2)
    found = words(report)
    everything = list(truth.task.trigrams)
    assert found["learnt"] == found["composed"] == everything
    assert found["superposed"] == found["distributed"] == []
    # The answer is written by head 0 alone; deciding is head 1's.
    tokens = truth.task.sample(1000, seed=0).tokens
    of_model, alone = false_alarms_by_head(truth.model, truth.task, truth.task.foils_in(tokens))
    assert of_model.tolist() == [0] * n_trigrams
    assert alone.tolist() == [[1, 0]] * n_trigrams
    assert get(report, "representations_per_head", "head", head=0).value == n_trigrams
    assert get(report, "representations_per_head", "head", head=1).value == 0
    assert get(report, "n_dead_heads").value == 0  # head 1 is idle at trigrams, not dead


def test_one_head_each_is_neither():
    truth = manual_model(3, 3)  # sets {0}, {1}, {2}
    report = superposition_report(truth.model, truth.task, replicates=2)
    found = words(report)
    assert found["learnt"] == [1, 2, 3]
    assert found["distributed"] == found["composed"] == found["superposed"] == []
    assert_close(get(report, "purity").value, 1)
    assert_close(get(report, "cancellation").value, 0, scale=1.0)
    assert_close(get(report, "participation_ratio").value, 1)


def test_open_gates_and_copied_weights_change_nothing():
    """A perfect block: FVU, KL 0 and the toy's own measures; with every gate shut, FVU is worst."""
    toy = models.toy(TASK)
    block = GatedAttention.from_attention(
        toy.blocks[0].attn, 1, init="duplicate", noise=0.0, normalize_weights=False
    )
    block.force_gates(1.0)
    spliced = splice(toy, 0, block)
    same = faithfulness(spliced, TOKENS).measures()
    assert same["fvu"].item() < 1e-10
    assert_close(same["kl"], 0, scale=1.0, dtype=torch.float32)
    assert_close(same["l0"], 3)
    entropies = same["cross_entropy"], same["original_cross_entropy"]
    assert_close(*entropies, dtype=torch.float32)
    assert dead_heads(spliced, TOKENS) == []

    block.force_gates(0.0)
    shut = faithfulness(spliced, TOKENS).measures()
    assert shut["l0"].item() == 0
    assert shut["kl"].item() > 0.01
    assert shut["fvu"].item() > 0.1
    assert dead_heads(spliced, TOKENS) == [0, 1, 2]


def test_faithfulness_agrees_with_training():
    """The same FVU and L0 as the training loop's, and cross-entropies of the two models."""
    spliced = models.gated(TASK)
    with torch.no_grad():
        logits, cache = spliced.run_with_cache(TOKENS)
        original = models.toy(TASK)
        intact, before = original.run_with_cache(TOKENS)
    got = faithfulness(spliced, TOKENS).measures()
    out = "blocks.0.hook_attn_out"
    wanted = fvu(cache[out].double(), before[out].double())
    assert_close(got["fvu"], wanted, dtype=torch.float32)
    assert_close(got["l0"], l0(cache["blocks.0.attn.hook_gate"]).double(), dtype=torch.float32)
    for name, each in (("cross_entropy", logits), ("original_cross_entropy", intact)):
        want = torch.nn.functional.cross_entropy(
            each[:, :-1].flatten(0, 1), TOKENS[:, 1:].flatten()
        )
        assert_close(got[name], want.double(), dtype=torch.float32)
    assert got["kl"].item() > 1e-3
    # Replicates: weight everything on one sequence.
    weights = torch.zeros(2, 71)
    weights[0, 5] = weights[1, 6] = 3
    parts = faithfulness(spliced, TOKENS)
    assert torch.equal(parts.measures(weights)["kl"], parts.kl[5:7])


def test_a_layer_further_up():
    model = models.gated_layer(TASK, layer=1)
    got = faithfulness(model, 1, TOKENS).measures()
    assert 0 < got["l0"].item() < 5
    assert got["fvu"].item() > 0
    assert "fvu" not in faithfulness(model, 0, TOKENS).measures()
    assert_close(faithfulness(model, 0, TOKENS).measures()["l0"], 3)
    with torch.no_grad():
        gated_block(model, 1).raw_W_V[2] = 0
        gated_block(model, 1).b_V[2] = 0
    assert dead_heads(model, 1, TOKENS) == [2]


def test_report_of_a_spliced_model_has_everything_and_repeats():
    model = models.gated(TASK, n_heads=5)
    report = superposition_report(model, TASK, n=300, replicates=50)
    assert {"fvu", "kl", "original_cross_entropy", "l0"} <= set(report.measure)
    assert report.equals(superposition_report(model, TASK, n=300, replicates=50))
    other = superposition_report(model, TASK, n=300, replicates=50, seed=1)
    assert not report.value.equals(other.value)
    with_interval = report[report.low.notna()]
    assert (with_interval.low <= with_interval.high).all()
    smooth = with_interval[with_interval.measure.isin(["loading", "share", "l0", "kl", "fvu"])]
    assert ((smooth.low < smooth.value) & (smooth.value < smooth.high)).mean() > 0.85
    assert len(report[report.measure == "loading"]) == 15
    found = verdict(model, TASK, n=300)
    assert words(report)["distributed"] == found.distributed
    loading = loading_matrix(model, TASK, n=300)
    assert_close(get(report, "loading", "loading", trigram=2, head=4).value, loading[1, 4])
    assert isinstance(report, pd.DataFrame)


def test_intervals_cover():
    """The bootstrap interval of a loading holds the value of a much larger sample."""
    model = models.gated(TASK, n_heads=5)
    report = superposition_report(model, TASK, n=200)
    truth = loading_matrix(model, TASK, n=20_000, seed=9)
    rows = report[report.measure == "loading"]
    inside = [row.low <= truth[row.trigram - 1, row.head] <= row.high for row in rows.itertuples()]
    assert 0.7 < sum(inside) / len(inside) <= 1


def test_bad_input_in_one_sentence():
    toy = models.toy(TASK)
    with refuses("logits-not-a-sum", layer=0):
        superposition_report(models.two_layers(TASK), TASK)
    with refuses("vocabulary-mismatch", task="a task of 4 trigrams", wanted=10):
        superposition_report(toy, SkipTrigramTask(4))
    with refuses("case-without-examples", word="trigram"):
        superposition_report(toy, TASK, n=2)
    with refuses("too-small", name="replicates", value=1):
        superposition_report(toy, TASK, replicates=1)
    foils = TASK.foils_in(torch.tensor([[7, 1, 2, 4], [7, 0, 3, 6]]))
    with refuses("case-without-foils"):
        false_alarms_by_head(toy, TASK, foils)
    with refuses("no-such-layer", layer=1):
        faithfulness(toy, 1, TOKENS)
    with refuses("token-outside-vocabulary"):
        dead_heads(toy, TOKENS + 4)
    with refuses("tokens-on-another-device", there="cpu", here="meta"):
        faithfulness(models.toy(TASK).to("meta"), TOKENS)


def judged(owners, learnt=(1, 2, 3)):
    """A verdict with these owners."""
    distributed = [b for b in learnt if not owners[b]]
    left = [b for b in (1, 2, 3) if b not in learnt]
    accuracy = {b: float(b in learnt) for b in (1, 2, 3)}
    return Verdict(list(learnt), owners, distributed, left, accuracy, holders=owners)


QUIET = torch.zeros(3, dtype=torch.double)
SILENT = torch.zeros(3, 2, dtype=torch.double)


def test_what_is_not_learnt_does_not_put_a_head_in_superposition():
    """Trigram 1 is spread over both heads; the other thing they carry, 3, was never learnt."""
    loading = torch.tensor([[1.0, 1], [0, 0], [1, 1]], dtype=torch.double)
    owners = {1: [], 2: [0], 3: []}
    found = classify(judged(owners, learnt=(1, 2)), loading, QUIET, SILENT)
    assert found["distributed"] == [1]
    assert found["superposed"] == []
    assert classify(judged(owners), loading, QUIET, SILENT)["superposed"] == [1, 3]


def test_composed_needs_every_owner_to_answer_without_an_a():
    loading = torch.eye(3, 2, dtype=torch.double)
    owners = {1: [0, 1], 2: [1], 3: [0]}
    alone = torch.tensor([[1.0, 0], [0, 1], [0.5, 0]], dtype=torch.double)
    # 1: head 1 alone stays quiet. 2: its one owner answers. 3: and so does this one, at times.
    assert classify(judged(owners), loading, QUIET, alone)["composed"] == [2, 3]
    # Where the whole model answers too, nothing else decides.
    loud = torch.tensor([0.0, 1, 0], dtype=torch.double)
    assert classify(judged(owners), loading, loud, alone)["composed"] == [3]


@pytest.mark.parametrize(("share", "dead"), [(0.01, []), (0.0011, []), (0.0009, [1])])
def test_a_head_is_dead_below_a_thousandth_of_the_largest(share, dead):
    """A thousandth in size, not in energy."""
    model = models.toy(TASK, n_heads=2, d_head=1)
    attn = model.blocks[0].attn
    with torch.no_grad():
        for name in ("W_Q", "b_Q", "W_K", "b_K", "W_V", "b_V", "W_O"):
            weight = getattr(attn, name)
            weight[1] = weight[0]
        attn.W_O[1] *= share
    assert dead_heads(model, TOKENS) == dead
