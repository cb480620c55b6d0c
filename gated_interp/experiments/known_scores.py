"""Every attribution method on every known circuit: how well it ranks heads, MLPs and edges.

``python -m gated_interp.experiments.known_scores figures/known-scores`` measures all.
"""

import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import pandas as pd
import plotly.graph_objects as go
import torch
from torch import Tensor

from gated_interp.analysis.attribute.edges import EdgeMethod, attribute_edges
from gated_interp.analysis.attribute.nodes import HeadMethod, attribute_heads
from gated_interp.analysis.attribute.ranking import score_ranking
from gated_interp.analysis.patching import path_patch
from gated_interp.analysis.subsets import pair_interactions, shapley
from gated_interp.checkpoints.known import KnownCircuit, known_circuit, known_circuits
from gated_interp.core.errors import GatedInterpWarning
from gated_interp.core.files import write_table
from gated_interp.plots import attribution_scores, save_figure
from gated_interp.tasks.program import PromptPairs

PROMPTS, DRAWS, RANDOM = 32, 3, 100
ABLATIONS = ("zero", "mean", "resample")
PATHS, SHAPLEY, PAIRS = "path patching to the logits", "Shapley values", "pair interactions"
GATING = "causal head gating"
TOOLS = (PATHS, SHAPLEY, PAIRS)
HEADS = (*(f"exact, {a}" for a in ABLATIONS), *get_args(HeadMethod)[1:], *TOOLS)
ORDERS = 20
"""Random orders of arrival, for Shapley values."""
MIB = {"exact": 0.28, "EAP": 0.73, "EAP-IG inputs": 0.71, "EAP-IG activations": 0.81}
"""Theirs: the AUROC on InterpBench's model of indirect object identification, counterfactual
ablation (Mueller et al., 2025, arXiv 2504.13151, Table 2). Random rankings had 0.44."""
EDGES = get_args(EdgeMethod)
ONCE = ("ACDC",)
"""Methods that take many passes: they are measured on the first draw of prompts only."""


def scores(
    circuit: KnownCircuit, pairs: PromptPairs, method: str, of: str
) -> tuple[dict[Any, float], float, float]:
    """The size by which ``method`` ranks each name, with its forward and backward passes."""
    if method in TOOLS:
        return _paths(circuit, pairs) if method == PATHS else _subsets(circuit, pairs, method)
    metric = _nats(pairs) if method == GATING else pairs.metric
    given = (circuit.model, pairs.clean, pairs.corrupted, metric)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", GatedInterpWarning)  # that it is not complete
        if of == "edges":
            found: Any = attribute_edges(*given, method=method)  # type: ignore[arg-type]
        else:
            way, _, ablation = method.partition(", ")
            found = attribute_heads(
                *given,
                method=way,  # type: ignore[arg-type]
                ablation=ablation or "resample",  # type: ignore[arg-type]
            )
    sizes = dict(zip(found.names, found.absolute.tolist(), strict=True))
    return sizes, found.forward, found.backward


@torch.no_grad()
def _paths(circuit: KnownCircuit, pairs: PromptPairs) -> tuple[dict[Any, float], float, float]:
    """What the metric loses as each head's direct path to the logits is patched."""
    model, last = circuit.model, f"blocks.{circuit.model.cfg.n_layers - 1}.hook_resid_post"
    intact, sizes = pairs.metric(model(pairs.clean)), {}
    for layer in range(model.cfg.n_layers):
        for head in range(model.cfg.n_heads):
            logits = path_patch(model, pairs.clean, pairs.corrupted, (layer, head), last)
            change = (pairs.metric(logits) - intact).mean().abs()
            sizes[f"L{layer}H{head}"] = float(change)
    # Each head is read on the other prompts, patched on its path, and the logits are run again.
    return sizes, 3.0 * len(sizes) + 1, 0.0


def _nats(pairs: PromptPairs) -> Callable[[Tensor, Tensor], Tensor]:
    """The loss of the right answer, which is what gates are fitted to."""

    def loss(logits: Tensor, _tokens: Tensor) -> Tensor:
        return -logits[:, -1].log_softmax(-1).gather(1, pairs.right[:, None])[:, 0]

    return loss


def _subsets(
    circuit: KnownCircuit, pairs: PromptPairs, method: str
) -> tuple[dict[Any, float], float, float]:
    """By head its Shapley value, or its part alone and with each other head, sizes added up.

    Heads that are off hold the mean of what they do on the corrupted prompts.
    """
    model, rows = circuit.model, [0]
    handle = model.register_forward_hook(lambda *given: rows.append(len(given[-1])))
    heads = [f"L{i}H{h}" for i in range(model.cfg.n_layers) for h in range(model.cfg.n_heads)]
    common: dict[str, Any] = {
        "heads": heads,
        "metric": pairs.metric,
        "method": "mean",
        "reference_tokens": pairs.corrupted,
    }
    if method == SHAPLEY:
        common |= {"permutations": ORDERS, "permutation_seed": 0}
        found = shapley(model, pairs.clean, **common)["value"].abs().tolist()
    else:
        (each,) = pair_interactions(model, pairs.clean, **common).values()
        found = each[0].abs().sum(1).tolist()
    handle.remove()
    return dict(zip(heads, found, strict=True)), sum(rows) / len(pairs), 0.0


def rated(
    sizes: Mapping[Any, float], truth: Sequence[Any], constructed: Sequence[Any], seed: int
) -> dict[str, float]:
    """The AUROC of a ranking, and the mean of random ones, against the truth by interchange.

    Also the AUROC against the truth by construction, to which no ablation led.
    """
    ours, made = (
        score_ranking(sizes, [t for t in names if t in sizes], draws=RANDOM, seed=seed)
        for names in (truth, constructed)
    )
    found = {"auroc": ours.auroc, "constructed": made.auroc, "random": ours.random_auroc}
    return {name: value for name, value in found.items() if value is not None}


def measured(name: str, method: str, of: str, draw: int) -> list[dict[str, Any]]:
    """The rows of a method on a circuit: heads alone and with MLPs, or edges."""
    circuit = known_circuit(name)
    sizes, forward, backward = scores(circuit, circuit.pairs(PROMPTS, draw), method, of)
    row = {"method": method, "circuit": name, "source": circuit.source, "draw": draw}
    passes = {"forward": forward, "backward": backward}
    nodes, edges = circuit.by_construction
    if of == "edges":
        return [row | {"of": of} | rated(sizes, circuit.edges, edges, draw) | passes]
    heads = {node: size for node, size in sizes.items() if not node.endswith(" mlp")}
    rows = [row | {"of": "heads"} | rated(heads, circuit.nodes, nodes, draw) | passes]
    if method not in (*TOOLS, GATING):
        rows.append(row | {"of": "nodes"} | rated(sizes, circuit.nodes, nodes, draw) | passes)
    return rows


def every(
    names: Sequence[str], heads: Sequence[str] = HEADS, edges: Sequence[str] = EDGES
) -> Iterator[dict[str, Any]]:
    """All rows of some circuits, draw by draw of prompts."""
    jobs = [(method, "nodes") for method in heads] + [(method, "edges") for method in edges]
    for name in names:
        for draw in range(DRAWS):
            for method, of in jobs:
                if draw == 0 or method not in ONCE:
                    yield from measured(name, method, of, draw)


def figure_of(runs: pd.DataFrame) -> go.Figure:
    """The AUROC of every method, beside what MIB published."""
    title = "Integrated gradients find the edges of planted circuits, single gradients miss some"
    return attribution_scores(runs, published=MIB, title=title)


if __name__ == "__main__":
    torch.set_num_threads(1)
    frame = pd.DataFrame(every(known_circuits())).round(4)
    write_table(frame, Path(sys.argv[1]).with_suffix(".csv"))
    save_figure(figure_of(frame), frame, Path(sys.argv[1]), ("svg",))
