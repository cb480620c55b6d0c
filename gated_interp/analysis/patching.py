"""Activation patching and path patching between two batches, by hook name.

``tokens`` is the run that is changed, ``source_tokens`` the run that activations are taken from;
both are ``[batch pos]`` and compared row by row. Activation patching: Vig et al. (2020), Meng et
al. (2022). Path patching: Wang et al. (2022), Goldowsky-Dill et al. (2023).
"""

from collections.abc import Callable, Sequence

import pandas as pd
import torch
from jaxtyping import Float, Int
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
from gated_interp.analysis.writes import require_tokens
from gated_interp.core.errors import GatedInterpError
from gated_interp.models.toy import HookedTransformer

# Hook points whose axis 2 (or, for maps over key positions, axis 1) is the head.
HEAD_AXIS = {
    "hook_q": 2,
    "hook_k": 2,
    "hook_v": 2,
    "hook_z": 2,
    "hook_result": 2,
    "hook_attn_scores": 1,
    "hook_pattern": 1,
    "hook_gate_scores": 1,
    "hook_gate": 1,
    "hook_gated_pattern": 1,
}


@torch.no_grad()
def activation_patch(
    model: HookedTransformer,
    tokens: Int[Tensor, "batch pos"],
    source_tokens: Int[Tensor, "source_batch source_pos"],
    name: str,
    *,
    head: HeadOfLayer | None = None,
    position: int | None = None,
) -> Float[Tensor, "batch pos d_vocab"]:
    """The logits on ``tokens`` with the activation at ``name`` taken from ``source_tokens``.

    Args:
        name: a hook point, such as ``blocks.0.attn.hook_z``.
        head: patch this head only (hook points that have heads): its number in the layer, as
            ``(layer, head)`` or by its name, such as ``"L0H1"``.
        position: patch this (query) position only.

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
    _require_pair(model, tokens, source_tokens)
    require_hook(model, name)
    where = _index(model, name, head, position, tokens.shape[1])
    source = _activation(model, source_tokens, name)

    def edit(activation: Tensor) -> Tensor:
        patched = activation.clone()
        patched[where] = source[where]
        return patched

    with intervened(model, {name: edit}):
        logits: Tensor = model(tokens)
    return logits


@torch.no_grad()
def path_patch(
    model: HookedTransformer,
    tokens: Int[Tensor, "batch pos"],
    source_tokens: Int[Tensor, "source_batch source_pos"],
    sender: HeadLike,
    receiver: str,
    *,
    receiver_head: HeadOfLayer | None = None,
) -> Float[Tensor, "batch pos d_vocab"]:
    """The logits on ``tokens`` when only the direct path sender -> receiver sees the source.

    The sender head's z comes from ``source_tokens`` while every other head is frozen at its z on
    ``tokens``; what then arrives at ``receiver`` is put there in a second, otherwise untouched run.
    With the last layer's ``hook_resid_post`` as receiver this is the head's direct effect.

    Args:
        sender: ``(layer, head)``, or its name, such as ``"L0H1"``.
        receiver: a hook point that comes after the sender, such as ``blocks.1.attn.hook_q``.
        receiver_head: patch only this head of the receiver, named as in :func:`activation_patch`.

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
    _require_pair(model, tokens, source_tokens)
    (layer, head) = require_heads(model, [sender])[0]
    require_hook(model, receiver)
    where = _index(model, receiver, receiver_head, None, tokens.shape[1])
    sender_name = f"blocks.{layer}.attn.hook_z"

    # A cache lists hook points in the order in which the forward pass reaches them.
    _, cache = model.run_with_cache(tokens)
    order = list(cache.keys())
    if receiver in order and order.index(receiver) <= order.index(sender_name):
        raise GatedInterpError(
            f"{receiver!r} does not come after {head_name((layer, head))}; name a later hook point."
        )
    source_z = _activation(model, source_tokens, sender_name)[:, :, head]
    frozen = {f"blocks.{i}.attn.hook_z" for i in range(model.cfg.n_layers)} - {receiver}

    arrived: list[Tensor] = []

    def freeze(name: str) -> Callable[[Tensor], Tensor]:
        kept = cache[name].clone()
        if name == sender_name:
            kept[:, :, head] = source_z
        return lambda _activation: kept

    with intervened(
        model,
        {
            **{name: freeze(name) for name in frozen},
            receiver: lambda activation: arrived.append(activation.clone()),
        },
    ):
        model(tokens)
    if not arrived:
        raise GatedInterpError(f"the forward pass never reaches {receiver!r}; name another.")

    def deliver(activation: Tensor) -> Tensor:
        patched = activation.clone()
        patched[where] = arrived[0][where]
        return patched

    with intervened(model, {receiver: deliver}):
        logits: Tensor = model(tokens)
    return logits


def patch_effects(
    model: HookedTransformer,
    tokens: Int[Tensor, "batch pos"],
    source_tokens: Int[Tensor, "source_batch source_pos"],
    names: Sequence[str],
    *,
    position: int,
    target: int,
    per_head: bool = True,
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
    _require_pair(model, tokens, source_tokens)
    if not 0 <= target < model.cfg.d_vocab:
        raise GatedInterpError(
            f"target {target} is outside the vocabulary 0 to {model.cfg.d_vocab - 1}."
        )
    if not 0 <= position < tokens.shape[1]:
        raise GatedInterpError(
            f"position {position} is not there; the tokens have 0 to {tokens.shape[1] - 1}."
        )
    with torch.no_grad():
        intact, source = (
            model(t)[:, position, target].mean().item() for t in (tokens, source_tokens)
        )
    rows = []
    for name in names:
        require_hook(model, name)
        heads: list[int | None] = [None]
        if per_head and name.split(".")[-1] in HEAD_AXIS:
            heads = list(range(head_counts(model)[int(name.split(".")[1])]))
        for head in heads:
            patched = activation_patch(model, tokens, source_tokens, name, head=head)
            logit = patched[:, position, target].mean().item()
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


def _require_pair(model: HookedTransformer, tokens: Tensor, source_tokens: Tensor) -> None:
    require_tokens(model, tokens)
    require_tokens(model, source_tokens)
    if tokens.shape != source_tokens.shape:
        raise GatedInterpError(
            f"the batches have shapes {tuple(tokens.shape)} and {tuple(source_tokens.shape)}; "
            "patching compares them row by row, so they must be the same."
        )


def _activation(model: HookedTransformer, tokens: Tensor, name: str) -> Tensor:
    seen: list[Tensor] = []
    with intervened(model, {name: lambda activation: seen.append(activation.clone())}):
        model(tokens)
    if not seen:
        raise GatedInterpError(f"the forward pass never reaches {name!r}; name another hook point.")
    return seen[0]


def _index(
    model: HookedTransformer,
    name: str,
    head: HeadOfLayer | None,
    position: int | None,
    n_positions: int,
) -> tuple[slice | int, ...]:
    """The part of the activation at ``name`` that is patched."""
    axis = HEAD_AXIS.get(name.split(".")[-1])
    where: list[slice | int] = [slice(None)] * 4
    if head is not None:
        if axis is None:
            raise GatedInterpError(f"{name!r} has no heads; leave head out.")
        where[axis] = head_in(model, int(name.split(".")[1]), head)
    if position is not None:
        if not 0 <= position < n_positions:
            raise GatedInterpError(
                f"position {position} is not there; the tokens have 0 to {n_positions - 1}."
            )
        where[2 if axis == 1 else 1] = position
    last = max((i for i, part in enumerate(where) if part != slice(None)), default=0)
    return tuple(where[: last + 1])
