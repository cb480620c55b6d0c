"""The gated attention block.

From the 2024 post *Gated Attention Blocks: Preliminary Progress toward Removing Attention Head
Superposition*: an attention block with more heads than the one it stands in for, each with a
sparse gate per (query, key) pair, trained to write what the original block wrote.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from transformer_lens.hook_points import HookPoint

from gated_interp.core.config import Shapes, positive
from gated_interp.core.errors import GatedInterpError
from gated_interp.core.seeds import generator
from gated_interp.metrics.reconstruction import causal_pairs, causal_sum, l0, open_pairs, pairs_of
from gated_interp.replacements.gates import (
    OPEN_SCORE,
    GateActivation,
    expected_open,
    gate_activation,
    head_norm,
    is_drawn,
    logistic_noise,
)
from gated_interp.replacements.heads import (
    HeadAttention,
    HeadsConfig,
    is_hooked,
    project,
    rows_at_once,
)
from gated_interp.replacements.replacement import Activations, Terms, register
from gated_interp.replacements.scoring import Scored, Scoring


@dataclasses.dataclass(frozen=True, kw_only=True)
class GatedConfig(HeadsConfig):
    """What a gated attention block is; see also :class:`HeadsConfig`.

    Attributes:
        d_gate: Give each gate's query and key this many dimensions. The post has 1.
        gate_rotary: Rotate this many dimensions of each gate's query and key by the position, as
            the layer rotates its own. Their frequencies are spread over those of the layer. At
            least one dimension stays as it is, so that a gate can be open at every distance.
        gate: Turn gate scores into gates by this function, see :func:`gate_activation`.
        gate_per: Give every (query, key) pair a gate, or each head one gate whatever the input.
        penalty: Penalise the p-norm of a pair's gates or how many are expected to be open, see
            :func:`expected_open`.
        penalty_p: Use this p in the penalty's (quasi)norm.
        penalty_pairs: Average the penalty over causal (query, key) pairs or over all. ``all``
            includes the pairs that causality forbids, as the post did; their gates never act.
        gate_bias_init: Start both gate biases at this value. With a gate per head, it is that
            gate's score. Copies of a layer's heads start open instead.

    Examples:
        >>> GatedConfig(d_model=8, n_heads=4, gate="tanh").replace(n_heads=6).n_heads
        6
    """

    d_gate: int = 1
    gate_rotary: int = 0
    gate: GateActivation = "clamp"
    gate_per: Literal["pair", "head"] = "pair"
    penalty: Literal["norm", "expected"] = "norm"
    penalty_p: float = 0.6
    penalty_pairs: Literal["causal", "all"] = "causal"
    gate_bias_init: float = 0.5

    def problems(self) -> list[GatedInterpError]:
        found = [*super().problems(), *positive(self, "d_gate", "penalty_p")]
        if self.penalty == "expected" and not is_drawn(self.gate):
            found.append(self.problem("config-penalty-needs-drawn-gates", gate=self.gate))
        turns = self.gate_rotary > 0 and not self.gate_rotary % 2 and self.gate_per == "pair"
        fits = self.gate_rotary < self.d_gate and self.scoring.get("rotary") is not None
        if self.gate_rotary and not (turns and fits):
            value, d_gate = self.gate_rotary, self.d_gate
            found.append(self.problem("config-gates-cannot-rotate", value=value, d_gate=d_gate))
        return found

    def to_dict(self) -> dict[str, Any]:
        # Left out where nothing is rotated, so that files are what they were.
        return {n: v for n, v in super().to_dict().items() if n != "gate_rotary" or v}

    @classmethod
    def reference(cls, d_model: int, n_heads: int, seed: int = 0) -> "GatedConfig":
        """The block exactly as the post and its code drop have it."""
        return cls(
            d_model=d_model, n_heads=n_heads, penalty_pairs="all", gate_bias_init=0.0, seed=seed
        )


@register
class GatedAttention(HeadAttention):
    """Attention with a gate per (head, query, key).

    For inputs ``r`` of shape ``[batch pos d_model]``::

        pattern[h,q,k] = softmax over k <= q of (r_q W_Q[h] + b_Q[h]) . (r_k W_K[h] + b_K[h]) / s
        gate[h,q,k]    = act((r_q W_gate_Q[h] + b_gate_Q[h]) . (r_k W_gate_K[h] + b_gate_K[h]))
        z[h,q]         = sum over k of gate[h,q,k] * pattern[h,q,k] * (r_k W_V[h] + b_V[h])
        output[q]      = sum over h of z[h,q] W_O[h]   (+ b_O)

    ``s`` is ``sqrt(d_head)``. ``W_V`` and ``W_O`` are the weights as they act: normalised where
    the config says so, ``W_O`` times ``output_scale``. What trains is ``raw_W_V`` and ``raw_W_O``.
    Anything that reads ``W_Q .. W_O``, ``b_Q .. b_O``, ``hook_z`` or ``hook_pattern`` of a
    TransformerLens attention layer reads the same of this one. With ``gate="open"`` every gate is 1
    and nothing of it trains; with ``gate_per="head"`` the score is ``b_gate_Q[h] . b_gate_K[h]``.
    With ``gate_rotary`` the first dimensions of both sides of the product are rotated by their
    positions, so that a gate sees the distance.

    Examples:
        >>> block = GatedAttention(GatedConfig(d_model=8, n_heads=4))
        >>> block
        GatedAttention(4 heads, gate=clamp)
        >>> block(torch.zeros(2, 5, 8)).shape
        torch.Size([2, 5, 8])
    """

    kind = "gated"
    config_type = GatedConfig
    watched = ("hook_gate_scores", "hook_gate")
    pair_hooks = (*HeadAttention.pair_hooks, *watched, "hook_gated_pattern")
    config: GatedConfig

    def __init__(self, config: GatedConfig, device: str | torch.device = "cpu"):
        super().__init__(config)
        self.hook_gate_scores = HookPoint()  # [batch head_index query_pos key_pos]
        self.hook_gate = HookPoint()  # [batch head_index query_pos key_pos]
        self.hook_gated_pattern = HookPoint()  # [batch head_index query_pos key_pos]
        # Set by a training: gates that are drawn draw from it while it is there.
        self.noise_generator: torch.Generator | None = None
        self.gate_turn: Scored | None = None
        if config.gate_rotary:
            rotation = Scoring.from_dict(config.scoring).rotation_of(config.gate_rotary)
            self.gate_turn = Scored(rotation, config.n_heads, config.d_gate)
        self.to(device)

    def _initialise(self, source: torch.Generator) -> None:
        """As other heads, with orthogonal gate weights."""
        super()._initialise(source)
        c = self.config
        h, m, g = c.n_heads, c.d_model, c.d_gate
        trains, by_pair = c.gate != "open", c.gate != "open" and c.gate_per == "pair"
        self.W_gate_Q = nn.Parameter(torch.zeros(h, m, g), requires_grad=by_pair)
        self.W_gate_K = nn.Parameter(torch.zeros(h, m, g), requires_grad=by_pair)
        self.b_gate_Q = nn.Parameter(torch.full((h, g), c.gate_bias_init), requires_grad=trains)
        self.b_gate_K = nn.Parameter(torch.full((h, g), c.gate_bias_init), requires_grad=by_pair)
        with torch.no_grad():
            if by_pair:
                for weight in (self.W_gate_Q, self.W_gate_K):
                    for head in weight:
                        nn.init.orthogonal_(head, generator=source)
            else:
                self.b_gate_K.fill_(1 / g)
            for bias in (self.b_gate_Q, self.b_gate_K):  # at first no gate sees the distance
                bias[:, : c.gate_rotary] = 0

    def copy_heads(self, attn: Any) -> None:
        """As other heads, their gates as open as they can be and still learn.

        That is 1, the same for every pair. A tanh gate starts at 0.76 and a hard-concrete one at
        0.96, and what their heads write is larger by as much.
        """
        super().copy_heads(attn)
        score = OPEN_SCORE[self.config.gate]
        with torch.no_grad():
            # In the first dimension that is not rotated, a query is the score and a key is 1. Their
            # others meet zeros: no sum is rounded, and from the first step gradients reach what
            # multiplies what is there.
            still = self.config.gate_rotary
            self.W_gate_Q[..., still] = 0
            self.W_gate_K.zero_()
            self.b_gate_Q.zero_()[:, still] = score
            self.b_gate_K.zero_()[:, still] = 1
            start = torch.tensor(score, dtype=torch.float64)
            self.raw_W_O.div_(gate_activation(start, self.config.gate).item())

    @classmethod
    def stored_shapes(cls, config: HeadsConfig) -> Shapes:
        assert isinstance(config, GatedConfig)
        h, m, g = config.n_heads, config.d_model, config.d_gate
        gates = {"W_gate_Q": (h, m, g), "W_gate_K": (h, m, g)}
        biases = {"b_gate_Q": (h, g), "b_gate_K": (h, g)}
        return super().stored_shapes(config) | gates | biases

    def in_one_piece(self) -> bool:
        # Drawn gates draw the same noise in every way of cutting.
        return self.noise_generator is not None or super().in_one_piece()

    def pair_inputs(
        self,
        query_input: Float[Tensor, "batch pos d_model"],
        key_input: Float[Tensor, "batch pos d_model"],
        real: Bool[Tensor, "batch pos"] | None = None,
    ) -> tuple[Tensor, ...]:
        pair = self.gate_projected(query_input, key_input)
        return tuple(self.gate_placed(x, 0, real) for x in pair)

    def gate_projected(
        self,
        query_input: Float[Tensor, "batch pos d_model"],
        key_input: Float[Tensor, "batch pos d_model"],
    ) -> tuple[Tensor, Tensor]:
        """Queries and keys of the gates before any rotation, ``[batch pos head_index d_gate]``."""
        gate_q = project(query_input, self.W_gate_Q) + self.b_gate_Q
        return gate_q, project(key_input, self.W_gate_K) + self.b_gate_K

    def gate_placed(
        self,
        x: Float[Tensor, "batch pos head_index d_gate"],
        first: int | None = 0,
        real: Bool[Tensor, "batch pos"] | None = None,
    ) -> Float[Tensor, "batch pos head_index d_gate"]:
        """Queries or keys of the gates as their positions make them.

        Args:
            first: where the first stands; ``None`` leaves positions out.
            real: where there is a token; positions are counted from a row's first.
        """
        if self.gate_turn is None or first is None:
            return x
        return self.gate_turn.turned(x, "k", first, real)

    def gate_scores(
        self,
        gate_q: Float[Tensor, "batch pos head_index d_gate"],
        gate_k: Float[Tensor, "batch pos head_index d_gate"],
        real: Bool[Tensor, "batch pos"] | None,
    ) -> Float[Tensor, "batch head_index query_pos key_pos"]:
        """Gate scores of queries and keys before any rotation, see :meth:`gate_projected`."""
        placed = (self.gate_placed(x, 0, real) for x in (gate_q, gate_k))
        return torch.einsum("bqhg,bkhg->bhqk", *placed)

    def edited(
        self,
        pattern: Float[Tensor, "batch head_index query_pos key_pos"],
        pair: tuple[Tensor, ...],
        total: Callable[[Tensor], Tensor] | None,
    ) -> tuple[Float[Tensor, "batch head_index query_pos key_pos"], Float[Tensor, ""]]:
        scores = self.hook_gate_scores(torch.einsum("bqhg,bkhg->bhqk", *pair))
        noise = None
        if self.noise_generator is not None:
            shape = (*scores.shape[:2], 1, 1) if self.config.gate_per == "head" else scores.shape
            noise = logistic_noise(shape, self.noise_generator, scores.device).expand_as(scores)
        gate = self.hook_gate(gate_activation(scores, self.config.gate, noise))
        edited: Tensor = self.hook_gated_pattern(gate * pattern)
        if total is None:
            return super().edited(edited, pair, total)
        wide = {"hook_gate_scores": scores.to(self.b_O), "hook_gate": gate.to(self.b_O)}
        return edited, total(self._cost(wide))

    def terms(
        self,
        *inputs: Float[Tensor, "batch pos d_model"],
        real: Bool[Tensor, "batch pos"] | None = None,
    ) -> Terms:
        if self.in_one_piece() or is_hooked(self) or self.config.penalty_pairs == "all":
            return super().terms(*inputs, real=real)
        q, k, v, pair = self._projected(real, *inputs)
        z, cost = self._by_rows(q, k, v, pair, real, costs=True)
        z, output = self.written(z)
        gates = [x.detach() for x in pair]  # counted where somebody asks
        n = len(z) * causal_pairs(z.shape[1]) if real is None else len(z)
        return Terms(output, z, cost / n, lambda: {"l0": self._l0(gates[0], gates[1], real).item()})

    @torch.no_grad()
    def _l0(
        self,
        gate_q: Float[Tensor, "batch pos head_index d_gate"],
        gate_k: Float[Tensor, "batch pos head_index d_gate"],
        real: Bool[Tensor, "batch pos"] | None,
    ) -> Float[Tensor, ""]:
        """See :func:`l0`; some query positions at a time, as they were in the forward pass."""
        batch, pos, heads, _ = gate_q.shape
        n_open, rows = gate_q.new_zeros(batch).long(), rows_at_once(batch * heads * pos)
        for first in range(0, pos, rows):
            pair = gate_q[:, first : first + rows], gate_k[:, : first + rows]
            scores = torch.einsum("bqhg,bkhg->bhqk", *pair)
            n_open += open_pairs(gate_activation(scores, self.config.gate), first=first, real=real)
        return (n_open.double() / causal_pairs(pos, real)).mean()

    def penalty(self, seen: Activations) -> Float[Tensor, ""]:
        """Mean over batch and (query, key) pairs of what is penalised of their gates.

        Of fixed open gates nothing.
        """
        cost, real = self._cost(seen), seen.get("attention_mask")
        if real is None:
            return self._mean(cost)
        if self.config.penalty_pairs == "all":
            return ((cost * pairs_of(real)).sum((1, 2)) / real.sum(1).square()).mean()
        return causal_sum(cost, real=real) / len(cost)

    def gate_penalty(
        self, gate: Float[Tensor, "batch head_index query_pos key_pos"]
    ) -> Float[Tensor, ""]:
        """Mean over batch and (query, key) pairs of the p-norm over heads of the gates."""
        return self._mean(head_norm(gate, self.config.penalty_p))

    def _mean(self, by_pair: Float[Tensor, "batch query_pos key_pos"]) -> Float[Tensor, ""]:
        if self.config.penalty_pairs == "all":
            return by_pair.mean()
        return causal_sum(by_pair) / (len(by_pair) * causal_pairs(by_pair.shape[1]))

    def _cost(self, seen: Activations) -> Float[Tensor, "batch query_pos key_pos"]:
        return gate_cost(seen["hook_gate_scores"], seen["hook_gate"], self.config)

    def measures(self, seen: Activations) -> dict[str, float]:
        """``l0``, open gates per causal (query, key) pair."""
        real = seen.get("attention_mask")
        return {"l0": l0(seen["hook_gate"], real=real).item()}

    def prepare(self, fraction: float, seed: int) -> None:
        if is_drawn(self.config.gate):
            self.noise_generator = generator(seed)

    def settle(self) -> None:
        self.noise_generator = None

    def force_gates(self, value: int | float) -> None:
        """Make every gate score ``value`` for every pair (1 opens clamp gates, 0 shuts them)."""
        still = self.config.gate_rotary  # dimensions from there on see no positions
        with torch.no_grad():
            for weight in (self.W_gate_Q, self.W_gate_K, self.b_gate_Q, self.b_gate_K):
                weight.zero_()
            self.b_gate_Q[:, still:] = value
            self.b_gate_K[:, still:] = 1 / (self.config.d_gate - still)
        self.l0 = None

    def __repr__(self) -> str:
        c = self.config
        known = [f"{c.n_heads} heads"]
        known += [] if self.n_trigrams is None else [f"{self.n_trigrams} trigrams"]
        known += [f"{n}={v}" for n, v in (("d_head", c.d_head), ("d_gate", c.d_gate)) if v != 1]
        known += [f"gate_rotary={c.gate_rotary}"] if c.gate_rotary else []
        known += [f"gate={c.gate}"]
        known += [] if self.l0 is None else [f"L0={self.l0:.2f}"]
        return f"GatedAttention({', '.join(known)})"


def gate_cost(
    scores: Float[Tensor, "*batch head_index query key"],
    gate: Float[Tensor, "*batch head_index query key"],
    config: GatedConfig,
) -> Float[Tensor, "*batch query key"]:
    """What ``config`` penalises of each (query, key) pair's gates; nothing where they are fixed."""
    if config.gate == "open":
        return torch.zeros_like(gate[..., 0, :, :])
    if config.penalty == "expected":
        return expected_open(scores, config.gate).sum(-3)
    return head_norm(gate, config.penalty_p)
