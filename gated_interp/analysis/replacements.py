"""What replaces an ablated head's z, by method; see :mod:`gated_interp.analysis.ablation`."""

from collections.abc import Callable
from typing import Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from gated_interp.analysis.heads import Head, intervened
from gated_interp.anatomy.batch import Batch, Mask, Tokens
from gated_interp.core.errors import GatedInterpError
from gated_interp.core.precision import wide
from gated_interp.core.seeds import generator
from gated_interp.metrics.predictions import kl_divergence, next_token_loss
from gated_interp.models.toy import HookedTransformer

Method = Literal["zero", "mean", "resample", "optimal"]
Objective = Literal["kl", "loss"]


Edits = dict[str, Callable[[Tensor], Tensor | None]]
"""For each hook point, what an activation there is replaced by."""


def replacements(
    model: HookedTransformer,
    heads: list[Head],
    method: Method,
    reference: "Reference",
    seed: int | None = None,
    objective: Objective = "kl",
    rows: tuple[int, int] | None = None,
) -> Edits:
    """For each layer's ``hook_z``, the edit that replaces the named heads' z.

    Args:
        rows: where the edited batch is a part of one: its first row, and the rows of the whole.
    """
    if method not in get_args(Method):
        raise GatedInterpError("not-one-of", name="method", value=method, choices=get_args(Method))
    if method == "resample":
        reference.require(method)
        if seed is None:
            raise GatedInterpError("resample-without-seed")
        return _resample_edits(reference, heads, generator(seed).initial_seed(), rows)
    if method == "optimal":
        means = constants(model, heads, method, reference)
        return _constant_edits(_optimal(model, means, reference.require(method), objective))
    return _constant_edits(constants(model, heads, method, reference))


def other_rows(n: int, source: torch.Generator) -> Int[Tensor, " n"]:
    """For each of some rows another one at random: each is taken once, none by itself."""
    rows, order = torch.empty(n, dtype=torch.long), torch.randperm(n, generator=source)
    rows[order] = order.roll(1)
    return rows


class Reference:
    """The batch that ``mean``, ``resample`` and ``optimal`` ablation refer to, run once.

    Args:
        tokens: ``[reference pos]``; ``None`` where there is none.
        attention_mask: of these.
    """

    def __init__(
        self, model: HookedTransformer, tokens: Tokens | None, attention_mask: Mask | None = None
    ):
        self.model = model
        self.batch = (
            None if tokens is None else Batch.of(model, tokens, attention_mask, "reference_tokens")
        )
        self._z: dict[int, Tensor] = {}

    def require(self, method: Method) -> Batch:
        """The batch."""
        if self.batch is None:
            raise GatedInterpError("no-reference-tokens", method=method)
        return self.batch

    def z(self, head: Head) -> Float[Tensor, "reference pos d_head"]:
        """What stands at the head's ``hook_z`` on the batch; every layer's are read at once."""
        assert self.batch is not None
        if not self._z:
            layers = range(self.model.cfg.n_layers)
            names = [f"blocks.{layer}.attn.hook_z" for layer in layers]
            with torch.no_grad():
                _, cache = self.batch.cache(self.model, names, stop_at_layer=len(names))
            self._z = {layer: cache[name] for layer, name in zip(layers, names, strict=True)}
        return self._z[head[0]][:, :, head[1]]


def constants(
    model: HookedTransformer, heads: list[Head], method: Method, reference: Reference
) -> dict[Head, Float[Tensor, " d_head"]]:
    """The z that ``zero`` ablation puts in each head's place, or else its mean over a reference."""
    if method == "zero":
        return {
            head: torch.zeros_like(model.blocks[head[0]].attn.W_O[head[1], :, 0]) for head in heads
        }
    batch = reference.require(method)
    return {head: batch.mean(wide(reference.z(head))) for head in heads}


def _layer_edits(heads: list[Head], value: Callable[[Head, Tensor], Tensor]) -> Edits:
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


def _constant_edits(constants: dict[Head, Float[Tensor, " d_head"]]) -> Edits:
    return _layer_edits(list(constants), lambda head, _z: constants[head])


def _resample_edits(
    reference: Reference, heads: list[Head], seed: int, whole: tuple[int, int] | None
) -> Edits:
    batch = reference.require("resample")
    if batch.real is not None:
        raise GatedInterpError("resample-with-padding")

    # Read before the edited pass, which the reference's own pass would run into.
    sources = {head: reference.z(head) for head in heads}

    def value(head: Head, z: Tensor) -> Tensor:
        source = sources[head]
        if z.shape[1] > source.shape[1]:
            raise GatedInterpError("reference-too-short", n=source.shape[1], wanted=z.shape[1])
        # A fresh generator per call: every layer and every pass takes the same rows.
        first, total = whole or (0, z.shape[0])
        rows = torch.randint(source.shape[0], (total,), generator=generator(seed))
        return source[rows[first : first + z.shape[0]].to(source.device), : z.shape[1]]

    return _layer_edits(heads, value)


def _optimal(
    model: HookedTransformer,
    means: dict[Head, Float[Tensor, " d_head"]],
    batch: Batch,
    objective: Objective,
) -> dict[Head, Float[Tensor, " d_head"]]:
    """The constants that minimise the objective over ``batch``, by L-BFGS from the means.

    Never worse on ``batch`` than zeros or the means: those are kept where nothing better is
    found (with one linear layer the problem is convex).
    """
    if objective not in get_args(Objective):
        raise GatedInterpError(
            "not-one-of", name="objective", value=objective, choices=["kl", "loss"]
        )
    if objective == "loss":
        batch.require_loss()
    with torch.no_grad():
        intact = batch.logits(model)

    def cost(constants: dict[Head, Tensor]) -> Tensor:
        with intervened(model, _constant_edits(constants)):
            logits = batch.logits(model)
        if objective == "loss":
            known = batch.known
            return next_token_loss(logits, batch.tokens, known).mean()
        return kl_divergence(intact, logits, batch.real).mean()

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
