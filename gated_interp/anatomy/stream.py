"""The residual stream: its norms, and the frozen linear map from what is written to the logits."""

import dataclasses
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformer_lens.utilities.activation_functions import apply_softcap, softcap_enabled
from transformer_lens.utilities.architectures import POST_NORM_ARCHITECTURES

from gated_interp.core.components import LayerNorm, LayerNormPre
from gated_interp.core.precision import wide
from gated_interp.models.toy import HookedTransformer


@dataclasses.dataclass(frozen=True)
class Norm:
    """A normalisation: centring where it centres, divided by its scale, times its weights.

    Attributes:
        name: of the module in its model, such as ``ln_final``.
        module: the normalisation itself.
    """

    name: str
    module: nn.Module

    @property
    def centres(self) -> bool:
        """Whether it takes away the mean: LayerNorm does, RMSNorm does not."""
        return isinstance(self.module, LayerNorm | LayerNormPre)

    @property
    def hook_scale(self) -> str:
        """The hook point of what it divides by, ``[batch pos 1]``."""
        return f"{self.name}.hook_scale"

    @property
    def bias(self) -> Float[Tensor, " d_model"] | None:
        """What it adds; ``None`` where nothing."""
        found: Tensor | None = getattr(self.module, "b", None)
        return None if found is None else wide(found)

    def before(self, matrix: Float[Tensor, "d_model column"]) -> Float[Tensor, "d_model column"]:
        """The norm at a scale of one, then ``matrix``, as one matrix (rows times it)."""
        weight = getattr(self.module, "w", None)
        if weight is not None:
            matrix = wide(weight)[:, None] * matrix
        return matrix - matrix.mean(0, keepdim=True) if self.centres else matrix

    def frozen(
        self, x: Float[Tensor, "part d_model"], scale: Float[Tensor, "*one"] | float
    ) -> Float[Tensor, "part d_model"]:
        """What it makes of parts of its input at a scale that is given, its bias left out."""
        x = (x - x.mean(-1, keepdim=True) if self.centres else x) / scale
        weight = getattr(self.module, "w", None)
        return x if weight is None else x * wide(weight)


def passing(norm: Norm | None, matrix: Tensor) -> Tensor:
    """``norm`` at a scale of one, then ``matrix``; ``matrix`` itself without a norm."""
    return matrix if norm is None else norm.before(matrix)


def input_norm(model: HookedTransformer, layer: int) -> Norm | None:
    """What the attention of ``layer`` reads through; ``None`` where it reads the stream itself."""
    return None if _norms_after(model) else _norm(model, f"blocks.{layer}.ln1")


def write_norm(model: HookedTransformer, layer: int) -> Norm | None:
    """What the write of the attention at ``layer`` goes through before it is added."""
    return _norm(model, f"blocks.{layer}.ln1{'' if _norms_after(model) else '_post'}")


def final_norm(model: HookedTransformer) -> Norm | None:
    """What the unembedding reads through."""
    return _norm(model, "ln_final")


def _norms_after(model: HookedTransformer) -> bool:
    """Whether the one norm of attention stands behind it (OLMo 2)."""
    return model.cfg.original_architecture in POST_NORM_ARCHITECTURES


def _norm(model: HookedTransformer, name: str) -> Norm | None:
    if model.cfg.normalization_type is None:
        return None
    try:
        module = model.get_submodule(name)
    except AttributeError:
        return None
    return None if isinstance(module, nn.Identity) else Norm(name, module)


@dataclasses.dataclass(frozen=True)
class Readout:
    """The linear map from a write to the logits, with every norm on the way at a frozen scale.

    Logits are those before an output soft cap, which no sum can pass. What MLPs and later layers
    make of the write is left out: this is the direct path.

    Attributes:
        matrix: ``[d_model d_vocab_out]``, in float32 or better; to be divided by :meth:`scale`.
        scales: the hook points of what it is divided by.
    """

    matrix: Float[Tensor, "*head d_in d_vocab_out"]
    scales: tuple[str, ...]

    @classmethod
    def of(cls, model: HookedTransformer, layer: int | None = None) -> "Readout":
        """From what the attention of ``layer`` writes; from the stream itself if ``None``."""
        matrix = wide(model.unembed.W_U)
        scales: list[str] = []
        for norm in (final_norm(model), None if layer is None else write_norm(model, layer)):
            if norm is not None:
                matrix, scales = norm.before(matrix), [*scales, norm.hook_scale]
        return cls(matrix, tuple(scales))

    def scale(self, cache: Any) -> Float[Tensor, "batch pos *head 1"] | float:
        """What is divided by, from the activations at :attr:`scales`."""
        scale: Tensor | float = 1.0
        for name in self.scales:
            scale = scale * wide(cache[name])
        return scale


class HeadReadout(Readout):
    """A :class:`Readout` from the ``z`` of each head: ``[head_index d_head d_vocab_out]``.

    Biases are left out. Its scale has an axis of length one for the head.
    """

    @classmethod
    def of(cls, model: HookedTransformer, layer: int | None = None) -> "HeadReadout":
        """Of the heads of ``layer`` (the first, if ``None``), a replacement's or the model's."""
        layer = layer or 0
        found = Readout.of(model, layer)
        return cls(wide(model.blocks[layer].attn.W_O) @ found.matrix, found.scales)

    def scale(self, cache: Any) -> Float[Tensor, "batch pos 1 1"] | float:
        """What is divided by, from the activations at :attr:`scales`."""
        scale = super().scale(cache)
        return scale[..., None, :] if isinstance(scale, Tensor) else scale


@dataclasses.dataclass(frozen=True)
class Written:
    """The linear map from each head's ``z`` to what it adds to the stream.

    Attributes:
        W_O: ``[head_index d_head d_model]``, through the norm behind the layer, if there is one.
        norm: that norm, whose scale divides.
    """

    W_O: Float[Tensor, "head_index d_head d_model"]
    norm: Norm | None

    @classmethod
    def of(cls, model: HookedTransformer, layer: int) -> "Written":
        """That of the heads of ``layer``, a replacement's or the model's."""
        W_O, norm = wide(model.blocks[layer].attn.W_O), write_norm(model, layer)
        eye = torch.eye(W_O.shape[-1]).to(W_O)
        return cls(W_O if norm is None else W_O @ norm.before(eye), norm)

    @property
    def scales(self) -> tuple[str, ...]:
        """The hook point of the norm's scale; none without a norm."""
        return () if self.norm is None else (self.norm.hook_scale,)

    def scale(self, cache: Any) -> Float[Tensor, "batch pos 1"] | float:
        """What is divided by, from the activation at :attr:`scales`."""
        return wide(cache[self.norm.hook_scale]) if self.norm is not None else 1.0


def stream_hooks(model: HookedTransformer, layer: int) -> list[str]:
    """The hook points that :func:`stream_parts` reads."""
    names = ["hook_embed"]
    if model.cfg.positional_embedding_type == "standard":
        names.append("hook_pos_embed")
    for early in range(layer):
        names += [f"blocks.{early}.attn.hook_z", *Written.of(model, early).scales]
        names += [] if model.cfg.attn_only else [f"blocks.{early}.hook_mlp_out"]
    return names


def stream_parts(
    model: HookedTransformer, layer: int, cache: Any, row: int, position: int
) -> tuple[list[str], Float[Tensor, "component d_model"]]:
    """What stands in the stream before ``layer`` at one position, by what wrote it.

    Components are ``embed``, ``pos_embed`` (where it is added to the stream), and of each earlier
    layer ``L0H0``.., ``L0 b_O`` and ``L0 mlp``, an MLP with its bias. Norms behind a layer are at
    their scale in the same forward pass.
    """
    at = row, position
    names, parts = ["embed"], [wide(cache["hook_embed"][at])[None]]
    if model.cfg.positional_embedding_type == "standard":
        names.append("pos_embed")
        parts.append(wide(cache["hook_pos_embed"][at])[None])
    for early in range(layer):
        attn, written = model.blocks[early].attn, Written.of(model, early)
        scale = written.scale(cache)
        scale = scale[at] if isinstance(scale, Tensor) else scale
        z, b_O = wide(cache[f"blocks.{early}.attn.hook_z"][at]), wide(attn.b_O)
        parts.append(torch.einsum("hd,hdm->hm", z, written.W_O) / scale)
        names += [*(f"L{early}H{head}" for head in range(len(z))), f"L{early} b_O"]
        if written.norm is not None:
            b_O = written.norm.frozen(b_O[None], scale)[0]
            b_O = b_O if written.norm.bias is None else b_O + written.norm.bias
        parts.append(b_O[None])
        if not model.cfg.attn_only:
            names.append(f"L{early} mlp")
            parts.append(wide(cache[f"blocks.{early}.hook_mlp_out"][at])[None])
    return names, torch.cat(parts)


def logit_bias(model: HookedTransformer) -> Float[Tensor, " d_vocab_out"]:
    """What reaches the logits whatever the stream holds: biases of final norm and unembedding."""
    bias = getattr(model.unembed, "b_U", None)
    bias = wide(model.unembed.W_U[0] * 0 if bias is None else bias)
    norm = final_norm(model)
    if norm is not None and norm.bias is not None:
        bias = bias + norm.bias @ wide(model.unembed.W_U)
    return bias


def logits_of(
    model: HookedTransformer, stream: Float[Tensor, "batch pos d_model"]
) -> Float[Tensor, "batch pos d_vocab_out"]:
    """The logits of what stands in the stream behind the last layer, as the model makes them."""
    if model.cfg.normalization_type is not None:
        stream = model.ln_final(stream)
    return apply_softcap(model.unembed(stream), model.cfg.output_logits_soft_cap)


RAW_LOGITS = "unembed.hook_out"
"""The hook point of the logits before an output soft cap."""


def why_not_linear(model: HookedTransformer, layer: int) -> str | None:
    """Why the logits are not a sum over the heads of ``layer``; ``None`` where they are."""
    cfg = model.cfg
    if layer != cfg.n_layers - 1:
        return f"later layers read what layer {layer} writes"
    if not cfg.attn_only and not cfg.parallel_attn_mlp:
        return f"the MLP of layer {layer} reads what its heads write"
    for norm in (write_norm(model, layer), final_norm(model)):
        if norm is not None:
            return f"{norm.name} divides by a scale that depends on all heads"
    if softcap_enabled(cfg.output_logits_soft_cap):
        return f"the logits are capped (output_logits_soft_cap={cfg.output_logits_soft_cap})"
    return None
