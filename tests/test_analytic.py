"""The analytic models do what their rules say, and the verdict finds it."""

from itertools import combinations

import pytest
import torch
from closeness import assert_close
from refusals import refuses

from gated_interp.analysis.circuits import ov_circuit, qk_circuit
from gated_interp.analysis.verdict import verdict
from gated_interp.analysis.writes import head_writes
from gated_interp.models.analytic import conditional_pair, manual_model, paired_model
from gated_interp.tasks.skip_trigrams import SkipTrigramTask


def test_the_published_manual_model():
    """2 heads, 3 trigrams: the published weights, written out."""
    truth = manual_model(2, 3)
    attn = truth.model.blocks[0].attn
    q, k = torch.full((2, 8), -100.0), torch.full((2, 8), -100.0)
    k[:, 0] = 1
    q[0, [1, 3]] = q[1, [2, 3]] = 1
    assert torch.equal(attn.W_Q[..., 0], q)
    assert torch.equal(attn.W_K[..., 0], k)
    assert attn.W_V[..., 0].tolist() == [[1, 0, 0, 0, 0, 0, 0, 0]] * 2
    assert attn.W_O[:, 0].tolist() == [[0, 0, 0, 0, 2, -2, 1, 0], [0, 0, 0, 0, -2, 2, 1, 0]]
    assert not any(getattr(attn, b).any() for b in ("b_Q", "b_K", "b_V", "b_O"))
    assert truth.owners == {1: [0], 2: [1], 3: []}
    assert truth.distributed == truth.superposed == [3]


def agrees(truth):
    found = verdict(truth.model, truth.task)
    assert found.not_learnt == []
    assert all(a == 1 for a in found.accuracy.values())
    assert found.owners == truth.owners
    assert found.distributed == truth.distributed
    return found


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (3, 4), (4, 5), (3, 7), (4, 11), (6, 8)])
def test_manual_models_get_their_verdict(size):
    agrees(manual_model(*size))


def test_every_trio_of_sets_of_three_heads():
    """All ways to give 3 trigrams different sets of 3 heads: the truth is the verdict."""
    sets = [s for k in (1, 2, 3) for s in combinations(range(3), k)]
    distributed = set()
    for chosen in combinations(sets, 3):
        found = agrees(manual_model(3, 3, chosen))
        distributed.add(len(found.distributed))
    # Three pairs out of three heads share everything: no one is right alone.
    assert distributed == {0, 1, 3}


@pytest.mark.parametrize("n_trigrams", [1, 2, 5])
def test_paired_models_are_distributed(n_trigrams):
    truth = paired_model(n_trigrams)
    found = agrees(truth)
    assert found.distributed == list(truth.task.trigrams)
    assert truth.superposed == []


@pytest.mark.parametrize("n_trigrams", [1, 3, 7, 12])
def test_two_heads_solve_any_number(n_trigrams):
    truth = conditional_pair(n_trigrams)
    assert len(truth.model.blocks[0].attn.W_Q) == 2
    found = agrees(truth)
    assert found.owners == {b: [0] for b in truth.task.trigrams}


def test_the_second_head_cancels_unless_a_came():
    """By hand: BOS B2 -> nothing written; BOS A B2 -> +2 on C2, from head 0 alone."""
    truth = conditional_pair(3)
    tokens = torch.tensor([[7, 2, 2, 2], [7, 0, 2, 2], [7, 1, 4, 2], [7, 0, 1, 7]])
    rows, positions = torch.arange(4), torch.tensor([1, 2, 3, 3])
    writes, logits = head_writes(truth.model, tokens, rows, positions)
    want = torch.zeros(4, 2, 8)
    want[[0, 1, 2], 0, 5] = 2
    want[[0, 2], 1, 5] = -2
    assert_close(writes, want)
    assert logits.argmax(-1).tolist() == [2, 5, 2, 7]
    # Its OV circuits are each other's negative; only its QK circuit knows A.
    assert torch.equal(ov_circuit(truth.model, 0, 0).matrix, -ov_circuit(truth.model, 0, 1).matrix)
    assert qk_circuit(truth.model, 0, 0).matrix[2, 0] == 0
    assert_close(qk_circuit(truth.model, 0, 1).matrix[2, 0], 100)


def test_impossible_ones_are_refused_in_one_sentence():
    bad = [
        (lambda: manual_model(2, 4), "too-few-head-sets"),
        (lambda: manual_model(2, 2, [[0], [0]]), "same-heads-twice"),
        (lambda: manual_model(2, 2, [[0], []]), "trigram-without-head"),
        (lambda: manual_model(2, 2, [[0], [2]]), "trigram-with-unknown-head"),
        (lambda: manual_model(2, 2, [[0]]), "wrong-number-of-head-sets"),
        (lambda: manual_model(0, 1), "config-not-positive"),
        (lambda: paired_model(0), "config-not-positive"),
        (lambda: paired_model(1, n_positions=3), "not-a-whole-number"),
        (lambda: conditional_pair(3, sharpness=0.0), "not-positive"),
    ]
    for call, code in bad:
        with refuses(code):
            call()


def test_analytic_models_say_their_task_and_their_heads():
    paired = paired_model(2)
    assert paired.heads_of == {1: [0, 1], 2: [2, 3]}
    assert manual_model(2, 3).heads_of == {1: [0], 2: [1], 3: [0, 1]}
    pair = conditional_pair(2)
    assert pair.heads_of == {1: [0], 2: [0]}
    for truth in (paired, pair, manual_model(2, 2)):
        assert truth.task == SkipTrigramTask(2, n_positions=11)
        assert truth.model.cfg.n_ctx == 11
    assert conditional_pair(2, n_positions=7).task.n_positions == 7
