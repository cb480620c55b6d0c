"""Tables that grow row by row: reliability over recipes, the phase diagram."""

import json
import math

import pandas as pd
import pytest
from commands import invoke
from refusals import refuses, says

from gated_interp.core.files import write_table
from gated_interp.experiments import study
from gated_interp.experiments.originals import Toys
from gated_interp.experiments.phase import PHASE, phases, run_phase
from gated_interp.experiments.recipes import RELIABLE, recipe_named
from gated_interp.experiments.reliability import (
    CONTROLS,
    FRONTIER,
    MEDIANS,
    RELIABILITY,
    VARIANTS,
    ReliabilityRow,
    in_order,
    markdown,
    rates,
    run_reliability,
    selected,
)
from gated_interp.experiments.store import read_table
from gated_interp.experiments.study import Cell, CellsConfig, Runs
from gated_interp.metrics.intervals import clustered, paired_difference, wilson

TINY = {"seeds": 2, "steps": 30, "toy_steps": 200, "workers": 1}


def tiny(out, **changes):
    return run_reliability(out, **{**TINY, "shapes": [(3, 2)], "variants": ["reliable"], **changes})


def never(*args):
    raise AssertionError("a row that is there was trained again")


@pytest.mark.slow
def test_a_run_started_again_adds_only_what_is_missing(tmp_path, monkeypatch):
    first = tiny(tmp_path)
    (row,) = first.to_dict("records")
    assert (row["experiment"], row["recipe"]) == ("3H2ST", "reliable")
    assert (row["heads"], row["gated_heads"], row["trigrams"]) == (3, 12, 2)
    assert row["runs"] == row["toys_trained"] == 2
    assert row["toys_learnt"] >= row["toys_used"] > 0
    each = read_table(tmp_path / "reliability-runs.csv")
    assert each["seed"].tolist() == [7000, 7001]
    by_toy = each["toy_seed"].tolist()
    assert (row["low"], row["high"]) == clustered(each["clean"].tolist(), by_toy)

    said, progress = [], []
    second = tiny(
        tmp_path,
        variants=["reliable", "2x heads"],
        say=said.append,
        on_progress=lambda done, total: progress.append((done, total)),
    )
    assert progress == [(0, 2), (1, 2), (2, 2)]  # the toys, the gated runs
    assert said[0] == "1 of 2 rows are there already and are kept."
    assert second["recipe"].tolist() == ["reliable", "2x heads"]
    assert second["gated_heads"].tolist() == [12, 6]
    on_disk = read_table(tmp_path / "reliability.csv")
    assert on_disk["fvu"][0] == pytest.approx(row["fvu"], rel=1e-5)
    # The other recipe's runs are of the same seeds on the same toys: the change is paired.
    each = read_table(tmp_path / "reliability-runs.csv")
    assert each["toy_seed"][:2].tolist() == each["toy_seed"][2:].tolist()
    ends = on_disk.loc[1, ["change", "change_low", "change_high"]].astype(float).tolist()
    pairs = (each[each["recipe"] == r]["clean"].tolist() for r in ("2x heads", "reliable"))
    assert ends == pytest.approx(paired_difference(*pairs, each["toy_seed"].tolist()[:2]), abs=1e-5)

    monkeypatch.setattr(study, "measured", never)
    written = (tmp_path / "reliability.csv").read_bytes()
    tiny(tmp_path, variants=["2x heads", "reliable"])
    assert (tmp_path / "reliability.csv").read_bytes() == written


@pytest.mark.slow
def test_rows_done_before_an_interruption_are_kept(tmp_path, monkeypatch):
    def stops(*args):
        if args[1].expansion == 2:
            raise KeyboardInterrupt
        return measured(*args)

    measured = study.measured
    monkeypatch.setattr(study, "measured", stops)
    with pytest.raises(KeyboardInterrupt):
        tiny(tmp_path, variants=["reliable", "2x heads"])
    assert read_table(tmp_path / "reliability.csv")["recipe"].tolist() == ["reliable"]


def test_another_config_is_refused_and_nothing_is_overwritten(tmp_path, monkeypatch):
    tiny(tmp_path)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    monkeypatch.setattr(study, "measured", never)
    for other, found in (
        ({"seeds": 3}, {"name": "seeds", "then": 2, "now": 3}),
        ({"first_seed": 7}, {"name": "first_seed", "then": 7000, "now": 7}),
        ({"steps": 31}, {"name": "steps", "then": 30, "now": 31}),
        ({"toy_steps": 201}, {"name": "toy_steps", "then": 200, "now": 201}),
    ):
        with refuses("results-of-another-run", **found):
            tiny(tmp_path, **other)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_a_table_that_is_not_ours_is_refused(tmp_path):
    table = tmp_path / "reliability.csv"
    table.write_text("mine\n1\n")
    with refuses("table-without-settings"):
        tiny(tmp_path)
    assert table.read_text() == "mine\n1\n"
    with refuses("folder-is-a-file"):
        tiny(table)
    with refuses("table-file-lacks-a-column", column="experiment"):
        RELIABILITY.draw(table, tmp_path)


def test_bad_wishes_are_refused(tmp_path):
    with refuses("unknown-name", name="magic"):
        tiny(tmp_path, variants=["magic"])
    with refuses("cells-not-distinct"):
        tiny(tmp_path, shapes=[])
    with refuses("cells-not-distinct"):
        tiny(tmp_path, shapes=[(3, 2), (3, 2)])
    with refuses("config-not-positive", field="seeds", value=0):
        CellsConfig(seeds=0)
    with refuses("unknown-name", name="9H9ST"):
        selected(["9H9ST"])
    assert not list(tmp_path.iterdir())


def test_variants_change_what_they_say_and_nothing_else():
    def changed(name, heads=2, trigrams=3):
        plain = fields_of(recipe_named("reliable", heads, trigrams))
        other = fields_of(VARIANTS[name](heads, trigrams))
        return {k: v for k, v in other.items() if v != plain[k]}

    def fields_of(recipe):
        rooms = recipe.to_dict()
        return rooms["training"] | rooms["block"].pop("config") | rooms["block"]

    assert changed("reliable") == changed("reliable", 8, 12) == {}
    assert changed("with value bias") == {"value_bias": True}
    assert changed("all pairs") == {"penalty_pairs": "all"}
    assert changed("no gate penalty") == {"alpha": 0.0}
    assert changed("gates fixed open") == {"alpha": 0.0, "gate": "open"}
    assert changed("no overlap penalty") == {"overlap": 0.0}
    assert changed("neither penalty") == {"alpha": 0.0, "overlap": 0.0}
    assert changed("FVU target 0.1") == {"fvu_target": 0.1}
    assert selected(["controls"])[1] == list(CONTROLS)
    assert selected(["4H5ST", "frontier"]) == ([(4, 5)], list(FRONTIER))
    assert selected([])[1] == ["reliable", *CONTROLS]
    assert changed("2x heads", 8, 12) == {"expansion": 2}
    assert changed("binary gates") == {"gate": "binary"}
    assert VARIANTS["reference"](4, 5) == recipe_named("reference", 4, 5)


CELL = Cell("reliable", Toys(2, 3), RELIABLE)


def runs_by_hand() -> Runs:
    toys = pd.DataFrame(
        {"learnt_all": [True, True, False, True], "distributed": [1, 0, 2, 3], "seed": range(4),
         "firm": [True, True, False, False], "clean": [False, True, False, False]}
    )  # fmt: skip
    gated = pd.DataFrame(
        {
            "toy_seed": [0, 1, 3, 0],
            "clean": [True, True, False, False],
            "success": [True, True, True, False],
            "exactly_one": [True, False, True, False],
            "fvu": [0.01, 0.02, 0.03, 0.06],
            "l0": [0.5, 0.1, 0.2, 0.4],
            "kl": [0.1, 0.1, 0.3, 0.3],
            "heads_left": [3, 4, 4, 5],
            "pruned_clean": [True, False, False, False],
            **{name: [0.5] * 4 for name in MEDIANS[3:-1]},
            "pruned_bound": [0.0, 0.001, 0.0, 0.0],
        }
    )
    return Runs(toys, gated, 7.0)


def test_a_row_by_hand():
    row = vars(phases(CELL, runs_by_hand()))
    assert row["toys_learnt"] == 3
    assert row["toys_distributed"] == 2  # the toy of seed 2 did not learn: it does not count
    assert (row["toys_firm"], row["toys_clean"], row["toys_used"]) == (2, 1, 3)
    assert (row["clean"], row["successes"], row["exactly_one"]) == (2, 3, 2)
    assert row["pruned_clean"] == 1
    assert row["fvu"] == pytest.approx(0.025)
    assert row["fvu_low"] == pytest.approx(0.0175)
    assert row["fvu_high"] == pytest.approx(0.0375)
    assert row["l0"] == pytest.approx(0.3)
    assert (row["heads_left"], row["pruned_bound"], row["seconds"]) == (4.0, 0.001, 7.0)
    assert (row["learnt"], row["distributed"], row["success"]) == (3 / 4, 2 / 3, 3 / 4)
    assert row["clean_rate"] == 2 / 4
    assert (row["learnt_low"], row["learnt_high"]) == wilson(3, 4)
    assert (row["distributed_low"], row["distributed_high"]) == wilson(2, 3)
    assert (row["success_low"], row["success_high"]) == wilson(3, 4)
    assert (row["low"], row["high"]) == clustered([True, True, False, False], [0, 1, 3, 0])


def test_where_no_toy_learns_there_is_a_row_without_runs():
    toys = pd.DataFrame(
        {"learnt_all": [False] * 2, "distributed": [0, 1], "firm": [False] * 2,
         "clean": [False] * 2}
    )  # fmt: skip
    row = vars(phases(CELL, Runs(toys, pd.DataFrame(), 1.0)))
    assert (row["runs"], row["toys_learnt"], row["learnt"]) == (0, 0, 0.0)
    assert all(math.isnan(row[name]) for name in ("success", "clean_rate", "distributed", "fvu"))
    assert row["learnt_high"] == wilson(0, 2)[1]


def table_by_hand() -> pd.DataFrame:
    keys = [("reliable", 3, 4), ("all pairs", 2, 3), ("reliable", 2, 3)]
    return pd.DataFrame(
        [
            vars(phases(Cell(recipe, Toys(heads, trigrams), RELIABLE), runs_by_hand()))
            for recipe, heads, trigrams in keys
        ]
    )


def test_markdown_has_a_line_per_row_in_order():
    table = table_by_hand()
    lines = markdown(table).splitlines()
    assert in_order(table)["recipe"].tolist() == ["reliable", "all pairs", "reliable"]
    assert lines[2].startswith(
        "| 2H3ST | reliable | 8 | 2 of 4 | 15% to 85% | - | 3 of 4 | 0.025 |"
    )
    moved = table.assign(change=-0.25, change_low=-0.5, change_high=0.01)
    assert "| -25 points (-50 to +1) |" in markdown(moved)
    assert [line.split(" | ")[0] for line in lines[2:]] == ["| 2H3ST", "| 2H3ST", "| 3H4ST"]
    toys = {"learnt_all": [False], "distributed": [0], "firm": [False], "clean": [False]}
    none = pd.DataFrame([vars(phases(CELL, Runs(pd.DataFrame(toys), pd.DataFrame(), 1.0)))])
    assert "no toy learnt" in markdown(none)
    assert "nan" not in markdown(none)


def test_figures_are_drawn_from_the_tables(tmp_path):
    table = table_by_hand()
    write_table(table, tmp_path / "reliability.csv")
    drawn = RELIABILITY.draw(tmp_path / "reliability.csv", tmp_path / "figures", ["html"])
    assert {p.name for p in drawn} == {"recipes.html", "recipes.csv"}
    write_table(table[:2], tmp_path / "phase.csv")
    drawn = PHASE.draw(tmp_path / "phase.csv", tmp_path / "figures", ["html"])
    assert {p.name for p in drawn} == {"phase-diagram.html", "phase-diagram.csv"}
    assert len(pd.read_csv(tmp_path / "figures" / "phase-diagram.csv")) == 2


@pytest.mark.slow
def test_the_phase_diagram_has_a_row_per_cell_and_goes_on(tmp_path):
    run_phase(tmp_path, heads=[3], trigrams=[1], **TINY)
    progress = []
    table = run_phase(
        tmp_path, heads=[1, 3], trigrams=[1], on_progress=lambda *p: progress.append(p), **TINY
    )
    assert progress == [(0, 2), (1, 2), (2, 2)]
    assert table[["heads", "trigrams"]].to_numpy().tolist() == [[3, 1], [1, 1]]
    assert table["learnt"].between(0, 1).all()
    with refuses("results-of-another-run", name="steps", then=30, now=29):
        run_phase(tmp_path, heads=[1], trigrams=[1], **{**TINY, "steps": 29})


def test_the_commands(tmp_path):
    def call(*words):
        return invoke([*map(str, words)])

    few = ["--seeds", 1, "--steps", 20, "--toy-steps", 200, "--workers", 1, "--format", "html"]
    cell = ["--heads", "3", "--trigrams", "2:2"]
    done = call("phase", *cell, *few, "--out", tmp_path / "phase")
    assert done.exit_code == 0, done.output
    assert (tmp_path / "phase" / "figures" / "phase-diagram.html").exists()
    refused = call("phase", *cell, *few[2:], "--out", tmp_path / "phase")
    assert refused.exit_code == 1
    assert says("results-of-another-run", refused.stderr)
    assert call("phase", "--heads", "0", "--out", tmp_path / "x").exit_code == 2
    unknown = call("reliability", "--only", "magic", *few, "--out", tmp_path / "x")
    assert unknown.exit_code == 1
    assert says("unknown-name", unknown.stderr)
    assert not (tmp_path / "x").exists()
    wanted = ["--only", "2H3ST", "--only", "2x heads"]
    done = call("reliability", *wanted, *few, "--out", tmp_path / "rows")
    assert done.exit_code == 0, done.output
    assert (tmp_path / "rows" / "reliability.md").read_text().count("2H3ST") == 1


def test_the_steps_of_a_config_replace_the_recipes():
    config = CellsConfig(steps=5, toy_steps=7)
    assert config.applied(RELIABLE) == RELIABLE.replace(steps=5, toy_steps=7)
    assert CellsConfig().applied(RELIABLE) == RELIABLE


# As 0.2 wrote it: flat.
FLAT = {
    "kind": "gated",
    "options": {},
    "from_original": False,
    "expansion": 4,
    "gate": "clamp",
    "d_gate": 2,
    "value_bias": False,
    "scale_output": True,
    "penalty_pairs": "causal",
    "gate_bias_init": 0.0,
    "alpha": 0.1,
    "alpha_unit": "variance",
    "overlap": 3.0,
    "overlap_power": 1.5,
    "fvu_target": 0.0195,
    "fvu_from": 0.0,
    "factor_floor": 0.015,
    "penalty_off": 0.0,
    "penalty_ramp": 0.8,
    "steps": 30,
    "batch_size": 100,
    "n_sequences": 10000,
    "lr": 0.02,
    "lr_decay": 0.5,
    "toy_steps": 1500,
    "toy_lr": 0.03,
    "toy_lr_decay": 0.5,
    "attempts": 2,
    "jitter": 0.0,
    "jitter_seed": 0,
}


def test_a_folder_of_the_last_version_is_gone_on_with(tmp_path, monkeypatch):
    row = ReliabilityRow(**rates(CELL, runs_by_hand()))
    write_table(pd.DataFrame([vars(row)]), tmp_path / "reliability.csv")
    runs = runs_by_hand().gated.assign(seed=range(4))
    runs = pd.concat([runs.assign(experiment="2H3ST", recipe=r) for r in ("reliable", "no row")])
    write_table(runs, tmp_path / "reliability-runs.csv")
    config = {"seeds": 4, "first_seed": 7000, "steps": None, "toy_steps": 9}
    recipe = FLAT | {"steps": 7, "toy_steps": 9}
    notes = {"config": config, "recipes": {"2H3ST/reliable": recipe}}
    (tmp_path / "reliability.json").write_text(json.dumps(notes))
    monkeypatch.setattr(study, "measured", never)
    how = {"seeds": 4, "steps": 7, "toy_steps": 9, "workers": 1}
    table = run_reliability(tmp_path, shapes=[(2, 3)], variants=["reliable"], **how)
    assert table["fvu"].tolist() == [row.fvu]
    kept = read_table(tmp_path / "reliability-runs.csv")
    assert kept["recipe"].tolist() == ["reliable"] * 4  # without a row it is measured again
    with refuses("results-of-another-run", name="steps", then=7, now=8, where=" in 2H3ST/reliable"):
        run_reliability(tmp_path, shapes=[(2, 3)], variants=["reliable"], **how | {"steps": 8})
