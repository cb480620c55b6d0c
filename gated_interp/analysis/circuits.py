"""What a head computes, read off its weights: OV, QK and gate circuits as lazy factored matrices.

Vectors are rows, as in TransformerLens. In token space, with ``e_t`` the (normalised) embedding
of token ``t``::

    QK[q, k]   = (e_q W_Q + b_Q) . (e_k W_K + b_K) / attn_scale      an attention score
    OV[k, v]   = (e_k W_V + b_V) W_O W_U                             a write to logit v
    gate[q, k] = act((e_q W_gate_Q + b_gate_Q) . (e_k W_gate_K + b_gate_K))

The biases sit inside the factors, so each circuit is still a product of rank ``d_head``. Circuits
and composition scores: Elhage et al., *A Mathematical Framework for Transformer Circuits* (2021).
"""

import dataclasses
import functools
from typing import Any, Literal

import pandas as pd
import torch
from jaxtyping import Complex, Float, Int
from torch import Tensor
from transformer_lens import FactoredMatrix

from gated_interp.analysis.heads import Head, HeadOfLayer, all_heads, head_counts, one_head
from gated_interp.analysis.writes import require_linear, require_tokens
from gated_interp.core.errors import GatedInterpError
from gated_interp.core.seeds import generator
from gated_interp.models.toy import HookedTransformer
from gated_interp.replacements.gates import GateActivation, gate_activation
from gated_interp.replacements.splice import gated_block

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
    """

    kind: Literal["OV", "QK", "gate"]
    layer: int
    head: int
    factors: FactoredMatrix
    activation: GateActivation | None = None

    @property
    def matrix(self) -> Float[Tensor, "row column"]:
        """The whole matrix: logit writes, attention scores, or how far each gate is open."""
        product: Tensor = self.factors.AB
        return product if self.activation is None else gate_activation(product, self.activation)

    def eigenvalues(self) -> Complex[Tensor, " rank"]:
        """Eigenvalues of the product that need not be zero (before a gate's activation)."""
        if self.factors.ldim != self.factors.rdim:
            raise GatedInterpError(
                f"the circuit is {self.factors.ldim} x {self.factors.rdim}; "
                "eigenvalues need a square one."
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
        return f"Circuit({self.kind} of L{self.layer}H{self.head}, {size})"


def token_inputs(
    model: HookedTransformer, layer: int, position: int | None = None
) -> Float[Tensor, "d_vocab d_model"]:
    """What attention at ``layer`` reads of each token straight from the embedding.

    The layer's own normalisation is applied. Exact in layer 0 (of a model with positional
    embeddings: at the ``position`` named, else with the positional part left out); further up it
    is the direct path only, past what earlier layers write.

    Raises:
        GatedInterpError: no such layer or position.
    """
    embedded: Tensor = model.embed.W_E
    if position is not None:
        if not 0 <= position < model.cfg.n_ctx:
            raise GatedInterpError(
                f"position {position} is not there; the context has 0 to {model.cfg.n_ctx - 1}."
            )
        if model.cfg.positional_embedding_type == "standard":
            embedded = embedded + model.pos_embed.W_pos[position]
    if model.cfg.normalization_type is None:
        return embedded
    # Normalisation is per row; TransformerLens' modules want a batch axis.
    return model.blocks[layer].ln1(embedded[None])[0]


def norm_matrix(norm: Any, kind: str | None, like: Tensor) -> Float[Tensor, "m m"]:
    """A normalisation without its scale and bias, as the matrix it multiplies rows by."""
    eye = torch.eye(like.shape[0]).to(like)
    if kind in ("LN", "LNPre"):
        eye = eye - 1 / like.shape[0]
    return eye * norm.w if kind in ("LN", "RMS") else eye


def _readout(model: HookedTransformer) -> Float[Tensor, "d_model d_vocab"]:
    """Residual stream to logits; a final normalisation counts up to its scale."""
    W_U: Tensor = model.unembed.W_U
    if model.cfg.normalization_type is None:
        return W_U
    return norm_matrix(model.ln_final, model.cfg.normalization_type, W_U) @ W_U


@torch.no_grad()
def ov_circuit(
    model: HookedTransformer,
    layer: HeadOfLayer,
    head: HeadOfLayer | None = None,
    *,
    space: Space = "token",
    biases: bool = True,
    position: int | None = None,
) -> Circuit:
    """What the head writes to each logit (column) when all its attention is on a token (row).

    Multiplied by the (gated) attention on each source token and summed, this is the head's write
    to the logits; attention sums to one, so b_V is counted exactly. A final normalisation counts
    up to its scale. In residual space: ``W_V W_O``.

    Args:
        layer, head: whose: ``0, 1``, or ``(0, 1)`` or ``"L0H1"`` and no ``head``.
        biases: count b_V (token space only).
        position: of the source token, for models with positional embeddings.

    Raises:
        GatedInterpError: no such head, position or space.

    Examples:
        >>> from gated_interp.models.analytic import manual_model
        >>> truth = manual_model(2, 3)  # trigram 1 is held by head 0, 2 by head 1, 3 by both
        >>> ov_circuit(truth.model, 0, 0)
        Circuit(OV of L0H0, 8 x 8, rank 1)
        >>> ov_circuit(truth.model, 0, 0).matrix[0].tolist()  # from A: C1, not C2, a little C3
        [0.0, 0.0, 0.0, 0.0, 2.0, -2.0, 1.0, 0.0]
    """
    attn, (layer, head) = _attention(model, layer, head, space)
    if space == "residual":
        return Circuit("OV", layer, head, FactoredMatrix(attn.W_V[head], attn.W_O[head]))
    values = token_inputs(model, layer, position) @ attn.W_V[head]
    if biases:
        values = values + attn.b_V[head]
    return Circuit("OV", layer, head, FactoredMatrix(values, attn.W_O[head] @ _readout(model)))


@torch.no_grad()
def qk_circuit(
    model: HookedTransformer,
    layer: HeadOfLayer,
    head: HeadOfLayer | None = None,
    *,
    space: Space = "token",
    biases: bool = True,
    query_position: int | None = None,
    key_position: int | None = None,
) -> Circuit:
    """The attention score from each query token (row) to each key token (column).

    In residual space: ``W_Q W_K^T``, not divided by the attention scale.
    Heads are named as for :func:`ov_circuit`.

    Raises:
        GatedInterpError: no such head, position or space.

    Examples:
        >>> from gated_interp.models.analytic import manual_model
        >>> truth = manual_model(2, 3)  # trigram 1 is held by head 0, 2 by head 1, 3 by both
        >>> qk_circuit(truth.model, 0, 0).matrix[1, :3].tolist()  # from B1: to A, and nowhere else
        [1.0, -100.0, -100.0]
    """
    attn, (layer, head) = _attention(model, layer, head, space)
    if space == "residual":
        return Circuit("QK", layer, head, FactoredMatrix(attn.W_Q[head], attn.W_K[head].T))
    q = token_inputs(model, layer, query_position) @ attn.W_Q[head]
    k = token_inputs(model, layer, key_position) @ attn.W_K[head]
    if biases:
        q, k = q + attn.b_Q[head], k + attn.b_K[head]
    return Circuit("QK", layer, head, FactoredMatrix(q / attn.attn_scale, k.T))


@torch.no_grad()
def gate_circuit(
    model: HookedTransformer,
    layer: HeadOfLayer,
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
    _, (layer, head) = _attention(model, layer, head, space)
    block = gated_block(model, layer)
    if block is None:
        raise GatedInterpError(
            f"layer {layer} has no gates; splice a gated attention block in first."
        )
    gate_q, gate_k = block.W_gate_Q[head], block.W_gate_K[head]
    if space == "residual":
        return Circuit("gate", layer, head, FactoredMatrix(gate_q, gate_k.T))
    q = token_inputs(model, layer, query_position) @ gate_q
    k = token_inputs(model, layer, key_position) @ gate_k
    if biases:
        q, k = q + block.b_gate_Q[head], k + block.b_gate_K[head]
    return Circuit("gate", layer, head, FactoredMatrix(q, k.T), block.config.gate)


def _attention(
    model: HookedTransformer, layer: HeadOfLayer, head: HeadOfLayer | None, space: str
) -> tuple[Any, Head]:
    named = one_head(model, layer, head)
    if space not in ("token", "residual"):
        raise GatedInterpError(f"space is {space!r}; it must be 'token' or 'residual'.")
    return require_circuits(model, named[0]), named


def require_circuits(model: HookedTransformer, layer: int) -> Any:
    """The attention at ``layer``.

    Raises:
        GatedInterpError: what stands there has none, as an autoencoder has none.
    """
    attn = model.blocks[layer].attn
    if not hasattr(attn, "W_Q"):
        raise GatedInterpError(
            f"layer {layer} holds a {type(attn).__name__}, which has no attention and so no "
            "circuits; look at a layer of heads."
        )
    return attn


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
def composition_scores(model: HookedTransformer) -> pd.DataFrame:
    """How much each later head reads of what each earlier head writes.

    ``||W_OV(sender) M||_F / (||W_OV(sender)||_F ||M||_F)`` with ``M = N W_Q W_K^T N^T`` for Q,
    its transpose for K, and ``N W_V W_O`` for V; ``N`` is the receiver's normalisation without its
    scale. Range 0 (the receiver reads nothing of it) to 1 (rank-one and aligned). Heads that have
    nothing to do with each other score above 0; ``expected`` is what random ones of the same shapes
    score. Elhage et al. (2021), "Q-, K- and V-composition".

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
    rows = []
    for layer, head in all_heads(model):
        attn, ln1 = model.blocks[layer].attn, getattr(model.blocks[layer], "ln1", None)
        N = torch.eye(model.cfg.d_model).to(attn.W_Q)
        if model.cfg.normalization_type is not None and ln1 is not None:
            N = norm_matrix(ln1, model.cfg.normalization_type, N)
        reads_q, reads_k = N @ attn.W_Q[head], N @ attn.W_K[head]
        receivers = {
            "Q": FactoredMatrix(reads_q, reads_k.T),
            "K": FactoredMatrix(reads_k, reads_q.T),
            "V": FactoredMatrix(N @ attn.W_V[head], attn.W_O[head]),
        }
        for sender_layer, n in enumerate(head_counts(model)[:layer]):
            for sender_head in range(n):
                written = ov_circuit(model, sender_layer, sender_head, space="residual").factors
                for kind, read in receivers.items():
                    size = float(written.norm() * read.norm())
                    rows.append(
                        {
                            "sender_layer": sender_layer,
                            "sender_head": sender_head,
                            "receiver_layer": layer,
                            "receiver_head": head,
                            "kind": kind,
                            "score": float((written @ read).norm()) / size if size else 0.0,
                            "expected": random_composition(
                                model.cfg.d_model, written.mdim, read.mdim
                            ),
                        }
                    )
    columns = ["sender_layer", "sender_head", "receiver_layer", "receiver_head", "kind", "score"]
    return pd.DataFrame(rows, columns=[*columns, "expected"])


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
    model: HookedTransformer, tokens: Int[Tensor, "batch pos"]
) -> Float[Tensor, "batch pos d_vocab"]:
    """The logits worked out from the circuits alone; the model is never run.

    Raises:
        GatedInterpError: not one linear layer, a positional signal, an attention scale or
            activation the circuits do not hold, or tokens the model cannot read.

    Examples:
        >>> from gated_interp.models.analytic import manual_model
        >>> truth = manual_model(2, 3)  # trigram 1 is held by head 0, 2 by head 1, 3 by both
        >>> tokens = truth.task.sample(5, seed=0).tokens
        >>> torch.allclose(predict_from_circuits(truth.model, tokens), truth.model(tokens))
        True
    """
    require_linear(model)
    require_tokens(model, tokens)
    kind = model.cfg.positional_embedding_type
    if kind != "standard" or bool(model.pos_embed.W_pos.any()):
        raise GatedInterpError(
            "a prediction from token circuits needs a model without positional signal; "
            f"this one has {kind} positional embeddings that are not zero."
        )
    attn = model.blocks[0].attn
    logits = (model.embed.W_E @ model.unembed.W_U)[tokens]
    logits = logits + attn.b_O @ model.unembed.W_U + model.unembed.b_U
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
