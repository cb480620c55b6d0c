"""Switch heads off through ``hook_z`` and measure what is lost.

A head's output is its ``z`` (``[batch pos d_head]``, its share of b_V included); that is what is
replaced. The layer's ``b_O`` belongs to no head and stays.

- ``zero``: z = 0.
- ``mean``: z = the head's mean z over all rows and positions of a reference batch.
- ``resample``: z of a reference row drawn at random for each row, at the same position; all the
  ablated heads take theirs from the same row.
- ``optimal``: the constant z, for all the ablated heads together, that costs least over a
  reference batch (optimal constant ablation: Li & Janson, *Optimal ablation for
  interpretability*, 2024).
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pandas as pd
import torch
from jaxtyping import Int
from torch import Tensor

from gated_interp.analysis.heads import (
    Head,
    all_heads,
    head_name,
    intervened,
    require_heads,
)
from gated_interp.analysis.logits import Outcome, outcome
from gated_interp.analysis.replacements import Method, Objective, replacements
from gated_interp.analysis.writes import require_tokens
from gated_interp.core.errors import GatedInterpError
from gated_interp.models.toy import HookedTransformer
from gated_interp.tasks.skip_trigrams import TrigramBatch
from gated_interp.tasks.task import ProbedTask, Probes

__all__ = ["Method", "Objective", "ablate", "ablated"]


@contextmanager
def ablated(
    model: HookedTransformer,
    heads: Sequence[Head],
    method: Method = "zero",
    *,
    reference_tokens: Int[Tensor, "reference reference_pos"] | None = None,
    seed: int | None = None,
    objective: Objective = "kl",
) -> Iterator[HookedTransformer]:
    """``model`` with some heads switched off for the length of a ``with`` block.

    Args:
        model: any ``HookedTransformer``, with gated blocks spliced in or not.
        heads: ``(layer, head)`` pairs.
        method: see the module's text.
        reference_tokens: ``[reference reference_pos]``, what ``mean``, ``resample`` and
            ``optimal`` refer to.
        seed: of the rows that ``resample`` draws; every forward pass draws the same.
        objective: what ``optimal`` minimises over the reference: ``kl`` to the intact model, or
            the next-token ``loss``.

    Raises:
        GatedInterpError: a head that is not there, an unknown method, a reference batch or seed
            that is missing or that the model cannot read.

    Examples:
        >>> from gated_interp.models.toy import ToyConfig, build_toy
        >>> model = build_toy(ToyConfig(n_trigrams=1, n_heads=2))
        >>> with ablated(model, [(0, 0), (0, 1)]) as bare:
        ...     bare(torch.tensor([[3, 0]])).tolist()
        [[[0.0, 0.0, 0.0, 1.0], [1.0, 0.0, 0.0, 0.0]]]
    """
    named = require_heads(model, heads)
    with intervened(model, replacements(model, named, method, reference_tokens, seed, objective)):
        yield model


@torch.no_grad()
def ablate(
    model: HookedTransformer,
    tokens: Int[Tensor, "batch pos"] | TrigramBatch | Probes,
    heads: Sequence[Head] | None = None,
    method: Method = "zero",
    *,
    task: ProbedTask | None = None,
    reference_tokens: Int[Tensor, "reference reference_pos"] | None = None,
    seed: int | None = None,
    objective: Objective = "kl",
) -> pd.DataFrame:
    """What is lost without each head, without all the named heads, and without any head.

    Args:
        tokens: what the model reads; a ``TrigramBatch``, or the probes of any task, also
            gives the rows per trigram (case).
        heads: ``(layer, head)`` pairs; ``None`` is every head.
        task: with a batch, refuse one in which some trigram of the task never occurs.
        method, reference_tokens, seed, objective: see :func:`ablated`.

    Returns:
        One row per set of heads and metric. Columns: ``kind`` (``head``, ``set`` or ``all``),
        ``heads`` (``L0H0+L0H1``), ``method``, ``metric``, ``trigram`` (missing where the metric is
        not of one), ``intact``, ``ablated``, ``change`` with ``low`` and ``high`` (95%, normal
        approximation over sequences or occurrences) and ``n``. Metrics: ``loss`` (next-token
        cross-entropy, nats), ``kl`` (of the intact model's prediction from the ablated one's,
        nats, mean over positions), ``logit`` and ``accuracy`` of each trigram's C at its B
        (accurate: strictly above every other logit).

    Raises:
        GatedInterpError: as :func:`ablated`; tokens the model cannot read; a trigram that never
            occurs; a task without a batch.

    Examples:
        >>> from gated_interp.models.analytic import manual_model
        >>> truth = manual_model(2, 3)  # trigram 1 is held by head 0, 2 by head 1, 3 by both
        >>> table = ablate(truth.model, truth.task.sample_single(100, seed=0), [(0, 0)])
        >>> rows = table.query("kind == 'head' and metric == 'accuracy'")
        >>> rows["ablated"].tolist()
        [0.0, 1.0, 0.0]
    """
    if isinstance(tokens, TrigramBatch):
        tokens = _probes(tokens)
    probes = tokens if isinstance(tokens, Probes) else None
    ids = tokens.tokens if isinstance(tokens, Probes) else tokens
    require_tokens(model, ids)
    if task is not None:
        _require_trigrams(task, probes)
    named = all_heads(model) if heads is None else require_heads(model, heads)
    sets: list[tuple[str, list[Head]]] = [("head", [head]) for head in named]
    if 1 < len(named) < len(all_heads(model)):
        sets.append(("set", named))
    sets.append(("all", all_heads(model)))

    intact = model(ids)
    before = outcome(intact, intact, ids, probes)
    rows = []
    for kind, members in sets:
        edits = replacements(model, members, method, reference_tokens, seed, objective)
        with intervened(model, edits):
            after = outcome(model(ids), intact, ids, probes)
        label = {
            "kind": kind,
            "heads": "+".join(head_name(head) for head in members),
            "method": method,
        }
        rows += [{**label, **row} for row in _changes(before, after)]
    return pd.DataFrame(rows).astype({"trigram": "Int64"})


def _changes(before: Outcome, after: Outcome) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    for (metric, trigram), intact in before.items():
        now = after[metric, trigram]
        change = (now - intact).double()
        n = change.numel()
        mean = change.mean().item()
        margin = 1.96 * change.std().item() / n**0.5 if n > 1 else float("nan")
        rows.append(
            {
                "metric": metric,
                "trigram": trigram,
                "intact": intact.double().mean().item(),
                "ablated": now.double().mean().item(),
                "change": mean,
                "low": mean - margin,
                "high": mean + margin,
                "n": n,
            }
        )
    return rows


def _probes(batch: TrigramBatch) -> Probes:
    c = batch.tokens[batch.example, batch.destination_pos + 1]
    return Probes(batch.tokens, batch.example, batch.destination_pos, c, batch.trigram)


def _require_trigrams(task: ProbedTask, probes: Probes | None) -> None:
    if probes is None:
        raise GatedInterpError(
            "with a task, give its probes or a TrigramBatch such as task.sample(1000, seed=0), "
            "not bare tokens."
        )
    task.require_each(probes.case)
