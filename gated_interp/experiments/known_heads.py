"""On every known circuit: does a block keep the circuit that is there?

``python -m gated_interp.experiments.known_heads runs/known-heads figures`` measures all.
"""

import dataclasses
import math
import sys
import warnings
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd
import torch
from jaxtyping import Bool
from torch import Tensor

from gated_interp.analysis.attribute.cut import Cutter
from gated_interp.analysis.attribute.graph import Graph
from gated_interp.analysis.attribute.prompts import Prompts
from gated_interp.analysis.carriers import MOST, Asked, carriers
from gated_interp.analysis.faithfulness import faithfulness
from gated_interp.analysis.interchange import node_effects
from gated_interp.anatomy.nodes import layer_of, patch_nodes, read_nodes
from gated_interp.checkpoints.known import KnownCircuit, known_circuit, known_circuits
from gated_interp.core.errors import GatedInterpError, GatedInterpWarning
from gated_interp.core.files import write_table
from gated_interp.core.written import head_name
from gated_interp.experiments.processes import in_processes
from gated_interp.experiments.store import Row, Store
from gated_interp.experiments.study import Key, fill
from gated_interp.models.toy import HookedTransformer
from gated_interp.replacements.splice import splice
from gated_interp.tasks.program import PromptPairs
from gated_interp.training.fit import fit_replacement

METHODS: dict[str, dict[str, Any]] = {
    "gated": {},
    "ungated + overlap": {},
    "topk copies": {"k": 1},
}
"""Methods of the registry that replace each layer, with their settings."""
ORIGINAL = "original"
FITTING, EXPANSION, PROMPTS = 500, 2, 512
LEAST, ALONE, FEWEST = 0.3, 0.1, 16
"""A prompt asks for one head if it moves the metric by more than the first share of the distance,
and the layer's other true heads by less than the second; there must be so many of these."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class KnownRow(Row):
    """A layer of a known circuit, as it is or replaced by a method.

    Attributes:
        circuit, layer, method, seed: which.
        refused: why there is nothing to say; empty where there is.
        variables: true heads of the layer, each one a variable of the program; of those, how many
            could be told apart by prompts (``told``).
        heads: of the layer.
        held: variables that one head carries, with 90% of it, and no other variable.
        share: of a variable's first head, the lowest of all variables.
        needed: heads for 90% of a variable, the most of all variables.
        idle: change of the metric when all heads but the variables' first ones are swapped,
            relative to the distance of the prompts.
        wires: true edges that begin or end in the layer's true heads; ``kept``, those of which one
            head has 90%, the variable's first.
        accuracy: of the answers.
        fvu: of the layer's output.
    """

    KEY: ClassVar[tuple[str, ...]] = ("circuit", "layer", "method", "seed")

    circuit: str
    layer: int
    method: str
    seed: int
    refused: str | None
    variables: int
    told: int
    heads: int
    held: int
    share: float
    needed: int
    idle: float
    wires: int
    kept: int
    accuracy: float
    fvu: float

    def __str__(self) -> str:
        which = f"{self.circuit}, layer {self.layer}, {self.method}"
        if self.refused:
            return f"{which}: {self.refused}"
        return f"{which}: {self.held} of {self.told} held, {self.kept} of {self.wires} wires kept."


def variables_of(
    circuit: KnownCircuit, layer: int, pairs: PromptPairs
) -> dict[str, Bool[Tensor, " prompt"]]:
    """The layer's true heads, and for each the prompts that ask for it alone.

    A head for which there are too few such prompts is left out.
    """
    model, true = circuit.model, true_heads(circuit, layer)
    with torch.no_grad():
        base = pairs.metric(read_nodes(model, pairs.clean)[0])
        other, written = read_nodes(model, pairs.corrupted)
        distance = (base - pairs.metric(other)).mean()
        moved = {}
        for node in true:
            logits = patch_nodes(model, pairs.clean, {node: written[node]})
            moved[node] = (pairs.metric(logits) - base).abs() / distance
    found = {}
    for node in true:
        asked = torch.ones(len(pairs), dtype=torch.bool)
        if len(true) > 1:
            asked = moved[node] > LEAST
            for rival in set(true) - {node}:
                asked &= moved[rival] < ALONE
        if asked.sum() >= FEWEST:
            found[node] = asked
    return found


def true_heads(circuit: KnownCircuit, layer: int) -> list[str]:
    """The true heads of a layer."""
    return [n for n in circuit.nodes if "H" in n and layer_of(n) == layer]


NOTHING = {"held": 0, "share": math.nan, "needed": 0, "idle": math.nan, "wires": 0, "kept": 0}
MISSING = {"accuracy": math.nan, "fvu": math.nan}


def measured(
    circuit: KnownCircuit, layer: int, model: HookedTransformer, seed: int
) -> dict[str, Any]:
    """What a row says of ``model``, the circuit's or one with a block at ``layer``."""
    pairs = circuit.pairs(PROMPTS, seed)
    asked, true = variables_of(circuit, layer, pairs), true_heads(circuit, layer)
    batch = circuit.task.sample(PROMPTS, seed + 1)
    with torch.no_grad():
        right = model(batch.tokens)[:, -1].argmax(-1) == batch.answer
    heads = len(model.blocks[layer].attn.W_O)
    row: dict[str, Any] = {"variables": len(true), "told": len(asked), "heads": heads}
    row |= {"accuracy": right.float().mean().item()}
    if not asked:
        return row | NOTHING

    def on(there: Tensor) -> Asked:
        return lambda logits: pairs.metric(logits)[there]

    metrics = {node: on(there) for node, there in asked.items()}
    found = carriers(model, layer, pairs.clean, pairs.corrupted, metrics)
    first = dict(zip(found.variables, found.first.tolist(), strict=True))
    own = torch.tensor([[*first.values()].count(h) == 1 for h in first.values()])
    others = [head_name((layer, h)) for h in range(heads) if h not in first.values()]
    idle = node_effects(model, pairs, [others])["effect"].item()
    return row | {
        "held": int(((found.needed == 1) & own).sum()),
        "share": found.share.min().item(),
        "needed": int(found.needed.max()),
        "idle": idle if len(true) == len(asked) else math.nan,
        **_wires(circuit, layer, model, pairs, first, asked),
    }


def _wires(
    circuit: KnownCircuit,
    layer: int,
    model: HookedTransformer,
    pairs: PromptPairs,
    first: Mapping[str, int],
    asked: Mapping[str, Tensor],
) -> dict[str, int]:
    """How many true edges of the variables there are, and of how many their first head has most.

    What a head reads as a query is what its query and the query of its gate read; keys likewise.
    """
    prompts = Prompts(model, pairs.clean, pairs.corrupted, pairs.metric, None)
    graph = Graph.of(model)
    cutter, there = Cutter(prompts, graph), set(graph.edges)
    wires = kept = 0
    for sender, receiver in circuit.edges:
        reader, _, role = receiver.partition(".")
        node = sender if sender in first else reader
        if node not in first:
            continue
        wires += 1
        rivals = [h for name, h in first.items() if name != node]
        if first[node] in rivals:
            continue
        sizes = {}
        for h in set(range(len(model.blocks[layer].attn.W_O))) - set(rivals):
            name = head_name((layer, h))
            edges = [(name, receiver)]
            if node == reader:
                edges = [(sender, f"{name}.{part}") for part in (role, f"gate_{role}")]
            cut = graph.mask([edge for edge in edges if edge in there])
            change = (cutter.metric(cut) - prompts.before)[asked[node]]
            sizes[h] = float(change.abs().mean())
        kept += sizes[first[node]] >= MOST * sum(sizes.values())
    return {"wires": wires, "kept": kept}


def all_rows(
    name: str, layer: int, seed: int, methods: Sequence[str], fitting: int = FITTING
) -> list[dict[str, Any]]:
    """The row of a layer as it is and of each method; called in another process."""
    torch.set_num_threads(1)
    circuit, rows = known_circuit(name), []
    which = {"circuit": name, "layer": layer, "seed": seed, "refused": None}
    rows.append(
        which | {"method": ORIGINAL, "fvu": 0.0} | measured(circuit, layer, circuit.model, seed)
    )
    for method in methods:
        row = which | {"method": method}
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", GatedInterpWarning)  # its error is in the table
                result = fit_replacement(
                    circuit.model,
                    layer,
                    method=method,
                    seed=seed,
                    progress=False,
                    **{
                        "heads": EXPANSION * circuit.model.cfg.n_heads,
                        "width": 1,
                        "steps": fitting,
                    },
                    **METHODS[method],
                )
        except GatedInterpError as error:
            rows.append({**rows[0], **row, "refused": str(error), **NOTHING, **MISSING})
            continue
        block = splice(circuit.model, layer, result.model)
        tokens = circuit.task.sample(PROMPTS, seed + 2).tokens
        fvu = faithfulness(block, tokens=tokens).measures()["fvu"].item()
        rows.append(row | {"fvu": fvu} | measured(circuit, layer, block, seed))
    return rows


def layers_of(name: str) -> list[int]:
    """The layers of a circuit with true heads."""
    return sorted({layer_of(n) for n in known_circuit(name).nodes if "H" in n})


def run(
    out: Path | str,
    *,
    circuits: Sequence[str] | None = None,
    seeds: Sequence[int] = (0,),
    methods: Sequence[str] = tuple(METHODS),
    fitting: int = FITTING,
    workers: int | None = None,
    say: Any = lambda _: None,
) -> pd.DataFrame:
    """Add the rows that ``out/known-heads.csv`` lacks.

    Args:
        circuits: all unless given.
        seeds: of blocks and prompts.
        methods: of :data:`METHODS`.
        fitting: steps of a training.
        workers: processes; all cores unless given.
        say: told a sentence for each row.
    """
    store = Store(out, "known-heads", KnownRow, {"fitting": fitting, "settings": METHODS}).read()
    layers = [(n, i, s) for s in seeds for n in circuits or known_circuits() for i in layers_of(n)]
    wanted: list[Key] = [(n, i, m, s) for n, i, s in layers for m in (ORIGINAL, *methods)]

    def made(missing: Sequence[Key]) -> Generator[tuple[KnownRow, None]]:
        some = dict.fromkeys((n, i, s) for n, i, _, s in missing)
        jobs = [(key, all_rows, (*key, methods, fitting)) for key in some]
        for _, rows in in_processes(jobs, workers):
            for row in rows:
                if tuple(row[k] for k in KnownRow.KEY) in missing:
                    yield KnownRow.of(row), None

    fill(store, wanted, made, unit="rows", say=say)
    return store.frame()


if __name__ == "__main__":
    found = run(sys.argv[1], workers=2, say=print)
    write_table(found, Path(sys.argv[2]) / "known-heads.csv", "%.4g")
