"""The numbers of the pages come from their CSVs, and what the pages conclude is true of these."""

import re
from pathlib import Path

import measured
import pandas as pd
import pytest
from from_csv import filled

DOCS = Path(__file__).parents[1] / "docs"
PAGES = sorted(DOCS.glob("*.md"))
TABLES = [
    pytest.param(name, options, lines, id=f"{page.stem}-{i}")
    for page in PAGES
    for i, (name, options, lines) in enumerate(
        re.findall(
            r"^```\{from-csv\} (.*)\n((?::.*\n)*)\n((?:.+\n)+?)```$", page.read_text(), re.MULTILINE
        )
    )
]
TOY = ["2H3ST", "3H4ST", "4H5ST"]


@pytest.mark.parametrize(("name", "options", "lines"), TABLES)
def test_every_table_is_filled_in(name, options, lines):
    table = measured.table(name)
    said = dict(re.findall(r"^:(\w+): (.*)$", options, re.MULTILINE))
    table = table.query(said["where"]) if "where" in said else table
    done = filled(lines.splitlines(), table)
    assert len(done) > len(lines.splitlines()) - 1
    assert not re.search(r"[{}]|nan", "".join(done))
    assert len({line.count("|") for line in done}) == 1


def test_every_number_is_there_and_said_somewhere():
    text = "\n".join(page.read_text() for page in PAGES)
    said = set(re.findall(r"\{\{ ([a-z_0-9.]+) \}\}", text))
    there = {f"{page}.{name}" for page, numbers in measured.NUMBERS.items() for name in numbers}
    assert said == there
    # The site would show a method of the dictionary, not its entry.
    assert not [name for page in measured.NUMBERS.values() for name in page if hasattr(page, name)]
    assert all(
        isinstance(n, str) and n for page in measured.NUMBERS.values() for n in page.values()
    )


def test_a_table_that_names_a_column_that_is_not_there_is_refused():
    table = pd.DataFrame({"a": [1, 2], "b": [0.25, None]})
    rule = ["| a | b |", "|---|---|"]
    done = filled([*rule, "| {a} | {b:.0%} of {a} |", "| once | |"], table)
    assert done[2:] == ["| 1 | 25% of 1 |", "| 2 | – |", "| once | |"]
    with pytest.raises(KeyError):
        filled([*rule, "| {a} | {c} |"], table)
    with pytest.raises(ValueError, match="no row"):
        filled([*rule, "| {a} |"], table[:0])
    with pytest.raises(ValueError, match="no rule"):
        filled(["| {a} |"], table)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_commands_in_listings_are_on_the_page_of_commands(page):
    known = re.findall(
        r"(?:gated-interp |`(?!gated-interp ))([a-z][a-z-]+)", (DOCS / "commands.md").read_text()
    )
    for listing in re.findall(r"^```sh\n(.*?)```", page.read_text(), re.MULTILINE | re.DOTALL):
        for name in re.findall(r"^gated-interp ([a-z][a-z-]+)", listing, re.MULTILINE):
            assert name in known, name


# What the pages conclude.


def test_more_than_nine_blocks_in_ten_are_clean():
    main = measured.read("reliability-41000-256.csv")
    assert sorted(main["experiment"]) == TOY
    assert (main["clean"] / main["runs"]).min() > 0.9
    assert (main["accuracy_without_holders"] == 0).all()
    assert (main["accuracy_only_holders"] == 1).all()
    for name in ("6H8ST", "8H12ST"):
        row = measured.read(f"reliability-41000-{name}.csv").iloc[0]
        assert row["clean"] / row["runs"] < 0.9


def test_every_toy_misses_one_or_two_goals_by_a_little():
    main = measured.read("reliability-41000-256.csv")
    missed = [main["clean"] / main["runs"] < 0.95, main["fvu"] > 0.02, main["l0"] > 1.2]
    assert sum(missed).between(1, 2).all()
    assert main["fvu"].max() < 0.022
    assert main["l0"].max() < 1.3


def test_the_overlap_penalty_separates_and_gates_help_but_not_the_gate_penalty():
    table = measured.read("reliability-41000.csv", "recipe")
    rate = table["clean"] / table["runs"]
    assert rate["no overlap penalty"].max() < 0.6
    assert (table.loc["gates fixed open", "change_high"] < 0).all()
    assert (rate["neither penalty"] == 0).all()
    for name in ("no gate penalty", "with value bias"):
        assert (table.loc[name, "change_low"] < 0).all()
        assert (table.loc[name, "change_high"] > 0).all()
    drop = table.loc[["gates fixed open", "no overlap penalty"], "change"].groupby("recipe").min()
    assert drop.idxmin() == "no overlap penalty"


def test_the_shown_block_is_clean_in_every_repeat():
    for name in ("repeats-64.csv", "repeats-quick.csv"):
        table = measured.read(name)
        assert table.groupby("experiment").size().tolist() == [20] * 3
        assert table["shown_clean"].all()
    assert (table["clean"] == table["runs"]).all()  # at the quick size every block is clean


def test_a_more_exact_block_has_more_open_gates():
    table = measured.fvu_targets()
    for toy in TOY:
        assert table[f"l0_{toy}"].rank(ascending=False, method="min").iloc[-1] == len(table)
        assert table[f"clean_{toy}"].min() >= 13


def test_blocks_of_the_diagram_are_clean_most_often_where_trigrams_outnumber_heads():
    assert measured.phase_groups()["rate"].is_monotonic_decreasing


def test_gated_blocks_lead_but_no_interval_excludes_chance():
    rows = measured.frontier_methods().set_index("method")
    assert rows["rate"].nlargest(3).index.tolist() == ["gated", "gated (post)", "ungated + overlap"]
    for other in ("gated (post)", "ungated + overlap"):
        change, interval = measured.ahead("frontier-runs.csv", other)
        assert int(change) > 0
        low, high = map(int, interval.split(" to "))
        assert low <= 0 < high
    assert float(measured.NUMBERS["frontier"]["opened_others"]) < 0.1
    alive = measured.frontier_width().set_index("method")
    assert alive.loc["gated", "clean_4x"] == alive.loc["gated", "clean_8x"] == 16


def test_no_method_is_clean_more_often_than_ours_at_the_same_error():
    cells = measured.read("frontier.csv", "task", "method")
    for toy in TOY:
        ours = cells.loc[(toy, "gated")]
        for method in set(measured.METHODS) - {"gated"}:
            for _, cell in cells.loc[[(toy, method)]].iterrows():
                same = ours[ours["fvu"] <= 1.5 * cell["fvu"]]
                assert same.empty or cell["low"] <= same["high"].max()
    sae = cells.loc[("2H3ST", "sae on output")].set_index("knob").loc[1]
    assert sae["fvu"] < 0.6 * cells.loc[("2H3ST", "gated"), "fvu"].min()


def test_benchmarks_come_out_as_the_page_says():
    table = measured.benchmark_rows().set_index("experiment")
    possible = ["skip-trigrams", "conditional"]
    assert (table.loc[possible, ["right_recipe", "right_bare"]] >= 10).all(axis=None)
    others = table.drop(possible)
    assert others.index[others["clean_recipe"] > 0].tolist() == ["two-sources"]
    assert (others["right_bare"] == 0).all()
    assert table.loc["two-sources", "false_alarms_recipe"] > 0.4
    runs = measured.read("benchmarks-runs.csv")
    assert runs.groupby("experiment")["held"].max()[["two-layers", "repeated-tokens"]].le(1).all()


def test_blocks_of_language_models_keep_the_loss_and_are_easier_to_read():
    table = measured.read("decompose.csv").query("layer >= 0")
    assert table.groupby(measured.LAYERS).size().tolist() == [3, 3, 3]
    medians = table.groupby(measured.LAYERS).median(numeric_only=True)
    assert (medians["ce_recovered_zero"] > 0.985).all()
    assert (medians["active_per_position"] < medians["active_original"]).all()
    assert (medians["held_about_mean"] > 2 * medians["held_about_mean_original"]).all()
    for ends in measured.spare()["recovered"]:
        assert all(abs(float(end)) < 0.15 for end in ends.split(" to "))


def test_the_overlap_penalty_separates_heads_of_language_models_without_gates_too():
    rows = measured.text_methods().set_index(["method", "setting"])
    held, writing = rows["held_share"], rows["active_per_position"]
    assert held["gates alone", "0.04"] < 0.6 * held["gated", "0.07"]
    assert held["overlap alone", "0.12"] > held["gated", "0.07"]
    for error in ("0.04", "0.07", "0.12", "0.2"):
        assert writing["gated", error] < writing["overlap alone", error]
    assert held["ungated", "no penalty"] < 0.01
    assert held["topk", "K = 16"] < 0.01


def test_five_heads_share_induction_and_a_block_gathers_some_of_it():
    table = measured.read("austen-2l-induction.csv").set_index(["model", "ablated"])["change"]
    strongest = {}
    for model in ("original", "block 30", "block 31", "block 32"):
        each = table[model][table[model].index.str.startswith("L1")]
        assert len(each) == 5
        assert table[model]["the five"] > 1.8 * each.sum() > 0
        assert abs(table[model]["all others of the layer"]) < 0.05
        strongest[model] = each.max()
    assert min(strongest, key=strongest.get) == "original"


def test_the_page_on_a_pretrained_model_says_what_its_table_holds():
    table = measured.read("copying.csv")
    before = table.query("method == 'original'").set_index("layer")
    blocks = table[(table["method"] == "topk copies") & (table["seed"] >= 12)]
    blocks = blocks[
        (before["loss_off"] - before["loss_original"])[blocks["layer"]].to_numpy() > 0.1
    ]
    said = measured.NUMBERS["pretrained"]
    assert said["blocks"] == str(len(blocks)) == str(len(measured.copying_blocks()))
    shared = blocks[before["carriers"][blocks["layer"]].to_numpy() > 2]
    assert said["there"] == str(len(shared))
    assert said["there_few"] == str((shared["carriers"] <= 2).sum())
    # A single layer hardly matters on average text, and some blocks in layer 20 go on sharing.
    assert (before["kl_off"] < 0.1).all()
    twenty = blocks[blocks["layer"] == 20]
    assert twenty.empty or (twenty["carriers"] > 2).any()
    # Fewer heads write, in every block.
    fewer = (
        blocks["participation_copies"] < before["participation_copies"][blocks["layer"]].to_numpy()
    )
    assert fewer.all()
    heads = measured.read("copying-heads.csv").groupby(["layer", "method", "seed"]).size()
    rows = table.set_index(["layer", "method", "seed"])["heads"]
    assert heads.sort_index().to_dict() == rows.sort_index().to_dict()


def test_exact_copies_are_clean_as_often_and_leave_more_gates_open():
    table = measured.starts().set_index(["shape", "start"])
    for shape in ("2H3ST", "3H4ST"):
        few, many = (
            table.loc[(shape, "exact copies, noise 0.1")],
            table.loc[(shape, "exact copies")],
        )
        assert few["l0"] < many["l0"]
        assert many["high"] >= table.loc[(shape, "copies, random gates"), "low"]


def test_the_page_on_attribution_says_what_its_table_holds():
    runs = measured.read("known-scores.csv")
    worst = runs.groupby(["of", "source", "method"])["auroc"].min()
    for source in ("compiled", "planted"):
        for of in ("heads", "nodes"):
            assert all(worst[of, source, f"exact, {a}"] == 1 for a in ("zero", "mean", "resample"))
        assert worst["edges", source, "exact"] == 1
        assert worst["edges", source, "ACDC"] > 0.998
    exact = runs[runs["method"] == "exact, resample"]
    assert exact["forward"].max() <= 18
    assert round(worst["edges", "planted", "EAP-IG inputs"], 3) == 0.999
    assert worst["heads", "planted", "EAP-IG inputs"] == 1
    default = runs[runs["method"] == "EAP-IG inputs"]
    assert (default["forward"] + default["backward"] == 19).all()
    assert all(worst["heads", "planted", f] == 1 for f in ("AtP*", "Shapley values"))
    for source in ("compiled", "planted"):
        assert worst["heads", source, "Shapley values"] == 1
    assert worst["heads", "compiled", "AtP*"] < 0.1
    nodes = runs[(runs["of"] != "edges") & runs["constructed"].notna()]
    assert (nodes["constructed"] == nodes["auroc"]).all()
    assert worst["edges", "planted", "EAP"] < 0.84
    assert worst["edges", "compiled", "EAP"] < 0.34
    low = runs.query("method == 'EAP-IG inputs' and of == 'heads' and auroc < 0.9")
    assert low["circuit"].tolist() == ["compiled-count"] * 3
    for method in ("EAP", "attribution patching"):
        assert worst["heads", "planted", method] == 1
    assert runs.loc[runs["method"] == "Shapley values", "forward"].max() == 193
    pairs = runs.query("method == 'pair interactions' and auroc < 0.9")
    assert set(pairs["circuit"]) == {"compiled-two-hops-rasp"}
    assert pairs["auroc"].agg(["min", "max"]).round(2).tolist() == [0.52, 0.63]
    compiled = runs.query("source == 'compiled' and of == 'edges'").groupby("method")
    assert (compiled["constructed"].median() < compiled["auroc"].median()).all()
    assert runs.groupby("source")["circuit"].nunique().to_dict() == {"compiled": 8, "planted": 6}


def test_the_true_nodes_of_known_circuits_matter_and_the_idle_ones_do_not():
    rows = measured.known_circuits()
    assert rows["true"].min() > 10 * rows["idle"].max()
    assert (rows["built"] == rows["nodes"].str.count(",") + 1).all()


def test_switching_silent_heads_on_moves_predictions_far_more_than_the_block_does():
    cells = measured.read("frontier.csv", "method")
    for method in ("gated", "gated (post)"):
        assert (cells.loc[method, "kl_random"] > 50 * cells.loc[method, "kl"]).all()


def test_the_page_on_shared_heads_says_what_its_tables_hold():
    runs = measured.read("shared-heads.csv")
    mean = runs.groupby(["degrees", "method"])[["share", "pure"]].mean()
    planted = {0.0: 1.0, 22.5: 0.854, 45.0: 0.5}
    for degrees, share in planted.items():
        assert abs(mean.loc[(degrees, "original"), "share"] - share) < 0.06
    half = mean.loc[45.0]
    # Gates separate the programs, but spread each over heads, and also what nobody shared.
    assert half.loc["original", "pure"] < 0.55
    assert half.loc["gated", "pure"] > 0.95
    assert half.loc["gated", "share"] < 0.8
    assert mean.loc[(0.0, "gated"), "share"] < mean.loc[(0.0, "original"), "share"] - 0.1
    alone = half.loc[["ungated + overlap", "gates alone"]]
    assert (alone["share"] > half.loc["gated", "share"] + 0.05).all()
    assert (alone["pure"] > 0.9).all()
    assert half.loc["topk copies", "pure"] < 0.7
    assert half.loc["gated, random start", "share"] < half.loc["gated", "share"]
    fvu = runs[runs["degrees"] == 45].groupby("method")["fvu"].median()
    assert (fvu[["ungated + overlap", "gates alone"]] > fvu["gated"]).all()
    blocks = runs[~runs["method"].isin(["original"])]
    assert blocks["accuracy"].min() > 0.98
    gated = blocks[blocks["method"] == "gated"]
    assert gated[["needed_capital", "needed_small"]].to_numpy().max() <= 3


def test_the_page_on_known_circuits_says_what_its_table_holds():
    runs = measured.read("known-heads.csv")
    held = runs.groupby("method")["held"].sum() / runs.groupby("method")["told"].sum()
    assert held["original"] == 1
    assert held["gated"] < 1
    assert runs.query("method == 'original'")["idle"].max() < 0.1
    planted = runs[runs["circuit"].str.startswith("planted-") & (runs["method"] == "gated")]
    second = planted[planted["layer"] == 1]
    assert second["held"].equals(second["told"])
    assert second["kept"].equals(second["wires"])
    assert planted.loc[planted["layer"] == 0, "held"].sum() == 0


def test_the_page_on_the_adversary_says_what_its_tables_hold():
    means = {}
    for part in ("trained", "trained-again"):
        runs = measured.read(f"ladder-{part}.csv")
        runs["rise"] = runs["20 steps"] - runs["nothing opened"]
        runs["weight"] = runs["strength"].str.partition(",")[0]
        means[part] = runs.groupby("weight")[["rise", "fvu", "clean"]].mean()
    first, again = means["trained"], means["trained-again"]
    # A small weight takes nearly all away; further steps cost most of the FVU.
    assert first.loc["weight 0.02", "rise"] < 0.01 * first.loc["as trained", "rise"]
    assert first.loc["weight 0.02", "clean"] >= first.loc["as trained", "clean"]
    added = first["fvu"] - first.loc["as trained", "fvu"]
    assert added["weight 0"] > 0.5 * added["weight 0.02"] > 0
    assert (first.loc[["weight 0.3", "weight 1"], "fvu"] > first.loc["weight 0.02", "fvu"]).all()
    # With the FVU held, fewer are clean, and without an adversary too.
    assert again.loc["weight 0.02", "rise"] < 0.1 * again.loc["as trained", "rise"]
    assert abs(again.loc["weight 0.02", "fvu"] - again.loc["as trained", "fvu"]) < 0.002
    clean = again["clean"]
    assert clean["weight 0.02"] <= clean["weight 0"] < clean["as trained"]


def test_the_page_says_what_a_block_recovers_of_the_training():
    curve = measured.read("austen-1l-curve.csv")
    assert curve["step"].iloc[[0, -1]].tolist() == [0, measured.AUSTEN_STEPS - 1]
    assert curve["loss"].iloc[-1] == curve["loss"].min()
    rows = measured.text_methods().sort_values("ce_difference")
    shares = rows["compute"].str.split(" ").str[0].astype(int)
    assert shares.is_monotonic_decreasing
    assert shares.iloc[0] > 95
    # A small rise of the loss is worth much training.
    small = rows["ce_difference"].between(0.005, 0.02)
    assert small.any()
    assert (shares[small] < 90).all()
