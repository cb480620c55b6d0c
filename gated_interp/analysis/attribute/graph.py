"""The nodes and edges of a model: who writes to the residual stream, and who reads it."""

import dataclasses
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from gated_interp.anatomy.attention import Attention
from gated_interp.anatomy.nodes import EMBED, LOGITS, has_mlp, mlp_name
from gated_interp.core.written import head_name
from gated_interp.models.toy import HookedTransformer

Edge = tuple[str, str]
"""A sender and a receiver, such as ``("L0H1", "L1H2.q")``."""


def written_heads(attn: Any, which: str) -> int:
    """How many sets of queries (``q``), keys or values the layer makes."""
    heads = int(attn.W_O.shape[0])
    cfg = getattr(attn, "cfg", None)
    groups = getattr(cfg, "n_key_value_heads", None)
    if which == "q" or groups is None or getattr(cfg, "ungroup_grouped_query_attention", False):
        return heads
    return int(groups)


def roles(attn: Any) -> list[str]:
    """What the heads of a layer make of the stream: ``q``, ``k``, ``v``, and of gates two more."""
    gated = getattr(getattr(attn, "config", None), "gate_per", None) == "pair"
    open_gates = getattr(getattr(attn, "config", None), "gate", "open") == "open"
    return ["q", "k", "v", *(["gate_q", "gate_k"] if gated and not open_gates else [])]


@dataclasses.dataclass(frozen=True, eq=False)
class Graph:
    """Senders are the embedding, heads and MLPs; receivers are what reads the stream.

    Attributes:
        senders: ``embed``, then heads (``L0H1``) and MLPs (``L0 mlp``), layer by layer.
        receivers: ``L0H1.q`` and ``.k``, ``.v``, ``.gate_q``, ``.gate_k``, ``L0 mlp``, ``logits``.
            Keys and values that several heads share are named ``L0KV0.k`` and ``L0KV0.v``.
        written: for each sender, when it writes.
        read: for each receiver, when it reads.
        heads: by layer, which senders its heads are.
        inputs: by layer and role, which receivers these are.
        mlps: by layer, the numbers of its MLP among senders and receivers.
    """

    senders: list[str]
    receivers: list[str]
    written: list[int]
    read: list[int]
    heads: list[slice]
    inputs: list[dict[str, slice]]
    mlps: dict[int, tuple[int, int]]

    @classmethod
    def of(cls, model: HookedTransformer) -> "Graph":
        """That of ``model``.

        Raises:
            GatedInterpError: a layer that has no queries and keys.
        """
        found = cls([EMBED], [], [0], [], [], [], {})
        for layer in range(model.cfg.n_layers):
            attn = Attention.of(model, layer).attn
            n, start = int(attn.W_O.shape[0]), 3 * layer + 1
            inputs = {}
            for role in roles(attn):
                there = written_heads(attn, role) if role in "kv" else n
                kind, first = "H" if there == n else "KV", len(found.receivers)
                found.receivers.extend(f"L{layer}{kind}{h}.{role}" for h in range(there))
                inputs[role] = slice(first, first + there)
                found.read.extend([start] * there)
            found.inputs.append(inputs)
            found.heads.append(slice(len(found.senders), len(found.senders) + n))
            found.senders.extend(head_name((layer, h)) for h in range(n))
            found.written.extend([start + 1] * n)
            if has_mlp(model, layer):
                found.mlps[layer] = len(found.senders), len(found.receivers)
                found.senders.append(mlp_name(layer))
                found.written.append(start + 2)
                found.receivers.append(mlp_name(layer))
                found.read.append(start if model.cfg.parallel_attn_mlp else start + 1)
        found.receivers.append(LOGITS)
        found.read.append(3 * len(model.blocks) + 1)
        return found

    @cached_property
    def there(self) -> Bool[Tensor, "receiver sender"]:
        """Where there is an edge: the sender writes before the receiver reads."""
        return torch.tensor(self.read)[:, None] >= torch.tensor(self.written)

    @cached_property
    def edges(self) -> list[Edge]:
        """Every edge, receiver by receiver."""
        return [(self.senders[s], self.receivers[r]) for r, s in self.there.nonzero().tolist()]

    def mask(self, edges: Any) -> Bool[Tensor, "receiver sender"]:
        """Where ``edges`` (each of which is there) are."""
        s = {name: i for i, name in enumerate(self.senders)}
        r = {name: i for i, name in enumerate(self.receivers)}
        found = torch.zeros_like(self.there)
        for sender, receiver in edges:
            found[r[receiver], s[sender]] = True
        return found
