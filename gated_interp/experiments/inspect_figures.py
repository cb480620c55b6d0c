"""What one model's heads do, as figures: for ``ablate``, ``circuits`` and the README's gallery."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from gated_interp.analysis.heads import chosen_layer
from gated_interp.analysis.holders import holders
from gated_interp.analysis.subsets import pair_interactions
from gated_interp.analysis.superposition import loading_matrix
from gated_interp.analysis.verdict import verdict
from gated_interp.analysis.writes import is_linear, writes_kept
from gated_interp.core.errors import GatedInterpError
from gated_interp.experiments.inspect_tables import (
    Example,
    ablations,
    answer_word,
    circuit_table,
    circuits_of,
    example_of,
    head_names,
    shapley_table,
    stacked,
)
from gated_interp.models.toy import HookedTransformer
from gated_interp.plots import (
    ablation_bars,
    attention_patterns,
    circuit_maps,
    save_figures,
    shapley_and_interactions,
    wiring_diagram,
)
from gated_interp.plots import loading_matrix as loading_maps
from gated_interp.replacements.splice import gated_block, originals, unsplice
from gated_interp.tasks.task import ProbedTask

Figure = tuple[go.Figure, pd.DataFrame | Mapping[str, pd.DataFrame]]

SMALLEST = 1e-4  # logits


@writes_kept()
def ablation_figures(
    model: HookedTransformer,
    task: ProbedTask,
    name: str,
    *,
    effects: pd.DataFrame | None = None,
    shapley: pd.DataFrame | None = None,
    trigram: int | None = None,
    layer: int | None = None,
) -> dict[str, Figure]:
    """``ablation`` (four methods side by side), and of one case ``shapley``.

    Args:
        name: of the model, in the titles.
        effects, shapley: what :func:`~gated_interp.experiments.inspect_tables.ablations` and
            ``shapley_table`` returned, where that is at hand.
        trigram: the case; unless given, one that is distributed, or else the first.
        layer: of the heads in ``shapley``; may be left out where it is the only one.

    Raises:
        GatedInterpError: no such case or layer.
    """
    table = shapley_table(model, task, layer) if shapley is None else shapley
    chosen = example_of(model, task, trigram, layer).trigram
    return {
        "ablation": ablation_figure(model, task, name, effects),
        "shapley": shapley_figure(model, task, name, chosen, table, layer),
    }


def ablation_figure(
    model: HookedTransformer,
    task: ProbedTask,
    name: str,
    effects: pd.DataFrame | None = None,
) -> Figure:
    """The change in the logit of each case's answer without each head, by the four methods."""
    effects = ablations(model, task) if effects is None else effects
    of_c = effects[effects["metric"] == "logit"].copy()
    of_c[task.case_word] = [task.cases[int(b)] for b in of_c["trigram"]]
    title = f"{name}: what is lost without each head"
    unit = f"change in the logit of {answer_word(task)}"
    return ablation_bars(of_c, unit=unit, panel=task.case_word, title=title), effects


def shapley_figure(
    model: HookedTransformer,
    task: ProbedTask,
    name: str,
    trigram: int,
    table: pd.DataFrame | None = None,
    layer: int | None = None,
) -> Figure:
    """What each head of a layer, and each pair, adds to the lead of one case's answer."""
    layer = chosen_layer(model, layer)
    mine = _leads_of(shapley_table(model, task, layer) if table is None else table, trigram)
    names = head_names(model, layer)
    pairs = pair_interactions(model, task, layer=layer)["lead"][trigram - 1].numpy()
    # Rounding leaves interactions of 1e-7 logits, which a colour scale would blow up.
    pairs = np.where(np.abs(pairs) < SMALLEST, 0.0, pairs)
    sampled = not bool(mine["exact"].all())
    fig = shapley_and_interactions(
        mine["value"].tolist(),
        pairs,
        names,
        low=mine["low"].tolist() if sampled else None,
        high=mine["high"].tolist() if sampled else None,
        unit=f"lead of {answer_word(task)}",
        title=f"{name}: what heads add for {task.cases[trigram]}",
    )
    interactions = pd.DataFrame(
        [
            {"trigram": trigram, "head": a, "other_head": b, "interaction": pairs[i, j]}
            for i, a in enumerate(names)
            for j, b in enumerate(names)
            if i != j
        ],
        columns=["trigram", "head", "other_head", "interaction"],
    )
    return fig, {"values": mine, "interactions": interactions}


def _leads_of(shapley: pd.DataFrame, trigram: int) -> pd.DataFrame:
    return shapley[(shapley["metric"] == "lead") & (shapley["trigram"] == trigram)]


@writes_kept()
def circuit_figures(
    model: HookedTransformer,
    task: ProbedTask,
    name: str,
    *,
    trigram: int | None = None,
    layer: int | None = None,
) -> dict[str, Figure]:
    """``circuits`` of a layer, and of one example ``attention``.

    Where the logits are a sum over the layer's heads, ``loadings`` and ``wiring`` too.

    Args:
        name: of the model, in the titles.
        trigram: the example's case; unless given, one that is distributed, or else the first.
        layer: may be left out where it is the only one.
    """
    layer = chosen_layer(model, layer)
    example = example_of(model, task, trigram, layer)
    found = {"circuits": circuits_figure(model, task, name, layer)}
    if example.effects is not None:
        found["loadings"] = loadings_figure(model, task, name, layer=layer)
        found["wiring"] = wiring_figure(model, task, name, example, layer)
    return found | {"attention": attention_figure(model, task, name, example, layer)}


def holder_marks(model: HookedTransformer, task: ProbedTask, layer: int = 0) -> dict[int, str]:
    """By index of a layer's heads, the answers of the cases that it holds: ``{5: "C1"}``."""
    by = verdict if is_linear(model, layer) else holders
    return marks_of(by(model, task, layer=layer).holders, task)


def marks_of(found: Mapping[int, list[int]], task: ProbedTask) -> dict[int, str]:
    """As :func:`holder_marks`, of the holders of each case; its name where answers are shared."""
    answers = {b: name.rpartition("→")[2] for b, name in task.cases.items()}
    words = answers if len(set(answers.values())) == len(answers) else task.cases
    marks: dict[int, str] = {}
    for b, heads in found.items():
        for h in heads:
            marks[h] = f"{marks.get(h, '')} {words[b]}".strip()
    return marks


def marked(title: str, marks: Mapping[int, str]) -> str:
    """The title, and what the marks say where there are any."""
    return f"{title} (in blue: what it holds)" if marks else title


def circuits_figure(
    model: HookedTransformer, task: ProbedTask, name: str, layer: int = 0
) -> Figure:
    """OV, QK and gate circuit of every head of a layer, over tokens."""
    marks = holder_marks(model, task, layer)
    found = circuits_of(model, layer)
    matrices = {kind: stacked(circuits).numpy() for kind, circuits in found.items()}
    fig = circuit_maps(
        matrices["OV"],
        matrices["QK"],
        task.token_names,
        head_names(model, layer),
        gates=matrices.get("gate"),
        marks=marks,
        title=marked(f"{name}: the circuits of each head", marks),
    )
    return fig, circuit_table(model, task, layer)


def loadings_figure(
    model: HookedTransformer,
    task: ProbedTask,
    name: str,
    toy: HookedTransformer | None = None,
    layer: int = 0,
) -> Figure:
    """How much each head of a layer carries of each case: of a spliced one, before and after.

    Args:
        toy: what ``unsplice`` gives of ``model``, where it is at hand.
        layer: the last.
    """
    models = {"the model": model}
    if layer in originals(model):
        before = unsplice(model, layer) if toy is None else toy
        block = "gated block" if gated_block(model, layer) is not None else "block"
        models = {"before (toy)": before, f"after ({block})": model}
    heads = {key: head_names(one, layer) for key, one in models.items()}
    loadings = {
        key: loading_matrix(one, task, layer=layer).cpu().numpy() for key, one in models.items()
    }
    rows = list(task.cases.values())
    title = f"{name}: how much each head carries of each {task.case_word}"
    fig = loading_maps(loadings, rows, heads, title=title)
    table = [
        {"model": key, "representation": row, "head": head, "loading": loadings[key][i, h]}
        for key in models
        for i, row in enumerate(rows)
        for h, head in enumerate(heads[key])
    ]
    return fig, pd.DataFrame(table)


def wiring_figure(
    model: HookedTransformer, task: ProbedTask, name: str, example: Example, layer: int = 0
) -> Figure:
    """What the probe of one example reads, through which heads, and what they write.

    Raises:
        GatedInterpError: an example of a layer whose heads do not add up to the logits.
    """
    if example.effects is None:
        raise GatedInterpError(
            f"what the heads of layer {layer} write does not add up to the logits, so no wire says "
            "what reaches them; draw the last layer of a model without normalisation."
        )
    heads, end = head_names(model, layer), example.position + 1
    pattern = example.pattern[:, example.position, :end].numpy()
    gate = None if example.gate is None else example.gate[:, example.position, :end].numpy()
    effects = example.effects.numpy()
    fig = wiring_diagram(
        pattern,
        effects,
        example.tokens[:end],
        heads,
        task.token_names,
        gate=gate,
        predicted=example.predicted,
        title=f"{name}: one example of {task.cases[example.trigram]}",
    )
    reads = [
        {"head": head, "key_pos": k, "token": example.tokens[k], "attention": pattern[h, k]}
        | ({} if gate is None else {"gate": gate[h, k]})
        for h, head in enumerate(heads)
        for k in range(end)
    ]
    writes = [
        {"head": head, "output_token": token, "logit": effects[h, v]}
        for h, head in enumerate(heads)
        for v, token in enumerate(task.token_names)
    ]
    return fig, {"reads": pd.DataFrame(reads), "writes": pd.DataFrame(writes)}


def attention_figure(
    model: HookedTransformer, task: ProbedTask, name: str, example: Example, layer: int = 0
) -> Figure:
    """Attention of a layer in one example, and what of it the gates let through."""
    marks = holder_marks(model, task, layer)
    title = f"{name}: attention in one example of {task.cases[example.trigram]}"
    gated = None if example.gate is None else (example.gate * example.pattern).numpy()
    fig = attention_patterns(
        example.pattern.numpy(),
        example.tokens,
        head_names(model, layer),
        gated=gated,
        marks=marks,
        title=marked(title, marks),
    )
    positions = range(len(example.tokens))
    rows = [
        {
            "head": head,
            "query_pos": q,
            "query_token": example.tokens[q],
            "key_pos": k,
            "key_token": example.tokens[k],
            "attention": float(example.pattern[h, q, k]),
        }
        | ({} if gated is None else {"gated_attention": gated[h, q, k]})
        for h, head in enumerate(head_names(model, layer))
        for q in positions
        for k in positions
        if k <= q
    ]
    return fig, pd.DataFrame(rows)


@writes_kept()
def gallery_figures(
    model: HookedTransformer,
    task: ProbedTask,
    name: str,
    toy: HookedTransformer | None = None,
) -> dict[str, Figure]:
    """The README's gallery, by stem: what the heads of ``model`` do, and those of its original.

    The original (of a spliced model) gets the figures in which heads share work: ablation,
    Shapley values with interactions, and the wiring of the same example.

    Args:
        toy: what ``unsplice`` gives of ``model``, where it is at hand.
    """
    if toy is None:
        toy = unsplice(model) if originals(model) else model
    example = example_of(toy, task)
    after = example_of(model, task, example.trigram)
    found = {
        f"{name}-ablation": ablation_figure(model, task, name),
        f"{name}-circuits": circuits_figure(model, task, name),
        f"{name}-loadings": loadings_figure(model, task, name, toy),
        f"{name}-wiring": wiring_figure(model, task, name, after),
        f"{name}-attention": attention_figure(model, task, name, after),
    }
    label = name if toy is model else f"{name} toy"
    stem = label.replace(" ", "-")
    found[f"{stem}-shapley"] = shapley_figure(toy, task, label, example.trigram)
    if toy is not model:
        found[f"{stem}-ablation"] = ablation_figure(toy, task, label)
        found[f"{stem}-wiring"] = wiring_figure(toy, task, label, example)
    return found


def save_under(
    figures: Mapping[str, Figure],
    out: Path | str,
    formats: Sequence[str],
    *,
    say: Callable[[str], object] | None = None,
) -> list[Path]:
    """Write figures, by stem, to the folder ``out``; returns the files.

    Raises:
        GatedInterpError: a format that does not exist, or a folder that cannot be written.
    """
    placed: dict[Path | str, Figure] = {Path(out) / stem: fig for stem, fig in figures.items()}
    return save_figures(placed, formats, say=say)
