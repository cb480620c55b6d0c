"""What the captions and notebook 03 say of the holders, for every shipped block."""

import pytest

import gated_interp as gi
from gated_interp.analysis.holders import holders
from gated_interp.views.gates import gate_table


@pytest.fixture(scope="module", params=["2H3ST", "3H4ST", "4H5ST"])
def shipped(request):
    """Model, task, and (trigram, its one holder) of a shipped block."""
    model = gi.load(f"{request.param}-gated")
    found = gi.verdict(model, model.task)
    assert found.clean
    return model, model.task, [(b, head) for b, (head,) in found.holders.items()]


def test_a_holders_gate_is_wide_open_where_its_b_asks_for_an_a(shipped):
    model, task, held = shipped
    gates = gate_table(model)
    for b, head in held:
        assert gates[head][b, task.source] > 0.9
        assert gates[head][b, task.source] >= gates[head].max() - 0.1  # nowhere wider


def test_what_a_holder_says_about_an_a_is_its_c(shipped):
    model, task, held = shipped
    for b, head in held:
        written = gi.ov_circuit(model, 0, head).to_frame(task.token_names, task.token_names)
        assert written.loc["A"].idxmax() == f"C{b}"


def test_removing_a_holder_costs_its_trigram_and_no_other(shipped):
    model, task, held = shipped
    without = holders(model, task, n=600, seed=99).without
    for b, head in held:
        for other in task.trigrams:
            accuracy = float(without[other - 1, head])
            assert accuracy < 0.5 if other == b else accuracy > 0.99


def test_no_block_and_no_holder_alone_answers_where_no_a_came_before(shipped):
    model, task, held = shipped
    assert max(gi.false_alarms(model, task, n=3000).values()) < 0.01
    for b, head in held:
        others = [(0, h) for h in range(model.cfg.n_heads) if h != head]
        with gi.without_heads(model, others) as alone:
            assert gi.false_alarms(alone, task, n=3000)[b] < 0.01
