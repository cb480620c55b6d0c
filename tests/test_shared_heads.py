"""Two programs in the same heads: planted as asked, and measured as hooks written here measure."""

import pandas as pd
import pytest
import torch

from gated_interp.analysis.carriers import Carriers, carriers
from gated_interp.experiments import known_heads, shared_heads
from gated_interp.models.program_model import ProgramConfig, build_program
from gated_interp.plots.carriers import carried_shares
from gated_interp.tasks.programs import LETTERS, NONE, SHARED
from gated_interp.training.config import TrainConfig
from gated_interp.training.shared_heads import SharedInterchange, rotated, shares

PROGRAM = SHARED["two-letters"]


def untrained(seed: int = 3):
    shape = ProgramConfig(program="two-letters", n_layers=1, d_head=4, d_mlp=0, seed=seed)
    return build_program(shape)


def test_the_program_answers_what_is_asked():
    tokens = torch.tensor([[12, 3, 7, 12, 11, 10]])  # x D c x, small?, capital?
    assert [PROGRAM.tokens[i] for i in tokens[0]] == ["x", "D", "c", "x", "small?", "capital?"]
    values = PROGRAM.run(tokens)
    assert values["answer"][0].tolist() == [15, 15, 15, 15, 7, 3]
    assert values["capital"][0].tolist() == [NONE] * 5 + [3]
    given = {"capital": torch.tensor([[NONE] * 5 + [0]])}
    assert PROGRAM.answers(tokens, given)[0, -2:].tolist() == [7, 0]


def test_every_prompt_has_one_letter_of_each_kind_and_both_questions():
    tokens = PROGRAM.draw(200, torch.Generator().manual_seed(0))
    assert ((tokens < LETTERS).sum(1) == 1).all()
    assert (((tokens >= LETTERS) & (tokens < 2 * LETTERS)).sum(1) == 1).all()
    assert (tokens[:, -2:].sort(1).values == torch.tensor([10, 11])).all()


@pytest.mark.parametrize("degrees", [0.0, 22.5, 45.0, 70.0])
def test_a_rotation_turns_back_and_keeps_lengths(degrees):
    first, second = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(1))
    turned = rotated(first, second, degrees)
    back = rotated(*turned, -degrees)
    torch.testing.assert_close(torch.stack(back), torch.stack([first, second]))
    size = sum(u.square().sum() for u in turned)
    torch.testing.assert_close(size, first.square().sum() + second.square().sum())
    alone = rotated(first, torch.zeros_like(first), degrees)
    found = torch.stack([u.square().sum() for u in alone]) / first.square().sum()
    torch.testing.assert_close(shares(degrees)[:, 0], found, atol=1e-5, rtol=0)


@pytest.mark.parametrize("degrees", [0.0, 30.0])
def test_a_swapped_variable_moves_its_own_subspace_alone(degrees):
    model = untrained()
    objective = SharedInterchange(model, shared_heads.NODES, TrainConfig.planted(), degrees)
    tokens = PROGRAM.draw(6, torch.Generator().manual_seed(2))
    name, n = "blocks.0.attn.hook_z", len(tokens)
    none = torch.zeros(n, 2, dtype=torch.bool)
    clean, patched, *_ = objective.passes(tokens, torch.full((n,), 1), none)

    def swap(value, hook):
        first, second = rotated(value[:, :, 0], value[:, :, 1], degrees)
        value = value.clone()
        value[:, :, 0], value[:, :, 1] = rotated(first, second.roll(-1, 0), -degrees)
        return value

    torch.testing.assert_close(patched, model.run_with_hooks(tokens, fwd_hooks=[(name, swap)]))
    assert (patched - clean).abs().max() > 0.01


def test_carriers_are_what_hooks_find():
    model = untrained()
    clean, corrupted, asked = shared_heads.letters(40, 7)
    there, right, wrong = asked["small"]
    assert ((clean == 11) == there).all()
    assert (right != wrong).all()
    found, _ = shared_heads.measured(model, 7)
    clean, corrupted, asked = shared_heads.letters(shared_heads.PROMPTS, 7)
    _, cache = model.run_with_cache(corrupted)
    name, n = "blocks.0.attn.hook_z", torch.arange(len(clean))

    def metric(logits, variable):
        there, right, wrong = asked[variable]
        rows = logits[there]
        return rows[n, right] - rows[n, wrong]

    for head in range(4):

        def swap(value, hook, head=head):
            value = value.clone()
            value[:, :, head] = cache[name][:, :, head]
            return value

        logits = model.run_with_hooks(clean, fwd_hooks=[(name, swap)])
        for i, variable in enumerate(("capital", "small")):
            base = metric(model(clean), variable)
            distance = (base - metric(model(corrupted), variable)).mean()
            moved = (metric(logits, variable) - base).abs().mean() / distance
            assert found.effects[i, head].item() == pytest.approx(moved.item(), rel=1e-4, abs=1e-5)


def carried(*effects: list[float]) -> Carriers:
    n = len(effects)
    return Carriers([*"ab"][:n], torch.tensor(effects), *[torch.ones(n)] * 3)


def test_what_is_said_of_carriers():
    apart = carried([0.95, 0.05, 0.0], [0.0, 0.06, 0.94])
    assert apart.own
    assert apart.needed.tolist() == [1, 1]
    assert apart.cross.tolist() == pytest.approx([0.0, 0.0])
    both = carried([0.95, 0.05, 0.0], [0.92, 0.0, 0.08])
    assert not both.own
    assert both.cross.tolist() == pytest.approx([0.92, 0.95])
    shared = carried([0.5, 0.5, 0.0], [0.5, 0.5, 0.0])
    assert not shared.own
    assert shared.needed.tolist() == [2, 2]
    assert (apart.pure, shared.pure) == (pytest.approx(0.945 + 0.03, abs=0.03), 0.5)


def test_each_head_has_its_share_where_weights_say_so():
    model = untrained()
    with torch.no_grad():  # head 1 copies head 0 at three times the length, the others are silent
        attn = model.blocks[0].attn
        for weight in (attn.W_Q, attn.W_K, attn.W_V, attn.W_O):
            weight[1] = weight[0]
        attn.W_O[1] *= 3
        attn.W_O[2:] = 0
        model.ln_final = torch.nn.Identity()
    clean, corrupted, asked = shared_heads.letters(60, 1)
    there, right, wrong = asked["capital"]
    n = torch.arange(len(clean))

    def metric(logits):
        return logits[there][n, right] - logits[there][n, wrong]

    found = carriers(model, 0, clean, corrupted, {"capital": metric})
    assert found.shares[0].tolist() == pytest.approx([0.25, 0.75, 0.0, 0.0], abs=1e-4)
    assert found.at_once.item() == pytest.approx(0.75, abs=1e-4)


def test_the_study_writes_a_row_for_each_model_and_resumes(tmp_path, monkeypatch):
    monkeypatch.setattr(shared_heads, "MEASURED", ("gated", "topk copies"))
    how = {"degrees": [45.0], "seeds": [3], "planting": 3, "fitting": 2, "workers": 1}
    said = []
    table = shared_heads.run(tmp_path, **how, say=said.append)
    assert table["method"].tolist() == ["original", "copies, not trained", "gated", "topk copies"]
    assert table["heads"].tolist() == [4, 8, 8, 8]
    # Exact copies answer as the original does, and share its work out among twice the heads.
    original, copies = table.iloc[0], table.iloc[1]
    assert copies["loss_small"] == pytest.approx(original["loss_small"], abs=1e-4)
    assert copies["share_small"] <= original["share_small"] / 2 + 0.05
    assert len(said) == 4
    again = shared_heads.run(tmp_path, **how, say=said.append)
    pd.testing.assert_frame_equal(again, table)
    shared_heads.draw(table, tmp_path / "figures")
    assert (tmp_path / "figures" / "shared-heads.svg").is_file()


@pytest.mark.slow
def test_two_programs_come_to_share_two_heads_as_they_are_asked_to():
    model, objective = shared_heads.plant_shared(45, 3, steps=700)
    found, answers = shared_heads.measured(model, 3)
    assert answers["accuracy"] > 0.98
    assert shared_heads.subspace_accuracy(objective, 3) > 0.95
    assert (found.shares[:, :2] > 0.35).all()
    assert found.pure < 0.6
    assert not found.own


def test_a_point_of_the_figure_is_a_mean_over_seeds():
    rows = [
        {"degrees": d, "seed": s, "method": "gated", "share": 0.9 - d / 100 + s / 10, "pure": 1.0}
        for d in (45.0, 0.0)
        for s in (0, 1)
    ]
    pure, share = carried_shares(shared_heads.summary(pd.DataFrame(rows)), ["gated"]).data
    assert list(pure.y) == [1.0, 1.0]
    assert list(share.y) == pytest.approx([0.95, 0.5])
    assert list(share.error_y.array) == pytest.approx([0.05, 0.5], abs=1e-6)


def test_a_known_circuit_has_its_variables_in_heads_and_an_untrained_block_has_not():
    rows = known_heads.all_rows("planted-induction-0", 0, 0, ["gated"], fitting=1)
    original, block = rows
    assert (original["variables"], original["told"], original["held"]) == (1, 1, 1)
    assert original["kept"] == original["wires"] == 2
    assert original["idle"] < 0.05
    # Two exact copies of each head have half of its work each.
    assert block["held"] == block["kept"] == 0
    assert block["needed"] == 2
    assert block["share"] == pytest.approx(original["share"] / 2, abs=0.03)


def test_variables_of_two_heads_are_told_apart_by_prompts():
    circuit = known_heads.known_circuit("planted-either-0")
    asked = known_heads.variables_of(circuit, 0, circuit.pairs(512, 0))
    assert sorted(asked) == ["L0H0", "L0H3"]
    assert known_heads.measured(circuit, 0, circuit.model, 0)["held"] == 2
