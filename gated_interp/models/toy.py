"""The toy model: one layer of attention between an identity embedding and unembedding.

The only file that imports HookedTransformer: 4.0 removes it, so a port has one place to look.
"""

import copy
from typing import Any, TypeVar

import torch
from torch import nn
from transformer_lens import HookedTransformer, HookedTransformerConfig

from gated_interp.core.errors import GatedInterpError
from gated_interp.core.seeds import generator
from gated_interp.models.toy_config import ToyConfig
from gated_interp.tasks.skip_trigrams import SkipTrigramTask

__all__ = [
    "HookedTransformer",
    "KnownTransformer",
    "Model",
    "ToyConfig",
    "ToyTransformer",
    "attention_only",
    "build_toy",
    "clone",
    "freeze_except",
    "identity_model",
]

Model = TypeVar("Model", bound=HookedTransformer)


class KnownTransformer(HookedTransformer):
    """A model of a kind that checkpoints hold, and what is known of it.

    Attributes:
        task: what it is for.
        info: what the checkpoint it was loaded from says (``CheckpointInfo``); ``None`` where there
            was none.
        notes: what the checkpoint's writer recorded; empty where there was none.
        model_name: of the file, the shipped model or the repository it was loaded from; else of
            its shape, such as ``2H3ST``.
        toy_config: of a toy; ``None`` in other kinds.

    Examples:
        >>> isinstance(build_toy(ToyConfig(n_trigrams=3, n_heads=2)), KnownTransformer)
        True
    """

    task: Any
    info: Any
    notes: dict[str, Any]
    model_name: str
    toy_config: ToyConfig | None = None


class ToyTransformer(KnownTransformer):
    """A toy, with or without a gated block spliced in.

    Attributes:
        task: what it is for.
        toy_config: what it was built as; ``None`` where a gated block came without its toy.

    Examples:
        >>> toy = build_toy(ToyConfig(n_trigrams=3, n_heads=2))
        >>> toy.task, toy.model_name, toy.notes
        (SkipTrigramTask(n_trigrams=3, n_positions=11), '2H3ST', {})
    """

    task: SkipTrigramTask


def attention_only(config: HookedTransformerConfig, kind: type[Model] = HookedTransformer) -> Model:
    """A ``kind`` of transformer for ``config`` whose weights are all zero, so no draws are made."""
    config.init_weights = False
    # The config seeds every global generator when it holds a seed; ours never does.
    if config.seed is not None:
        raise GatedInterpError("a config with a seed reseeds global state; give the seed to us.")
    model = kind(config, move_to_device=False)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    return model


def identity_model(
    d_vocab: int, n_positions: int, n_heads: int, d_head: int, kind: type[Model] = HookedTransformer
) -> Model:
    """One layer of attention, its weights zero, between an identity embedding and unembedding."""
    model = attention_only(
        HookedTransformerConfig(
            n_layers=1,
            d_model=d_vocab,
            d_vocab=d_vocab,
            n_ctx=n_positions,
            d_head=d_head,
            n_heads=n_heads,
            attn_only=True,
            normalization_type=None,
            act_fn="relu",
            device="cpu",
        ),
        kind,
    )
    with torch.no_grad():
        model.embed.W_E.copy_(torch.eye(d_vocab))
        model.unembed.W_U.copy_(torch.eye(d_vocab))
    return model


def build_toy(config: ToyConfig) -> ToyTransformer:
    """The toy model with Xavier-normal weights from ``config.seed``; global state is untouched.

    Logits are ``onehot(token) + attention output``: embedding and unembedding are identities that
    do not train, there is no positional embedding and no LayerNorm. Scores are divided by
    ``sqrt(d_head)``; biases start at zero.

    Examples:
        >>> model = build_toy(ToyConfig(n_trigrams=3, n_heads=2))
        >>> model(torch.tensor([[7, 0, 1]])).shape
        torch.Size([1, 3, 8])
    """
    shape = (config.task.d_vocab, config.n_positions, config.n_heads, config.d_head)
    model = identity_model(*shape, ToyTransformer)
    source = generator(config.seed)
    attn = model.blocks[0].attn
    with torch.no_grad():
        for name in ("W_Q", "W_K", "W_V", "W_O"):
            for head in getattr(attn, name):
                nn.init.xavier_normal_(head, generator=source)
    trained = ["W_Q", "W_K", "W_V", "W_O", "b_Q", "b_K", "b_V"]
    freeze_except(model, attn, trained + ["b_O"] * config.output_bias)
    model.task, model.toy_config, model.model_name = config.task, config, config.name
    model.info, model.notes = None, {}
    return model


def freeze_except(model: nn.Module, attn: nn.Module, names: list[str]) -> None:
    """Let only the named parameters of ``attn`` train."""
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for name in names:
        attn.get_parameter(name).requires_grad_(True)


def clone(model: Model) -> Model:
    """A copy that shares nothing with ``model`` and carries none of its hooks."""
    copied = copy.deepcopy(model)
    for point in copied.hook_dict.values():
        point._forward_hooks.clear()
        point._backward_hooks.clear()
        point.fwd_hooks, point.bwd_hooks = [], []
    return copied
