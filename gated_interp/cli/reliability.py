"""How often it works: ``reliability`` (recipes over seeds) and ``phase`` (shapes over seeds)."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from gated_interp.cli.console import progress, say, show, tell
from gated_interp.cli.options import (
    DRAWN,
    Figures,
    FirstSeed,
    Formats,
    Positive,
    Steps,
    ToySteps,
    Workers,
    drawn_in,
    whole_numbers,
)


def reliability(
    *,
    seeds: Positive = 64,
    first_seed: FirstSeed = 7000,
    only: list[str] | None = None,
    out: Path = Path("runs/reliability"),
    figures: Figures = None,
    steps: Steps = None,
    reference_steps: Positive | None = None,
    toy_steps: ToySteps = None,
    workers: Workers = None,
    formats: Formats = DRAWN,
) -> None:
    """Measure over many seeds how often each recipe gives a clean run.

    In a clean run each skip trigram is held by exactly one head of its own. Compares the
    recommended recipe with controls, each without a part of it, with other FVU targets ('frontier')
    and with the post's recipe ('reference'). A row of the table is written when it is done. Run the
    same command again to resume an interrupted run.

    Args:
        seeds: Train this many gated blocks of each shape and recipe.
        only: Run only this shape (as 2H3ST), recipe (as 'all pairs'), 'controls' or 'frontier'.
            Repeat the option for several. Default: all shapes, the recipe and its controls.
        out: Write the tables to this folder.
        reference_steps: Train the reference recipe for this many steps instead of 100,000.
    """
    kinds, folder = list(formats), drawn_in(out, figures)
    from gated_interp.core.files import write_text
    from gated_interp.experiments.reliability import (
        RELIABILITY,
        in_order,
        markdown,
        run_reliability,
        selected,
    )

    shapes, variants = selected(only or [])
    with progress("training", "batches of seeds") as update:
        table = run_reliability(
            out,
            seeds=seeds,
            first_seed=first_seed,
            shapes=shapes,
            variants=variants,
            steps=steps,
            reference_steps=reference_steps,
            toy_steps=toy_steps,
            workers=workers,
            say=tell,
            on_progress=update,
        )
    page = write_text(out / "reliability.md", markdown(table))
    columns = ["experiment", "recipe", "gated_heads", "clean", "runs", "low", "high", "change"]
    columns += ["successes", "fvu", "kl", "l0", "purity"]
    show(f"{seeds} seeds each", columns, in_order(table)[columns].to_numpy().tolist())
    if (table["runs"] > 0).any():
        with progress("drawing"):
            RELIABILITY.draw(out / "reliability.csv", folder, kinds, say=tell)
        say(f"The figure is in {folder}, the table as Markdown in {page}.")
    else:
        say(f"No toy learnt its task, so nothing was drawn; the table is in {page}.")


def phase(
    *,
    heads: str = "1:8",
    trigrams: str = "1:12",
    seeds: Positive = 8,
    first_seed: FirstSeed = 10_000,
    out: Path = Path("runs/phase"),
    figures: Figures = None,
    steps: Steps = None,
    toy_steps: ToySteps = None,
    workers: Workers = None,
    formats: Formats = DRAWN,
) -> None:
    """Measure with how many heads and skip trigrams toys learn, and gated blocks are clean.

    For each cell of the grid: how many toys learn every skip trigram, in how many some trigram is
    distributed over heads, and how many gated blocks are clean. A cell is written when it is done.
    Run the same command again to resume an interrupted run.

    Args:
        heads: Train toys with these numbers of heads, a range such as 2:4 or a list such as 2,3.
        trigrams: Train toys on these numbers of skip trigrams, a range or a list.
        seeds: Train this many toys, and gated blocks, in each cell.
        out: Write the tables to this folder.
    """
    kinds, folder = list(formats), drawn_in(out, figures)
    wanted_heads = whole_numbers(heads, "--heads")
    wanted_trigrams = whole_numbers(trigrams, "--trigrams")
    from gated_interp.experiments.phase import PHASE, run_phase

    with progress("training", "cells") as update:
        table = run_phase(
            out,
            heads=wanted_heads,
            trigrams=wanted_trigrams,
            seeds=seeds,
            first_seed=first_seed,
            steps=steps,
            toy_steps=toy_steps,
            workers=workers,
            say=tell,
            on_progress=update,
        )
    columns = ["heads", "trigrams", "toys_trained", "toys_learnt", "toys_distributed"]
    columns += ["runs", "clean", "successes", "fvu"]
    rows = table.sort_values(["heads", "trigrams"])[columns].astype(object)
    show(f"{seeds} seeds each", columns, rows.to_numpy().tolist())
    with progress("drawing"):
        PHASE.draw(out / "phase.csv", folder, kinds, say=tell)
    say(f"The figure is in {folder}, its table is in {out / 'phase.csv'}.")


def repeats(
    *,
    only: list[str] | None = None,
    count: Annotated[Positive, Parameter(name="--repeats")] = 20,
    seeds: Positive = 64,
    out: Path = Path("runs/repeats"),
    steps: Steps = None,
    toy_steps: ToySteps = None,
    workers: Workers = None,
) -> None:
    """Repeat the main experiment with initial weights disturbed by a millionth.

    Like another processor's rounding, this may change which run `reproduce` shows, and whether it
    is clean. A row is written when it is done. Run the same command again to resume an interrupted
    run. The exit code is 1 if a run to show is not clean.

    Args:
        only: Repeat only this experiment (as 2H3ST). Repeat the option for several. Default: the
            three published ones.
        count: Repeat each experiment this many times.
        seeds: Train this many blocks in each repeat.
        out: Write the tables to this folder.
    """
    from gated_interp.core.errors import GatedInterpError
    from gated_interp.experiments.paper import PUBLISHED
    from gated_interp.experiments.repeats import run_repeats

    with progress("training", "batches of seeds") as update:
        table = run_repeats(
            out,
            only=only or list(PUBLISHED),
            repeats=count,
            seeds=seeds,
            steps=steps,
            toy_steps=toy_steps,
            workers=workers,
            say=tell,
            on_progress=update,
        )
    columns = ["experiment", "recipe", "clean", "runs", "shown_seed", "shown_clean", "shown_fvu"]
    table = table.reindex(columns=columns)  # where no toy learnt, nothing is shown
    show(f"{seeds} seeds each", columns, table.astype(object).to_numpy().tolist())
    clean = int((table["shown_clean"] == True).sum())  # noqa: E712  (missing where no toy learnt)
    if clean < len(table):
        raise GatedInterpError("repeats-not-clean", clean=clean, n=len(table))
    say(f"The shown run is clean in all {clean} repeats; the table is in {out / 'repeats.csv'}.")
