"""What each head of a layer does on text: how often, where it reads, what it says, and where most.

Everything is measured at hooks on the text given, so it holds for that text; which of it the model
needs is for ablation to say (:func:`~gated_interp.analysis.ablation.ablate`).
"""

import dataclasses
from collections.abc import Sequence

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from gated_interp.analysis.attribution import read_pairs
from gated_interp.analysis.block_measures import rows_at_once
from gated_interp.analysis.heads import chosen_layer
from gated_interp.analysis.rest import Rest
from gated_interp.analysis.text_holders import TextHolders, text_holders
from gated_interp.analysis.text_pairs import names_for, own_text
from gated_interp.anatomy.batch import Batch, Mask, Tokens
from gated_interp.anatomy.stream import HeadReadout, Written
from gated_interp.core.precision import wide
from gated_interp.core.renamed import layer_first
from gated_interp.metrics.predictions import next_token_loss
from gated_interp.metrics.reconstruction import writes_at
from gated_interp.models.toy import HookedTransformer
from gated_interp.replacements.replacement import active

SEQUENCES, SEED = 64, 0


@dataclasses.dataclass(frozen=True, repr=False)
class Readings:
    """What the heads of a layer do on some sequences.

    Attributes:
        table: one row per head, those that the model misses most first: ``head``; ``active``, the
            share of positions at which it writes; ``share`` of the squared length of all that heads
            write;
            ``effect``, by how many nats per token the loss rises without it (zero-ablated), and
            ``effect_low``, ``effect_high``, its 95% interval from sequence to sequence;
            ``held``, the share of positions it is the sole holder of, and ``tokens`` and
            ``entropy`` (nats) of what it holds; ``sources``, ``destinations``, ``outputs``: the
            tokens that it reads from, writes at and raises more than their base rate, by
            ``share * log(lift)``.
        details: tokens one by one, those with the largest ``share * log(lift)``: ``head``, ``role``
            (``source``, ``destination``, ``output``), ``token``, ``share`` of what the head does in
            this role, ``base``, and ``lift = share / base``. The base rate is what chance would
            give: of a source, the share read by a head that attends evenly to its own and all
            earlier tokens; of a destination, how often the token stands in the text; of an output,
            how often it comes next there, each token counted once more than it does.
        contexts: where each head writes most: ``head``, ``rank``, ``row`` and ``position`` in
            ``tokens``, ``length`` of the write, ``output`` that it raises most.
        reads: ``[context key_pos]``, per context what the head reads of each key: pattern times
            gate times the length of the key's value as it is written.
        attends: ``[context key_pos]``, the same without the gate.
        tokens: ``[batch pos]``, that all this was read on.
        layer: whose heads they are.

    Examples:
        >>> from gated_interp.models.analytic import manual_model
        >>> truth = manual_model(2, 3)
        >>> read_heads(truth.model, tokens=truth.task.sample(20, seed=0).tokens)
        Readings(layer 0, 2 heads, 220 tokens)
    """

    table: pd.DataFrame
    details: pd.DataFrame
    contexts: pd.DataFrame
    reads: Float[Tensor, "context key_pos"]
    attends: Float[Tensor, "context key_pos"]
    tokens: Int[Tensor, "batch pos"]
    layer: int

    def __repr__(self) -> str:
        return (
            f"Readings(layer {self.layer}, {len(self.table)} heads, {self.tokens.numel()} tokens)"
        )


@layer_first
@torch.no_grad()
def read_heads(
    model: HookedTransformer,
    layer: int | None = None,
    tokens: Tokens | None = None,
    *,
    names: Sequence[str] | None = None,
    top: int = 5,
    contexts: int = 5,
    attention_mask: Mask | None = None,
) -> Readings:
    """Read every head of ``layer``, the model's own or those of a block in its place.

    How much a head reads from a key is its pattern times its gate times the length of the key's
    value as it is written (value-weighted attention); what it raises at a position is the token
    that its write raises most, counted by the write's length. The first position is left out.

    Args:
        layer: may be left out where it is the only one.
        tokens: sequences to read; 64 of the ``test`` part of the model's own text unless given.
        names: of tokens; the task's unless given.
        top: tokens named of each role.
        contexts: places named of each head, each from another sequence.
        attention_mask: ``[batch pos]``, 1 at tokens and 0 at padding, which nobody reads or writes.

    Raises:
        GatedInterpError: no such layer, none named of several, no tokens and no text, a layer that
            has no attention, or tokens the model cannot read.

    Examples:
        >>> from gated_interp.models.analytic import manual_model
        >>> truth = manual_model(2, 3)  # trigram 1 is written by head 0, 2 by head 1, 3 by both
        >>> found = read_heads(truth.model, tokens=truth.task.sample(200, seed=0).tokens)
        >>> found.table.set_index("head").loc[0, ["sources", "outputs"]].tolist()
        [['A'], ['C1']]
    """
    layer = chosen_layer(model, layer)
    batch = own_text(model, tokens, "test", SEQUENCES, SEED, attention_mask)
    batch.require_loss()
    return readings(model, layer, batch, names_for(model, names), top=top, contexts=contexts)


@torch.no_grad()
def readings(
    model: HookedTransformer,
    layer: int,
    batch: Batch,
    names: Sequence[str],
    *,
    top: int = 5,
    contexts: int = 5,
    held: TextHolders | None = None,
    effects: pd.DataFrame | None = None,
) -> Readings:
    """:func:`read_heads`, where some of it may be known.

    Args:
        held: of :func:`~gated_interp.analysis.text_holders.text_holders`.
        effects: a row per head, ``head``, ``effect``, ``effect_low`` and ``effect_high``.
    """
    held = text_holders(model, layer, batch) if held is None else held
    z, totals = _totals(model, batch, layer)
    base = _base_rates(model, batch)
    W_O, later = Written.of(model, layer).W_O, batch.later
    # The first position and padding are left out.
    lengths, writes = writes_at(z, W_O).clamp(min=0).sqrt(), active(z, W_O, counted=batch.real)
    lengths = lengths * batch.counted[..., None]
    heads, own = lengths.shape[-1], held.by_head().to_dict("records")
    details = pd.concat(
        [_details(role, each, base[role], names, top) for role, each in totals.items()]
    )
    more = details[details["lift"] > 1]
    energy = lengths.double().square().sum((0, 1))
    rows = []
    for head in range(heads):
        mine = more[more["head"] == head]
        said = {f"{r}s": mine.loc[mine["role"] == r, "token"].tolist() for r in totals}
        rows.append(
            {
                "head": head,
                "active": float(writes[..., head][later].double().mean()),
                "share": float(energy[head] / energy.sum().clamp(min=1e-12)),
                "held": float(own[head]["share"]),
                "tokens": int(own[head]["tokens"]),
                "entropy": float(own[head]["entropy"]),
                **said,
            }
        )
    effects = _effects(model, batch, layer) if effects is None else effects
    table = pd.DataFrame(rows).merge(effects, on="head")
    table = table.sort_values("effect", ascending=False, ignore_index=True)
    places, reads, attends = _contexts(model, batch, layer, lengths, names, contexts)
    return Readings(table, details, places, reads, attends, batch.tokens, layer)


def _effects(model: HookedTransformer, batch: Batch, layer: int) -> pd.DataFrame:
    """By how much the loss rises without each head."""
    rest, heads, losses = Rest(model, layer, batch), len(model.blocks[layer].attn.W_O), []
    step = min(rows_at_once(batch.tokens), rest.rows_at_once())
    for first in range(0, len(batch), step):
        rows, each = slice(first, first + step), []
        for head in range(-1, heads):
            z = rest.z[rows].clone()
            if head >= 0:
                z[:, :, head] = 0.0
            part = batch[rows]
            each.append(next_token_loss(rest.logits(z, rows=rows), part.tokens, part.known))
        losses.append(torch.stack(each).double())
    loss = torch.cat(losses, 1).cpu()
    rise = loss[1:] - loss[0]
    mean, n = rise.mean(1), rise.shape[1]
    half = 1.96 * rise.std(1) / n**0.5 if n > 1 else torch.full_like(mean, torch.nan)
    ends = {"effect": mean, "effect_low": mean - half, "effect_high": mean + half}
    return pd.DataFrame({"head": range(heads), **{k: v.tolist() for k, v in ends.items()}})


def read_attention(
    model: HookedTransformer, batch: Batch, layer: int
) -> tuple[
    Float[Tensor, "batch pos head_index d_head"],
    Float[Tensor, "batch head_index query_pos key_pos"],
    Float[Tensor, "batch head_index query_pos key_pos"],
]:
    """What each head writes with, what it reads of each key, and what it would without gates.

    It writes with ``z`` (over the scale of a norm behind the layer).

    Pattern times gate times the length of the value as it is written (value-weighted attention).
    """
    prefix = f"blocks.{layer}.attn."
    names = [prefix + n for n in ("hook_z", "hook_v", "hook_pattern", "hook_gated_pattern")]
    written = Written.of(model, layer)
    _, cache = batch.cache(model, [*names, *written.scales], stop_at_layer=layer + 1)
    gated, v = read_pairs(cache, layer, model.blocks[layer].attn)
    size = writes_at(v, written.W_O).clamp(min=0).sqrt().permute(0, 2, 1)[:, :, None]
    z, attends, scale = wide(cache[names[0]]), wide(cache[names[2]]), written.scale(cache)
    if isinstance(scale, Tensor):  # of the query's position
        z, size = z / scale[..., None], size / scale[:, None]
    return z, gated * size, attends * size


def _totals(
    model: HookedTransformer, batch: Batch, layer: int
) -> tuple[
    Float[Tensor, "batch pos head_index d_head"], dict[str, Float[Tensor, "head_index d_vocab"]]
]:
    """Every head's ``z``, and per role what each head does with each token."""
    W_O, readout = Written.of(model, layer).W_O, HeadReadout.of(model, layer).matrix
    heads, vocabulary = len(W_O), {"output": model.cfg.d_vocab_out}
    totals = {
        role: torch.zeros(heads, vocabulary.get(role, model.cfg.d_vocab)).to(W_O)
        for role in ("source", "destination", "output")
    }
    every = []
    for part in batch.split(rows_at_once(batch.tokens)):
        z, reads, _ = read_attention(model, part, layer)
        length, later = writes_at(z, W_O).clamp(min=0).sqrt(), part.later
        every.append(z)
        by_key = (reads * later[:, None, :, None]).sum(2).permute(1, 0, 2).flatten(1)
        totals["source"].index_add_(1, part.tokens.flatten(), by_key)
        totals["destination"].index_add_(1, part.tokens[later], length[later].T)
        for head in range(heads):
            said = (z[:, :, head][later] @ readout[head]).argmax(-1)
            totals["output"][head].index_add_(0, said, length[..., head][later])
    return torch.cat(every), totals


def _base_rates(model: HookedTransformer, batch: Batch) -> dict[str, Float[Tensor, " d_vocab"]]:
    """By role, the share of each token where nothing but the text decides; see ``details``."""
    tokens, later, counted = batch.tokens, batch.later, batch.counted
    each = later.double() / counted.cumsum(1).clamp(min=1)
    evenly = each.flip(1).cumsum(1).flip(1) * counted  # what all later queries read of a key
    source = tokens.new_zeros(model.cfg.d_vocab, dtype=torch.double)
    found = {
        "source": source.index_add(0, tokens.flatten(), evenly.flatten()),
        "destination": tokens[later].bincount(minlength=model.cfg.d_vocab).double(),
        "output": 1.0 + tokens[:, 1:][batch.predicts].bincount(minlength=model.cfg.d_vocab_out),
    }
    return {role: rate / rate.sum() for role, rate in found.items()}


def _details(
    role: str,
    totals: Float[Tensor, "head_index d_vocab"],
    base: Float[Tensor, " d_vocab"],
    names: Sequence[str],
    top: int,
) -> pd.DataFrame:
    share = totals / totals.sum(1, keepdim=True).clamp(min=1e-12)
    lift = share / base.to(share).clamp(min=1e-12)
    # Frequent tokens have a large share in every head; what is beyond chance counts.
    tokens = (share * lift.clamp(min=1e-12).log()).topk(min(top, len(base))).indices
    each = [values.gather(1, tokens).tolist() for values in (share, lift)]
    rates = base[tokens].tolist()
    return pd.DataFrame(
        [
            {
                "head": head,
                "role": role,
                "token": names[token],
                "share": share_of,
                "base": base_of,
                "lift": lift_of,
            }
            for head, row in enumerate(zip(*each, rates, tokens.tolist(), strict=True))
            for share_of, lift_of, base_of, token in zip(*row, strict=True)
            if share_of > 0
        ],
        columns=["head", "role", "token", "share", "base", "lift"],
    )


def _contexts(
    model: HookedTransformer,
    batch: Batch,
    layer: int,
    lengths: Float[Tensor, "batch pos head_index"],
    names: Sequence[str],
    contexts: int,
) -> tuple[pd.DataFrame, Float[Tensor, "context key_pos"], Float[Tensor, "context key_pos"]]:
    longest, where = (lengths * batch.later[..., None]).max(1)
    readout, rows, kept = HeadReadout.of(model, layer).matrix, [], []
    for head in range(lengths.shape[-1]):
        best = longest[:, head].topk(min(contexts, len(batch)))
        best_rows = best.indices[best.values > 0]
        if not len(best_rows):
            continue
        z, *weights = read_attention(model, batch[best_rows], layer)
        for rank, row in enumerate(best_rows.tolist()):
            position = int(where[row, head])
            said = (z[rank, position, head] @ readout[head]).argmax()
            rows.append(
                {
                    "head": head,
                    "rank": rank + 1,
                    "row": row,
                    "position": position,
                    "length": float(longest[row, head]),
                    "output": names[int(said)],
                }
            )
            kept.append(torch.stack([weight[rank, head, position] for weight in weights]))
    columns = ["head", "rank", "row", "position", "length", "output"]
    none = lengths.new_zeros(0, 2, batch.tokens.shape[1])
    both = torch.stack(kept) if kept else none
    return pd.DataFrame(rows, columns=columns), both[:, 0], both[:, 1]
