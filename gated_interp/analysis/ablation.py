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
from typing import Literal, get_args

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from gated_interp.analysis.heads import (
    Head,
    all_heads,
    head_name,
    intervened,
    require_heads,
)
from gated_interp.analysis.logits import Outcome, kl_divergence, next_token_loss, outcome
from gated_interp.analysis.writes import require_tokens
from gated_interp.core.errors import GatedInterpError
from gated_interp.core.seeds import generator
from gated_interp.models.toy import HookedTransformer
from gated_interp.tasks.skip_trigrams import SkipTrigramTask, TrigramBatch

Method = Literal["zero", "mean", "resample", "optimal"]
Objective = Literal["kl", "loss"]


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
    with intervened(model, _edits(model, named, method, reference_tokens, seed, objective)):
        yield model


@torch.no_grad()
def ablate(
    model: HookedTransformer,
    tokens: Int[Tensor, "batch pos"] | TrigramBatch,
    heads: Sequence[Head] | None = None,
    method: Method = "zero",
    *,
    task: SkipTrigramTask | None = None,
    reference_tokens: Int[Tensor, "reference reference_pos"] | None = None,
    seed: int | None = None,
    objective: Objective = "kl",
) -> pd.DataFrame:
    """What is lost without each head, without all the named heads, and without any head.

    Args:
        tokens: what the model reads; a ``TrigramBatch`` also gives the rows per trigram.
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
    """
    batch = tokens if isinstance(tokens, TrigramBatch) else None
    ids = tokens.tokens if isinstance(tokens, TrigramBatch) else tokens
    require_tokens(model, ids)
    if task is not None:
        _require_trigrams(task, batch)
    named = all_heads(model) if heads is None else require_heads(model, heads)
    sets: list[tuple[str, list[Head]]] = [("head", [head]) for head in named]
    if 1 < len(named) < len(all_heads(model)):
        sets.append(("set", named))
    sets.append(("all", all_heads(model)))

    intact = model(ids)
    before = outcome(intact, intact, ids, batch)
    rows = []
    for kind, members in sets:
        edits = _edits(model, members, method, reference_tokens, seed, objective)
        with intervened(model, edits):
            after = outcome(model(ids), intact, ids, batch)
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


def _require_trigrams(task: SkipTrigramTask, batch: TrigramBatch | None) -> None:
    if batch is None:
        raise GatedInterpError(
            "with a task, give a TrigramBatch such as task.sample(1000, seed=0), not bare tokens."
        )
    for b in task.trigrams:
        if not (batch.trigram == b).any():
            raise GatedInterpError(f"trigram {b} never occurs in the batch; take more sequences.")


def _edits(
    model: HookedTransformer,
    heads: list[Head],
    method: Method,
    reference_tokens: Tensor | None,
    seed: int | None,
    objective: Objective,
) -> dict[str, Callable[[Tensor], Tensor | None]]:
    """For each layer's ``hook_z``, what replaces the named heads' z."""
    if method not in get_args(Method):
        raise GatedInterpError(
            f"method is {method!r}; it must be one of {', '.join(get_args(Method))}."
        )
    if method == "zero":
        zeros = {
            head: torch.zeros_like(model.blocks[head[0]].attn.W_V[head[1], 0]) for head in heads
        }
        return _constant_edits(zeros)
    if reference_tokens is None:
        raise GatedInterpError(f"{method} ablation needs reference_tokens; give a batch of tokens.")
    require_tokens(model, reference_tokens)
    z = _reference_z(model, heads, reference_tokens)
    if method == "resample":
        if seed is None:
            raise GatedInterpError("resample ablation needs a seed; give a whole number.")
        return _resample_edits(z, generator(seed).initial_seed())
    means = {head: each.mean((0, 1)) for head, each in z.items()}
    if method == "mean":
        return _constant_edits(means)
    return _constant_edits(_optimal(model, means, reference_tokens, objective))


def _reference_z(
    model: HookedTransformer, heads: list[Head], tokens: Tensor
) -> dict[Head, Float[Tensor, "reference pos d_head"]]:
    names = {layer: f"blocks.{layer}.attn.hook_z" for layer, _ in heads}
    with torch.no_grad():
        _, cache = model.run_with_cache(tokens, names_filter=list(names.values()))
    return {(layer, head): cache[names[layer]][:, :, head] for layer, head in heads}


def _layer_edits(
    heads: list[Head], value: Callable[[Head, Tensor], Tensor]
) -> dict[str, Callable[[Tensor], Tensor | None]]:
    """An edit per layer that puts ``value(head, z)`` in the place of each head's z."""

    def edit_of(layer: int) -> Callable[[Tensor], Tensor]:
        def edit(z: Tensor) -> Tensor:
            replaced = z.clone()
            for member in heads:
                if member[0] == layer:
                    replaced[:, :, member[1]] = value(member, z).to(z)
            return replaced

        return edit

    return {f"blocks.{layer}.attn.hook_z": edit_of(layer) for layer in {h[0] for h in heads}}


def _constant_edits(
    constants: dict[Head, Float[Tensor, " d_head"]],
) -> dict[str, Callable[[Tensor], Tensor | None]]:
    return _layer_edits(list(constants), lambda head, _z: constants[head])


def _resample_edits(
    reference: dict[Head, Float[Tensor, "reference pos d_head"]], seed: int
) -> dict[str, Callable[[Tensor], Tensor | None]]:
    def value(head: Head, z: Tensor) -> Tensor:
        source = reference[head]
        if z.shape[1] > source.shape[1]:
            raise GatedInterpError(
                f"the reference tokens have {source.shape[1]} positions; resample ablation of "
                f"{z.shape[1]} positions needs as many."
            )
        # A fresh generator per call: every layer and every pass takes the same rows.
        rows = torch.randint(source.shape[0], (z.shape[0],), generator=generator(seed))
        return source[rows.to(source.device), : z.shape[1]]

    return _layer_edits(list(reference), value)


def _optimal(
    model: HookedTransformer,
    means: dict[Head, Float[Tensor, " d_head"]],
    tokens: Tensor,
    objective: Objective,
) -> dict[Head, Float[Tensor, " d_head"]]:
    """The constants that minimise the objective over ``tokens``, by L-BFGS from the means.

    Never worse on ``tokens`` than zeros or the means: those are kept where nothing better is
    found (with one linear layer the problem is convex).
    """
    if objective not in get_args(Objective):
        raise GatedInterpError(f"objective is {objective!r}; it must be 'kl' or 'loss'.")
    with torch.no_grad():
        intact = model(tokens).log_softmax(-1)

    def cost(constants: dict[Head, Tensor]) -> Tensor:
        with intervened(model, _constant_edits(constants)):
            logits = model(tokens)
        if objective == "loss":
            return next_token_loss(logits, tokens).mean()
        return kl_divergence(intact, logits.log_softmax(-1)).mean()

    free = {head: mean.clone().requires_grad_() for head, mean in means.items()}
    leaves = list(free.values())
    search = torch.optim.LBFGS(leaves, max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> float:
        with torch.enable_grad():
            value = cost(free)
        # Only the constants get gradients; the model's parameters keep theirs.
        for leaf, grad in zip(leaves, torch.autograd.grad(value, leaves), strict=True):
            leaf.grad = grad
        return value.item()

    search.step(closure)  # type: ignore[no-untyped-call]
    found = {head: leaf.detach() for head, leaf in free.items()}
    zeros = {head: torch.zeros_like(mean) for head, mean in means.items()}
    with torch.no_grad():
        return min((found, means, zeros), key=lambda c: _finite(cost(c)))


def _finite(value: Tensor) -> float:
    return float(value) if bool(value.isfinite()) else float("inf")
