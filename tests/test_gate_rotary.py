"""Gates that see positions: their queries and keys are rotated as the layer's own."""

import pytest
import torch
from closeness import assert_close
from model_kinds import TASK, Column
from refusals import refuses

import gated_interp as gi
from gated_interp.core.seeds import generator
from gated_interp.replacements.gated_attention import GatedAttention, GatedConfig
from gated_interp.replacements.scoring import scoring_of
from gated_interp.training.stacked.runs import why_not_stackable

TOKENS = torch.randint(0, TASK.d_vocab - 1, (4, 9), generator=generator(0))
GATES = {"d_gate": 5, "gate_rotary": 4}
ROTARY = ["rotary", "rotary, adjacent pairs", "rotary, partial", "Llama", "Gemma 2"]
COPY = {"init": "duplicate", "noise": 0.0}


def replaced(kind="rotary", layer=1):
    """A model in double precision with a gated block of random gates that see positions."""
    model = Column(kind, dtype="float64").original()
    block = GatedAttention.from_attention(model.blocks[layer].attn, **COPY, **GATES, gate="tanh")
    block, source = block.double(), generator(3)
    with torch.no_grad():
        for name in ("W_gate_Q", "W_gate_K", "b_gate_Q", "b_gate_K"):
            weight = block.get_parameter(name)
            weight.copy_(0.5 * torch.randn(weight.shape, generator=source))
    return gi.splice(model, layer, block)


def scores_by_hand(block, attn, x):
    """Gate scores, both sides turned by TransformerLens' own code for a head of that width."""
    n = block.config.gate_rotary
    tables = attn.calculate_sin_cos_rotary(n, x.shape[1], base=attn._rotary_base())
    sin, cos = (table[:, None] for table in tables)

    def side(which):
        y = torch.einsum("bpm,hmg->bphg", x, block.get_parameter(f"W_gate_{which}"))
        y = y + block.get_parameter(f"b_gate_{which}")
        turned = y[..., :n] * cos + attn.rotate_every_two(y[..., :n]) * sin
        return torch.cat([turned, y[..., n:]], -1)

    return torch.einsum("bqhg,bkhg->bhqk", side("Q"), side("K"))


@pytest.mark.parametrize("kind", ROTARY)
def test_gate_scores_are_those_of_sides_that_the_layers_rotation_turned(kind):
    model = replaced(kind)
    block, attn = model.blocks[1].attn, gi.unsplice(model).blocks[1].attn
    x = torch.randn(2, 7, model.cfg.d_model, dtype=torch.float64, generator=generator(1))
    seen = []
    block.hook_gate_scores.add_hook(lambda s, hook: seen.append(s))
    block(x)
    assert_close(seen[0], scores_by_hand(block, attn, x), dtype=torch.float32)


@pytest.mark.parametrize("kind", ROTARY)
@pytest.mark.parametrize("gate", ["clamp", "hard_concrete"])
def test_copies_with_such_gates_are_exact_in_padded_rows_too_and_in_a_file(kind, gate, tmp_path):
    model = Column(kind).original()
    attn = model.blocks[1].attn
    block = GatedAttention.from_attention(attn, 2, **COPY, **GATES, gate=gate)
    block.save_pretrained(tmp_path)
    read = GatedAttention.from_pretrained(tmp_path)
    assert read.config == block.config
    mask = torch.ones_like(TOKENS)
    mask[0, :3], mask[1, 6:] = 0, 0
    for put in (block, read):
        got, wanted = (m(TOKENS, attention_mask=mask) for m in (gi.splice(model, 1, put), model))
        assert_close(got[mask.bool()], wanted[mask.bool()], scale=wanted.abs().max())


def test_positions_of_gates_count_from_the_first_token_of_a_row():
    model = replaced()
    alone = model(TOKENS[:, :6])
    padded = torch.cat([torch.zeros_like(TOKENS[:, :3]), TOKENS[:, :6]], 1)
    mask = torch.ones_like(padded)
    mask[:, :3] = 0
    assert_close(model(padded, attention_mask=mask)[:, 3:], alone, roundings=1000)


def test_a_gate_sees_the_distance_alone():
    block = replaced().blocks[1].attn
    x = torch.randn(1, 1, 17, dtype=torch.float64, generator=generator(0)).expand(1, 6, 17)
    seen = []
    block.hook_gate_scores.add_hook(lambda s, hook: seen.append(s[0]))
    block(x)  # the same at every position
    for back in range(6):
        diagonal = seen[0].diagonal(-back, 1, 2)
        assert_close(diagonal, diagonal[:, :1].expand_as(diagonal), dtype=torch.float32)
    assert (seen[0][:, 5, 0] - seen[0][:, 5, 5]).abs().min() > 1e-3
    block.force_gates(0.25)
    block(x)
    assert_close(seen[1], torch.full_like(seen[1], 0.25))


def test_random_blocks_start_with_gates_that_see_no_distance():
    attn = Column("rotary").original().blocks[0].attn
    block = GatedAttention.from_attention(attn, **GATES, gate_bias_init=0.5)
    seen = []
    block.hook_gate_scores.add_hook(lambda s, hook: seen.append(s))
    block(torch.zeros(1, 5, 17))
    assert_close(seen[0], torch.full_like(seen[0], 0.25))


def test_gates_that_cannot_rotate_are_refused_in_a_sentence():
    attn = Column("rotary").original().blocks[0].attn
    scoring = scoring_of(attn).to_dict()
    fits = {"d_model": 17, "n_heads": 2, "d_head": 6, "scoring": scoring, **GATES}
    assert GatedConfig(**fits).to_dict()["gate_rotary"] == 4
    assert "gate_rotary" not in GatedConfig(**fits | {"gate_rotary": 0}).to_dict()
    for wrong in (
        {"gate_rotary": 3},
        {"gate_rotary": -2},
        {"d_gate": 4},
        {"scoring": {}},
        {"scoring": {"width": 6, "cap": 1.0}},
        {"gate_per": "head"},
    ):
        with refuses("config-gates-cannot-rotate"):
            GatedConfig(**fits | wrong)


def test_training_of_such_gates_moves_what_rotates_and_takes_the_hooked_loop():
    model = Column("rotary").original()
    fields = {"d_gate": 4, "gate_rotary": 2, "steps": 3, "batch_size": 4}
    data = TASK.sample(40, seed=0).tokens
    found = gi.fit_gated(model, 0, data, **fields, progress=False).model
    assert found.config.gate_rotary == 2
    assert found.W_gate_K[..., :2].ne(0).any(-1).all()
    run = gi.studies.GatedRun(model, found, gi.TrainConfig(), TASK)
    assert why_not_stackable(run) is not None
