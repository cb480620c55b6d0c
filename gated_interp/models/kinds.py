"""The kinds of model a checkpoint can hold, by name: how each is built and what of it is stored."""

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from gated_interp.core.config import Config, Shapes
from gated_interp.core.shapes import attention_shapes
from gated_interp.models.language_model import (
    LanguageModelConfig,
    LanguageTransformer,
    build_language_model,
)
from gated_interp.models.program_model import (
    ProgramConfig,
    ProgramTransformer,
    build_program,
)
from gated_interp.models.toy import (
    AttentionTransformer,
    TaskTransformer,
    ToyTransformer,
    build_attention,
    build_toy,
)
from gated_interp.models.toy_config import AttentionConfig, ToyConfig
from gated_interp.tasks.text import TextTask


@dataclasses.dataclass(frozen=True)
class ModelKind:
    """A kind of model.

    Attributes:
        name: in checkpoints.
        config_type: of its config.
        model_type: of its models, which hold that config (see ``config_of``).
        build: the model of a config, for a task, its weights drawn anew.
        config_of: the config of a model; ``None`` where it was built without one.
        sizes: (layers, d_model) of a config, without building anything.
        fits: how a config contradicts a task, in words; empty where it does not.
        shapes: of every parameter that the config does not fix, by name, without building anything.
        fixed: of a model, by name, what is zero unless it departs from its config; the biases of
            attention that no file holds are looked at by others.
    """

    name: str
    config_type: type[Config]
    model_type: type[TaskTransformer]
    build: Callable[[Any, Any], TaskTransformer]
    config_of: Callable[[Any], Config | None]
    sizes: Callable[[Any], tuple[int, int]]
    fits: Callable[[Any, Any], str]
    shapes: Callable[[Any], Shapes]
    fixed: Callable[[Any], dict[str, Tensor]]


def _toy_shapes(c: ToyConfig) -> Shapes:
    found = attention_shapes(c.task.d_vocab, c.n_heads, c.d_head, b_O=c.output_bias)
    return {f"blocks.0.attn.{name}": shape for name, shape in found.items()}


def _toy_fits(config: ToyConfig, task: Any) -> str:
    return "" if config.task == task else f"is for {config.task}, but the task is {task}"


def _toy_fixed(model: TaskTransformer) -> dict[str, Tensor]:
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
    build=lambda config, task: build_toy(config),
    config_of=lambda model: model.toy_config,
    sizes=lambda config: (1, config.task.d_vocab),
    fits=_toy_fits,
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


def _attention_fits(config: AttentionConfig, task: Any) -> str:
    mine = (config.d_vocab, config.n_positions)
    if mine == (task.d_vocab, task.n_positions):
        return ""
    return (
        f"has {mine[0]} tokens and {mine[1]} positions, but {task.described} has {task.d_vocab} "
        f"and {task.n_positions}"
    )


def _attention_fixed(model: AttentionTransformer) -> dict[str, Tensor]:
    learned = model.attention_config.embedding == "learned"
    return {"b_U": model.unembed.b_U} if learned else _toy_fixed(model)


ATTENTION = ModelKind(
    name="attention",
    config_type=AttentionConfig,
    model_type=AttentionTransformer,
    build=build_attention,
    config_of=lambda model: model.attention_config,
    sizes=lambda config: (config.n_layers, config.d_model),
    fits=_attention_fits,
    shapes=_attention_shapes,
    fixed=_attention_fixed,
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
        return f"is for text, but the task is {task}"
    if config.d_vocab < task.d_vocab:  # some leave the last of theirs unused
        return f"has {config.d_vocab} tokens, but the task is {task}"
    if config.n_ctx < task.n_positions:
        return f"has {config.n_ctx} positions, but the task is {task}"
    return ""


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


def _program_fits(config: ProgramConfig, task: Any) -> str:
    return "" if config.task == task else f"is for {config.task}, but the task is {task}"


PROGRAM = ModelKind(
    name="program",
    config_type=ProgramConfig,
    model_type=ProgramTransformer,
    build=lambda config, task: build_program(config),
    config_of=lambda model: model.program_config,
    sizes=lambda config: (config.n_layers, config.d_model),
    fits=_program_fits,
    shapes=lambda config: config.shapes,
    fixed=lambda model: {},
)
MODEL_KINDS = {kind.name: kind for kind in (TOY, ATTENTION, LANGUAGE_MODEL, PROGRAM)}
"""Every kind of model, by name; a new one is a line here."""
