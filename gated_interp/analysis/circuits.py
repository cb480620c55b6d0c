"""What a head computes, read off its weights: OV, QK and gate circuits as lazy factored matrices.

Vectors are rows, as in TransformerLens. In token space, with ``e_t`` the (normalised) embedding
of token ``t``::

    QK[q, k]   = (e_q W_Q + b_Q) . (e_k W_K + b_K) / attn_scale      an attention score
                 (rotated, normed, clipped and capped as the layer does: gated_interp.anatomy)
    OV[k, v]   = (e_k W_V + b_V) W_O W_U                             a write to logit v
    gate[q, k] = act((e_q W_gate_Q + b_gate_Q) . (e_k W_gate_K + b_gate_K))

The biases sit inside the factors, so each circuit is still a product of rank ``d_head``. Circuits
and composition scores: Elhage et al., *A Mathematical Framework for Transformer Circuits* (2021).
"""

import dataclasses
import functools
from typing import Literal

import pandas as pd
import torch
from jaxtyping import Complex, Float
from torch import Tensor
from transformer_lens import FactoredMatrix
from transformer_lens.utilities.activation_functions import apply_softcap

from gated_interp.analysis.heads import HeadOfLayer, all_heads, head_name, one_head
from gated_interp.analysis.writes import require_linear
from gated_interp.anatomy.attention import Attention, Role
from gated_interp.anatomy.batch import Batch, Tokens
from gated_interp.anatomy.stream import Readout, Written, input_norm, logit_bias, passing
from gated_interp.core.errors import GatedInterpError
from gated_interp.core.precision import wide
from gated_interp.core.seeds import generator
from gated_interp.models.toy import HookedTransformer
from gated_interp.replacements.gates import GateActivation, gate_activation
from gated_interp.replacements.splice import gated_block, require_layer

Space = Literal["token", "residual"]


@dataclasses.dataclass(frozen=True)
class Circuit:
    """One head's circuit.

    Attributes:
        kind: ``OV``, ``QK`` or ``gate``.
        layer, head: whose.
        factors: the lazy product. Rows and columns: OV ``[source_token logit]``, QK and gate
            ``[query_token key_token]`` (residual directions instead of tokens in residual space).
        activation: what a gate circuit's product passes through; ``None`` for OV and QK.
        cap: the soft cap that a QK circuit's product passes through, ``cap * tanh(score / cap)``.
        offset: added to every score behind the cap: the bias of the distance (alibi).
        leaves_out: what the model adds and the circuit does not hold, such as ``positions``.
    """

    kind: Literal["OV", "QK", "gate"]
    layer: int
    head: int
    factors: FactoredMatrix
    activation: GateActivation | None = None
    cap: float | None = None
    offset: float = 0.0
    leaves_out: tuple[str, ...] = ()

    @property
    def matrix(self) -> Float[Tensor, "row column"]:
        """The whole matrix: logit writes, attention scores, or how far each gate is open."""
        product = apply_softcap(self.factors.AB, self.cap)
        if self.activation is not None:
            product = gate_activation(product, self.activation)
        return product + self.offset if self.offset else product

    def eigenvalues(self) -> Complex[Tensor, " rank"]:
        """Eigenvalues of the product that need not be zero, before a gate's activation or a cap."""
        if self.factors.ldim != self.factors.rdim:
            raise GatedInterpError(
                "circuit-not-square", rows=self.factors.ldim, columns=self.factors.rdim
            )
        return self.factors.eigenvalues

    def svd(
        self,
    ) -> tuple[Float[Tensor, "row rank"], Float[Tensor, " rank"], Float[Tensor, "column rank"]]:
        """``U, S, V`` with ``U diag(S) V^T`` the product (before a gate's activation)."""
        return self.factors.svd()

    def to_frame(self, rows: list[str], columns: list[str]) -> pd.DataFrame:
        """The whole matrix with names on its axes."""
        return pd.DataFrame(self.matrix.detach().cpu().numpy(), index=rows, columns=columns)

    def __repr__(self) -> str:
        size = f"{self.factors.ldim} x {self.factors.rdim}, rank {self.factors.mdim}"
        without = f", without {' or '.join(self.leaves_out)}" if self.leaves_out else ""
        return f"Circuit({self.kind} of {head_name((self.layer, self.head))}, {size}{without})"


@torch.no_grad()
def ov_circuit(
    model: HookedTransformer,
    layer: HeadOfLayer | None = None,
    head: HeadOfLayer | None = None,
    *,
    space: Space = "token",
    biases: bool = True,
    position: int | None = None,
) -> Circuit:
    """What the head writes to each logit (column) when all its attention is on a token (row).

    Multiplied by the (gated) attention on each source token and summed, this is the head's write
    to the logits, before an output soft cap; where attention sums to one, b_V is counted exactly.
    Norms behind the head count up to their scales. In residual space: ``W_V W_O``.

    Args:
        layer, head: whose: ``0, 1``; or ``"L0H1"`` or ``(0, 1)`` alone; or ``head=1`` where there
            is one layer, or one that is spliced.
        biases: count b_V (token space only).
        position: of the source token, for models with positional embeddings.

    Raises:
        GatedInterpError: no such head, position or space, or values that are clipped
            (``clip_qkv``) without their biases.

    Examples:
        >>> from gated_interp.models.analytic import manual_model
        >>> truth = manual_model(2, 3)  # trigram 1 is held by head 0, 2 by head 1, 3 by both
        >>> ov_circuit(truth.model, 0, 0)
        Circuit(OV of L0H0, 8 x 8, rank 1)
        >>> ov_circuit(truth.model, 0, 0).matrix[0].tolist()  # from A: C1, not C2, a little C3
        [0.0, 0.0, 0.0, 0.0, 2.0, -2.0, 1.0, 0.0]
    """
    attention, head = _attention(model, layer, head, space)
    W_V, W_O = wide(attention.attn.W_V[head]), wide(attention.attn.W_O[head])
    if space == "residual":
        return Circuit("OV", attention.layer, head, FactoredMatrix(W_V, W_O))
    values = attention.values(head, _inputs(attention, "value", position), biases=biases)
    product = FactoredMatrix(values, W_O @ Readout.of(model, attention.layer).matrix)
    left = _left_out(attention, position if attention.positions == "standard" else 0)
    return Circuit("OV", attention.layer, head, product, leaves_out=left)


@torch.no_grad()
def qk_circuit(
    model: HookedTransformer,
    layer: HeadOfLayer | None = None,
    head: HeadOfLayer | None = None,
    *,
    space: Space = "token",
    biases: bool = True,
    query_position: int | None = None,
    key_position: int | None = None,
) -> Circuit:
    """The attention score from each query token (row) to each key token (column).

    With both positions, in layer 0, it is the score at ``hook_attn_scores``, whatever the layer
    does to it: rotary embeddings, alibi, QK norm, clipping, soft cap and scales are counted.
    Without them positions are left out (rotary: as at distance 0), which the result's
    ``leaves_out`` says. In residual space: ``W_Q W_K^T``, not divided by the attention scale.
    Heads are named as for :func:`ov_circuit`.

    Args:
        biases: count b_Q and b_K.
        query_position, key_position: of the two tokens; give both or none.

    Raises:
        GatedInterpError: no such head, position or space, one position without the other, or a key
            that the query cannot see from there.

    Examples:
        >>> from gated_interp.models.analytic import manual_model
        >>> truth = manual_model(2, 3)  # trigram 1 is held by head 0, 2 by head 1, 3 by both
        >>> qk_circuit(truth.model, 0, 0).matrix[1, :3].tolist()  # from B1: to A, and nowhere else
        [1.0, -100.0, -100.0]
    """
    attention, head = _attention(model, layer, head, space)
    layer, attn = attention.layer, attention.attn
    if space == "residual":
        product = FactoredMatrix(wide(attn.W_Q[head]), wide(attn.W_K[head]).T)
        return Circuit("QK", layer, head, product)
    offset = 0.0
    if query_position is not None and key_position is not None:
        attention.require_visible(query_position, key_position)
        offset = attention.distance_bias(head, query_position, key_position)
    at_query = _inputs(attention, "query", query_position)
    at_key = _inputs(attention, "key", key_position)
    q = attention.queries(head, at_query, query_position, biases=biases)
    k = attention.keys(head, at_key, key_position, biases=biases)
    left = _left_out(attention, query_position, key_position)
    product = FactoredMatrix(q, k.T)
    return Circuit("QK", layer, head, product, cap=attention.cap, offset=offset, leaves_out=left)


@torch.no_grad()
def gate_circuit(
    model: HookedTransformer,
    layer: HeadOfLayer | None = None,
    head: HeadOfLayer | None = None,
    *,
    space: Space = "token",
    biases: bool = True,
    query_position: int | None = None,
    key_position: int | None = None,
) -> Circuit:
    """How far the head's gate is open from each query token (row) to each key token (column).

    ``factors`` holds the gate *score*; ``matrix`` applies the activation. In residual space:
    ``W_gate_Q W_gate_K^T``, scores only. Heads are named as for :func:`ov_circuit`.

    Raises:
        GatedInterpError: no such head, position or space, or no gated block in that layer.

    Examples:
        >>> from gated_interp.replacements.gated_attention import GatedAttention
        >>> from gated_interp.replacements.splice import splice
        >>> from gated_interp.models.toy import ToyConfig, build_toy
        >>> toy = build_toy(ToyConfig(n_trigrams=1, n_heads=2))
        >>> block = GatedAttention.from_attention(toy.blocks[0].attn)
        >>> block.force_gates(0.25)
        >>> gate_circuit(splice(toy, 0, block), 0, 3).matrix[0].tolist()
        [0.25, 0.25, 0.25, 0.25]
    """
    attention, head = _attention(model, layer, head, space)
    layer = attention.layer
    block = gated_block(model, layer)
    if block is None:
        raise GatedInterpError("no-gated-block", layer=layer)
    gate_q, gate_k = wide(block.W_gate_Q[head]), wide(block.W_gate_K[head])
    if space == "residual":
        return Circuit("gate", layer, head, FactoredMatrix(gate_q, gate_k.T))
    q = _inputs(attention, "query", query_position) @ gate_q
    k = _inputs(attention, "key", key_position) @ gate_k
    if biases:
        q, k = q + wide(block.b_gate_Q[head]), k + wide(block.b_gate_K[head])
    q = block.gate_placed(q[:, None, None], query_position)[:, 0, 0]
    k = block.gate_placed(k[:, None, None], key_position)[:, 0, 0]
    left = _left_out(attention, query_position, key_position)
    product = FactoredMatrix(q, k.T)
    return Circuit("gate", layer, head, product, block.config.gate, leaves_out=left)


def _attention(
    model: HookedTransformer, layer: HeadOfLayer | None, head: HeadOfLayer | None, space: str
) -> tuple[Attention, int]:
    named = one_head(model, layer, head)
    if space not in ("token", "residual"):
        raise GatedInterpError(
            "not-one-of", name="space", value=space, choices=["token", "residual"]
        )
    return Attention.of(model, named[0]), named[1]


def _inputs(
    attention: Attention, role: Role, position: int | None
) -> Float[Tensor, "d_vocab d_model"]:
    n_ctx = attention.model.cfg.n_ctx
    if position is not None and not 0 <= position < n_ctx:
        raise GatedInterpError("position-outside-context", position=position, last=n_ctx - 1)
    return attention.inputs(role, position)


def _left_out(attention: Attention, *positions: int | None) -> tuple[str, ...]:
    """What the circuit at these positions does not hold."""
    given = [p is not None for p in positions]
    if any(given) and not all(given):
        raise GatedInterpError("one-position-of-two")
    found = () if all(given) or attention.positions is None else ("positions",)
    return found if attention.layer == 0 else (*found, "what earlier layers write")


def copying_score(circuit: Circuit) -> float:
    """How much a square circuit raises what it reads: ``Re(sum of eigenvalues) / sum of |.|``.

    Range -1 (every direction is written back negated) to 1 (every direction is copied); 0 for a
    circuit whose eigenvalues are all zero. Elhage et al. (2021), "Detecting copying behavior".
    """
    eigenvalues = circuit.eigenvalues()
    size = eigenvalues.abs().sum()
    return float(eigenvalues.real.sum() / size) if size > 0 else 0.0


def copying_scores(model: HookedTransformer) -> pd.DataFrame:
    """The copying score of every head's token-space OV circuit, biases left out.

    Columns ``layer``, ``head``, ``copying_score``.

    Examples:
        >>> from gated_interp.models.toy import ToyConfig, build_toy
        >>> model = build_toy(ToyConfig(n_trigrams=3, n_heads=2))
        >>> model.blocks[0].attn.W_O.data = model.blocks[0].attn.W_V.data.mT  # writes what it reads
        >>> copying_scores(model)["copying_score"].round(4).tolist()
        [1.0, 1.0]
    """
    return pd.DataFrame(
        [
            {
                "layer": layer,
                "head": head,
                "copying_score": copying_score(ov_circuit(model, layer, head, biases=False)),
            }
            for layer, head in all_heads(model)
        ]
    )


@torch.no_grad()
def composition_scores(model: HookedTransformer, layer: int | None = None) -> pd.DataFrame:
    """How much each later head reads of what each earlier head writes.

    ``||W_OV(sender) M||_F / (||W_OV(sender)||_F ||M||_F)`` with ``M = N W_Q W_K^T N^T`` for Q,
    its transpose for K, and ``N W_V W_O`` for V; ``N`` is the receiver's normalisation without its
    scale, and writes go through the norm behind a layer, where there is one, likewise. Weights of a
    QK norm count. Rotations of queries and keys (rotary embeddings), biases, caps and clipping do
    not: ``table.attrs["leaves_out"]`` names those that the model has.

    Range 0 (the receiver reads nothing of it) to 1 (rank-one and aligned). Heads that have nothing
    to do with each other score above 0; ``expected`` is what random ones of the same shapes score.
    Elhage et al. (2021), "Q-, K- and V-composition".

    Args:
        layer: only pairs with a head of this layer; all pairs unless given.

    Returns:
        Columns ``sender_layer``, ``sender_head``, ``receiver_layer``, ``receiver_head``, ``kind``
        (``Q``, ``K`` or ``V``), ``score``, ``expected``; no rows for a model of one layer.

    Examples:
        >>> from transformer_lens import HookedTransformerConfig
        >>> from gated_interp.models.toy import attention_only
        >>> config = HookedTransformerConfig(
        ...     n_layers=2, d_model=4, n_heads=3, d_head=2, n_ctx=5, d_vocab=7,
        ...     attn_only=True, normalization_type=None,
        ... )
        >>> len(composition_scores(attention_only(config)))  # 3 senders, 3 receivers, Q, K and V
        27
    """
    if layer is not None:
        require_layer(model, layer)
    rows = []
    left: set[str] = set()
    eye = torch.eye(model.cfg.d_model).to(wide(model.embed.W_E))
    layers = [Attention.of(model, layer) for layer in range(model.cfg.n_layers)]
    norms = [passing(input_norm(model, layer), eye) for layer in range(model.cfg.n_layers)]
    # Of each layer's heads, the factors of what they write, through the norm behind it.
    writes = [(wide(a.attn.W_V), Written.of(model, a.layer).W_O) for a in layers]
    # Sizes come from products of d_head x d_head: nothing of d_model x d_model is decomposed.
    senders = [(W_O.double(), _gram(W_V.mT)) for W_V, W_O in writes]
    lengths = [(before * _gram(W_O)).sum((-2, -1)).sqrt() for W_O, before in senders]
    for at, head in all_heads(model):
        if layer is not None and at < layer:
            continue
        attention, N = layers[at], norms[at]
        left |= _not_composed(attention)
        W_Q, W_K = attention.qk(head)
        reads_q, reads_k = N @ W_Q, N @ W_K
        W_V, W_O = (factor[head] for factor in writes[at])
        receivers = {"Q": (reads_q, reads_k.T), "K": (reads_k, reads_q.T), "V": (N @ W_V, W_O)}
        for sender_layer in range(at):
            if layer not in (None, at, sender_layer):
                continue
            writing, before = senders[sender_layer]
            found = {}
            for kind, (reads, gives) in receivers.items():
                after, middle = _gram(gives), writing @ reads.double()
                size = lengths[sender_layer] * (_gram(reads.mT) * after).sum().sqrt()
                both = (before @ middle @ after * middle).sum((-2, -1)).clamp(min=0).sqrt()
                found[kind] = (both / size).where(size > 0, 0.0).tolist()
            for sender_head in range(len(writing)):
                for kind, scores in found.items():
                    rows.append(
                        {
                            "sender_layer": sender_layer,
                            "sender_head": sender_head,
                            "receiver_layer": at,
                            "receiver_head": head,
                            "kind": kind,
                            "score": scores[sender_head],
                            "expected": random_composition(
                                model.cfg.d_model, writing.shape[1], receivers[kind][0].shape[1]
                            ),
                        }
                    )
    columns = ["sender_layer", "sender_head", "receiver_layer", "receiver_head", "kind", "score"]
    table = pd.DataFrame(rows, columns=[*columns, "expected"])
    table.attrs["leaves_out"] = sorted(left)
    return table


def _gram(x: Tensor) -> Tensor:
    """``x`` times its transpose."""
    return x.double() @ x.double().mT


def _not_composed(attention: Attention) -> set[str]:
    """What of a layer's scores and values no product of weights holds."""
    names = {"use_qk_norm", "original_architecture", "attn_scores_soft_cap", "clip_qkv"}
    found = names & attention.extras.keys()
    return found | ({"rotary"} if attention.positions == "rotary" else set())


@functools.lru_cache
def random_composition(d_model: int, d_sender: int, d_receiver: int, draws: int = 200) -> float:
    """The mean composition score of heads of normal weights, from ``draws`` pairs of a fixed seed.

    About ``1 / sqrt(d_model)``.

    Examples:
        >>> random_composition(100, 16, 16) == random_composition(100, 16, 16)
        True
        >>> round(random_composition(100, 16, 16), 2)
        0.1
    """
    source = generator(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(draws, *shape, generator=source)

    V, O_ = normal(d_model, d_sender), normal(d_sender, d_model)
    R, S = normal(d_model, d_receiver), normal(d_receiver, d_model)
    read = O_ @ R  # the norms of V O, R S and V O R S from their small Gram matrices
    VV, OO, RR, SS = V.mT @ V, O_ @ O_.mT, R.mT @ R, S @ S.mT
    norms = [(a * b).sum((-1, -2)) for a, b in ((VV, OO), (RR, SS), (VV, read @ SS @ read.mT))]
    return float((norms[2] / (norms[0] * norms[1])).sqrt().mean())


@torch.no_grad()
def predict_from_circuits(
    model: HookedTransformer, tokens: Tokens
) -> Float[Tensor, "batch pos d_vocab_out"]:
    """The logits worked out from the circuits alone; the model is never run.

    Raises:
        GatedInterpError: not one linear layer, a positional signal, attention that is not plain
            and causal, or tokens the model cannot read.

    Examples:
        >>> from gated_interp.models.analytic import manual_model
        >>> truth = manual_model(2, 3)  # trigram 1 is held by head 0, 2 by head 1, 3 by both
        >>> tokens = truth.task.sample(5, seed=0).tokens
        >>> torch.allclose(predict_from_circuits(truth.model, tokens), truth.model(tokens))
        True
    """
    require_linear(model)
    batch = Batch.of(model, tokens)
    tokens, attention = batch.tokens, Attention.of(model, 0)
    if attention.positions is not None:
        raise GatedInterpError("circuits-ignore-positions", positions=attention.positions)
    for name, value in attention.extras.items():
        if name != "n_key_value_heads":
            raise GatedInterpError("circuits-need-plain-attention", name=name, value=value)
    attn, W_U = attention.attn, wide(model.unembed.W_U)
    logits = attention.inputs("value")[tokens] @ W_U
    logits = logits + wide(attn.b_O) @ W_U + logit_bias(model)
    pos = tokens.shape[1]
    hidden = torch.ones(pos, pos, dtype=torch.bool, device=tokens.device).triu(1)
    query, key = tokens[:, :, None], tokens[:, None, :]
    for _, head in all_heads(model):
        scores = qk_circuit(model, 0, head).matrix[query, key]
        pattern = scores.masked_fill(hidden, -torch.inf).softmax(-1)
        if gated_block(model) is not None:
            pattern = pattern * gate_circuit(model, 0, head).matrix[query, key]
        logits = logits + pattern @ ov_circuit(model, 0, head).matrix[tokens]
    return logits
