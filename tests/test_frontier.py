"""Every method on one frontier: recipes, equal parameters, tables that go on, the two controls."""

import math
from pathlib import Path

import pandas as pd
import pytest
import torch
from commands import invoke
from refusals import refuses, says

import gated_interp as gi
from gated_interp.analysis.sparsity import sparsity, switching_on
from gated_interp.anatomy.nodes import layer_of
from gated_interp.experiments import study
from gated_interp.experiments.benchmarks import run_benchmarks
from gated_interp.experiments.frontier import (
    CELLS,
    COLUMNS,
    run_frontier,
    run_tuning,
    run_width,
    summary,
)
from gated_interp.experiments.methods import (
    at,
    matched,
    parameters,
)
from gated_interp.experiments.originals import Toys
from gated_interp.experiments.recipes import RELIABLE
from gated_interp.experiments.store import read_table
from gated_interp.experiments.study import Cell, Runs
from gated_interp.metrics.intervals import clustered
from gated_interp.replacements.gated_attention import GatedAttention, GatedConfig
from gated_interp.replacements.topk import TopKAttention, TopKConfig
from gated_interp.tasks.skip_trigrams import SkipTrigramTask
from gated_interp.training.fit import fit_settings
from gated_interp.training.methods import (
    BUDGET,
    METHODS,
    Method,
    method_named,
    register,
    tuned,
)
from gated_interp.training.stacked.runs import train_gated_runs

ROOT = Path(__file__).parents[1]
TINY = {"tasks": ["3H2ST"], "seeds": 2, "steps": 30, "toy_steps": 200, "workers": 1}
TASK = SkipTrigramTask(n_trigrams=3)


def a_toy(seed=0):
    return gi.build_toy(gi.ToyConfig(n_trigrams=3, n_heads=2, seed=seed))


# ---- methods


def test_every_method_has_the_same_budget_of_settings():
    for method in map(method_named, tuned()):
        assert len(method.tried) == BUDGET, method.name
        assert method.tried[0] == {}
        assert len({str(t) for t in method.tried}) == BUDGET, method.name
        assert 0 <= method.chosen < BUDGET


@pytest.mark.parametrize("name", METHODS)
def test_a_method_trains_stacked_with_no_more_parameters_than_ours(name):
    method = method_named(name)
    toys = Toys(2, 3)
    recipe = matched(at(method, method.values[-1]), toys)
    most = parameters(RELIABLE, toys)
    one_more = recipe.replace(expansion=recipe.expansion + 1)
    assert parameters(recipe, toys) <= most < parameters(one_more, toys)
    run = recipe.replace(steps=12, n_sequences=200).gated_run(a_toy(), TASK, seed=1)
    said = []
    (result,) = train_gated_runs([run], progress=False, say=said.append)
    assert said == []
    assert math.isfinite(result.history["loss"].iloc[-1])


def test_a_knob_and_a_setting_reach_the_block():
    topk = method_named("topk")
    block = at(topk, 3, tried=5).block(a_toy(), TASK, seed=0)
    assert (block.config.k, block.config.normalize_weights) == (3, False)
    assert at(topk, 3, tried=1).lr == 0.005
    post = at(method_named("gated (post)"), 0.3, tried=0)
    assert (post.alpha, post.overlap, post.penalty_pairs) == (0.3, 0.0, "all")


def test_an_unknown_method_or_task_is_a_sentence(tmp_path):
    with refuses("unknown-name", name="magic"):
        run_frontier(tmp_path, methods=["magic"])
    with refuses("no-such-original", name="trigrams"):
        run_frontier(tmp_path, tasks=["trigrams"])
    result = invoke(["frontier", "--tune", "--width"])
    assert result.exit_code == 1


def test_no_known_circuit_has_the_verdict_that_a_frontier_counts(tmp_path):
    for name in gi.known_circuits():
        circuit = gi.known_circuit(name)
        for layer in {layer_of(node) for node in circuit.nodes if "H" in node}:
            with refuses("logits-not-a-sum", layer=layer):
                gi.verdict(circuit.model, circuit.task, layer=layer)
    result = invoke(["frontier", "--task", name, "--out", str(tmp_path)])
    assert result.exit_code == 1
    assert says("known-circuit-in-frontier", result.stderr)


def test_a_method_registered_in_one_line_is_everywhere(tmp_path, monkeypatch):
    monkeypatch.setattr("gated_interp.training.methods.METHODS", {**METHODS})
    register(Method("mine", "a test", block={"gate": "binary"}, train={"overlap": 0.25}))
    block, config = fit_settings(a_toy(), method="mine")
    assert (block.config.gate, config.overlap) == ("binary", 0.25)
    asked = []

    def ask(store, cells, *args, **how):
        asked.extend((cell.name, cell.recipe.gate, cell.recipe.overlap) for cell in cells)
        raise KeyboardInterrupt

    monkeypatch.setattr(study, "run_cells", ask)
    runs = (
        lambda: run_frontier(tmp_path, tasks=["3H2ST"], methods=["mine"]),
        lambda: run_width(tmp_path, methods=["mine"]),
        lambda: run_benchmarks(tmp_path, only=["conditional"], methods=["mine"]),
    )
    for run in runs:
        with pytest.raises(KeyboardInterrupt):
            run()
    mine = [each for each in asked if each[0].startswith("mine")]
    assert {gate for _, gate, _ in mine} == {"binary"}
    assert {overlap for *_, overlap in mine} == {0.25}
    widths = [f"mine, {n}x" for n in (1, 2, 4, 8)]
    assert [name for name, *_ in mine] == ["mine, 0", *widths, "mine"]
    monkeypatch.undo()
    with refuses("unknown-name", what="method", name="mine"):
        method_named("mine")


def test_an_alias_is_another_name():
    assert method_named("overlap alone") is method_named("ungated + overlap")
    assert "overlap alone" not in METHODS


# ---- the tables


@pytest.mark.slow
def test_a_frontier_goes_on_where_it_was_and_says_what_its_runs_say(tmp_path, monkeypatch):
    first = run_frontier(tmp_path, methods=["ungated"], **TINY)
    said = []
    both = run_frontier(tmp_path, methods=["ungated", "top1"], say=said.append, **TINY)
    assert "1 of 2 rows are there already" in said[0]
    assert both.columns.tolist() == COLUMNS
    assert both["method"].tolist() == ["top1", "ungated"]
    pd.testing.assert_frame_equal(both.tail(1).reset_index(drop=True), first, check_dtype=False)
    runs = read_table(tmp_path / "frontier-cells-runs.csv")
    row = both.iloc[0]
    mine = runs[runs["recipe"] == "top1, 1"]
    assert row["seeds"] == len(mine) == 2
    assert row["clean_rate"] == mine["clean"].mean()
    assert (row["low"], row["high"]) == clustered(mine["clean"].tolist(), mine["toy_seed"].tolist())
    assert row["active_per_position"] == pytest.approx(1, abs=0.01)
    assert row["heads_alive"] == pytest.approx(mine["heads_alive"].median())
    monkeypatch.setattr(study, "train_batches", lambda shapes, *a, **k: (s for s in shapes))
    again = run_frontier(tmp_path, methods=["ungated", "top1"], **TINY)
    pd.testing.assert_frame_equal(again, read_table(tmp_path / "frontier.csv"), check_dtype=False)
    files = CELLS.draw(tmp_path / "frontier.csv", tmp_path / "figures", ("html",))
    assert {f.name for f in files} == {"frontier.html", "frontier.csv"}


def test_a_model_whose_answers_are_known_is_a_task_of_the_frontier(tmp_path):
    table = run_frontier(tmp_path, tasks=["two-sources"], methods=["ungated"],
                         seeds=2, steps=3, workers=1)  # fmt: skip
    assert table["task"].tolist() == ["two-sources"]
    assert table["seeds"].item() == 2  # no toy has to learn it
    assert table["false_alarms"].notna().all()
    assert table["cancellation"].notna().all()


def test_a_cell_in_which_no_toy_learnt_has_no_rate():
    toys = pd.DataFrame({"learnt_all": [False]})
    row = summary(Cell("topk, 1", Toys(2, 3), RELIABLE), Runs(toys, pd.DataFrame(), 1.0))
    assert row.runs == 0
    assert math.isnan(row.clean_rate)


@pytest.mark.slow
def test_tuning_marks_one_setting_and_widths_are_what_they_say(tmp_path, monkeypatch):
    monkeypatch.setattr("gated_interp.experiments.frontier.TUNED_ON", ("3H2ST", 5, 2))
    table = run_tuning(tmp_path, methods=["top1"], steps=20, toy_steps=200, workers=1)
    assert len(table) == BUDGET
    assert table["chosen"].sum() == 1
    chosen = table[table["chosen"]].iloc[0]
    most = table[table["clean"] == table["clean"].max()]
    assert chosen["clean"] == table["clean"].max()
    assert chosen["fvu"] == most["fvu"].min()
    width = run_width(tmp_path, methods=["ungated"], **TINY)
    heads = width.sort_values("gated_heads")["gated_heads"].tolist()
    assert heads == [3, 6, 12, 24]


# ---- what is measured


def test_sparsity_counts_heads_that_write_and_heads_that_cancel():
    toy = a_toy()
    layer = TopKAttention(TopKConfig(d_model=8, n_heads=6, k=2))
    tokens = TASK.sample(50, seed=1).tokens
    found = sparsity(gi.splice(toy, 0, layer), tokens)
    assert found["active_per_position"] == pytest.approx(2, abs=0.05)
    assert 2 <= found["heads_alive"] <= 6
    block = GatedAttention(GatedConfig(d_model=8, n_heads=2, gate="open", value_bias=False))
    with torch.no_grad():
        for name in ("W_Q", "W_K", "raw_W_V"):
            getattr(block, name)[1] = getattr(block, name)[0]
        block.raw_W_O[1] = -block.raw_W_O[0]
    opposed = sparsity(gi.splice(toy, 0, block), tokens)
    assert opposed["cancellation"] == pytest.approx(1, abs=1e-5)
    assert opposed["heads_alive"] == 2
    with refuses("no-such-layer", layer=1):
        sparsity(toy, 1, tokens)


def test_switching_on_moves_nothing_where_nothing_is_shut_and_most_where_it_is_pushed():
    toy, tokens = a_toy(), TASK.sample(30, seed=1).tokens
    open_block = GatedAttention(GatedConfig(d_model=8, n_heads=4, gate="open"))
    nothing = switching_on(gi.splice(toy, 0, open_block), tokens, seed=0, steps=3)
    assert nothing["kl"] == nothing["kl_random"] == nothing["kl_adversarial"]
    layer = TopKAttention(TopKConfig(d_model=8, n_heads=8, k=1))
    pushed = switching_on(gi.splice(toy, 0, layer), tokens, seed=0)
    assert pushed["kl_adversarial"] > pushed["kl_random"]
    assert pushed["kl_adversarial"] > pushed["kl"]
    assert layer.raw_W_O.grad is None
    with refuses("no-replacement", layer=0):
        switching_on(toy, tokens, seed=0)


def test_opening_every_head_is_leaving_out_the_choice():
    toy, tokens = a_toy(), TASK.sample(30, seed=1).tokens
    layer = TopKAttention(TopKConfig(d_model=8, n_heads=8, k=1))
    spliced = gi.splice(toy, 0, layer)
    names = [f"blocks.0.attn.{n}" for n in ("hook_z", *layer.opened_from)]
    _, cache = spliced.run_with_cache(tokens, names_filter=names)
    opened = layer.opened({n: cache[f"blocks.0.attn.{n}"] for n in ("hook_z", *layer.opened_from)})
    layer.k_now = 8
    _, every = spliced.run_with_cache(tokens, names_filter=names)
    assert torch.equal(opened, every["blocks.0.attn.hook_z"])


def test_run_again_the_methods_come_in_the_same_order():
    first, again = (
        pd.read_csv(ROOT / "figures" / f"{name}.csv").set_index(["experiment", "recipe", "seed"])
        for name in ("frontier-runs", "frontier-again-runs")
    )
    assert set(first.index) == set(again.index)
    clean = [
        runs.groupby(lambda key: key[1].rpartition(",")[0])["clean"].sum()
        for runs in (first, again)
    ]
    leading = ["gated", "gated (post)", "ungated + overlap"]
    for sums in clean:
        assert sums.drop(leading).max() < sums[leading].min()
        assert sums.idxmax() == "gated"
