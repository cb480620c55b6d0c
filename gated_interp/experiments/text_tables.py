"""What the heads of a language model do, as tables: ablation on text, and circuits."""

from collections.abc import Sequence

import pandas as pd
import torch

from gated_interp.analysis.ablation import Method, ablate
from gated_interp.analysis.circuits import Circuit, copying_score, ov_circuit, qk_circuit
from gated_interp.analysis.heads import head_name, heads_of
from gated_interp.analysis.induction import induction_scores, repeated_random_tokens
from gated_interp.anatomy.batch import Batch, Tokens
from gated_interp.core.errors import GatedInterpError
from gated_interp.core.seeds import derive
from gated_interp.core.streams import Stream
from gated_interp.models.toy import HookedTransformer
from gated_interp.tasks.text import TextTask

METHODS: tuple[Method, ...] = ("zero", "mean", "resample")
SEQUENCES, SEED = 50, 0
# Rows of a circuit that are made at once.
ROWS = 512


def text_ablations(
    model: HookedTransformer,
    *,
    layer: int | None = None,
    n: int = SEQUENCES,
    tokens: Tokens | None = None,
) -> pd.DataFrame:
    """Every head (of ``layer``) alone and all at once, ablated on ``n`` sequences of the test part.

    Constants and resampled rows come from the validation part. Returns what
    :func:`~gated_interp.analysis.ablation.ablate` does.

    Args:
        tokens: what is measured on in place of the test part; a model without a text of its own
            takes the constants from them too.

    Raises:
        GatedInterpError: no such layer, or the model's text cannot be had.
    """
    heads = heads_of(model, layer)
    if tokens is None or isinstance(getattr(model, "task", None), TextTask):
        text = _text_of(model)
        reference: Tokens = text.part("validation").sample(n, SEED).tokens
        tokens = text.part("test").sample(n, SEED).tokens if tokens is None else tokens
    else:
        reference = tokens
    batch = Batch.of(model, tokens)
    # A padded row has nothing to take another's place.
    padded = Batch.of(model, reference).real is not None
    parts = [
        ablate(
            model,
            batch,
            heads,
            method,
            reference_tokens=None if method == "zero" else reference,
            seed=derive(SEED, Stream.SHOWN_RESAMPLE) if method == "resample" else None,
        )
        for method in METHODS
        if not (padded and method == "resample")
    ]
    return pd.concat(parts, ignore_index=True)


def text_circuits(
    model: HookedTransformer,
    *,
    layer: int | None = None,
    k: int = 3,
    names: Sequence[str] | None = None,
    bos: int | None = None,
) -> pd.DataFrame:
    """One row per head (of ``layer``): its scores, and the largest entries of its circuits.

    Columns: ``head``, ``copying_score``, ``prefix_matching``, ``writes`` (the ``k`` largest entries
    of the OV circuit, ``source → output``), ``looks`` (of the QK circuit, ``query → key``; scores
    of two queries cannot be compared, so each query's are taken about their mean).

    Args:
        names: of tokens; those of the model's text unless given.
        bos: the token that repeated random tokens begin with; that of the model's text unless
            given.

    Raises:
        GatedInterpError: no such layer, or the model names no text.
    """
    heads = heads_of(model, layer)
    names = _text_of(model).token_names if names is None else names
    scores = induction_scores(model, repeated_random_tokens(model, bos=bos)).set_index(
        ["layer", "head"]
    )["prefix_matching"]
    rows = []
    for head in heads:
        ov, qk = ov_circuit(model, *head), qk_circuit(model, *head)
        rows.append(
            {
                "head": head_name(head),
                "copying_score": copying_score(ov_circuit(model, *head, biases=False)),
                "prefix_matching": float(scores[head]),
                "writes": _words(largest(ov, k), names),
                "looks": _words(largest(qk, k, centred=True), names),
            }
        )
    return pd.DataFrame(rows)


@torch.no_grad()
def largest(circuit: Circuit, k: int, *, centred: bool = False) -> list[tuple[int, int, float]]:
    """The ``k`` largest entries (row, column, value), without making the whole matrix at once.

    Args:
        centred: take each row about its mean.
    """
    left, right = circuit.factors.A, circuit.factors.B
    found: list[tuple[int, int, float]] = []
    for start in range(0, left.shape[0], ROWS):
        block = left[start : start + ROWS] @ right
        block = block - block.mean(-1, keepdim=True) if centred else block
        values, index = block.flatten().topk(min(k, block.numel()))
        width = block.shape[1]
        found += [
            (start + i // width, i % width, value)
            for i, value in zip(index.tolist(), values.tolist(), strict=True)
        ]
    return sorted(found, key=lambda entry: -entry[2])[:k]


def _text_of(model: HookedTransformer) -> TextTask:
    task = getattr(model, "task", None)
    if not isinstance(task, TextTask):
        raise GatedInterpError("the model names no text; give_text gives it one.")
    return task


def _words(entries: list[tuple[int, int, float]], names: Sequence[str]) -> str:
    return ", ".join(f"{names[a]!r} → {names[b]!r} {value:.2f}" for a, b, value in entries)
