"""Known circuits: models whose true circuit is known, with prompts, a metric and the truth."""

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

from transformer_lens import HookedTransformer

from gated_interp.checkpoints.checkpoint import load
from gated_interp.core.errors import CheckpointError, GatedInterpError
from gated_interp.core.files import write_text
from gated_interp.core.fingerprint import fingerprint
from gated_interp.core.metadata import require_fields
from gated_interp.core.shipped import located, shipped_names
from gated_interp.models.program_model import ProgramTransformer
from gated_interp.tasks.program import ProgramTask, PromptPairs

Edge = tuple[str, str]
INTERCHANGE = "interchange"


@dataclasses.dataclass(frozen=True, kw_only=True)
class CircuitRecord:
    """What the JSON beside a model says of its circuit.

    Attributes:
        model: a hash of the weights that all of it is true of.
        source: ``compiled`` or ``planted``.
        program: the name of what it computes.
        variables: of a planted program, the node that computes each variable.
        nodes, edges: the circuit, by how it was established: ``interchange`` (by measuring) and
            ``weights`` (of compiled models) or ``program`` (of planted ones).
        node_effects: by node, what its interchange moves, as
            :func:`~gated_interp.analysis.interchange.node_effects` measures it.
        edge_effects: ``[sender, receiver, effect]`` of every edge that moves anything.
        measured: accuracies and the like, by name.
    """

    model: str
    source: str
    program: str
    variables: dict[str, str]
    nodes: dict[str, list[str]]
    edges: dict[str, list[list[str]]]
    node_effects: dict[str, float]
    edge_effects: list[list[Any]]
    measured: dict[str, float]


@dataclasses.dataclass(frozen=True, eq=False)
class KnownCircuit:
    """A model, what it is asked, and the circuit that is known to answer.

    Attributes:
        name: of the model.
        model: the model.
        record: what is known of its circuit, and how.

    Examples:
        >>> circuit = known_circuit("planted-induction-0")
        >>> circuit.nodes
        ['L0H1', 'L1H2']
        >>> pairs = circuit.pairs(100, seed=0)
        >>> bool((pairs.metric(circuit.model(pairs.clean)) > 0).all())
        True
    """

    name: str
    model: HookedTransformer = dataclasses.field(repr=False)
    record: CircuitRecord = dataclasses.field(repr=False)

    @property
    def task(self) -> ProgramTask:
        """The program, as a task."""
        return ProgramTask(self.record.program)

    @property
    def source(self) -> str:
        """``compiled`` or ``planted``."""
        return self.record.source

    @property
    def nodes(self) -> list[str]:
        """The true nodes, by interchange: heads such as ``L1H2``, MLPs such as ``L0 mlp``."""
        return self.record.nodes[INTERCHANGE]

    @property
    def edges(self) -> list[Edge]:
        """The true edges, by interchange: pairs such as ``("L0H1", "L1H2.k")``.

        Senders are nodes or ``embed``; receivers are a head's ``.q``, ``.k`` or ``.v``, MLPs, or
        ``logits``.
        """
        return [(sender, receiver) for sender, receiver in self.record.edges[INTERCHANGE]]

    @property
    def by_construction(self) -> tuple[list[str], list[Edge]]:
        """Nodes and edges by how the model was made: by its weights, or by its program."""
        (how,) = (name for name in self.record.nodes if name != INTERCHANGE)
        edges = [(sender, receiver) for sender, receiver in self.record.edges[how]]
        return self.record.nodes[how], edges

    def pairs(self, n: int = 64, seed: int = 0) -> PromptPairs:
        """``n`` clean and corrupted prompts with their metric; the same seed gives the same.

        Raises:
            GatedInterpError: ``n`` is not positive, or a bad seed.
        """
        return self.task.pairs(n, seed)

    def require_model(self, model: HookedTransformer) -> None:
        """Refuse a model whose truth this is not.

        Raises:
            GatedInterpError: its weights are others.
        """
        if fingerprint(model, trained=True) != self.record.model:
            raise GatedInterpError("circuit-of-another-model", name=self.name)


def known_circuits() -> list[str]:
    """Names of the known circuits that come with the package.

    Examples:
        >>> known_circuits()[0]
        'compiled-a-or-b'
    """
    return [name for name in shipped_names() if name.startswith(("compiled-", "planted-"))]


def known_circuit(source: str | os.PathLike[str]) -> KnownCircuit:
    """The model of that name with prompts, a metric and its true circuit.

    Args:
        source: a name of :func:`known_circuits`, or a file that ``gated-interp plant`` wrote, with
            its JSON beside it.

    Raises:
        CheckpointError: no such model, or no sound JSON beside it.
        GatedInterpError: the JSON is of a model of other weights.

    Examples:
        >>> known_circuit("compiled-count")
        KnownCircuit(name='compiled-count')
    """
    with located(source) as (path, name):
        model, record = load(path), read_record(path.with_suffix(".json"))
    model.model_name = name
    circuit = KnownCircuit(name, model, record)
    if not isinstance(model, ProgramTransformer) or model.task != circuit.task:
        raise GatedInterpError("circuit-of-another-model", name=name)
    circuit.require_model(model)
    return circuit


def read_record(path: Path) -> CircuitRecord:
    """What a JSON says of a circuit."""
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError("model-without-truth", path=path) from error
    except (OSError, ValueError) as error:
        raise CheckpointError("truth-not-readable", path=path, reason=error) from error
    require_fields(f"The circuit in {path}", said, CircuitRecord)
    return CircuitRecord(**said)


def write_record(path: Path, record: CircuitRecord) -> None:
    """Write the JSON beside the model of ``path``."""
    said = json.dumps(dataclasses.asdict(record), indent=1)
    write_text(path.with_suffix(".json"), said + "\n")
