"""Clean and corrupted prompts with a metric of each prompt, as every method here takes them."""

import dataclasses
from collections.abc import Callable
from functools import cached_property
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from gated_interp.analysis.logits import MetricFunction, metric_name, metric_values
from gated_interp.anatomy.batch import Batch, Mask, Tokens
from gated_interp.core.errors import GatedInterpError
from gated_interp.metrics.predictions import kl_divergence, next_token_loss
from gated_interp.models.toy import HookedTransformer

Metric = MetricFunction | Literal["loss", "kl"]
"""``loss`` (next-token cross-entropy) and ``kl`` (of the clean prediction from the other), in nats
and averaged over positions, or a function of logits ``[batch pos d_vocab]`` and the clean tokens
``[batch pos]`` that gives ``[batch]`` or ``[batch pos]``. What it gives for a prompt must depend on
that prompt's logits alone."""

# Numbers of what all senders write that are there at once.
NUMBERS = 2**24


@dataclasses.dataclass
class Cost:
    """Passes of all prompts through the whole model."""

    forward: float = 0.0
    backward: float = 0.0


class Prompts:
    """Clean and corrupted prompts, the metric, and what it is on both.

    Args:
        corrupted: needed by every method that patches; ``None`` where none does.

    Raises:
        GatedInterpError: prompts of different shapes, or that the model cannot read; a metric that
            is not of each prompt, is not finite, or is the same on both.
    """

    def __init__(
        self,
        model: HookedTransformer,
        clean: Tokens,
        corrupted: Tokens | None,
        metric: Metric,
        attention_mask: Mask | None = None,
    ):
        self.model, self.metric, self.cost = model, metric, Cost()
        self.clean = Batch.of(model, clean, attention_mask, "clean")
        if not callable(metric) and metric not in ("loss", "kl"):
            raise GatedInterpError(
                "not-one-of", name="metric", value=metric, choices=["loss", "kl", "a function"]
            )
        if metric == "loss":
            self.clean.require_loss()
        self.corrupted: Batch | None = None
        self.seen: Tensor | None = None  # logits of the corrupted prompts, once they have been run
        if corrupted is not None:
            self.corrupted = Batch.of(model, corrupted, attention_mask, "corrupted")
            shapes = self.clean.tokens.shape, self.corrupted.tokens.shape
            if shapes[0] != shapes[1]:
                raise GatedInterpError(
                    "batches-differ-in-shape", first=tuple(shapes[0]), second=tuple(shapes[1])
                )
        with torch.no_grad():
            self.intact = self._all(self.clean)
            self.before = self._finite(self.values(self.intact))
            self.by_row = self._by_row()

    def _finite(self, values: Float[Tensor, " batch"]) -> Float[Tensor, " batch"]:
        if not bool(values.isfinite().all()):
            raise GatedInterpError("array-not-finite", name=f"The metric {self.name}")
        return values

    def _by_row(self) -> bool:
        """Whether the metric can be asked about some prompts alone, which takes less memory."""
        if isinstance(self.metric, str):
            return True
        for rows in self.rows():
            part = self.clean[rows]
            try:
                alone = metric_values(self.metric, self.intact[rows], part)
            except Exception:  # such as one that holds an answer for each prompt
                return False
            wanted = self.before[rows]
            if alone.shape != wanted.shape or not torch.allclose(alone, wanted, equal_nan=True):
                return False
        return True

    def _all(self, batch: Batch) -> Float[Tensor, "batch pos d_vocab"]:
        """The logits of every prompt."""
        found = [self.logits(batch[rows]) for rows in self.rows()]
        return found[0] if len(found) == 1 else torch.cat(found)

    @property
    def name(self) -> str:
        """The metric's name in tables."""
        return self.metric if isinstance(self.metric, str) else metric_name(self.metric)

    def __len__(self) -> int:
        return len(self.clean)

    @property
    def other(self) -> Batch:
        """The corrupted prompts.

        Raises:
            GatedInterpError: none were given.
        """
        if self.corrupted is None:
            raise GatedInterpError("no-corrupted-prompts")
        return self.corrupted

    @cached_property
    def after(self) -> Float[Tensor, " batch"]:
        """The metric on the corrupted prompts.

        Raises:
            GatedInterpError: it is the same as on the clean ones.
        """
        with torch.no_grad():
            found = self.values(self._all(self.other) if self.seen is None else self.seen)
        self._finite(found)
        if bool((found == self.before).all()):
            raise GatedInterpError("metric-constant", metric=self.name)
        return found

    def require_change(self) -> float:
        """The mean size of the metric's change from clean to corrupted prompts.

        Raises:
            GatedInterpError: there is none.
        """
        return float((self.after - self.before).abs().mean())

    def rows(self) -> list[slice]:
        """The prompts in parts of which all that is written fits into memory."""
        cfg = self.model.cfg
        writers = 1 + sum(int(b.attn.W_O.shape[0]) + 1 for b in self.model.blocks)
        each = self.clean.tokens.shape[1] * cfg.d_model * writers
        step = max(1, NUMBERS // each)
        return [slice(i, i + step) for i in range(0, len(self), step)]

    def logits(self, part: Batch) -> Float[Tensor, "rows pos d_vocab"]:
        """What the model predicts; counted as a forward pass of these prompts."""
        self.cost.forward += len(part) / len(self)
        return part.logits(self.model)

    def gradients(
        self, values: Float[Tensor, " rows"], at: list[Tensor], *, again: bool = False
    ) -> list[Float[Tensor, "..."]]:
        """The gradient of each prompt's metric at tensors of its forward pass.

        Args:
            again: keep the graph for another gradient.
        """
        if not values.requires_grad:
            raise GatedInterpError("metric-without-gradient", metric=self.name)
        self.cost.backward += len(values) / len(self)
        found = torch.autograd.grad(values.sum(), at, allow_unused=True, retain_graph=again)
        return [torch.zeros_like(x) if g is None else g for x, g in zip(at, found, strict=True)]

    def values(
        self, logits: Float[Tensor, "rows pos d_vocab"], rows: slice = slice(None)
    ) -> Float[Tensor, " rows"]:
        """The metric of each of these prompts.

        A function that cannot be asked about some prompts alone, such as one that holds an answer
        for each, is given all of them, those that are not asked for as they are on the clean ones.
        """
        if isinstance(self.metric, str):
            part = self.clean[rows]
            if self.metric == "loss":
                return next_token_loss(logits, part.tokens, part.known)
            return kl_divergence(self.intact[rows], logits, part.real)
        if len(logits) < len(self) and self.by_row:
            return metric_values(self.metric, logits, self.clean[rows])
        whole = logits
        if len(logits) < len(self):
            whole = self.intact.clone()
            whole[rows] = logits
        found = metric_values(self.metric, whole, self.clean)
        if len(found) != len(self):
            raise GatedInterpError(
                "metric-not-per-prompt", metric=self.name, n=len(found), wanted=len(self)
            )
        return found[rows]

    def each(self, run: Callable[[Batch, slice], Tensor]) -> Float[Tensor, "batch *rest"]:
        """What ``run`` gives for the clean prompts and their rows, part by part."""
        return torch.cat([run(self.clean[rows], rows) for rows in self.rows()])
