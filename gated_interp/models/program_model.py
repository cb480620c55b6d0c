"""Transformers of a known circuit: heads and MLPs, with or without norms."""

import dataclasses
from typing import Any, Literal

from transformer_lens import HookedTransformerConfig

from gated_interp.core.config import Config, Shapes, positive
from gated_interp.core.errors import GatedInterpError
from gated_interp.core.seeds import MAX_SEED
from gated_interp.core.shapes import attention_shapes
from gated_interp.models.toy import TaskTransformer, attention_only, draw_weights
from gated_interp.tasks.program import ProgramTask
from gated_interp.tasks.programs import PROGRAMS


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProgramConfig(Config):
    """The shape of a transformer that computes a program.

    Attributes:
        program: Compute this program, whose tokens and positions the model has.
        n_layers: Stack this many layers.
        d_model: Make the residual stream this wide.
        n_heads: Give each layer this many attention heads.
        d_head: Give each head this many dimensions.
        d_mlp: Give each layer an MLP of this width, and none if 0.
        normalization: Normalise the residual stream in this way.
        seed: Draw the initial weights from this seed.

    Examples:
        >>> ProgramConfig(program="induction").shapes["embed.W_E"]
        (12, 32)
    """

    program: str
    n_layers: int = 2
    d_model: int = 32
    n_heads: int = 4
    d_head: int = 8
    d_mlp: int = 64
    normalization: Literal["LN", "none"] = "LN"
    seed: int = 0

    def problems(self) -> list[GatedInterpError]:
        if self.program not in PROGRAMS:
            return [GatedInterpError("no-such-program", name=self.program, known=[*PROGRAMS])]
        found = positive(self, "n_layers", "d_model", "n_heads", "d_head")
        if self.d_mlp < 0:
            found.append(self.problem("config-negative", field="d_mlp", value=self.d_mlp))
        if not 0 <= self.seed <= MAX_SEED:
            found.append(self.problem("config-bad-seed", value=self.seed))
        return found

    @property
    def task(self) -> ProgramTask:
        """The program as a task."""
        return ProgramTask(self.program)

    @property
    def name(self) -> str:
        """Its program and shape, such as ``induction-2L4H``."""
        return f"{self.program}-{self.n_layers}L{self.n_heads}H"

    @property
    def shapes(self) -> Shapes:
        """The shape of every parameter, by name."""
        m, task, found = self.d_model, self.task, Shapes()
        found |= {"embed.W_E": (task.d_vocab, m), "pos_embed.W_pos": (task.n_positions, m)}
        found |= {"unembed.W_U": (m, task.d_vocab), "unembed.b_U": (task.d_vocab,)}
        heads = attention_shapes(m, self.n_heads, self.d_head, b_O=True)
        each = {f"attn.{name}": shape for name, shape in heads.items()}
        if self.d_mlp:
            each |= {"mlp.W_in": (m, self.d_mlp), "mlp.b_in": (self.d_mlp,)}
            each |= {"mlp.W_out": (self.d_mlp, m), "mlp.b_out": (m,)}
        if self.normalization == "LN":
            norms = ("ln1", "ln2") if self.d_mlp else ("ln1",)
            each |= {f"{norm}.{name}": (m,) for norm in norms for name in "wb"}
            found |= {"ln_final.w": (m,), "ln_final.b": (m,)}
        for layer in range(self.n_layers):
            found |= {f"blocks.{layer}.{name}": shape for name, shape in each.items()}
        return found


class ProgramTransformer(TaskTransformer):
    """A transformer that computes a program, with or without replacements spliced in.

    Attributes:
        task: the program.
        program_config: what it was built as.

    Examples:
        >>> import torch
        >>> model = build_program(ProgramConfig(program="induction"))
        >>> model.model_name, model(torch.tensor([[0, 5, 7]])).shape
        ('induction-2L4H', torch.Size([1, 3, 12]))
    """

    task: ProgramTask
    program_config: ProgramConfig


def build_program(config: ProgramConfig) -> ProgramTransformer:
    """The model of ``config``, its weights drawn from its seed; global state is untouched.

    Weights are normal with a standard deviation of ``0.8 / sqrt(d_model)``, biases zero. MLPs have
    ReLUs, attention is causal, scores are divided by ``sqrt(d_head)``.

    Args:
        config: program, shape and seed.
    """
    task = config.task
    norm = None if config.normalization == "none" else config.normalization
    fields: dict[str, Any] = {"attn_only": True}
    if config.d_mlp:
        fields = {"d_mlp": config.d_mlp}
    model = attention_only(
        HookedTransformerConfig(
            n_layers=config.n_layers,
            d_model=config.d_model,
            d_vocab=task.d_vocab,
            n_ctx=task.n_positions,
            d_head=config.d_head,
            n_heads=config.n_heads,
            normalization_type=norm,
            act_fn="relu",
            device="cpu",
            **fields,
        ),
        ProgramTransformer,
    )
    draw_weights(model, config.seed)
    model.program_config, model.task, model.model_name = config, task, config.name
    model.info, model.notes = None, {}
    return model
