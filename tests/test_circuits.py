"""Circuits read off the weights say what the model does."""

import attention_models as models
import pytest
import torch
from closeness import assert_close
from refusals import refuses

from gated_interp.analysis import circuit_tables
from gated_interp.analysis.circuits import (
    composition_scores,
    copying_score,
    copying_scores,
    gate_circuit,
    ov_circuit,
    predict_from_circuits,
    qk_circuit,
)
from gated_interp.analysis.heads import all_heads
from gated_interp.models.analytic import conditional_pair, manual_model
from gated_interp.replacements.splice import gated_block
from gated_interp.tasks.skip_trigrams import SkipTrigramTask

TASK = SkipTrigramTask(3)
TOKENS = TASK.sample(41, seed=0).tokens


@pytest.mark.parametrize("gate", ["clamp", "relu", "tanh", "binary", "hard_concrete"])
@pytest.mark.parametrize("d_head", [1, 3])
def test_prediction_from_circuits_equals_the_spliced_model(gate, d_head):
    model = models.gated(TASK, d_head=d_head, gate=gate, normalize_weights=d_head == 1)
    with torch.no_grad():
        model.unembed.b_U.copy_(torch.linspace(-1, 1, 8))
        block = gated_block(model)
        block.b_O.copy_(torch.linspace(1, 2, 8))
        got = predict_from_circuits(model, TOKENS)
        assert_close(got, model(TOKENS))
        # Two-sided: the gates and every bias matter (b_K cannot: softmax ignores it).
        for bias in (block.b_Q, block.b_V, block.b_O, block.b_gate_Q, block.b_gate_K):
            kept = bias.clone()
            bias.add_(0.5 * torch.arange(1, bias.numel() + 1).view(bias.shape) / bias.numel())
            assert (got - model(TOKENS)).abs().max() > 1e-3
            assert_close(predict_from_circuits(model, TOKENS), model(TOKENS))
            bias.copy_(kept)


@pytest.mark.parametrize("make", [models.toy, lambda t: manual_model(2, 3).model])
def test_prediction_from_circuits_equals_the_toy(make):
    model = make(TASK)
    got = predict_from_circuits(model, TOKENS)
    assert_close(got, model(TOKENS))


def test_prediction_for_a_wide_head():
    truth = conditional_pair(3)
    got = predict_from_circuits(truth.model, TOKENS)
    assert_close(got, truth.model(TOKENS))


@pytest.mark.parametrize("centred", [False, True])
def test_the_largest_entries_are_those_of_the_whole_matrix(centred, monkeypatch):
    monkeypatch.setattr(circuit_tables, "ROWS", 3)
    circuit = qk_circuit(models.two_layers(TASK), 0, 1)
    whole = circuit.factors.AB
    whole = whole - whole.mean(-1, keepdim=True) if centred else whole
    values, index = whole.flatten().topk(7)
    for rows in (None, torch.tensor([4, 1, 5])):
        found = circuit_tables.largest(circuit, 7, centred=centred, rows=rows)
        if rows is not None:
            values, index = whole[rows].flatten().topk(7)
        width = whole.shape[1]
        known = range(len(whole)) if rows is None else rows.tolist()
        places = [(known[i // width], i % width) for i in index.tolist()]
        assert [(row, column) for row, column, _ in found] == places
        assert_close(torch.tensor([value for *_, value in found]), values.detach())


@pytest.mark.parametrize("make", [models.two_layers, lambda t: models.gated_layer(t, layer=0)])
def test_layer_zero_scores_values_and_gates_with_layer_norm_and_positions(make):
    """The first layer's circuits at two positions are what its hooks show there."""
    model = make(TASK)
    with torch.no_grad():
        _, cache = model.run_with_cache(TOKENS)
    query, key = TOKENS[:, 7], TOKENS[:, 4]
    for layer, head in all_heads(model):
        if layer > 0:
            continue
        qk = qk_circuit(model, 0, head, query_position=7, key_position=4)
        assert_close(qk.matrix[query, key], cache["blocks.0.attn.hook_attn_scores"][:, head, 7, 4])
        written = cache["blocks.0.attn.hook_v"][:, 4, head] @ model.blocks[0].attn.W_O[head]
        # Up to the final normalisation's scale: centred, then its weight.
        written = (written - written.mean(-1, keepdim=True)) * model.ln_final.w
        ov = ov_circuit(model, 0, head, position=4)
        assert_close(ov.matrix[key], (written @ model.unembed.W_U).detach())
        if gated_block(model, 0) is not None:
            gate = gate_circuit(model, 0, head, query_position=7, key_position=4)
            assert_close(gate.matrix[query, key], cache["blocks.0.attn.hook_gate"][:, head, 7, 4])
            scores = cache["blocks.0.attn.hook_gate_scores"][:, head, 7, 4]
            assert_close(gate.factors.AB[query, key], scores)
        # Without the position it is another circuit.
        assert not torch.allclose(ov.matrix, ov_circuit(model, 0, head).matrix, atol=1e-2)


def test_circuits_are_lazy_and_of_rank_d_head():
    model = models.two_layers(TASK)
    ov = ov_circuit(model, 1, 2)
    assert ov.factors.pair[0].shape == (8, 5)
    assert ov.factors.pair[1].shape == (5, 8)
    assert repr(ov) == (
        "Circuit(OV of L1H2, 8 x 8, rank 5, without positions or what earlier layers write)"
    )
    assert ov_circuit(model, 1, 2, space="residual").factors.shape == (13, 13)
    assert_close(
        qk_circuit(model, 1, 2, space="residual").matrix,
        (model.W_Q[1, 2] @ model.W_K[1, 2].T).detach(),
    )
    U, S, V = ov.svd()
    assert_close(U @ S.diag() @ V.T, ov.matrix)
    assert_close(S, torch.linalg.svdvals(ov.matrix)[:5])
    frame = ov.to_frame(TASK.token_names, TASK.token_names)
    assert_close(frame.loc["A", "C2"], ov.matrix[0, 5], scale=ov.matrix.abs().max())


def test_eigenvalues_are_those_of_the_whole_matrix():
    ov = ov_circuit(models.toy(TASK, d_head=3), 0, 1)
    whole = torch.linalg.eigvals(ov.matrix)
    big = whole[whole.abs().argsort(descending=True)[:3]]
    mine = ov.eigenvalues()
    mine = mine[mine.abs().argsort(descending=True)]
    # Iterated, and of a matrix that is not symmetric.
    assert_close(mine.abs(), big.abs(), roundings=300)
    assert_close(mine.real.sum(), big.real.sum(), scale=big.abs().max(), roundings=300)


def test_copying_score_by_hand():
    """OV = +1 on the diagonal copies, -1 negates, a nilpotent one does neither."""
    model = models.toy(TASK, n_heads=3, d_head=8)
    attn = model.blocks[0].attn
    with torch.no_grad():
        attn.W_V.copy_(torch.eye(8).expand(3, 8, 8))
        attn.W_O[0] = torch.eye(8)
        attn.W_O[1] = -2 * torch.eye(8)
        attn.W_O[2] = 0
        attn.W_O[2, 0, 1] = 1
    scores = copying_scores(model)
    assert_close(scores.copying_score.tolist(), [1, -1, 0])
    with torch.no_grad():
        attn.W_O[0, :4] *= -3  # eigenvalues four times -3 and four times 1
    assert_close(copying_score(ov_circuit(model, 0, 0, biases=False)), -8 / 16)


@pytest.mark.parametrize("kind", [None, "LN", "RMS"])
def test_composition_scores_equal_dense_matrices(kind):
    model = models.two_layers(TASK, normalization_type=kind)
    table = composition_scores(model).set_index(
        ["sender_layer", "sender_head", "receiver_layer", "receiver_head", "kind"]
    )
    assert len(table) == 3 * 3 * 3
    N = torch.eye(13)
    if kind == "LN":
        N = N - 1 / 13
    if kind is not None:
        N = N @ model.blocks[1].ln1.w.diag()
    one, two = model.blocks[0].attn, model.blocks[1].attn
    for i in range(3):
        for j in range(3):
            OV = one.W_V[i] @ one.W_O[i]
            QK = N @ two.W_Q[j] @ two.W_K[j].T @ N.T
            for name, M in {"Q": QK, "K": QK.T, "V": N @ two.W_V[j] @ two.W_O[j]}.items():
                want = ((OV @ M).norm() / (OV.norm() * M.norm())).item()
                assert_close(table.score[0, i, 1, j, name], want)


def test_composition_score_ends():
    """1 where a head reads exactly what another writes, 0 where it reads none of it."""
    model = models.two_layers(TASK, normalization_type=None)
    one, two = model.blocks[0].attn, model.blocks[1].attn
    with torch.no_grad():
        for attn in (one, two):
            for weight in (attn.W_Q, attn.W_K, attn.W_V, attn.W_O):
                weight.zero_()
        one.W_V[0, 0, 0] = one.W_O[0, 0, 2] = 3
        two.W_V[0, 2, 0] = two.W_O[0, 0, 4] = 5
        two.W_Q[0, 2, 0] = two.W_K[0, 7, 0] = 1
    table = composition_scores(model)
    pair = (table.sender_head == 0) & (table.receiver_head == 0)
    got = table[pair].set_index("kind").score
    assert_close(got[["Q", "K", "V"]].tolist(), [1, 0, 1])
    assert table[~pair].score.abs().max() == 0
    assert len(composition_scores(models.toy(TASK))) == 0


def test_spliced_layers_have_their_own_heads():
    model = models.gated_layer(TASK, layer=1)
    assert gate_circuit(model, 1, 4).matrix.shape == (8, 8)
    assert composition_scores(model).receiver_head.max() == 4
    with refuses("no-gated-block", layer=0):
        gate_circuit(model, 0, 0)


def test_bad_input_in_one_sentence():
    model = models.two_layers(TASK)
    with refuses("no-such-head", head=3, layer=1, last=2):
        ov_circuit(model, 1, 3)
    with refuses("no-such-layer", layer=2):
        qk_circuit(model, 2, 0)
    with refuses("position-outside-context", position=11):
        ov_circuit(model, 0, 0, position=11)
    with refuses("needs-one-layer"):
        predict_from_circuits(model, TOKENS)
    toy = models.toy(TASK)
    for tokens, code in (
        (TOKENS + 5, "token-outside-vocabulary"),
        (TOKENS.repeat(1, 2), "sequence-too-long"),
        (TOKENS[:0], "tokens-wrong-shape"),
        (TOKENS.to("meta"), "tokens-on-another-device"),
    ):
        with refuses(code):
            predict_from_circuits(toy, tokens)
    with torch.no_grad():
        toy.pos_embed.W_pos[3] = 1
    with refuses("circuits-ignore-positions"):
        predict_from_circuits(toy, TOKENS)
