"""How often it works: ``reliability`` (recipes over seeds) and ``phase`` (shapes over seeds)."""

from pathlib import Path
from typing import Annotated

import typer

from gated_interp.cli.console import progress, say, show, tell
from gated_interp.cli.options import Figures, Formats, Workers, drawn_in, formats_of, whole_numbers

OUT = {"reliability": Path("runs/reliability"), "phase": Path("runs/phase")}

FirstSeed = Annotated[int, typer.Option(min=0, help="Seeds count up from here.")]
Steps = Annotated[
    int | None, typer.Option(min=1, help="Steps of the gated training; the recipe's if absent.")
]
ToySteps = Annotated[
    int | None, typer.Option(min=1, help="Steps of the toys' training; the recipe's if absent.")
]


def reliability(
    seeds: Annotated[int, typer.Option(min=1, help="Gated runs of each shape and recipe.")] = 64,
    first_seed: FirstSeed = 7000,
    only: Annotated[
        list[str] | None,
        typer.Option(
            help="A shape (as 2H3ST), a recipe (as 'all pairs'), 'controls' or 'frontier'; give it "
            "again for more. All shapes, or the recipe and its controls, where none is named."
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="Run folder.")] = OUT["reliability"],
    figures: Figures = None,
    steps: Steps = None,
    reference_steps: Annotated[
        int | None, typer.Option(min=1, help="Steps of the reference recipe instead of 100,000.")
    ] = None,
    toy_steps: ToySteps = None,
    workers: Workers = None,
    formats: Formats = "svg,png",
) -> None:
    """Say how often each recipe gives a clean run, over seeds.

    The recommended recipe, the controls that could refute it, over FVU targets ('frontier'), and
    the post's ('reference'). A row of the table is written when it is done; interrupted and given
    again, the command goes on.
    """
    kinds, folder = formats_of(formats), drawn_in(out, figures)
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
        with progress("drawing", "") as _:
            RELIABILITY.draw(out / "reliability.csv", folder, kinds, say=tell)
        say(f"The table is in {out}, as Markdown in {page}; its figure is in {folder}.")
    else:
        say(f"No toy learnt its task, so nothing was drawn; the table is in {out}.")


def phase(
    heads: Annotated[str, typer.Option(help="Heads of the toys: a range or a list.")] = "1:8",
    trigrams: Annotated[str, typer.Option(help="Trigrams: a range or a list.")] = "1:12",
    seeds: Annotated[int, typer.Option(min=1, help="Toys, and gated runs, of each cell.")] = 8,
    first_seed: FirstSeed = 10_000,
    out: Annotated[Path, typer.Option(help="Run folder.")] = OUT["phase"],
    figures: Figures = None,
    steps: Steps = None,
    toy_steps: ToySteps = None,
    workers: Workers = None,
    formats: Formats = "svg,png",
) -> None:
    """Draw where toys learn, where that is distributed, and where gating undoes it.

    Heads by trigrams. A cell is written when it is done; interrupted and given again, the command
    goes on.
    """
    kinds, folder = formats_of(formats), drawn_in(out, figures)
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
    with progress("drawing", "") as _:
        PHASE.draw(out / "phase.csv", folder, kinds, say=tell)
    say(f"The table is in {out}, its figure in {folder}.")


def repeats(
    only: Annotated[
        list[str] | None,
        typer.Option(help="An experiment (as 2H3ST); give it again for more. Three if absent."),
    ] = None,
    count: Annotated[int, typer.Option("--repeats", min=1, help="Of each experiment.")] = 20,
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each repeat.")] = 64,
    out: Annotated[Path, typer.Option(help="Run folder.")] = Path("runs/repeats"),
    steps: Steps = None,
    toy_steps: ToySteps = None,
    workers: Workers = None,
) -> None:
    """Repeat the main job, initial weights disturbed by a millionth: is the shown run clean?

    What another processor's rounding does to which run is shown. A row is written when it is done;
    interrupted and given again, the command goes on. Exits with 1 where a shown run is not clean.
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
        raise GatedInterpError(f"the shown run is clean in {clean} of {len(table)} repeats only.")
    say(f"The shown run is clean in all {clean} repeats; the table is in {out}.")


COMMANDS = {"reliability": reliability, "phase": phase, "repeats": repeats}
