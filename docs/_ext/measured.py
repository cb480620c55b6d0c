"""The numbers that the pages say, computed from the CSVs of ``figures/`` while the site is built.

``NUMBERS`` holds those in sentences, by page: ``{{ frontier.ours }}`` on a page is the text here.
``TABLES`` holds tables that ``{from-csv}`` shows and that are no CSV as they are. A name that is
not here is an error of the build.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable
from pathlib import Path

import pandas as pd

import gated_interp
from gated_interp.experiments.copying import TWO_HEADS
from gated_interp.experiments.copying_figures import WORTH
from gated_interp.experiments.ladder_trained import over_toys
from gated_interp.experiments.shared_heads import TRIED
from gated_interp.metrics.compute import training_share
from gated_interp.metrics.intervals import clustered, mean_interval, paired_difference, wilson

FIGURES = Path(__file__).resolve().parents[2] / "figures"
AUSTEN_STEPS = 2000
TOYS = ["2H3ST", "3H4ST", "4H5ST"]
LAYERS = ["model", "layer"]
CHANGE = ["change", "change_low", "change_high"]


def sources() -> list[Path]:
    """The files that pages depend on."""
    return [Path(__file__), *sorted(FIGURES.glob("*.csv"))]


@functools.cache
def _read(name: str) -> pd.DataFrame:
    return pd.read_csv(FIGURES / name)


def read(name: str, *keys: str) -> pd.DataFrame:
    """A CSV of ``figures/``, by its name; its rows named by some of its columns."""
    table = _read(name).copy()
    return table.set_index(list(keys)).sort_index() if keys else table


def table(name: str) -> pd.DataFrame:
    """A CSV by its name, or one of ``TABLES``."""
    return read(name) if name.endswith(".csv") else TABLES[name]()


# How numbers are written.


def count(number: float) -> str:
    return f"{number:,.0f}"


def percent(share: float, digits: int = 0) -> str:
    return f"{share:.{digits}%}"


def between(values: Iterable[float], write: Callable[[float], str] = count) -> str:
    """The smallest to the largest, or the one that they all are."""
    ordered = sorted(values)
    low, high = write(ordered[0]), write(ordered[-1])
    return low if low == high else f"{low} to {high}"


def over_seeds(values: pd.Series, write: Callable[[float], str]) -> str:
    """The mean with its 95% interval over seeds, or the one value."""
    mean = write(values.mean())
    if len(values) < 2:
        return mean
    low, high = mean_interval(values.to_numpy())
    return f"{mean} ({write(low)} to {write(high)})"


def points(share: float) -> str:
    """A difference of two shares in percentage points."""
    return f"{100 * share:.0f}"


def decimals(digits: int) -> Callable[[float], str]:
    return lambda number: f"{number:.{digits}f}"


def signed(number: int) -> str:
    return f"{number:+d}" if number else "0"


def listed(values: Iterable[float], write: Callable[[float], str] = count) -> str:
    *first, last = [write(value) for value in values]
    return f"{', '.join(first)} and {last}"


def beside(table: pd.DataFrame, rows: list[str], across: str, values: list[str]) -> pd.DataFrame:
    """A long table made wide: the column ``fvu_2H3ST`` is ``fvu`` of the rows of 2H3ST."""
    order = table[rows].drop_duplicates()
    parts = [table.pivot(index=rows, columns=across, values=v).add_prefix(f"{v}_") for v in values]
    wide = pd.concat(parts, axis=1)
    return order.merge(wide.reset_index(), on=rows, validate="1:1")


# How reliable is it.


def reliability() -> dict[str, str]:
    main = read("reliability-41000-256.csv", "experiment")
    runs = read("reliability-41000-256-runs.csv")
    controls = read("reliability-41000.csv").set_index("recipe")
    reference = read("reliability-41000-reference.csv")
    repeats, quick = read("repeats-64.csv"), read("repeats-quick.csv")
    shown = repeats.groupby("experiment")
    better = runs[runs.groupby("experiment")["selection_loss"].rank() <= main["runs"].min() // 2]
    bare, penalties = controls.loc["no overlap penalty"], controls.loc["gates fixed open"]
    gates = controls.loc["no gate penalty"]
    recipe = controls.loc["reliable"].set_index("experiment")
    fewer = 1 - recipe["l0"] / gates.set_index("experiment")["l0"]
    more = {name: read(f"reliability-41000-{name}.csv").iloc[0] for name in ("6H8ST", "8H12ST")}
    frontier = read("reliability-41000-frontier.csv", "experiment", "recipe")
    low = ["FVU target 0.003", "FVU target 0.007", "FVU target 0.012"]
    six, twelve = more["6H8ST"], more["8H12ST"]

    def rate(rows: pd.DataFrame, column: str = "clean") -> str:
        return between(rows[column] / rows["runs"], percent)

    return {
        "clean": count(main["clean"].sum()),
        "runs": count(main["runs"].sum()),
        "success": count(main["successes"].sum()),
        "better_clean": listed(better.groupby("experiment")["clean"].sum()),
        "better": count(main["runs"].min() / 2),
        "controls_clean": rate(controls.loc["reliable"]),
        "without_overlap": rate(bare),
        "without_overlap_success": rate(bare, "successes"),
        "without_gates": rate(penalties),
        "gates_worth": between(-penalties["change"], points),
        "gates_low": points(-penalties["change_high"].max()),
        "gates_high": points(-penalties["change_low"].min()),
        "fewer_gates": between(fewer, percent),
        "shown_clean": count(repeats["shown_clean"].sum()),
        "repeats": count(len(repeats)),
        "repeats_each": count(shown.size().min()),
        "quick_shown_clean": count(quick["shown_clean"].sum()),
        "quick_repeats": count(len(quick)),
        "quick_clean": count(quick["clean"].sum()),
        "tight_fvu": between(frontier.loc[(TOYS, low), "fvu"], decimals(3)),
        "tight_3h4st": between(frontier.loc[("3H4ST", low), "clean"]),
        "loose_3h4st": between(frontier.loc["3H4ST"].drop(low)["clean"]),
        "reference_clean": count(reference["clean"].sum()),
        "reference_runs": count(reference["runs"].sum()),
        "six_clean": percent(six["clean"] / six["runs"]),
        "twelve_clean": percent(twelve["clean"] / twelve["runs"]),
    }


def controls() -> pd.DataFrame:
    names = {
        "reliable": "the full recipe",
        "no gate penalty": "without the gate penalty",
        "gates fixed open": "with all gates fixed open",
        "no overlap penalty": "without the overlap penalty",
        "neither penalty": "without either penalty",
        "with value bias": "with a value bias",
    }
    long = read("reliability-41000.csv")
    assert set(long["recipe"]) == set(names)
    changed = [
        f" ({signed(round(100 * c))}; {signed(round(100 * low))} to {signed(round(100 * high))})"
        if c == c
        else ""
        for c, low, high in zip(*(long[end] for end in CHANGE), strict=True)
    ]
    long["said"] = long["clean"].astype(str) + changed
    wide = beside(long, ["recipe"], "experiment", ["said", "l0", "fvu"])
    wide = wide.set_index("recipe").loc[list(names)].reset_index()
    return wide.assign(part=list(names.values()))


def fvu_targets() -> pd.DataFrame:
    long = read("reliability-41000-frontier.csv")
    long["target"] = long["recipe"].str.split().str[-1]
    values = ["clean", "runs", "low", "high", "fvu", "kl", "l0"]
    return beside(long, ["target"], "experiment", values)


def more_trigrams() -> pd.DataFrame:
    return pd.concat([read(f"reliability-41000-{name}.csv") for name in ("6H8ST", "8H12ST")])


def repeats() -> pd.DataFrame:
    rows = read("repeats-64.csv").groupby("experiment").agg(
        repeats=("shown_clean", "size"),
        shown_clean=("shown_clean", "sum"),
        seeds=("shown_seed", "nunique"),
        runs=("runs", "sum"),
        clean=("clean", "sum"),
    )  # fmt: skip
    rows["low"], rows["high"] = zip(*map(wilson, rows["shown_clean"], rows["repeats"]), strict=True)
    return rows.assign(unclean=rows["runs"] - rows["clean"]).reset_index()


def phase() -> dict[str, str]:
    cells = read("phase-diagram.csv")
    three = cells[cells["trigrams"] >= 3]
    enough = three[three["heads"] >= three["trigrams"]]
    few = cells[cells["trigrams"] <= 2]
    one = cells[(cells["trigrams"] == 1) & (cells["heads"] >= 6)]
    ten = cells[(cells["heads"] == 3) & (cells["trigrams"] >= 10)]
    return {
        "distributed": count(three["toys_distributed"].sum()),
        "learnt": count(three["toys_learnt"].sum()),
        "enough_distributed": count(enough["toys_distributed"].sum()),
        "enough_learnt": count(enough["toys_learnt"].sum()),
        "toys_clean": count(cells["toys_clean"].sum()),
        "toys_learnt": count(cells["toys_learnt"].sum()),
        "few_clean": count(few["toys_clean"].sum()),
        "one_unclean": count((one["runs"] - one["clean"]).sum()),
        "one_runs": count(one["runs"].sum()),
        "ten_learnt": count(ten["toys_learnt"].sum()),
        "ten_trained": count(ten["toys_trained"].sum()),
    }


def phase_groups() -> pd.DataFrame:
    cells = read("phase-diagram.csv")
    more = cells["trigrams"] > cells["heads"]
    wide = (cells["trigrams"] <= 2) & (cells["heads"] >= 6)
    groups = {
        "more trigrams than heads": cells[more],
        "at least as many heads as trigrams": cells[~more],
        "of these, 1 or 2 trigrams and 6 or more heads": cells[wide],
    }
    rows = [
        {"group": name} | part[["clean", "successes", "runs"]].sum().to_dict()
        for name, part in groups.items()
    ]
    return pd.DataFrame(rows).assign(rate=lambda t: t["clean"] / t["runs"])


# Take a language model apart: the trials.


def trials() -> pd.DataFrame:
    """The trials of the page that explains how the defaults were chosen, in its order."""
    shown = [
        (16, 32, 2000, 0.045), (32, 16, 2000, 0.045), (64, 16, 3000, 0.045),
        (128, 16, 3000, 0.045), (16, 64, 3000, 0.045), (16, 128, 3000, 0.05),
        (32, 16, 2000, 0.15), (64, 16, 3000, 0.15), (128, 16, 3000, 0.15), (32, 32, 3000, 0.15),
        (16, 64, 3000, 0.12),
    ]  # fmt: skip
    table = read("decompose-trials.csv")
    table = table[(table["penalty"] == "overlap") & (table["model"] == "austen-1l")]
    loose = table["target"] > 0.05
    chosen = table["alpha"].eq(0.03).where(~loose, table["alpha"] == 0.02)
    chosen &= table["overlap"].eq(0.1).where(~loose, table["overlap"] == 0.12)
    table = table[chosen & (table["downstream"] == 0.67)]
    keys = ["heads", "d_head", "steps", "target"]
    return table.set_index(keys).loc[shown].reset_index()


# Every method on one frontier.

METHODS = [
    "gated", "gated (post)", "query-key gates", "hard-concrete gates", "head gates", "topk",
    "top1", "ungated", "ungated + overlap", "sae on output",
]  # fmt: skip


@functools.cache
def frontier_runs(name: str = "frontier-runs.csv") -> pd.DataFrame:
    """The runs by method, toy, place on the knob and seed."""
    runs = read(name)
    runs[["method", "knob"]] = runs["recipe"].str.rsplit(", ", n=1, expand=True)
    runs["knob"] = runs["knob"].astype(float)
    runs["place"] = runs.groupby("method")["knob"].rank("dense")
    runs["toy"] = runs["experiment"] + " " + runs["toy_seed"].astype(str)
    return runs.set_index(["method", "experiment", "place", "seed"]).sort_index()


def ahead(name: str, other: str, toys: list[str] = TOYS) -> tuple[str, str]:
    """By how many points our blocks are more often clean than another method's, and the interval.

    Seeds, and the places on both knobs, are paired.
    """
    runs = frontier_runs(name)
    ours, theirs = (runs.loc[method].loc[toys] for method in ("gated", other))
    assert ours.index.equals(theirs.index)
    found = paired_difference(*(r["clean"].tolist() for r in (ours, theirs)), ours["toy"].tolist())
    change, low, high = (round(100 * number) for number in found)
    return f"{change}", f"{signed(low)} to {signed(high)}"


def frontier() -> dict[str, str]:
    first, again = frontier_runs(), frontier_runs("frontier-again-runs.csv")
    assert first.index.equals(again.index)
    changed = first["clean"] != again["clean"]
    clean = first.groupby("method")["clean"].sum()
    on_toy = first.groupby(["method", "experiment"])["clean"].sum()
    cells = read("frontier.csv", "method", "task", "knob")
    tuning = read("frontier-tuning.csv", "method", "changes")
    opened = cells.loc["gated"]["kl_random"], cells.loc["gated (post)"]["kl_random"]
    tight_again = again.loc["gated"].xs(1, level="place").groupby("experiment")["clean"].sum()
    closed = cells[~cells.index.get_level_values("method").isin(["gated", "gated (post)"])]
    best = cells.groupby("method")["clean_rate"].max()
    tight = cells.loc["ungated + overlap"].query("knob < 0.04")["active_per_position"]
    sae = cells.loc["sae on output"].xs(1, level="knob")
    said = {
        "ours": count(clean["gated"]),
        "post": count(clean["gated (post)"]),
        "overlap": count(clean["ungated + overlap"]),
        "query_key_best": count(16 * best["query-key gates"]),
        "hard_concrete": count(clean["hard-concrete gates"]),
        "ours_2h3st": count(on_toy["gated", "2H3ST"]),
        "post_2h3st": count(on_toy["gated (post)", "2H3ST"]),
        "post_4h5st": count(on_toy["gated (post)", "4H5ST"]),
        "ours_4h5st": count(on_toy["gated", "4H5ST"]),
        "overlap_heads": between(tight, decimals(0)),
        "tuning_post": count(tuning.loc[("gated (post)", "none"), "clean"]),
        "topk_more": count(first.loc["topk"].query("place > 1")["clean"].sum()),
        "topk_more_runs": count(len(first.loc["topk"].query("place > 1"))),
        "one_head": between(16 * cells.loc[["topk", "top1"]].xs(1, level="knob")["clean_rate"]),
        "one_head_fvu": between(
            cells.loc[["topk", "top1"]].xs(1, level="knob")["fvu"], decimals(2)
        ),
        "sae": listed(16 * sae["clean_rate"]),
        "sae_three": between(16 * cells.loc["sae on output"].xs(3, level="knob")["clean_rate"]),
        "again_ours": count(again.groupby("method")["clean"].sum()["gated"]),
        "again_post": count(again.groupby("method")["clean"].sum()["gated (post)"]),
        "again_overlap": count(again.groupby("method")["clean"].sum()["ungated + overlap"]),
        "all_runs": count(len(first)),
        "changed": count(changed.sum()),
        "changed_to_not_clean": count((changed & first["clean"]).sum()),
        "tight_again": listed(tight_again),
        "tight": listed(16 * cells.loc["gated"].xs(0.01, level="knob")["clean_rate"]),
        "opened_before": between(cells.loc["gated"]["kl"], decimals(3)),
        "opened": between(opened[0], decimals(1)),
        "opened_post": between(opened[1], decimals(0)),
        "opened_others": decimals(2)(closed["kl_random"].max()),
    }
    for name, csv in (("", "frontier-runs.csv"), ("again_", "frontier-again-runs.csv")):
        for key, found in {
            "ahead_post": ahead(csv, "gated (post)"),
            "ahead_post_4h5st": ahead(csv, "gated (post)", ["4H5ST"]),
            "ahead_overlap": ahead(csv, "ungated + overlap"),
        }.items():
            said[f"{name}{key}"], said[f"{name}{key}_interval"] = found
    return said


def frontier_methods() -> pd.DataFrame:
    runs, cells = frontier_runs(), read("frontier.csv")
    grouped = runs.groupby("method")
    rows = grouped.agg(clean=("clean", "sum"), runs=("clean", "size"))
    ends = [clustered(r["clean"].tolist(), r["toy"].tolist()) for _, r in grouped]
    rows["low"], rows["high"] = zip(*ends, strict=True)
    for column, write in (("fvu", decimals(3)), ("active_per_position", decimals(1))):
        rows[column] = cells.groupby("method")[column].agg(lambda c, w=write: between(c, w))
    return rows.assign(rate=rows["clean"] / rows["runs"]).loc[METHODS].reset_index()


def frontier_cells() -> pd.DataFrame:
    long = read("frontier.csv")
    long["clean"] = (16 * long["clean_rate"]).round().astype(int)
    long["fvu"] = long["fvu"].where(long["fvu"] > 1e-5, 0.0)
    units = {"fvu_target": "FVU {:g}", "alpha": "alpha {:g}", "k": "K = {:g}", "-": "none"}
    knobs = zip(long["knob_name"], long["knob"], strict=True)
    long["setting"] = [units[name].format(value) for name, value in knobs]
    return beside(long, ["method", "setting"], "task", ["clean", "fvu", "active_per_position"])


def frontier_costs() -> pd.DataFrame:
    """Each method on 3H4ST, in the middle of its knob."""
    table = read("frontier.csv").query("task == '3H4ST'")
    middle = table.groupby("method")["knob"].rank() == table.groupby("method")["knob"].transform(
        lambda knob: (len(knob) + 1) // 2
    )
    table = table[middle].assign(heads=lambda t: 3 * t["expansion"])
    table["cancellation"] = table["cancellation"].round(2) + 0.0  # no minus zero
    kinds = ["kl", "kl_random", "kl_adversarial"]
    table[kinds] = table[kinds].where(table[kinds] > 1e-6, 0.0)
    return table


def frontier_width() -> pd.DataFrame:
    long = read("frontier-width.csv")
    long[["method", "width"]] = long["recipe"].str.rsplit(", ", n=1, expand=True)
    wide = beside(long, ["method"], "width", ["clean", "heads_alive"])
    return wide.sort_values("method", key=lambda names: names.map(METHODS.index))


# Take a language model apart.


def layer_name(key: tuple[str, int]) -> str:
    return f"`{key[0]}`, {key[1]}"


def decompose_layers() -> pd.DataFrame:
    """Medians over seeds for each layer; those that are strings have the mean's interval too."""
    runs = read("decompose.csv").query("layer >= 0").groupby(LAYERS)
    rows = runs.median(numeric_only=True)
    for name, write in (
        ("ce_recovered_zero", lambda x: percent(x, 1)),
        ("held_share", lambda x: percent(x, 1)),
        ("gates_per_pair", decimals(2)),
    ):
        ends = runs[name].agg(lambda v, w=write: between(mean_interval(v.to_numpy()), w))
        rows[name] = rows[name].map(write) + " (" + ends + ")"
    return rows.assign(name=rows.index.map(layer_name))


def spare() -> pd.DataFrame:
    key = [*LAYERS, "seed"]
    before = read("decompose.csv").query("layer >= 0").set_index(key)
    after = read("decompose-spare.csv").set_index(key).loc[before.index]
    moved = pd.DataFrame(
        {
            "fvu": after["fvu"] - before["fvu"],
            "recovered": 100 * (after["ce_recovered_zero"] - before["ce_recovered_zero"]),
            "held": 100 * (after["held_share"] - before["held_share"]),
        }
    ).groupby(LAYERS)
    writes = {"fvu": decimals(4), "recovered": lambda x: f"{x:+.2f}", "held": decimals(1)}
    rows = pd.DataFrame(
        {name: moved[name].agg(lambda v, w=w: between(v, w)) for name, w in writes.items()}
    )
    for name, heads in (("before", before), ("after", after)):
        rows[name] = heads["heads_alive"].groupby(LAYERS).agg(between)
    return rows.assign(name=rows.index.map(layer_name))


def decompose() -> dict[str, str]:
    runs = read("decompose.csv")
    layers = runs.query("layer >= 0")
    medians = layers.groupby(LAYERS).median(numeric_only=True)
    methods = read("decompose-methods-runs.csv").groupby("method").median(numeric_only=True)
    one = medians.loc[("austen-1l", 0)]
    return {
        "recovered": between(medians["ce_recovered_zero"], percent),
        "both": percent(runs.query("layer < 0")["ce_recovered_zero"].median(), 1),
        "times": between(medians["held_share"] / medians["held_share_original"]),
        "fvu": between(medians["fvu"], percent),
        "entropy": between(medians["held_entropy"], decimals(1)),
        "compute": compute_recovered(one["ce_difference"]),
        "increase": decimals(3)(one["ce_difference"]),
        "ce_zero": f"{one['ce_zero']:.2f}",
        "ce_mean": f"{one['ce_mean']:.2f}",
        "top1": percent(methods.loc["top1", "ce_recovered_zero"]),
        "topk": percent(methods.loc["topk", "ce_recovered_zero"]),
    }


def induction() -> pd.DataFrame:
    """Loss increases of ``austen-2l`` and of its blocks: heads off, and paths patched."""

    def said(table: pd.DataFrame, name: str) -> str | None:
        if name not in table.index:
            return None
        number, low, high = table.loc[name, [table.columns[0], "low", "high"]]
        return f"{number:.2f} ({low:.2f} to {high:.2f})"

    table, paths = read("austen-2l-induction.csv"), read("austen-2l-induction-paths.csv")
    columns = {}
    for model, off in table.groupby("model"):
        off = off.set_index("ablated")[["change", "low", "high"]]
        single = off.loc[off.index.str.startswith("L1"), "change"]
        path = paths[(paths["model"] == model) & (paths["sender"] == "L0H4")].set_index("input")
        path = path[["effect", "low", "high"]]
        columns[model.replace(" ", "_")] = {
            "the strongest of the five off": said(off, single.idxmax()),
            "the weakest of the five off": said(off, single.idxmin()),
            "all five off": said(off, "the five"),
            "only the strongest of the five left": said(off, "the five but the strongest"),
            "all other heads of the layer off": said(off, "all others of the layer"),
            "path patched: from L0H4 into the keys of the head that matches prefixes most": said(
                path, "K"
            ),
            "the same path into its gate": said(path, "gate"),
        }
    return pd.DataFrame(columns).rename_axis("what").reset_index()


def gated_model() -> pd.DataFrame:
    """What ships as ``austen-2l-gated``: a row for each block alone, and one for both."""
    table = read("austen-2l-gated.csv")
    return table.assign(name=table["layer"].replace({"both": "both blocks"}))


def gated_shared() -> pd.DataFrame:
    """How its layers' heads share what they write, before and after."""
    rows = []
    for _, row in read("austen-2l-gated.csv").query("layer != 'both'").iterrows():
        for on, where in (("", "text"), ("_on_repeats", "repeated random tokens")):
            kinds = {"participation": "participation", "alone": "alone"}
            found = {
                f"{k}{o}": row[f"{v}{on}{o}"] for k, v in kinds.items() for o in ("", "_original")
            }
            rows.append({"layer": row["layer"], "where": where, **found})
    return pd.DataFrame(rows)


def gated_numbers() -> dict[str, str]:
    table = read("austen-2l-gated.csv", "layer")
    both = table.loc["both"]
    return {
        "both": percent(both["ce_recovered_zero"], 1),
        "repeats": decimals(2)(both["ce_on_repeats"]),
        "repeats_0": decimals(2)(table.loc["0", "ce_on_repeats"]),
        "repeats_1": decimals(2)(table.loc["1", "ce_on_repeats"]),
        "chance": decimals(2)(math.log(2048)),
        "repeats_original": decimals(2)(both["ce_on_repeats_original"]),
        "times": between(
            (table["held_share"] / table["held_share_original"]).dropna(), decimals(0)
        ),
    }


def compute_recovered(increase: float) -> str:
    """The share of the training of ``austen-1l`` after which its loss was this far above its last.

    It lies between two recorded steps.
    """
    curve = read("austen-1l-curve.csv")
    ends = training_share(curve, increase, AUSTEN_STEPS)
    return between([round(100 * end) for end in ends]) + "%"


def text_methods() -> pd.DataFrame:
    measures = ["ce_recovered_zero", "held_share", "active_per_position", "ce_difference"]
    runs = read("decompose-methods-runs.csv").fillna({"knob": "", "value": 0})
    rows = runs.groupby(["method", "knob", "value"], sort=False)[measures].median().reset_index()
    units = {"fvu": "{:g}", "k": "K = {:g}", "heads": "{:g} heads", "": "no penalty"}
    rows["setting"] = [units[k].format(v) for k, v in zip(rows["knob"], rows["value"], strict=True)]
    return rows.assign(compute=rows["ce_difference"].map(compute_recovered))


# Why does a head look there?


def edge() -> dict[str, str]:
    """The score of the edge on that page, and what one component is of it; so of the write."""
    table = read("why-this-edge.csv", "part", "key_component")["value"]
    score, write = table["score"], table["write"]
    found = {
        "score": score.sum(),
        "key": score["L0H4"].sum(),
        "write": write.sum(),
        "token": write["L0H7"],
    }
    return {name: decimals(1)(number) for name, number in found.items()}


# Where gating should fail.


def benchmarks() -> dict[str, str]:
    table = read("benchmarks.csv", "experiment", "recipe")
    runs = read("benchmarks-runs.csv")
    by_task = runs.groupby("experiment")
    two = runs.query("experiment == 'two-sources' and recipe == 'recipe' and clean")
    right = two["false_alarms"] <= 0.01
    with_recipe = table.xs("recipe", level="recipe")
    assert with_recipe.loc["two-sources", "right"] == right.sum()
    return {
        "skip_right": count(with_recipe.loc["skip-trigrams", "right"]),
        "conditional_right": count(with_recipe.loc["conditional", "right"]),
        "two_clean": count(len(two)),
        "two_right": count(right.sum()),
        "two_wrong": count((~right).sum()),
        "two_wrong_foils": between(two.loc[~right, "false_alarms"], percent),
        "two_wrong_fvu": between(two.loc[~right, "fvu"], decimals(3)),
        "two_right_fvu": decimals(4)(two.loc[right, "fvu"].max()),
        "two_right_fvus": between(two.loc[right, "fvu"], decimals(4)),
        "each": between(by_task.size()),
        "two_layers_held": count(by_task["held"].sum()["two-layers"]),
        "two_layers_success": count(by_task["success"].sum()["two-layers"]),
        "repeated_success": count(by_task["success"].sum()["repeated-tokens"]),
    }


def benchmark_rows() -> pd.DataFrame:
    long = read("benchmarks.csv").replace({"recipe": {"no overlap penalty": "bare"}})
    values = ["clean", "right", "runs", "low", "high", "fvu", "false_alarms", "parts"]
    wide = beside(long, ["experiment"], "recipe", values)
    return wide.assign(expected=wide["parts_recipe"].map({True: "succeeds", False: "fails"}))


# Language models.


@functools.cache
def language_models() -> pd.DataFrame:
    """What the shipped models' files say of them."""
    rows = []
    for name in ("austen-1l", "austen-2l"):
        info = gated_interp.load(name).info
        rows.append({"name": name, **dataclasses.asdict(info.model.config), **info.notes})
    return pd.DataFrame(rows)


def models() -> dict[str, str]:
    off = read("austen-2l-induction.csv").query("model == 'original'").set_index("ablated")
    each = off.loc[off.index.str.startswith("L1"), "change"]
    paths = read("austen-2l-induction-paths.csv").query("model == 'original'")
    path = paths.loc[paths["effect"].idxmax()]
    assert (path["sender"], path["receiver"], path["input"]) == ("L0H4", "L1H7", "K")
    return {
        "tokens": count(round(language_models()["tokens"].min(), -3)),
        "each": between(each, decimals(2)),
        "sum": decimals(1)(each.sum()),
        "five": decimals(1)(off.loc["the five", "change"]),
        "path": "{effect:.2f} ({low:.2f} to {high:.2f})".format(**path),
    }


def austen_induction() -> pd.DataFrame:
    table = read("austen-2l-induction.csv").query("model == 'original'")
    return table.assign(single=table["ablated"].str.startswith("L1")).sort_values(
        ["single", "change"], ascending=False, kind="stable"
    )


# A pretrained model: rows may be missing while the study runs, and are then left out.

METHOD_NAMES = {
    "original": "the original layer",
    "gated": "gated block",
    "ungated": "ungated block: the same heads, no gates, no penalty",
    "gates alone": "gates and gate penalty, no overlap penalty",
    "overlap alone": "overlap penalty, no gates",
    "random start": "gated block from random weights",
    "topk": "two heads at a position",
    "topk copies": "two heads at a position",
}


@functools.cache
def copying_rows() -> pd.DataFrame:
    """Every row of the study, and whether it meets each goal."""
    return judged(read("copying.csv"))


def judged(table: pd.DataFrame) -> pd.DataFrame:
    """Rows of the study, and whether each meets each goal."""
    originals = table[table["method"] == "original"].set_index("layer")
    of = table["layer"].map(originals["participation_copies"])
    table["rise"] = table["loss"] - table["loss_original"]
    table["few"] = table["carriers"] <= 2
    table["faithful"] = (table["rise"] <= 0.02) & (table["kl_text"] <= 0.01)
    table["sparse"] = table["participation_copies"] <= of / 3
    table["worth"] = table["loss_off"] - table["loss_original"]
    table["copying"] = table["worth"] > WORTH
    return table


def copying_blocks() -> pd.DataFrame:
    """The blocks in which two heads write at a position, in layers that copy."""
    table = copying_rows()
    return table[(table["method"] == TWO_HEADS) & table["copying"]]


def copying_originals() -> pd.DataFrame:
    """The layers that copy and have been replaced, as they were; by layer."""
    table = copying_rows()
    there = table["layer"].isin(copying_blocks()["layer"])
    return table[(table["method"] == "original") & there].set_index("layer").sort_index()


def share_of(row: pd.Series) -> str:
    return f"{row['top2']:.0%} ({row['top2_low']:.0%} to {row['top2_high']:.0%})"


def copying_layers() -> pd.DataFrame:
    """A row per layer: the original beside its blocks, with intervals over seeds."""
    originals, blocks = copying_originals(), copying_blocks().groupby("layer")
    rows = pd.DataFrame(
        {
            "seeds": blocks.size(),
            "worth": originals["worth"],
            "before": originals["carriers"].map(count),
            "after": blocks["carriers"].agg(between),
            "top2_before": originals.apply(share_of, axis=1),
            "top2": blocks["top2"].agg(lambda v: over_seeds(v, percent)),
            "necessary2": blocks["necessary2"].agg(lambda v: over_seeds(v, percent)),
            "rise": blocks["rise"].agg(lambda v: over_seeds(v, decimals(3))),
            "kl": blocks["kl_text"].agg(lambda v: over_seeds(v, decimals(4))),
            "participation_before": originals["participation_copies"],
            "participation": blocks["participation_copies"].agg(lambda v: between(v, decimals(1))),
        }
    )
    for name in ("few", "faithful", "sparse"):
        rows[name] = blocks[name].sum()
    return rows.reset_index()


def copying_all() -> pd.DataFrame:
    """Every row of layers that copy, and of those that were taken because they do not."""
    table = copying_rows().sort_values(["layer", "method", "seed"])
    seeds = table["seed"].map(lambda n: f", seed {n}" if n >= 0 else "")
    return table.assign(
        name=table["method"] + seeds,
        said=[share_of(row) if row["top2"] == row["top2"] else None for _, row in table.iterrows()],
    )


def copying_controls() -> pd.DataFrame:
    """A row per kind of block and training, of the layer that has most kinds."""
    first, table = judged(read("copying-first.csv")), copying_rows()
    layer = first.groupby("layer")["method"].nunique().idxmax()
    rows = []
    trainings = {"plain": first, "as above": table[table["method"] != "original"]}
    for training, measured in trainings.items():
        for method, name in METHOD_NAMES.items():
            part = measured[(measured["layer"] == layer) & (measured["method"] == method)]
            if part.empty:
                continue
            kept = part["carriers"].notna().all()
            rows.append(
                {
                    "name": name,
                    "training": "–" if method == "original" else training,
                    "n": "–" if method == "original" else len(part),
                    "carriers": between(part["carriers"]) if kept else None,
                    "top2": over_seeds(part["top2"], percent) if kept else None,
                    "participation": over_seeds(part["participation_copies"], decimals(1)),
                    "gates": between(part["gates_per_pair"], decimals(1)),
                    "rise": over_seeds(part["rise"], decimals(3)),
                    "kl": over_seeds(part["kl_text"], decimals(4)),
                }
            )
    return pd.DataFrame(rows)


def copying_paths() -> pd.DataFrame:
    """The rise of the loss where one input of a layer misses the previous-token head."""
    originals, blocks = copying_originals(), copying_blocks().groupby("layer")
    rows: dict[str, pd.Series] = {}
    for name in ("keys", "queries", "values"):
        rows[f"{name}_before"] = originals[name].map(decimals(2))
        rows[name] = blocks[name].agg(lambda v: between(v, decimals(2)))
    rows["gates"] = blocks["gates"].agg(lambda v: between(v, decimals(2)))
    return pd.DataFrame(rows).reset_index()


def copying_scores() -> pd.DataFrame:
    """The heads that match prefixes most, best first."""
    table = read("copying-scores.csv").nlargest(8, "prefix_matching")
    return table.assign(
        name=[f"L{n}H{h}" for n, h in zip(table["layer"], table["head"], strict=True)]
    )


def copying_pilot() -> pd.DataFrame:
    return read("copying-pilot.csv")


def copying_first() -> pd.DataFrame:
    """The gated blocks of the first measurement, a row per layer."""
    table = judged(read("copying-first.csv"))
    originals = table[(table["method"] == "original") & table["copying"]].set_index("layer")
    gated = table[table["method"] == "gated"].set_index("layer").sort_index()
    originals = originals.loc[gated.index]
    return pd.DataFrame(
        {
            "before": originals["carriers"].map(count),
            "after": gated["carriers"].map(count),
            "top2_before": originals["top2"].map(percent),
            "top2": gated.apply(share_of, axis=1),
            "participation_before": originals["participation_copies"],
            "participation": gated["participation_copies"],
            "rise": gated["rise"].map(decimals(3)),
            "kl": gated["kl_text"].map(decimals(4)),
        }
    ).reset_index()


def pretrained() -> dict[str, str]:
    blocks, earlier = copying_blocks(), judged(read("copying-first.csv"))
    originals = earlier.query("method == 'original' and copying").set_index("layer").sort_index()
    scores = read("copying-scores.csv")
    by_layer = blocks.groupby("layer")
    heads = read("copying-heads.csv")
    previous = scores.loc[scores["previous_token"].idxmax()]
    shared = originals[originals["carriers"] > 2]
    there = blocks[blocks["layer"].isin(shared.index)]
    inputs = ["keys", "queries", "values"]
    strong = originals[originals[inputs].max(axis=1) > 0.1]
    most = strong[inputs].idxmax(axis=1)
    reading = blocks[blocks["layer"].isin(strong.index)]
    same = reading[inputs].idxmax(axis=1) == reading["layer"].map(most)
    apart = earlier.query("method == 'original' and not copying")
    all_goals = blocks[["few", "faithful", "sparse"]].all(axis=1)
    table = copying_rows()
    controls = table[table["seed"].ge(12) & (table["method"] != TWO_HEADS)]
    first = earlier.query("method == 'gated'")
    first = first[first["layer"].isin(shared.index)]

    def layers(which: pd.Series) -> str:
        found = which[which].index.tolist()
        one = f"layer {found[0]:g}" if found else "no layer"
        return f"layers {listed(found)}" if len(found) > 1 else one

    def or_dash(values: pd.Series, write: Callable[[float], str]) -> str:
        return between(values, write) if len(values) else "–"

    return {
        "layers": count(len(originals)),
        "named": listed(originals.index.tolist()),
        "replaced": layers(by_layer.size() > 0),
        "seeds": between(by_layer.size()),
        "blocks": count(len(blocks)),
        "few": count(blocks["few"].sum()),
        "shared": layers(originals["carriers"] > 2),
        "alone": layers(originals["carriers"] <= 2),
        "before": or_dash(shared["carriers"], count),
        "shared_top2": or_dash(shared["top2"], percent),
        "there": count(len(there)),
        "there_top2": or_dash(there["top2"], percent),
        "there_few": count(there["few"].sum()),
        **{f"most_{name}": layers(most == name) for name in inputs},
        "read": count(len(reading)),
        "same": count(same.sum()),
        "worth": between(originals["worth"], decimals(1)),
        "faithful": count(blocks["faithful"].sum()),
        "loss": between(originals["loss_original"], decimals(2)),
        "rise": between(blocks["rise"], decimals(3)),
        "kl": between(blocks["kl_text"], decimals(4)),
        "all_goals": count(all_goals.sum()),
        "all_goals_interval": "{:.0%} to {:.0%}".format(*wilson(int(all_goals.sum()), len(blocks))),
        "all_goals_in": layers(all_goals.groupby(blocks["layer"]).any()),
        "sparse": count(blocks["sparse"].sum()),
        "sequences": between(heads["n"]),
        "off_text": between(originals["kl_off"], decimals(2)),
        "previous": f"L{previous['layer']:.0f}H{previous['head']:.0f}",
        "previous_score": decimals(2)(previous["previous_token"]),
        "pilot_worth": or_dash(originals["worth"][originals.index == 20], decimals(2)),
        "first_carriers": or_dash(first["carriers"], count),
        "unfaithful": layers(~blocks.groupby("layer")["faithful"].all()),
        "dense": layers(~blocks.groupby("layer")["sparse"].all()),
        "shared_still": layers(~blocks.groupby("layer")["few"].all()),
        "still_top2": or_dash(blocks.loc[~blocks["few"], "top2"], percent),
        "necessary": or_dash(there["necessary2"], percent),
        "controls_top2": percent(controls["top2"].max()),
        "apart": or_dash(apart["layer"], count),
        "apart_worth": or_dash(apart["worth"], decimals(3)),
    }


# The method.


def starts() -> pd.DataFrame:
    names = {
        "random": "random weights",
        "copies, random gates": "copies, random gates (before 0.3)",
        "exact copies": "exact copies, noise 0.01",
        "exact copies, noise 0.1": "exact copies, noise 0.1",
    }
    runs = read("starts.csv").query("start in @names").groupby(["shape", "start"])
    rows = runs.agg(
        clean=("clean", "sum"), runs=("clean", "size"), fvu=("fvu", "mean"), l0=("l0", "mean")
    )
    rows["low"], rows["high"] = zip(*map(wilson, rows["clean"], rows["runs"]), strict=True)
    rows = rows.reindex(list(names), level="start").reset_index()
    return rows.assign(name=rows["start"].map(names)).sort_values("shape", kind="stable")


# Known circuits.


def known_circuits() -> pd.DataFrame:
    """A row per known circuit that ships: its shape, its circuit and how sure it is."""
    rows = []
    for name in gated_interp.known_circuits():
        circuit = gated_interp.known_circuit(name)
        record, config = circuit.record, circuit.model.program_config
        built, edges = circuit.by_construction
        mlp, norm = bool(config.d_mlp), config.normalization == "LN"
        rows.append(
            {
                "name": name,
                "says": circuit.task.rule.says,
                "shape": f"{config.n_layers} x {config.n_heads}",
                "parts": ", ".join(["MLPs"] * mlp + ["norms"] * norm) or "attention only",
                "nodes": ", ".join(circuit.nodes),
                "n_edges": len(circuit.edges),
                "built": len(built),
                "built_edges": len(edges),
                "accuracy": record.measured["accuracy"],
                "strict": record.measured.get("strict_accuracy"),
                "idle": max(record.measured["all_idle"], record.measured["largest_idle"]),
                "true": record.measured["smallest_true"],
            }
        )
    return pd.DataFrame(rows)


def known_numbers() -> dict[str, str]:
    """How many there are, the weakest of their true nodes, and how far idle nodes move them."""
    rows = known_circuits()
    return {
        "n": count(len(rows)),
        "weakest": percent(rows["true"].min()),
        "idle": percent(rows["idle"].max(), 1),
    }


def known_scores() -> pd.DataFrame:
    """A row per attribution method: its passes, and its AUROC on compiled and planted circuits."""
    runs, rows = read("known-scores.csv"), []
    for method in dict.fromkeys(runs["method"]):
        mine = runs[runs["method"] == method]
        row: dict[str, object] = {"method": method, "passes": passes(mine)}
        for of in ("heads", "nodes", "edges"):
            for source in ("compiled", "planted"):
                found = mine.query("of == @of and source == @source")["auroc"]
                if len(found):
                    row[f"{of}_{source}"] = f"{found.median():.2f} ({found.min():.2f})"
        for source in ("compiled", "planted"):
            made = mine.query("of == 'edges' and source == @source")["constructed"].dropna()
            if len(made):
                row[f"made_{source}"] = f"{made.median():.2f} ({made.min():.2f})"
        rows.append(row)
    chance: dict[str, object] = {"method": "random", "passes": "0"}
    for (of, source), found in runs.groupby(["of", "source"])["random"]:
        chance[f"{of}_{source}"] = f"{found.median():.2f}"
    return pd.DataFrame([*rows, chance])


LADDERS = ("trained", "trained-again", "trained-pilot")
RUNGS = {
    "nothing": "nothing opened",
    "random": "opened at random",
    "steps_20": "20 steps",
    "steps_320": "320 steps",
    "zeroed": "layer zeroed",
    "weights": "random weights",
}


def ladder() -> pd.DataFrame:
    """A row per replacement that ships: the KL of each rung, with its interval over prompts."""
    rows = []
    for (model, layer), found in read("ladder.csv").groupby(["model", "layer"], sort=False):
        of = found.set_index("rung")
        row = {
            "model": model,
            "layer": layer,
            "n": of["sequences"].iloc[0],
            "shut": of["shut"].iloc[0],
        }
        for name, rung in RUNGS.items():
            kl, low, high = of.loc[rung, ["kl", "kl_low", "kl_high"]]
            row[name] = f"{kl:.2g} ({low:.2g} to {high:.2g})"
        rows.append(row)
    return pd.DataFrame(rows)


def shared_heads() -> pd.DataFrame:
    """A row per angle and method: how far a program is in one head, and a head in one program."""
    runs, rows = read("shared-heads.csv"), []
    for (degrees, method), found in runs.groupby(["degrees", "method"], sort=False):
        row: dict[str, object] = {"degrees": f"{degrees:g}", "method": method}
        for column in ("share", "pure"):
            low, high = mean_interval(found[column].to_numpy(float))
            ends = f"{percent(max(low, 0))} to {percent(min(high, 1))}"
            row[column] = f"{percent(found[column].mean())} ({ends})"
        row["own"] = f"{int(found['own'].sum())} of {len(found)}"
        if degrees and method != "original":
            before = runs.query("degrees == @degrees and method == 'original'").set_index("seed")
            there = before["share"].reindex(found["seed"]).to_numpy(float)
            gained = (found["share"].to_numpy(float) - there) / (1 - there)
            low, high = mean_interval(gained)
            row["gained"] = f"{percent(gained.mean())} ({percent(low)} to {percent(high)})"
        both = pd.concat([found["needed_capital"], found["needed_small"]])
        row |= {"needed": between(both), "cross": percent(found["cross"].median())}
        row |= {
            "accuracy": percent(found["accuracy"].min(), 1),
            "fvu": f"{found['fvu'].median():.2f}",
        }
        row["loss"] = f"{found[['loss_capital', 'loss_small']].mean(axis=1).median():.3f}"
        rows.append(row)
    return pd.DataFrame(rows).sort_values("degrees", key=lambda d: d.astype(float), kind="stable")


def shared_tuning() -> pd.DataFrame:
    """A row per method and setting of the search: means over its seeds."""
    runs = read("shared-heads-tuning.csv")
    runs["setting"] = [
        shared_setting(m, i) for m, i in zip(runs["method"], runs["tried"], strict=True)
    ]
    columns = ["share", "pure", "fvu"]
    return runs.groupby(["method", "setting"], sort=False)[columns].mean().reset_index()


def shared_setting(method: str, tried: int) -> str:
    """What a setting of the search changes."""
    changes = TRIED[method][1][tried] if method in TRIED else {}
    return ", ".join(f"{name}={value}" for name, value in changes.items()) or "–"


def known_heads() -> pd.DataFrame:
    """A row per kind of circuit and method: variables held, wires kept, idle heads."""
    runs, rows = read("known-heads.csv"), []
    runs["source"] = runs["circuit"].str.partition("-")[0]
    for (source, method), found in runs.groupby(["source", "method"], sort=False):
        row = {"source": source, "method": method, "layers": len(found)}
        row["held"] = f"{int(found['held'].sum())} of {int(found['told'].sum())}"
        row["kept"] = f"{int(found['kept'].sum())} of {int(found['wires'].sum())}"
        row["idle"] = percent(found["idle"].median())
        row["worst"] = percent(found["idle"].max())
        row["fvu"] = f"{found['fvu'].median():.2f}"
        row["accuracy"] = percent(found["accuracy"].min(), 1)
        rows.append(row)
    return pd.DataFrame(rows)


def against(part: str) -> pd.DataFrame:
    """The runs of a training against the adversary, with their weight and their rise."""
    runs = read(f"ladder-{part}.csv")
    weight = runs["strength"].str.partition(",")[0]
    return runs.assign(weight=weight, rise=runs["20 steps"] - runs["nothing opened"])


LADDER = {"fvu": 3, "participation": 2, "rise": 3, "nothing opened": 4, "opened at random": 4}
"""Numbers of a run, and their digits."""


def ladder_trained(part: str = "trained") -> pd.DataFrame:
    """A row per setting of a training against the adversary: means over toys, with intervals."""
    rows = []
    for strength, found in against(part).groupby("strength", sort=False):
        row = {"strength": strength, "weight": found["weight"].iloc[0]}
        row["clean"] = f"{found['clean'].sum()} of {len(found)}"
        for name, values in over_toys(found, [*LADDER]).items():
            digits = decimals(LADDER[str(name)])
            row |= {str(name): over_seeds(values, digits), f"mean_{name}": digits(values.mean())}
        row |= {"nothing": row["mean_nothing opened"], "random": row["mean_opened at random"]}
        rows.append(row)
    return pd.DataFrame(rows)


def ladder_numbers() -> dict[str, str]:
    """What training against the adversary does to the rise, the FVU and the clean rate."""
    said = {}
    for part, key in (("trained", "further"), ("trained-again", "held")):
        runs = dict(iter(against(part).set_index("seed").groupby("weight")))
        of = {weight: over_toys(found, ["fvu", "rise"]) for weight, found in runs.items()}
        said[f"{key}_n"] = count(len(runs["as trained"]))
        said[f"{key}_toys"] = count(len(of["as trained"]))
        for name, weight in (
            ("_before", "as trained"),
            ("_control", "weight 0"),
            ("", "weight 0.02"),
        ):
            said[f"{key}_fvu{name}"] = percent(of[weight]["fvu"].mean(), 1)
            said[f"{key}_clean{name}"] = count(runs[weight]["clean"].sum())
        before, after = of["as trained"], of["weight 0.02"]
        said[f"{key}_before"] = decimals(1)(before["rise"].mean())
        said[f"{key}_after"] = decimals(3)(after["rise"].mean())
    # Of the last of them, whose FVU was held.
    low, high = mean_interval((after["fvu"] - before["fvu"]).to_numpy())
    worst = (runs["weight 0.02"]["rise"] / runs["as trained"]["rise"]).max()
    return said | {
        "held_share": percent(after["rise"].mean() / before["rise"].mean(), 1),
        "held_worst": percent(worst, 1),
        "held_fvu_more": f"{100 * low:+.2f} to {100 * high:+.2f}",
    }


def known_heads_layers() -> pd.DataFrame:
    """A row per layer of a circuit: variables held and wires kept by each method."""
    runs, rows = read("known-heads.csv"), []
    for (circuit, layer), found in runs.groupby(["circuit", "layer"], sort=False):
        row: dict[str, object] = {"circuit": circuit, "layer": layer}
        for number, (_, one) in enumerate(found.iterrows()):
            what = f"{one['held']}/{one['told']}, {one['kept']}/{one['wires']}"
            if one["told"] < one["variables"]:
                what += f" ({one['variables'] - one['told']} not told apart)"
            row[f"method{number}"] = what
        rows.append(row)
    return pd.DataFrame(rows)


def passes(runs: pd.DataFrame) -> str:
    """Forward and backward passes on the circuits, from the fewest to the most."""
    heads = runs[runs["of"] == "heads"]
    cost = heads if len(heads) else runs
    said = []
    for way in ("forward", "backward"):
        low, high = cost[way].min(), cost[way].max()
        said.append(count(low) if low == high else f"{count(low)} to {count(high)}")
    return " + ".join(said)


def shared_numbers() -> dict[str, str]:
    """What blocks do where each original head does half of both programs."""
    runs, said = read("shared-heads.csv"), {}
    most = runs[runs["degrees"] == runs["degrees"].max()]
    for method, key in (("gated", ""), ("ungated + overlap", "overlap_")):
        found = most[most["method"] == method]
        said[f"{key}pure"] = percent(found["pure"].mean())
        said[f"{key}share"] = percent(found["share"].mean())
        said[f"{key}own"] = f"{int(found['own'].sum())} of {len(found)}"
    return said


def known_heads_numbers() -> dict[str, str]:
    """What gated blocks keep of known circuits, and of the layers of planted ones."""
    runs = read("known-heads.csv")
    runs["part"] = runs["layer"].map({0: "first", 1: "second"})
    runs.loc[~runs["circuit"].str.startswith("planted-"), "part"] = "compiled"

    def of(column: str, out_of: str, method: str = "gated", part: str = "") -> str:
        found = runs[(runs["method"] == method) & (runs["part"].eq(part) | (part == ""))]
        return f"{found[column].sum()} of {found[out_of].sum()}"

    fvu = runs[runs["method"] == "gated"].groupby("part")["fvu"].median()
    return {
        "layers": count(len(runs.groupby(["circuit", "layer"]))),
        "original_held": of("held", "told", "original"),
        "held": of("held", "told"),
        "kept": of("kept", "wires"),
        **{
            f"{part}_topk_kept": of("kept", "wires", "topk copies", part)
            for part in ("first", "second")
        },
        "topk_held": of("held", "told", "topk copies"),
        "topk_kept": of("kept", "wires", "topk copies"),
        **{f"{part}_held": of("held", "told", part=part) for part in ("first", "second")},
        **{f"{part}_kept": of("kept", "wires", part=part) for part in ("first", "second")},
        **{f"{part}_fvu": percent(fvu[part]) for part in ("first", "second")},
    }


NUMBERS = {
    "shared": shared_numbers(),
    "heads": known_heads_numbers(),
    "ladder": ladder_numbers(),
    "known": known_numbers(),
    "reliability": reliability(),
    "phase": phase(),
    "frontier": frontier(),
    "decompose": decompose(),
    "gated": gated_numbers(),
    "edge": edge(),
    "benchmarks": benchmarks(),
    "models": models(),
    "pretrained": pretrained(),
    "sure": {
        "sixteen": percent(wilson(16, 16)[0]),
        **{f"of16_{n}": between(wilson(n, 16), percent) for n in (0, 13, 14, 15, 16)},
        "of8_8": between(wilson(8, 8), percent),
    },
}
TABLES = {
    "controls": controls,
    "fvu-targets": fvu_targets,
    "more-trigrams": more_trigrams,
    "repeats": repeats,
    "phase-groups": phase_groups,
    "trials": trials,
    "frontier-methods": frontier_methods,
    "frontier-cells": frontier_cells,
    "frontier-costs": frontier_costs,
    "frontier-width": frontier_width,
    "decompose-layers": decompose_layers,
    "spare": spare,
    "induction": induction,
    "text-methods": text_methods,
    "gated-model": gated_model,
    "gated-shared": gated_shared,
    "benchmarks": benchmark_rows,
    "language-models": language_models,
    "starts": starts,
    "copying-layers": copying_layers,
    "copying-all": copying_all,
    "copying-controls": copying_controls,
    "copying-paths": copying_paths,
    "copying-scores": copying_scores,
    "copying-pilot": copying_pilot,
    "copying-first": copying_first,
    "austen-induction": austen_induction,
    "known-circuits": known_circuits,
    "known-scores": known_scores,
    "ladder": ladder,
    **{f"ladder-{p}": functools.partial(ladder_trained, p) for p in LADDERS},
    "shared-heads": shared_heads,
    "shared-heads-tuning": shared_tuning,
    "known-heads": known_heads,
    "known-heads-layers": known_heads_layers,
}
