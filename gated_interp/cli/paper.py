"""The main job and its figures: ``reproduce`` and ``figures``."""

from pathlib import Path
from typing import Any, Literal, get_args

from gated_interp.cli.console import progress, say, show, tell
from gated_interp.cli.options import (
    DRAWN,
    Figures,
    FirstSeed,
    Flag,
    Formats,
    Positive,
    RecipeName,
    Steps,
    Workers,
    drawn_in,
    first_figure,
)
from gated_interp.core.errors import GatedInterpError

SEEDS, QUICK_SEEDS, BENCHMARK_SEEDS = 64, 6, 16
# Nothing to import for a list of names when --help is all that is wanted.
Benchmark = Literal["skip-trigrams", "conditional", "ov-coherent", "two-sources", "wide-content",
                    "two-layers", "repeated-tokens"]  # fmt: skip
Experiment = Literal["2H3ST", "3H4ST", "4H5ST", "6H8ST", "8H12ST", Benchmark, "benchmarks"]
RUNS = {"reliable": Path("runs/paper"), "reference": Path("runs/reference")}
BENCHMARK_RUNS = Path("runs/benchmarks")


def reproduce(
    *,
    only: Experiment | None = None,
    seeds: Positive | None = None,
    out: Path | None = None,
    figures: Figures = None,
    recipe: RecipeName = "reliable",
    quick: Flag = False,
    first_seed: FirstSeed = 0,
    steps: Steps = None,
    workers: Workers = None,
    formats: Formats = DRAWN,
) -> None:
    """Run the post's experiments and draw them.

    Trains toys and gated blocks of many seeds, says which head holds what before and after, and
    writes checkpoints, tables and figures. Experiments that have finished are kept. Run the same
    command again to resume an interrupted run. If a run to show is not clean (some skip trigram is
    not held by exactly one head of its own), no figure is changed and the exit code is 1.

    A benchmark starts from a model whose weights were written by hand. It shows whether blocks
    become clean where they should, and only there.

    Args:
        only: Run only this experiment or benchmark. Default: the three published experiments.
        seeds: Train this many blocks of each experiment. Default: 64, of a benchmark 16, with
            --quick 6.
        out: Write to this run folder. Default: runs/paper, runs/reference for that recipe or
            runs/benchmarks; with --quick runs/paper-quick and so on.
        quick: Use few seeds, for a first result in two or three minutes.
    """
    kinds = list(formats)
    if only == "benchmarks" or only in get_args(Benchmark):
        wanted = None if only == "benchmarks" else [str(only)]
        folder = _run_folder(BENCHMARK_RUNS, quick) if out is None else out
        drawn_to = drawn_in(folder, figures)
        count = seeds or (QUICK_SEEDS if quick else BENCHMARK_SEEDS)
        _benchmarks(wanted, folder, drawn_to, kinds, recipe, (count, first_seed, steps, workers))
        return
    from gated_interp.experiments.figures import draw_run
    from gated_interp.experiments.paper import PaperConfig, results_table, run_paper, unclean

    config = PaperConfig(
        only=only,
        seeds=seeds or (QUICK_SEEDS if quick else SEEDS),
        recipe=recipe,
        first_seed=first_seed,
        steps=steps,
    )
    folder = _run_folder(RUNS[recipe], quick) if out is None else out
    figures = drawn_in(folder, figures)
    with progress("training", "batches of seeds") as update:
        results = run_paper(config, folder, workers=workers, say=tell, on_progress=update)
    faults = unclean(results)
    drawn: list[Path] = []
    if not faults:
        with progress("drawing"):
            # A cluster need not see the folder, so figures are drawn on this machine.
            here = workers if isinstance(workers, int) else None
            drawn = draw_run(folder, figures, kinds, workers=here, say=tell)
    table = results_table(results)
    # Ten columns would not fit a terminal; three experiments do.
    name, *measures = table.columns.tolist()
    rows = [[measure, *table[measure]] for measure in measures]
    show(f"{recipe} recipe, {config.seeds} seeds each", [name, *table[name]], rows)
    for name, entry in results["experiments"].items():
        say(f"{name}: {in_words(entry)}")
    if faults:
        raise GatedInterpError(
            "shown-run-not-clean", faults="; ".join(faults), folder=folder, figures=figures
        )
    say(
        f"Checkpoints and tables are in {folder}, {len(drawn)} files of figures in {figures}; look "
        f"at {first_figure(drawn, figures)} first."
    )


def _run_folder(usual: Path, quick: bool) -> Path:
    """Not the same for both: a run is not replaced by one of other settings."""
    return usual.with_name(f"{usual.name}-quick") if quick else usual


def _benchmarks(
    only: list[str] | None,
    out: Path,
    figures: Path,
    kinds: list[str],
    recipe: str,
    how: tuple[int, int, int | None, int | None],
) -> None:
    if recipe != "reliable":
        raise GatedInterpError("benchmarks-have-one-recipe")
    from gated_interp.experiments.benchmarks import BENCHMARKED, in_words, run_benchmarks

    given: dict[str, Any] = dict(zip(("seeds", "first_seed", "steps", "workers"), how, strict=True))
    with progress("training", "batches of seeds") as update:
        table = run_benchmarks(out, only=only, say=tell, on_progress=update, **given)
    with progress("drawing"):
        drawn = BENCHMARKED.draw(out / "benchmarks.csv", figures, kinds, say=tell)
    columns = ["experiment", "recipe", "runs", "clean", "right", "held", "fvu", "false_alarms"]
    show("benchmarks", columns, table[columns].astype(object).to_numpy().tolist())
    for sentence in in_words(table):
        say(sentence)
    say(
        f"Models and tables are in {out}, {len(drawn)} files of figures in {figures}; look at "
        f"{first_figure(drawn, figures)} first."
    )


def in_words(entry: dict[str, Any]) -> str:
    """Who holds what in the run that is shown, before and after, as a sentence."""
    parts = []
    for key, what in (("toy", "the toy"), ("gated", "the gated block")):
        found = entry[key]
        held = sum(len(heads) == 1 for heads in found["holders"].values())
        words = f"in {what} {held} of {entry['trigrams']} trigrams are held by exactly one head"
        missing = [f"trigram {b}" for b in found["not_learnt"]]
        words += f", {', '.join(missing)} not learnt" if missing else ""
        parts.append(words)
    return "; ".join(parts) + "."


def figures(
    run: Path,
    /,
    *,
    formats: Formats = DRAWN,
    out: Path | None = None,
) -> None:
    """Draw the figures of a finished run again.

    Each figure comes with the CSV it was drawn from.

    Args:
        run: Draw this folder, which reproduce, sweep, reliability, phase, frontier or study wrote.
        out: Write the figures to this folder. Default: RUN/figures.
    """
    kinds, folder = list(formats), drawn_in(run, out)
    with progress("drawing"):
        drawn = _draw(run, folder, kinds)
    say(f"{len(drawn)} files are in {folder}; look at {first_figure(drawn, folder)} first.")


def _draw(run: Path, folder: Path, kinds: list[str]) -> list[Path]:
    """Draw what ``run`` holds, whichever command wrote it."""
    from gated_interp.experiments import benchmarks, frontier, phase, reliability, sweep
    from gated_interp.experiments.copying_figures import draw_copying
    from gated_interp.experiments.figures import draw_run

    if (run / "copying.csv").exists():
        return draw_copying(run, folder, kinds, say=tell)
    drawn: dict[str, Any] = {
        "sweep": sweep.SWEEP,
        "reliability": reliability.RELIABILITY,
        "benchmarks": benchmarks.BENCHMARKED,
        "phase": phase.PHASE,
        "frontier": frontier.CELLS,
    }
    for name, study in drawn.items():
        if (run / f"{name}.csv").exists():
            return study.draw(run / f"{name}.csv", folder, kinds, say=tell)
    return draw_run(run, folder, kinds, say=tell)
