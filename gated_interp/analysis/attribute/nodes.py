"""How much each head and MLP matters: switched off one by one, or estimated from gradients."""

import dataclasses
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from gated_interp.analysis.attribute.edges import (
    ONE_STEP,
    STEPS,
    edge_attribution,
    require_slope,
)
from gated_interp.analysis.attribute.gating import gated
from gated_interp.analysis.attribute.graph import Graph
from gated_interp.analysis.attribute.prompts import Metric, Prompts
from gated_interp.analysis.attribute.result import HeadAttribution, found
from gated_interp.analysis.attribute.star import at_p_star
from gated_interp.analysis.attribute.stream import by_node, component_names, observed, watch
from gated_interp.analysis.heads import intervened
from gated_interp.anatomy.batch import Batch, Mask, Tokens
from gated_interp.anatomy.nodes import nodes_of
from gated_interp.core.errors import GatedInterpError
from gated_interp.models.toy import HookedTransformer
from gated_interp.tasks.task import require_whole

HeadMethod = Literal[
    "exact",
    "attribution patching",
    "AtP*",
    "EAP",
    "EAP-IG inputs",
    "EAP-IG activations",
    "causal head gating",
]
HEAD_METHODS: tuple[HeadMethod, ...] = get_args(HeadMethod)
ABLATIONS = ("resample", "mean", "zero")
GATING_STEPS = 100


def attribute_heads(
    model: HookedTransformer,
    clean: Tokens,
    corrupted: Tokens | None = None,
    metric: Metric = "loss",
    *,
    method: HeadMethod = "exact",
    ablation: Literal["resample", "mean", "zero"] = "resample",
    steps: int | None = None,
    seed: int = 0,
    attention_mask: Mask | None = None,
) -> HeadAttribution:
    """How the metric changes without each head and each MLP.

    Methods, with passes of all prompts, of ``N`` heads and MLPs:

    - ``exact``: the node holds what ``ablation`` says, everything behind it follows. ``N + 2``
      forward, one more for ``zero`` and ``mean``. Right by definition, but a node for which
      another steps in (a backup head) scores little.
    - ``attribution patching``: the difference of its activation, corrupted less clean, times the
      gradient on the clean prompts (Nanda, 2023). 3 forward, 1 backward.
    - ``AtP*``: the same with two corrections (Kramár et al., 2024, arXiv 2403.00745). GradDrop, for
      effects that cancel: the absolute score is the mean size over prompts and over gradients that
      each leave out what one of ``L`` layers adds to the stream, times ``L / (L - 1)``; of one
      layer it is the size on the prompts. And queries and keys, in ``inputs``, are scored by the
      attention pattern that they make, computed and not estimated, as softmax may be saturated. A
      head's keys are patched at all positions at once. 5 forward, ``L + 1`` backward
      (1 if ``L`` is 1).
    - ``EAP``, ``EAP-IG inputs``, ``EAP-IG activations``: the node's outgoing edges, see
      :func:`attribute_edges`. The signed score is their sum, the absolute score the sum of their
      sizes.
    - ``causal head gating``: of heads alone. Gates from 0 to 1 on what heads write are fitted to
      the metric, once drawn open (``G+``) and once shut (``G-``), see ``roles`` (Nam et al., 2025,
      arXiv 2505.13737). The penalty weighs 0.1 in any unit, so give ``"loss"``, ``"kl"`` or a
      function in nats; of a function, worse is where the corrupted prompts move it. The signed
      score is ``G+ + G- - 1``: 1 facilitates, -1 interferes. It is of all prompts together, so it
      has no interval. ``3 m + 2`` forward, ``3 m`` backward for ``m`` steps.

    Args:
        clean, corrupted: ``[batch pos]``, compared row by row. Where no method patches
            (``ablation`` of ``mean`` or ``zero``, or gating with ``"loss"`` or ``"kl"``), corrupted
            prompts may be left out.
        metric: ``"loss"``, the next-token cross-entropy; ``"kl"`` of the clean prediction from the
            changed one, both in nats and averaged over positions; or a function of logits ``[batch
            pos d_vocab]`` and the clean tokens ``[batch pos]`` that gives ``[batch]`` or ``[batch
            pos]``, such as a logit difference. Each prompt's value must depend on its own logits.
        ablation: of ``exact``. ``resample``: the activation on the corrupted prompt; ``mean``: its
            mean over the clean prompts, at each position; ``zero``.
        steps: of an integration (8 unless given), or of each of the three fits of gates (100).
        seed: of the first gates.
        attention_mask: ``[batch pos]``, 1 at tokens and 0 at padding, of clean and corrupted alike.

    Returns:
        Scores, with intervals over prompts, passes and :meth:`~HeadAttribution.table`.

    Raises:
        GatedInterpError: prompts of different shapes, corrupted prompts that are needed and not
            given, a metric that is constant, has no gradient or (one-step methods) a gradient of
            zero on the clean prompts.

    Warns:
        GatedInterpWarning: integrated scores do not add up to the change that they should.

    Examples:
        >>> from gated_interp.models.analytic_tasks import induction_model
        >>> truth = induction_model()
        >>> clean = truth.task.sample(8, seed=0).tokens
        >>> corrupted = truth.task.sample(8, seed=1).tokens
        >>> heads = attribute_heads(truth.model, clean, corrupted)
        >>> sorted(heads.names)
        ['L0H0', 'L1H0']
        >>> bool((heads.mean > 0).all())  # the loss rises without either
        True
    """
    for name, value, choices in (
        ("method", method, HEAD_METHODS),
        ("ablation", ablation, ABLATIONS),
    ):
        if value not in choices:
            raise GatedInterpError("not-one-of", name=name, value=value, choices=list(choices))
    if steps is None:
        steps = GATING_STEPS if method == "causal head gating" else STEPS
    require_whole("steps", steps)
    prompts = Prompts(model, clean, corrupted, metric, attention_mask)
    names = nodes_of(model)
    if method in ONE_STEP and metric == "kl":
        raise GatedInterpError("metric-flat-at-clean", metric="kl", method=method)
    if method == "exact":
        scores, label = _exact(prompts, ablation), f"exact, {ablation}"
        result = found(HeadAttribution, names, scores, prompts, label)
    elif method == "attribution patching":
        scores = _patching(prompts)
        require_slope(prompts, scores, method)
        result = found(HeadAttribution, names, scores, prompts, method)
    elif method == "AtP*":
        (scores, size), inputs, (of_inputs, sizes) = at_p_star(prompts, Graph.of(model))
        require_slope(prompts, torch.cat([scores, of_inputs], 1), method)
        nodes = found(HeadAttribution, names, scores, prompts, method, absolute=size)
        parts = found(HeadAttribution, inputs, of_inputs, prompts, method, absolute=sizes)
        result = dataclasses.replace(nodes, inputs=parts)
    elif method == "causal head gating":
        heads, score, roles = gated(prompts, steps, seed)
        result = found(HeadAttribution, heads, score[None], prompts, method)
        result = dataclasses.replace(result, roles=roles)
    else:
        graph = Graph.of(model)
        edges = edge_attribution(prompts, graph, method, steps)
        sender = torch.tensor([graph.senders.index(s) for s, _ in graph.edges])
        pick = (sender[:, None] == torch.arange(1, len(graph.senders))).to(edges.scores)
        result = HeadAttribution(
            names,
            edges.scores @ pick,
            edges.absolute @ pick,
            method,
            edges.metric,
            edges.forward,
            edges.backward,
            edges.change,
            edges.complete,
        )
    return result


def reference(prompts: Prompts, ablation: str) -> dict[str, Float[Tensor, "batch pos *rest"]]:
    """What ablated heads (at ``hook_z``) and MLPs hold, by hook point."""
    if ablation == "resample":
        other = observed(prompts, prompts.other)
        prompts.require_change()
        return other
    seen = observed(prompts, prompts.clean)
    if ablation == "zero":
        return {name: torch.zeros_like(x) for name, x in seen.items()}
    return {name: mean_by_position(x, prompts.clean) for name, x in seen.items()}


def mean_by_position(x: Float[Tensor, "batch pos *rest"], batch: Batch) -> Tensor:
    """The mean over prompts at each position, of those that have a token there; as large as x."""
    weight = batch.counted.view(*batch.counted.shape, *[1] * (x.ndim - 2)).double()
    mean = (x.double() * weight).sum(0) / weight.sum(0).clamp(min=1)
    return mean.to(x).expand_as(x)


@torch.no_grad()
def _exact(prompts: Prompts, ablation: str) -> Float[Tensor, "batch node"]:
    held = reference(prompts, ablation)
    each: list[Tensor] = []
    for name in component_names(prompts.model)[1:]:
        heads = range(held[name].shape[2]) if name.endswith("hook_z") else [None]
        each += [_without(prompts, name, head, held[name]) - prompts.before for head in heads]
    if prompts.corrupted is None and not any(bool((x != 0).any()) for x in each):
        raise GatedInterpError("metric-constant-without", metric=prompts.name)
    return torch.stack(each, 1)


def _without(
    prompts: Prompts, name: str, head: int | None, held: Tensor
) -> Float[Tensor, " batch"]:
    """The metric where a head, or all that stands at a hook point, holds something else."""
    parts = []
    for rows in prompts.rows():

        def edit(x: Tensor, rows: slice = rows) -> Tensor:
            x = x.clone()
            at = (slice(None), slice(None), *(() if head is None else (head,)))
            x[at] = held[rows][at].to(x)
            return x

        with intervened(prompts.model, {name: edit}):
            logits = prompts.logits(prompts.clean[rows])
        parts.append(prompts.values(logits, rows))
    return torch.cat(parts)


def _patching(prompts: Prompts) -> Float[Tensor, "batch node"]:
    other, parts = observed(prompts, prompts.other), []
    names = component_names(prompts.model)[1:]
    for rows in prompts.rows():
        seen = watch(prompts, prompts.clean[rows], {})
        values = prompts.values(seen.logits, rows)
        found = prompts.gradients(values, [seen.at[name] for name in names])
        there = {name: other[name][rows] for name in names}
        grad = dict(zip(names, found, strict=True))
        parts.append(by_node(prompts.model, there, seen.at, grad))
    return torch.cat(parts)
