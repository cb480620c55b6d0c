"""The commands on checkpoints of tasks beside trigrams, and of two layers."""

import json

import pandas as pd
import pytest
from commands import cli, one_sentence
from refusals import says

import gated_interp as gi
from gated_interp.models.analytic_tasks import (
    conditional_heads,
    induction_model,
    marked_relay,
    wide_pairs,
)

SMALL = gi.tasks.RepeatedTokensTask(n_tokens=4, shortest=2, longest=3, n_positions=8)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    models = {
        "wide": wide_pairs(gi.tasks.WideContentTask(n_positions=6)),
        "conditional": conditional_heads(gi.tasks.ConditionalTask(n_cases=2)),
        "relay": marked_relay(gi.tasks.TwoLayersTask(n_signals=2, n_positions=6)),
        "induction": induction_model(SMALL),
    }
    return {
        name: gi.save(truth.model, folder / f"{name}.safetensors") for name, truth in models.items()
    }


def columns(text, first):
    """The words of the line of a table that starts with ``first``."""
    return next(line for line in text.splitlines() if line.startswith(first)).split()


def test_a_verdict_says_why_no_head_holds_a_question(files):
    said = cli("verdict", files["wide"]).stdout
    assert columns(said, "S1x…B1→Cx")[-2:] == ["-", "100.0%"]
    assert "no head is sufficient: the best answers" in said
    assert "questions answered" in said
    found = json.loads(cli("verdict", files["conditional"], "--json").stdout)
    assert found["owners"] == {"1": [0], "2": [0]}
    assert found["holders"] == {"1": [], "2": []}
    assert "not specific: without L0H0 also 2 suffer" in cli("verdict", files["conditional"]).stdout


@pytest.mark.parametrize("name", ["relay", "induction"])
@pytest.mark.parametrize("layer", [0, 1])
def test_a_verdict_of_one_of_two_layers(files, name, layer):
    found = json.loads(cli("verdict", files[name], "--layer", layer, "--json").stdout)
    assert found["layer"] == layer
    assert found["learnt"] == list(range(1, len(found["holders"]) + 1))
    assert found["clean"] is False
    assert not any(found["holders"].values())
    reason = f"spread over layers: layer {layer} alone answers 0.0%"
    assert set(found["why_not"].values()) == {reason}
    assert found["owners"] == (None if layer == 0 else {b: [0] for b in found["holders"]})
    said = cli("verdict", files[name], "--layer", layer).stdout
    assert reason in said
    assert ("sole owner" in said) == (layer == 1)


def test_a_layer_must_be_named_and_be_there(files):
    assert says("which-layer-of-heads", one_sentence(cli("verdict", files["relay"], code=1)))
    wrong = one_sentence(cli("verdict", files["relay"], "--layer", 2, code=1))
    assert says("no-such-layer", wrong)
    wrong = one_sentence(cli("ablate", files["relay"], "--layer", 2, code=1))
    assert says("no-such-layer", wrong)
    wrong = one_sentence(cli("circuits", files["relay"], "--layer", 2, code=1))
    assert says("no-such-layer", wrong)


def test_info_of_another_task(files):
    found = json.loads(cli("info", files["induction"], "--json").stdout)
    assert found["task"] == {"kind": "repeated_tokens", "n_tokens": 4, "shortest": 2, "longest": 3,
                             "n_positions": 8}  # fmt: skip
    assert found["model"]["kind"] == "attention"
    words = cli("info", files["induction"]).stdout
    assert "AttentionConfig" in words
    assert "n_layers=2" in words


def test_ablate_tells_what_each_head_is_worth(files):
    said = cli("ablate", files["wide"]).stdout
    assert columns(said, "L0H0")
    assert "Change in accuracy at each question (zero ablation)" in said
    assert "S1x…B1→Cx" in said
    said = cli("ablate", files["relay"]).stdout
    shapley = said[said.index("Shapley value") :]
    assert columns(shapley, "L1H0")
    assert "L0H0" not in shapley
    assert columns(said, "L0H0")  # its ablation is measured as well


def test_heads_below_the_last_layer(files):
    """By intervention: without the relay's first head nobody answers, so it has all the credit."""
    said = cli("ablate", files["relay"], "--layer", 0).stdout
    shapley = said[said.index("Shapley value") :]
    assert columns(shapley, "L0H0")
    assert "L1H0" not in shapley
    model = gi.load(files["relay"])
    table = gi.shapley(model, model.task, layer=0)
    got = [float(x) for x in columns(shapley, "L0H0")[1:]]
    want = table.query("metric == 'lead'")["value"].tolist()
    assert got == pytest.approx(want, abs=5e-4)
    assert min(want) > 0.5
    circuits = cli("circuits", files["relay"], "--layer", 1).stdout
    assert "L0H0" not in circuits[: circuits.index("What heads read")]


def test_circuits_of_one_layer_and_of_two(files):
    said = cli("circuits", files["conditional"]).stdout
    assert columns(said, "composed")[1:] == ["yes", "yes"]
    assert columns(said, "superposed")[1:] == ["no", "no"]
    said = cli("circuits", files["induction"]).stdout
    assert columns(said[said.index("What heads read") :], "L0H0")[1:3] == ["L1H0", "K"]
    attend = said[said.index("Where heads attend") :]
    assert float(columns(attend, "L0H0")[1]) > 0.99
    assert float(columns(attend, "L1H0")[2]) > 0.99
    assert "Where heads attend" not in cli("circuits", files["relay"]).stdout


def test_gates_of_a_later_layer_are_among_its_circuits(files, tmp_path):
    model = gi.load(files["relay"])
    block = gi.GatedAttention.from_attention(model.blocks[1].attn)
    block.force_gates(0.25)
    path = gi.save(gi.splice(model, 1, block), tmp_path / "spliced.safetensors")
    said = cli("circuits", path).stdout
    assert columns(said, "L0H0")[-3:] == ["-", "-", "-"]
    assert columns(said, "L1H0")[-2:] == ["0.25", "1"]
    assert "nan" not in said


@pytest.mark.parametrize("command", ["ablate", "circuits"])
def test_figures_of_another_task_are_drawn_of_the_case_that_is_named(files, command, tmp_path):
    out = tmp_path / "figures"
    cli(command, files["wide"], "--out", out, "--trigram", 2, "--format", "html")
    drawn = {path.stem for path in out.glob("*.html")}
    kinds = {
        "ablate": ("ablation", "shapley"),
        "circuits": ("circuits", "loadings", "wiring", "attention"),
    }
    assert drawn == {f"wide-{kind}" for kind in kinds[command]}
    if command == "ablate":
        assert set(pd.read_csv(out / "wide-shapley-values.csv")["trigram"]) == {2}
    else:
        assert pd.read_csv(out / "wide-wiring-reads.csv")["token"].iloc[-1] == "B2"
    no_case = one_sentence(cli(command, files["wide"], "--trigram", 3, code=1))
    assert says("no-such-case", no_case)


def test_train_gated_takes_toys_alone(files):
    sentence = one_sentence(cli("train-gated", files["wide"], code=1))
    assert says("not-a-skip-trigram-toy", sentence)
