"""The kinds of model a checkpoint can hold, by name: how each is built and what of it is stored."""

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from gated_interp.core.config import Config
from gated_interp.models.language_model import (
    LanguageModelConfig,
    LanguageTransformer,
    build_language_model,
)
from gated_interp.models.toy import HookedTransformer, ToyTransformer, build_toy
from gated_interp.models.toy_config import ToyConfig
from gated_interp.tasks.text import TextTask

Shapes = dict[str, tuple[int, ...]]


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
        fits: why a config is not for a task, in words; empty where it is.
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
    fits: Callable[[Any, Any], str]
    shapes: Callable[[Any], Shapes]
    fixed: Callable[[HookedTransformer], dict[str, Tensor]]


def attention_shapes(m: int, h: int, d: int, b_O: bool) -> Shapes:
    """The shapes of ``h`` heads of ``d`` dimensions; ``b_O`` only where it trains."""
    shapes: Shapes = {"W_Q": (h, m, d), "W_K": (h, m, d), "W_V": (h, m, d), "W_O": (h, d, m)}
    shapes |= dict.fromkeys(("b_Q", "b_K", "b_V"), (h, d))
    return shapes | ({"b_O": (m,)} if b_O else {})


def _toy_shapes(c: ToyConfig) -> Shapes:
    found = attention_shapes(c.task.d_vocab, c.n_heads, c.d_head, c.output_bias)
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
    fits=lambda config, task: "" if config.task == task else f"is for {config.task}",
    shapes=_toy_shapes,
    fixed=_toy_fixed,
)


def _language_shapes(c: LanguageModelConfig) -> Shapes:
    shapes: Shapes = {"embed.W_E": (c.d_vocab, c.d_model), "pos_embed.W_pos": (c.n_ctx, c.d_model)}
    shapes |= {"unembed.W_U": (c.d_model, c.d_vocab), "unembed.b_U": (c.d_vocab,)}
    found = attention_shapes(c.d_model, c.n_heads, c.d_head, b_O=True)
    for layer in range(c.n_layers):
        shapes |= {f"blocks.{layer}.attn.{name}": shape for name, shape in found.items()}
    if c.normalization == "LN":
        norms = [*(f"blocks.{layer}.ln1" for layer in range(c.n_layers)), "ln_final"]
        shapes |= {f"{norm}.{name}": (c.d_model,) for norm in norms for name in "wb"}
    return shapes


def _language_fits(config: LanguageModelConfig, task: Any) -> str:
    if not isinstance(task, TextTask):
        return "is for text"
    if config.d_vocab < task.d_vocab:  # some leave the last of theirs unused
        return f"has {config.d_vocab} tokens"
    return "" if config.n_ctx >= task.n_positions else f"has {config.n_ctx} positions"


LANGUAGE_MODEL = ModelKind(
    name="language_model",
    config_type=LanguageModelConfig,
    model_type=LanguageTransformer,
    build=build_language_model,
    config_of=lambda model: model.language_config,
    sizes=lambda config: (config.n_layers, config.d_model),
    fits=_language_fits,
    shapes=_language_shapes,
    fixed=lambda model: {},
)
MODEL_KINDS = {kind.name: kind for kind in (TOY, LANGUAGE_MODEL)}
"""Every kind of model, by name; a new one is a line here."""
