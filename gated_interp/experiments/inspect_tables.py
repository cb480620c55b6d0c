"""What one model's heads do, as tables: ablation, subsets, circuits, one example."""

import dataclasses

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from gated_interp.analysis.ablation import Method, ablate
from gated_interp.analysis.circuits import (
    Circuit,
    copying_scores,
    gate_circuit,
    ov_circuit,
    qk_circuit,
)
from gated_interp.analysis.heads import all_heads, chosen_layer, head_counts, head_name
from gated_interp.analysis.subsets import MAX_EXACT, shapley
from gated_interp.analysis.verdict import EXAMPLES, SEED, verdict
from gated_interp.analysis.writes import head_writes
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


def trigram_label(b: int) -> str:
    """How tables and figures write trigram ``b``: ``A…B1→C1``."""
    return f"A…B{b}→C{b}"


def require_trigram(task: ProbedTask, trigram: int) -> None:
    """Refuse a trigram that the task has not.

    Raises:
        GatedInterpError: naming those it has.
    """
    if trigram not in task.cases:
        raise GatedInterpError(
            f"there is no {task.case_word} {trigram}; the task has 1 to {len(task.cases)}."
        )


def head_names(model: HookedTransformer) -> list[str]:
    """The names of all heads, layer by layer."""
    return [head_name(head) for head in all_heads(model)]


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
    probes = probes_for(task, model.cfg.d_vocab, n, SEED)
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


def circuits_of(model: HookedTransformer) -> dict[str, list[Circuit]]:
    """The ``OV``, ``QK`` and, in a gated model, ``gate`` circuits of every head."""
    heads = all_heads(model)
    found = {
        "OV": [ov_circuit(model, *head) for head in heads],
        "QK": [qk_circuit(model, *head) for head in heads],
    }
    if gated_block(model) is not None:
        found["gate"] = [gate_circuit(model, *head) for head in heads]
    return found


def stacked(circuits: list[Circuit]) -> Float[Tensor, "head_index row column"]:
    """The circuits' whole matrices."""
    return torch.stack([c.matrix.detach().cpu() for c in circuits])


def circuit_summary(model: HookedTransformer, task: ProbedTask) -> pd.DataFrame:
    """One row per head: its copying score and what stands out in each of its circuits.

    Columns: ``head``, ``copying_score``, ``writes`` and ``logit`` (the source and output token of
    the largest OV entry), ``looks`` and ``attention`` (the query token that attends most to one
    key token, where each token stands once) and, in a gated model, ``opens`` and ``gate`` (of the
    gate that opens widest; ``never``), ``open_pairs`` (share of all token pairs whose gate is
    open).
    """
    table = pd.DataFrame({"head": head_names(model)})
    table["copying_score"] = copying_scores(model)["copying_score"]
    names = task.token_names
    labels = {"OV": ("writes", "logit"), "QK": ("looks", "attention"), "gate": ("opens", "gate")}
    for kind, circuits in circuits_of(model).items():
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


def circuit_table(model: HookedTransformer, task: ProbedTask) -> pd.DataFrame:
    """Every entry of every circuit: ``head``, ``circuit``, ``row_token``, ``column_token``,
    ``value``.

    Rows are source tokens of OV and query tokens of QK and gate; columns output and key tokens.
    """
    names = list(task.token_names)
    parts = []
    for kind, circuits in circuits_of(model).items():
        for head, circuit in zip(head_names(model), circuits, strict=True):
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
    """What a model does at one trigram's B in one sequence.

    Attributes:
        trigram: which.
        tokens: the names of all tokens of the sequence.
        position: of B.
        pattern: attention of every position.
        gate: of every position; ``None`` for a model without gates.
        effects: what each head writes to each logit at B.
        predicted: the token with the largest logit at B.
    """

    trigram: int
    tokens: list[str]
    position: int
    pattern: Float[Tensor, "head_index query_pos key_pos"]
    gate: Float[Tensor, "head_index query_pos key_pos"] | None
    effects: Float[Tensor, "head_index d_vocab"]
    predicted: int


@torch.no_grad()
def example_of(
    model: HookedTransformer, task: SkipTrigramTask, trigram: int | None = None
) -> Example:
    """The first of the verdict's examples of a trigram whose A stands at least two places before B.

    Args:
        trigram: which; unless given, one that is distributed, or else the first.

    Raises:
        GatedInterpError: no such trigram.
    """
    if trigram is None:
        trigram = next(iter(verdict(model, task).distributed), task.trigrams[0])
    require_trigram(task, trigram)
    batch = task.sample_single(EXAMPLES, SEED).to(model.embed.W_E.device)
    apart = batch.destination_pos - batch.source_pos >= 2
    found = ((batch.trigram == trigram) & apart).nonzero().flatten()
    if not found.numel():
        raise GatedInterpError(f"trigram {trigram} never occurs in {EXAMPLES} sequences.")
    row, position = batch.example[found[:1]], batch.destination_pos[found[:1]]
    tokens = batch.tokens[row]
    writes, logits = head_writes(model, tokens, torch.zeros_like(row), position)
    names = {k: f"blocks.0.attn.hook_{k}" for k in ("pattern", "gate")}
    _, cache = model.run_with_cache(tokens, names_filter=list(names.values()))
    return Example(
        trigram=trigram,
        tokens=[task.token_names[t] for t in tokens[0].tolist()],
        position=int(position),
        pattern=cache[names["pattern"]][0].cpu(),
        gate=cache[names["gate"]][0].cpu() if names["gate"] in cache else None,
        effects=writes[0].cpu(),
        predicted=int(logits[0].argmax()),
    )
