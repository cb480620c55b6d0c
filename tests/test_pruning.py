"""Heads that never write are left out, and the model stays what it was."""

import pytest
import torch
from closeness import assert_close
from refusals import refuses

from gated_interp.analysis.verdict import verdict
from gated_interp.analysis.writes import head_writes
from gated_interp.models.analytic import manual_model
from gated_interp.models.toy import HookedTransformer, ToyConfig, build_toy
from gated_interp.replacements.gated_attention import GatedAttention, GatedConfig
from gated_interp.replacements.pruning import head_reach, prune_dead_heads, with_heads
from gated_interp.replacements.splice import splice, unsplice


def gated_with_dead_heads(gate="clamp", shut=(1, 4), small=0.0) -> HookedTransformer:
    """Seven heads on a toy of 5 trigrams; the gates of ``shut`` are ``small`` for all tokens."""
    toy = build_toy(ToyConfig(n_trigrams=5, n_heads=3, seed=3))
    block = GatedAttention(
        GatedConfig(
            d_model=toy.cfg.d_model, n_heads=7, d_head=2, d_gate=3, gate=gate, output_bias=True
        )
    )
    source = torch.Generator().manual_seed(8)
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=source))
        for h in shut:
            block.W_gate_Q[h], block.W_gate_K[h] = 0.0, 0.0
            block.b_gate_Q[h], block.b_gate_K[h] = small / 3 if small else -1.0, 1.0
    return splice(toy, 0, block)


@pytest.mark.parametrize("gate", ["clamp", "relu", "tanh", "binary"])
def test_pruning_shut_heads_changes_no_output(gate):
    model = gated_with_dead_heads(gate)
    tokens = torch.randint(12, (64, 11), generator=torch.Generator().manual_seed(1))
    before = model(tokens)
    pruned = prune_dead_heads(model)
    assert pruned.kept == [0, 2, 3, 5, 6]
    assert pruned.bound == 0.0
    assert pruned.model.blocks[0].attn.W_Q.shape[0] == 5
    # Equal but for the order of the sums.
    assert_close(pruned.model(tokens), before)
    assert torch.equal(model(tokens), before)
    assert model.blocks[0].attn.config.n_heads == 7
    assert torch.equal(unsplice(pruned.model)(tokens), unsplice(model)(tokens))


def test_each_head_that_stays_writes_what_it_wrote():
    model = gated_with_dead_heads()
    pruned = prune_dead_heads(model)
    tokens = torch.randint(12, (17, 11), generator=torch.Generator().manual_seed(2))
    rows, at = torch.arange(17), torch.full((17,), 10)
    before, after = (head_writes(m, tokens, rows, at)[0] for m in (model, pruned.model))
    assert_close(after, before[:, pruned.kept])
    gone = [h for h in range(7) if h not in pruned.kept]
    assert before[:, gone].abs().max() == 0
    assert before[:, pruned.kept].abs().amax((0, 2)).min() > 0


def test_gates_nearly_shut_move_the_output_by_no_more_than_the_bound():
    model = gated_with_dead_heads(small=9e-4)
    tokens = torch.randint(12, (200, 11), generator=torch.Generator().manual_seed(1))
    pruned = prune_dead_heads(model)
    assert pruned.kept == [0, 2, 3, 5, 6]
    name = "blocks.0.hook_attn_out"
    outputs = [m.run_with_cache(tokens, names_filter=name)[1][name] for m in (model, pruned.model)]
    moved = float((outputs[0] - outputs[1]).norm(dim=-1).max())
    assert 0.2 * pruned.bound < moved <= pruned.bound * (1 + 1e-4)
    assert prune_dead_heads(model, threshold=1e-4).kept == list(range(7))


def test_a_heads_reach_by_hand():
    toy = build_toy(ToyConfig(n_trigrams=1, n_heads=1))  # 4 tokens
    block = GatedAttention(GatedConfig(d_model=4, n_heads=2, output_scale=3.0))
    with torch.no_grad():
        block.force_gates(0.25)
        block.raw_W_V.zero_()
        block.raw_W_V[0, 2] = 5.0  # normalised to 1, at token 2
        block.b_V[0] = 0.5
    gates, writes = head_reach(splice(toy, 0, block))
    assert gates.tolist() == [0.25, 0.25]
    # v = 1 + 0.5 at token 2; W_O has length 3. The other head has no value at all.
    assert writes.tolist() == pytest.approx([4.5, 0.0])
    assert prune_dead_heads(splice(toy, 0, block)).kept == [0]


def test_owners_map_over():
    analytic = manual_model(3, 4)
    block = GatedAttention.from_attention(analytic.model.blocks[0].attn, 2, init="duplicate",
                                          noise=0, normalize_weights=False)  # fmt: skip
    with torch.no_grad():
        block.force_gates(1.0)
        # Heads 0, 3 and 4 are shut; 5, 1 and 2 write the whole of what they share.
        block.raw_W_O.mul_(2)
        for h in (0, 4, 5):
            block.b_gate_Q[h] = 0.0
    model = splice(analytic.model, 0, block)
    pruned = prune_dead_heads(model)
    assert pruned.kept == [1, 2, 3]
    before, after = (verdict(m, analytic.task) for m in (model, pruned.model))
    assert after.learnt == before.learnt == [1, 2, 3, 4]
    assert any(before.owners.values())
    for b in analytic.task.trigrams:
        assert [pruned.kept[h] for h in after.owners[b]] == before.owners[b]


def test_where_every_head_is_dead_one_stays():
    pruned = prune_dead_heads(gated_with_dead_heads(shut=range(7)))
    assert len(pruned.kept) == 1
    assert pruned.bound == 0.0


def test_where_every_head_is_dead_the_one_that_reaches_furthest_stays():
    model = gated_with_dead_heads(shut=range(7), small=9e-4)
    gates, writes = head_reach(model)
    reach = (gates * writes).tolist()
    pruned = prune_dead_heads(model)
    assert pruned.kept == [reach.index(max(reach))]
    assert pruned.bound == pytest.approx(sum(reach) - max(reach), rel=1e-5)
    assert pruned.bound > 0


def test_pruning_refuses_what_it_cannot_prune():
    model = gated_with_dead_heads()
    with refuses("no-gated-block"):
        prune_dead_heads(unsplice(model))
    with refuses("is-negative", name="threshold", value=-1):
        prune_dead_heads(model, threshold=-1)
    with refuses("bad-heads-to-keep", last=6):
        with_heads(model.blocks[0].attn, [])
    with refuses("bad-heads-to-keep", last=6):
        with_heads(model.blocks[0].attn, [7])
    with torch.no_grad():
        model.pos_embed.W_pos[0, 0] = 1.0
    with refuses("pruning-needs-first-layer"):
        prune_dead_heads(model)
