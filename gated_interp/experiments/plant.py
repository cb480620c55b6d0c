"""Plant a program in chosen heads of a small transformer, and write it with its truth."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from gated_interp.analysis.interchange import edge_effects, node_effects
from gated_interp.anatomy.nodes import EMBED, LOGITS, layer_of, nodes_of
from gated_interp.checkpoints.checkpoint import load
from gated_interp.checkpoints.known import (
    INTERCHANGE,
    CircuitRecord,
    KnownCircuit,
    write_record,
)
from gated_interp.core.errors import GatedInterpError
from gated_interp.core.fingerprint import fingerprint
from gated_interp.core.seeds import derive
from gated_interp.core.streams import Stream
from gated_interp.experiments.single import changed, refuse, state_for, write_trained
from gated_interp.models.program_model import ProgramConfig, ProgramTransformer, build_program
from gated_interp.tasks.programs import NONE, PLANTED, Program
from gated_interp.training.config import TrainConfig
from gated_interp.training.interchange import Interchange
from gated_interp.training.loop import train_model
from gated_interp.training.trackers import Tracker

# What moves the metric by this share of the distance from clean to corrupted is in the circuit.
# What is in one moves it by a multiple, what is not by a fraction: see docs/known-circuits.md.
LEAST = 0.1
MEASURED = 512

# Where each variable goes unless somebody says.
PLACES: dict[str, dict[str, str]] = {
    "induction": {"previous": "L0H1", "copy": "L1H2"},
    "marker": {"previous": "L0H3", "read": "L1H0"},
    "either": {"saw A": "L0H0", "saw B": "L0H3", "or": "L1 mlp"},
}


@dataclasses.dataclass(frozen=True)
class PlantRun:
    """What plants a program.

    Attributes:
        model: the shape of the model.
        config: how it is trained.
        variables: by variable of the program, the node that is to compute it.
    """

    model: ProgramConfig
    config: TrainConfig
    variables: dict[str, str]


def plant_settings(
    program: str, seed: int = 0, *, variables: Mapping[str, str] | None = None, **given: Any
) -> PlantRun:
    """What plants a program: the usual settings, except those that are given.

    Args:
        program: one of :data:`~gated_interp.tasks.programs.PLANTED`.
        seed: of the initial weights, the data and the interchanges.
        variables: by variable, the node that is to compute it; the usual places unless given.
        **given: fields of :class:`~gated_interp.models.program_model.ProgramConfig` or of
            :class:`~gated_interp.training.config.TrainConfig`; ``None`` leaves one as it is.

    Raises:
        GatedInterpError: no such program, or a node that the model does not have or that reads
            what comes after it.

    Examples:
        >>> plant_settings("induction").variables
        {'previous': 'L0H1', 'copy': 'L1H2'}
    """
    if program not in PLANTED:
        raise GatedInterpError("no-such-program", name=program, known=[*PLANTED])
    places = dict(PLACES[program] | dict(variables or {}))
    deepest = 1 + max(layer_of(node) for node in PLACES[program].values())
    shape, rest = changed(ProgramConfig(program=program, n_layers=deepest, seed=seed), given)
    config, unknown = changed(TrainConfig.planted(seed=seed), rest)
    refuse(unknown)
    _require_places(PLANTED[program], places, nodes_of(build_program(shape)))
    return PlantRun(shape, config, places)


def run_plant(
    run: PlantRun,
    path: Path | str,
    *,
    resume: bool = False,
    progress: bool = False,
    tracker: Tracker | None = None,
) -> KnownCircuit:
    """Train a model to compute its program in its nodes, and write it, its history and its truth.

    The state of the training lies beside it as ``<path>.state`` until it ends.

    Args:
        run: from :func:`plant_settings`.
        path: where the model goes; its circuit goes beside it as JSON.
        resume: go on from that state.
        progress: show a bar.
        tracker: is told every row of the history.
    """
    path, state = Path(path), state_for(path, resume)
    model = build_program(run.model)
    result = train_model(
        model,
        run.config,
        objective=Interchange(model, run.variables, run.config),
        checkpoint=state,
        resume=state if resume else None,
        progress=progress,
        tracker=tracker,
    )
    write_trained(model, path, {"training": run.config.to_dict()}, result.history)
    return write_circuit(path, run)


def write_circuit(path: Path, run: PlantRun) -> KnownCircuit:
    """Measure the circuit of a planted model in a file, and write it beside it."""
    model = load(path)
    assert isinstance(model, ProgramTransformer)
    record = recorded(
        model,
        "planted",
        {"program": circuit_of(PLANTED[run.model.program], run.variables)},
        run.variables,
    )
    write_record(path, record)
    return KnownCircuit(path.stem, model, record)


def circuit_of(
    program: Program, variables: Mapping[str, str]
) -> tuple[list[str], list[tuple[str, str]]]:
    """Nodes and edges that a program asks for, where ``variables`` are in these nodes.

    Examples:
        >>> circuit_of(PLANTED["induction"], {"previous": "L0H1", "copy": "L1H2"})[1][1:3]
        [('embed', 'L1H2.q'), ('L0H1', 'L1H2.k')]
    """
    at = {"tokens": EMBED, **variables}
    edges = [
        (at[read], f"{variables[name]}.{role}" if role else variables[name])
        for name, roles in program.reads.items()
        for role, reads in roles.items()
        for read in reads
    ]
    return list(variables.values()), [*edges, (variables[program.output], LOGITS)]


def recorded(
    model: ProgramTransformer,
    source: str,
    built: Mapping[str, tuple[list[str], list[tuple[str, str]]]],
    variables: Mapping[str, str],
) -> CircuitRecord:
    """What there is to say of a circuit: how it was built, and what interchange finds."""
    pairs = model.task.pairs(MEASURED, derive(0, Stream.PLANTED))
    nodes, edges = node_effects(model, pairs), edge_effects(model, pairs)
    true = nodes.loc[nodes["effect"] > LEAST, "nodes"].tolist()
    idle = [node for node in nodes_of(model) if node not in true]
    found = [(r["sender"], r["receiver"]) for r in edges.to_dict("records") if r["effect"] > LEAST]
    ((how, (built_nodes, built_edges)),) = built.items()
    measured = {
        "accuracy": _accuracy(model),
        **_interchange_accuracy(model, variables, idle),
        "largest_idle": _largest(nodes[nodes["nodes"].isin(idle)]),
        "smallest_true": float(nodes.loc[nodes["nodes"].isin(true), "effect"].min()),
        "all_idle": node_effects(model, pairs, [idle])["effect"].item() if idle else 0.0,
        "largest_idle_edge": _largest(edges[edges["effect"] <= LEAST]),
        "smallest_true_edge": float(edges.loc[edges["effect"] > LEAST, "effect"].min()),
    }
    moving = edges[edges["effect"] > 1e-4].itertuples(index=False)
    return CircuitRecord(
        model=fingerprint(model, trained=True),
        source=source,
        program=model.task.program,
        variables=dict(variables),
        nodes={how: list(built_nodes), INTERCHANGE: true},
        edges={how: [list(edge) for edge in built_edges], INTERCHANGE: [list(e) for e in found]},
        node_effects={r["nodes"]: round(r["effect"], 4) for r in nodes.to_dict("records")},
        edge_effects=[[s, r, round(e, 4)] for s, r, e in moving],
        measured={name: round(value, 4) for name, value in measured.items()},
    )


@torch.no_grad()
def _accuracy(model: ProgramTransformer) -> float:
    batch = model.task.sample(MEASURED, derive(0, Stream.PLANTED))
    right = model(batch.tokens)[:, -1].argmax(-1) == batch.answer
    return right.float().mean().item()


@torch.no_grad()
def _interchange_accuracy(
    model: ProgramTransformer, variables: Mapping[str, str], idle: list[str]
) -> dict[str, float]:
    """Of answers at the last position, with one variable interchanged, and with all idle nodes."""
    if not variables:
        return {}
    objective = Interchange(model, variables, TrainConfig.planted())
    tokens = model.task.sample(MEASURED, derive(0, Stream.PLANTED)).tokens
    n, off = len(tokens), torch.zeros(MEASURED, len(objective.idle), dtype=torch.bool)

    def right(variable: int, swapped: torch.Tensor) -> float:
        _, logits, wanted, _ = objective.passes(tokens, torch.full((n,), variable), swapped)
        there = wanted[:, -1] != NONE
        return (logits[:, -1].argmax(-1) == wanted[:, -1])[there].float().mean().item()

    each = range(len(variables))
    return {
        "interchange_accuracy": min(right(i, off) for i in each),
        "strict_accuracy": min(right(i, ~off) for i in (-1, *each)),
    }


def _largest(rows: pd.DataFrame) -> float:
    return float(rows["effect"].max()) if len(rows) else 0.0


def _require_places(program: Program, variables: Mapping[str, str], there: list[str]) -> None:
    """Refuse places that are not in the model, twice the same, or before what they read."""
    for name, node in variables.items():
        if name not in program.variables:
            raise GatedInterpError("no-such-variable", name=name, known=[*program.variables])
        if node not in there:
            raise GatedInterpError("no-such-node", node=node, known=there)
    if len(set(variables.values())) < len(variables):
        raise GatedInterpError("two-variables-in-one-node", nodes=list(variables.values()))
    for name, roles in program.reads.items():
        head = "" not in roles
        if head == variables[name].endswith("mlp"):
            kind = "head" if head else "MLP"
            raise GatedInterpError("wrong-kind-of-node", name=name, node=variables[name], kind=kind)
        for read in (r for reads in roles.values() for r in reads if r != "tokens"):
            first, then = variables[read], variables[name]
            if layer_of(first) + (head or first.endswith("mlp")) > layer_of(then):
                raise GatedInterpError("variable-read-before", name=read, node=first, reader=then)
