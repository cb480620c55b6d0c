"""The main job: selection without the verdict, what is written, and going on after a stop."""

import json
import math
import pickle
import re
from typing import get_origin

import pandas as pd
import pytest
import torch
from closeness import assert_close
from refusals import refuses

from gated_interp.analysis.verdict import verdict
from gated_interp.checkpoints.checkpoint import load
from gated_interp.core.errors import GatedInterpError
from gated_interp.core.seeds import derive
from gated_interp.experiments import behaviour, paper, seeds
from gated_interp.experiments.behaviour import kept_answers
from gated_interp.experiments.figures import draw_run
from gated_interp.experiments.paper import PaperConfig, read_results, results_table, run_paper
from gated_interp.experiments.processes import in_processes
from gated_interp.experiments.recipes import RELIABLE, Recipe, recipe_named, reference_recipe
from gated_interp.metrics.intervals import clustered
from gated_interp.metrics.predictions import leads
from gated_interp.models.analytic_tasks import induction_model
from gated_interp.models.toy import ToyConfig, build_toy
from gated_interp.replacements.gated_attention import GatedConfig
from gated_interp.replacements.splice import unsplice
from gated_interp.tasks.skip_trigrams import SkipTrigramTask
from gated_interp.views.gates import gate_table

TINY = PaperConfig(only="3H4ST", seeds=4, steps=40)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("paper")
    said = []
    with pytest.MonkeyPatch.context() as patch:
        quick = RELIABLE.replace(toy_steps=1500, n_sequences=4000)
        patch.setattr(paper, "recipe_named", lambda *_: quick)
        results = run_paper(TINY, out, workers=1, say=said.append)
    return out, results, said


def test_results_hold_what_is_promised_and_agree_with_the_tables(run):
    out, results, said = run
    assert json.loads((out / "results.json").read_text()) == results
    entry = results["experiments"]["3H4ST"]
    # Beside every number: what it is, what it was measured on, and how many are counted.
    config = ("recipe", "heads", "gated_heads", "trigrams", "seeds", "selected_seed",
              "selected_toy_seed", "measured")  # fmt: skip
    assert entry["measured"].keys() == entry.keys() - set(config)
    for how in entry["measured"].values():
        assert how.keys() == {"what", "on", "n", "of"}
        assert "seed" in how["on"] or how["on"].startswith("the training")
        assert "seed" in how["of"]
        assert how["n"] in (1, 4)
    table = pd.read_csv(out / "3H4ST-runs.csv")
    assert entry["seeds"] == len(table) == 4
    assert entry["successes"] == table["success"].sum()
    assert entry["success_rate"] == entry["successes"] / 4
    by_toy = table["toy_seed"].tolist()
    assert entry["success_interval"] == list(clustered(table["success"].tolist(), by_toy))
    assert entry["clean"] == table["clean"].sum()
    assert entry["clean_rate"] == entry["clean"] / 4
    assert entry["clean_interval"] == list(clustered(table["clean"].tolist(), by_toy))
    assert entry["toys_used"] == table["toy_seed"].nunique()
    assert entry["fvu_median"] == pytest.approx(table["fvu"].median(), rel=1e-4)
    assert set(entry["gated"]) == {
        "learnt", "holders", "clean", "owners", "distributed", "not_learnt"
    }  # fmt: skip
    assert entry["seconds"] > 0
    assert len(said) == 1
    assert "3H4ST" in said[0]


def test_the_shown_run_keeps_most_answers_at_the_least_loss_and_its_files_give_its_verdicts(run):
    out, results, _ = run
    entry = results["experiments"]["3H4ST"]
    table = pd.read_csv(out / "3H4ST-runs.csv").set_index("seed")
    faithful = table[table["kept"] == table["kept"].max()]
    assert entry["selected_seed"] == faithful["selection_loss"].idxmin()
    gated, toy = load(out / "3H4ST-gated.safetensors"), load(out / "3H4ST-toy.safetensors")
    assert verdict(gated, gated.task).to_json() == entry["gated"]
    assert verdict(toy, toy.task).to_json() == entry["toy"]
    tokens = gated.task.sample(5, 0).tokens
    assert torch.equal(unsplice(gated)(tokens), toy(tokens))
    assert gated.notes["seed"] == entry["selected_seed"]


def test_gated_runs_stand_in_for_toys_that_learnt(run):
    out, _, _ = run
    toys = pd.read_csv(out / "3H4ST-toys.csv").set_index("seed")
    for seed in pd.read_csv(out / "3H4ST-runs.csv")["toy_seed"]:
        assert toys.loc[seed, "learnt_all"]


def test_figures_come_from_the_run_folder_with_their_tables(run, tmp_path):
    out, _, _ = run
    written = draw_run(out, tmp_path, formats=("html",))
    names = {p.name for p in written}
    for stem in ("3H4ST-before-after", "3H4ST-gates", "3H4ST-training", "reliability"):
        assert {f"{stem}.html", f"{stem}.csv"} <= names
    assert {"3H4ST-roles.html", "3H4ST-roles-energy.csv", "3H4ST-roles-left.csv"} <= names
    gates = pd.read_csv(tmp_path / "3H4ST-gates.csv")
    assert len(gates) == 12 * 10 * 10


def test_the_gate_table_is_the_gate_of_each_pair_of_tokens(run):
    out, _, _ = run
    model = load(out / "3H4ST-gated.safetensors")
    block = model.blocks[0].attn
    q = block.W_gate_Q + block.b_gate_Q[:, None]
    k = block.W_gate_K + block.b_gate_K[:, None]
    by_hand = (q[:, :, None] * k[:, None]).sum(-1).clamp(0, 1)
    assert_close(torch.from_numpy(gate_table(model)), by_hand.detach())
    with refuses("no-gated-block"):
        gate_table(unsplice(model))


@pytest.mark.slow
def test_a_stopped_run_goes_on_with_what_it_had_and_a_finished_one_starts_anew(
    tmp_path, monkeypatch
):
    started = []
    quick = RELIABLE.replace(toy_steps=600)
    monkeypatch.setattr(paper, "recipe_named", lambda *_: quick)

    def counted(task, recipe, some, originals):
        started.append(originals[0].model.cfg.n_heads)
        if len(started) == 2:
            raise KeyboardInterrupt
        return seeds.train_gated_seeds(task, recipe, some, originals)

    monkeypatch.setattr(paper, "train_gated_seeds", counted)
    monkeypatch.setattr(paper, "PUBLISHED", {"3H4ST": (3, 4), "4H4ST": (4, 4)})
    config = PaperConfig(seeds=4, steps=20)
    with pytest.raises(KeyboardInterrupt):
        run_paper(config, tmp_path, workers=1)
    assert started == [4, 3]  # the dearest first
    assert not (tmp_path / "results.json").exists()
    said = []
    results = run_paper(config, tmp_path, workers=1, say=said.append)
    assert started == [4, 3, 3]
    assert said[0] == "1 of 2 experiments are there already and are kept."
    assert set(results["experiments"]) == {"3H4ST", "4H4ST"}
    run_paper(config, tmp_path, workers=1)
    assert sorted(started[3:]) == [3, 4]


def test_unlearnt_toys_are_said_in_a_sentence():
    task = SkipTrigramTask(4)
    recipe = RELIABLE.replace(toy_steps=1, steps=1)
    outcome = seeds.train_seeds(2, task, recipe, [0, 1])
    assert outcome.gated == []
    with refuses("no-toy-learnt", n=2):
        _ = outcome.selected


def test_the_selection_loss_is_the_full_loss_over_the_variance():
    history = pd.DataFrame(
        {"reconstruction": [9.0] + [0.2] * 10, "fvu": [9.0] + [0.1] * 10,
         "penalty": [9.0] + [0.5] * 10, "overlap": [9.0] + [0.4] * 10}
    )  # fmt: skip
    # variance 2: (0.2 + 0.1 * 2 * 0.5 + 0.3 * 0.4) / 2
    recipe = Recipe(alpha=0.1, alpha_unit="variance", overlap=0.3)
    assert math.isclose(seeds.selection_loss(history, recipe), 0.21)
    # (0.2 + 0.1 * 0.5 + 0.3 * 0.4) / 2
    assert math.isclose(seeds.selection_loss(history, recipe.replace(alpha_unit="absolute")), 0.185)


@pytest.mark.slow
def test_of_several_attempts_the_one_with_the_lowest_loss_is_kept():
    task = SkipTrigramTask(2)
    recipe = RELIABLE.replace(toy_steps=200, steps=30)
    toys = seeds.train_toy_seeds(3, task, recipe, range(4))
    alone, of_three = (
        seeds.train_seeds(3, task, recipe.replace(attempts=n), range(4), toys=toys).table()
        for n in (1, 3)
    )
    assert len(alone) == len(of_three) == 4
    # An attempt in another stack differs by rounding alone; two attempts differ by more.
    ratio = of_three["selection_loss"] / alone["selection_loss"]
    same = (ratio - 1).abs() < 1e-3
    assert (same | (ratio < 1)).all()
    assert not same.all()
    # A run that stays the first attempt's is the same run.
    if same.any():
        fvu = of_three["fvu"][same], alone["fvu"][same]
        assert_close(*(f.tolist() for f in fvu), roundings=1000)  # 30 steps of Adam
    with refuses("config-not-positive", field="attempts", value=0):
        Recipe(attempts=0)


@pytest.mark.parametrize(("count", "heads"), [(64, 2), (64, 3), (10, 8), (1, 64), (0, 2)])
def test_stacks_hold_every_seed_once_and_fit_the_cache(count, heads):
    given = list(range(7, 7 + count))
    parts = seeds.stacks(given, heads, RELIABLE)
    assert [s for part in parts for s in part] == given
    sizes = [len(part) for part in parts]
    assert all(0 < size <= seeds.stack_size(heads, RELIABLE) for size in sizes)
    assert max(sizes, default=0) - min(sizes, default=0) <= 1


def test_recipes_follow_their_seed_and_the_reference_is_the_posts():
    task = SkipTrigramTask(3)
    toy = build_toy(ToyConfig(n_trigrams=3, n_heads=2))
    one, same, other = (RELIABLE.gated_run(toy, task, s) for s in (1, 1, 2))
    assert torch.equal(one.block.W_Q, same.block.W_Q)
    assert not torch.equal(one.block.W_Q, other.block.W_Q)
    assert one.config.seed != other.config.seed
    run = reference_recipe(2, 3).gated_run(toy, task, 1)
    assert run.block.config.replace(seed=0) == GatedConfig.reference(8, 4)
    assert (run.config.alpha, run.config.lr, run.config.lr_decay) == (0.5, 5e-4, 0.0)
    assert run.config.overlap == run.config.penalty_off == 0
    assert run.config.fvu_target is None
    assert reference_recipe(4, 5).alpha == 0.3
    with refuses("not-one-of"):
        recipe_named("lucky", 2, 3)
    with refuses("vocabulary-mismatch", d_vocab=10):
        RELIABLE.gated_run(build_toy(ToyConfig(n_trigrams=4, n_heads=2)), task, 1)


def test_a_recipes_fields_have_paths_and_short_names():
    recipe = RELIABLE.replace(toy_lr=0.5, d_gate=3, batch_size=20, n_sequences=400, n_heads=5)
    assert recipe.original == RELIABLE.original.replace(lr=0.5, batch_size=20, n_sequences=400)
    assert recipe.training == RELIABLE.training.replace(batch_size=20, n_sequences=400)
    assert recipe.block.config == RELIABLE.block.config | {"d_gate": 3}
    assert recipe.block.heads(2) == 5
    paths = {"original.lr": 0.5, "block.config.d_gate": 3, "training.seed": 4}
    assert RELIABLE.replace(**paths) == Recipe(toy_lr=0.5, d_gate=3, **{"training.seed": 4})
    assert (recipe.d_gate, recipe.toy_lr, recipe.normalize_weights) == (3, 0.5, True)
    sparse = recipe.replace(kind="topk", k=2)
    assert sparse.block.config == {"value_bias": False, "k": 2}  # what another kind has not is gone
    for made in (recipe, sparse, reference_recipe(3, 4)):
        assert Recipe.from_dict(json.loads(json.dumps(made.to_dict()))) == made
        assert pickle.loads(pickle.dumps(made)) == made
    for unknown in ("k", "seed_of", "training.lrr", "blocks.kind", "block.config.k"):
        with pytest.raises(GatedInterpError, match=re.escape(unknown.split(".")[-1])):
            RELIABLE.replace(**{unknown: 1})
    with pytest.raises(AttributeError, match="no setting 'colour'"):
        _ = RELIABLE.colour


def test_flat_recipes_of_earlier_versions_are_read():
    flat = {
        "kind": "topk", "options": {"k": 3}, "from_original": True, "expansion": 7,
        "gate": "clamp", "d_gate": 2, "value_bias": True, "scale_output": False,
        "penalty_pairs": "causal", "gate_bias_init": 0.0, "alpha": 0.25, "overlap": 1.5,
        "fvu_target": None, "steps": 40, "batch_size": 25, "n_sequences": 500, "lr": 0.125,
        "toy_steps": 50, "toy_lr": 0.75, "toy_lr_decay": 0.25, "attempts": 3, "jitter_seed": 9,
    }  # fmt: skip
    read = Recipe.from_dict(flat)
    assert read.block.to_dict() == {
        "kind": "topk", "expansion": 7, "n_heads": None, "from_original": True,
        "scale_output": False, "config": {"value_bias": True, "k": 3},
    }  # fmt: skip
    assert read.training == RELIABLE.training.replace(
        alpha=0.25, overlap=1.5, fvu_target=None, steps=40, batch_size=25, n_sequences=500, lr=0.125
    )
    assert read.original == RELIABLE.original.replace(
        steps=50, lr=0.75, lr_decay=0.25, batch_size=25, n_sequences=500
    )
    assert (read.attempts, read.jitter, read.jitter_seed) == (3, 0.0, 9)
    gated = Recipe.from_dict({"d_gate": 5, "gate": "tanh", "options": {"gate_per": "head"}})
    assert (gated.d_gate, gated.gate, gated.gate_per) == (5, "tanh", "head")


def test_processes_give_what_one_process_gives():
    jobs = [(k, derive, (k, 5)) for k in range(4)]
    assert dict(in_processes(jobs, workers=1)) == {k: derive(k, 5) for k in range(4)}


@pytest.mark.slow
def test_two_worker_processes_give_what_one_gives():
    task = SkipTrigramTask(4)
    recipe = RELIABLE.replace(toy_steps=200, steps=20)
    jobs = [(s, seeds.train_seeds, (3, task, recipe, [s])) for s in (0, 1)]
    alone = dict(in_processes(jobs, workers=1))
    spread = dict(in_processes(jobs, workers=2))
    for s in (0, 1):
        assert alone[s].toy_table().equals(spread[s].toy_table())
        assert alone[s].table().equals(spread[s].table())


def test_wrong_configs_and_folders_get_a_sentence(tmp_path):
    with refuses("config-unknown-name", name="X"):
        PaperConfig(only="X")
    with refuses("config-not-positive", field="seeds", value=0):
        PaperConfig(seeds=0)
    with refuses("not-a-finished-run"):
        read_results(tmp_path)
    (tmp_path / "results.json").write_text("[]")
    with refuses("not-a-finished-run"):
        read_results(tmp_path)
    (tmp_path / "file").write_text("")
    with refuses("folder-is-a-file"):
        run_paper(TINY, tmp_path / "file")


def test_the_screen_table_has_a_row_per_experiment(run):
    _, results, _ = run
    table = results_table(results)
    assert table["experiment"].tolist() == ["3H4ST"]
    assert table["heads"].tolist() == ["3 → 12"]


def test_an_example_leads_by_what_the_whole_sequence_gives(monkeypatch):
    monkeypatch.setattr(behaviour, "FIRM_EXAMPLES", 200)
    induction = induction_model()  # several examples in a sequence, and positions that matter
    gated = load("3H4ST-gated")
    for model, task in ((gated, gated.task), (induction.model, induction.task)):
        case, lead = behaviour._example_leads(model, task, seed=3)
        probes = task.probes(200, 3)
        with torch.no_grad():
            logits = model(probes.tokens)[probes.row, probes.position]
        assert torch.equal(case, probes.case)
        assert_close(lead, leads(logits, probes.target))


def test_kept_answers_are_of_the_trigram_where_most_are_lost():
    gated = load("3H4ST-gated")
    task, toy = gated.task, unsplice(gated)
    assert kept_answers(toy, toy, task, seed=1) == 1
    assert kept_answers(toy, gated, task, seed=1) > 0.99
    (head,) = verdict(gated, task).holders[2]
    gated.blocks[0].attn.W_gate_Q.data[head] = 0
    gated.blocks[0].attn.b_gate_Q.data[head] = 0
    assert kept_answers(toy, gated, task, seed=1) < 0.5
    # What the toy never answers is not missed.
    assert kept_answers(gated, toy, task, seed=1) == 1


def test_what_the_last_version_had_finished_is_gone_on_with(tmp_path, monkeypatch):
    """It kept each experiment in a file of its own."""
    config = PaperConfig(only="4H5ST", seeds=3, steps=11)
    made = {dict: {"clean": True}, list: [0.25, 0.75], str: "reliable", int: 3, float: 0.125}
    kinds = {n: get_origin(kind) or kind for n, kind in paper.PaperRow.columns().items()}
    entry = {n: made.get(kind) for n, kind in kinds.items() if n != "experiment"}
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "4H5ST.json").write_text(json.dumps({"result": entry}))
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))
    monkeypatch.setattr(paper, "train_gated_seeds", lambda *_: pytest.fail("it was trained again"))
    with refuses("results-of-another-run", name="steps", then=11, now=12):
        run_paper(config.replace(steps=12), tmp_path, workers=1)
    said = []
    results = run_paper(config, tmp_path, workers=1, say=said.append)
    assert said == ["1 of 1 experiments are there already and are kept."]
    for found in (results, read_results(tmp_path)):
        del found["experiments"]["4H5ST"]["measured"]
        assert found["experiments"] == {"4H5ST": entry}
    assert sorted(p.name for p in tmp_path.iterdir() if p.suffix != ".lock") == [
        "config.json", "results.json"
    ]  # fmt: skip
