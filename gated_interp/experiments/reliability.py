"""How often each recipe works, over seeds: the ablation table of the recommended recipe."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd

from gated_interp.core.errors import GatedInterpError
from gated_interp.experiments.cells import Cell, CellsConfig, Row, Runs, read_table, run_cells
from gated_interp.experiments.intervals import wilson
from gated_interp.experiments.recipes import Recipe, recipe_named
from gated_interp.plots import reliability, save_figures

SHAPES = ((2, 3), (3, 4), (4, 5), (6, 8), (8, 12))
STEM = "reliability"
NOT_A_NUMBER = float("nan")


def _reliable(heads: int, trigrams: int) -> Recipe:
    return recipe_named("reliable", heads, trigrams)


def _changed(**changes: object) -> Callable[[int, int], Recipe]:
    """The reliable recipe with something changed."""
    return lambda heads, trigrams: _reliable(heads, trigrams).replace(**changes)


# The prototype's: the gate penalty alone, at one fixed weight.
PROTOTYPE = {"overlap": 0.0, "alpha": 0.2, "alpha_unit": "absolute", "fvu_target": None}

VARIANTS: dict[str, Callable[[int, int], Recipe]] = {
    "reliable": _reliable,
    "with value bias": _changed(value_bias=True),
    "all pairs": _changed(penalty_pairs="all"),
    "fixed weights instead of an FVU target": _changed(fvu_target=None),
    "overlap of power 1": _changed(overlap_power=1.0),
    "fewer open gates, higher FVU": _changed(fvu_target=0.0185, overlap=0.2, alpha=0.01),
    "no overlap penalty": _changed(**PROTOTYPE),
    "2x heads": _changed(expansion=2),
    "binary gates": _changed(gate="binary"),
    "reference": lambda heads, trigrams: recipe_named("reference", heads, trigrams),
}


def run_reliability(
    out: Path | str,
    *,
    seeds: int = 64,
    first_seed: int = 7000,
    shapes: Sequence[tuple[int, int]] = SHAPES,
    variants: Sequence[str] = tuple(VARIANTS),
    steps: int | None = None,
    reference_steps: int | None = None,
    toy_steps: int | None = None,
    workers: int | None = None,
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
            cells.append(Cell(variant, heads, trigrams, recipe))
    return run_cells(
        out, STEM, cells, config, summary, workers=workers, say=say, on_progress=on_progress
    )


def selected(only: Sequence[str]) -> tuple[list[tuple[int, int]], list[str]]:
    """The shapes and variants that ``only`` names; of a kind that it does not name, all.

    Raises:
        GatedInterpError: a name of neither.

    Examples:
        >>> selected(["2H3ST", "all pairs"])
        ([(2, 3)], ['all pairs'])
    """
    shapes = {f"{heads}H{trigrams}ST": (heads, trigrams) for heads, trigrams in SHAPES}
    unknown = [name for name in only if name not in shapes and name not in VARIANTS]
    if unknown:
        raise GatedInterpError(
            f"there is no shape or recipe {unknown[0]!r}; there are "
            f"{', '.join([*shapes, *VARIANTS])}."
        )
    wanted_shapes = [shapes[name] for name in only if name in shapes]
    wanted_variants = [name for name in only if name in VARIANTS]
    return wanted_shapes or list(SHAPES), wanted_variants or list(VARIANTS)


def summary(runs: Runs) -> Row:
    """A row of the table.

    - ``runs``: gated runs; 0 where no toy learnt.
    - ``toys_trained``, ``toys_learnt`` (every trigram), ``toys_distributed`` (of those, with a
      trigram that no single head holds), ``toy_seeds_used`` (different toys gated blocks stand
      in for).
    - ``successes``: runs with every trigram learnt and none distributed; ``low`` and ``high`` are
      the ends of the 95% Wilson interval of their fraction; ``exactly_one``: successes in which
      each trigram has exactly one sole owner.
    - ``fvu``, ``l0``, ``kl``: medians on held-out sequences; ``fvu_low``, ``fvu_high``: quartiles.
    - ``heads_left``: median after the heads that never open are pruned; ``pruned_successes``;
      ``pruned_bound``: the furthest that pruning can move an output.
    - ``seconds``: of one process.
    """
    toys, gated = runs.toys, runs.gated
    learnt = toys["learnt_all"]
    row: Row = {
        "runs": len(gated),
        "toys_trained": len(toys),
        "toys_learnt": int(learnt.sum()),
        "toys_distributed": int((learnt & (toys["distributed"] > 0)).sum()),
        "toy_seeds_used": 0,
        "successes": 0,
        "low": NOT_A_NUMBER,
        "high": NOT_A_NUMBER,
        "exactly_one": 0,
    }
    numbers = ("fvu", "fvu_low", "fvu_high", "l0", "kl", "heads_left")
    row |= dict.fromkeys(numbers, NOT_A_NUMBER)
    row |= {"pruned_successes": 0, "pruned_bound": NOT_A_NUMBER, "seconds": runs.seconds}
    if gated.empty:
        return row
    row["toy_seeds_used"] = int(gated["toy_seed"].nunique())
    row["successes"] = int(gated["success"].sum())
    row["low"], row["high"] = wilson(row["successes"], len(gated))
    row["exactly_one"] = int(gated["exactly_one"].sum())
    for name in ("fvu", "l0", "kl", "heads_left"):
        row[name] = float(gated[name].median())
    row["fvu_low"], row["fvu_high"] = (float(gated["fvu"].quantile(q)) for q in (0.25, 0.75))
    row["pruned_successes"] = int(gated["pruned_success"].sum())
    row["pruned_bound"] = float(gated["pruned_bound"].max())
    return row


def in_order(table: pd.DataFrame) -> pd.DataFrame:
    """Rows by shape, recipes in the order of ``VARIANTS``."""
    place = {name: i for i, name in enumerate(VARIANTS)}
    keyed = table.assign(place=table["recipe"].map(place))
    return keyed.sort_values(["heads", "trigrams", "place"], kind="stable").drop(columns="place")


def markdown(table: pd.DataFrame) -> str:
    """The table as the README has it, in Markdown."""
    head = ["toy", "recipe", "heads", "success", "95% interval", "exactly one owner", "median FVU",
            "L0", "heads left"]  # fmt: skip
    lines = [head, ["---"] * len(head)]
    for r in in_order(table).to_dict("records"):
        if not r["runs"]:
            lines.append([r["experiment"], r["recipe"], f"{r['gated_heads']}", "no toy learnt",
                          *["-"] * 5])  # fmt: skip
            continue
        lines.append(
            [
                r["experiment"],
                r["recipe"],
                f"{r['gated_heads']}",
                f"{r['successes']} of {r['runs']}",
                f"{r['low']:.0%} to {r['high']:.0%}",
                f"{r['exactly_one']} of {r['runs']}",
                "-" if math.isnan(r["fvu"]) else f"{r['fvu']:.3g}",
                f"{r['l0']:.2f}",
                f"{r['heads_left']:g}",
            ]
        )
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


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
    wanted = ["experiment", "recipe", "heads", "trigrams", "runs", "successes", "fvu_high"]
    table = in_order(read_table(csv, wanted))
    drawn = table[table["runs"] > 0]
    title = "Success over seeds, by recipe"
    figure = reliability(drawn, target=0.95, title=title)
    return save_figures({Path(out) / "recipes": (figure, drawn)}, formats, say=say)
