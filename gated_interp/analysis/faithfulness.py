"""How well a model predicts, and how far a spliced model is from the one it came from."""

import dataclasses

import torch
from jaxtyping import Float, Int
from torch import Tensor

from gated_interp.analysis.heads import head_counts
from gated_interp.analysis.writes import require_tokens
from gated_interp.core.errors import GatedInterpError
from gated_interp.metrics.predictions import kl_divergence, next_token_loss
from gated_interp.metrics.reconstruction import (
    open_gates,
    squared_error,
    unexplained,
    variation,
    writes_at,
)
from gated_interp.models.toy import HookedTransformer
from gated_interp.replacements.splice import originals, require_layer, unsplice

DEAD = 1e-3
"""A head whose writes are at most this much of the largest head's is dead."""


@dataclasses.dataclass(frozen=True, repr=False)
class Faithfulness:
    """Per-sequence parts, so that any set of sequences can be summed up (or bootstrapped).

    Attributes:
        l0: ``[sequence]``, open gates per causal (query, key) pair, all heads of the layer.
        cross_entropy: ``[sequence]``, of the model, next token, nats.
        original_cross_entropy: ``[sequence]``, of the original; ``None`` where nothing is spliced.
        kl: ``[sequence]``, KL of the original's prediction from the model's, nats.
        squared_error, variation: ``[sequence]``, of the layer's output: against the original
            layer's from the same input; of the original's about its mean.
    """

    l0: Float[Tensor, " sequence"]
    cross_entropy: Float[Tensor, " sequence"]
    original_cross_entropy: Float[Tensor, " sequence"] | None = None
    kl: Float[Tensor, " sequence"] | None = None
    squared_error: Float[Tensor, " sequence"] | None = None
    variation: Float[Tensor, " sequence"] | None = None

    def __repr__(self) -> str:
        values = ", ".join(f"{name}={v.item():.4g}" for name, v in self.measures().items())
        return f"Faithfulness({len(self.l0)} sequences: {values})"

    def measures(
        self, weights: Float[Tensor, "replicate sequence"] | None = None
    ) -> dict[str, Float[Tensor, " replicate"]]:
        """The measures on these sequences, or on each weighted replicate of them.

        - ``l0``: mean number of open gates (above 0.001) per causal (query, key) pair; 0 to
          ``n_heads``. A head without gates counts as always open.
        - ``cross_entropy``: of the model, nats per token, from 0.
        - ``original_cross_entropy``: the same of the original.
        - ``kl``: KL(original || model), nats per position; 0 is the same predictions.
        - ``fvu``: ``sum |output - original output|^2 / sum |original output - its mean|^2``; 0 is
          perfect, 1 no better than a constant, above 1 worse.

        The last three need a spliced block.
        """
        n = self.l0.shape[0]
        w = torch.ones(1, n) if weights is None else weights
        w = w.to(self.l0) / w.sum(1, keepdim=True).to(self.l0)
        found = {"l0": w @ self.l0, "cross_entropy": w @ self.cross_entropy}
        for name, each in (
            ("original_cross_entropy", self.original_cross_entropy),
            ("kl", self.kl),
        ):
            if each is not None:
                found[name] = w @ each
        if self.squared_error is not None and self.variation is not None:
            found["fvu"] = unexplained(w @ self.squared_error, w @ self.variation)
        return found


@torch.no_grad()
def faithfulness(
    model: HookedTransformer, tokens: Int[Tensor, "batch pos"], layer: int = 0
) -> Faithfulness:
    """Predictions of ``model``, against the model as it was before ``layer`` was spliced.

    Raises:
        GatedInterpError: no such layer, or tokens the model cannot read.

    Examples:
        >>> from gated_interp.models.toy import ToyConfig, build_toy
        >>> toy = build_toy(ToyConfig(n_trigrams=1, n_heads=3))
        >>> faithfulness(toy, torch.tensor([[3, 0, 1, 2]])).measures()["l0"].item()
        3.0
    """
    require_layer(model, layer)
    require_tokens(model, tokens)
    prefix = f"blocks.{layer}."
    gate_name, out_name = prefix + "attn.hook_gate", prefix + "hook_attn_out"
    logits, cache = model.run_with_cache(tokens, names_filter=[gate_name, out_name])
    cross_entropy = next_token_loss(logits, tokens).double()
    if gate_name in cache:
        l0 = open_gates(cache[gate_name])
    else:
        l0 = torch.full_like(cross_entropy, head_counts(model)[layer])
    if layer not in originals(model):
        return Faithfulness(l0, cross_entropy)

    original = unsplice(model, layer)
    intact, before = original.run_with_cache(tokens, names_filter=out_name)
    target = before[out_name].double()
    # Earlier layers are the same in both, so the two layers read the same input.
    error = squared_error(cache[out_name].double(), target)
    return Faithfulness(
        l0,
        cross_entropy,
        next_token_loss(intact, tokens).double(),
        kl_divergence(intact.log_softmax(-1), logits.log_softmax(-1)).double(),
        error,
        variation(target),
    )


@torch.no_grad()
def dead_heads(
    model: HookedTransformer,
    tokens: Int[Tensor, "batch pos"],
    layer: int = 0,
    threshold: float = DEAD,
) -> list[int]:
    """The heads of ``layer`` that write next to nothing, anywhere in ``tokens``.

    Dead: the root mean square of ``z W_O`` over rows, positions and ``d_model`` is at most
    ``threshold`` times the largest head's. A gated head whose gates never open is dead; where no
    head writes at all, all are.

    Raises:
        GatedInterpError: no such layer, tokens the model cannot read, or a negative threshold.
    """
    require_layer(model, layer)
    require_tokens(model, tokens)
    if threshold < 0:
        raise GatedInterpError(f"threshold is {threshold}; it must not be negative.")
    name = f"blocks.{layer}.attn.hook_z"
    _, cache = model.run_with_cache(tokens, names_filter=name)
    return dead_from(cache[name], model.blocks[layer].attn.W_O, threshold)


def dead_from(
    z: Float[Tensor, "batch pos head_index d_head"],
    W_O: Float[Tensor, "head_index d_head d_model"],
    threshold: float = DEAD,
) -> list[int]:
    """The heads that :func:`dead_heads` calls dead, from what stands at ``hook_z``."""
    size = writes_at(z.double(), W_O.double()).mean((0, 1)).sqrt()
    dead: list[int] = (size <= threshold * size.max()).nonzero().flatten().tolist()
    return dead
