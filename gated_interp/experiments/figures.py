"""Figures of a finished run, drawn from its files alone."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from gated_interp.checkpoints.checkpoint import load
from gated_interp.core.errors import GatedInterpError
from gated_interp.experiments.paper import read_results
from gated_interp.experiments.processes import in_processes
from gated_interp.models.toy import HookedTransformer
from gated_interp.plots import loss_curves, reliability, save_figures
from gated_interp.subject import Subject
from gated_interp.views.registry import shown_of

Figure = tuple[go.Figure, Any]

# The experiment whose heads are drawn one by one, for the README.
GALLERY = "2H3ST"


def draw_run(
    run: Path | str,
    out: Path | str,
    formats: Sequence[str] = ("svg", "png"),
    *,
    workers: int | None = None,
    say: Callable[[str], object] = warnings.warn,
) -> list[Path]:
    """Write the figures of the run folder ``run`` to ``out``, each with its CSV.

    Args:
        workers: processes, each draws an experiment; all cores unless given.
        say: takes the sentences of :func:`save_figures`.
    """
    run, out = Path(run), Path(out)
    experiments = read_results(run)["experiments"]
    runs = {name: _read_csv(run / f"{name}-runs.csv") for name in experiments}
    table = reliability_table(experiments, runs)
    jobs = [
        (name, _draw_experiment, (run, out, formats, name, entry["selected_seed"]))
        for name, entry in experiments.items()
    ]
    drawn = dict(in_processes(jobs, workers))
    for sentence in (s for name in experiments for s in drawn[name][1]):
        say(sentence)
    written = [path for name in experiments for path in drawn[name][0]]
    last: dict[Path | str, Figure] = {out / "reliability": (reliability_figure(table), table)}
    return list(dict.fromkeys(written + save_figures(last, formats, say=say)))


def _draw_experiment(
    run: Path, out: Path, formats: Sequence[str], name: str, selected: int
) -> tuple[list[Path], list[str]]:
    """The figures of one experiment: their files, and what is to be said of them."""
    said: list[str] = []
    found = pictures_of(load(run / f"{name}-gated.safetensors"), name)
    history = drawn_steps(_read_csv(run / f"{name}-history.csv"))
    found[f"{name}-training"] = training_of(history, selected, name)
    figures: dict[Path | str, Figure] = {out / stem: figure for stem, figure in found.items()}
    return save_figures(figures, formats, say=said.append), said


def pictures_of(gated: HookedTransformer, name: str) -> dict[str, Figure]:
    """The figures of a gated model and its toy, by stem; of the gallery's, its heads one by one."""
    subject = Subject.of(gated, name=name)
    shown = shown_of(subject, gallery=("each", "one") if name == GALLERY else ("each",))
    return {f"{subject.stem(s.side)}-{s.name}": (s.figure, s.table) for s in shown if s.draw}


def drawn_steps(history: pd.DataFrame, at_most: int = 60) -> pd.DataFrame:
    """The columns and steps of a history that the curves show, the last step among them."""
    steps = sorted(history["step"].unique())
    kept = {*steps[:: -(-len(steps) // at_most)], steps[-1]}
    columns = ["run", "step", "reconstruction", "fvu", "penalty", "l0"]
    return history.loc[history["step"].isin(kept), columns].reset_index(drop=True)


def training_of(history: pd.DataFrame, selected: int, name: str) -> Figure:
    """The curves of every gated run, the selected one marked."""
    fig = loss_curves(
        history,
        selected=selected,
        quantities=("reconstruction", "fvu", "penalty", "l0"),
        title=f"{name}: {history['run'].nunique()} gated blocks in training",
    )
    return fig, history


def reliability_figure(table: pd.DataFrame) -> go.Figure:
    """How many of the gated runs are clean, and the FVU they leave."""
    recipes = " and ".join(table["recipe"].unique())
    title = f"Clean gated blocks, over seeds ({recipes} recipe)"
    return reliability(table, target=0.95, title=title)


def reliability_table(
    experiments: dict[str, Any], runs: Mapping[str, pd.DataFrame]
) -> pd.DataFrame:
    """The rows of the reliability figure from ``results.json`` and the table of each run."""
    rows = []
    for name, e in experiments.items():
        low, high = e["clean_interval"]
        rows.append(
            {
                "experiment": name,
                "recipe": e["recipe"],
                "runs": e["seeds"],
                "clean": e["clean"],
                "low": low,
                "high": high,
                "fvu": e["fvu_median"],
                "fvu_low": float(runs[name]["fvu"].quantile(0.25)),
                "fvu_high": float(runs[name]["fvu"].quantile(0.75)),
            }
        )
    return pd.DataFrame(rows)


def _read_csv(path: Path) -> pd.DataFrame:
    try:
        return pd.read_csv(path)
    except (OSError, ValueError) as error:
        raise GatedInterpError("run-table-unreadable", path=path) from (error)
