"""What one model's heads do, as tables: ablation, subsets, circuits, one example."""

import dataclasses

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from gated_interp.analysis.ablation import Method, ablate
from gated_interp.analysis.circuits import (
    Circuit,
    copying_score,
    gate_circuit,
    ov_circuit,
    qk_circuit,
)
from gated_interp.analysis.heads import chosen_layer, head_counts, head_name, heads_of
from gated_interp.analysis.subsets import MAX_EXACT, shapley
from gated_interp.analysis.verdict import EXAMPLES, SEED, verdict
from gated_interp.analysis.writes import is_linear, logit_writes
from gated_interp.anatomy.batch import token_vocabulary
from gated_interp.core.errors import GatedInterpError
from gated_interp.core.seeds import derive
from gated_interp.core.streams import Stream
from gated_interp.metrics.reconstruction import OPEN
from gated_interp.models.toy import HookedTransformer
from gated_interp.replacements.splice import gated_block
from gated_interp.tasks.skip_trigrams import SkipTrigramTask
from gated_interp.tasks.task import ProbedTask, probes_for

METHODS: tuple[Method, ...] = ("zero", "mean", "resample", "optimal")
# Sub-streams of the verdict's seed: the reference batch, the rows resampled, orders of arrival.
PERMUTATIONS = 200


def answer_word(task: ProbedTask) -> str:
    """What is said of the right answer in titles and on axes: a trigram's is its C."""
    return "C" if isinstance(task, SkipTrigramTask) else "the answer"


def require_trigram(task: ProbedTask, trigram: int) -> None:
    """Refuse a trigram that the task has not.

    Raises:
        GatedInterpError: naming those it has.
    """
    if trigram not in task.cases:
        raise GatedInterpError(
            f"there is no {task.case_word} {trigram}; the task has 1 to {len(task.cases)}."
        )


def head_names(model: HookedTransformer, layer: int | None = None) -> list[str]:
    """The names of a layer's heads, or of all, layer by layer."""
    return [head_name(head) for head in heads_of(model, layer)]


def ablations(
    model: HookedTransformer, task: ProbedTask, *, n: int = EXAMPLES, n_reference: int = 250
) -> pd.DataFrame:
    """Every head alone and all heads at once, ablated by all four methods.

    Args:
        n: sequences measured on, those of the task's probes.
        n_reference: ordinary sequences that ``mean``, ``resample`` and ``optimal`` refer to.

    Returns:
        As :func:`~gated_interp.analysis.ablation.ablate`.
    """
    probes = probes_for(task, token_vocabulary(model), n, SEED)
    reference = task.sample(n_reference, derive(SEED, Stream.SHOWN_REFERENCE)).tokens
    parts = [
        ablate(
            model,
            probes,
            method=method,
            task=task,
            reference_tokens=None if method == "zero" else reference,
            seed=derive(SEED, Stream.SHOWN_RESAMPLE) if method == "resample" else None,
        )
        for method in METHODS
    ]
    return pd.concat(parts, ignore_index=True)


def shapley_table(
    model: HookedTransformer, task: ProbedTask, layer: int | None = None
) -> pd.DataFrame:
    """Shapley values of a layer's heads: exact up to 16, beyond from 200 orders of arrival."""
    layer = chosen_layer(model, layer)
    many = head_counts(model)[layer] > MAX_EXACT
    return shapley(
        model,
        task,
        layer=layer,
        permutations=PERMUTATIONS if many else None,
        permutation_seed=derive(SEED, Stream.SHOWN_ORDERS) if many else None,
    )


def circuits_of(model: HookedTransformer, layer: int = 0) -> dict[str, list[Circuit]]:
    """The ``OV``, ``QK`` and, in a gated layer, ``gate`` circuits of every head of a layer."""
    heads = heads_of(model, layer)
    found = {
        "OV": [ov_circuit(model, *head) for head in heads],
        "QK": [qk_circuit(model, *head) for head in heads],
    }
    if gated_block(model, layer) is not None:
        found["gate"] = [gate_circuit(model, *head) for head in heads]
    return found


def stacked(circuits: list[Circuit]) -> Float[Tensor, "head_index row column"]:
    """The circuits' whole matrices."""
    return torch.stack([c.matrix.detach().cpu() for c in circuits])


def circuit_summary(
    model: HookedTransformer, task: ProbedTask, layer: int | None = None
) -> pd.DataFrame:
    """One row per head: its copying score and what stands out in each of its circuits.

    Columns: ``head``, ``copying_score``, ``writes`` and ``logit`` (the source and output token of
    the largest OV entry), ``looks`` and ``attention`` (the query token that attends most to one
    key token, where each token stands once) and, in a gated layer, ``opens`` and ``gate`` (of the
    gate that opens widest; ``never``), ``open_pairs`` (share of all token pairs whose gate is
    open).

    Args:
        layer: whose heads; all unless given.
    """
    if layer is None:
        parts = [circuit_summary(model, task, i) for i in range(model.cfg.n_layers)]
        return pd.concat(parts, ignore_index=True)
    table = pd.DataFrame({"head": head_names(model, layer)})
    table["copying_score"] = [
        copying_score(ov_circuit(model, *head, biases=False)) for head in heads_of(model, layer)
    ]
    names = task.token_names
    labels = {"OV": ("writes", "logit"), "QK": ("looks", "attention"), "gate": ("opens", "gate")}
    for kind, circuits in circuits_of(model, layer).items():
        matrices = stacked(circuits)
        if kind == "QK":  # scores of two queries cannot be compared; attention can
            matrices = matrices.softmax(2)
        top, index = matrices.flatten(1).max(1)
        pairs = [divmod(int(i), matrices.shape[2]) for i in index]
        where, value = labels[kind]
        table[where] = [f"{names[row]} → {names[column]}" for row, column in pairs]
        table[value] = top.tolist()
        if kind == "gate":
            table.loc[table["gate"] <= OPEN, "opens"] = "never"
            table["open_pairs"] = (matrices > OPEN).double().mean((1, 2)).tolist()
    return table


def circuit_table(model: HookedTransformer, task: ProbedTask, layer: int = 0) -> pd.DataFrame:
    """Every entry of every circuit of a layer: ``head``, ``circuit``, ``row_token``,
    ``column_token``, ``value``.

    Rows are source tokens of OV and query tokens of QK and gate; columns output and key tokens.
    """
    names = list(task.token_names)
    parts = []
    for kind, circuits in circuits_of(model, layer).items():
        for head, circuit in zip(head_names(model, layer), circuits, strict=True):
            frame = circuit.to_frame(names, names)
            parts.append(
                frame.rename_axis("row_token")
                .reset_index()
                .melt("row_token", var_name="column_token", value_name="value")
                .assign(head=head, circuit=kind)
            )
    columns = ["head", "circuit", "row_token", "column_token", "value"]
    return pd.concat(parts, ignore_index=True)[columns]


@dataclasses.dataclass(frozen=True)
class Example:
    """What the heads of one layer do at one probe of a case, such as a trigram's B.

    Attributes:
        trigram: which case.
        tokens: the names of all tokens of the sequence.
        position: of the probe.
        pattern: attention of every position.
        gate: of every position; ``None`` for a layer without gates.
        effects: what each head writes to each logit at the probe; ``None`` where the logits are
            not a sum over the layer's heads.
        predicted: the token with the largest logit there.
    """

    trigram: int
    tokens: list[str]
    position: int
    pattern: Float[Tensor, "head_index query_pos key_pos"]
    gate: Float[Tensor, "head_index query_pos key_pos"] | None
    effects: Float[Tensor, "head_index d_vocab"] | None
    predicted: int


@torch.no_grad()
def example_of(
    model: HookedTransformer,
    task: ProbedTask,
    trigram: int | None = None,
    layer: int | None = None,
) -> Example:
    """The first of the verdict's examples of a case in the second half of its sequence, where
    there is something to look back on.

    Args:
        trigram: the case; unless given, one that is distributed, or else the first.
        layer: whose heads; may be left out where it is the only one.

    Raises:
        GatedInterpError: no such case or layer, several layers and none named.
    """
    layer = chosen_layer(model, layer)
    linear = is_linear(model, layer)
    if trigram is None:
        distributed = verdict(model, task, layer=layer).distributed if linear else []
        trigram = next(iter([*distributed, *task.cases]))
    require_trigram(task, trigram)
    probes = probes_for(task, token_vocabulary(model), EXAMPLES, SEED)
    found = (probes.case == trigram).nonzero().flatten()
    late = probes.position[found] > task.n_positions // 2
    chosen = found[late.int().argmax()]  # of equal ones, the first
    position = int(probes.position[chosen])
    tokens = probes.tokens[probes.row[chosen]][None].to(model.embed.W_E.device)
    names = {k: f"blocks.{layer}.attn.hook_{k}" for k in ("pattern", "gate", "z")}
    logits, cache = model.run_with_cache(tokens, names_filter=list(names.values()))
    z = cache[names["z"]][:, position]
    return Example(
        trigram=trigram,
        tokens=[task.token_names[t] for t in tokens[0].tolist()],
        position=position,
        pattern=cache[names["pattern"]][0].cpu(),
        gate=cache[names["gate"]][0].cpu() if names["gate"] in cache else None,
        effects=logit_writes(model, z, layer)[0].cpu() if linear else None,
        predicted=int(logits[0, position].argmax()),
    )
