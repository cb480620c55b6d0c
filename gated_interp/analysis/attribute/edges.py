"""How much each edge matters: cut one by one, or estimated from gradients."""

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from gated_interp.analysis.attribute.acdc import acdc
from gated_interp.analysis.attribute.cut import Cutter
from gated_interp.analysis.attribute.graph import Graph
from gated_interp.analysis.attribute.prompts import Metric, Prompts
from gated_interp.analysis.attribute.result import EdgeAttribution, found, share_of
from gated_interp.analysis.attribute.stream import (
    FIRST,
    component_names,
    observed,
    receiver_gradients,
    watch,
    writes,
)
from gated_interp.anatomy.batch import Mask, Tokens
from gated_interp.core.errors import GatedInterpError
from gated_interp.models.toy import HookedTransformer
from gated_interp.tasks.task import require_whole

EdgeMethod = Literal["exact", "EAP", "EAP-IG inputs", "EAP-IG activations", "ACDC"]
EDGE_METHODS = ("exact", "EAP", "EAP-IG inputs", "EAP-IG activations", "ACDC")
STEPS = 8
"""Of an integration: with these, ``EAP-IG inputs`` takes 19 passes."""
ONE_STEP = ("attribution patching", "AtP*", "EAP")
FLAT = 1e-5
"""One-step scores below this share of the metric's change are rounding: the gradient is zero."""


def attribute_edges(
    model: HookedTransformer,
    clean: Tokens,
    corrupted: Tokens,
    metric: Metric = "loss",
    *,
    method: EdgeMethod = "EAP-IG inputs",
    steps: int = STEPS,
    thresholds: Sequence[float] | None = None,
    attention_mask: Mask | None = None,
) -> EdgeAttribution:
    """How the metric changes as each edge carries what it carries on the corrupted prompts.

    Edges go from the embedding, heads and MLPs to what reads the stream after them: queries, keys
    and values of each head, gates of a gated block, MLPs and the logits. Keys and values that
    heads share are one receiver, such as ``L0KV0.k``.

    Methods, with passes of all prompts, of ``E`` edges, ``C`` components (the embedding, each
    layer's heads and each MLP), ``m`` steps and ``T`` thresholds:

    - ``exact``: each edge alone is cut, ``E + 2`` forward. Right by definition, but an edge whose
      work another edge does as well scores little.
    - ``EAP``: the difference of what the sender writes times the gradient at the receiver's input
      on the clean prompts (Syed et al., 2023). 3 forward, 1 backward.
    - ``EAP-IG inputs``: the same gradient averaged over embeddings on the way from clean to
      corrupted (Hanna et al., 2024, arXiv 2403.17806). ``m + 3`` forward, ``m`` backward. Points
      are the middles of ``m`` equal steps, where the paper takes their ends: the error falls with
      the square of ``m``.
    - ``EAP-IG activations``: averaged over what the sender's own component writes, all others
      clean. ``(m + 1) C + 3`` forward, ``m C`` backward.
    - ``ACDC``: edges are cut one after another, from the logits back, and stay cut where the metric
      changes by less than a threshold (Conmy et al., 2023, arXiv 2304.14997). ``T E + 2``
      forward for ``T`` thresholds. The absolute score is the largest threshold at which the edge is
      kept, the signed one the change that decided at the lowest threshold.

    Args:
        clean, corrupted: ``[batch pos]``, compared row by row.
        metric: see :func:`attribute_heads`.
        steps: of an integration.
        thresholds: of ACDC, as shares of the metric's change from clean to corrupted, the size of
            its mean. Unless given, eight from 0.1% to 30%.
        attention_mask: ``[batch pos]``, 1 at tokens and 0 at padding, of clean and corrupted alike.

    Returns:
        Scores, with intervals over prompts, passes and :meth:`~EdgeAttribution.table`.

    Raises:
        GatedInterpError: prompts of different shapes, a metric that is constant, has no gradient or
            (``EAP``) a gradient of zero on the clean prompts, a layer without queries and keys, and
            for ``exact`` and ``ACDC`` a norm behind attention.

    Warns:
        GatedInterpWarning: integrated scores do not add up to the change that they should.

    Examples:
        >>> from gated_interp.models.analytic_tasks import induction_model
        >>> truth = induction_model()
        >>> clean = truth.task.sample(8, seed=0).tokens
        >>> corrupted = truth.task.sample(8, seed=1).tokens
        >>> edges = attribute_edges(truth.model, clean, corrupted, method="exact")
        >>> edges
        EdgeAttribution(12 edges, exact, 14 forward and 0 backward passes)
    """
    if method not in EDGE_METHODS:
        raise GatedInterpError(
            "not-one-of", name="method", value=method, choices=list(EDGE_METHODS)
        )
    require_whole("steps", steps)
    prompts = Prompts(model, clean, corrupted, metric, attention_mask)
    graph = Graph.of(model)
    return edge_attribution(prompts, graph, method, steps, thresholds)


def edge_attribution(
    prompts: Prompts,
    graph: Graph,
    method: str,
    steps: int,
    thresholds: Sequence[float] | None = None,
) -> EdgeAttribution:
    """See :func:`attribute_edges`."""
    absolute, complete = None, None
    if method == "exact":
        cutter, none = Cutter(prompts, graph), torch.zeros_like(graph.there)
        prompts.require_change()
        each = []
        for r, s in graph.there.nonzero().tolist():
            cut = none.clone()
            cut[r, s] = True
            each.append(cutter.metric(cut) - prompts.before)
        scores = torch.stack(each, 1)
    elif method == "ACDC":
        scores, absolute = acdc(prompts, graph, thresholds)
    else:
        if method == "EAP" and prompts.metric == "kl":
            raise GatedInterpError("metric-flat-at-clean", metric="kl", method=method)
        by_receiver, complete = _estimated(prompts, graph, method, steps)
        scores = by_receiver[:, graph.there]
        if method == "EAP":
            require_slope(prompts, scores, method)
    return found(
        EdgeAttribution, graph.edges, scores, prompts, method, absolute=absolute, complete=complete
    )


def require_slope(prompts: Prompts, scores: Float[Tensor, "batch name"], method: str) -> None:
    """Refuse one-step scores that are all rounding."""
    if float(scores.abs().mean(0).sum()) <= FLAT * prompts.require_change():
        raise GatedInterpError("metric-flat-at-clean", metric=prompts.name, method=method)


def _estimated(
    prompts: Prompts, graph: Graph, method: str, steps: int
) -> tuple[Float[Tensor, "batch receiver sender"], float | None]:
    """Scores from gradients; of integrations, the share of the change that they add up to."""
    other = observed(prompts, prompts.other)
    prompts.require_change()
    intact = None if method == "EAP" else observed(prompts, prompts.clean)
    names = [FIRST] if method != "EAP-IG activations" else component_names(prompts.model)
    scores = prompts.before.new_zeros(len(prompts), *graph.there.shape)
    totals, changes = [], []
    for name in names:
        senders = _senders(graph, name) if len(names) > 1 else slice(0, len(graph.senders))
        added = _along(
            prompts, graph, intact, other, name, senders, 0 if method == "EAP" else steps
        )
        scores[:, :, senders] += added * graph.there[:, senders]
        through = slice(0, 1) if len(names) == 1 else senders
        totals.append((scores * graph.there)[:, :, through].sum((1, 2)))
        changes.append(
            prompts.after - prompts.before
            if len(names) == 1
            else _patched(prompts, name, other) - prompts.before
        )
    if method == "EAP":
        return scores, None
    if len(names) == 1:
        return scores, share_of(totals[0], changes[0])
    missed = sum(float((t - c).mean().abs()) for t, c in zip(totals, changes, strict=True))
    return scores, 1 - missed / max(sum(float(c.mean().abs()) for c in changes), 1e-30)


def _senders(graph: Graph, name: str) -> slice:
    """The senders that write what stands at a hook point."""
    if name == FIRST:
        return slice(0, 1)
    layer = int(name.split(".")[1])
    if name.endswith("hook_z"):
        return graph.heads[layer]
    return slice(graph.mlps[layer][0], graph.mlps[layer][0] + 1)


def _patched(prompts: Prompts, name: str, other: dict[str, Tensor]) -> Float[Tensor, " batch"]:
    """The metric with all of a component from the corrupted prompts."""
    with torch.no_grad():
        each = [
            prompts.values(
                watch(prompts, prompts.clean[rows], {name: other[name][rows]}).logits, rows
            )
            for rows in prompts.rows()
        ]
    return torch.cat(each)


def _along(
    prompts: Prompts,
    graph: Graph,
    intact: dict[str, Tensor] | None,
    other: dict[str, Tensor],
    name: str,
    senders: slice,
    steps: int,
) -> Float[Tensor, "batch receiver sender"]:
    """What senders write differently, times gradients averaged while ``name`` is changed over.

    Args:
        intact: what stands at hook points on the clean prompts; ``None`` if nothing is changed over
            (no ``steps``), as the pass for the gradient then is that on the clean prompts.
    """
    model, parts = prompts.model, []
    points = [(i + 0.5) / steps for i in range(steps)] or [0.0]
    for rows in prompts.rows():
        there = {k: v[rows] for k, v in other.items()}
        here = None if intact is None else {k: v[rows] for k, v in intact.items()}
        summed: dict[int, Tensor] = {}
        for share in points:
            put = {} if here is None else {name: here[name].lerp(there[name], share)}
            seen = watch(prompts, prompts.clean[rows], put, receivers=graph)
            values = prompts.values(seen.logits, rows)
            found_at = prompts.gradients(values, list(seen.at.values()))
            grad = dict(zip(seen.at, found_at, strict=True))
            for where, each in receiver_gradients(model, graph, seen, grad):
                if where.start in summed:
                    summed[where.start] += each
                else:
                    summed[where.start] = each.clone()
        if here is None:
            here = {k: v.detach() for k, v in seen.at.items()} | seen.scales
        differ = {k: there[k] - here[k] for k in component_names(model)}
        with torch.no_grad():
            delta = writes(model, differ, here)[senders].transpose(0, 1).flatten(2)
            parts.append(_products(graph, delta, summed) / len(points))
    return torch.cat(parts)


def _products(
    graph: Graph, delta: Float[Tensor, "batch sender x"], gradients: dict[int, Tensor]
) -> Float[Tensor, "batch receiver sender"]:
    """Products of what senders write and the gradients of receivers, some receivers at a time."""
    scores = delta.new_zeros(len(delta), len(graph.receivers), delta.shape[1])
    for first, each in gradients.items():
        reads = each.permute(0, 2, 1, 3).flatten(2).to(delta)
        scores[:, first : first + reads.shape[1]] = torch.bmm(reads, delta.transpose(1, 2))
    return scores
