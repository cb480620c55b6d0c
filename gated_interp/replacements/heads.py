"""Attention heads that stand in for other heads: what every kind made of heads has in common."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar, cast

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformer_lens import FactoredMatrix
from transformer_lens.hook_points import HookPoint

from gated_interp.core.config import Config, Shapes, positive
from gated_interp.core.errors import GatedInterpError
from gated_interp.core.seeds import generator
from gated_interp.core.shapes import attention_shapes
from gated_interp.metrics.reconstruction import causal_sum
from gated_interp.replacements.layer_sketch import layer_sketch
from gated_interp.replacements.plain import expanded
from gated_interp.replacements.replacement import Activations, Replacement
from gated_interp.replacements.scoring import Scored, Scoring, scoring_of

# Numbers of every (head, query, key) that are made at once: some 1 MB of each, which stays in the
# cache; at least so many query positions; and how many are kept for the gradients.
AT_ONCE, ROWS, WHOLE, KEPT = 2**18, 16, 2**19, 2**23
QUERIES_AND_KEYS = ("W_Q", "W_K", "b_Q", "b_K")
# Numbers in the longest vector of a processor: it works off shorter rows one by one.
VECTOR = 16


@dataclasses.dataclass(frozen=True, kw_only=True)
class HeadsConfig(Config):
    """What a layer of heads is, whatever makes it sparse.

    Attributes:
        d_model: Match this width of the residual stream.
        n_heads: Give the block this many heads, whatever the original has.
        d_head: Give each head this many dimensions. The post has 1.
        normalize_weights: Normalise W_V and W_O (L2, along ``d_model``) in every forward pass, so
            that a small gate cannot hide behind large weights.
        value_bias: Train b_V. The post's block has it; it is not normalised, so it can grow while
            the gates shrink.
        output_scale: Multiply the output by this constant. Without a value bias, normalised
            weights cannot write more than this; set it to the size of the original's output.
        output_bias: Train b_O. The post never does.
        attn_scale: what scores are divided by; ``None`` means ``sqrt(d_head)``.
        scoring: fields of :class:`~gated_interp.replacements.scoring.Scoring`: rotary embeddings
            and whatever else the layer does to queries, keys and scores; empty where nothing.
        seed: of the initial weights.
    """

    d_model: int
    n_heads: int
    d_head: int = 1
    normalize_weights: bool = True
    value_bias: bool = True
    output_scale: float = 1.0
    output_bias: bool = False
    attn_scale: float | None = None
    scoring: dict[str, Any] = dataclasses.field(default_factory=dict, hash=False)
    seed: int = 0

    def to_dict(self) -> dict[str, Any]:
        # Left out where there is none, so that files are what they were.
        found = super().to_dict()
        return {n: v for n, v in found.items() if n != "scoring" or v}

    def scored_shapes(self) -> Shapes:
        """The shapes of the numbers of :attr:`scoring`, as a file holds them."""
        if not self.scoring:
            return {}
        shapes = Scoring.from_dict(self.scoring).shapes(self.n_heads, self.qk_width)
        return {f"scored.{name}": shape for name, shape in shapes.items()}

    @property
    def qk_width(self) -> int:
        """Dimensions of a head's queries and keys."""
        return self.d_head

    def problems(self) -> list[GatedInterpError]:
        found = positive(self, "d_model", "n_heads", "d_head", "output_scale")
        if self.attn_scale is not None:
            found += positive(self, "attn_scale")
        if self.scoring:
            scoring = Scoring.from_dict(self.scoring)
            if self.qk_width < scoring.narrowest:
                found.append(
                    self.problem(
                        "config-heads-too-narrow", value=self.qk_width, needed=scoring.narrowest
                    )
                )
        return found


def unit(x: Float[Tensor, "*shape"], dim: int) -> Float[Tensor, "*shape"]:
    """``x`` with length one along ``dim``; a zero vector stays zero."""
    return nn.functional.normalize(x, dim=dim, eps=1e-12)


# Not Self: the shape checker decorates methods one by one, where Self means nothing.
Heads = TypeVar("Heads", bound="HeadAttention")


class HeadAttention(Replacement):
    """Causal attention whose heads are made sparse by a kind's own means.

    For inputs ``r`` of shape ``[batch pos d_model]``::

        pattern[h,q,k] = softmax over k <= q of (r_q W_Q[h] + b_Q[h]) . (r_k W_K[h] + b_K[h]) / s
        z[h,q]         = sum over k of edited(pattern)[h,q,k] * (r_k W_V[h] + b_V[h])
        output[q]      = sum over h of kept(z)[h,q] W_O[h]   (+ b_O)

    ``s`` is ``sqrt(d_head)``; a kind says what ``edited`` and ``kept`` are (nothing, here). ``W_V``
    and ``W_O`` are the weights as they act: normalised where the config says so, ``W_O`` times
    ``output_scale``. What trains is ``raw_W_V`` and ``raw_W_O``. Anything that reads
    ``W_Q .. W_O``, ``b_Q .. b_O``, ``hook_z`` or ``hook_pattern`` of a TransformerLens attention
    layer reads the same of this one.
    """

    config: HeadsConfig
    config_type = HeadsConfig
    opened_from = ("hook_pattern", "hook_v")
    pair_hooks: ClassVar[tuple[str, ...]] = ("hook_attn_scores", "hook_pattern")
    raw_qk: ClassVar[str] = ""
    """What stands before the names of the parameters that queries and keys are made with."""

    if TYPE_CHECKING:  # parameters here; a kind may make them of others

        @property
        def W_Q(self) -> Tensor: ...
        @property
        def W_K(self) -> Tensor: ...
        @property
        def b_Q(self) -> Tensor: ...
        @property
        def b_K(self) -> Tensor: ...

    def __init__(self, config: HeadsConfig, device: str | torch.device = "cpu"):
        super().__init__()
        self.config = config
        h, m, d = config.n_heads, config.d_model, config.d_head
        self._make_queries_and_keys()
        own = math.sqrt(config.qk_width)
        self.attn_scale = own if config.attn_scale is None else config.attn_scale
        self.raw_W_V = nn.Parameter(torch.empty(h, m, d))
        self.raw_W_O = nn.Parameter(torch.empty(h, d, m))
        self.b_V = nn.Parameter(torch.zeros(h, d), requires_grad=config.value_bias)
        self.b_O = nn.Parameter(torch.zeros(m), requires_grad=config.output_bias)

        self.scored: Scored | None = None
        if config.scoring:
            self.scored = Scored(Scoring.from_dict(config.scoring), h, config.qk_width)

        self.hook_q = HookPoint()  # [batch pos head_index d_head]
        self.hook_k = HookPoint()  # [batch pos head_index d_head]
        self.hook_v = HookPoint()  # [batch pos head_index d_head]
        self.hook_attn_scores = HookPoint()  # [batch head_index query_pos key_pos]
        self.hook_pattern = HookPoint()  # [batch head_index query_pos key_pos], softmax
        self.hook_z = HookPoint()  # [batch pos head_index d_head]
        self.hook_result = HookPoint()  # [batch pos head_index d_model]
        self._initialise(generator(config.seed))
        self.to(device)

    @classmethod
    def stored_shapes(cls, config: HeadsConfig) -> Shapes:
        m, h, d = config.d_model, config.n_heads, config.d_head
        shapes = attention_shapes(
            m, h, d, b_V=config.value_bias, b_O=config.output_bias, raw="raw_"
        )
        return shapes | config.scored_shapes()

    def _make_queries_and_keys(self) -> None:
        h, m, d = self.config.n_heads, self.config.d_model, self.config.d_head
        self.register_parameter("W_Q", nn.Parameter(torch.empty(h, m, d)))
        self.register_parameter("W_K", nn.Parameter(torch.empty(h, m, d)))
        self.register_parameter("b_Q", nn.Parameter(torch.zeros(h, d)))
        self.register_parameter("b_K", nn.Parameter(torch.zeros(h, d)))

    @torch.no_grad()
    def _initialise(self, source: torch.Generator) -> None:
        """Xavier-normal weights, head by head, from the config's own seed."""
        for weight in (p for p in self.parameters() if p.ndim == 3):
            for head in weight:
                nn.init.xavier_normal_(head, generator=source)

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
    def extras(self) -> dict[str, Any]:
        """What it does beside plain causal attention, by TransformerLens' names."""
        return {} if self.scored is None else self.scored.extras()

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
        query_input: Float[Tensor, "batch pos *head d_model"],
        key_input: Float[Tensor, "batch pos *kv d_model"] | None = None,
        value_input: Float[Tensor, "batch pos *kv d_model"] | None = None,
        attention_mask: Shaped[Tensor, "batch pos"] | None = None,
        **unsupported: Any,
    ) -> Float[Tensor, "batch pos d_model"]:
        """The layer's output; called with one input, or as TransformerLens calls attention.

        Args:
            attention_mask: 0 at padding, to which nobody attends; a query that has nothing else to
                attend to writes nothing but biases.
        """
        self.require_inputs(query_input, unsupported)
        key_input = query_input if key_input is None else key_input
        value_input = query_input if value_input is None else value_input
        real = None if attention_mask is None else attention_mask.bool()
        projected = self._projected(real, query_input, key_input, value_input)
        z, _ = self._by_rows(*projected, real, costs=False)
        return self.written(z)[1]

    def _projected(
        self, real: Tensor | None, query_input: Tensor, key_input: Tensor, value_input: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, tuple[Tensor, ...]]:
        q = self.hook_q(project(query_input, self.W_Q) + self.b_Q)
        k = self.hook_k(project(key_input, self.W_K) + self.b_K)
        v = project(value_input, self.W_V) + self.b_V
        if self.scored is not None:
            q, k = self.scored.placed(q, "q", 0, real), self.scored.placed(k, "k", 0, real)
            v = self.scored.clipped(v)
        return q, k, self.hook_v(v), self.pair_inputs(query_input, key_input, real)

    def _by_rows(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        pair: tuple[Tensor, ...],
        real: Tensor | None,
        *,
        costs: bool,
    ) -> tuple[Float[Tensor, "batch pos head_index d_head"], Float[Tensor, ""]]:
        """``z``, and the sum of :meth:`edited`, some query positions at a time.

        What is made of every (head, query, key) is large. Where nobody looks at it, it is made for
        as many query positions as fit into :data:`AT_ONCE` numbers, with the keys before them
        only; and where much of it would have to be kept for the gradients, it is made again then.
        """
        batch, n, heads = q.shape[0], q.shape[1], v.shape[2]
        in_a_row = batch * heads * n
        if self.in_one_piece() or n <= ROWS:
            return self._rows(0, costs, real, q, k, v, *pair)
        of_one = heads * n * n
        if of_one <= WHOLE and batch * of_one <= KEPT:
            size = max(1, AT_ONCE // of_one)
            parts = zip(*(torch.split(x, size) for x in (q, k, v, *pair)), strict=True)
            reals: Any = [None] * -(-batch // size) if real is None else torch.split(real, size)
            found = [
                self._rows(0, costs, mine, *part) for mine, part in zip(reals, parts, strict=True)
            ]
            return torch.cat([z for z, _ in found]), torch.stack([c for _, c in found]).sum()
        rows = rows_at_once(in_a_row)
        again = torch.is_grad_enabled() and rows < n and in_a_row * n > KEPT
        z, cost = [], q.new_zeros(())
        for first in range(0, n, rows):
            here, before = slice(first, first + rows), slice(0, first + rows)
            of_pair = [x[:, here if i == 0 else before] for i, x in enumerate(pair)]
            args = (q[:, here], k[:, before], v[:, before], *of_pair)
            if again:
                part, of_rows = checkpoint(
                    self._rows,
                    first,
                    costs,
                    real,
                    *args,
                    use_reentrant=False,
                    preserve_rng_state=False,
                )
            else:
                part, of_rows = self._rows(first, costs, real, *args)
            z.append(part)
            cost = cost + of_rows
        return (torch.cat(z, 1) if len(z) > 1 else z[0]), cost

    def _rows(
        self,
        first: int,
        costs: bool,
        real: Tensor | None,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *pair: Tensor,
    ) -> tuple[Tensor, Tensor]:
        hidden = torch.ones(q.shape[1], k.shape[1], dtype=torch.bool, device=q.device)
        hidden, blind = hidden.triu(first + 1), None
        scores = torch.einsum("bqhd,bkhd->bhqk", q, k) / self.attn_scale
        if self.scored is not None:
            far, scores = self.scored.out_of_sight(scores, first), self.scored.scores(scores, first)
            hidden = hidden if far is None else hidden | far
        if real is not None:
            hidden = hidden | ~real[:, None, None, : k.shape[1]]
            blind = hidden.all(-1, keepdim=True)
        # `where` gives the numbers of masked_fill in less time.
        scores = self.hook_attn_scores(torch.where(hidden, -torch.inf, scores))
        keys = scores.shape[-1]
        if self.scored is not None:
            scores = self.scored.with_sinks(scores)
        if blind is None:
            pattern = softmax(scores)
        else:  # a softmax over nothing is NaN, and so is its gradient
            pattern = softmax(scores.masked_fill(blind, 0)).masked_fill(blind, 0)
        pattern = self.hook_pattern(pattern[..., :keys])
        total = functools.partial(causal_sum, first=first, real=real) if costs else None
        pattern, cost = self.edited(pattern, pair, total)
        return torch.einsum("bhqk,bkhd->bqhd", pattern, v), cost

    def written(
        self, z: Float[Tensor, "batch pos head_index d_head"]
    ) -> tuple[Float[Tensor, "batch pos head_index d_head"], Float[Tensor, "batch pos d_model"]]:
        """What stands at ``hook_z``, and the output."""
        z = self.hook_z(self.kept(z))
        if is_hooked(self.hook_result):
            # [batch pos head_index d_model] is large; it is made only when somebody looks.
            result = self.hook_result(torch.einsum("bqhd,hdm->bqhm", z, self.W_O))
            return z, cast(Tensor, result.sum(2) + self.b_O)
        # One matrix product: an einsum would copy z first.
        return z, z.flatten(2) @ self.W_O.flatten(0, 1) + self.b_O

    def in_one_piece(self) -> bool:
        """Whether all query positions must be seen at once: somebody looks at pairs."""
        return any(is_hooked(getattr(self, name)) for name in self.pair_hooks)

    def pair_inputs(
        self,
        query_input: Float[Tensor, "batch pos d_model"],
        key_input: Float[Tensor, "batch pos d_model"],
        real: Bool[Tensor, "batch pos"] | None = None,
    ) -> tuple[Tensor, ...]:
        """What :meth:`edited` needs of each query and of each key position; nothing, here."""
        return ()

    def edited(
        self,
        pattern: Float[Tensor, "batch head_index query_pos key_pos"],
        pair: tuple[Tensor, ...],
        total: Callable[[Tensor], Tensor] | None,
    ) -> tuple[Float[Tensor, "batch head_index query_pos key_pos"], Float[Tensor, ""]]:
        """The pattern that values are weighted with (a gated kind's is gated), and a sum.

        Args:
            pair: of these query positions and of all key positions up to the last of them.
            total: sums what is penalised of each pair, ``[batch query_pos key_pos]``, over those
                that count; ``None`` where nobody asks.
        """
        return pattern, pattern.new_zeros(())

    def kept(
        self, z: Float[Tensor, "batch pos head_index d_head"]
    ) -> Float[Tensor, "batch pos head_index d_head"]:
        """What of each head's ``z`` is written; a kind that picks heads drops the others."""
        return z

    def opened(self, seen: Activations) -> Float[Tensor, "batch pos head_index d_head"]:
        """What each head reads with its attention alone, no gate shut and no head left out."""
        return torch.einsum("bhqk,bkhd->bqhd", seen["hook_pattern"], seen["hook_v"])

    @classmethod
    def from_attention(
        cls: type[Heads],
        attn: Any,
        expansion: int | float = 2,
        *,
        init: Literal["random", "duplicate"] = "random",
        noise: int | float = 0.01,
        seed: int = 0,
        **config: Any,
    ) -> Heads:
        """A layer with ``expansion`` times the heads of a TransformerLens attention layer.

        It has the layer's dtype and device.

        Args:
            attn: the layer; causal. Rotary embeddings, QK norm, caps, windows, sinks and the like
                are the block's too; heads that shared keys and values get each their own.
            expansion: how many heads per original head.
            init: ``random``, or ``duplicate``: head ``i`` starts as original head
                ``i mod n_heads``, see :meth:`copy_heads`, plus Gaussian noise of standard deviation
                ``noise``. Without noise the block writes what the layer writes, gates included.
            seed: of the initial weights and the noise.
            **config: further fields of the kind's config; ``d_head``, ``attn_scale`` and
                ``output_bias`` are taken from the layer unless given, and duplicates do without
                ``normalize_weights``.
        """
        scoring = scoring_of(attn)
        n, m, d = attn.W_Q.shape
        copied = init == "duplicate"
        if not copied and init != "random":
            raise GatedInterpError(
                "not-one-of", name="init", value=init, choices=["random", "duplicate"]
            )
        value_bias = config.get("value_bias", True) or not copied
        fields: dict[str, Any] = {
            "d_head": d,
            "output_bias": bool(constant_of(attn, value_bias).any()),
            **({"normalize_weights": False} if copied else {}),
            **({} if scoring is None else {"scoring": scoring.to_dict()}),
            **config,
        }
        chosen = cls.config_type(d_model=m, n_heads=expanded(n, expansion), seed=seed, **fields)
        # Wider copies score as the original does; random heads by their own width.
        width = chosen.qk_width if copied else d
        if "attn_scale" not in config and attn.attn_scale != math.sqrt(width):
            chosen = chosen.replace(attn_scale=float(attn.attn_scale))
        block = cls(chosen).to(attn.W_Q.dtype)
        block.stands_for = layer_sketch(dict(attn.named_parameters()))
        if block.scored is not None:
            block.scored.copy_from(attn)
        if copied:
            block.copy_heads(attn)
            source = generator(seed)
            with torch.no_grad():
                for name in (f"{cls.raw_qk}W_Q", f"{cls.raw_qk}W_K", "raw_W_V", "raw_W_O"):
                    weight = block.get_parameter(name)
                    weight.add_(noise * torch.randn(weight.shape, generator=source).to(weight))
        return block.to(attn.W_Q.device).train(attn.training)

    def copy_heads(self, attn: Any) -> None:
        """Copy the weights of ``attn``, so that this writes what it writes.

        Head ``i`` gets the queries and keys of head ``i mod n``, and its values and output, the
        output shared out among its copies. Dimensions that ``attn`` lacks keep their values; their
        queries, keys and output are 0. Narrower heads get as many dimensions as they have, the
        copies of a head one after the other.

        Without ``value_bias`` the layer's value bias goes into ``b_O``: attention sums to one, so
        ``sum over h of b_V[h] W_O[h]`` is written at every position. That is exact for as long as
        every head writes and no gate moves; a gate that shuts later takes nothing of it away.
        """
        n, _, d = attn.W_Q.shape
        c, kept = self.config, min(self.config.d_head, d)
        head = torch.arange(c.n_heads)
        origin, dims = (head % n)[:, None], (head // n * kept)[:, None] + torch.arange(kept)
        dims = dims % d
        shares = torch.bincount((origin * d + dims).flatten(), minlength=n * d)
        constant = constant_of(attn, c.value_bias)
        queries = {name: self.get_parameter(self.raw_qk + name) for name in QUERIES_AND_KEYS}
        circuits = len(queries["W_Q"])
        uneven = {"sinks", "clip"} & {name for name, value in c.scoring.items() if value}
        if c.qk_width < d:
            raise GatedInterpError("cannot-copy-narrow-heads", width=c.qk_width, needed=d)
        if circuits % n and circuits != c.n_heads:
            raise GatedInterpError("cannot-copy-into-circuits", circuits=circuits, heads=n)
        if not shares.all():
            raise GatedInterpError(
                "cannot-copy-into-few-heads", heads=c.n_heads, d_head=c.d_head, n=n, d=d
            )
        if c.normalize_weights:
            raise GatedInterpError("cannot-copy-normalised")
        if not c.output_bias and constant.any():
            raise GatedInterpError("cannot-copy-output-bias")
        if not c.value_bias and uneven:
            raise GatedInterpError("cannot-copy-value-bias")
        with torch.no_grad():
            for name, weight in queries.items():
                weight.zero_()[..., :d] = getattr(attn, name)[torch.arange(len(weight)) % n]
            self.raw_W_V[..., :kept] = attn.W_V[origin, :, dims].mT
            share = shares[origin * d + dims].to(attn.W_O)[..., None] * c.output_scale
            self.raw_W_O.zero_()[:, :kept] = attn.W_O[origin, dims] / share
            if c.value_bias:
                self.b_V[:, :kept] = attn.b_V[origin, dims]
            if c.output_bias:
                self.b_O.copy_(constant)


@torch.no_grad()
def constant_of(attn: Any, value_bias: bool) -> Float[Tensor, " d_model"]:
    """What ``b_O`` of a copy of ``attn`` is: with what ``b_V`` writes where it has none."""
    if value_bias:
        return cast(Tensor, attn.b_O)
    written = torch.einsum("hd,hdm->m", attn.b_V.double(), attn.W_O.double())
    return cast(Tensor, (attn.b_O.double() + written).to(attn.b_O))


def softmax(scores: Float[Tensor, "*batch key_pos"]) -> Float[Tensor, "*batch key_pos"]:
    """Softmax over keys; of few keys in a longer row: a seventh of the time with AVX-512."""
    keys = scores.shape[-1]
    if keys >= VECTOR:
        return scores.softmax(-1)
    return nn.functional.pad(scores, (0, VECTOR - keys), value=-torch.inf).softmax(-1)[..., :keys]


def rows_at_once(in_a_row: int) -> int:
    """How many query positions are done at a time, with that many numbers for each."""
    return max(ROWS, AT_ONCE // max(1, in_a_row))


def is_hooked(point: nn.Module) -> bool:
    """Whether anybody looks: TransformerLens' hooks are torch's, and torch's own count too."""
    return any(
        getattr(point, f"_{kind}_hooks")
        for kind in ("forward", "forward_pre", "backward", "backward_pre")
    )


def project(
    x: Float[Tensor, "batch pos d_model"], weight: Float[Tensor, "head_index d_model d"]
) -> Float[Tensor, "batch pos head_index d"]:
    """``x`` through each head's ``weight``."""
    flat = weight.transpose(0, 1).flatten(1)  # [d_model (head_index d)]
    return (x @ flat).view(*x.shape[:-1], len(weight), -1)
