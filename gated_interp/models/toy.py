"""Attention-only models: the toy, and others that know their task.

The toy is one layer of attention between an identity embedding and unembedding.

The only file that imports HookedTransformer: 4.0 removes it, so a port has one place to look.
"""

import copy
import math
import warnings
from typing import Any, TypeVar

import torch
from torch import nn
from transformer_lens import HookedTransformer, HookedTransformerConfig

from gated_interp.core.errors import GatedInterpError
from gated_interp.core.seeds import generator
from gated_interp.models.toy_config import AttentionConfig, ToyConfig
from gated_interp.tasks.skip_trigrams import SkipTrigramTask
from gated_interp.tasks.task import Task

__all__ = [
    "AttentionConfig",
    "AttentionTransformer",
    "HookedTransformer",
    "Model",
    "TaskTransformer",
    "ToyConfig",
    "ToyTransformer",
    "attention_only",
    "build_attention",
    "build_toy",
    "clone",
    "draw_weights",
]

Model = TypeVar("Model", bound=HookedTransformer)


class TaskTransformer(HookedTransformer):
    """An attention-only model of a kind that checkpoints hold, and what is known of it.

    Attributes:
        task: what it is for.
        info: what the checkpoint it was loaded from says (``CheckpointInfo``); ``None`` where there
            was none.
        notes: what the checkpoint's writer recorded; empty where there was none.
        model_name: of the file, the shipped model or the repository it was loaded from; else of
            its shape, such as ``2H3ST``.

    Examples:
        >>> isinstance(build_toy(ToyConfig(n_trigrams=3, n_heads=2)), TaskTransformer)
        True
    """

    task: Any
    info: Any
    notes: dict[str, Any]
    model_name: str


class ToyTransformer(TaskTransformer):
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
    toy_config: ToyConfig | None


class AttentionTransformer(TaskTransformer):
    """A model of any number of layers for any task, with or without replacements spliced in.

    Attributes:
        attention_config: what it was built as.

    Examples:
        >>> from gated_interp.tasks.two_layers import TwoLayersTask
        >>> task = TwoLayersTask()
        >>> model = build_attention(AttentionConfig.of(task, n_layers=2, n_heads=3), task)
        >>> model.model_name, model.task == task
        ('2L3H', True)
    """

    attention_config: AttentionConfig


def attention_only(config: HookedTransformerConfig, kind: type[Model] = HookedTransformer) -> Model:
    """A ``kind`` of transformer for ``config`` whose weights are all zero, so no draws are made."""
    config.init_weights = False
    # The config seeds every global generator when it holds a seed; ours never does.
    if config.seed is not None:
        raise GatedInterpError("config-has-a-seed")
    with warnings.catch_warnings():
        # TransformerLens announces that 4.0 removes HookedTransformer, and we pin below 4.
        warnings.simplefilter("ignore", DeprecationWarning)
        model = kind(config, move_to_device=False)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    return model


def draw_weights(model: HookedTransformer, seed: int) -> None:
    """Draw weights with a standard deviation of ``0.8 / sqrt(d_model)``, as TransformerLens does.

    Gains of norms become one; biases stay as they are.
    """
    source = generator(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            last = name.rpartition(".")[2]
            if last.startswith("W_"):
                std = 0.8 / math.sqrt(model.cfg.d_model)
                nn.init.normal_(parameter, std=std, generator=source)
            elif last == "w":
                parameter.fill_(1.0)


def _blank(config: AttentionConfig, kind: type[Model] = HookedTransformer) -> Model:
    """Layers of attention, their weights zero; identity embeddings unless they are learned."""
    model = attention_only(
        HookedTransformerConfig(
            n_layers=config.n_layers,
            d_model=config.d_model,
            d_vocab=config.d_vocab,
            n_ctx=config.n_positions,
            d_head=config.d_head,
            n_heads=config.n_heads,
            attn_only=True,
            normalization_type=None,
            act_fn="relu",
            device="cpu",
        ),
        kind,
    )
    if config.embedding == "identity":
        with torch.no_grad():
            model.embed.W_E.copy_(torch.eye(config.d_vocab))
            model.unembed.W_U.copy_(torch.eye(config.d_vocab))
    return model


def build_attention(config: AttentionConfig, task: Task | None = None) -> AttentionTransformer:
    """A model of ``config`` with Xavier-normal weights from its seed; global state is untouched.

    There are no MLPs and no normalisation, so the residual stream is a sum. Identity embeddings do
    not train and there is no positional signal; learned ones train, positions among them.

    Args:
        task: what the model is for, which :func:`~gated_interp.training.loop.train_model` then
            trains it on.

    Raises:
        GatedInterpError: a task of another vocabulary or length.

    Examples:
        >>> from gated_interp.tasks.repeated_tokens import RepeatedTokensTask
        >>> task = RepeatedTokensTask()
        >>> config = AttentionConfig.of(
        ...     task, n_layers=2, n_heads=2, d_head=16, embedding="learned", d_model=32
        ... )
        >>> build_attention(config, task)(task.sample(5, seed=0).tokens).shape
        torch.Size([5, 16, 13])
    """
    mine = (config.d_vocab, config.n_positions)
    if task is not None and mine != (task.d_vocab, task.n_positions):
        raise GatedInterpError(
            "config-contradicts-task",
            tokens=mine[0],
            positions=mine[1],
            task=task,
            d_vocab=task.d_vocab,
            n_positions=task.n_positions,
        )
    model = _blank(config, AttentionTransformer)
    source = generator(config.seed)
    learned = config.embedding == "learned"
    embeddings = [model.embed.W_E, model.pos_embed.W_pos, model.unembed.W_U] if learned else []
    model.requires_grad_(False)
    for weight in embeddings:
        weight.requires_grad_(True)
        nn.init.xavier_normal_(weight, generator=source)
    for block in model.blocks:
        _draw_heads(block.attn, config.output_bias, source)
    model.task, model.attention_config, model.model_name = task, config, config.name
    model.info, model.notes = None, {}
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
    shape = AttentionConfig.of(config.task, n_heads=config.n_heads, d_head=config.d_head)
    model = _blank(shape, ToyTransformer)
    source = generator(config.seed)
    model.requires_grad_(False)
    _draw_heads(model.blocks[0].attn, config.output_bias, source)
    model.task, model.toy_config, model.model_name = config.task, config, config.name
    model.info, model.notes = None, {}
    return model


def _draw_heads(attn: Any, output_bias: bool, source: torch.Generator) -> None:
    """Xavier-normal weights for each head; they and the biases train."""
    with torch.no_grad():
        for name in ("W_Q", "W_K", "W_V", "W_O"):
            for head in getattr(attn, name):
                nn.init.xavier_normal_(head, generator=source)
    attn.requires_grad_(True)
    attn.b_O.requires_grad_(output_bias)


def clone(model: Model) -> Model:
    """A copy that shares nothing with ``model`` and carries none of its hooks."""
    copied = copy.deepcopy(model)
    for point in copied.hook_dict.values():
        point._forward_hooks.clear()
        point._backward_hooks.clear()
        point.fwd_hooks, point.bwd_hooks = [], []
    return copied
