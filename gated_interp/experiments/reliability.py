"""How often each recipe works, over seeds: the ablation table of the recommended recipe."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Unpack

import pandas as pd

from gated_interp.core.errors import GatedInterpError
from gated_interp.core.written import interval
from gated_interp.experiments.originals import Toys
from gated_interp.experiments.recipes import Recipe, recipe_named
from gated_interp.experiments.seeds import OF_HOLDERS
from gated_interp.experiments.study import Cell, CellRow, HowMany, Runs, Study, named
from gated_interp.metrics.intervals import clustered, paired_difference
from gated_interp.plots import reliability
from gated_interp.views.shown import Shown

SHAPES = ((2, 3), (3, 4), (4, 5), (6, 8), (8, 12))


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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rates(CellRow):
    """How often a recipe works on toys of one shape.

    Attributes:
        toys_trained, toys_learnt (every trigram), toys_firm (of those, with a lead to spare),
            toys_distributed (of those that learnt, with a trigram that has no sole owner),
            toys_clean, toys_used (different toys that gated blocks replace): counts of toys.
        clean: runs in which every trigram is held by exactly one head of its own; ``low`` and
            ``high`` are the ends of the 95% interval of their fraction, runs on one toy counting as
            one cluster (:mod:`~gated_interp.metrics.intervals`).
        successes: runs with every trigram learnt and none distributed, the post's success;
            ``success_low``, ``success_high`` are its interval.
        exactly_one: successes in which each trigram has exactly one sole owner.
        fvu, l0, kl (nats) and what is said of holders (:class:`GatedOutcome`): medians on held-out
            sequences; ``fvu_low``, ``fvu_high`` are quartiles.
        heads_left: median after the heads that never open are pruned.
        pruned_clean: runs that are clean without these heads.
        pruned_bound: the furthest that pruning can move an output.
        seconds: of one process.
    """

    toys_trained: int
    toys_learnt: int
    toys_firm: int
    toys_distributed: int
    toys_clean: int
    toys_used: int = 0
    clean: int = 0
    low: float = math.nan
    high: float = math.nan
    successes: int = 0
    success_low: float = math.nan
    success_high: float = math.nan
    exactly_one: int = 0
    fvu: float = math.nan
    l0: float = math.nan
    kl: float = math.nan
    purity: float = math.nan
    open_there: float = math.nan
    fvu_without_holders: float = math.nan
    kl_without_holders: float = math.nan
    accuracy_without_holders: float = math.nan
    fvu_only_holders: float = math.nan
    kl_only_holders: float = math.nan
    accuracy_only_holders: float = math.nan
    heads_left: float = math.nan
    fvu_low: float = math.nan
    fvu_high: float = math.nan
    pruned_clean: int = 0
    pruned_bound: float = math.nan
    seconds: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReliabilityRow(Rates):
    """A shape of toys and a recipe.

    Attributes:
        change: of the clean rate against ``reliable`` on the same toys and seeds, -1 to 1, with
            the ends of its 95% interval
            (:func:`~gated_interp.metrics.intervals.paired_difference`); missing where that recipe
            has no runs on the same toys.
    """

    change: float = math.nan
    change_low: float = math.nan
    change_high: float = math.nan


MEDIANS = ("fvu", "l0", "kl", *OF_HOLDERS, "heads_left")


def rates(cell: Cell, runs: Runs) -> dict[str, Any]:
    """The values of :class:`Rates`."""
    toys, gated = runs.toys, runs.gated
    learnt = toys["learnt_all"]
    row = named(cell, runs) | {
        "toys_trained": len(toys),
        "toys_learnt": int(learnt.sum()),
        "toys_firm": int(toys["firm"].sum()),
        "toys_distributed": int((learnt & (toys["distributed"] > 0)).sum()),
        "toys_clean": int(toys["clean"].sum()),
        "seconds": runs.seconds,
    }
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


def with_differences(rows: Sequence[ReliabilityRow], runs: pd.DataFrame) -> list[ReliabilityRow]:
    """``rows`` with the change of the clean rate against ``reliable``.

    Args:
        runs: ``reliability-runs.csv``.
    """

    def change(row: ReliabilityRow) -> tuple[float, float, float]:
        mine, base = (
            runs[(runs["experiment"] == row.experiment) & (runs["recipe"] == recipe)]
            for recipe in (row.recipe, "reliable")
        )
        pairs = mine.merge(base, on=["seed", "toy_seed"], suffixes=("", "_base"))
        if row.recipe == "reliable" or pairs.empty:
            return (math.nan,) * 3
        clean, base_clean, toys = (pairs[c].tolist() for c in ("clean", "clean_base", "toy_seed"))
        return paired_difference(clean, base_clean, toys)

    found = [(row, change(row)) for row in rows]
    return [
        dataclasses.replace(row, change=moved, change_low=low, change_high=high)
        for row, (moved, low, high) in found
    ]


def _views(table: pd.DataFrame) -> list[Shown]:
    table = in_order(table)
    drawn = table[table["runs"] > 0]
    title = "Clean runs over seeds, by recipe"
    words = "A run is clean when each trigram is held by exactly one head of its own."
    draw = partial(reliability, drawn, target=0.95, title=title)
    return [Shown("recipes", title, words, drawn, draw)]


RELIABILITY = Study(
    name="reliability",
    row=ReliabilityRow,
    summary=lambda cell, runs: ReliabilityRow(**rates(cell, runs)),
    finished=with_differences,
    views=_views,
    needs=("experiment", "recipe", "heads", "trigrams", "runs", "clean", "fvu_high"),
    seeds=64,
    first_seed=7000,
)


def run_reliability(
    out: Path | str,
    *,
    shapes: Sequence[tuple[int, int]] = SHAPES,
    variants: Sequence[str] = DEFAULT,
    steps: int | None = None,
    reference_steps: int | None = None,
    **how: Unpack[HowMany],
) -> pd.DataFrame:
    """One :class:`ReliabilityRow` of ``out/reliability.csv`` for each shape and recipe.

    Args:
        shapes: (toy heads, trigrams).
        variants: of ``VARIANTS``.
        steps: of the gated training, instead of the recipes' own; not for ``reference``.
        reference_steps: the same for ``reference``, which has 100,000.
        how: see :meth:`~gated_interp.experiments.study.Study.run`, which says the rest.

    Raises:
        GatedInterpError: an unknown variant, or as ``Study.run``.
    """
    unknown = [v for v in variants if v not in VARIANTS]
    if unknown:
        raise GatedInterpError("unknown-name", what="recipe", name=unknown[0], choices=[*VARIANTS])
    cells = []
    for variant in variants:
        given = reference_steps if variant == "reference" else steps
        for heads, trigrams in shapes:
            recipe = VARIANTS[variant](heads, trigrams)
            recipe = recipe if given is None else recipe.replace(steps=given)
            cells.append(Cell(variant, Toys(heads, trigrams), recipe))
    return RELIABILITY.run(out, cells, **how)


def selected(only: Sequence[str]) -> tuple[list[tuple[int, int]], list[str]]:
    """The shapes and variants that ``only`` names, groups of variants being ``controls`` and
    ``frontier``; of a kind that it does not name, all shapes, or the recipe and its controls.

    Examples:
        >>> selected(["2H3ST", "all pairs"])
        ([(2, 3)], ['all pairs'])
    """
    shapes = {f"{heads}H{trigrams}ST": (heads, trigrams) for heads, trigrams in SHAPES}
    unknown = [name for name in only if name not in shapes | GROUPS | VARIANTS]
    if unknown:
        raise GatedInterpError(
            "unknown-name",
            what="shape or recipe",
            name=unknown[0],
            choices=[*shapes, *GROUPS, *VARIANTS],
        )
    wanted_shapes = [shapes[name] for name in only if name in shapes]
    wanted = [each for name in only for each in GROUPS.get(name, [name]) if each in VARIANTS]
    return wanted_shapes or list(SHAPES), list(dict.fromkeys(wanted)) or list(DEFAULT)


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
                interval(r["low"], r["high"]),
                change,
                f"{r['successes']} of {r['runs']}",
                *(_number(r[name], places) for name, places in SHOWN.items()),
            ]
        )
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


SHOWN = {"fvu": ".3g", "kl": ".2g", "l0": ".2f", "purity": ".2f"}


def _number(value: float, places: str) -> str:
    return "-" if math.isnan(value) else format(value, places)
