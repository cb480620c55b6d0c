"""What README and the pages say of the shipped language models."""

from pathlib import Path

import pandas as pd
import pytest
import torch

import gated_interp as gi

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


@pytest.fixture(scope="module")
def austen():
    return gi.load("austen-2l")


@pytest.fixture(scope="module")
def repeated(austen):
    return gi.text.repeated_random_tokens(austen, 20, seed=11)


def test_five_heads_of_the_second_layer_match_prefixes(austen, repeated):
    found = gi.induction_scores(austen, repeated).set_index(["layer", "head"])
    matchers = found.index[found["prefix_matching"] > 0.4].tolist()
    assert matchers == [(1, h) for h in (3, 4, 5, 6, 7)]
    assert found["prefix_matching"].drop(matchers).max() < 0.2
    assert found.loc[(0, 4), "previous_token"] > 0.7


def test_each_of_them_is_worth_little_and_all_of_them_everything(austen, repeated):
    copies = torch.arange(repeated.shape[1]) >= 26
    table = gi.ablate(austen, repeated, [(1, h) for h in (3, 4, 5, 6, 7)], positions=copies)
    loss = table.query("metric == 'loss'").set_index("kind")
    assert loss.loc["head", "low"].min() > 0.15
    assert loss.loc["head", "high"].max() < 1.5
    assert loss.loc["set", "low"] > 1.8 * loss.loc["head", "change"].sum()
    # The control: the layer's other heads could go.
    others = gi.ablate(austen, repeated, ["L1H0", "L1H1", "L1H2"], positions=copies)
    rest = others.query("metric == 'loss' and kind == 'set'").iloc[0]
    assert rest["high"] < 0.15


def test_the_table_of_the_readme_is_that_of_the_runs():
    runs = pd.read_csv(ROOT / "figures" / "decompose.csv").query("layer >= 0")
    assert runs.groupby(["model", "layer"])["seed"].count().tolist() == [3, 3, 3]
    for (model, layer), part in runs.groupby(["model", "layer"]):
        (line,) = (row for row in README.splitlines() if row.startswith(f"| `{model}`, {layer} |"))
        middle = part.median(numeric_only=True)
        assert [cell.strip() for cell in line.split("|")[2:-1]] == [
            f"{middle['ce_recovered_zero']:.1%}",
            f"8 → {middle['active_per_position']:.1f}",
            f"{middle['gates_per_pair']:.2f}",
            f"{middle['held_share_original']:.1%} → {middle['held_share']:.1%}",
        ]


def test_what_is_said_of_induction_is_in_the_shipped_table():
    table = pd.read_csv(ROOT / "figures" / "austen-2l-induction.csv").set_index("model")
    mine = table.loc["original"].set_index("ablated")["change"]
    each = mine[mine.index.str.startswith("L1")]
    assert len(each) == 5
    said = f"removing one of them costs {each.min():.1f} to {each.max():.1f} nats"
    whole = f"{said}, and removing all five costs {mine['the five']:.1f}."
    assert whole in " ".join(README.split())


@pytest.fixture(scope="module")
def gated():
    return gi.load("austen-2l-gated")


def test_the_gated_model_is_the_original_with_two_blocks(austen, gated):
    tokens = austen.task.part("test").sample(2, seed=0).tokens
    assert torch.equal(gi.unsplice(gated)(tokens), austen(tokens))
    assert {type(block.attn).__name__ for block in gated.blocks} == {"GatedAttention"}
    assert gated.notes["original"] == "austen-2l"


def test_the_gated_model_measures_what_its_table_says(austen, gated):
    table = pd.read_csv(ROOT / "figures" / "austen-2l-gated.csv").set_index("layer")
    tokens = austen.task.part("test").sample(16, seed=5).tokens
    found = gi.loss_recovered(gated, tokens=tokens)
    assert found["ce_recovered_zero"] == pytest.approx(
        table.loc["both", "ce_recovered_zero"], abs=0.03
    )
    for layer in (0, 1):
        said = table.loc[str(layer)]
        alone = gi.splice(austen, layer, gated.blocks[layer].attn)
        measured = gi.block_measures(alone, layer, tokens)
        for name, near in {
            "ce_recovered_zero": 0.05, "fvu": 0.03, "gates_per_pair": 0.1, "held_share": 0.1,
            "held_share_original": 0.05,
        }.items():  # fmt: skip
            assert measured[name] == pytest.approx(said[name], abs=near), name
        assert measured["held_share"] > 2 * measured["held_share_original"]
        shared = [
            gi.head_sharing(model, layer, tokens).table().set_index("measure")["median"]
            for model in (alone, austen)
        ]
        assert shared[0]["participation"] == pytest.approx(said["participation"], abs=0.5)
        assert shared[0]["participation"] < shared[1]["participation"]
