"""What stands out in each head's circuits, and every entry of them, as tables."""

from collections.abc import Callable, Mapping, Sequence

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from gated_interp.analysis.circuits import (
    Circuit,
    copying_score,
    gate_circuit,
    ov_circuit,
    qk_circuit,
)
from gated_interp.analysis.heads import head_name, heads_of
from gated_interp.core.written import quoted
from gated_interp.metrics.reconstruction import OPEN
from gated_interp.models.toy import HookedTransformer
from gated_interp.replacements.splice import gated_block

# Rows of a circuit that are made at once.
ROWS = 512


def circuits_of(model: HookedTransformer, layer: int = 0) -> dict[str, list[Circuit]]:
    """The ``OV``, ``QK`` and, in a gated layer, ``gate`` circuits of every head of a layer."""
    kinds: dict[str, Callable[..., Circuit]] = {"OV": ov_circuit, "QK": qk_circuit}
    if gated_block(model, layer) is not None:
        kinds["gate"] = gate_circuit
    heads = heads_of(model, layer)
    return {kind: [circuit(model, *head) for head in heads] for kind, circuit in kinds.items()}


def stacked(circuits: Sequence[Circuit]) -> Float[Tensor, "head_index row column"]:
    """The circuits' whole matrices."""
    return torch.stack([c.matrix.detach().cpu() for c in circuits])


def circuit_summary(
    model: HookedTransformer,
    layer: int,
    names: Sequence[str],
    circuits: Mapping[str, list[Circuit]],
) -> pd.DataFrame:
    """One row per head: its copying score and what stands out in each of its circuits.

    Columns: ``head``, ``copying_score``, ``writes`` and ``logit`` (the source and output token of
    the largest OV entry), ``looks`` and ``attention`` (the query token that attends most to one
    key token, where each token stands once) and, in a gated layer, ``opens`` and ``gate`` (of the
    gate that opens widest; ``never``), ``open_pairs`` (share of all token pairs whose gate is
    open).

    Args:
        names: of tokens.
        circuits: of :func:`circuits_of`.
    """
    table = pd.DataFrame({"head": [head_name(head) for head in heads_of(model, layer)]})
    table["copying_score"] = [
        copying_score(ov_circuit(model, *head, biases=False)) for head in heads_of(model, layer)
    ]
    labels = {"OV": ("writes", "logit"), "QK": ("looks", "attention"), "gate": ("opens", "gate")}
    for kind, found in circuits.items():
        matrices = stacked(found)
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


def circuit_table(circuits: Mapping[str, list[Circuit]], names: Sequence[str]) -> pd.DataFrame:
    """Every entry of circuits: ``head``, ``circuit``, ``row_token``, ``column_token``, ``value``.

    Rows are source tokens of OV and query tokens of QK and gate; columns output and key tokens.
    """
    parts = [
        circuit.to_frame([*names], [*names])
        .rename_axis("row_token")
        .reset_index()
        .melt("row_token", var_name="column_token", value_name="value")
        .assign(head=head_name((circuit.layer, circuit.head)), circuit=kind)
        for kind, found in circuits.items()
        for circuit in found
    ]
    columns = ["head", "circuit", "row_token", "column_token", "value"]
    return pd.concat(parts, ignore_index=True)[columns]


def largest_entries(
    model: HookedTransformer,
    layer: int,
    names: Sequence[str],
    scores: Mapping[tuple[int, int], float],
    *,
    k: int = 3,
    rows: Int[Tensor, " row"] | None = None,
) -> pd.DataFrame:
    """One row per head: its scores and the largest entries of its circuits, for any vocabulary.

    Columns: ``head``, ``copying_score``, ``prefix_matching``, ``writes`` (the ``k`` largest entries
    of the OV circuit, ``source → output``), ``looks`` (of the QK circuit, ``query → key``; scores
    of two queries cannot be compared, so each query's are taken about their mean).

    Args:
        names: of tokens.
        scores: see :func:`prefix_matching`.
        rows: the source and query tokens to look among; all unless given.
    """
    table = []
    for head in heads_of(model, layer):
        ov, qk = ov_circuit(model, *head), qk_circuit(model, *head)
        table.append(
            {
                "head": head_name(head),
                "copying_score": copying_score(ov_circuit(model, *head, biases=False)),
                "prefix_matching": scores[head],
                "writes": _words(largest(ov, k, rows=rows), names),
                "looks": _words(largest(qk, k, centred=True, rows=rows), names),
            }
        )
    return pd.DataFrame(table)


def prefix_matching(scores: pd.DataFrame) -> dict[tuple[int, int], float]:
    """By head, of a table with a row for each."""
    heads = zip(scores["layer"].tolist(), scores["head"].tolist(), strict=True)
    return dict(zip(heads, scores["prefix_matching"].tolist(), strict=True))


@torch.no_grad()
def largest(
    circuit: Circuit, k: int, *, centred: bool = False, rows: Int[Tensor, " row"] | None = None
) -> list[tuple[int, int, float]]:
    """The ``k`` largest entries (row, column, value), without making the whole matrix at once.

    Args:
        centred: take each row about its mean.
        rows: those to look among; all unless given.
    """
    left, right = circuit.factors.A, circuit.factors.B
    known = range(left.shape[0]) if rows is None else rows.tolist()
    left = left if rows is None else left[rows]
    found: list[tuple[int, int, float]] = []
    for start in range(0, left.shape[0], ROWS):
        block = left[start : start + ROWS] @ right
        block = block - block.mean(-1, keepdim=True) if centred else block
        # The k largest entries are in the k rows with the largest ones; only these are sorted.
        best = block.amax(1).topk(min(k, len(block))).indices.sort().values
        values, index = block[best].flatten().topk(min(k, block.numel()))
        width = block.shape[1]
        found += [
            (known[start + int(best[i // width])], i % width, value)
            for i, value in zip(index.tolist(), values.tolist(), strict=True)
        ]
    return sorted(found, key=lambda entry: -entry[2])[:k]


def _words(entries: list[tuple[int, int, float]], names: Sequence[str]) -> str:
    return ", ".join(
        f"{quoted(names[a])} → {quoted(names[b])} {value:.2f}" for a, b, value in entries
    )
