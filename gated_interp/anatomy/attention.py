"""One layer of attention: which keys and values a head reads, and how its scores come about.

The only file that asks a config what kind of attention there is. What a head does to a score,
in the order in which TransformerLens computes it::

    q, k  = input W + b, normed per head (QK norm), clipped, rotated by the position
    score = cap(q . k / attn_scale) + bias of the distance      -inf where the mask hides the key
"""

import dataclasses
from typing import Any, Literal

import torch
from jaxtyping import Float, Shaped
from torch import Tensor
from transformer_lens.utilities.activation_functions import apply_softcap, softcap_enabled

from gated_interp.anatomy.stream import input_norm
from gated_interp.core.components import AbstractAttention
from gated_interp.core.errors import GatedInterpError
from gated_interp.core.precision import wide
from gated_interp.models.toy import HookedTransformer

Role = Literal["query", "key", "value"]


def query_heads(x: Shaped[Tensor, "..."], heads: int, axis: int = 2) -> Shaped[Tensor, "..."]:
    """Activations of key-value heads (or of heads), one for each of ``heads`` query heads.

    Query head ``h`` of a layer with grouped queries reads key-value head ``h // group``.

    Examples:
        >>> query_heads(torch.tensor([[[0, 1]]]), 4).tolist()
        [[[0, 0, 1, 1]]]
    """
    there = x.shape[axis]
    return x if there == heads else x.repeat_interleave(heads // there, axis)


def clipped_values(attn: Any, v: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """What attention weighs, from what stands at ``hook_v``: TransformerLens clips behind it."""
    clip = extras(attn).get("clip_qkv") if isinstance(attn, AbstractAttention) else None
    return v if clip is None else v.clamp(-clip, clip)


def extras(attn: Any) -> dict[str, Any]:
    """What the layer does that plain causal attention does not, by its name in the config.

    Plain is: one key-value head per head, causal, softmax of ``q . k`` over a constant, no position
    in the scores.
    """
    cfg = attn.cfg
    direction = getattr(attn, "_attention_dir_override", None) or cfg.attention_dir
    found = {
        "positional_embedding_type": cfg.positional_embedding_type
        not in ("standard", "shortformer"),
        "attention_dir": direction != "causal",
        "n_key_value_heads": cfg.n_key_value_heads not in (None, cfg.n_heads),
        "use_qk_norm": bool(cfg.use_qk_norm),
        "original_architecture": not cfg.use_qk_norm and getattr(attn, "q_norm", None) is not None,
        "window_size": getattr(attn, "attn_type", "") == "local",
        "attn_scores_soft_cap": softcap_enabled(cfg.attn_scores_soft_cap),
        "clip_qkv": cfg.clip_qkv is not None,
        "use_attention_sinks": bool(cfg.use_attention_sinks),
        "use_logn_attn": bool(cfg.use_logn_attn),
        "load_in_4bit": bool(cfg.load_in_4bit),
    }
    return {name: getattr(cfg, name) for name, there in found.items() if there}


@dataclasses.dataclass(frozen=True)
class Attention:
    """The attention of one layer, a model's own or a replacement's, as a closed form.

    All numbers are in float32 or better.

    Attributes:
        model, layer: whose.
        attn: the module in the layer.
    """

    model: HookedTransformer
    layer: int
    attn: Any

    @classmethod
    def of(cls, model: HookedTransformer, layer: int) -> "Attention":
        """The attention of ``layer``.

        Raises:
            GatedInterpError: what stands there has no queries and keys (an autoencoder), or scores
                of a kind that is not known here.
        """
        attn = model.blocks[layer].attn
        if not hasattr(attn, "W_Q"):
            raise GatedInterpError("layer-without-circuits", layer=layer, kind=type(attn).__name__)
        if isinstance(attn, AbstractAttention) and attn.cfg.load_in_4bit:
            raise GatedInterpError("four-bit-weights")
        return cls(model, layer, attn)

    @property
    def heads(self) -> int:
        """How many query heads there are."""
        return int(self.attn.W_O.shape[0])

    @property
    def own(self) -> bool:
        """Whether it is the model's own, not a replacement."""
        return isinstance(self.attn, AbstractAttention)

    @property
    def extras(self) -> dict[str, Any]:
        """See :func:`extras`."""
        return extras(self.attn) if self.own else self.attn.extras

    def kv_head(self, head: int) -> int:
        """The key-value head that a query head reads."""
        groups = self.extras.get("n_key_value_heads") or self.heads
        return head // (self.heads // int(groups))

    @property
    def cap(self) -> float | None:
        """The soft cap of the scores, ``cap * tanh(score / cap)``."""
        return self.extras.get("attn_scores_soft_cap")

    def capped(self, product: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Products of queries and keys behind the soft cap, where there is one."""
        return apply_softcap(product, self.cap)

    @property
    def positions(self) -> str | None:
        """How positions reach the scores: ``standard``, ``shortformer``, ``rotary``, ``alibi``."""
        kind = self.model.cfg.positional_embedding_type
        learned = kind in ("standard", "shortformer")
        if learned and not bool(self.model.pos_embed.W_pos.any()):
            return None
        # A replacement may have been made without what its layer does.
        return kind if learned else self.extras.get("positional_embedding_type")

    def inputs(self, role: Role, position: int | None = None) -> Float[Tensor, "d_vocab d_model"]:
        """What the layer reads of each token straight from the embedding, through its norm.

        Exact in layer 0; further up it is the direct path, past what earlier layers write.

        Args:
            role: positions of a shortformer reach queries and keys alone.
            position: of the token; ``None`` leaves the position out.
        """
        model, kind = self.model, self.model.cfg.positional_embedding_type
        every = torch.arange(model.cfg.d_vocab, device=model.embed.W_E.device)
        x: Tensor = model.embed(every[None])
        if kind == "standard" and position is not None:
            x = x + model.pos_embed.W_pos[position]
        norm = input_norm(model, self.layer)
        x = x if norm is None else norm.module(x)
        if kind == "shortformer" and position is not None and role != "value":
            x = x + model.pos_embed.W_pos[position]
        return wide(x[0])

    def queries(
        self,
        head: int,
        x: Float[Tensor, "n d_model"],
        position: int | None = None,
        *,
        biases: bool = True,
    ) -> Float[Tensor, "n d_head"]:
        """The queries of inputs ``x``, as they are multiplied with keys, divided by the scale.

        Args:
            position: where the query stands; ``None`` leaves rotations out.
        """
        return self._projected(head, x, position, biases, "Q") / self.attn.attn_scale

    def keys(
        self,
        head: int,
        x: Float[Tensor, "n d_model"],
        position: int | None = None,
        *,
        biases: bool = True,
    ) -> Float[Tensor, "n d_head"]:
        """The keys of inputs ``x``; see :meth:`queries`."""
        return self._projected(head, x, position, biases, "K")

    def values(
        self, head: int, x: Float[Tensor, "n d_model"], *, biases: bool = True
    ) -> Float[Tensor, "n d_head"]:
        """The values of inputs ``x``.

        Raises:
            GatedInterpError: without biases, of a layer that clips them with their values.
        """
        v = x @ wide(self.attn.W_V[head])
        clip = self.extras.get("clip_qkv")
        if biases:
            v = v + wide(self.attn.b_V[head])
        elif clip is not None:
            raise GatedInterpError("values-are-clipped", clip=clip)
        return v if clip is None else v.clamp(-clip, clip)

    def _projected(
        self,
        head: int,
        x: Float[Tensor, "n d_model"],
        position: int | None,
        biases: bool,
        which: str,
    ) -> Float[Tensor, "n d_head"]:
        attn, found = self.attn, self.extras
        weight, bias = getattr(attn, f"W_{which}"), getattr(attn, f"b_{which}") * int(biases)
        if not self.own:
            y = x @ wide(weight[head]) + wide(bias[head])
            scored = getattr(attn, "scored", None)
            if scored is None:
                return y
            placed: Tensor = scored.placed(y[:, None, None], which.lower(), position)[:, 0, 0]
            return placed
        norm: Any = getattr(attn, f"{which.lower()}_norm", None)
        if "original_architecture" in found:  # OLMo 2 norms all heads together
            group = 1 if which == "Q" else len(weight) // (self.kv_head(self.heads - 1) + 1)
            every = torch.einsum("nm,hmd->nhd", x, wide(weight[::group])) + wide(bias[::group])
            y = wide(norm(every.flatten(1))).view_as(every)[:, head // group]
        else:
            y = x @ wide(weight[head]) + wide(bias[head])
            y = y if norm is None else wide(norm(y))
        clip = found.get("clip_qkv")
        y = y if clip is None else y.clamp(-clip, clip)
        return y if position is None else self._turned(y, position, which)

    def _turned(
        self, y: Float[Tensor, "n d_head"], position: int, which: str
    ) -> Float[Tensor, "n d_head"]:
        """Queries or keys as their position makes them: rotated, and scaled by its logarithm."""
        attn = self.attn
        if not self.own:
            turned: Tensor = attn.scored.turned(y[:, None, None], which.lower(), position)
            return turned[:, 0, 0]
        if self.positions == "rotary":
            trained = attn.cfg.train_seq_length or attn.cfg.n_ctx
            if attn.cfg.use_dynamic_ntk_rope and trained < attn.cfg.n_ctx:
                raise GatedInterpError("rotation-depends-on-length")
            y = attn.apply_rotary(y[:, None, None], position)[:, 0, 0]
        if which == "Q" and "use_logn_attn" in self.extras and not attn.training:
            y = attn._apply_logn_scaling(y[:, None, None], position)[:, 0, 0]
        return y

    def split_queries(
        self, head: int, parts: Float[Tensor, "part d_model"], position: int
    ) -> Float[Tensor, "part_and_bias d_head"]:
        """The query of a sum of inputs as a sum: of what each adds, and last of the bias.

        A norm of queries stands at the scale that it has for the whole sum.

        Raises:
            GatedInterpError: a query that is clipped, which no sum passes.
        """
        return self._split(head, parts, position, "Q") / self.attn.attn_scale

    def split_keys(
        self, head: int, parts: Float[Tensor, "part d_model"], position: int
    ) -> Float[Tensor, "part_and_bias d_head"]:
        """The key of a sum of inputs as a sum; see :meth:`split_queries`."""
        return self._split(head, parts, position, "K")

    def split_values(
        self, head: int, parts: Float[Tensor, "part d_model"]
    ) -> Float[Tensor, "part_and_bias d_head"]:
        """The value of a sum of inputs as a sum; see :meth:`split_queries`."""
        v = torch.cat([parts @ wide(self.attn.W_V[head]), wide(self.attn.b_V[head])[None]])
        self._require_unclipped(v, "value")
        return v

    def _split(
        self, head: int, parts: Float[Tensor, "part d_model"], position: int, which: str
    ) -> Float[Tensor, "part_and_bias d_head"]:
        attn, low = self.attn, which.lower()
        weight, bias = wide(getattr(attn, f"W_{which}")), wide(getattr(attn, f"b_{which}"))
        y = torch.cat([parts @ weight[head], bias[head][None]])
        scored: Any = attn if self.own else getattr(attn, "scored", None)
        norm: Any = getattr(scored, f"{low}_norm", None)
        if norm is not None:
            d, whole = y.shape[1], y.sum(0)
            if "original_architecture" in self.extras:  # OLMo 2 norms all heads together
                group = 1 if which == "Q" else len(weight) // (self.kv_head(self.heads - 1) + 1)
                each = torch.einsum("m,hmd->hd", parts.sum(0), weight[::group]) + bias[::group]
                whole, at = each.flatten(), head // group * d
            width, eps = len(whole), norm.eps if self.own else scored.config.qk_norm
            width = width if self.own else scored.config.width
            gain = wide(norm.w if self.own else norm)
            gain = gain if len(gain) == d else gain[at : at + d]
            y = y / (whole.square().sum() / width + eps).sqrt() * gain
        self._require_unclipped(y, "query" if which == "Q" else "key")
        return y if scored is None else self._turned(y, position, which)

    def _require_unclipped(self, y: Float[Tensor, "part d_head"], what: str) -> None:
        clip = self.extras.get("clip_qkv")
        if clip is not None and float(y.sum(0).abs().max()) > clip:
            raise GatedInterpError("clipped-here", what=what, layer=self.layer, clip=clip)

    def qk(
        self, head: int
    ) -> tuple[Float[Tensor, "d_model d_head"], Float[Tensor, "d_model d_head"]]:
        """Query and key weights, with the weights of a QK norm where there is one.

        Biases, rotations, clipping and the QK norm's scale are left out.
        """
        found = []
        for which in ("q", "k"):
            weight = wide(getattr(self.attn, f"W_{which.upper()}")[head])
            norm = getattr(
                self.attn if self.own else getattr(self.attn, "scored", None), f"{which}_norm", None
            )
            if norm is not None:
                d, each = weight.shape[1], wide(norm.w if self.own else norm)
                at = (head if which == "q" else self.kv_head(head)) * d
                weight = weight * (each if len(each) == d else each[at : at + d])
            found.append(weight)
        return found[0], found[1]

    def distance_bias(self, head: int, query_position: int, key_position: int) -> float:
        """What is added to the score for the distance (alibi)."""
        if self.positions != "alibi":
            return 0.0
        slopes = AbstractAttention.create_alibi_multipliers(self.heads)
        if not self.own:
            slopes = self.attn.scored.slopes
        return float(slopes[head]) * min(key_position - query_position, 0)

    def require_visible(self, query_position: int, key_position: int) -> None:
        """Refuse a pair of positions at which the mask hides the key from the query.

        Raises:
            GatedInterpError: saying why.
        """
        found, ahead = self.extras, key_position > query_position
        window = found.get("window_size")
        far = window is not None and key_position <= query_position - window
        if (ahead and "attention_dir" not in found) or far:
            why = f"of the last {window} positions" if far else "at or before its own position"
            raise GatedInterpError(
                "key-not-visible",
                layer=self.layer,
                query_position=query_position,
                why=why,
                key_position=key_position,
            )
