"""Every method at equal loss: what is fitted, what is written, what is drawn."""

import json

import pandas as pd
import pytest
from commands import cli, one_sentence
from refusals import says

import gated_interp as gi
from gated_interp.experiments.text_methods import POINTS, Point, compare_methods, draw_methods
from gated_interp.training.methods import METHODS, method_named

TWO = [
    Point("strong", "gated", ("fvu", 0.3), {"alpha": 1.0}),
    Point("control", "ungated"),
]


@pytest.fixture(scope="module")
def toy():
    return gi.load("2H3ST-toy")


@pytest.fixture(scope="module")
def compared(toy, tmp_path_factory):
    out = tmp_path_factory.mktemp("methods")
    options = {"points": TWO, "seeds": 2, "steps": 20, "sequences": 30, "workers": 1}
    said = []
    table = compare_methods(toy, out, **options, formats=("svg",), say=said.append)
    return out, options, table, said


def test_a_row_per_run_with_its_method_and_knob(compared):
    out, _, table, said = compared
    assert table["method"].tolist() == ["strong", "strong", "control", "control"]
    assert table["seed"].tolist() == [0, 1, 0, 1]
    assert table["value"].tolist()[:2] == [0.3, 0.3]
    assert table["value"].isna().tolist()[2:] == [True, True]
    assert any(line.startswith("strong, layer 0, seed 0") for line in said)
    settings = {
        point.label: json.loads((out / point.folder / "decompose.json").read_text())["settings"]
        for point in TWO
    }
    assert settings["strong"] | {"method": "gated", "fvu": 0.3, "alpha": 1.0} == settings["strong"]
    assert settings["control"]["method"] == "ungated"


def test_the_table_and_the_figure_are_files_of_their_own(compared):
    out, _, table, _ = compared
    runs = pd.read_csv(out / "methods-runs.csv")
    assert runs["ce"].tolist() == pytest.approx(table["ce"].tolist(), rel=1e-4)
    medians = pd.read_csv(out / "methods.csv")
    assert medians["method"].tolist() == ["strong", "control"]
    assert medians["held_share"][1] == pytest.approx(table["held_share"][2:].median(), rel=1e-4)
    assert not list(out.rglob("L*.html"))  # pages of heads


@pytest.mark.slow
def test_it_goes_on_where_it_was(compared, toy):
    out, options, table, _ = compared
    before = {p: p.stat().st_mtime_ns for p in out.rglob("*.safetensors")}
    said = []
    again = compare_methods(toy, out, **options, formats=("svg",), say=said.append)
    assert again["ce"].tolist() == pytest.approx(table["ce"].tolist(), rel=1e-4)
    assert sum("are there already" in line for line in said) == 2
    blocks = {p: t for p, t in before.items() if "seed" in p.name}
    assert blocks
    assert {p: p.stat().st_mtime_ns for p in blocks} == blocks


@pytest.mark.slow
def test_what_recovers_next_to_nothing_is_not_drawn(compared, tmp_path):
    _, _, table, _ = compared
    lost = table.assign(
        ce_recovered_zero=table["ce_recovered_zero"].where(table["method"] != "control", 0.1)
    )
    draw_methods(lost, tmp_path, ("svg",))
    assert pd.read_csv(tmp_path / "methods.csv")["method"].tolist() == ["strong"]


def test_the_points_are_of_methods_there_are_each_in_a_folder_of_its_own():
    compared = {method_named(p.method).name for p in POINTS}
    assert METHODS.keys() - compared == {
        *("gated (post)", "hard-concrete gates", "head gates", "topk copies")
    }
    folders = [p.folder for p in POINTS]
    assert len(set(folders)) == len(folders)
    assert all(set(f) <= set("abcdefghijklmnopqrstuvwxyz0123456789.-") for f in folders)


def test_the_shipped_table_has_the_points():
    runs = pd.read_csv("figures/decompose-methods-runs.csv").fillna({"knob": "", "value": -1.0})
    found = set(runs[["method", "knob", "value"]].itertuples(index=False, name=None))
    assert found == {(p.label, *(p.knob or ("", -1.0))) for p in POINTS}


def test_settings_that_all_methods_set_themselves_are_refused(tmp_path):
    run = cli(
        "decompose", "2H3ST-toy", "--method", "all", "--alpha", "1", "--out", tmp_path, code=1
    )
    assert says("method-all-sets-these", one_sentence(run))
    spare = cli(
        "decompose", "2H3ST-toy", "--method", "all", "--spare", "0.1", "--out", tmp_path, code=1
    )
    assert "--spare" in one_sentence(spare)
    run = cli("decompose", "austen-2l", "--method", "all", "--out", tmp_path, code=1)
    assert "which layer" in one_sentence(run)
    assert not list(tmp_path.iterdir())
