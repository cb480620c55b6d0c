"""What a toy model, or another attention-only one, is: the shape its weights are drawn for."""

import dataclasses
from typing import Any, Literal

from gated_interp.core.config import Config, positive
from gated_interp.core.errors import GatedInterpError
from gated_interp.tasks.skip_trigrams import SkipTrigramTask
from gated_interp.tasks.task import Task


@dataclasses.dataclass(frozen=True, kw_only=True)
class ToyConfig(Config):
    """An attention-only, one-layer, position-free transformer for skip trigrams.

    Attributes:
        n_trigrams: Learn this many skip trigrams; ``d_vocab = d_model = 2 * n_trigrams + 2``.
        n_heads: Give the toy this many attention heads.
        d_head: Give each head this many dimensions. The post has 1.
        n_positions: Train on sequences of at most this many tokens.
        output_bias: Train b_O. It is off in every published run.
        seed: Draw the initial weights from this seed.

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

    def problems(self) -> list[GatedInterpError]:
        return positive(self, "n_trigrams", "n_heads", "d_head", "n_positions")

    @property
    def task(self) -> SkipTrigramTask:
        """The task this model is for."""
        return SkipTrigramTask(self.n_trigrams, self.n_positions)

    @property
    def name(self) -> str:
        """The post's name for this shape, such as ``2H3ST``."""
        return f"{self.n_heads}H{self.n_trigrams}ST"


@dataclasses.dataclass(frozen=True, kw_only=True)
class AttentionConfig(Config):
    """An attention-only transformer of any number of layers, for any task.

    Attributes:
        d_vocab, n_positions: of its task.
        n_layers, n_heads, d_head: of attention; no MLPs, no normalisation.
        embedding: ``identity`` (of the tokens, fixed, without positions) or ``learned`` (tokens,
            positions and unembedding).
        d_model: width of the residual stream; 0 is ``d_vocab``, which identities need.
        output_bias: whether ``b_O`` trains.
        seed: of the initial weights.

    Examples:
        >>> AttentionConfig(d_vocab=13, n_positions=9, n_layers=2, n_heads=3).name
        '2L3H'
    """

    d_vocab: int
    n_positions: int
    n_layers: int = 1
    n_heads: int
    d_head: int = 1
    embedding: Literal["identity", "learned"] = "identity"
    d_model: int = 0
    output_bias: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if type(self.d_model) is int and self.d_model == 0:
            object.__setattr__(self, "d_model", self.d_vocab)
        super().__post_init__()

    def problems(self) -> list[GatedInterpError]:
        found = positive(self, "d_vocab", "n_positions", "n_layers", "n_heads", "d_head", "d_model")
        if self.embedding == "identity" and self.d_model != self.d_vocab:
            found.append(
                self.problem("config-not-square", value=self.d_model, d_vocab=self.d_vocab)
            )
        return found

    @classmethod
    def of(cls, task: Task, **fields: Any) -> "AttentionConfig":
        """The config with the vocabulary and positions of ``task``."""
        return cls(d_vocab=task.d_vocab, n_positions=task.n_positions, **fields)

    @property
    def name(self) -> str:
        """Its shape, such as ``2L3H``."""
        return f"{self.n_layers}L{self.n_heads}H"
