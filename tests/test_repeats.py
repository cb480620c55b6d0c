"""Repeats of the main job, weights disturbed; toys shared between recipes."""

import pandas as pd
import pytest
import torch
from commands import invoke
from refusals import refuses, says

from gated_interp.analysis.verdict import Verdict
from gated_interp.experiments import batches, originals
from gated_interp.experiments import seeds as seeds_module
from gated_interp.experiments.originals import Toys
from gated_interp.experiments.recipes import RELIABLE
from gated_interp.experiments.repeats import JITTER, run_repeats, shown
from gated_interp.experiments.seeds import (
    ToyOutcome,
    assigned,
    stacks,
    train_gated_seeds,
    train_seeds,
    train_toy_seeds,
)
from gated_interp.experiments.study import Cell, Runs
from gated_interp.models.toy import ToyConfig, build_toy
from gated_interp.tasks.skip_trigrams import SkipTrigramTask
from gated_interp.training.stacked.runs import disturb

TINY = {"seeds": 2, "steps": 20, "toy_steps": 300, "workers": 1}


def test_weights_are_disturbed_by_a_little_and_by_their_seed():
    def weights(size, seed):
        attn = build_toy(ToyConfig(n_trigrams=3, n_heads=2)).blocks[0].attn
        before = attn.W_Q.detach().clone()
        disturb(attn, size, seed)
        return attn.W_Q.detach() - before

    assert weights(0.0, 1).abs().max() == 0
    moved = weights(1e-3, 1)
    assert 2e-4 < moved.std() < 5e-3
    assert torch.equal(moved, weights(1e-3, 1))
    assert not torch.equal(moved, weights(1e-3, 2))


def test_a_recipe_disturbs_toys_and_blocks_of_every_repeat_in_its_own_way():
    task = SkipTrigramTask(2)
    recipe = RELIABLE.replace(jitter=JITTER, jitter_seed=1)
    plain, one, two = (
        r.gated_run(build_toy(ToyConfig(n_trigrams=2, n_heads=3)), task, 5).block.W_Q
        for r in (RELIABLE, recipe, recipe.replace(jitter_seed=2))
    )
    assert 0 < (plain - one).abs().max() < 20 * JITTER
    assert not torch.equal(one, two)
    seeds = {r.toy_run(3, task, 5).jitter_seed for r in (recipe, recipe.replace(jitter_seed=2))}
    assert len(seeds) == 2


@pytest.mark.slow
def test_repeats_differ_say_what_is_shown_and_go_on(tmp_path):
    done = []
    first = run_repeats(tmp_path, only=["3H4ST"], repeats=1, **TINY)
    table = run_repeats(tmp_path, only=["3H4ST"], repeats=2, say=done.append, **TINY)
    assert "1 of 2 rows are there already" in done[0]
    assert table["recipe"].tolist() == ["repeat 1", "repeat 2"]
    assert first["shown_fvu"][0] == pytest.approx(table["shown_fvu"][0], rel=1e-5)
    assert table["shown_fvu"].nunique() == 2
    runs = pd.read_csv(tmp_path / "repeats-runs.csv")
    assert len(runs) == 4


def test_the_shown_run_of_a_repeat_is_picked_without_a_verdict():
    gated = pd.DataFrame(
        {"seed": [1, 2, 3], "toy_seed": [1, 1, 2], "clean": [True, False, True],
         "success": True, "kept": [0.9, 1.0, 1.0], "selection_loss": [0.1, 0.2, 0.3],
         "fvu": 0.01, "l0": 1.0, "kl": 0.002}
    )  # fmt: skip
    cell = Cell("repeat 1", Toys(2, 3), RELIABLE)
    row = shown(cell, Runs(pd.DataFrame(), gated, 1.0))
    assert (row.runs, row.clean, row.shown_seed, row.shown_clean) == (3, 2, 2, False)
    row = shown(cell, Runs(pd.DataFrame(), pd.DataFrame(), 1.0))
    assert (row.runs, row.clean, row.shown_seed) == (0, 0, None)


def test_bad_wishes_are_refused(tmp_path):
    with refuses("unknown-name", name="9H9ST"):
        run_repeats(tmp_path, only=["9H9ST"])
    with refuses("too-small", name="repeats", value=0):
        run_repeats(tmp_path, repeats=0)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_the_command_exits_with_1_where_a_shown_run_is_not_clean(tmp_path):
    words = ["repeats", "--only", "2H3ST", "--repeats", "1", "--seeds", "1", "--steps", "2"]
    words += ["--toy-steps", "1500", "--workers", "1", "--out", str(tmp_path)]
    done = invoke(words)
    assert done.exit_code == 1
    assert says("repeats-not-clean", done.stderr)
    assert len(pd.read_csv(tmp_path / "repeats.csv")) == 1


def test_the_command_says_so_too_where_no_toy_learns(tmp_path):
    words = ["repeats", "--only", "2H3ST", "--repeats", "1", "--seeds", "1", "--steps", "2"]
    words += ["--toy-steps", "2", "--workers", "1", "--out", str(tmp_path)]
    done = invoke(words)
    assert done.exit_code == 1
    assert says("repeats-not-clean", done.stderr)


def toy(seed, lead, learnt=True):
    model = build_toy(ToyConfig(n_trigrams=1, n_heads=1))
    of_one = [1] if learnt else [], {1: []}, [], [] if learnt else [1], {1: 1.0}, {1: []}
    return ToyOutcome(seed, model, Verdict(*of_one), lead, 0.0)


def test_blocks_stand_in_for_firm_toys_and_for_learnt_ones_where_none_is_firm():
    toys = [toy(0, 0.3), toy(1, 0.05), toy(2, 0.5, learnt=False), toy(3, 0.2)]
    assert [t.seed for t in assigned(toys, range(5))] == [0, 3, 0, 3, 0]
    assert [t.seed for t in assigned(toys[1:3], range(2))] == [1, 1]
    assert assigned(toys[2:3], range(2)) == []


def test_the_first_rows_do_not_wait_for_the_last_toys(monkeypatch):
    """What stands where a study of many shapes is interrupted."""
    events = []

    def toys(n_heads, task, recipe, seeds):
        events.append(("toys", task.n_trigrams))
        return [toy(seed, lead=0.3) for seed in seeds]

    def gated(task, recipe, seeds, stood_for):
        events.append(("gated", task.n_trigrams))
        return [(seed, t.seed) for seed, t in zip(seeds, stood_for, strict=True)]

    monkeypatch.setattr(originals, "train_toy_seeds", toys)
    shapes = {trigrams: (Toys(1, trigrams), RELIABLE) for trigrams in range(1, 10)}
    told = []
    made = batches.train_batches(
        shapes, range(3), gated, workers=1, on_progress=lambda *at: told.append(at)
    )
    found = {key: rows for key, _, rows, _ in made}
    assert found == {n: [(0, 0), (1, 1), (2, 2)] for n in range(1, 10)}
    # The dearest first, some shapes at a time: their toys, then their gated runs.
    groups = [range(9, 5, -1), range(5, 1, -1), range(1, 0, -1)]
    assert events == [(what, n) for group in groups for what in ("toys", "gated") for n in group]
    assert told == [(n, 18) for n in range(19)]
    assert list(batches.train_batches({}, range(3), gated)) == []


@pytest.mark.slow
def test_recipes_share_toys_and_batches_change_nothing(monkeypatch):
    task = SkipTrigramTask(2)
    recipe = RELIABLE.replace(toy_steps=300, steps=20)
    trained = []

    def counted(*args):
        trained.append(args)
        return train_toy_seeds(*args)

    monkeypatch.setattr(originals, "train_toy_seeds", counted)
    monkeypatch.setattr(seeds_module, "HEADS_IN_CACHE", 64)
    # Another expansion means stacks of another size; toys and their order stay.
    shapes = {"a": (Toys(3, 2), recipe), "b": (Toys(3, 2), recipe.replace(expansion=8))}
    assert len(stacks(range(5), 3, shapes["a"][1])) < len(stacks(range(5), 3, shapes["b"][1]))
    found = {
        key: (toys, gated)
        for key, toys, gated, _ in batches.train_batches(
            shapes, range(5), train_gated_seeds, workers=1
        )
    }
    assert len(trained) == 1
    assert [g.seed for g in found["b"][1]] == [0, 1, 2, 3, 4]
    assert [g.toy_seed for g in found["a"][1]] == [g.toy_seed for g in found["b"][1]]
    alone = train_seeds(3, task, recipe, range(5))
    assert [g.fvu for g in alone.gated] == pytest.approx([g.fvu for g in found["a"][1]], rel=1e-4)
