"""What a layer does to queries, keys and scores beside ``q . k / attn_scale``, for its blocks.

In TransformerLens' order: queries and keys are normed (QK norm), clipped and rotated by their
position (rotary embeddings), queries are scaled by the logarithm of theirs; products are capped,
the bias of the distance (alibi) is added, keys outside of a local window are hidden, and a sink
takes a share of the softmax.
"""

import dataclasses
import math
from types import SimpleNamespace
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformer_lens.utilities import get_offset_position_ids
from transformer_lens.utilities.activation_functions import apply_softcap

from gated_interp.core.components import AbstractAttention
from gated_interp.core.config import Config, Shapes, positive
from gated_interp.core.errors import GatedInterpError

# What TransformerLens makes a table of rotations from.
ROTARY = [
    *("n_ctx", "rotary_dim", "rotary_base", "rotary_base_local", "rotary_adjacent_pairs"),
    *("rotary_scaling_factor", "use_NTK_by_parts_rope", "NTK_by_parts_factor"),
    *("NTK_by_parts_low_freq_factor", "NTK_by_parts_high_freq_factor", "NTK_original_ctx_len"),
    *("use_yarn_rope", "yarn_factor", "yarn_original_max_position_embeddings", "yarn_beta_fast"),
    *("yarn_beta_slow", "yarn_truncate", "yarn_attention_factor", "yarn_global_attn_only"),
]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scoring(Config):
    """Which of these a layer does, and how.

    Attributes:
        width: dimensions of the layer's own queries and keys; the mean of a QK norm is over these.
        rotary: of rotary embeddings, TransformerLens' names and ``attn_type``; ``None`` without.
        qk_norm: epsilon of an RMS norm of each head's queries and keys.
        clip: the largest size of a number in queries, keys and values.
        cap: of products, ``cap * tanh(product / cap)``.
        window: how many positions, its own among them, a query sees.
        log_n: beyond this position, queries are scaled by ``log(position) / log(log_n)``.
        alibi: whether each head has a slope.
        sinks: whether each head has a sink.
    """

    width: int
    rotary: dict[str, Any] | None = None
    qk_norm: float | None = None
    clip: float | None = None
    cap: float | None = None
    window: int | None = None
    log_n: int | None = None
    alibi: bool = False
    sinks: bool = False

    def problems(self) -> list[GatedInterpError]:
        given = [n for n in ("clip", "cap", "window", "log_n") if getattr(self, n) is not None]
        found = positive(self, "width", *given)
        if self.rotary is not None and {*self.rotary} != {*ROTARY, "attn_type"}:
            found.append(self.problem("config-bad-rotary"))
        return found

    @property
    def narrowest(self) -> int:
        """How many dimensions queries and keys must have at least."""
        if self.qk_norm is not None:
            return self.width
        return 1 if self.rotary is None else int(self.rotary["rotary_dim"])

    def rotation_of(self, dims: int) -> "Scoring":
        """The rotary embeddings alone, at as many of their frequencies as ``dims`` numbers need."""
        assert self.rotary is not None
        return Scoring(width=dims, rotary=self.rotary | {"rotary_dim": dims})

    def shapes(self, heads: int, width: int) -> Shapes:
        """The shapes of its parameters, by name."""
        found: Shapes = (
            {} if self.qk_norm is None else dict.fromkeys(("q_norm", "k_norm"), (width,))
        )
        found |= {"slopes": (heads,)} if self.alibi else {}
        return found | ({"sinks": (heads,)} if self.sinks else {})


POSITIONS = 2048
"""Rows of a table of rotations at first."""

EXPRESSED = [
    *("n_key_value_heads", "positional_embedding_type", "use_qk_norm", "clip_qkv", "window_size"),
    *("attn_scores_soft_cap", "use_attention_sinks", "use_logn_attn"),
]


def scoring_of(attn: Any) -> Scoring | None:
    """What the layer does beside ``q . k / attn_scale``; ``None`` where nothing."""
    cfg = getattr(attn, "cfg", None)
    if not isinstance(attn, AbstractAttention) or cfg is None:
        raise GatedInterpError("not-an-attention-layer", kind=type(attn).__name__)
    from gated_interp.anatomy.attention import extras  # which TransformerLens 4 has no models for

    found = extras(attn)
    kind = found.get("positional_embedding_type")
    beyond = {name: value for name, value in found.items() if name not in EXPRESSED}
    if kind not in (None, "rotary", "alibi"):
        beyond["positional_embedding_type"] = kind
    trained = cfg.train_seq_length or cfg.n_ctx
    if kind == "rotary" and cfg.use_dynamic_ntk_rope and trained < cfg.n_ctx:
        beyond["use_dynamic_ntk_rope"] = True
    for name, value in beyond.items():
        raise GatedInterpError("layer-beyond-replacements", name=name, value=value)
    if not found.keys() - {"n_key_value_heads"}:
        return None
    rotary = {name: getattr(cfg, name) for name in ROTARY} | {"attn_type": attn.attn_type}
    return Scoring(
        width=int(attn.W_Q.shape[-1]),
        rotary=rotary if kind == "rotary" else None,
        qk_norm=float(cfg.eps) if "use_qk_norm" in found else None,
        clip=found.get("clip_qkv"),
        cap=found.get("attn_scores_soft_cap"),
        window=found.get("window_size"),
        log_n=trained if "use_logn_attn" in found else None,
        alibi=kind == "alibi",
        sinks="use_attention_sinks" in found,
    )


class Scored(nn.Module):
    """A :class:`Scoring` with its numbers: what a block does to queries, keys and products.

    Args:
        heads: of the block.
        width: of its queries and keys; those beyond the layer's own are neither rotated nor counted
            among the dimensions of a norm's mean.
    """

    slopes: Tensor
    sinks: Tensor
    sin: Tensor
    cos: Tensor
    made_in: torch.dtype = torch.float32

    def __init__(self, config: Scoring, heads: int, width: int):
        super().__init__()
        self.config = config
        for name, shape in config.shapes(heads, width).items():
            value = torch.ones(shape) if name.endswith("norm") else torch.zeros(shape)
            # Slopes are a layer's, not learned.
            self.register_parameter(name, nn.Parameter(value, requires_grad=name != "slopes"))
        if config.rotary is not None:
            for name, values in zip(("sin", "cos"), self._rotations(torch.float32), strict=True):
                self.register_buffer(name, values, persistent=False)

    def _rotations(self, dtype: torch.dtype, positions: int = POSITIONS) -> tuple[Tensor, Tensor]:
        """TransformerLens' own tables, ``[pos rotary_dim]``, as it makes them in ``dtype``."""
        rotary: Any = self.config.rotary
        cfg = SimpleNamespace(**{n: rotary[n] for n in ROTARY})
        layer = SimpleNamespace(cfg=cfg, attn_type=rotary["attn_type"])
        base = AbstractAttention._rotary_base(layer)
        make = AbstractAttention.calculate_sin_cos_rotary
        sin, cos = make(layer, cfg.rotary_dim, min(cfg.n_ctx, positions), base=base, dtype=dtype)
        return sin, cos

    @torch.no_grad()
    def copy_from(self, attn: Any) -> None:
        """Take the numbers of ``attn``: head ``i`` those of its head ``i mod n``."""
        c, n = self.config, attn.W_Q.shape[0]
        if c.rotary is not None:
            self.made_in = attn.cfg.dtype
            self.sin, self.cos = (x.to(self.sin.dtype) for x in self._rotations(self.made_in))
        for name in ("q_norm", "k_norm") if c.qk_norm is not None else ():
            own = getattr(attn, name).w
            self.get_parameter(name)[: len(own)] = own
        if c.alibi:
            slopes = AbstractAttention.create_alibi_multipliers(n)
            self.slopes.copy_(slopes[torch.arange(len(self.slopes)) % n])
        if c.sinks:
            self.sinks.copy_(attn.sinks[torch.arange(len(self.sinks)) % n])

    def extras(self) -> dict[str, Any]:
        """The same by TransformerLens' names, as :func:`gated_interp.anatomy.attention.extras`."""
        c = self.config
        kind = "rotary" if c.rotary is not None else "alibi" if c.alibi else None
        found = {
            "positional_embedding_type": kind,
            "use_qk_norm": c.qk_norm is not None,
            "window_size": c.window,
            "attn_scores_soft_cap": c.cap,
            "clip_qkv": c.clip,
            "use_attention_sinks": c.sinks,
            "use_logn_attn": c.log_n is not None,
        }
        return {name: value for name, value in found.items() if value}

    def placed(
        self,
        x: Float[Tensor, "batch pos head_index d_head"],
        which: Literal["q", "k"],
        first: int | None = 0,
        real: Bool[Tensor, "batch pos"] | None = None,
    ) -> Float[Tensor, "batch pos head_index d_head"]:
        """Queries or keys as they are multiplied.

        Args:
            first: where the first stands; ``None`` leaves positions out.
            real: where there is a token; positions are counted from a row's first.
        """
        c = self.config
        if c.qk_norm is not None:
            scale = (x.square().sum(-1, keepdim=True) / c.width + c.qk_norm).sqrt()
            x = x / scale * self.get_parameter(f"{which}_norm")
        x = self.clipped(x)
        return x if first is None else self.turned(x, which, first, real)

    def turned(
        self,
        x: Float[Tensor, "batch pos head_index d_head"],
        which: Literal["q", "k"],
        first: int = 0,
        real: Bool[Tensor, "batch pos"] | None = None,
    ) -> Float[Tensor, "batch pos head_index d_head"]:
        """Queries or keys, normed and clipped, as their positions make them; see :meth:`placed`."""
        c = self.config
        if c.rotary is not None:
            n, last = c.rotary["rotary_dim"], first + x.shape[1]
            if last > len(self.sin):  # long contexts have tables of their length when they come
                table = self._rotations(self.made_in, 2 * last)
                self.sin, self.cos = (values.to(self.sin) for values in table)
            if real is None:
                at: Any = slice(first, first + x.shape[1])
                sin, cos = self.sin[at][None, :, None], self.cos[at][None, :, None]
            else:
                ids = get_offset_position_ids(0, real.long())
                sin, cos = self.sin[ids][:, :, None], self.cos[ids][:, :, None]
            turned = x[..., :n]
            turned = turned * cos + _flipped(turned, c.rotary["rotary_adjacent_pairs"]) * sin
            x = torch.cat([turned, x[..., n:]], -1)
        if which == "q" and c.log_n is not None and not self.training:
            number = torch.arange(first + 1, first + x.shape[1] + 1, device=x.device)
            x = x * (number.float().log() / math.log(c.log_n)).clamp(min=1).to(x)[:, None, None]
        return x

    def clipped(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Queries, keys or values within the layer's bounds."""
        clip = self.config.clip
        return x if clip is None else x.clamp(-clip, clip)

    def scores(
        self, products: Float[Tensor, "batch head_index query_pos key_pos"], first: int
    ) -> Float[Tensor, "batch head_index query_pos key_pos"]:
        """Scores from products over the scale: capped, with the bias of the distance.

        Args:
            first: where the first query stands.
        """
        c = self.config
        products = apply_softcap(products, c.cap)
        if not c.alibi:
            return products
        back = _distance(first, products).clamp(max=0)
        return products + self.slopes[:, None, None] * back

    def out_of_sight(
        self, products: Float[Tensor, "batch head_index query_pos key_pos"], first: int
    ) -> Bool[Tensor, "query_pos key_pos"] | None:
        """The pairs that a local window hides; ``None`` where there is none."""
        window = self.config.window
        return None if window is None else _distance(first, products) <= -window

    def with_sinks(
        self, scores: Float[Tensor, "batch head_index query_pos key_pos"]
    ) -> Float[Tensor, "batch head_index query_pos key"]:
        """With each head's sink as one more key, where there are sinks."""
        if not self.config.sinks:
            return scores
        sink = self.sinks[:, None, None].expand(*scores.shape[:3], 1)
        return torch.cat([scores, sink.to(scores)], -1)


def _distance(first: int, products: Tensor) -> Int[Tensor, "query_pos key_pos"]:
    query = torch.arange(first, first + products.shape[2], device=products.device)
    return torch.arange(products.shape[3], device=products.device) - query[:, None]


def _flipped(x: Float[Tensor, "*shape"], adjacent: bool) -> Float[Tensor, "*shape"]:
    """A quarter turn of each pair: of neighbours, or of the halves."""
    if adjacent:
        return torch.stack([-x[..., 1::2], x[..., ::2]], -1).flatten(-2)
    half = x.shape[-1] // 2
    return torch.cat([-x[..., half:], x[..., :half]], -1)
