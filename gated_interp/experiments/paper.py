"""The main job: the post's three experiments, many seeds each, into one run folder."""

import dataclasses
import json
import math
import shutil
import time
from pathlib import Path
from typing import Any, ClassVar, Literal

import pandas as pd

from gated_interp.checkpoints.checkpoint import save
from gated_interp.core.errors import GatedInterpError
from gated_interp.core.files import write_table, write_text
from gated_interp.core.written import interval
from gated_interp.experiments.measured import of_paper
from gated_interp.experiments.originals import Toys
from gated_interp.experiments.recipes import recipe_named
from gated_interp.experiments.seeds import (
    OF_HOLDERS,
    SeedsOutcome,
    ToyOutcome,
    original_of,
    train_gated_seeds,
)
from gated_interp.experiments.store import Row, Store
from gated_interp.experiments.study import Cell, Progress, Say, SeedsConfig, run_cells
from gated_interp.metrics.intervals import clustered

PUBLISHED = {"2H3ST": (2, 3), "3H4ST": (3, 4), "4H5ST": (4, 5)}
LARGER = {"6H8ST": (6, 8), "8H12ST": (8, 12)}
NOTES, RESULTS = "config.json", "results.json"
PARTS = "parts"


@dataclasses.dataclass(frozen=True, kw_only=True)
class PaperConfig(SeedsConfig):
    """What the main job runs.

    Attributes:
        only: the name of one experiment, or ``None`` for the three published ones.
        recipe: ``reliable`` or ``reference``.
    """

    only: str | None = None
    recipe: Literal["reliable", "reference"] = "reliable"

    def problems(self) -> list[GatedInterpError]:
        found = super().problems()
        if self.only is not None and self.only not in PUBLISHED | LARGER:
            found.append(
                self.problem(
                    "config-unknown-name",
                    what="experiment",
                    name=self.only,
                    choices=[*PUBLISHED, *LARGER],
                )
            )
        return found

    @property
    def experiments(self) -> dict[str, tuple[int, int]]:
        """Toy heads and trigrams by name."""
        return PUBLISHED if self.only is None else {self.only: (PUBLISHED | LARGER)[self.only]}


@dataclasses.dataclass(frozen=True, kw_only=True)
class PaperRow(Row):
    """An experiment: its entry of ``results.json``, under its name.

    Attributes:
        experiment: its name.
        toy, gated: the verdict on the run that is shown, and on its toy.
        recipe: its name; heads, gated_heads, trigrams: of toys, blocks and task.
        seeds: gated runs.
        clean, successes: of these, with rates and their 95% intervals (runs on one toy are one
            cluster).
        toys_trained: and what follows, counts of toys, see
            :class:`~gated_interp.experiments.reliability.Rates`.
        selected_seed, selected_toy_seed: of the run that is shown.
        fvu_selected: and what follows, of the shown run or medians, see :class:`GatedOutcome`;
            ``None`` without holders.
        seconds: of one process.
    """

    KEY: ClassVar[tuple[str, ...]] = ("experiment",)

    experiment: str
    toy: dict[str, Any]
    gated: dict[str, Any]
    recipe: str
    heads: int
    gated_heads: int
    trigrams: int
    seeds: int
    clean: int
    clean_rate: float
    clean_interval: list[float]
    successes: int
    success_rate: float
    success_interval: list[float]
    toys_trained: int
    toys_learnt: int
    toys_firm: int
    toys_used: int
    toys_distributed: int
    toys_clean: int
    selected_seed: int
    selected_toy_seed: int
    fvu_selected: float
    fvu_median: float
    l0_selected: float
    l0_median: float
    kl_median: float
    kept_selected: float
    purity_median: float | None
    open_there_median: float | None
    fvu_without_holders_median: float | None
    kl_without_holders_median: float | None
    accuracy_without_holders_median: float | None
    fvu_only_holders_median: float | None
    kl_only_holders_median: float | None
    accuracy_only_holders_median: float | None
    seconds: float

    def __str__(self) -> str:
        return f"{self.experiment}: {self.clean} of {self.seeds} runs are clean."


def run_paper(
    config: PaperConfig,
    out: Path | str,
    *,
    workers: int | str | None = None,
    say: Say = lambda _: None,
    on_progress: Progress = lambda done, total: None,
) -> dict[str, Any]:
    """Run the experiments and write ``out``: checkpoints, tables, ``results.json``.

    Each experiment is written when it ends. Run the same again to resume after an interruption; a
    run that had ended is run anew. What a run of another config has written is not touched.

    Args:
        workers, say, on_progress: see :meth:`~gated_interp.experiments.study.Study.run`.

    Raises:
        GatedInterpError: no toy of an experiment learnt its task, or ``out`` cannot be written or
            holds a run of another config.
        StudyInterrupted: on Ctrl-C; what had finished is kept.
    """
    out = Path(out)
    store = Store(
        out, PARTS, PaperRow, config.to_dict(), notes_file=NOTES, digits=None,
        results=[RESULTS, PARTS],
        same=lambda said: PaperConfig.from_dict(said).to_dict(), earlier=lambda: _earlier(out),
    )  # fmt: skip

    def made(
        cell: Cell, toys: list[ToyOutcome], gated: list[Any], seconds: float
    ) -> tuple[PaperRow, None]:
        return _write_experiment(cell, SeedsOutcome(toys, gated, seconds), out), None

    started = time.perf_counter()
    run_cells(
        store,
        [_cell(shape, config) for shape in config.experiments.values()],
        config.every_seed,
        train_gated_seeds,
        made,
        unit="experiments",
        workers=workers,
        say=say,
        on_progress=on_progress,
    )
    entries = {row.experiment: vars(row) for row in store.rows.values()}
    results = {
        "config": config.to_dict(),
        "seconds": time.perf_counter() - started,
        "experiments": {
            name: {
                **{k: v for k, v in entries[name].items() if k != "experiment"},
                "measured": of_paper(entries[name], config.every_seed),
            }
            for name in config.experiments
        },
    }
    write_text(out / RESULTS, json.dumps(results, indent=2) + "\n")
    store.remove()
    shutil.rmtree(out / PARTS, ignore_errors=True)
    return results


def _earlier(out: Path) -> list[PaperRow]:
    """What an interrupted run of version 0.2 had finished."""
    found = {path.stem: json.loads(path.read_text()) for path in (out / PARTS).glob("*.json")}
    return [PaperRow.of({"experiment": name, **said["result"]}) for name, said in found.items()]


@dataclasses.dataclass(frozen=True)
class PaperCell(Cell):
    """Toys of one shape and a recipe, whose row is named by the toys alone."""

    @property
    def names(self) -> tuple[str, ...]:
        """The experiment."""
        return (self.experiment,)


def _cell(shape: tuple[int, int], config: PaperConfig) -> PaperCell:
    recipe = recipe_named(config.recipe, *shape)
    if config.steps is not None:
        recipe = recipe.replace(steps=config.steps)
    return PaperCell(config.recipe, Toys(*shape), recipe)


def _write_experiment(cell: Cell, outcome: SeedsOutcome, out: Path) -> PaperRow:
    """Write an experiment's checkpoints and tables."""
    run, name = outcome.selected, cell.experiment
    toy = original_of(run)
    toy_run = next(t for t in outcome.toys if t.seed == run.toy_seed)
    notes = {"experiment": name, "recipe": cell.name, "seed": run.seed, "fvu": run.fvu}
    save(run.model, out / f"{name}-gated.safetensors", notes=notes | {"l0": run.l0})
    save(toy, out / f"{name}-toy.safetensors", notes={"experiment": name, "seed": run.toy_seed})
    table, toys = outcome.table(), outcome.toy_table()
    write_table(table, out / f"{name}-runs.csv")
    write_table(toys, out / f"{name}-toys.csv")
    write_table(histories(outcome), out / f"{name}-history.csv")

    successes, clean = int(table["success"].sum()), int(table["clean"].sum())
    clusters = table["toy_seed"].tolist()
    return PaperRow(
        experiment=name,
        toy=toy_run.verdict.to_json(),
        gated=run.verdict.to_json(),
        recipe=cell.name,
        heads=int(toy.blocks[0].attn.W_Q.shape[0]),
        gated_heads=int(run.model.blocks[0].attn.W_O.shape[0]),
        trigrams=len(run.verdict.accuracy),
        seeds=len(table),
        clean=clean,
        clean_rate=clean / len(table),
        clean_interval=list(clustered(table["clean"].tolist(), clusters)),
        successes=successes,
        success_rate=successes / len(table),
        success_interval=list(clustered(table["success"].tolist(), clusters)),
        toys_trained=len(toys),
        toys_learnt=int(toys["learnt_all"].sum()),
        toys_firm=int(toys["firm"].sum()),
        toys_used=int(table["toy_seed"].nunique()),
        toys_distributed=int((toys["learnt_all"] & (toys["distributed"] > 0)).sum()),
        toys_clean=int(toys["clean"].sum()),
        selected_seed=run.seed,
        selected_toy_seed=run.toy_seed,
        fvu_selected=run.fvu,
        fvu_median=float(table["fvu"].median()),
        l0_selected=run.l0,
        l0_median=float(table["l0"].median()),
        kl_median=float(table["kl"].median()),
        kept_selected=run.kept,
        **{f"{each}_median": _median(table[each]) for each in OF_HOLDERS},
        seconds=outcome.seconds,
    )


def histories(outcome: SeedsOutcome) -> pd.DataFrame:
    """The gated runs' histories, one after the other, with a column ``run`` (the seed)."""
    return pd.concat([g.history.assign(run=g.seed) for g in outcome.gated], ignore_index=True)


def _median(values: pd.Series) -> float | None:
    """The median of the numbers there are; ``None`` (JSON's null) where there is none."""
    middle = float(values.median())
    return None if math.isnan(middle) else middle


def unclean(results: dict[str, Any]) -> list[str]:
    """The experiments whose shown run is not clean, each with the reason, as sentences."""
    sentences = []
    for name, e in results["experiments"].items():
        found = e["gated"]
        if found["clean"]:
            continue
        missing = [f"trigram {b} is not learnt" for b in found["not_learnt"]]
        heads = {b: h for b, h in found["holders"].items() if int(b) not in found["not_learnt"]}
        missing += [f"no head holds trigram {b}" for b, h in heads.items() if not h]
        missing += [f"{len(h)} heads hold trigram {b}" for b, h in heads.items() if len(h) > 1]
        reason = ", ".join(missing) or "one head holds two trigrams"
        sentences.append(
            f"the run shown for {name} (seed {e['selected_seed']}) is not clean: {reason}"
        )
    return sentences


def results_table(results: dict[str, Any]) -> pd.DataFrame:
    """One row per experiment of ``results.json``: what the screen shows."""
    rows = []
    for name, e in results["experiments"].items():
        low, high = e["clean_interval"]
        rows.append(
            {
                "experiment": name,
                "heads": f"{e['heads']} → {e['gated_heads']}",
                "toys learnt": f"{e['toys_learnt']} of {e['toys_trained']}",
                "toys used": e["toys_used"],
                "clean": f"{e['clean']} of {e['seeds']}",
                "95% interval": interval(low, high),
                "success (the post's)": f"{e['successes']} of {e['seeds']}",
                "median FVU": f"{e['fvu_median']:.4f}",
                "shown FVU": f"{e['fvu_selected']:.4f}",
                "shown L0": f"{e['l0_selected']:.2f}",
                "toy, held by one": _held(e["toy"]),
                "gated, held by one": _held(e["gated"]),
            }
        )
    return pd.DataFrame(rows)


def _held(found: dict[str, Any]) -> str:
    return f"{sum(len(h) == 1 for h in found['holders'].values())} of {len(found['holders'])}"


def read_results(run: Path | str) -> dict[str, Any]:
    """The ``results.json`` of a run folder."""
    path = Path(run) / RESULTS
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        found["experiments"].items()
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise GatedInterpError("not-a-finished-run", path=run) from error
    return dict(found)
