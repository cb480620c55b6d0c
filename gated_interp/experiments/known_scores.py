"""Every attribution method on every known circuit: how well it ranks heads, MLPs and edges.

``python -m gated_interp.experiments.known_scores figures/known-scores.csv`` measures all.
"""

import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import pandas as pd
import torch

from gated_interp.analysis.attribute.edges import EdgeMethod, attribute_edges
from gated_interp.analysis.attribute.nodes import HeadMethod, attribute_heads
from gated_interp.analysis.attribute.ranking import score_ranking
from gated_interp.analysis.patching import path_patch
from gated_interp.checkpoints.known import KnownCircuit, known_circuit, known_circuits
from gated_interp.core.errors import GatedInterpWarning
from gated_interp.core.files import write_text
from gated_interp.tasks.program import PromptPairs

PROMPTS, DRAWS, RANDOM = 32, 3, 100
ABLATIONS = ("zero", "mean", "resample")
PATHS = "path patching to the logits"
HEADS = (*(f"exact, {a}" for a in ABLATIONS), *get_args(HeadMethod)[1:], PATHS)
EDGES = get_args(EdgeMethod)
ONCE = ("ACDC",)
"""Methods that take many passes: they are measured on the first draw of prompts only."""


def scores(
    circuit: KnownCircuit, pairs: PromptPairs, method: str, of: str
) -> tuple[dict[Any, float], float, float]:
    """The size by which ``method`` ranks each name, with its forward and backward passes."""
    given = (circuit.model, pairs.clean, pairs.corrupted, pairs.metric)
    if of == "nodes" and method == PATHS:
        return _paths(circuit, pairs)
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


def rated(sizes: Mapping[Any, float], truth: Sequence[Any], seed: int) -> dict[str, float]:
    """The AUROC of a ranking, and the mean of random ones."""
    found = score_ranking(sizes, [t for t in truth if t in sizes], draws=RANDOM, seed=seed)
    assert found.auroc is not None
    assert found.random_auroc is not None
    return {"auroc": found.auroc, "random": found.random_auroc}


def measured(name: str, method: str, of: str, draw: int) -> list[dict[str, Any]]:
    """The rows of a method on a circuit: heads alone and with MLPs, or edges."""
    circuit = known_circuit(name)
    sizes, forward, backward = scores(circuit, circuit.pairs(PROMPTS, draw), method, of)
    row = {"method": method, "circuit": name, "source": circuit.source, "draw": draw}
    passes = {"forward": forward, "backward": backward}
    if of == "edges":
        return [row | {"of": of} | rated(sizes, circuit.edges, draw) | passes]
    heads = {node: size for node, size in sizes.items() if not node.endswith(" mlp")}
    rows = [row | {"of": "heads"} | rated(heads, circuit.nodes, draw) | passes]
    if method != PATHS:
        rows.append(row | {"of": "nodes"} | rated(sizes, circuit.nodes, draw) | passes)
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


if __name__ == "__main__":
    torch.set_num_threads(1)
    frame = pd.DataFrame(every(known_circuits()))
    table = frame.to_csv(index=False, lineterminator="\n", float_format="%.4f")
    write_text(Path(sys.argv[1]), table)
