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

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pandas as pd
import torch
from jaxtyping import Bool
from torch import Tensor

from gated_interp.analysis.heads import (
    Head,
    HeadLike,
    all_heads,
    head_name,
    heads_name,
    intervened,
    require_heads,
)
from gated_interp.analysis.logits import MetricFunction, Outcome, outcome, together
from gated_interp.analysis.replacements import Edits, Method, Objective, Reference, replacements
from gated_interp.analysis.rest import Rest
from gated_interp.anatomy.batch import Batch, Mask, Tokens, logit_rows, position_mask
from gated_interp.core.errors import GatedInterpError
from gated_interp.metrics.predictions import log_probabilities
from gated_interp.models.toy import HookedTransformer
from gated_interp.tasks.skip_trigrams import TrigramBatch
from gated_interp.tasks.task import ProbedTask, Probes

__all__ = ["Method", "Objective", "ablate", "without_heads"]


@contextmanager
def without_heads(
    model: HookedTransformer,
    heads: Sequence[HeadLike],
    method: Method = "zero",
    *,
    reference_tokens: Tokens | None = None,
    reference_mask: Mask | None = None,
    seed: int | None = None,
    objective: Objective = "kl",
    at: Bool[Tensor, "..."] | None = None,
) -> Iterator[HookedTransformer]:
    """``model`` with some heads switched off for the length of a ``with`` block.

    Args:
        model: any ``HookedTransformer``, with gated blocks spliced in or not.
        heads: each as ``(layer, head)`` or by its name, such as ``"L0H1"``.
        method: see the module's text.
        reference_tokens: ``[reference reference_pos]``, what ``mean``, ``resample`` and
            ``optimal`` refer to; rows for ``resample`` without padding.
        reference_mask: ``[reference reference_pos]``, the attention mask of these where rows are
            padded.
        seed: of the rows that ``resample`` draws; every forward pass draws the same.
        objective: what ``optimal`` minimises over the reference: ``kl`` to the intact model, or
            the next-token ``loss``.
        at: ``[batch pos]`` or ``[pos]``, at which query positions they are off; ``None`` is all.

    Raises:
        GatedInterpError: a head that is not there, an unknown method, a reference batch or seed
            that is missing or that the model cannot read; a mask of another shape than the tokens
            that it then reads; no forward pass inside, or one that skips hooks (``torch.compile``).

    Examples:
        >>> from gated_interp.models.toy import ToyConfig, build_toy
        >>> model = build_toy(ToyConfig(n_trigrams=1, n_heads=2))
        >>> with without_heads(model, [(0, 0), (0, 1)]) as bare:
        ...     bare(torch.tensor([[3, 0]])).tolist()
        [[[0.0, 0.0, 0.0, 1.0], [1.0, 0.0, 0.0, 0.0]]]
    """
    named = require_heads(model, heads)
    reference = Reference(model, reference_tokens, reference_mask)
    edits = replacements(model, named, method, reference, seed, objective)
    with intervened(model, _only_at(edits, at)):
        yield model


@torch.no_grad()
def ablate(
    model: HookedTransformer,
    tokens: Tokens | TrigramBatch | Probes,
    heads: Sequence[HeadLike] | None = None,
    method: Method | Sequence[Method] = "zero",
    *,
    task: ProbedTask | None = None,
    metric: MetricFunction | None = None,
    positions: Bool[Tensor, "..."] | None = None,
    at: Bool[Tensor, "..."] | None = None,
    attention_mask: Mask | None = None,
    reference_tokens: Tokens | None = None,
    reference_mask: Mask | None = None,
    seed: int | None = None,
    objective: Objective = "kl",
) -> pd.DataFrame:
    """What is lost without each head, without all the named heads, and without any head.

    Args:
        tokens: what the model reads; a ``TrigramBatch``, or the probes of any task, also
            gives the rows per case.
        heads: each as ``(layer, head)`` or by its name, such as ``"L0H1"``; ``None`` is every head.
        task: with a batch, refuse one in which some case of the task never occurs.
        metric: measured in the place of the metrics below: a function of logits ``[batch pos
            d_vocab]`` and tokens ``[batch pos]`` that gives a scalar, ``[batch]`` or
            ``[batch pos]`` (then the mean of each sequence's positions is taken).
        positions: ``[batch pos]`` or ``[pos]``, where loss, KL, or a metric of each position, are
            measured; the loss at a position is that of the token after it. ``None`` is everywhere.
        attention_mask: ``[batch pos]``, 1 at tokens and 0 at padding, which no measure counts.
        method, at, reference_tokens, reference_mask, seed, objective: see :func:`without_heads`.
            Several methods in one call share what they have in common, and give one table.

    Returns:
        One row per method, set of heads and metric. Columns: ``kind`` (``head``, ``set`` or
        ``all``), ``heads`` (``L0H0+L0H1``, ``all of layer 1`` or ``all heads``), ``method``,
        ``metric``, ``trigram`` (missing where the metric is not of one), ``intact``, ``ablated``,
        ``change`` with ``low`` and ``high`` (95%, normal approximation over sequences or
        occurrences) and ``n``. Metrics: ``loss`` (next-token cross-entropy, nats; left out where
        outputs are no tokens, ``d_vocab_out``), ``kl`` (of the intact model's
        prediction from the ablated one's, nats, mean over positions), ``logit`` and ``accuracy`` of
        each case's C at its B (accurate: strictly above every other logit); of one's own, its
        function's name.

    Raises:
        GatedInterpError: as :func:`without_heads`; tokens the model cannot read; a case that
            never occurs; a task without a batch; a mask of another shape than the tokens, or of
            nowhere; a metric that gives something else.

    Examples:
        >>> from gated_interp.models.analytic import manual_model
        >>> truth = manual_model(2, 3)  # trigram 1 is held by head 0, 2 by head 1, 3 by both
        >>> table = ablate(truth.model, truth.task.sample_single(100, seed=0), [(0, 0)])
        >>> rows = table.query("kind == 'head' and metric == 'accuracy'")
        >>> rows["ablated"].tolist()
        [0.0, 1.0, 0.0]
        >>> tokens = truth.task.sample(100, seed=0).tokens
        >>> second_half = torch.arange(tokens.shape[1]) >= tokens.shape[1] // 2
        >>> ablate(truth.model, tokens, ["L0H0"], positions=second_half)["metric"].tolist()
        ['loss', 'kl', 'loss', 'kl']
    """
    named = all_heads(model) if heads is None else require_heads(model, heads)
    methods: list[Any] = [method] if isinstance(method, str) else [*method]
    return ablate_sets(
        model,
        tokens,
        [(each, *some) for each in methods for some in sets_of(model, named)],
        task=task,
        metric=metric,
        positions=positions,
        at=at,
        attention_mask=attention_mask,
        reference_tokens=reference_tokens,
        reference_mask=reference_mask,
        seed=seed,
        objective=objective,
    )


def sets_of(model: HookedTransformer, named: list[Head]) -> list[tuple[str, list[Head]]]:
    """Each head, those together, and all there are, each with its kind: what one call ablates."""
    sets = [("head", [head]) for head in named]
    if 1 < len(named) < len(all_heads(model)):
        sets.append(("set", named))
    return [*sets, ("all", all_heads(model))]


@torch.no_grad()
def ablate_sets(
    model: HookedTransformer,
    tokens: Tokens | TrigramBatch | Probes,
    asked: Sequence[tuple[Method, str, list[Head]]],
    *,
    task: ProbedTask | None = None,
    metric: MetricFunction | None = None,
    positions: Bool[Tensor, "..."] | None = None,
    at: Bool[Tensor, "..."] | None = None,
    attention_mask: Mask | None = None,
    reference_tokens: Tokens | None = None,
    reference_mask: Mask | None = None,
    seed: int | None = None,
    objective: Objective = "kl",
) -> pd.DataFrame:
    """:func:`ablate`, of sets of heads, each with its method and kind, row by row."""
    if isinstance(tokens, TrigramBatch):
        tokens = _probes(tokens)
    probes = tokens if isinstance(tokens, Probes) else None
    ids = tokens.tokens if isinstance(tokens, Probes) else tokens
    batch = Batch.of(model, ids, attention_mask)
    if task is not None:
        _require_trigrams(task, probes)
    where, there = (
        None if mask is None else position_mask(name, mask, batch.tokens)
        for name, mask in (("positions", positions), ("at", at))
    )
    reference = Reference(model, reference_tokens, reference_mask)
    edits = [
        replacements(model, members, each, reference, seed, objective) for each, _, members in asked
    ]
    # A metric of one's own may be of all logits together, so it gets all of them at once.
    rows = len(batch) if metric is not None else logit_rows(batch, model.cfg.d_vocab_out)
    found: list[list[Outcome]] = [[] for _ in range(len(asked) + 1)]
    for first in range(0, len(batch), rows):
        here = slice(first, first + rows)
        part, known = batch[here], None if probes is None else probes.in_rows(first, rows)
        mine = None if where is None else where[here]
        logits = part.logits(model)
        intact = log_probabilities(logits) if metric is None else None
        found[0].append(outcome(logits, intact, part, known, metric, mine))
        del logits
        rests: dict[int, Rest] = {}
        for i, (how, _, members) in enumerate(asked):
            edit = edits[i]
            if how == "resample":
                edit = replacements(model, members, how, reference, seed, rows=(first, len(batch)))
            edit = _only_at(edit, None if there is None else there[here])
            if len(edit) == 1:  # the layers before it stay as they are
                layer = members[0][0]
                if layer not in rests:
                    rests = {layer: Rest(model, layer, part)}
                own: Any = next(iter(edit.values()))
                logits = rests[layer].logits(own)
            else:
                with intervened(model, edit):
                    logits = part.logits(model)
            found[i + 1].append(outcome(logits, intact, part, known, metric, mine))
            del logits
    before, *afters = map(together, found)
    table = []
    for (how, kind, members), after in zip(asked, afters, strict=True):
        name = head_name(members[0]) if kind == "head" else heads_name(model, members)
        label = {"kind": kind, "heads": name, "method": how}
        table += [{**label, **row} for row in _changes(before, after)]
    return pd.DataFrame(table).astype({"trigram": "Int64"})


def _only_at(edits: Edits, at: Tensor | None) -> Edits:
    """The same edits of z, at some positions only."""
    if at is None:
        return edits

    def there(edit: Callable[[Tensor], Tensor | None]) -> Callable[[Tensor], Tensor | None]:
        def masked(z: Tensor) -> Tensor | None:
            edited = edit(z)
            where = position_mask("at", at, z[:, :, 0, 0])
            return None if edited is None else torch.where(where[..., None, None], edited, z)

        return masked

    return {name: there(edit) for name, edit in edits.items()}


def _changes(before: Outcome, after: Outcome) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    for (metric, case), intact in before.items():
        now = after[metric, case]
        change = (now - intact).double()
        n = change.numel()
        mean = change.mean().item()
        margin = 1.96 * change.std().item() / n**0.5 if n > 1 else float("nan")
        rows.append(
            {
                "metric": metric,
                "trigram": case,
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
        raise GatedInterpError("bare-tokens")
    task.require_each(probes.case)
