"""Activation patching and path patching between two batches, by hook name.

``tokens`` is the run that is changed, ``source_tokens`` the run that activations are taken from;
both are ``[batch pos]`` and compared row by row. Activation patching: Vig et al. (2020), Meng et
al. (2022). Path patching: Wang et al. (2022), Goldowsky-Dill et al. (2023).
"""

from collections.abc import Callable, Sequence

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from gated_interp.analysis.heads import (
    HeadLike,
    HeadOfLayer,
    head_counts,
    head_in,
    head_name,
    intervened,
    require_heads,
    require_hook,
)
from gated_interp.anatomy.batch import Batch, Mask, Tokens
from gated_interp.core.errors import GatedInterpError
from gated_interp.core.precision import wide
from gated_interp.models.toy import HookedTransformer

# Hook points whose axis 2 (or, for maps over key positions, axis 1) is the head.
HEAD_AXIS = {
    **dict.fromkeys(("q", "k", "v", "z", "result", "rot_q", "rot_k"), 2),
    **dict.fromkeys(("q_input", "k_input", "v_input", "attn_in"), 2),
    **dict.fromkeys(("attn_scores", "pattern", "gate_scores", "gate", "gated_pattern"), 1),
}
HEAD_AXIS = {f"hook_{name}": axis for name, axis in HEAD_AXIS.items()}


@torch.no_grad()
def activation_patch(
    model: HookedTransformer,
    tokens: Tokens,
    source_tokens: Tokens,
    name: str,
    *,
    head: HeadOfLayer | None = None,
    position: int | None = None,
    attention_mask: Mask | None = None,
    source_mask: Mask | None = None,
) -> Float[Tensor, "batch pos d_vocab_out"]:
    """The logits on ``tokens`` with the activation at ``name`` taken from ``source_tokens``.

    Args:
        name: a hook point, such as ``blocks.0.attn.hook_z``.
        head: patch this head only (hook points that have heads): the number of a query head in the
            layer, ``(layer, head)`` or its name, such as ``"L0H1"``. Where several heads share keys
            or values, those of this head alone change.
        position: patch this (query) position only.
        attention_mask, source_mask: ``[batch pos]``, 1 at tokens and 0 at padding.

    Raises:
        GatedInterpError: no such hook point, head or position, or batches that do not match.

    Examples:
        >>> from gated_interp.models.analytic import manual_model
        >>> truth = manual_model(2, 3)  # trigram 1 is held by head 0, 2 by head 1, 3 by both
        >>> with_a = torch.tensor([[7, 0, 1]])  # BOS A B1
        >>> without = torch.tensor([[7, 4, 1]])  # BOS C1 B1
        >>> logits = activation_patch(truth.model, with_a, without, "blocks.0.attn.hook_z", head=0)
        >>> truth.model(with_a)[0, 2].argmax().item(), logits[0, 2].argmax().item()  # C1, B1
        (4, 1)
    """
    batch, other = _pair(model, tokens, source_tokens, attention_mask, source_mask)
    require_hook(model, name)
    source = _activation(model, other, name)
    return _with(model, batch, name, head, position, source)


@torch.no_grad()
def path_patch(
    model: HookedTransformer,
    tokens: Tokens,
    source_tokens: Tokens,
    sender: HeadLike,
    receiver: str,
    *,
    receiver_head: HeadOfLayer | None = None,
    attention_mask: Mask | None = None,
    source_mask: Mask | None = None,
) -> Float[Tensor, "batch pos d_vocab_out"]:
    """The logits on ``tokens`` when only the direct path sender -> receiver sees the source.

    The sender head's z comes from ``source_tokens`` while every other head and every MLP is frozen
    at what it writes on ``tokens``; what then arrives at ``receiver`` is put there in a second,
    otherwise untouched run.
    With the last layer's ``hook_resid_post`` as receiver this is the head's direct effect.

    Args:
        sender: ``(layer, head)``, or its name, such as ``"L0H1"``.
        receiver: a hook point that comes after the sender, such as ``blocks.1.attn.hook_q``.
        receiver_head: patch only this head of the receiver, named as in :func:`activation_patch`.
        attention_mask, source_mask: as in :func:`activation_patch`.

    Raises:
        GatedInterpError: a sender or receiver that is not there, a receiver that does not come
            after the sender, or batches that do not match.

    Examples:
        >>> from gated_interp.models.analytic import manual_model
        >>> truth = manual_model(2, 3)  # trigram 1 is held by head 0, 2 by head 1, 3 by both
        >>> with_a = torch.tensor([[7, 0, 1]])  # BOS A B1
        >>> without = torch.tensor([[7, 4, 1]])  # BOS C1 B1
        >>> logits = path_patch(truth.model, with_a, without, (0, 0), "blocks.0.hook_resid_post")
        >>> logits[0, 2].argmax().item()  # B1: nobody says C1 any more
        1
    """
    batch, other = _pair(model, tokens, source_tokens, attention_mask, source_mask)
    return Paths(model, batch, other, receiver, receiver_head).patched(sender)


class Paths:
    """Paths from any head to one receiver; both batches are read once for all of them.

    Args:
        batch, other: the run that is changed, and the one that activations are taken from.
        receiver, receiver_head: as in :func:`path_patch`.
    """

    @torch.no_grad()
    def __init__(
        self,
        model: HookedTransformer,
        batch: Batch,
        other: Batch,
        receiver: str,
        receiver_head: HeadOfLayer | None = None,
    ):
        require_hook(model, receiver)
        self.model, self.batch = model, batch
        self.receiver, self.receiver_head = receiver, receiver_head
        z = {f"blocks.{i}.attn.hook_z" for i in range(model.cfg.n_layers)}
        outputs = {f"blocks.{i}.hook_mlp_out" for i in range(model.cfg.n_layers)}
        self._frozen = z if model.cfg.attn_only else z | outputs
        read = self._frozen | {receiver}
        self._clean = batch.cache(model, lambda name: name in read)[1]
        self._source = other.cache(model, lambda name: name in z)[1]

    @torch.no_grad()
    def patched(self, sender: HeadLike) -> Float[Tensor, "batch pos d_vocab_out"]:
        """The logits where the path from ``sender`` alone sees the source."""
        (layer, head) = require_heads(self.model, [sender])[0]
        sender_name, clean = f"blocks.{layer}.attn.hook_z", self._clean
        # A cache lists hook points in the order in which the forward pass reaches them.
        order = list(clean.keys())
        if self.receiver in order and order.index(self.receiver) <= order.index(sender_name):
            raise GatedInterpError(
                "receiver-not-later", receiver=self.receiver, head=head_name((layer, head))
            )
        arrived: list[Tensor] = []

        def freeze(name: str) -> Callable[[Tensor], Tensor]:
            kept = clean[name].clone()
            if name == sender_name:
                kept[:, :, head] = self._source[sender_name][:, :, head]
            return lambda _activation: kept

        edits = {name: freeze(name) for name in sorted(self._frozen - {self.receiver})}
        look = {self.receiver: lambda activation: arrived.append(activation.clone())}
        with intervened(self.model, {**edits, **look}):
            self.batch.logits(self.model)
        return _with(self.model, self.batch, self.receiver, self.receiver_head, None, arrived[0])


def patch_effects(
    model: HookedTransformer,
    tokens: Tokens,
    source_tokens: Tokens,
    names: Sequence[str],
    *,
    position: int,
    target: int,
    per_head: bool = True,
    attention_mask: Mask | None = None,
    source_mask: Mask | None = None,
) -> pd.DataFrame:
    """How far patching each hook point moves a logit from its value on one batch to the other.

    Returns:
        One row per hook point (and head, where it has heads and ``per_head``): ``name``,
        ``head`` (missing where all at once), ``logit``, ``intact``, ``source`` (means over rows of
        the target's logit at ``position``) and ``recovered = (logit - intact) / (source -
        intact)``: 0 nothing, 1 all of it; missing where the two runs do not differ.

    Raises:
        GatedInterpError: as :func:`activation_patch`, or a target outside the vocabulary.

    Examples:
        >>> from gated_interp.models.analytic import manual_model
        >>> truth = manual_model(2, 3)  # trigram 1 is held by head 0, 2 by head 1, 3 by both
        >>> with_a = torch.tensor([[7, 0, 1]])  # BOS A B1
        >>> without = torch.tensor([[7, 4, 1]])  # BOS C1 B1
        >>> names = ["blocks.0.attn.hook_z"]
        >>> table = patch_effects(truth.model, with_a, without, names, position=2, target=4)
        >>> table["recovered"].abs().tolist()
        [1.0, 0.0]
    """
    batch, other = _pair(model, tokens, source_tokens, attention_mask, source_mask)
    if not 0 <= target < model.cfg.d_vocab_out:
        raise GatedInterpError(
            "target-outside-vocabulary", target=target, last=model.cfg.d_vocab_out - 1
        )
    n_pos = batch.tokens.shape[1]
    if not 0 <= position < n_pos:
        raise GatedInterpError("no-such-position", position=position, last=n_pos - 1)

    def logit_of(logits: Tensor, of: Batch = batch) -> float:
        return wide(logits[of.counted[:, position], position, target]).mean().item()

    if not all(bool(each.counted[:, position].any()) for each in (batch, other)):
        raise GatedInterpError("position-all-padding", position=position)
    with torch.no_grad():
        intact, source = (logit_of(each.logits(model), each) for each in (batch, other))
    rows = []
    for name in names:
        require_hook(model, name)
        heads: list[int | None] = [None]
        if per_head and name.split(".")[-1] in HEAD_AXIS:
            heads = list(range(head_counts(model)[int(name.split(".")[1])]))
        for head in heads:
            logit = logit_of(
                activation_patch(
                    model,
                    batch.tokens,
                    other.tokens,
                    name,
                    head=head,
                    attention_mask=batch.attention_mask,
                    source_mask=other.attention_mask,
                )
            )
            gap = source - intact
            rows.append(
                {
                    "name": name,
                    "head": head,
                    "logit": logit,
                    "intact": intact,
                    "source": source,
                    "recovered": (logit - intact) / gap if gap else float("nan"),
                }
            )
    return pd.DataFrame(rows).astype({"head": "Int64"})


def _pair(
    model: HookedTransformer,
    tokens: Tokens,
    source_tokens: Tokens,
    attention_mask: Mask | None,
    source_mask: Mask | None,
) -> tuple[Batch, Batch]:
    batch = Batch.of(model, tokens, attention_mask)
    other = Batch.of(model, source_tokens, source_mask, "source_tokens")
    if batch.tokens.shape != other.tokens.shape:
        raise GatedInterpError(
            "batches-differ-in-shape",
            first=tuple(batch.tokens.shape),
            second=tuple(other.tokens.shape),
        )
    return batch, other


def _activation(model: HookedTransformer, batch: Batch, name: str) -> Tensor:
    seen: list[Tensor] = []
    with intervened(model, {name: lambda activation: seen.append(activation.clone())}):
        batch.logits(model)
    return seen[0]


def _with(
    model: HookedTransformer,
    batch: Batch,
    name: str,
    head: HeadOfLayer | None,
    position: int | None,
    source: Tensor,
) -> Float[Tensor, "batch pos d_vocab_out"]:
    """The logits on ``batch`` with (a part of) the activation at ``name`` from ``source``."""
    axis = HEAD_AXIS.get(name.split(".")[-1])
    where: list[slice | int] = [slice(None)] * source.ndim
    shared, number, layer = False, 0, 0
    if head is not None:
        if axis is None:
            raise GatedInterpError("hook-without-heads", name=name)
        layer = int(name.split(".")[1])
        number, n = head_in(model, layer, head), head_counts(model)[layer]
        # Grouped queries: several heads read one of keys or values.
        shared = source.shape[axis] < n
        where[axis] = number // (n // source.shape[axis])
    if position is not None:
        if not 0 <= position < batch.tokens.shape[1]:
            raise GatedInterpError(
                "no-such-position", position=position, last=batch.tokens.shape[1] - 1
            )
        where[2 if axis == 1 else 1] = position

    def putting(value: Tensor, at: tuple[slice | int, ...]) -> Callable[[Tensor], Tensor]:
        def edit(activation: Tensor) -> Tensor:
            patched = activation.clone()
            patched[at] = value[at]
            return patched

        return edit

    edit = putting(source, tuple(where))
    if shared:
        # What this head makes of the shared keys or values, put in the place of its own z.
        z = f"blocks.{layer}.attn.hook_z"
        own: list[Tensor] = []
        with intervened(model, {name: edit, z: lambda activation: own.append(activation.clone())}):
            batch.logits(model)
        name, edit = z, putting(own[0], (slice(None), slice(None), number))
    with intervened(model, {name: edit}):
        return batch.logits(model)
