"""What replaces an ablated head's z, by method; see :mod:`gated_interp.analysis.ablation`."""

from collections.abc import Callable
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from gated_interp.analysis.heads import Head, intervened
from gated_interp.analysis.writes import require_tokens
from gated_interp.core.errors import GatedInterpError
from gated_interp.core.seeds import generator
from gated_interp.metrics.predictions import kl_divergence, next_token_loss
from gated_interp.models.toy import HookedTransformer

Method = Literal["zero", "mean", "resample", "optimal"]
Objective = Literal["kl", "loss"]


def replacements(
    model: HookedTransformer,
    heads: list[Head],
    method: Method,
    reference_tokens: Tensor | None,
    seed: int | None,
    objective: Objective,
) -> dict[str, Callable[[Tensor], Tensor | None]]:
    """For each layer's ``hook_z``, the edit that replaces the named heads' z.

    Raises:
        GatedInterpError: an unknown method or objective, or a reference batch or seed that is
            missing or that the model cannot read.
    """
    if method not in get_args(Method):
        raise GatedInterpError(
            f"method is {method!r}; it must be one of {', '.join(get_args(Method))}."
        )
    if method == "resample":
        z = _reference_z(model, heads, method, reference_tokens)
        if seed is None:
            raise GatedInterpError("resample ablation needs a seed; give a whole number.")
        return _resample_edits(z, generator(seed).initial_seed())
    if method == "optimal":
        means = constants(model, heads, method, reference_tokens)
        assert reference_tokens is not None
        return _constant_edits(_optimal(model, means, reference_tokens, objective))
    return _constant_edits(constants(model, heads, method, reference_tokens))


def constants(
    model: HookedTransformer, heads: list[Head], method: Method, reference_tokens: Tensor | None
) -> dict[Head, Float[Tensor, " d_head"]]:
    """The z that ``zero`` ablation puts in each head's place, or else its mean over a reference.

    Raises:
        GatedInterpError: a reference batch that is missing or that the model cannot read.
    """
    if method == "zero":
        return {
            head: torch.zeros_like(model.blocks[head[0]].attn.W_O[head[1], :, 0]) for head in heads
        }
    z = _reference_z(model, heads, method, reference_tokens)
    return {head: each.mean((0, 1)) for head, each in z.items()}


def _reference_z(
    model: HookedTransformer, heads: list[Head], method: Method, tokens: Tensor | None
) -> dict[Head, Float[Tensor, "reference pos d_head"]]:
    if tokens is None:
        raise GatedInterpError(f"{method} ablation needs reference_tokens; give a batch of tokens.")
    require_tokens(model, tokens)
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
