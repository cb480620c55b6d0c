"""What a toy model is: the shape that its weights are drawn for."""

import dataclasses

from gated_interp.core.config import Config, positive
from gated_interp.tasks.skip_trigrams import SkipTrigramTask


@dataclasses.dataclass(frozen=True, kw_only=True)
class ToyConfig(Config):
    """An attention-only, one-layer, position-free transformer for skip trigrams.

    Attributes:
        n_trigrams: trigrams of the task; ``d_vocab = d_model = 2 * n_trigrams + 2``.
        n_heads: attention heads.
        d_head: dimensions of each head (1 in the post).
        n_positions: longest sequence.
        output_bias: whether ``b_O`` trains (off in every published run).
        seed: of the initial weights.

    Examples:
        >>> shape = ToyConfig(n_trigrams=3, n_heads=2)
        >>> shape.name, shape.task.d_vocab
        ('2H3ST', 8)
    """

    n_trigrams: int
    n_heads: int
    d_head: int = 1
    n_positions: int = 11
    output_bias: bool = False
    seed: int = 0

    def problems(self) -> list[str]:
        return positive(self, "n_trigrams", "n_heads", "d_head", "n_positions")

    @property
    def task(self) -> SkipTrigramTask:
        """The task this model is for."""
        return SkipTrigramTask(self.n_trigrams, self.n_positions)

    @property
    def name(self) -> str:
        """The post's name for this shape, such as ``2H3ST``."""
        return f"{self.n_heads}H{self.n_trigrams}ST"
