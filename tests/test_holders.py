"""Who holds a trigram: the definition, its closed form against ablation, and what remains."""

import pytest
import torch
from refusals import refuses

import gated_interp as gi
from gated_interp.analysis.heads import intervened
from gated_interp.analysis.holders import (
    holders,
    holders_from_accuracy,
    holders_from_writes,
    is_clean,
)
from gated_interp.analysis.roles import energy_by_place, head_roles, what_remains
from gated_interp.analysis.verdict import verdict
from gated_interp.analysis.writes import head_writes
from gated_interp.models.analytic import manual_model
from gated_interp.models.analytic_tasks import conditional_heads
from gated_interp.models.toy import ToyConfig, build_toy
from gated_interp.replacements.splice import unsplice

SHIPPED = ("2H3ST", "3H4ST", "4H5ST")


def of(accuracy, alone, without):
    """Holders of two trigrams and two heads from plain lists."""
    tensors = (torch.tensor(x, dtype=torch.double) for x in (accuracy, alone, without))
    return holders_from_accuracy(*tensors)


ONE_EACH = ([1.0, 1.0], [[1.0, 0.0], [0.0, 1.0]], [[0.0, 1.0], [1.0, 0.0]])


def test_one_head_each_is_clean():
    found = of(*ONE_EACH)
    assert found.holders == {1: [0], 2: [1]}
    assert found.clean


@pytest.mark.parametrize(
    ("which", "row", "head", "value"),
    [
        ("accuracy", 0, None, 0.99),  # learnt is *more* than 99%
        ("alone", 0, 0, 0.99),  # sufficient is more than 99%
        ("without", 0, 0, 0.5),  # necessary is less than half
        ("without", 1, 0, 0.99),  # specific: the other trigram stays above 99%
    ],
)
def test_each_condition_is_needed(which, row, head, value):
    accuracy, alone, without = (torch.tensor(x, dtype=torch.double) for x in ONE_EACH)
    changed = {"accuracy": accuracy, "alone": alone, "without": without}[which]
    changed[row if head is None else (row, head)] = value
    found = holders_from_accuracy(accuracy, alone, without)
    assert found.holders == {1: [], 2: [1]}
    assert not found.clean


def test_two_holders_or_one_for_two_are_not_clean():
    assert not is_clean({1: [0, 1], 2: [2]})
    assert not is_clean({1: [0], 2: [0]})
    assert is_clean({})


@pytest.mark.parametrize("name", SHIPPED)
@pytest.mark.parametrize("kind", ["toy", "gated"])
def test_the_closed_form_is_what_ablation_finds(name, kind):
    model = gi.load(f"{name}-{kind}")
    task = model.task
    by_ablation = holders(model, task, n=400, seed=7)
    probes = task.probes(400, 7)
    writes, logits = head_writes(model, probes.tokens, probes.row, probes.position)
    closed = holders_from_writes(writes, logits, probes)
    assert closed.holders == by_ablation.holders
    # Rounding may decide an example whose lead is nearly nothing: one of some 80 at most.
    for part in ("accuracy", "alone", "without"):
        assert (getattr(closed, part) - getattr(by_ablation, part)).abs().max() < 0.02


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_blocks_are_clean_and_their_toys_are_not(name):
    gated = gi.load(f"{name}-gated")
    for seed in (42, 43, 44):
        assert verdict(gated, gated.task, seed=seed).clean
        assert not verdict(unsplice(gated), gated.task, seed=seed).clean


def test_sole_owners_need_not_hold():
    truth = manual_model(2, 3)
    found = verdict(truth.model, truth.task)
    assert found.owners == {1: [0], 2: [1], 3: []}
    assert found.holders == {1: [], 2: [], 3: []}


def test_what_is_not_learnt_has_neither_owner_nor_holder():
    toy = build_toy(ToyConfig(n_trigrams=3, n_heads=2, seed=5))
    found = verdict(toy, toy.toy_config.task)
    assert found.not_learnt == [1, 2, 3]
    assert found.owners == found.holders == {1: [], 2: [], 3: []}
    assert found.to_json()["owners"] == {"1": [], "2": [], "3": []}


def test_json_has_the_holders():
    gated = gi.load("2H3ST-gated")
    found = verdict(gated, gated.task)
    said = found.to_json()
    assert said["clean"] is True
    assert said["holders"] == {str(b): heads for b, heads in found.holders.items()}
    assert all(len(heads) == 1 for heads in said["holders"].values())


def test_roles_are_energies_by_position():
    gated = gi.load("2H3ST-gated")
    task, attn = gated.task, gated.blocks[0].attn
    found = verdict(gated, task).holders
    roles = head_roles(gated, task, found, n=60, seed=3)
    batch = task.sample(60, 3)
    _, cache = gated.run_with_cache(batch.tokens)
    result = torch.einsum("bphd,hdm->bphm", cache["blocks.0.attn.hook_z"], attn.W_O)
    total = (result**2).sum().item()
    ((held, (head,)),) = [(b, heads) for b, heads in found.items() if b == 2]
    own = there = anywhere = 0.0
    for row in range(60):
        is_open = False
        for pos, token in enumerate(batch.tokens[row].tolist()):
            energy = (result[row, pos, head] ** 2).sum().item()
            own += energy
            there += energy if token == held and is_open else 0.0
            anywhere += energy if 1 <= token <= task.n_trigrams and is_open else 0.0
            is_open = (is_open or token == task.source) and not 1 <= token <= task.n_trigrams
    mine = roles[roles["head"] == head].iloc[0]
    assert mine["trigram"] == held
    assert mine["purity"] == pytest.approx(there / own, rel=1e-4)
    assert mine["purity_any"] == pytest.approx(anywhere / own, rel=1e-4)
    assert mine["energy"] == pytest.approx(own / total, rel=1e-4)
    assert roles["energy"].sum() == pytest.approx(1, rel=1e-6)
    assert roles.loc[roles["trigram"].isna(), "purity"].isna().all()


def test_energy_by_place_is_the_roles_seen_by_token():
    gated = gi.load("3H4ST-gated")
    task = gated.task
    found = verdict(gated, task).holders
    roles = head_roles(gated, task, found, n=80, seed=3)
    energy = energy_by_place(gated, task, n=80, seed=3)
    assert energy.to_numpy().sum() == pytest.approx(1)
    assert energy.sum(axis=1).to_numpy() == pytest.approx(roles["energy"].to_numpy())
    for row in roles.dropna(subset="trigram").to_dict("records"):
        there = energy.loc[row["head"], f"B{row['trigram']}"]
        assert there / row["energy"] == pytest.approx(row["purity"])
    # Heads that hold nothing and still write do so at A, where no trigram is answered.
    idle = energy[roles["trigram"].isna().to_numpy()]
    assert idle["A"].sum() > 0.9 * idle.to_numpy().sum() > 0.1


def test_energy_at_a_is_what_heads_write_at_a():
    gated = gi.load("2H3ST-gated")
    batch = gated.task.sample(50, 8)
    _, cache = gated.run_with_cache(batch.tokens)
    W_O = gated.blocks[0].attn.W_O.detach()
    result = torch.einsum("bphd,hdm->bphm", cache["blocks.0.attn.hook_z"].detach(), W_O).double()
    at_a = (result[batch.tokens == gated.task.source] ** 2).sum((0, 2)) / (result**2).sum()
    energy = energy_by_place(gated, gated.task, n=50, seed=8)
    assert energy["A"].to_numpy() == pytest.approx(at_a.numpy(), rel=1e-4, abs=1e-9)


def test_energy_of_another_task_falls_where_its_questions_are_answered():
    truth = conditional_heads()
    task = truth.task
    batch = task.sample(50, 8)
    _, cache = truth.model.run_with_cache(batch.tokens)
    W_O = truth.model.blocks[0].attn.W_O.detach()
    result = torch.einsum("bphd,hdm->bphm", cache["blocks.0.attn.hook_z"].detach(), W_O).double()
    mine = (batch.case == 3) & (batch.has_source > 0)
    there = (result[mine, -2] ** 2).sum((0, 2)) / (result**2).sum()
    assert there.sum() > 0
    energy = energy_by_place(truth.model, task, n=50, seed=8)
    assert energy.columns.tolist() == [*task.cases.values(), "other"]
    assert energy[task.cases[3]].to_numpy() == pytest.approx(there.numpy(), rel=1e-4, abs=1e-9)


def test_open_gates_are_counted_per_causal_pair():
    gated = gi.load("2H3ST-gated")
    roles = head_roles(gated, gated.task, {1: [], 2: [], 3: []}, n=80, seed=3)
    tokens = gated.task.sample(80, 3).tokens
    l0 = gi.faithfulness(gated, tokens).measures()["l0"].item()
    assert roles["open_pairs"].sum() == pytest.approx(l0, rel=1e-6)


@pytest.mark.parametrize("name", SHIPPED)
def test_holders_alone_answer_and_without_them_nothing_does(name):
    gated = gi.load(f"{name}-gated")
    found = verdict(gated, gated.task).holders
    remains = what_remains(gated, gated.task, found, n=300).set_index("ablated")
    assert remains.loc["others", "worst"] > 0.99
    assert remains.loc["holders", "accuracy"] < 0.5
    assert remains.loc["nothing", "fvu"] < remains.loc["others", "fvu"]
    assert remains.loc["nothing", "kl"] < remains.loc["others", "kl"] < remains.loc["holders", "kl"]
    n_heads = gated.blocks[0].attn.W_Q.shape[0]
    assert remains.loc["others", "heads"] + remains.loc["holders", "heads"] == n_heads


def test_what_remains_is_an_ablation_by_hand():
    toy = build_toy(ToyConfig(n_trigrams=2, n_heads=3, seed=1))
    task = toy.toy_config.task
    remains = what_remains(toy, task, {1: [2], 2: []}, n=50, seed=9).set_index("ablated")
    tokens = task.sample(50, 9).tokens

    def drop(z):
        z = z.clone()
        z[:, :, 2] = 0
        return z

    intact, before = toy.run_with_cache(tokens)
    with intervened(toy, {"blocks.0.attn.hook_z": drop}):
        logits, after = toy.run_with_cache(tokens)
    target = before["blocks.0.hook_attn_out"]
    error = (after["blocks.0.hook_attn_out"] - target).square().sum()
    fvu = error / (target - target.mean((0, 1))).square().sum()
    p, q = intact.log_softmax(-1), logits.log_softmax(-1)
    kl = (p.exp() * (p - q)).sum(-1).mean()
    assert remains.loc["holders", "fvu"] == pytest.approx(fvu.item(), rel=1e-4)
    assert remains.loc["holders", "kl"] == pytest.approx(kl.item(), rel=1e-3)
    assert remains.loc["nothing", "fvu"] == remains.loc["nothing", "kl"] == 0


def test_bad_input_gets_a_sentence():
    toy = build_toy(ToyConfig(n_trigrams=2, n_heads=3))
    other = gi.SkipTrigramTask(3)
    with refuses("vocabulary-mismatch", d_vocab=6, task="a task of 3 trigrams", wanted=8):
        holders(toy, other)
    for call in (
        lambda: head_roles(toy, other, {}),
        lambda: what_remains(toy, other, {}),
    ):
        with refuses("needs-one-layer-of-task", layers=1, tokens=6, wanted=8):
            call()
    with refuses("case-without-examples", word="trigram"):
        holders(toy, toy.toy_config.task, n=1)
