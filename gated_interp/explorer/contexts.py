"""Where among the examples each head writes most."""

import dataclasses
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from gated_interp.anatomy.batch import Batch
from gated_interp.core.precision import wide
from gated_interp.core.threads import one_thread
from gated_interp.explorer.bench import Bench
from gated_interp.explorer.examples import Examples
from gated_interp.metrics.reconstruction import writes_at

TOP = 5
AT_ONCE = 32


@dataclasses.dataclass(frozen=True)
class Place:
    """A position of an example.

    Attributes:
        example, position: which.
        length: of what the head writes there.
        raises: the token whose logit it raises most.
    """

    example: int
    position: int
    length: float
    raises: int


class Contexts:
    """Where the heads of one model write most, each place from another example.

    As :func:`~gated_interp.analysis.read_heads.read_heads` has it, on the explorer's examples; the
    first position is left out.
    """

    def __init__(self, bench: Bench, examples: Examples):
        self.bench, self.examples = bench, examples
        self.batch = Batch.of_rows(bench.model, examples.tokens)
        self._written: dict[int, Tensor] = {}

    @torch.no_grad()
    def of(self, layer: int, head: int) -> list[Place]:
        """The strongest places of a head, strongest first; none where it writes nowhere."""
        with one_thread():
            z = self._z(layer)[:, :, head]
            W_O = wide(self.bench.model.blocks[layer].attn.W_O)
            lengths = writes_at(z[:, :, None], W_O[head : head + 1])[..., 0].clamp(min=0).sqrt()
            longest, at = (lengths * self.batch.later).max(1)
            best = longest.topk(min(TOP, len(longest)))
            rows = best.indices[best.values > 0]
            written = z[rows, at[rows]] @ W_O[head]
            raises = (written @ self.bench.readout(layer).matrix).argmax(-1)
            columns = (rows, at[rows], longest[rows], raises)
            return [Place(*each) for each in zip(*(c.tolist() for c in columns), strict=True)]

    def _z(self, layer: int) -> Float[Tensor, "example pos head_index d_head"]:
        if layer not in self._written:
            name = f"blocks.{layer}.attn.hook_z"
            found: list[Any] = []
            for part in self.batch.split(AT_ONCE):
                _, cache = part.cache(self.bench.model, name, stop_at_layer=layer + 1)
                found.append(wide(cache[name]))
            self._written[layer] = torch.cat(found)
        return self._written[layer]
