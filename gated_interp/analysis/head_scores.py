"""The published scores of heads in one table, and which path of an induction head carries it."""

from collections.abc import Sequence
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from gated_interp.analysis.attribution import read_pairs
from gated_interp.analysis.circuits import composition_scores, copying_scores
from gated_interp.analysis.heads import (
    Head,
    HeadLike,
    all_heads,
    head_counts,
    head_name,
    require_heads,
)
from gated_interp.analysis.induction import (
    RANDOM_TOKENS,
    attention_in,
    bos_of_model,
    different_tokens,
    induction_scores,
    repeated_random_tokens,
)
from gated_interp.analysis.patching import path_patch
from gated_interp.analysis.text_pairs import own_text
from gated_interp.anatomy.batch import Batch, Mask, Tokens, token_vocabulary
from gated_interp.anatomy.stream import HeadReadout
from gated_interp.core.errors import GatedInterpError
from gated_interp.core.precision import wide
from gated_interp.core.seeds import derive
from gated_interp.core.streams import Stream
from gated_interp.metrics.intervals import mean_interval
from gated_interp.models.toy import HookedTransformer

SEQUENCES = 64


@torch.no_grad()
def head_scores(
    model: HookedTransformer,
    tokens: Tokens | None = None,
    *,
    n: int = 50,
    seed: int = 0,
    bos: int | None = None,
    attention_mask: Mask | None = None,
) -> pd.DataFrame:
    """How far each head attends to the token before, repeats, copies, and reads earlier heads.

    Args:
        tokens: text; 64 sequences of the ``test`` part of the model's own unless given.
        n: sequences of random tokens.
        seed: of these.
        bos: the token they begin with; that of the model's task unless given.
        attention_mask: of ``tokens``, 1 at tokens and 0 at padding.

    Returns:
        One row per head of every layer, a block's where one is spliced: ``layer``, ``head``;
        ``previous_token`` on the text, ``prefix_matching`` and ``per_copy`` on repeated random
        tokens (:func:`~gated_interp.analysis.induction.induction_scores`); ``copying``
        (:func:`activation_copying`); ``ov_copying``, of the OV circuit's eigenvalues
        (:func:`~gated_interp.analysis.circuits.copying_scores`; missing of heads of one dimension,
        where it can only be 1 or -1); ``q_composition``, ``k_composition``, ``v_composition``: the
        highest composition score with a head of an earlier layer, less what is expected of random
        ones, and ``q_sender`` and so on, that head; missing in layer 0.

    Raises:
        GatedInterpError: no text, tokens the model cannot read, no token to begin with, or a layer
            without attention.

    Examples:
        >>> from gated_interp.models.analytic_tasks import induction_model
        >>> truth = induction_model()
        >>> found = head_scores(truth.model, truth.task.sample(50, seed=0).tokens, n=10, bos=0)
        >>> found[["previous_token", "prefix_matching", "copying"]].round(1).values.tolist()
        [[1.0, 0.0, nan], [0.1, 1.0, 1.0]]
        >>> found["k_sender"][1], bool(found["k_composition"][1] > 0)
        ('L0H0', True)
    """
    text = own_text(model, tokens, "test", SEQUENCES, attention_mask=attention_mask)
    repeated = repeated_random_tokens(model, n, seed=seed, bos=bos)
    scores = induction_scores(model, repeated)
    scores["previous_token"] = induction_scores(model, text)["previous_token"]
    scores["copying"] = activation_copying(model, n, seed=seed, bos=bos)["copying"]
    narrow = [model.blocks[layer].attn.W_O.shape[1] == 1 for layer in scores["layer"]]
    scores["ov_copying"] = copying_scores(model)["copying_score"].mask(pd.Series(narrow))
    return scores.join(_compositions(model))[
        ["layer", "head", "previous_token", "prefix_matching", "per_copy", "copying", "ov_copying"]
        + [f"{kind}_{what}" for kind in "qkv" for what in ("composition", "sender")]
    ]


def _compositions(model: HookedTransformer) -> pd.DataFrame:
    """Of every head, its highest composition score of each kind and with whom."""
    table = composition_scores(model)
    table["excess"] = table["score"] - table["expected"]
    rows = []
    for layer, head in all_heads(model):
        mine = table[(table["receiver_layer"] == layer) & (table["receiver_head"] == head)]
        row: dict[str, Any] = {}
        for kind in "QKV":
            of_kind = mine[mine["kind"] == kind]
            best = of_kind.nlargest(1, "excess").iloc[0] if len(of_kind) else None
            row[f"{kind.lower()}_composition"] = float("nan") if best is None else best["excess"]
            row[f"{kind.lower()}_sender"] = (
                None
                if best is None
                else head_name((int(best["sender_layer"]), int(best["sender_head"])))
            )
        rows.append(row)
    return pd.DataFrame(rows)


@torch.no_grad()
def activation_copying(
    model: HookedTransformer, n: int = 50, *, seed: int = 0, bos: int | None = None
) -> pd.DataFrame:
    """How far each head raises the token that it attends to, -1 to 1.

    25 different random tokens behind the token that a sequence begins with. What a head writes from
    each key to the logits of these 25, less its mean over them, is cut off below zero and weighted
    by the attention to that key, behind the gate where there is one; ``copying`` is the share of it
    that goes to the key's own token, times two less one. After Olsson et al. (2022), "copying". The
    final norm's scale is as it is; attention to the first token is left out.

    Args:
        n: sequences.
        seed, bos: as :func:`~gated_interp.analysis.induction.repeated_random_tokens`.

    Returns:
        ``layer``, ``head``, ``copying``; missing of a head that raises nothing.

    Examples:
        >>> from gated_interp.models.analytic_tasks import induction_model
        >>> found = activation_copying(induction_model().model, 5, bos=0)
        >>> found["copying"].round(2).tolist()  # the first head raises no token
        [nan, 1.0]
    """
    bos = bos_of_model(model, bos)
    length = min(RANDOM_TOKENS, model.cfg.n_ctx - 1, token_vocabulary(model) - 1)
    drawn = different_tokens(model, n, length, seed, bos)
    tokens = torch.cat([torch.full_like(drawn[:, :1], bos), drawn], 1)
    _, cache = Batch.of(model, tokens).cache(
        model, lambda name: name.endswith(("pattern", "hook_v", "hook_scale"))
    )
    rows = []
    for layer, heads in enumerate(head_counts(model)):
        readout = HeadReadout.of(model, layer)
        scale = readout.scale(cache)
        attention = attention_in(cache, layer, heads)
        if isinstance(scale, Tensor):
            attention = attention / scale.movedim(2, 1)
        attention = attention[:, :, 1:, 1:]
        weight = attention.sum(2).transpose(1, 2)  # [batch key_pos head_index]
        _, v = read_pairs(cache, layer, model.blocks[layer].attn)
        raised = _raised(readout, v[:, 1:], drawn)
        own = raised.diagonal(0, 1, 3).permute(0, 2, 1)
        shares = (weight * own).sum((0, 1)).double() / (weight * raised.sum(3)).sum((0, 1)).double()
        rows += [
            {"layer": layer, "head": h, "copying": 2 * float(shares[h]) - 1} for h in range(heads)
        ]
    return pd.DataFrame(rows)


def _raised(
    readout: HeadReadout,
    v: Float[Tensor, "batch key_pos head_index d_head"],
    drawn: Int[Tensor, "batch key_pos"],
) -> Float[Tensor, "batch key_pos head_index token"]:
    """How far each key raises each of the row's tokens above their mean, at an attention of one."""
    columns = readout.matrix[:, :, drawn]
    logits = torch.einsum("bkhd,hdbt->bkht", v, columns)
    return (logits - logits.mean(-1, keepdim=True)).relu()


@torch.no_grad()
def induction_paths(
    model: HookedTransformer,
    receiver: HeadLike | None = None,
    senders: Sequence[HeadLike] | None = None,
    *,
    n: int = 20,
    seed: int = 0,
    bos: int | None = None,
) -> pd.DataFrame:
    """What each path from an earlier head to an induction head is worth, by path patching.

    On repeated random tokens: what the sender writes is taken from sequences of other tokens, and
    only the receiver's queries, keys, values or (of a gated head) gate scores see it. An induction
    head that reads where its tokens stood before needs the path from a previous-token head to its
    keys (K-composition; Elhage et al., 2021); that head's paths to its other inputs, and other
    heads' paths to its keys, are the controls.

    Args:
        receiver: ``(layer, head)`` or its name, such as ``"L1H0"``; the head of a later layer with
            the highest prefix matching unless given.
        senders: heads of earlier layers, named likewise; all of them unless given.
        n: sequences.
        seed: of both sets of tokens.
        bos: the token they begin with; that of the model's task unless given.

    Returns:
        One row per ``sender``, ``receiver``, ``input`` (``K``, ``Q``, ``V``, ``gate``): ``effect``,
        by how many nats the log-probability of the right next token falls, mean over the repeats,
        with ``low`` and ``high`` (95%, over sequences) and ``n``. Largest first.

    Raises:
        GatedInterpError: a model of one layer, no such head, a sender that is not in an earlier
            layer, or as :func:`~gated_interp.analysis.induction.repeated_random_tokens`.

    Examples:
        >>> from gated_interp.models.analytic_tasks import induction_model
        >>> found = induction_paths(induction_model().model, n=5, bos=0)
        >>> found[["sender", "receiver", "input"]].values.tolist()[0]
        ['L0H0', 'L1H0', 'K']
        >>> found["effect"].gt(0.1).tolist()
        [True, False, False]
    """
    if model.cfg.n_layers < 2:
        raise GatedInterpError("one-layer-only")
    tokens = repeated_random_tokens(model, n, seed=seed, bos=bos)
    other = repeated_random_tokens(model, n, seed=derive(seed, Stream.PATH_SOURCE), bos=bos)
    best = _receiver(model, tokens) if receiver is None else receiver
    layer, head = require_heads(model, [best])[0]
    earlier = [h for h in all_heads(model) if h[0] < layer]
    if senders is not None and len(senders):
        earlier = require_heads(model, senders)
    late = [h for h in earlier if h[0] >= layer]
    if late or not earlier:
        first = head_name(late[0]) if late else "No head"
        raise GatedInterpError("sender-not-earlier", head=first, layer=layer)
    token_vocabulary(model)
    intact, rows = _repeated_log_prob(model(tokens), tokens), []
    inputs = {"K": "hook_k", "Q": "hook_q", "V": "hook_v", "gate": "hook_gate_scores"}
    for sender in earlier:
        for name, hook in inputs.items():
            place = f"blocks.{layer}.attn.{hook}"
            if place not in model.hook_dict:
                continue
            patched = path_patch(model, tokens, other, sender, place, receiver_head=head)
            fell = (intact - _repeated_log_prob(patched, tokens)).cpu().numpy()
            low, high = mean_interval(fell)
            who = {"sender": head_name(sender), "receiver": head_name((layer, head))}
            size = {"effect": float(fell.mean()), "low": low, "high": high, "n": len(fell)}
            rows.append({**who, "input": name, **size})
    return pd.DataFrame(rows).sort_values(
        "effect", ascending=False, kind="stable", ignore_index=True
    )


def _receiver(model: HookedTransformer, tokens: Int[Tensor, "batch pos"]) -> Head:
    scores = induction_scores(model, tokens).query("layer > 0")
    best = scores.nlargest(1, "prefix_matching").iloc[0]
    return int(best["layer"]), int(best["head"])


def _repeated_log_prob(
    logits: Float[Tensor, "batch pos d_vocab"], tokens: Int[Tensor, "batch pos"]
) -> Float[Tensor, " batch"]:
    """Mean log-probability of the right next token from the second copy on, per sequence."""
    length = int((tokens[0, 2:] == tokens[0, 1]).nonzero()[0]) + 1
    right = wide(logits).log_softmax(-1)[:, :-1].gather(-1, tokens[:, 1:, None])[..., 0]
    return right[:, length + 1 :].mean(1).double()
