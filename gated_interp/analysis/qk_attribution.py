"""Why a head attends from one position to another, and what it carries: one edge, taken apart.

What a layer reads is a sum over everything that earlier components wrote to the residual stream.
Queries, keys and values are linear in it once the norm's scale is frozen, so an attention score is
a sum over pairs of components, one on the query side and one on the key side. A gate score is such
a sum too, and what the head writes from the key is a sum over the components at the key. The first
is the *QK attribution* of Kamath et al., *Tracing Attention Computation Through Feature
Interactions* (Transformer Circuits, 2025), with components in the place of features; the last
belongs to their *head loadings*.
"""

import dataclasses
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens import ActivationCache

from gated_interp.analysis.attribution import ROUNDINGS, read_pairs
from gated_interp.analysis.heads import HeadOfLayer, head_name, one_head
from gated_interp.anatomy.attention import Attention
from gated_interp.anatomy.batch import Batch, Mask, Tokens
from gated_interp.anatomy.stream import Readout, input_norm, stream_hooks, stream_parts
from gated_interp.core.errors import GatedInterpError
from gated_interp.core.precision import wide
from gated_interp.models.toy import HookedTransformer
from gated_interp.replacements.splice import gated_block

# How far a sum may be from its whole, relative to the size of its parts.
TOLERANCE = 1e-5
OTHERS = "others"


@dataclasses.dataclass(frozen=True)
class ScoreParts:
    """A score as a sum over pairs of components.

    Attributes:
        pairs: ``[query_component key_component]``, what each pair adds to the score.
        beside: what is added to the sum of the pairs, by name: ``alibi``, the bias of the
            distance, and ``soft cap``, by how much the cap lowers it. Empty where nothing is.
        total: the model's own score: the sum of ``pairs`` and of ``beside``.
    """

    pairs: Float[Tensor, "query_component key_component"] = dataclasses.field(repr=False)
    beside: dict[str, float]
    total: float

    @property
    def query(self) -> Float[Tensor, " query_component"]:
        """What each component adds on the query side, whatever the key is made of."""
        return self.pairs.sum(1)

    @property
    def key(self) -> Float[Tensor, " key_component"]:
        """What each component adds on the key side, whatever the query is made of."""
        return self.pairs.sum(0)


@dataclasses.dataclass(frozen=True)
class QKAttribution:
    """One edge, from a key position to a query position through a head, taken apart.

    Attributes:
        head: its name.
        row, query, key: which sequence, and the two positions.
        components: ``embed``, ``pos_embed``, ``L0H0``.., ``L0 b_O``, ``L0 mlp``.. of the
            layers before the head's, as in
            :class:`~gated_interp.analysis.attribution.Attribution`, and ``bias``: the bias of the
            norm and those of queries, keys, values or gates.
        score: the attention score, before the softmax.
        gate: the gate score, before the gate's activation; ``None`` for heads without gates.
        write: ``[component]``, what each component at the key adds to what the head writes from it.
        target: along which direction ``write`` is measured.
        written: the sum of ``write``.
        attention: the head's attention to the key, 0 to 1.
        openness: how far the gate is open; ``None`` for heads without gates.
    """

    head: str
    row: int
    query: int
    key: int
    components: list[str] = dataclasses.field(repr=False)
    score: ScoreParts
    gate: ScoreParts | None
    write: Float[Tensor, " component"] = dataclasses.field(repr=False)
    target: str
    written: float
    attention: float
    openness: float | None

    def table(self, top: int | None = None) -> pd.DataFrame:
        """What each component adds on the query side, on the key side and to the write.

        One row each. Columns ``component``, ``query`` and ``key`` (both of the attention score),
        with gates ``gate_query`` and ``gate_key``, and ``write``. The columns of one score
        have the same sum, the score less what :attr:`ScoreParts.beside` names.

        Args:
            top: how many components to show, those that matter most in any column; what the rest
                adds stands together in the row ``others``. All unless given.
        """
        columns = {"query": self.score.query, "key": self.score.key}
        if self.gate is not None:
            columns |= {"gate_query": self.gate.query, "gate_key": self.gate.key}
        columns["write"] = self.write
        values = {name: column.tolist() for name, column in columns.items()}
        frame = pd.DataFrame({"component": self.components, **values})
        if top is None or top >= len(frame):
            return frame
        sizes = frame[[*columns]].abs()
        rank = (sizes / sizes.max().where(lambda largest: largest > 0, 1)).max(axis=1)
        kept = rank.nlargest(top).index.sort_values()
        rest = frame.drop(index=kept)[[*columns]].sum()
        return pd.concat(
            [frame.loc[kept], pd.DataFrame([{"component": OTHERS, **rest}])]
        ).reset_index(drop=True)

    def top_pairs(
        self, top: int = 8, *, gate: bool = False
    ) -> tuple[Float[Tensor, "query_component key_component"], list[str], list[str]]:
        """The pairs of the components that matter most, and the names of its rows and columns.

        The last row and column are those of all ``others`` together, so that the sum stays.

        Args:
            top: components on each side.
            gate: of the gate score instead of the attention score.

        Raises:
            GatedInterpError: of the gate score of a head that has none.
        """
        parts = self.gate if gate else self.score
        if parts is None:
            raise GatedInterpError("no-gate-score", head=self.head)
        pairs, names = parts.pairs, []
        for axis in (0, 1):
            kept = pairs.abs().sum(1).topk(min(top, len(pairs))).indices.sort().values
            names.append([self.components[i] for i in kept.tolist()])
            if len(kept) < len(pairs):
                gone = torch.ones(len(pairs), dtype=torch.bool, device=pairs.device)
                gone[kept] = False
                pairs = torch.cat([pairs[kept], pairs[gone].sum(0, keepdim=True)])
                names[axis].append(OTHERS)
            pairs = pairs.T
        return pairs, names[0], names[1]

    def to_frame(self) -> pd.DataFrame:
        """One row per number: ``part``, ``query_component``, ``key_component``, ``value``.

        ``part`` is ``score``, ``gate score`` or ``write``; a write has no query component. What a
        score holds beside its pairs has its name in both columns.
        """
        rows: list[dict[str, Any]] = []
        for name, parts in (("score", self.score), ("gate score", self.gate)):
            if parts is None:
                continue
            rows += [
                {"part": name, "query_component": q, "key_component": k, "value": value}
                for q, line in zip(self.components, parts.pairs.tolist(), strict=True)
                for k, value in zip(self.components, line, strict=True)
            ]
            rows += [
                {"part": name, "query_component": b, "key_component": b, "value": value}
                for b, value in parts.beside.items()
            ]
        rows += [
            {"part": "write", "query_component": None, "key_component": k, "value": value}
            for k, value in zip(self.components, self.write.tolist(), strict=True)
        ]
        return pd.DataFrame(rows)


@torch.no_grad()
def qk_attribution(
    model: HookedTransformer,
    layer: HeadOfLayer | None = None,
    head: HeadOfLayer | None = None,
    tokens: Tokens | None = None,
    query: int = -1,
    key: int = 0,
    *,
    row: int = 0,
    target: int | Float[Tensor, " d_model"] | None = None,
    attention_mask: Mask | None = None,
) -> QKAttribution:
    """Why a head reads ``key`` at ``query``, and what it writes from it, by earlier components.

    The attention score is split over pairs of components, a gate score likewise, and what the head
    writes from this key over the components there. All norms, those of queries and keys too, are
    frozen at their scale in the same forward pass; rotary embeddings are linear. Each sum is
    checked against the model's own number, to 1e-5 of the size of its parts.

    A score means something only beside those of other keys: subtract the ``pairs`` of another key
    to see why the head prefers this one.

    Args:
        layer, head: whose: ``0, 1``; or ``"L0H1"`` or ``(0, 1)`` alone.
        query, key: the position that attends, and the position that it reads; negative ones count
            from the end.
        row: which sequence of ``tokens``.
        target: along what the write is measured: a token's logit (by its number; norms frozen), a
            direction ``[d_model]`` in what the layer writes (made unit length), or the direction of
            what the head writes from this key.
        attention_mask: ``[batch pos]``, 1 at tokens and 0 at padding.

    Raises:
        GatedInterpError: tokens the model cannot read, no such head, row, position or token, a key
            that is hidden or padding, a layer without queries and keys, a query, key or value that
            is clipped (``clip_qkv``), or parts that do not add up.

    Examples:
        >>> from gated_interp.models.analytic import manual_model
        >>> truth = manual_model(2, 3)  # trigram 1 is held by head 0, 2 by head 1, 3 by both
        >>> found = qk_attribution(truth.model, 0, 0, [[7, 0, 1]], query=2, key=1, target=4)
        >>> found.score.total, found.written  # BOS A B1: it looks at A and writes C1
        (1.0, 2.0)
        >>> found.table().set_index("component").loc["embed"].tolist()
        [1.0, 1.0, 2.0]
    """
    at_layer, at_head = one_head(model, layer, head)
    attention, batch = Attention.of(model, at_layer), Batch.of(model, tokens, attention_mask)
    row = _entry("row", row, len(batch))
    batch, n = batch[row : row + 1], batch.tokens.shape[1]
    query, key = _entry("position", query, n), _entry("position", key, n)
    if not bool(batch.counted[0, [query, key]].all()):
        raise GatedInterpError("example-at-padding")
    attention.require_visible(query, key)
    target = _direction_of(model, target)
    edge = _Edge.of(attention, at_head, batch, query, key, target)
    score, gate = edge.score(), edge.gate()
    write, said = edge.write(target)
    names, weight = edge.names, edge.weight
    openness = None if gate is None else float(edge.hook("hook_gate")[at_head, query, key])
    return QKAttribution(
        head_name((at_layer, at_head)), row, query, key, [*names, "bias"], score, gate, write, said,
        float(write.sum()), weight, openness,
    )  # fmt: skip


def _entry(what: str, index: int, size: int) -> int:
    if type(index) is not int or not -size <= index < size:
        raise GatedInterpError("no-such-entry", what=what, index=index, last=size - 1)
    return index % size


def _direction_of(model: HookedTransformer, target: Any) -> Any:
    """``target``, once it is one."""
    if target is None or type(target) is int:
        return None if target is None else _entry("target token", target, model.cfg.d_vocab_out)
    if not isinstance(target, Tensor) or target.shape != (model.cfg.d_model,):
        raise GatedInterpError("bad-target", d_model=model.cfg.d_model)
    length = target.norm()
    if not bool(length > 0) or not bool(length.isfinite()):
        raise GatedInterpError("bad-target", d_model=model.cfg.d_model)
    return target


@dataclasses.dataclass(frozen=True)
class _Edge:
    """One forward pass, and what its layer reads at the two positions, by component.

    Attributes:
        names: of the components, without the bias.
        inputs: ``[component d_model]``, what queries, keys and values are made of, biases of the
            norm last.
    """

    attention: Attention
    head: int
    cache: ActivationCache
    at: tuple[int, int]
    offsets: tuple[int, int]
    names: list[str]
    inputs: dict[str, Float[Tensor, "component d_model"]]

    @classmethod
    def of(
        cls, attention: Attention, head: int, batch: Batch, query: int, key: int, target: Any
    ) -> "_Edge":
        model, layer = attention.model, attention.layer
        prefix, norm = f"blocks.{layer}.attn.", input_norm(model, layer)
        hooks = ["attn_scores", "pattern", "gate", "gate_scores", "gated_pattern", "v", "z"]
        wanted = [n for n in (f"{prefix}hook_{h}" for h in hooks) if n in model.hook_dict]
        wanted += [*stream_hooks(model, layer), *([] if norm is None else [norm.hook_scale])]
        readout = Readout.of(model, layer)
        token = type(target) is int
        wanted += [*readout.scales] if token else []
        stop = None if token else layer + 1
        _, cache = batch.cache(model, wanted, stop_at_layer=stop)
        found: dict[str, Tensor] = {}
        names: list[str] = []
        for role, position in (("query", query), ("key", key)):
            names, parts = stream_parts(model, layer, cache, 0, position)
            bias = torch.zeros_like(parts[:1])
            if norm is not None:
                parts = norm.frozen(parts, wide(cache[norm.hook_scale][0, position]))
                bias = bias if norm.bias is None else norm.bias[None]
            found[role] = torch.cat([parts, bias])
        found["value"] = found["key"]
        if model.cfg.positional_embedding_type == "shortformer":
            # Positions are added behind the norm, for queries and keys alone.
            W_pos = wide(model.pos_embed.W_pos)
            names = [*names, "pos_embed"]
            for role, at in (("query", W_pos[query]), ("key", W_pos[key]), ("value", W_pos[0] * 0)):
                found[role] = torch.cat([found[role][:-1], at[None], found[role][-1:]])
        # Rotations count from the first token of a row.
        first = int(batch.counted[0].int().argmax())
        offsets = query - first, key - first
        return cls(attention, head, cache, (query, key), offsets, names, found)

    def hook(self, name: str) -> Tensor:
        """What stands at a hook point of the layer's attention, of the one sequence."""
        return wide(self.cache[f"blocks.{self.attention.layer}.attn.{name}"][0])

    @property
    def weight(self) -> float:
        """The attention to the key."""
        return float(self.hook("hook_pattern")[self.head, *self.at])

    def score(self) -> ScoreParts:
        """The attention score."""
        attention, head = self.attention, self.head
        q = attention.split_queries(head, self.inputs["query"], self.offsets[0])
        k = attention.split_keys(head, self.inputs["key"], self.offsets[1])
        pairs, beside = _merged(q) @ _merged(k).T, {}
        if attention.cap is not None:
            product = pairs.sum()
            beside["soft cap"] = float(attention.capped(product) - product)
        if attention.positions == "alibi":
            beside["alibi"] = attention.distance_bias(head, *self.at)
        return self._checked("hook_attn_scores", pairs, beside)

    def gate(self) -> ScoreParts | None:
        """The gate score; ``None`` where there is none."""
        block = gated_block(self.attention.model, self.attention.layer)
        if block is None:
            return None
        sides = []
        for (role, name), at in zip((("query", "Q"), ("key", "K")), self.offsets, strict=True):
            weight = wide(getattr(block, f"W_gate_{name}")[self.head])
            bias = wide(getattr(block, f"b_gate_{name}")[self.head])[None]
            parts = _merged(torch.cat([self.inputs[role] @ weight, bias]))
            sides.append(block.gate_placed(parts[:, None, None], at)[:, 0, 0])
        return self._checked("hook_gate_scores", sides[0] @ sides[1].T, {})

    def write(self, target: Any) -> tuple[Float[Tensor, " component"], str]:
        """What the head writes from the key along ``target``, and how that is called."""
        attention, (query, key) = self.attention, self.at
        model, layer = attention.model, attention.layer
        pattern, v = read_pairs(self.cache, layer, attention.attn)
        W_O = wide(attention.attn.W_O[self.head])
        # A head that was not picked wrote nothing, wherever it looked.
        wrote = bool((self.hook("hook_z")[query, self.head] != 0).any())
        weight = pattern[0, self.head, query, key] * wrote
        held = weight * v[0, key, self.head]
        if type(target) is int:
            said, readout = f"logit of token {target}", Readout.of(model, layer)
            scale = readout.scale(self.cache)
            direction = readout.matrix[:, target]
            direction = direction / scale[0, query] if isinstance(scale, Tensor) else direction
        elif target is None:
            said, direction = "the head's write from this key", held @ W_O
            direction = torch.nn.functional.normalize(direction, dim=0)
        else:
            said, direction = "a given direction", wide(target).to(W_O) / target.norm()
        along = W_O @ direction
        parts = _merged(weight * (attention.split_values(self.head, self.inputs["value"]) @ along))
        self._check(parts, held @ along)
        return parts, said

    def _checked(self, name: str, pairs: Tensor, beside: dict[str, float]) -> ScoreParts:
        total = self.hook(name)[self.head, *self.at]
        self._check(pairs, total - sum(beside.values()))
        return ScoreParts(pairs, beside, float(total))

    def _check(self, parts: Tensor, whole: Tensor) -> None:
        eps = torch.finfo(self.attention.model.embed.W_E.dtype).eps
        miss, size = float((parts.sum() - whole).abs()), float(parts.abs().sum())
        if miss > max(TOLERANCE, ROUNDINGS * eps) * max(size, 1.0):
            raise GatedInterpError("parts-do-not-add-up", miss=miss)


def _merged(parts: Float[Tensor, "part_and_bias ..."]) -> Float[Tensor, "part ..."]:
    """The two last parts, biases of the norm and of the layer, as one."""
    return torch.cat([parts[:-2], parts[-2:].sum(0, keepdim=True)])
