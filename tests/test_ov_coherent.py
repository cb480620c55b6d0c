"""OV-coherent pairs: the rules, the distribution, the model with the known answer."""

import random

import pytest
import torch
from refusals import refuses
from scipy.stats import chi2_contingency, chisquare

import gated_interp as gi
from gated_interp.analysis.holders import holders
from gated_interp.models.analytic import coherent_head
from gated_interp.tasks.kinds import TASK_KINDS
from gated_interp.tasks.ov_coherent import OVCoherentTask
from gated_interp.tasks.task import ProbedTask

TASK = OVCoherentTask()


def slow_sequence(draw):
    """One sequence, by the words of the rules."""
    signals = [draw.randint(1, 4), draw.randint(1, 4)]
    row = [draw.randint(5, 11) for _ in range(6)]
    for place, signal in zip(draw.sample(range(6), 2), signals, strict=True):
        row[place] = signal
    names = [f"{a}{b}" for a in range(1, 5) for b in range(a, 5)]
    return [*row, 0, 12 + names.index("".join(map(str, sorted(signals))))]


def test_every_sequence_obeys_the_rules():
    batch = TASK.sample(2000, seed=1)
    for row, case in zip(batch.tokens.tolist(), batch.case.tolist(), strict=True):
        signals = sorted(t for t in row if 1 <= t <= 4)
        assert len(signals) == 2
        assert tuple(signals) == TASK.pairs[case - 1]
        assert all(5 <= t <= 11 for t in row[:6] if t not in signals)
        assert row[6:] == [0, case + 11]
        assert TASK.token_names[row[7]] == "C{}{}".format(*signals)


def test_pairs_places_and_noise_are_as_often_as_by_the_slow_sampler():
    draw = random.Random(3)
    fast, slow = TASK.sample(20_000, seed=2).tokens.tolist(), [
        slow_sequence(draw) for _ in range(20_000)
    ]  # fmt: skip

    def p_value(of):
        kinds = sorted({*map(of, fast), *map(of, slow)})
        table = [[sum(of(row) == k for row in rows) for k in kinds] for rows in (fast, slow)]
        return chi2_contingency(table).pvalue

    assert p_value(lambda row: row[7]) > 1e-3
    assert p_value(lambda row: tuple(i for i in range(6) if row[i] < 5)) > 1e-3
    assert p_value(lambda row: next(t for t in row if t < 5)) > 1e-3
    assert p_value(lambda row: max(row[:6])) > 1e-3
    # Equal signals one in sixteen each, others one in eight.
    share = [(1 if a == b else 2) / 16 for a, b in TASK.pairs]
    counts = torch.bincount(TASK.sample(20_000, seed=5).case, minlength=11)[1:].tolist()
    assert chisquare(counts, [20_000 * s for s in share]).pvalue > 1e-3


def test_probes_ask_at_the_read_off_and_foils_for_another_answer():
    assert isinstance(TASK, ProbedTask)
    assert TASK_KINDS["ov_coherent"] is OVCoherentTask
    probes, foils = TASK.probes(300, seed=1), TASK.foils(300, seed=1)
    assert torch.equal(probes.target, probes.tokens[:, -1])
    assert (probes.tokens[probes.row, probes.position] == 0).all()
    assert (foils.target != foils.tokens[:, -1]).all()
    assert set(foils.case.tolist()) == set(range(1, 11))
    batch = TASK.sample(300, seed=1)
    answered = TASK.answered(batch)
    assert torch.equal(answered[:, 6], batch.case)
    assert (answered.sum(1) == batch.case).all()


def test_one_head_of_four_dimensions_holds_every_pair():
    truth = coherent_head()
    found = gi.verdict(truth.model, truth.task)
    assert found.learnt == list(range(1, 11))
    assert found.owners == truth.owners
    assert found.distributed == truth.distributed == []
    assert not found.clean  # one head for all of them
    by_ablation = holders(truth.model, truth.task)
    assert (by_ablation.alone == 1).all()
    assert (by_ablation.without == 0).all()  # no head, no answer
    foils = truth.task.foils(500, seed=3)
    top = truth.model(foils.tokens)[foils.row, foils.position].argmax(-1)
    assert (top != foils.target).all()


def test_a_gated_block_takes_the_place_of_the_head():
    truth = coherent_head()
    block = gi.GatedAttention.from_attention(truth.model.blocks[0].attn, expansion=2, d_head=1)
    how = gi.TrainConfig.plain(steps=20, batch_size=50, device="cpu")
    history = gi.train_gated(truth.model, block, how, data=TASK, progress=False).history
    assert history["fvu"].iloc[-1] < history["fvu"].iloc[0]
    assert set(gi.verdict(gi.splice(truth.model, 0, block), TASK).holders) == set(range(1, 11))


@pytest.mark.parametrize(
    ("wrong", "code"),
    [({"n_signals": 0}, "not-a-whole-number"), ({"n_noise": 1.5}, "not-a-whole-number"),
     ({"n_positions": 3}, "not-a-whole-number")],
)  # fmt: skip
def test_impossible_tasks_are_sentences(wrong, code):
    with refuses(code):
        OVCoherentTask(**wrong)
    with refuses("not-a-whole-number", name="n", value=0):
        TASK.sample(0, seed=1)
