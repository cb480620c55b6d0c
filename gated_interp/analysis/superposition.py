"""Is a model's attention in superposition? One report per model and task.

Words that the report keeps apart, each about one representation (case):

- ``learnt``: its C tops the logits in more than 99% of its examples.
- ``distributed``: learnt, and no single head is its sole owner (the verdict's definition).
- ``composed``: it has a sole owner where the case occurs, but the owner alone also answers C
  where B stands without any A before it, which the whole model does not: another head decides. This
  is the two-head model of Conerly, Jermyn & Olah (July 2023), a computation distributed over two
  heads, whose heads still do one thing each.
- ``superposed``: distributed, **and** some head that carries it also carries another learnt
  representation. Distributed is not yet superposed: two heads that hold one thing together and
  nothing else are not in superposition.

The formulas are in :mod:`~gated_interp.analysis.measures` and
:mod:`~gated_interp.analysis.faithfulness`.
"""

from typing import Any

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from gated_interp.analysis.faithfulness import dead_heads, faithfulness
from gated_interp.analysis.measures import (
    cancellation,
    carries,
    example_loadings,
    heads_per_representation,
    participation_ratio,
    purity,
    representations_per_head,
    shares,
    top1_mass,
)
from gated_interp.analysis.verdict import EXAMPLES, SEED, THRESHOLD, Verdict, verdict_from_writes
from gated_interp.analysis.writes import ProbeWrites, head_writes, probe_writes
from gated_interp.anatomy.batch import token_vocabulary
from gated_interp.core.errors import GatedInterpError
from gated_interp.core.seeds import derive, generator
from gated_interp.core.streams import Stream
from gated_interp.metrics.predictions import leads
from gated_interp.models.toy import HookedTransformer
from gated_interp.replacements.splice import chosen_layer
from gated_interp.tasks.skip_trigrams import SkipTrigramTask
from gated_interp.tasks.task import ProbedTask, Probes, foils_for

COLUMNS = ["scope", "measure", "trigram", "head", "value", "low", "high"]


def loading_matrix(
    model: HookedTransformer,
    task: ProbedTask,
    *,
    layer: int | None = None,
    n: int = EXAMPLES,
    seed: int = SEED,
) -> Float[Tensor, "representation head_index"]:
    """The loading of every representation (row, case 1 first) on every head, in logits.

    See :func:`~gated_interp.analysis.measures.example_loadings`. What heads write is read on its
    direct path to the logits, norms at their scale in the same pass, logits before a cap.

    Args:
        layer: whose heads; may be left out where it is the only one, or the only one spliced.
        n, seed: sequences with exactly one case each (the verdict's by default).

    Raises:
        GatedInterpError: a model that is not of the task's vocabulary, or a case that never
            occurs.

    Examples:
        >>> from gated_interp.models.analytic import manual_model
        >>> truth = manual_model(2, 3)  # trigram 1 is held by head 0, 2 by head 1, 3 by both
        >>> loading_matrix(truth.model, truth.task)[:2].round(decimals=2).tolist()
        [[2.14, 0.0], [0.0, 2.14]]
    """
    layer = chosen_layer(model, layer, first=True)
    return loading_from_writes(probe_writes(model, task, n, seed, layer, direct=True))


def loading_from_writes(probed: ProbeWrites) -> Float[Tensor, "representation head_index"]:
    """The loading matrix from what each head writes at each probe, see :func:`loading_matrix`."""
    found = probed.double()
    each = example_loadings(found.writes, found.probes.target)
    return torch.stack([each[found.probes.case == b].mean(0) for b in found.probes.cases])


def superposition_report(
    model: HookedTransformer,
    task: ProbedTask,
    *,
    n: int = EXAMPLES,
    seed: int = SEED,
    replicates: int = 200,
) -> pd.DataFrame:
    """Every superposition measure of a one-layer model, with 95% bootstrap intervals.

    Args:
        model: a toy, or one with a gated block spliced in (which adds ``fvu``, ``kl`` and
            ``original_cross_entropy``).
        n, seed: ``n`` sequences with exactly one case (as the verdict's) for what is measured
            at cases, and ``n`` ordinary ones for the rest; the seed also draws the bootstrap.
        replicates: bootstrap samples: examples within each case, or whole sequences.

    Returns:
        One row per value. Columns: ``scope`` (``model``, ``representation``, ``head`` or
        ``loading``), ``measure``, ``trigram`` and ``head`` (missing where not of one), ``value``,
        ``low``, ``high`` (missing for counts and yes/no measures). Measures by scope:

        - representation: ``learnt``, ``distributed``, ``composed``, ``superposed`` (1 or 0),
          ``accuracy``, ``false_alarms`` (share of Bs without an A at which C is on top),
          ``participation_ratio``, ``top1_mass``, ``heads_per_representation``, ``cancellation``;
        - head: ``representations_per_head``, ``dead`` (1 or 0);
        - loading: ``loading`` (logits) and ``share``, per representation and head;
        - model: the numbers of learnt, distributed, composed and superposed representations and
          of dead heads (``n_learnt``...), ``purity``, the means over representations or heads of
          the measures above, ``l0``, ``cross_entropy`` and, if spliced, ``fvu``, ``kl``,
          ``original_cross_entropy``.

    Raises:
        GatedInterpError: as :func:`loading_matrix`; fewer than 2 replicates.

    Examples:
        >>> from gated_interp.models.analytic import manual_model
        >>> truth = manual_model(2, 3)  # trigram 1 is held by head 0, 2 by head 1, 3 by both
        >>> report = superposition_report(truth.model, truth.task, n=100, replicates=2)
        >>> rows = report.query("scope == 'representation' and measure == 'superposed'")
        >>> rows["value"].tolist()
        [0.0, 0.0, 1.0]
    """
    if replicates < 2:
        raise GatedInterpError("too-small", name="replicates", value=replicates, least=2)
    probed = probe_writes(model, task, n, seed).double()
    writes, probes = probed.writes, probed.probes
    found = verdict_from_writes(writes, probed.logits, probes)
    tokens = task.sample(n, derive(seed, Stream.REPORT_SEQUENCES)).tokens.to(model.embed.W_E.device)
    source = generator(derive(seed, Stream.REPORT_REPLICATES))
    if isinstance(task, SkipTrigramTask):
        foils = task.foils_in(tokens)
    else:  # whose sequences do not say where their foils are
        foils = foils_for(task, token_vocabulary(model), n, derive(seed, Stream.REPORT_SEQUENCES))
    alarms, alone = false_alarms_by_head(model, task, foils)
    dead = dead_heads(model, tokens=tokens)
    rows = _loading_rows(task, writes, probes, replicates, source)

    loading = loading_from(rows, len(task.cases), writes.shape[1])
    words = classify(found, loading, alarms, alone)
    for b in task.cases:
        for word, members in words.items():
            rows.append(_row("representation", word, float(b in members), case=b))
        rows.append(_row("representation", "accuracy", found.accuracy[b], case=b))
        rows.append(_row("representation", "false_alarms", alarms[b - 1].item(), case=b))
    for h in range(writes.shape[1]):
        rows.append(_row("head", "dead", float(h in dead), head=h))
    for word, members in words.items():
        rows.append(_row("model", f"n_{word}", float(len(members))))
    rows.append(_row("model", "n_dead_heads", float(len(dead))))

    faithful = faithfulness(model, tokens=tokens)
    weights = _resampled(tokens.shape[0], replicates, source)
    spread = faithful.measures(weights)
    for measure, value in faithful.measures().items():
        rows.append(_row("model", measure, value[0].item(), spread[measure]))
    return pd.DataFrame(rows, columns=COLUMNS).astype({"trigram": "Int64", "head": "Int64"})


def classify(
    found: Verdict,
    loading: Float[Tensor, "representation head_index"],
    alarms: Float[Tensor, " representation"],
    alone: Float[Tensor, "representation head_index"],
) -> dict[str, list[int]]:
    """The cases that are learnt, distributed, composed and superposed.

    Args:
        found: the verdict.
        loading: the loading matrix.
        alarms: false alarms of the model.
        alone: false alarms of each head on its own.
    """
    carried = carries(loading)
    learnt = [b - 1 for b in found.learnt]
    busy = carried[learnt].sum(0) > 1  # [head_index]: carries two learnt representations
    superposed = [b for b in found.distributed if bool((busy & (carried[b - 1] > 0)).any())]
    composed = []
    for b in found.learnt:
        owners = found.owners[b]
        quiet = 1 - alarms[b - 1] > THRESHOLD
        if owners and quiet and bool((1 - alone[b - 1, owners] <= THRESHOLD).all()):
            composed.append(b)
    return {
        "learnt": found.learnt,
        "distributed": found.distributed,
        "composed": composed,
        "superposed": superposed,
    }


def false_alarms_by_head(
    model: HookedTransformer, task: ProbedTask, foils: Probes
) -> tuple[Float[Tensor, " representation"], Float[Tensor, "representation head_index"]]:
    """How often C is on top at foils (a B that no A precedes): of the model, of each head alone.

    Alone: every other head zero-ablated, embedding and biases left. From 0 (the model knows that
    A has to come first) to 1 (it answers the query token).
    """
    foils = foils.to(model.embed.W_E.device)
    b, c = foils.case, foils.target
    task.require_each(b, "case-without-foils")
    writes, logits = head_writes(model, foils.tokens, foils.row, foils.position)
    whole = (leads(logits, c) > 0).double()
    base = logits - writes.sum(1)
    only = base[:, None] + writes  # [example head_index d_vocab]
    each = (leads(only, c[:, None].expand(-1, writes.shape[1])) > 0).double()
    of_model, of_head = [], []
    for case in task.cases:
        mine = b == case
        of_model.append(whole[mine].mean())
        of_head.append(each[mine].mean(0))
    return torch.stack(of_model).cpu(), torch.stack(of_head).cpu()


def loading_from(
    rows: list[dict[str, Any]], n_trigrams: int, n_heads: int
) -> Float[Tensor, "representation head_index"]:
    """The loading matrix out of a report's rows (``report.to_dict("records")``)."""
    loading = torch.zeros(n_trigrams, n_heads, dtype=torch.double)
    for row in rows:
        if row["measure"] == "loading":
            loading[row["trigram"] - 1, row["head"]] = row["value"]
    return loading


def _loading_rows(
    task: ProbedTask,
    writes: Float[Tensor, "example head_index d_vocab"],
    probes: Probes,
    replicates: int,
    source: torch.Generator,
) -> list[dict[str, Any]]:
    """Rows for everything that follows from what heads write at cases."""
    each = example_loadings(writes, probes.target)
    undone = cancellation(writes)
    # Replicate 0 is the sample itself: one computation gives values and intervals.
    loading, undoing = [], []
    for b in task.cases:
        mine = probes.case == b
        count = int(mine.sum())
        weights = _resampled(count, replicates, source)
        weights = torch.cat([torch.ones(1, count, dtype=torch.double), weights]) / count
        loading.append(weights @ each[mine])
        undoing.append(weights @ undone[mine])
    L, undo = torch.stack(loading, 1), torch.stack(undoing, 1)  # [replicate representation (head)]

    rows = []
    by_representation = {
        "participation_ratio": participation_ratio(L),
        "top1_mass": top1_mass(L),
        "heads_per_representation": heads_per_representation(L),
        "cancellation": undo,
    }
    by_head = {"representations_per_head": representations_per_head(L)}
    for measure, values in {"loading": L, "share": shares(L)}.items():
        for b in task.cases:
            for h in range(L.shape[-1]):
                value = values[:, b - 1, h]
                rows.append(_row("loading", measure, value[0].item(), value[1:], case=b, head=h))
    for measure, values in by_representation.items():
        for b in task.cases:
            value = values[:, b - 1]
            rows.append(_row("representation", measure, value[0].item(), value[1:], case=b))
    for measure, values in by_head.items():
        for h in range(L.shape[-1]):
            value = values[:, h]
            rows.append(_row("head", measure, value[0].item(), value[1:], head=h))
    means = {name: values.mean(-1) for name, values in {**by_representation, **by_head}.items()}
    for measure, value in {"purity": purity(L), **means}.items():
        rows.append(_row("model", measure, value[0].item(), value[1:]))
    return rows


def _resampled(
    count: int, replicates: int, source: torch.Generator
) -> Float[Tensor, "replicate example"]:
    """How often each example is drawn in each bootstrap sample."""
    drawn = torch.randint(count, (replicates, count), generator=source)
    weights = torch.zeros(replicates, count, dtype=torch.double)
    return weights.scatter_add_(1, drawn, torch.ones_like(weights))


def _row(
    scope: str,
    measure: str,
    value: float,
    replicates: Tensor | None = None,
    *,
    case: int | None = None,
    head: int | None = None,
) -> dict[str, Any]:
    low = high = float("nan")
    if replicates is not None:
        ends = torch.quantile(replicates.double(), torch.tensor([0.025, 0.975]).double())
        low, high = ends.tolist()
    return dict(zip(COLUMNS, (scope, measure, case, head, value, low, high), strict=True))
