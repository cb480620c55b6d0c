"""Blocks for models whose weights are written down: counted right, and as predicted."""

import math
from pathlib import Path
from typing import get_args

import pandas as pd
import pytest
import torch
from closeness import assert_close
from commands import cli, one_sentence
from refusals import refuses, says

import gated_interp as gi
from gated_interp.cli.paper import Benchmark
from gated_interp.experiments import study
from gated_interp.experiments.benchmarks import (
    BENCHMARKED,
    NO_ALARM,
    RECIPES,
    _seen,
    in_words,
    run_benchmarks,
    summary,
)
from gated_interp.experiments.frontier import measured
from gated_interp.experiments.methods import parameters
from gated_interp.experiments.originals import BENCHMARKS, Toys, originals_named
from gated_interp.experiments.recipes import RELIABLE
from gated_interp.experiments.seeds import train_gated_seeds
from gated_interp.experiments.store import read_table
from gated_interp.experiments.study import Cell, Runs
from gated_interp.replacements.splice import originals

ROOT = Path(__file__).parents[1]
TINY = {"seeds": 2, "steps": 15, "workers": 1}


@pytest.mark.parametrize("known", BENCHMARKS.values(), ids=BENCHMARKS)
def test_the_model_of_a_benchmark_has_learnt_and_stands_for_every_seed(known):
    outcomes = known.outcomes(RELIABLE, [3, 9])
    assert [o.seed for o in outcomes] == [3, 9]
    for outcome in outcomes:
        assert outcome.firm
        assert not outcome.verdict.clean  # else there would be nothing to part
        assert len(outcome.verdict.learnt) == len(known.task.cases)
    assert known.heads == outcomes[0].model.cfg.n_heads
    assert originals_named(known.name) == known


def test_a_task_is_a_shape_or_a_benchmark():
    assert originals_named("4H5ST") == Toys(4, 5)
    for bad in ("4H5", "0H5ST", "twosources", "4H5ST "):
        with refuses("no-such-original"):
            originals_named(bad)
    assert get_args(Benchmark) == tuple(BENCHMARKS)


@pytest.mark.parametrize(
    "name", ["two-layers", pytest.param("repeated-tokens", marks=pytest.mark.slow)]
)
def test_a_block_stands_in_for_the_second_layer_of_two(name, capsys):
    known = BENCHMARKS[name]
    quick = RELIABLE.replace(attempts=1, steps=2, n_sequences=200)
    toys = known.outcomes(quick, [5])
    (run,) = train_gated_seeds(known.task, quick, [5], toys)
    assert "through the hooked loop, one by one: the original is not one" in capsys.readouterr().err
    assert list(originals(run.model)) == [known.layer] == [1]
    assert torch.equal(run.model.blocks[0].attn.W_O, toys[0].model.blocks[0].attn.W_O)
    row = run.row()
    assert row["fvu"] > 0
    assert math.isnan(row["purity"])
    (row,) = measured(known.task, quick, [5], toys)
    assert row["fvu"] == pytest.approx(run.fvu)
    assert parameters(quick, known) == sum(
        p.numel() for p in run.model.blocks[1].attn.parameters() if p.requires_grad
    )


def test_all_are_run_unless_some_are_named(tmp_path, monkeypatch):
    seen = []

    def stop(store, cells, *args, **options):
        seen.append({cell.experiment for cell in cells})
        raise KeyboardInterrupt

    monkeypatch.setattr(study, "run_cells", stop)
    for only in (None, ["two-layers"]):
        with pytest.raises(KeyboardInterrupt):
            run_benchmarks(tmp_path, only=only)
    assert seen == [set(BENCHMARKS), {"two-layers"}]


def test_a_row_counts_clean_blocks_without_false_alarms():
    runs = pd.DataFrame(
        {
            "seed": range(4),
            "clean": [True, True, False, True],
            "false_alarms": [0.0, 2 * NO_ALARM, 0.0, NO_ALARM],
            "held": [3, 3, 1, 3],
            "fvu": [0.1, 0.2, 0.3, 0.4],
            "kl": 0.0,
            "active_per_position": 1.0,
        }
    )
    cell = Cell("recipe", BENCHMARKS["conditional"], RELIABLE)
    row = summary(cell, Runs(pd.DataFrame(), runs, 2.0))
    assert (row.runs, row.clean, row.right, row.held) == (4, 3, 2, 3)
    assert 0 < row.low < 0.5 < row.high < 1
    assert row.fvu == pytest.approx(0.25)
    assert row.fvu_low < 0.25 < row.fvu_high


@pytest.mark.parametrize(
    ("parts", "low", "high", "seen"),
    [(True, 0.6, 0.9, "as predicted"), (False, 0.6, 0.9, "against the prediction"),
     (False, 0.0, 0.3, "as predicted"), (True, 0.0, 0.3, "against the prediction"),
     (True, 0.4, 0.9, "too few to say"), (False, 0.1, 0.5, "too few to say")],
)  # fmt: skip
def test_what_is_seen_is_what_the_interval_says(parts, low, high, seen):
    assert _seen(parts, low, high) == seen


@pytest.mark.slow
def test_benchmarks_are_run_once_and_drawn(tmp_path, monkeypatch):
    out = tmp_path / "run"
    one = run_benchmarks(out, only=["two-sources"], **TINY)
    both = run_benchmarks(out, only=["wide-content", "two-sources"], **TINY)
    assert both["experiment"].tolist() == ["two-sources"] * 2 + ["wide-content"] * 2
    assert both["recipe"].tolist() == list(RECIPES) * 2
    pd.testing.assert_frame_equal(both.head(2), one, check_dtype=False)
    runs = read_table(out / "benchmarks-runs.csv")
    assert len(runs) == 8
    assert set(runs["toy_seed"]) == set(runs["seed"]) == {46_000, 46_001}
    assert both["fvu"].iloc[0] == pytest.approx(runs["fvu"][:2].mean(), rel=1e-4)
    # Fifteen steps part nothing, which is what these two must not.
    assert not both["right"].any()
    assert set(both["seen"]) == {"too few to say"}  # two runs
    for name in ("two-sources", "wide-content"):
        known = BENCHMARKS[name]
        written = gi.load(out / f"{name}.safetensors")
        assert written.task == known.task
        tokens = written.task.sample(5, seed=0).tokens
        assert_close(written(tokens), known.example()(tokens))
    (first, second) = in_words(both)
    assert first.startswith("two-sources should not come out right, because a head that reads one")
    assert second.endswith("0 of 2 blocks (no overlap penalty: too few to say).")
    files = BENCHMARKED.draw(out / "benchmarks.csv", tmp_path / "figures", ("html",))
    assert {f.name for f in files} == {"benchmarks.html", "benchmarks.csv"}
    monkeypatch.setattr(study, "train_batches", lambda shapes, *a, **k: (s for s in shapes))
    again = run_benchmarks(out, **{**TINY, "only": ["two-sources", "wide-content"]})
    pd.testing.assert_frame_equal(again, read_table(out / "benchmarks.csv"), check_dtype=False)
    with refuses("unknown-name", what="benchmark", name="two"):
        run_benchmarks(out, only=["two"])


@pytest.mark.slow
def test_gating_parts_three_trigrams_but_not_what_is_wider_than_a_head(tmp_path):
    table = run_benchmarks(
        tmp_path, only=["skip-trigrams", "wide-content"], seeds=4, steps=600, workers=1
    )
    right = table.groupby("experiment")["right"].sum()
    assert right["skip-trigrams"] >= 2  # of 8, after a fifth of the recipe's steps; 5 when written
    assert right["wide-content"] == 0
    # Each of the heads that share a question is too narrow for it, however exact the block is.
    assert (table.loc[table["experiment"] == "wide-content", "held"] == 0).all()
    assert (table["fvu"] < 0.1).all()


@pytest.mark.slow
def test_benchmarks_from_the_command_line(tmp_path):
    result = cli("reproduce", "--only", "wide-content", "--seeds", 1, "--steps", 2,
                 "--workers", 1, "--format", "html", "--out", tmp_path / "run")  # fmt: skip
    assert "wide-content should not come out right" in result.stdout
    assert (tmp_path / "run/figures/benchmarks.html").is_file()
    drawn = cli("figures", tmp_path / "run", "--format", "html", "--out", tmp_path / "again")
    assert "files are in" in drawn.stdout
    bad = cli("reproduce", "--only", "benchmarks", "--recipe", "reference", code=1)
    assert says("benchmarks-have-one-recipe", one_sentence(bad))
