"""Figures of a finished run, drawn from its files alone."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import torch

from gated_interp.analysis.faithfulness import dead_heads
from gated_interp.analysis.measures import shares
from gated_interp.analysis.roles import energy_by_place, what_remains
from gated_interp.analysis.superposition import loading_matrix
from gated_interp.analysis.verdict import SEED, verdict
from gated_interp.analysis.writes import writes_kept
from gated_interp.checkpoints.checkpoint import load
from gated_interp.core.errors import GatedInterpError
from gated_interp.experiments.inspect_figures import (
    Figure,
    gallery_figures,
    holder_marks,
    marked,
    marks_of,
)
from gated_interp.experiments.paper import read_results
from gated_interp.models.toy import HookedTransformer
from gated_interp.plots import (
    Holdings,
    before_after,
    gate_maps,
    head_roles_figure,
    loss_curves,
    reliability,
    save_figures,
)
from gated_interp.replacements.splice import gated_block, unsplice
from gated_interp.tasks.skip_trigrams import SkipTrigramTask
from gated_interp.tasks.task import ProbedTask

# The experiment whose heads are drawn one by one, for the README.
GALLERY = "2H3ST"


def draw_run(
    run: Path | str,
    out: Path | str,
    formats: Sequence[str] = ("svg", "png"),
    *,
    say: Callable[[str], object] | None = None,
) -> list[Path]:
    """Write the figures of the run folder ``run`` to ``out``, each with its CSV.

    Raises:
        GatedInterpError: no finished run, a format that does not exist, or a file missing from it.
    """
    run, out = Path(run), Path(out)
    results = read_results(run)
    figures: dict[Path | str, tuple[go.Figure, Any]] = {}
    for name in results["experiments"]:
        gated = load(run / f"{name}-gated.safetensors")
        found = pictures_of(gated, gated.task, name)
        history = drawn_steps(_read_csv(run / f"{name}-history.csv"))
        selected = results["experiments"][name]["selected_seed"]
        found[f"{name}-training"] = training_of(history, selected, name)
        figures |= {out / stem: figure for stem, figure in found.items()}
    runs = {name: _read_csv(run / f"{name}-runs.csv") for name in results["experiments"]}
    table = reliability_table(results, runs)
    figures[out / "reliability"] = (reliability_figure(table), table)
    return save_figures(figures, formats, say=say)


@writes_kept()
def pictures_of(gated: HookedTransformer, task: SkipTrigramTask, name: str) -> dict[str, Figure]:
    """The figures of a gated model and its toy, by stem; of the gallery's, its heads one by one."""
    toy = unsplice(gated)
    found = {
        f"{name}-before-after": before_after_of(gated, task, name, toy),
        f"{name}-gates": gates_of(gated, task, name),
        f"{name}-roles": roles_of(gated, task, name),
    }
    return found | (gallery_figures(gated, task, name, toy) if name == GALLERY else {})


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


def before_after_of(
    gated: HookedTransformer,
    task: ProbedTask,
    name: str,
    toy: HookedTransformer | None = None,
) -> Figure:
    """The post's picture: who holds each representation, in the toy and in the gated block.

    Args:
        toy: what ``unsplice`` gives of ``gated``, where it is at hand.
    """
    toy = unsplice(gated) if toy is None else toy
    sides = {"before": (toy, "the toy"), "after": (gated, "the gated block")}
    held = {key: holdings(model, task, label) for key, (model, label) in sides.items()}
    rows = []
    for key, side in held.items():
        share = np.asarray(side.shares)
        for b, representation in task.cases.items():
            for h, head in enumerate(side.heads):
                rows.append(
                    {
                        "model": key,
                        "representation": representation,
                        "head": head,
                        "share_of_loading": share[b - 1, h],
                        "holds": h in side.holders[b],
                        "learnt": b not in side.not_learnt,
                    }
                )
    title = f"{name}: who holds what"
    fig = before_after(held["before"], held["after"], task.cases, word=task.case_word, title=title)
    return fig, pd.DataFrame(rows)


def holdings(model: HookedTransformer, task: ProbedTask, name: str) -> Holdings:
    """A model's verdict and loadings, as the plots want them."""
    found = verdict(model, task)
    n_heads = model.blocks[0].attn.W_Q.shape[0]
    return Holdings(
        name=name,
        heads=[f"L0H{h}" for h in range(n_heads)],
        shares=shares(loading_matrix(model, task)).cpu().numpy(),
        holders=found.holders,
        not_learnt=found.not_learnt,
        dead=dead_heads(model, tokens=task.sample(1000, SEED).tokens),
    )


def gates_of(gated: HookedTransformer, task: SkipTrigramTask, name: str) -> Figure:
    """How far each head's gate opens for every (query token, key token)."""
    gates = gate_table(gated)
    heads = [f"L0H{h}" for h in range(len(gates))]
    frames = [
        pd.DataFrame(gate, index=task.token_names, columns=task.token_names)
        .rename_axis("query_token")
        .reset_index()
        .melt("query_token", var_name="key_token", value_name="gate")
        .assign(head=head)
        for head, gate in zip(heads, gates, strict=True)
    ]
    marks = holder_marks(gated, task)
    title = marked(f"{name}: when each head's gate opens", marks)
    fig = gate_maps(gates, task.token_names, heads, marks=marks, title=title)
    return fig, pd.concat(frames, ignore_index=True)


def roles_of(gated: HookedTransformer, task: ProbedTask, name: str) -> Figure:
    """Where each head writes, and what is left without the holders or with nothing else."""
    energy = energy_by_place(gated, task)
    heads = [f"L0H{h}" for h in energy.index]
    holders = verdict(gated, task).holders
    remains = what_remains(gated, task, holders)
    words = {"nothing": "all heads", "holders": "without the holders", "others": "holders only"}
    answered = f"{task.case_word}s answered"
    measures = {"FVU": "fvu", "KL (nats per position)": "kl", answered: "accuracy"}
    left = {
        said: {words[r["ablated"]]: r[column] for r in remains.to_dict("records")}
        for said, column in measures.items()
    }
    marks = marks_of(holders, task)
    title = marked(f"{name}: what each head writes for, and what is left without holders", marks)
    fig = head_roles_figure(
        energy, [str(p) for p in energy], heads, left,
        percent=[answered], marks=marks, title=title,
    )  # fmt: skip
    return fig, {"energy": energy.reset_index().assign(head=heads), "left": remains}


@torch.no_grad()
def gate_table(gated: HookedTransformer) -> np.ndarray:
    """Each gate as a function of the tokens, ``[head, query_token, key_token]``, by hooks.

    Raises:
        GatedInterpError: the model has no gated block.
    """
    if gated_block(gated) is None:
        raise GatedInterpError("the model has no gated block; splice one in or load a gated model.")
    # Without positional signal every pair of tokens can be read off two-token sequences.
    tokens = torch.arange(gated.cfg.d_vocab)
    pairs = torch.cartesian_prod(tokens, tokens)  # (query, key)
    name = "blocks.0.attn.hook_gate"
    _, cache = gated.run_with_cache(pairs.flip(1), names_filter=name)
    gate = cache[name][:, :, 1, 0]
    return gate.T.reshape(-1, len(tokens), len(tokens)).cpu().numpy()


def reliability_figure(table: pd.DataFrame) -> go.Figure:
    """How many of the gated runs are clean, and the FVU they leave."""
    recipes = " and ".join(table["recipe"].unique())
    title = f"Clean gated blocks, over seeds ({recipes} recipe)"
    return reliability(table, target=0.95, title=title)


def reliability_table(results: dict[str, Any], runs: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """The rows of the reliability figure from ``results.json`` and the table of each run."""
    rows = []
    for name, e in results["experiments"].items():
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
        raise GatedInterpError(f"{path} cannot be read; run `gated-interp reproduce` anew.") from (
            error
        )
