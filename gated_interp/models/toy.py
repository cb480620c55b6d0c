"""The toy model: one layer of attention between an identity embedding and unembedding.

The only file that imports HookedTransformer: 4.0 removes it, so a port has one place to look.
"""

import copy
import dataclasses

import torch
from torch import nn
from transformer_lens import HookedTransformer, HookedTransformerConfig

from gated_interp.core.config import Config, positive
from gated_interp.core.errors import GatedInterpError
from gated_interp.core.seeds import generator
from gated_interp.tasks.skip_trigrams import SkipTrigramTask

__all__ = [
    "HookedTransformer",
    "ToyConfig",
    "attention_only",
    "build_toy",
    "clone",
    "freeze_except",
]


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


def attention_only(config: HookedTransformerConfig) -> HookedTransformer:
    """A ``HookedTransformer`` for ``config`` whose weights are all zero, so no draws are made."""
    config.init_weights = False
    # The config seeds every global generator when it holds a seed; ours never does.
    if config.seed is not None:
        raise GatedInterpError("a config with a seed reseeds global state; give the seed to us.")
    model = HookedTransformer(config, move_to_device=False)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    return model


def build_toy(config: ToyConfig) -> HookedTransformer:
    """The toy model with Xavier-normal weights from ``config.seed``; global state is untouched.

    Logits are ``onehot(token) + attention output``: embedding and unembedding are identities that
    do not train, there is no positional embedding and no LayerNorm. Scores are divided by
    ``sqrt(d_head)``; biases start at zero.

    Examples:
        >>> model = build_toy(ToyConfig(n_trigrams=3, n_heads=2))
        >>> model(torch.tensor([[7, 0, 1]])).shape
        torch.Size([1, 3, 8])
    """
    d_vocab = config.task.d_vocab
    model = attention_only(
        HookedTransformerConfig(
            n_layers=1,
            d_model=d_vocab,
            d_vocab=d_vocab,
            n_ctx=config.n_positions,
            d_head=config.d_head,
            n_heads=config.n_heads,
            attn_only=True,
            normalization_type=None,
            act_fn="relu",
            device="cpu",
        )
    )
    source = generator(config.seed)
    attn = model.blocks[0].attn
    with torch.no_grad():
        model.embed.W_E.copy_(torch.eye(d_vocab))
        model.unembed.W_U.copy_(torch.eye(d_vocab))
        for name in ("W_Q", "W_K", "W_V", "W_O"):
            for head in getattr(attn, name):
                nn.init.xavier_normal_(head, generator=source)
    trained = ["W_Q", "W_K", "W_V", "W_O", "b_Q", "b_K", "b_V"]
    freeze_except(model, attn, trained + ["b_O"] * config.output_bias)
    model.toy_config = config
    return model


def freeze_except(model: nn.Module, attn: nn.Module, names: list[str]) -> None:
    """Let only the named parameters of ``attn`` train."""
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for name in names:
        attn.get_parameter(name).requires_grad_(True)


def clone(model: HookedTransformer) -> HookedTransformer:
    """A copy that shares nothing with ``model`` and carries none of its hooks."""
    copied = copy.deepcopy(model)
    for point in copied.hook_dict.values():
        point._forward_hooks.clear()
        point._backward_hooks.clear()
        point.fwd_hooks, point.bwd_hooks = [], []
    return copied
