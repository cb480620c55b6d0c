"""The kinds of model a checkpoint can hold, by name: how each is built and what of it is stored."""

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from gated_interp.core.config import Config, Shapes
from gated_interp.models.toy import (
    HookedTransformer,
    TaskTransformer,
    ToyTransformer,
    build_attention,
    build_toy,
)
from gated_interp.models.toy_config import AttentionConfig, ToyConfig


@dataclasses.dataclass(frozen=True)
class ModelKind:
    """A kind of model.

    Attributes:
        name: in checkpoints.
        config_type: of its config.
        model_type: of its models, which hold that config (see ``config_of``).
        build: the model of a config, its weights drawn anew.
        config_of: the config of a model; ``None`` where it was built without one.
        sizes: (layers, d_model) of a config, without building anything.
        shapes: of every parameter that the config does not fix, by name, without building anything.
        fixed: of a model, by name, what is zero unless it departs from its config; the biases of
            attention that no file holds are looked at by others.
    """

    name: str
    config_type: type[Config]
    model_type: type[HookedTransformer]
    build: Callable[[Any], HookedTransformer]
    config_of: Callable[[Any], Config | None]
    sizes: Callable[[Any], tuple[int, int]]
    shapes: Callable[[Any], Shapes]
    fixed: Callable[[HookedTransformer], dict[str, Tensor]]


def attention_shapes(
    m: int, h: int, d: int, *, b_V: bool = True, b_O: bool, raw: str = ""
) -> Shapes:
    """The shapes of ``h`` heads of ``d`` dimensions; ``b_V`` and ``b_O`` only where they train.

    Args:
        raw: stands before the names of ``W_V`` and ``W_O``.
    """
    shapes: Shapes = dict.fromkeys(("W_Q", "W_K", f"{raw}W_V"), (h, m, d))
    shapes |= {f"{raw}W_O": (h, d, m)} | dict.fromkeys(("b_Q", "b_K"), (h, d))
    return shapes | ({"b_V": (h, d)} if b_V else {}) | ({"b_O": (m,)} if b_O else {})


def _toy_shapes(c: ToyConfig) -> Shapes:
    found = attention_shapes(c.task.d_vocab, c.n_heads, c.d_head, b_O=c.output_bias)
    return {f"blocks.0.attn.{name}": shape for name, shape in found.items()}


def _toy_fixed(model: HookedTransformer) -> dict[str, Tensor]:
    eye = torch.eye(model.cfg.d_model, device=model.embed.W_E.device)
    return {
        "W_E": model.embed.W_E - eye,
        "W_U": model.unembed.W_U - eye,
        "W_pos": model.pos_embed.W_pos,
        "b_U": model.unembed.b_U,
    }


TOY = ModelKind(
    name="toy",
    config_type=ToyConfig,
    model_type=ToyTransformer,
    build=build_toy,
    config_of=lambda model: model.toy_config,
    sizes=lambda config: (1, config.task.d_vocab),
    shapes=_toy_shapes,
    fixed=_toy_fixed,
)


def _attention_shapes(c: AttentionConfig) -> Shapes:
    found: Shapes = {}
    if c.embedding == "learned":
        found |= {"embed.W_E": (c.d_vocab, c.d_model), "unembed.W_U": (c.d_model, c.d_vocab)}
        found["pos_embed.W_pos"] = (c.n_positions, c.d_model)
    for layer in range(c.n_layers):
        heads = attention_shapes(c.d_model, c.n_heads, c.d_head, b_O=c.output_bias)
        found |= {f"blocks.{layer}.attn.{name}": shape for name, shape in heads.items()}
    return found


def _attention_fixed(model: HookedTransformer) -> dict[str, Tensor]:
    config = getattr(model, "attention_config", None)
    learned = config is not None and config.embedding == "learned"
    return {"b_U": model.unembed.b_U} if learned else _toy_fixed(model)


ATTENTION = ModelKind(
    name="attention",
    config_type=AttentionConfig,
    model_type=TaskTransformer,
    build=build_attention,
    config_of=lambda model: model.attention_config,
    sizes=lambda config: (config.n_layers, config.d_model),
    shapes=_attention_shapes,
    fixed=_attention_fixed,
)
MODEL_KINDS = {kind.name: kind for kind in (TOY, ATTENTION)}
"""Every kind of model, by name; a new one is a line here."""
