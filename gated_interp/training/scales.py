"""The sizes of what a layer reads and writes, which a training may divide out."""

import dataclasses
import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Bool
from torch import Tensor

from gated_interp.replacements.heads import HeadAttention
from gated_interp.replacements.replacement import Replacement
from gated_interp.training.capture import AttentionIO

READS = ("W_Q", "W_K", "W_V", "W_gate_Q", "W_gate_K")
WRITES = ("W_O", "b_O")


@dataclasses.dataclass(frozen=True)
class Scales:
    """Powers of two, so that dividing by them and multiplying again rounds nothing.

    Attributes:
        given, written: of a layer's inputs and of its outputs.
    """

    given: float = 1.0
    written: float = 1.0

    @classmethod
    def of(
        cls, block: Replacement, seen: AttentionIO, counted: Bool[Tensor, "batch pos"] | None
    ) -> "Scales":
        """Of a sample; 1 for a block whose weights have a length of their own."""
        if not isinstance(block, HeadAttention) or block.config.normalize_weights:
            return cls()
        both = (seen.query_input, seen.output)
        return cls(*(_power_of_two(x if counted is None else x[counted]) for x in both))

    def divided(self, seen: AttentionIO) -> AttentionIO:
        """Inputs and output in these units."""
        if self == Scales():
            return seen
        query, key, value = (x / self.given for x in seen.inputs)
        return dataclasses.replace(
            seen,
            query_input=query,
            key_input=key,
            value_input=value,
            output=seen.output / self.written,
        )

    @contextmanager
    def of_block(self, block: Replacement) -> Iterator[None]:
        """Inside, ``block`` reads and writes in these units."""
        self._multiply(block, self.given, 1 / self.written)
        try:
            yield
        finally:
            self._multiply(block, 1 / self.given, self.written)

    @torch.no_grad()
    def _multiply(self, block: Replacement, reads: float, writes: float) -> None:
        if self == Scales():
            return
        for name, weight in block.named_parameters():
            kind = name.rpartition(".")[2].removeprefix("raw_")
            if kind in READS:
                weight.mul_(reads)
            elif kind in WRITES:
                weight.mul_(writes)


def _power_of_two(x: Tensor) -> float:
    size = float(x.double().square().mean().sqrt())
    return 2.0 ** round(math.log2(size)) if math.isfinite(size) and size > 0 else 1.0
