"""A sparse autoencoder on what the attention wrote: the reference that is not attention.

TopK sparse autoencoder (Gao et al., *Scaling and evaluating sparse autoencoders*, 2024) on a
layer's output, as in *Interpreting attention layer outputs with sparse autoencoders* (arXiv
2406.17759). Its features take the place of heads: each writes its activation times its decoder row.
"""

import copy
import dataclasses
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from transformer_lens.hook_points import HookPoint

from gated_interp.core.components import require_attention
from gated_interp.core.config import Config, Shapes, positive
from gated_interp.core.errors import GatedInterpError
from gated_interp.core.seeds import generator
from gated_interp.replacements.heads import unit
from gated_interp.replacements.layer_sketch import layer_sketch
from gated_interp.replacements.plain import expanded
from gated_interp.replacements.replacement import Activations, Replacement, register
from gated_interp.replacements.topk import most


@dataclasses.dataclass(frozen=True, kw_only=True)
class SAEConfig(Config):
    """What an autoencoder on a layer's output is.

    Attributes:
        d_model: width of the residual stream.
        n_heads: features, in the place of heads.
        k: features that write at a position.
        output_scale: what activations are multiplied by; set it to the size of the output.
        seed: of the initial weights.

    Examples:
        >>> SAEConfig(d_model=8, n_heads=6, k=2).k
        2
    """

    d_model: int
    n_heads: int
    k: int = 1
    output_scale: float = 1.0
    seed: int = 0

    def problems(self) -> list[GatedInterpError]:
        found = positive(self, "d_model", "n_heads", "k", "output_scale")
        if not found and self.k > self.n_heads:
            found.append(self.problem("config-k-too-large", value=self.k, available=self.n_heads))
        return found


@register
class OutputAutoencoder(Replacement):
    """Features of what an attention layer writes, of which the ``k`` largest write.

    With ``x`` what the original layer writes, ``s`` the ``output_scale``::

        z[h]   = relu((x / s - b_O / s) . W_E[h] + b_E[h])   where among the k largest, else 0
        output = sum over h of z[h] W_O[h] + b_O             W_O[h] of length s

    The original layer stays inside, frozen: this reads what attention wrote and replaces nothing of
    how it came about. It has no pattern and no query-key circuit.

    Examples:
        >>> from gated_interp.models.toy import ToyConfig, build_toy
        >>> toy = build_toy(ToyConfig(n_trigrams=3, n_heads=2))
        >>> OutputAutoencoder.from_attention(toy.blocks[0].attn, expansion=4, k=1)
        OutputAutoencoder(8 features, k=1)
    """

    kind = "sae"
    config_type = SAEConfig
    opened_from = ("hook_features",)
    needs_original = True
    config: SAEConfig

    def __init__(self, config: SAEConfig, original: nn.Module, device: str | torch.device = "cpu"):
        super().__init__()
        self.config = config
        h, m = config.n_heads, config.d_model
        self.W_E = nn.Parameter(torch.empty(h, m))
        self.b_E = nn.Parameter(torch.zeros(h))
        self.raw_W_O = nn.Parameter(torch.empty(h, 1, m))
        self.b_O = nn.Parameter(torch.zeros(m))
        self.hook_features = HookPoint()  # [batch pos head_index]
        self.hook_z = HookPoint()  # [batch pos head_index 1]
        with torch.no_grad():
            drawn = torch.randn(h, m, generator=generator(config.seed))
            self.raw_W_O.copy_(unit(drawn, 1)[:, None])
            self.W_E.copy_(self.raw_W_O[:, 0])  # tied at first, as in the papers
        self.original = copy.deepcopy(original).requires_grad_(False)
        self.to(device)

    @classmethod
    def stored_shapes(cls, config: SAEConfig) -> Shapes:
        h, m = config.n_heads, config.d_model
        return {"W_E": (h, m), "b_E": (h,), "raw_W_O": (h, 1, m), "b_O": (m,)}

    @property
    def W_O(self) -> Float[Tensor, "head_index 1 d_model"]:
        """The decoder as it acts."""
        return unit(self.raw_W_O, 2) * self.config.output_scale

    def forward(
        self,
        query_input: Float[Tensor, "batch pos *head d_model"],
        key_input: Float[Tensor, "batch pos *kv d_model"] | None = None,
        value_input: Float[Tensor, "batch pos *kv d_model"] | None = None,
        attention_mask: Shaped[Tensor, "batch pos"] | None = None,
        **unsupported: Any,
    ) -> Float[Tensor, "batch pos d_model"]:
        """The decoded features of what the original layer writes.

        Args:
            attention_mask: 0 at padding, to which nobody attends.
        """
        self.require_inputs(query_input, unsupported)
        key_input = query_input if key_input is None else key_input
        value_input = query_input if value_input is None else value_input
        written = self.original(
            query_input=query_input,
            key_input=key_input,
            value_input=value_input,
            attention_mask=attention_mask,
        )
        features = (written - self.b_O) / self.config.output_scale @ self.W_E.T + self.b_E
        features = self.hook_features(features.relu())
        kept = features * most(features.detach(), self.config.k)
        z = self.hook_z(kept[..., None])
        return torch.einsum("bphd,hdm->bpm", z, self.W_O) + self.b_O

    def opened(self, seen: Activations) -> Float[Tensor, "batch pos head_index d_head"]:
        return seen["hook_features"][..., None]

    @classmethod
    def from_config(cls, config: SAEConfig, original: nn.Module) -> "OutputAutoencoder":
        return cls(config, original)

    @classmethod
    def from_attention(
        cls, attn: Any, expansion: int | float = 2, *, seed: int = 0, **config: Any
    ) -> "OutputAutoencoder":
        """An autoencoder on what a TransformerLens attention layer writes.

        Args:
            attn: the layer; copied, frozen. Its dtype and device are taken over.
            expansion: features per original head.
            seed: of the initial weights.
            **config: further fields of :class:`SAEConfig`.
        """
        require_attention(attn)
        n, m, _ = attn.W_Q.shape
        features = expanded(n, expansion)
        made = cls(SAEConfig(d_model=m, n_heads=features, seed=seed, **config), attn)
        made.stands_for = layer_sketch(dict(attn.named_parameters()))
        return made.to(attn.W_Q)

    def __repr__(self) -> str:
        return f"OutputAutoencoder({self.config.n_heads} features, k={self.config.k})"
