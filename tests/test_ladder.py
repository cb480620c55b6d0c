"""The ladder of what ships and of blocks trained against it: rows by hand, and going on."""

from unittest.mock import Mock

import pandas as pd
import pytest
import torch
from refusals import refuses

import gated_interp as gi
from gated_interp.experiments import ladder, ladder_trained
from gated_interp.experiments.ladder import Asked, ladder_of, measure_shipped
from gated_interp.experiments.recipes import RELIABLE
from gated_interp.experiments.seeds import HELD_OUT_SEED
from gated_interp.metrics.intervals import wilson
from gated_interp.plots.ladder import ladder_frontier

ZEROED = [("blocks.0.hook_attn_out", lambda x, hook: 0 * x)]


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setattr(ladder, "RUNGS", (1,))
    monkeypatch.setattr(ladder, "TOY_PROMPTS", 5)
    monkeypatch.setattr(ladder, "PROMPTS", 2)
    monkeypatch.setattr(ladder, "POSITIONS", 9)


@torch.no_grad()
def kl(original, logits, tokens):
    """Nats per position, of each sequence, in float64."""
    p, q = (x.double().log_softmax(-1) for x in (original(tokens), logits))
    return (p.exp() * (p - q)).sum(-1).mean(-1)


def rungs(table):
    return table.set_index("rung")["kl"]


def test_a_row_of_a_toy_is_what_hooks_give():
    (asked,) = (a for a in ladder.shipped() if a.name == "3H4ST-gated")
    table = ladder_of(asked)
    model = gi.load("3H4ST-gated")
    tokens, original = model.task.sample(5, seed=HELD_OUT_SEED).tokens, gi.unsplice(model)
    found = rungs(table)
    with torch.no_grad():
        zeroed = original.run_with_hooks(tokens, fwd_hooks=ZEROED)
        after, seen = model.run_with_cache(tokens)
    for rung, logits in (("nothing opened", after), ("layer zeroed", zeroed)):
        expected = float(kl(original, logits, tokens).mean())
        assert found[rung] == pytest.approx(expected, rel=1e-3)
    assert found["1 steps"] >= found["nothing opened"]
    gate = seen["blocks.0.attn.hook_gate"]
    causal = torch.ones_like(gate).tril().bool()
    assert table["shut"].tolist() == pytest.approx(
        [float((gate <= 1e-3)[causal].float().mean())] * 5
    )
    assert table["model"].unique().tolist() == ["3H4ST-gated"]
    assert table["layer"].unique().tolist() == ["0"]


def test_a_layer_of_a_language_model_is_asked_with_the_other_as_it_was():
    (asked,) = (a for a in ladder.shipped() if a.name == ladder.TEXT and a.layer == 1)
    model = gi.load(ladder.TEXT)
    original = gi.unsplice(model)
    tokens = model.task.part("test").sample(2, seed=HELD_OUT_SEED).tokens[:, :9]
    written = {}

    def keep(x, hook):
        written["out"] = x

    # What the block writes where the first layer is the original's.
    one = gi.splice(original, 1, model.blocks[1].attn)
    with torch.no_grad():
        one.run_with_hooks(tokens, fwd_hooks=[("blocks.1.hook_attn_out", keep)])
        put = [("blocks.1.hook_attn_out", lambda x, hook: written["out"])]
        after = original.run_with_hooks(tokens, fwd_hooks=put)
    found = rungs(ladder_of(asked))
    expected = float(kl(original, after, tokens).mean())
    assert found["nothing opened"] == pytest.approx(expected, rel=1e-3)


def test_blocks_trained_further_are_measured_as_hooks_measure_them():
    model = gi.load("2H3ST-gated")
    run = Mock(spec=ladder_trained.GatedOutcome, seed=7, toy_seed=8)
    row = ladder_trained.measured(run, model, "weight 1")
    tokens, original = ladder_trained.TASK.sample(500, HELD_OUT_SEED).tokens, gi.unsplice(model)
    with torch.no_grad():
        _, was = original.run_with_cache(tokens)
        after, seen = model.run_with_cache(tokens)
    known, written = (x["blocks.0.hook_attn_out"].double() for x in (was, seen))
    missed = (known - written).square().sum() / (known - known.mean((0, 1))).square().sum()
    assert row["fvu"] == pytest.approx(float(missed), rel=1e-4)
    assert row["kl"] == pytest.approx(float(kl(original, after, tokens).mean()), rel=1e-3)
    gate = seen["blocks.0.attn.hook_gate"]
    causal = torch.ones_like(gate[0, 0]).tril().bool()
    open_ = (gate > 1e-3).sum(1)[:, causal].double().mean()
    assert row["l0"] == pytest.approx(float(open_), rel=1e-4)
    assert row["clean"]
    assert (row["seed"], row["toy_seed"], row["strength"]) == (7, 8, "weight 1")


def test_the_control_takes_the_same_steps_with_an_adversary_of_no_weight():
    for settings in (ladder_trained.WEIGHTS, ladder_trained.CHOSEN):
        control, trained = (ladder_trained.further(setting, 5) for setting in settings[:2])
        assert control == trained.replace(opened_weight=0.0)
        assert trained.opened_weight > 0
        assert trained != ladder_trained.further(settings[1], 6)
        assert trained.fvu_target == RELIABLE.training.fvu_target


def test_no_seed_is_both_tuned_and_measured():
    seeds = [seed for _, part, _ in ladder_trained.PARTS.values() for seed in part]
    assert len(set(seeds)) == len(seeds)
    assert ladder_trained.CHOSEN[1] in ladder_trained.TRIED


def test_a_frontier_has_means_over_seeds_of_each_setting():
    runs = pd.DataFrame(
        {
            "strength": ["as trained", "as trained", "weight 0", "weight 0.02"],
            "toy_seed": [1, 2, 1, 1],
            "clean": [True, False, True, True],
            "fvu": [0.02, 0.04, 0.03, 0.05],
            "participation": [1.0, 2.0, 3.0, 4.0],
            "20 steps": [1.0, 3.0, 5.0, 0.1],
        }
    )
    found = ladder_trained.frontier_of({"longer": runs}).set_index(["setting", "measure"])
    assert found.loc["as trained", "value"].tolist() == pytest.approx([0.5, 0.03, 1.5])
    assert found.loc["as trained", "kl"].tolist() == [2.0] * 3
    assert found.loc[("as trained", "clean blocks"), "low"] == pytest.approx(wilson(1, 2)[0])
    twice = pd.concat([runs, runs])  # the same toys again are no more samples
    again = ladder_trained.frontier_of({"longer": twice}).set_index(["setting", "measure"])
    pd.testing.assert_frame_equal(again, found)
    assert found.groupby("setting", sort=False)["series"].first().tolist() == [
        "as trained", "longer, no adversary", "longer"
    ]  # fmt: skip
    fig = ladder_frontier(found.reset_index())
    assert [trace.y[0] for trace in fig.data[:3]] == [2.0, 5.0, 0.1]
    assert fig.layout.yaxis.type == "log"
    assert len(fig.data) == 9


def test_an_interrupted_ladder_goes_on(tmp_path, monkeypatch):
    asked, stop = [], True

    def of(name):
        asked.append(name)
        if stop and name == "third":
            raise KeyboardInterrupt
        model = gi.load("2H3ST-gated")
        return model, model.task.sample(2, seed=len(name)).tokens

    three = [Asked(n, None if n == "second" else 0, lambda n=n: of(n))
             for n in ("first", "second", "third")]  # fmt: skip
    monkeypatch.setattr(ladder, "shipped", lambda: iter(three))
    monkeypatch.setattr(ladder, "TOYS", ("first", "third"))
    path = tmp_path / "ladder.csv"
    with pytest.raises(KeyboardInterrupt):
        measure_shipped(path)
    assert pd.read_csv(path)["model"].unique().tolist() == ["first", "second"]
    stop = False
    measure_shipped(path)
    assert asked == ["first", "second", "third", "third"]
    whole = tmp_path / "whole.csv"
    measure_shipped(whole)
    pd.testing.assert_frame_equal(pd.read_csv(path), pd.read_csv(whole))
    assert path.with_suffix(".svg").is_file()


def test_bad_input_is_refused_in_a_sentence(tmp_path):
    with refuses("not-one-of", name="part", value=""):
        ladder_trained.main()
    with refuses("not-one-of", name="part", value="all"):
        ladder_trained.main("all", str(tmp_path / "x.csv"))
    for text, code in (("", "bad-table-file"), ("model,kl\na,1\n", "table-file-lacks-a-column")):
        (tmp_path / "x.csv").write_text(text)
        with refuses(code):
            measure_shipped(tmp_path / "x.csv")
