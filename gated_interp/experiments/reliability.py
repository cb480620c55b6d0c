"""How often each recipe works, over seeds: the ablation table of the recommended recipe."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd

from gated_interp.core.errors import GatedInterpError
from gated_interp.core.files import write_table
from gated_interp.experiments.cells import (
    KEY,
    Cell,
    CellsConfig,
    Row,
    Runs,
    read_table,
    run_cells,
)
from gated_interp.experiments.originals import Toys
from gated_interp.experiments.recipes import Recipe, recipe_named
from gated_interp.metrics.intervals import clustered, paired_difference
from gated_interp.plots import reliability, save_figures

SHAPES = ((2, 3), (3, 4), (4, 5), (6, 8), (8, 12))
STEM = "reliability"


def _reliable(heads: int, trigrams: int) -> Recipe:
    return recipe_named("reliable", heads, trigrams)


def _changed(**changes: object) -> Callable[[int, int], Recipe]:
    """The reliable recipe with something changed."""
    return lambda heads, trigrams: _reliable(heads, trigrams).replace(**changes)


# What each part gives: controls that could refute it.
CONTROLS: dict[str, Callable[[int, int], Recipe]] = {
    "no gate penalty": _changed(alpha=0.0),
    "gates fixed open": _changed(gate="open", alpha=0.0),
    "no overlap penalty": _changed(overlap=0.0),
    "neither penalty": _changed(alpha=0.0, overlap=0.0),
    "with value bias": _changed(value_bias=True),
}
OTHERS: dict[str, Callable[[int, int], Recipe]] = {
    "2x heads": _changed(expansion=2),
    "all pairs": _changed(penalty_pairs="all"),
    "binary gates": _changed(gate="binary"),
    "reference": lambda heads, trigrams: recipe_named("reference", heads, trigrams),
}
FVU_TARGETS = (0.003, 0.007, 0.012, 0.02, 0.03, 0.05, 0.1)
FRONTIER: dict[str, Callable[[int, int], Recipe]] = {
    f"FVU target {target:g}": _changed(fvu_target=target) for target in FVU_TARGETS
}
GROUPS = {"controls": CONTROLS, "frontier": FRONTIER}
VARIANTS: dict[str, Callable[[int, int], Recipe]] = {
    "reliable": _reliable,
    **CONTROLS,
    **OTHERS,
    **FRONTIER,
}
DEFAULT = ("reliable", *CONTROLS)


def run_reliability(
    out: Path | str,
    *,
    seeds: int = 64,
    first_seed: int = 7000,
    shapes: Sequence[tuple[int, int]] = SHAPES,
    variants: Sequence[str] = DEFAULT,
    steps: int | None = None,
    reference_steps: int | None = None,
    toy_steps: int | None = None,
    workers: int | str | None = None,
    say: Callable[[str], None] = lambda _: None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> pd.DataFrame:
    """One row of ``out/reliability.csv`` for each shape and recipe; see :func:`summary`.

    A row is written when it is done; started again with the same seeds and steps, rows that are
    there are kept.

    Args:
        out: run folder.
        seeds: gated runs per row; seed ``s`` gives a toy, its data, a block and its data.
        shapes: (toy heads, trigrams).
        variants: of ``VARIANTS``.
        steps: of the gated training, instead of the recipes' own; not for ``reference``.
        reference_steps: the same for ``reference``, which has 100,000.
        toy_steps: of the toys' training, instead of the recipes'.
        workers, say, on_progress: see :func:`run_cells`.

    Returns:
        The whole table.

    Raises:
        GatedInterpError: an unknown variant, no cell, or a folder that holds something else.
    """
    unknown = [v for v in variants if v not in VARIANTS]
    if unknown:
        raise GatedInterpError(
            f"there is no recipe {unknown[0]!r}; there are {', '.join(VARIANTS)}."
        )
    config = CellsConfig(seeds=seeds, first_seed=first_seed, toy_steps=toy_steps)
    cells = []
    for variant in variants:
        given = reference_steps if variant == "reference" else steps
        for heads, trigrams in shapes:
            recipe = VARIANTS[variant](heads, trigrams)
            recipe = recipe if given is None else recipe.replace(steps=given)
            cells.append(Cell(variant, Toys(heads, trigrams), recipe))
    table = run_cells(
        out, STEM, cells, config, summary, workers=workers, say=say, on_progress=on_progress
    )
    table = with_differences(table, read_table(Path(out) / f"{STEM}-runs.csv", KEY))
    write_table(table, Path(out) / f"{STEM}.csv")
    return table


def selected(only: Sequence[str]) -> tuple[list[tuple[int, int]], list[str]]:
    """The shapes and variants that ``only`` names, groups of variants being ``controls`` and
    ``frontier``; of a kind that it does not name, all shapes, or the recipe and its controls.

    Raises:
        GatedInterpError: a name of neither.

    Examples:
        >>> selected(["2H3ST", "all pairs"])
        ([(2, 3)], ['all pairs'])
    """
    shapes = {f"{heads}H{trigrams}ST": (heads, trigrams) for heads, trigrams in SHAPES}
    unknown = [name for name in only if name not in shapes | GROUPS | VARIANTS]
    if unknown:
        raise GatedInterpError(
            f"there is no shape or recipe {unknown[0]!r}; there are "
            f"{', '.join([*shapes, *GROUPS, *VARIANTS])}."
        )
    wanted_shapes = [shapes[name] for name in only if name in shapes]
    wanted = [each for name in only for each in GROUPS.get(name, [name]) if each in VARIANTS]
    return wanted_shapes or list(SHAPES), list(dict.fromkeys(wanted)) or list(DEFAULT)


MEDIANS = (
    "fvu",
    "l0",
    "kl",
    "purity",
    "open_there",
    "fvu_without_holders",
    "kl_without_holders",
    "accuracy_without_holders",
    "fvu_only_holders",
    "kl_only_holders",
    "accuracy_only_holders",
    "heads_left",
)


def summary(runs: Runs) -> Row:
    """A row of the table.

    - ``runs``: gated runs; 0 where no toy learnt.
    - ``toys_trained``, ``toys_learnt`` (every trigram), ``toys_firm`` (of those, with a lead to
      spare), ``toys_distributed`` (with a trigram that has no sole owner), ``toys_clean``,
      ``toys_used`` (different toys gated blocks stand in for).
    - ``clean``: runs in which every trigram is held by exactly one head of its own; ``low`` and
      ``high`` are the ends of the 95% interval of their fraction, runs on one toy counting as one
      cluster (:mod:`~gated_interp.metrics.intervals`).
    - ``successes``: runs with every trigram learnt and none distributed, the post's success;
      ``success_low``, ``success_high`` its interval; ``exactly_one``: successes in which each
      trigram has exactly one sole owner.
    - ``fvu``, ``l0``, ``kl`` and what is said of holders (:class:`GatedOutcome`): medians on
      held-out sequences; ``fvu_low``, ``fvu_high``: quartiles.
    - ``heads_left``: median after the heads that never open are pruned; ``pruned_clean``;
      ``pruned_bound``: the furthest that pruning can move an output.
    - ``seconds``: of one process.
    """
    toys, gated = runs.toys, runs.gated
    learnt = toys["learnt_all"]
    row: Row = {
        "runs": len(gated),
        "toys_trained": len(toys),
        "toys_learnt": int(learnt.sum()),
        "toys_firm": int(toys["firm"].sum()),
        "toys_distributed": int((learnt & (toys["distributed"] > 0)).sum()),
        "toys_clean": int(toys["clean"].sum()),
        "toys_used": 0,
    }
    for count, ends in (("clean", ""), ("successes", "success_")):
        row |= {count: 0, f"{ends}low": math.nan, f"{ends}high": math.nan}
    row |= {"exactly_one": 0, **dict.fromkeys(MEDIANS, math.nan)}
    row |= {"fvu_low": math.nan, "fvu_high": math.nan}
    row |= {"pruned_clean": 0, "pruned_bound": math.nan, "seconds": runs.seconds}
    if gated.empty:
        return row
    row["toys_used"] = int(gated["toy_seed"].nunique())
    toys_of_runs = gated["toy_seed"].tolist()
    for column, count, ends in (("clean", "clean", ""), ("success", "successes", "success_")):
        row[count] = int(gated[column].sum())
        row[f"{ends}low"], row[f"{ends}high"] = clustered(gated[column].tolist(), toys_of_runs)
    row["exactly_one"] = int(gated["exactly_one"].sum())
    row |= {name: float(gated[name].median()) for name in MEDIANS}
    row["fvu_low"], row["fvu_high"] = (float(gated["fvu"].quantile(q)) for q in (0.25, 0.75))
    row["pruned_clean"] = int(gated["pruned_clean"].sum())
    row["pruned_bound"] = float(gated["pruned_bound"].max())
    return row


def with_differences(table: pd.DataFrame, runs: pd.DataFrame) -> pd.DataFrame:
    """``table`` with the change of the clean rate against ``reliable`` on the same toys and seeds.

    Columns ``change``, ``change_low``, ``change_high`` (-1 to 1, 95%, see
    :func:`~gated_interp.metrics.intervals.paired_difference`); missing where that recipe has
    no runs on the same toys.

    Args:
        runs: ``reliability-runs.csv``.
    """
    ends: list[tuple[float, float, float]] = []
    for row in table.to_dict("records"):
        mine, base = (
            runs[(runs["experiment"] == row["experiment"]) & (runs["recipe"] == recipe)]
            for recipe in (row["recipe"], "reliable")
        )
        pairs = mine.merge(base, on=["seed", "toy_seed"], suffixes=("", "_base"))
        if row["recipe"] == "reliable" or pairs.empty:
            ends.append((math.nan,) * 3)
        else:
            ends.append(
                paired_difference(*(pairs[c].tolist() for c in ("clean", "clean_base", "toy_seed")))
            )
    return table.assign(**dict(zip(CHANGE, zip(*ends, strict=True), strict=True)))


CHANGE = ("change", "change_low", "change_high")


def in_order(table: pd.DataFrame) -> pd.DataFrame:
    """Rows by shape, recipes in the order of ``VARIANTS``."""
    place = {name: i for i, name in enumerate(VARIANTS)}
    keyed = table.assign(place=table["recipe"].map(place))
    return keyed.sort_values(["heads", "trigrams", "place"], kind="stable").drop(columns="place")


def markdown(table: pd.DataFrame) -> str:
    """The table as the README has it, in Markdown."""
    head = ["toy", "recipe", "heads", "clean", "95% interval", "change to reliable",
            "post's success", "median FVU", "KL", "L0", "purity"]  # fmt: skip
    lines = [head, ["---"] * len(head)]
    for r in in_order(table).to_dict("records"):
        start = [r["experiment"], r["recipe"], f"{r['gated_heads']}"]
        if not r["runs"]:
            lines.append([*start, "no toy learnt", *["-"] * 7])
            continue
        change = "-"
        if not math.isnan(r.get("change", math.nan)):
            change = f"{100 * r['change']:+.0f} points ({100 * r['change_low']:+.0f} to "
            change += f"{100 * r['change_high']:+.0f})"
        lines.append(
            [
                *start,
                f"{r['clean']} of {r['runs']}",
                f"{r['low']:.0%} to {r['high']:.0%}",
                change,
                f"{r['successes']} of {r['runs']}",
                *(_number(r[name], places) for name, places in SHOWN.items()),
            ]
        )
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


SHOWN = {"fvu": ".3g", "kl": ".2g", "l0": ".2f", "purity": ".2f"}


def _number(value: float, places: str) -> str:
    return "-" if math.isnan(value) else format(value, places)


def draw_reliability(
    csv: Path | str,
    out: Path | str,
    formats: Sequence[str] = ("svg", "png"),
    *,
    say: Callable[[str], object] | None = None,
) -> list[Path]:
    """Draw ``reliability.csv`` to ``out/recipes.*``, with the rows it was drawn from.

    Raises:
        GatedInterpError: not such a table, no row with runs, or a format that does not exist.
    """
    wanted = ["experiment", "recipe", "heads", "trigrams", "runs", "clean", "fvu_high"]
    table = in_order(read_table(csv, wanted))
    drawn = table[table["runs"] > 0]
    title = "Clean runs over seeds, by recipe"
    figure = reliability(drawn, target=0.95, title=title)
    return save_figures({Path(out) / "recipes": (figure, drawn)}, formats, say=say)
