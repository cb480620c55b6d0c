"""The gated attention block.

From the 2024 post *Gated Attention Blocks: Preliminary Progress toward Removing Attention Head
Superposition*: an attention block with more heads than the one it stands in for, each with a
sparse gate per (query, key) pair, trained to write what the original block wrote.
"""

import dataclasses
import math
from typing import Any, Literal, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformer_lens import FactoredMatrix
from transformer_lens.hook_points import HookPoint

from gated_interp.core.config import Config, positive
from gated_interp.core.errors import GatedInterpError
from gated_interp.core.seeds import generator
from gated_interp.models.gates import (
    GateActivation,
    gate_activation,
    head_norm,
    logistic_noise,
    overlap,
    overlap_cost,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class GatedConfig(Config):
    """What a gated attention block is.

    Attributes:
        d_model: width of the residual stream.
        n_heads: gated heads.
        d_head, d_gate: dimensions of each head and of each gate (both 1 in the post).
        gate: activation from gate score to gate, see :func:`gate_activation`.
        normalize_weights: L2-normalise W_V along ``d_model`` and W_O along ``d_model`` in every
            forward pass, so that a small gate cannot hide behind large weights.
        value_bias: whether b_V exists. The post's block has it; it is not normalised, so it can
            grow while the gates shrink.
        output_scale: a constant that multiplies the output. Without a value bias, normalised
            weights cannot write more than this; set it to the size of the original's output.
        output_bias: whether b_O exists (never in the post).
        penalty_p: p of the gate penalty's (quasi)norm over heads.
        penalty_pairs: the (query, key) pairs the penalty averages over. ``all`` includes the pairs
            that causality forbids, as the post did; their gates never act.
        gate_bias_init: initial value of both gate biases.
        attn_scale: what scores are divided by; ``None`` means ``sqrt(d_head)``.
        seed: of the initial weights.

    Examples:
        >>> GatedConfig(d_model=8, n_heads=4, gate="tanh").replace(n_heads=6).n_heads
        6
    """

    d_model: int
    n_heads: int
    d_head: int = 1
    d_gate: int = 1
    gate: GateActivation = "clamp"
    normalize_weights: bool = True
    value_bias: bool = True
    output_scale: float = 1.0
    output_bias: bool = False
    penalty_p: float = 0.6
    penalty_pairs: Literal["causal", "all"] = "causal"
    gate_bias_init: float = 0.5
    attn_scale: float | None = None
    seed: int = 0

    def problems(self) -> list[str]:
        found = positive(
            self, "d_model", "n_heads", "d_head", "d_gate", "penalty_p", "output_scale"
        )
        if self.attn_scale is not None:
            found += positive(self, "attn_scale")
        return found

    @classmethod
    def reference(cls, d_model: int, n_heads: int, seed: int = 0) -> "GatedConfig":
        """The block exactly as the post and its code drop have it."""
        return cls(
            d_model=d_model, n_heads=n_heads, penalty_pairs="all", gate_bias_init=0.0, seed=seed
        )


def unit(x: Float[Tensor, "*shape"], dim: int) -> Float[Tensor, "*shape"]:
    """``x`` with length one along ``dim``; a zero vector stays zero."""
    return nn.functional.normalize(x, dim=dim, eps=1e-12)


class GatedAttention(nn.Module):
    """Attention with a gate per (head, query, key).

    For inputs ``r`` of shape ``[batch pos d_model]``::

        pattern[h,q,k] = softmax over k <= q of (r_q W_Q[h] + b_Q[h]) . (r_k W_K[h] + b_K[h]) / s
        gate[h,q,k]    = act((r_q W_gate_Q[h] + b_gate_Q[h]) . (r_k W_gate_K[h] + b_gate_K[h]))
        z[h,q]         = sum over k of gate[h,q,k] * pattern[h,q,k] * (r_k W_V[h] + b_V[h])
        output[q]      = sum over h of z[h,q] W_O[h]   (+ b_O)

    ``s`` is ``sqrt(d_head)``. ``W_V`` and ``W_O`` are the weights as they act: normalised where
    the config says so, ``W_O`` times ``output_scale``. What trains is ``raw_W_V`` and ``raw_W_O``.
    Anything that reads ``W_Q .. W_O``, ``b_Q .. b_O``, ``hook_z`` or ``hook_pattern`` of a
    TransformerLens attention
    layer reads the same of this one.

    Examples:
        >>> block = GatedAttention(GatedConfig(d_model=8, n_heads=4))
        >>> block
        GatedAttention(4 heads, gate=clamp)
        >>> block(torch.zeros(2, 5, 8)).shape
        torch.Size([2, 5, 8])
    """

    def __init__(self, config: GatedConfig, device: str | torch.device = "cpu"):
        super().__init__()
        self.config = config
        h, m, d, g = config.n_heads, config.d_model, config.d_head, config.d_gate
        self.attn_scale = math.sqrt(d) if config.attn_scale is None else config.attn_scale

        self.W_Q = nn.Parameter(torch.empty(h, m, d))
        self.W_K = nn.Parameter(torch.empty(h, m, d))
        self.raw_W_V = nn.Parameter(torch.empty(h, m, d))
        self.raw_W_O = nn.Parameter(torch.empty(h, d, m))
        self.W_gate_Q = nn.Parameter(torch.empty(h, m, g))
        self.W_gate_K = nn.Parameter(torch.empty(h, m, g))
        self.b_Q = nn.Parameter(torch.zeros(h, d))
        self.b_K = nn.Parameter(torch.zeros(h, d))
        self.b_V = nn.Parameter(torch.zeros(h, d), requires_grad=config.value_bias)
        self.b_O = nn.Parameter(torch.zeros(m), requires_grad=config.output_bias)
        self.b_gate_Q = nn.Parameter(torch.full((h, g), config.gate_bias_init))
        self.b_gate_K = nn.Parameter(torch.full((h, g), config.gate_bias_init))
        self._initialise()

        self.hook_q = HookPoint()  # [batch pos head_index d_head]
        self.hook_k = HookPoint()  # [batch pos head_index d_head]
        self.hook_v = HookPoint()  # [batch pos head_index d_head]
        self.hook_attn_scores = HookPoint()  # [batch head_index query_pos key_pos]
        self.hook_pattern = HookPoint()  # [batch head_index query_pos key_pos], softmax
        self.hook_gate_scores = HookPoint()  # [batch head_index query_pos key_pos]
        self.hook_gate = HookPoint()  # [batch head_index query_pos key_pos]
        self.hook_gated_pattern = HookPoint()  # [batch head_index query_pos key_pos]
        self.hook_z = HookPoint()  # [batch pos head_index d_head]
        self.hook_result = HookPoint()  # [batch pos head_index d_model]

        # What is known of it, for its repr: splicing it into a toy tells the trigrams, training
        # and loading the open gates per causal pair, as last measured.
        self.n_trigrams: int | None = None
        self.l0: float | None = None
        # Set by the training loop: hard_concrete gates draw noise while it is there.
        self.noise_generator: torch.Generator | None = None
        self.to(device)

    def _initialise(self) -> None:
        """Xavier-normal Q, K, V, O; orthogonal gate weights; from the config's own seed."""
        source = generator(self.config.seed)
        with torch.no_grad():
            for weight in (self.W_Q, self.W_K, self.raw_W_V, self.raw_W_O):
                for head in weight:
                    nn.init.xavier_normal_(head, generator=source)
            for weight in (self.W_gate_Q, self.W_gate_K):
                for head in weight:
                    nn.init.orthogonal_(head, generator=source)

    @property
    def W_V(self) -> Float[Tensor, "head_index d_model d_head"]:
        """The value weights as they act."""
        return unit(self.raw_W_V, 1) if self.config.normalize_weights else self.raw_W_V

    @property
    def W_O(self) -> Float[Tensor, "head_index d_head d_model"]:
        """The output weights as they act."""
        W_O = unit(self.raw_W_O, 2) if self.config.normalize_weights else self.raw_W_O
        return W_O * self.config.output_scale

    @property
    def OV(self) -> FactoredMatrix:
        """``W_V W_O`` per head, ``[head_index d_model d_model]``."""
        return FactoredMatrix(self.W_V, self.W_O)

    @property
    def QK(self) -> FactoredMatrix:
        """``W_Q W_K^T`` per head, ``[head_index d_model d_model]``."""
        return FactoredMatrix(self.W_Q, self.W_K.transpose(-1, -2))

    def forward(
        self,
        query_input: Float[Tensor, "batch pos d_model"],
        key_input: Float[Tensor, "batch pos d_model"] | None = None,
        value_input: Float[Tensor, "batch pos d_model"] | None = None,
        **unsupported: Any,
    ) -> Float[Tensor, "batch pos d_model"]:
        """The block's output; called with one input, or as TransformerLens calls attention.

        Raises:
            GatedInterpError: a key-value cache or an attention mask, which the block has not.
        """
        for name, value in unsupported.items():
            if value is not None:
                raise GatedInterpError(f"a gated attention block takes no {name}; leave it out.")
        key_input = query_input if key_input is None else key_input
        value_input = query_input if value_input is None else value_input
        hidden = torch.ones(query_input.shape[1], key_input.shape[1], dtype=torch.bool)
        hidden = hidden.triu(1).to(query_input.device)

        q = self.hook_q(project(query_input, self.W_Q) + self.b_Q)
        k = self.hook_k(project(key_input, self.W_K) + self.b_K)
        v = self.hook_v(project(value_input, self.W_V) + self.b_V)
        scores = torch.einsum("bqhd,bkhd->bhqk", q, k) / self.attn_scale
        scores = self.hook_attn_scores(scores.masked_fill(hidden, -torch.inf))
        pattern = self.hook_pattern(scores.softmax(-1))

        gate_q = project(query_input, self.W_gate_Q) + self.b_gate_Q
        gate_k = project(key_input, self.W_gate_K) + self.b_gate_K
        gate_scores = self.hook_gate_scores(torch.einsum("bqhg,bkhg->bhqk", gate_q, gate_k))
        noise = None
        if self.config.gate == "hard_concrete" and self.noise_generator is not None:
            noise = logistic_noise(gate_scores.shape, self.noise_generator, gate_scores.device)
        gate = self.hook_gate(gate_activation(gate_scores, self.config.gate, noise))

        gated_pattern = self.hook_gated_pattern(gate * pattern)
        z = self.hook_z(torch.einsum("bhqk,bkhd->bqhd", gated_pattern, v))
        if _is_hooked(self.hook_result):
            # [batch pos head_index d_model] is large; it is made only when somebody looks.
            result = self.hook_result(torch.einsum("bqhd,hdm->bqhm", z, self.W_O))
            return cast(Tensor, result.sum(2) + self.b_O)
        return torch.einsum("bqhd,hdm->bqm", z, self.W_O) + self.b_O

    def gate_penalty(
        self, gate: Float[Tensor, "batch head_index query_pos key_pos"]
    ) -> Float[Tensor, ""]:
        """Mean over batch and (query, key) pairs of the p-norm over heads of the gates."""
        norms = head_norm(gate, self.config.penalty_p)
        if self.config.penalty_pairs == "all":
            return norms.mean()
        return norms.tril().sum() / causal_pairs(norms)

    def overlap_penalty(
        self,
        z: Float[Tensor, "batch pos head_index d_head"],
        variance: float | Float[Tensor, ""] = 1.0,
        power: float = 1.0,
    ) -> Float[Tensor, ""]:
        """How much heads write at the same position, whether they add or cancel.

        Mean over batch and pos of ``v * (o / (v * d_model))^power``, where ``v`` is ``variance``,
        ``o = (sum_h n_h)^2 - sum_h n_h^2`` and ``n_h`` is the length of what head ``h`` writes.
        Zero where each position is written by one head, however much it writes: unlike the gate
        penalty it shrinks no head that is alone. (The cross terms of the exclusive lasso, Zhou,
        Jin & Hoi, 2010; not in the post.)
        """
        gram = torch.einsum("hdm,hem->hde", self.W_O, self.W_O)
        squared = torch.einsum("bphd,hde,bphe->bph", z, gram, z)
        unit = torch.as_tensor(variance * self.config.d_model)
        return overlap_cost(overlap(squared), unit, power).mean() / self.config.d_model

    @classmethod
    def from_attention(
        cls,
        attn: Any,
        expansion: int | float = 2,
        *,
        init: Literal["random", "duplicate"] = "random",
        noise: int | float = 0.01,
        seed: int = 0,
        **config: Any,
    ) -> "GatedAttention":
        """A block with ``expansion`` times the heads of a TransformerLens attention layer.

        Args:
            attn: the layer; causal, without rotary embeddings or other extras.
            expansion: how many gated heads per original head.
            init: ``random``, or ``duplicate``: gated head ``i`` starts as original head
                ``i mod n_heads`` plus Gaussian noise of standard deviation ``noise``, its output
                divided by the number of its duplicates; gates as in a random block.
            seed: of the initial weights and the noise.
            **config: further fields of :class:`GatedConfig`; ``d_head``, ``attn_scale`` and
                ``output_bias`` are taken from the layer unless given.

        Raises:
            GatedInterpError: a layer the block cannot stand in for, or a bad expansion.
        """
        require_plain(attn)
        n, m, d = attn.W_Q.shape
        heads = round(n * expansion) if math.isfinite(expansion) else 0
        if heads < 1 or not math.isclose(heads, n * expansion):
            raise GatedInterpError(
                f"expansion is {expansion}, which makes {n * expansion} heads of {n}; "
                "it must make a whole number of at least 1."
            )
        fields: dict[str, Any] = {
            "d_head": d,
            "attn_scale": None if attn.attn_scale == math.sqrt(d) else float(attn.attn_scale),
            "output_bias": bool(attn.b_O.abs().max() > 0),
            **config,
        }
        block = cls(GatedConfig(d_model=m, n_heads=heads, seed=seed, **fields))
        if init == "random":
            return block.to(attn.W_Q.device)
        if init != "duplicate":
            raise GatedInterpError(f"init is {init!r}; it must be 'random' or 'duplicate'.")
        if block.config.d_head != d:
            raise GatedInterpError(
                f"d_head is {block.config.d_head}; duplicated heads need the original's {d}."
            )
        block.copy_heads(attn)
        source = generator(seed)
        with torch.no_grad():
            for weight in (block.W_Q, block.W_K, block.raw_W_V, block.raw_W_O):
                weight.add_(noise * torch.randn(weight.shape, generator=source))
        return block.to(attn.W_Q.device)

    def copy_heads(self, attn: Any) -> None:
        """Copy the weights of ``attn``: head ``i mod n`` into head ``i``, output shared out."""
        n, heads = attn.W_Q.shape[0], self.config.n_heads
        origin = torch.arange(heads) % n
        copies = torch.bincount(origin, minlength=n)[origin].to(attn.W_O)
        with torch.no_grad():
            for name in ("W_Q", "W_K", "b_Q", "b_K"):
                getattr(self, name).copy_(getattr(attn, name)[origin])
            self.raw_W_V.copy_(attn.W_V[origin])
            self.raw_W_O.copy_(attn.W_O[origin] / copies[:, None, None])
            if self.config.value_bias:
                self.b_V.copy_(attn.b_V[origin])
            if self.config.output_bias:
                self.b_O.copy_(attn.b_O)

    def force_gates(self, value: int | float) -> None:
        """Make every gate score ``value`` for every pair (1 opens clamp gates, 0 shuts them)."""
        with torch.no_grad():
            for weight in (self.W_gate_Q, self.W_gate_K):
                weight.zero_()
            self.b_gate_Q.fill_(value)
            self.b_gate_K.fill_(1 / self.config.d_gate)
        self.l0 = None

    def __repr__(self) -> str:
        c = self.config
        known = [f"{c.n_heads} heads"]
        known += [] if self.n_trigrams is None else [f"{self.n_trigrams} trigrams"]
        known += [f"{n}={v}" for n, v in (("d_head", c.d_head), ("d_gate", c.d_gate)) if v != 1]
        known += [f"gate={c.gate}"]
        known += [] if self.l0 is None else [f"L0={self.l0:.2f}"]
        return f"GatedAttention({', '.join(known)})"


def _is_hooked(point: nn.Module) -> bool:
    """Whether anybody looks: TransformerLens' hooks are torch's, and torch's own count too."""
    return any(
        getattr(point, f"_{kind}_hooks")
        for kind in ("forward", "forward_pre", "backward", "backward_pre")
    )


def project(
    x: Float[Tensor, "batch pos d_model"], weight: Float[Tensor, "head_index d_model d"]
) -> Float[Tensor, "batch pos head_index d"]:
    """``x`` through each head's ``weight``."""
    return torch.einsum("bpm,hmd->bphd", x, weight)


def causal_pairs(norms: Float[Tensor, "batch query_pos key_pos"]) -> int:
    """How many (sequence, query, key) triples are causal."""
    batch, query, key = norms.shape
    return batch * int(torch.ones(query, key).tril().sum())


def require_plain(attn: Any) -> None:
    """Refuse an attention layer whose function a gated block cannot express.

    Raises:
        GatedInterpError: not a TransformerLens attention layer, or one with extras.
    """
    cfg = getattr(attn, "cfg", None)
    if cfg is None or not hasattr(attn, "W_O"):
        raise GatedInterpError(
            f"{type(attn).__name__} is not a TransformerLens attention layer; "
            "pass model.blocks[layer].attn of a HookedTransformer."
        )
    extras = {
        "positional_embedding_type": cfg.positional_embedding_type not in ("standard",),
        "attention_dir": cfg.attention_dir != "causal",
        "n_key_value_heads": cfg.n_key_value_heads not in (None, cfg.n_heads),
        "use_qk_norm": cfg.use_qk_norm,
        "use_local_attn": bool(cfg.use_local_attn) and getattr(attn, "attn_type", "") == "local",
        "attn_scores_soft_cap": cfg.attn_scores_soft_cap > 0,
        "clip_qkv": cfg.clip_qkv is not None,
        "use_attention_sinks": bool(cfg.use_attention_sinks),
    }
    for name, there in extras.items():
        if there:
            raise GatedInterpError(
                f"the layer has {name}={getattr(cfg, name)!r}; a gated block stands in only for "
                "plain causal attention."
            )
