"""Heads of which only the few that write most at a position write at all.

Low-rank sparse attention, Lorsa (arXiv 2504.20938): many heads of rank one, groups of which share
one query-key circuit, TopK of what they would write. With ``k = 1`` and a circuit for every head
it is the Top-1 control of *Progress on attention* (Transformer Circuits, 2025).
"""

import dataclasses
from typing import Any, Literal, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from gated_interp.core.config import Shapes, positive
from gated_interp.core.errors import GatedInterpError
from gated_interp.core.seeds import generator
from gated_interp.metrics.reconstruction import writes_at
from gated_interp.replacements.heads import HeadAttention, HeadsConfig, constant_of, unit
from gated_interp.replacements.plain import expanded
from gated_interp.replacements.replacement import register
from gated_interp.replacements.scoring import scoring_of

FALLS_OVER = 0.1
"""The first fraction of a training, over which K falls from all heads to ``k``."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TopKConfig(HeadsConfig):
    """What a TopK layer is; see also :class:`HeadsConfig`.

    Attributes:
        k: heads that write at a position.
        n_circuits: query-key circuits; head ``i`` uses circuit ``i mod n_circuits``. ``None`` is
            one for each head.
        d_qk: dimensions of a circuit; ``None`` is ``d_head``.

    Examples:
        >>> TopKConfig(d_model=8, n_heads=6, k=2, n_circuits=2).k
        2
    """

    k: int = 1
    n_circuits: int | None = None
    d_qk: int | None = None

    @property
    def qk_width(self) -> int:
        return self.d_qk or self.d_head

    def problems(self) -> list[GatedInterpError]:
        found = [*super().problems(), *positive(self, "k")]
        for name in ("n_circuits", "d_qk"):
            if getattr(self, name) is not None:
                found += positive(self, name)
        if not found and self.k > self.n_heads:
            found.append(self.problem("config-k-too-large", value=self.k, available=self.n_heads))
        if not found and self.n_heads % (self.n_circuits or self.n_heads):
            found.append(
                self.problem(
                    "config-circuits-do-not-divide", value=self.n_circuits, heads=self.n_heads
                )
            )
        return found


TopK = TypeVar("TopK", bound="TopKAttention")


@register
class TopKAttention(HeadAttention):
    """Attention of which, at each position, the ``k`` heads that would write most write.

    How much a head would write is the length of ``z[h] W_O[h]``; the others' ``z`` is 0, and so is
    what ``hook_z`` shows of them. In a training K falls from all heads to ``k`` over the first
    tenth of the steps.

    Examples:
        >>> layer = TopKAttention(TopKConfig(d_model=8, n_heads=6, k=2, n_circuits=2))
        >>> layer.W_Q.shape, layer.raw_W_Q.shape
        (torch.Size([6, 8, 1]), torch.Size([2, 8, 1]))
    """

    kind = "topk"
    config_type = TopKConfig
    raw_qk = "raw_"
    config: TopKConfig

    def __init__(self, config: TopKConfig, device: str | torch.device = "cpu"):
        super().__init__(config, device)
        self.k_now = config.k

    @property
    def _sizes(self) -> tuple[int, int, int]:
        c = self.config
        return c.n_circuits or c.n_heads, c.d_model, c.qk_width

    def _make_queries_and_keys(self) -> None:
        circuits, m, d = self._sizes
        self.raw_W_Q = nn.Parameter(torch.empty(circuits, m, d))
        self.raw_W_K = nn.Parameter(torch.empty(circuits, m, d))
        self.raw_b_Q = nn.Parameter(torch.zeros(circuits, d))
        self.raw_b_K = nn.Parameter(torch.zeros(circuits, d))
        self.circuit = torch.arange(self.config.n_heads) % circuits

    @classmethod
    def stored_shapes(cls, config: HeadsConfig) -> Shapes:
        assert isinstance(config, TopKConfig)
        circuits, d_qk = config.n_circuits or config.n_heads, config.qk_width
        sizes = {"W_Q": (circuits, config.d_model, d_qk), "b_Q": (circuits, d_qk)}
        sizes |= {"W_K": sizes["W_Q"], "b_K": sizes["b_Q"]}
        shapes = super().stored_shapes(config)
        return {f"raw_{n}" if n in sizes else n: sizes.get(n, s) for n, s in shapes.items()}

    @property
    def W_Q(self) -> Float[Tensor, "head_index d_model d_qk"]:
        """Each head's query weights, those of its circuit."""
        return self.raw_W_Q[self.circuit]

    @property
    def W_K(self) -> Float[Tensor, "head_index d_model d_qk"]:
        """Each head's key weights, those of its circuit."""
        return self.raw_W_K[self.circuit]

    @property
    def b_Q(self) -> Float[Tensor, "head_index d_qk"]:
        """Each head's query bias, that of its circuit."""
        return self.raw_b_Q[self.circuit]

    @property
    def b_K(self) -> Float[Tensor, "head_index d_qk"]:
        """Each head's key bias, that of its circuit."""
        return self.raw_b_K[self.circuit]

    def kept(
        self, z: Float[Tensor, "batch pos head_index d_head"]
    ) -> Float[Tensor, "batch pos head_index d_head"]:
        return z * most(writes_at(z.detach(), self.W_O.detach()), self.k_now)[..., None]

    def prepare(self, fraction: float, seed: int) -> None:
        self.k_now = k_at(fraction, self.config)

    def settle(self) -> None:
        self.k_now = self.config.k

    @classmethod
    def from_attention(
        cls: type[TopK],
        attn: Any,
        expansion: int | float = 2,
        *,
        init: Literal["random", "duplicate"] = "random",
        seed: int = 0,
        noise: int | float = 0.1,
        **config: Any,
    ) -> TopK:
        """A layer initialised from a TransformerLens attention layer, as Lorsa's are.

        Circuit ``i`` starts as the query-key circuit of original head ``i mod n``; the value and
        output weights of the heads on it are drawn in the subspace that original head reads and
        writes (its ``W_V``, ``W_O``), plus Gaussian noise; ``b_O`` (where there is one) starts at
        the original's, with what its ``b_V`` writes where ``value_bias`` is off. It has the layer's
        dtype and device.

        Args:
            attn: the layer, of a kind that :meth:`HeadAttention.from_attention` takes.
            expansion: heads per original head.
            init: ``random`` is that; ``duplicate`` copies heads as they are, as
                :meth:`HeadAttention.from_attention` does. A copy writes what the layer writes for
                as long as all heads write: with ``k`` at their number, which it is unless given, or
                in the first step of a training.
            seed: of the draws.
            noise: standard deviation added to unit-length value and output weights; of a copy, to
                its weights.
            **config: further fields of :class:`TopKConfig`; ``n_circuits`` is the layer's heads,
                ``d_qk`` its ``d_head`` and ``d_head`` 1 (of a copy the layer's) unless given.
        """
        scoring_of(attn)
        n, _, d = attn.W_Q.shape
        heads = expanded(n, expansion)
        fields: dict[str, Any] = {"d_qk": d, "n_circuits": n, **config}
        if init != "random":
            copy = {"init": init, "noise": noise, "seed": seed, "k": heads}
            return super().from_attention(attn, expansion, **copy | fields)
        layer = super().from_attention(attn, expansion, seed=seed, **{"d_head": 1} | fields).cpu()
        source = generator(seed)
        origin = torch.arange(heads) % n
        with torch.no_grad():
            if layer.config.qk_width == d:
                circuits = torch.arange(layer._sizes[0]) % n
                for name in ("W_Q", "W_K", "b_Q", "b_K"):
                    getattr(layer, f"raw_{name}").copy_(getattr(attn, name)[circuits])
            inner = layer.config.d_head
            mix = torch.randn(heads, d, inner, generator=source)
            for raw, drawn, axis in (
                (layer.raw_W_V, attn.W_V.cpu()[origin] @ mix.to(attn.W_V.dtype), 1),
                (layer.raw_W_O, mix.mT.to(attn.W_O.dtype) @ attn.W_O.cpu()[origin], 2),
            ):
                extra = noise * torch.randn(raw.shape, generator=source)
                raw.copy_(unit(drawn, axis) + extra)
            if layer.config.output_bias:
                layer.b_O.copy_(constant_of(attn, layer.config.value_bias))
        return layer.to(attn.W_Q.device)

    def __repr__(self) -> str:
        c = self.config
        circuits = "" if c.n_circuits is None else f", {c.n_circuits} circuits"
        return f"TopKAttention({c.n_heads} heads, k={c.k}{circuits})"


def k_at(fraction: float, config: TopKConfig) -> int:
    """K when ``fraction`` of a training is done.

    Examples:
        >>> config = TopKConfig(d_model=8, n_heads=10, k=2)
        >>> [k_at(fraction, config) for fraction in (0.0, 0.05, 0.1, 1.0)]
        [10, 6, 2, 2]
    """
    left = max(0.0, 1 - fraction / FALLS_OVER)
    return config.k + round(left * (config.n_heads - config.k))


def most(
    lengths: Float[Tensor, "*position head_index"], k: int
) -> Float[Tensor, "*position head_index"]:
    """1 at the ``k`` largest of each position, else 0; of equals the first."""
    if k >= lengths.shape[-1]:
        return torch.ones_like(lengths)
    return torch.zeros_like(lengths).scatter_(-1, lengths.topk(k, -1).indices, 1.0)
