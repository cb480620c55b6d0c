"""How much each head and MLP matters: switched off one by one, or estimated from gradients."""

from typing import Literal, cast

import torch
from jaxtyping import Float
from torch import Tensor

from gated_interp.analysis.attribute.edges import FLAT, EdgeMethod, edge_attribution
from gated_interp.analysis.attribute.graph import Graph
from gated_interp.analysis.attribute.prompts import Metric, Prompts
from gated_interp.analysis.attribute.result import HeadAttribution, found
from gated_interp.analysis.attribute.stream import FIRST, component_names, observed, watch
from gated_interp.analysis.heads import intervened
from gated_interp.anatomy.batch import Batch, Mask, Tokens
from gated_interp.anatomy.nodes import nodes_of
from gated_interp.core.errors import GatedInterpError
from gated_interp.core.precision import wide
from gated_interp.models.toy import HookedTransformer
from gated_interp.tasks.task import require_whole

HeadMethod = Literal["exact", "attribution patching", "EAP", "EAP-IG inputs", "EAP-IG activations"]
HEAD_METHODS = ("exact", "attribution patching", "EAP", "EAP-IG inputs", "EAP-IG activations")
ABLATIONS = ("resample", "mean", "zero")


def attribute_heads(
    model: HookedTransformer,
    clean: Tokens,
    corrupted: Tokens | None = None,
    metric: Metric = "loss",
    *,
    method: HeadMethod = "exact",
    ablation: Literal["resample", "mean", "zero"] = "resample",
    steps: int = 10,
    attention_mask: Mask | None = None,
) -> HeadAttribution:
    """How the metric changes without each head and each MLP.

    Methods, with passes of all prompts, of ``N`` heads and MLPs:

    - ``exact``: the node holds what ``ablation`` says, everything behind it follows. ``N + 2``
      forward, and one more with corrupted prompts. Right by definition, but a node for which
      another steps in (a backup head) scores little.
    - ``attribution patching``: the difference of its activation, corrupted less clean, times the
      gradient on the clean prompts (Nanda, 2023). 4 forward, 1 backward.
    - ``EAP``, ``EAP-IG inputs``, ``EAP-IG activations``: the node's outgoing edges, see
      :func:`attribute_edges`. The signed score is their sum, the absolute score the sum of their
      sizes.

    Args:
        clean, corrupted: ``[batch pos]``, compared row by row. Where no method patches
            (``ablation`` of ``mean`` or ``zero``), corrupted prompts may be left out.
        metric: ``"loss"``, the next-token cross-entropy; ``"kl"`` of the clean prediction from the
            changed one, both in nats and averaged over positions; or a function of logits ``[batch
            pos d_vocab]`` and the clean tokens ``[batch pos]`` that gives ``[batch]`` or ``[batch
            pos]``, such as a logit difference. Each prompt's value must depend on its own logits.
        ablation: of ``exact``. ``resample``: the activation on the corrupted prompt; ``mean``: its
            mean over the clean prompts, at each position; ``zero``.
        steps: of an integration.
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
    require_whole("steps", steps)
    prompts = Prompts(model, clean, corrupted, metric, attention_mask)
    names = nodes_of(model)
    if method == "exact":
        scores, label = _exact(prompts, ablation), f"exact, {ablation}"
        result = found(HeadAttribution, names, scores, prompts, label)
    elif method == "attribution patching":
        result = found(HeadAttribution, names, _patching(prompts), prompts, method)
    else:
        graph = Graph.of(model)
        edges = edge_attribution(prompts, graph, cast(EdgeMethod, method), steps)
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
    assert isinstance(result, HeadAttribution)
    return result


def reference(prompts: Prompts, ablation: str) -> dict[str, Float[Tensor, "batch pos *rest"]]:
    """What ablated heads (at ``hook_z``) and MLPs hold, by hook point."""
    if ablation == "resample":
        bool(prompts.after.any())  # refuses a metric that is the same
        return observed(prompts, prompts.other)
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
    if prompts.metric == "kl":
        raise GatedInterpError("metric-flat-at-clean", metric="kl", method="attribution patching")
    other, parts = observed(prompts, prompts.other), []
    for rows in prompts.rows():
        seen = watch(prompts, prompts.clean[rows], {})
        names = [name for name in seen.at if name != FIRST]
        grads = prompts.gradients(
            prompts.values(seen.logits, rows), [seen.at[name] for name in names]
        )
        each = []
        for name, grad in zip(names, grads, strict=True):
            product = wide((other[name][rows] - seen.at[name].detach()) * grad)
            by_head = product.ndim == 4
            each.append(product.sum((1, 3)) if by_head else product.sum((1, 2))[:, None])
        parts.append(torch.cat(each, 1))
    scores = torch.cat(parts)
    change = float((prompts.after - prompts.before).abs().mean())
    if float(scores.abs().mean(0).sum()) <= FLAT * change:
        raise GatedInterpError(
            "metric-flat-at-clean", metric=prompts.name, method="attribution patching"
        )
    return scores
