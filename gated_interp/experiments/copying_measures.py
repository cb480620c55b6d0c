"""What the study of copying measures: who carries a layer's copying, and what a block costs."""

import dataclasses
import functools
from typing import Any

import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from gated_interp.analysis.head_effects import HeadEffects, head_effects
from gated_interp.analysis.heads import intervened
from gated_interp.analysis.induction import induction_scores
from gated_interp.analysis.rest import Rest
from gated_interp.analysis.sharing import HeadSharing, head_sharing
from gated_interp.anatomy.batch import Batch
from gated_interp.core.config import Config, positive
from gated_interp.core.errors import GatedInterpError
from gated_interp.core.seeds import derive
from gated_interp.core.streams import Stream
from gated_interp.metrics.predictions import kl_divergence, next_token_loss
from gated_interp.metrics.reconstruction import l0, squared_error, unexplained, variation
from gated_interp.models.language_model import TextTransformer
from gated_interp.models.toy import HookedTransformer
from gated_interp.replacements.replacement import Replacement, active
from gated_interp.replacements.splice import unsplice
from gated_interp.tasks.mixture import RandomRepeats
from gated_interp.tasks.text import TextTask

# The loss at a position rises by this much (nats) without the layer: there it copies.
COPIES = 0.5


@dataclasses.dataclass(frozen=True, kw_only=True)
class CopyingConfig(Config):
    """What the study trains and measures.

    The first sentence of each field is also the help of its command-line option.

    Attributes:
        steps: Train each block for this many steps of some 1,000 positions.
        finetune: Train for this many further steps on the model's own predictions.
        focus_weight: Weigh the error this much more where the text repeats itself.
        fvu: Aim for this error (FVU): lower is more faithful, higher is easier to read.
        sequences: Capture this many sequences of text and of repeated tokens.
        n_positions: Capture this many tokens of each sequence.
        period: Measure on this many random tokens, that are then repeated once.
        repeats: Measure on this many sequences of repeated tokens.
        texts: Measure on this many held-out sequences of text.
        chosen: Choose the order in which heads are added on this many repeated sequences, which
            are not those that are measured.
    """

    steps: int = 500
    finetune: int = 120
    focus_weight: float = 10.0
    fvu: float = 0.1
    sequences: int = 1400
    n_positions: int = 128
    period: int = 25
    repeats: int = 12
    texts: int = 16
    chosen: int = 6

    def problems(self) -> list[GatedInterpError]:
        names = [f.name for f in dataclasses.fields(self) if f.name != "finetune"]
        found = positive(self, *names)
        if self.finetune < 0:
            found.append(self.problem("config-negative", field="finetune", value=self.finetune))
        return found


def repeats_of(model: TextTransformer, config: CopyingConfig, n: int, seed: int) -> Batch:
    """Random tokens, each sequence said twice."""
    assert model.task is not None
    source = RandomRepeats(model.cfg.d_vocab, 2 * config.period + 1, model.task.bos)
    return Batch.of(model, source.sample(n, seed).tokens)


@torch.no_grad()
def measured(
    model: TextTransformer, layer: int, task: TextTask, config: CopyingConfig
) -> tuple[dict[str, Any], pd.DataFrame]:
    """The row of what stands at ``layer``, without what names it, and a row for each of its heads.

    Interventions are measured on repeated random tokens; the order in which heads are added was
    chosen on others.
    """
    replaced = isinstance(model.blocks[layer].attn, Replacement)
    original = unsplice(model) if replaced else model
    chosen = repeats_of(model, config, config.chosen, derive(0, Stream.CHOSEN_REPEATS))
    repeats = repeats_of(model, config, config.repeats, derive(0, Stream.MEASURED_REPEATS))
    text = Batch.of(model, task.part("test").sample(config.texts, derive(0, Stream.TEST)).tokens)
    again = torch.zeros_like(repeats.tokens, dtype=torch.bool)
    again[:, config.period + 1 : -1] = True
    first = head_effects(model, layer, chosen, positions=again[: len(chosen)])
    effects = head_effects(model, layer, repeats, positions=again, order=first.order)

    ours = Rest(model, layer, repeats)
    theirs = Rest(original, layer, repeats) if replaced else ours
    there, off = theirs.losses(None, again), theirs.losses(_mean(theirs), again)
    copies = torch.zeros_like(again)
    copies[again] = off - there > COPIES
    sharing = head_sharing(model, layer, repeats)
    scores = induction_scores(model, chosen)
    scores = scores[scores["layer"] == layer].drop(columns=["layer", "head"])
    row: dict[str, Any] = {
        "heads": effects.off.shape[1],
        "loss": float(effects.intact.mean()),
        "loss_original": float(there.mean()),
        "loss_off": float(off.mean()),
        "effect": float(effects.effect.mean()),
        **_text(model, original, layer, text),
        **_written(model, original, layer, repeats, text),
        **_carried(effects, ours, again),
        **_geometry(head_sharing(model, layer, text), "text"),
        **_geometry(sharing, "repeats", again),
        **_geometry(sharing, "copies", copies),
        **path_effects(ours, again),
        "prefix_matching": float(scores["prefix_matching"].max()),
    }
    heads = effects.table().iloc[:-1].reset_index(drop=True)
    rank = {h: i for i, h in enumerate(effects.order)}
    heads = heads.assign(order=[rank[h] for h in range(len(heads))])
    return row, pd.concat([heads, scores.reset_index(drop=True)], axis=1)


def _mean(rest: Rest) -> Float[Tensor, "batch pos head_index d_head"]:
    """Every head's mean ``z``, first positions left out, everywhere."""
    return rest.z[rest.batch.later].mean(0).expand_as(rest.z)


def _text(
    model: HookedTransformer, original: HookedTransformer, layer: int, batch: Batch
) -> dict[str, float]:
    """Predictions on text: as the layer is, and of the original with and without it."""
    theirs = Rest(original, layer, batch)
    ours = theirs if original is model else Rest(model, layer, batch)
    mean, found = _mean(theirs), []
    for i in range(len(batch)):
        rows = slice(i, i + 1)
        intact, tokens = theirs.logits(rows=rows), batch.tokens[rows]
        now = intact if ours is theirs else ours.logits(rows=rows)
        found.append(
            {
                "kl_text": kl_divergence(intact, now),
                "kl_off": kl_divergence(intact, theirs.logits(mean[rows], rows=rows)),
                "loss_text": next_token_loss(now, tokens),
                "loss_text_original": next_token_loss(intact, tokens),
            }
        )
    return {name: float(torch.cat([each[name] for each in found]).mean()) for name in found[0]}


def _written(
    model: HookedTransformer,
    original: HookedTransformer,
    layer: int,
    repeats: Batch,
    text: Batch,
) -> dict[str, float]:
    """How much of what the layer writes is written, by how many heads and gates."""
    found: dict[str, float] = {}
    at = f"blocks.{layer}"
    for name, batch in (("fvu", repeats), ("fvu_text", text)):
        outs = []
        for each in (original, model):
            hooks = [f"{at}.hook_attn_out", f"{at}.attn.hook_z"]
            gates = f"{at}.attn.hook_gate"
            hooks += [gates] if gates in each.hook_dict and batch is repeats else []
            _, cache = batch.cache(each, hooks, stop_at_layer=layer + 1)
            outs.append(cache[hooks[0]][batch.later][None])
        wanted, written = outs
        found[name] = float(
            unexplained(squared_error(written, wanted).sum(), variation(wanted).sum())
        )
        if batch is repeats:
            W_O = model.blocks[layer].attn.W_O
            writes = active(cache[hooks[1]], W_O, 0.1, batch.later)
            found["active"] = float(writes[batch.later].sum(-1).double().mean())
            found["gates_per_pair"] = float(l0(cache[gates])) if gates in hooks else len(W_O)
    return found


def _carried(effects: HeadEffects, rest: Rest, again: Bool[Tensor, "batch pos"]) -> dict[str, Any]:
    """What the first heads carry; missing where the layer's effect is within noise of zero."""
    names = ("top1", "top2", "top2_low", "top2_high", "necessary2", "spread")
    if not effects.matters:
        return {"carriers": None, **dict.fromkeys(names, float("nan"))}
    carried = effects.carriers_table().set_index("heads")
    two, mean = effects.order[:2], rest.z[rest.batch.counted].mean(0)

    def without(z: Tensor) -> Tensor:
        z = z.clone()
        z[:, :, two] = mean[two]
        return z

    lost = float(rest.losses(without, again).mean() - effects.intact.mean())
    return {
        "carriers": effects.carriers(),
        "top1": float(carried["share"][1]),
        "top2": float(carried["share"][2]),
        "top2_low": float(carried["share_low"][2]),
        "top2_high": float(carried["share_high"][2]),
        "necessary2": lost / float(effects.effect.mean()),
        "spread": effects.spread,
    }


def _geometry(
    sharing: HeadSharing, name: str, where: Bool[Tensor, "batch pos"] | None = None
) -> dict[str, float]:
    """Medians of the geometry of a layer's writes at some positions."""
    if where is not None and not bool(where.any()):
        return {f"participation_{name}": float("nan"), f"alone_{name}": float("nan")}
    table = sharing.table(where).set_index("measure")
    return {
        f"participation_{name}": float(table["median"]["participation"]),
        f"alone_{name}": float(table["mean"]["alone"]),
    }


@torch.no_grad()
def path_effects(rest: Rest, where: Bool[Tensor, "batch pos"]) -> dict[str, float]:
    """How the loss rises where only keys (queries, values, gates) miss the previous-token head.

    The head of an earlier layer that attends most to the token before is mean-ablated; what the
    layer's keys then are is put into a run in which everything else is as it was, and so on. (Path
    patching, with every route from that head to the layer open.)

    Args:
        rest: of the layer, on the tokens to measure on.
    """
    model, layer, batch = rest.model, rest.layer, rest.batch
    names = {"queries": "hook_q", "keys": "hook_k", "values": "hook_v", "gates": "hook_gate_scores"}
    hooks = {name: f"blocks.{layer}.attn.{hook}" for name, hook in names.items()}
    there = {name: hook for name, hook in hooks.items() if hook in model.hook_dict}
    found = dict.fromkeys(names, float("nan"))
    scores = induction_scores(model, batch)
    before = scores[scores["layer"] < layer]
    if not len(before):
        return found
    sender = before.sort_values("previous_token").iloc[-1]
    sender_layer, head = int(sender["layer"]), int(sender["head"])

    def without(x: Tensor) -> Tensor:
        x = x.clone()
        x[:, :, head] = x[:, 1:, head].mean((0, 1))
        return x

    seen: dict[str, Tensor] = {}
    keeping = {hook: functools.partial(seen.__setitem__, hook) for hook in there.values()}
    with intervened(model, {f"blocks.{sender_layer}.attn.hook_z": without, **keeping}):
        batch.logits(model, return_type=None, stop_at_layer=layer + 1)

    def put(hook: str) -> Float[Tensor, "batch pos head_index d_head"]:
        """What the heads hold where the activation at ``hook`` is that without the sender."""
        z: list[Tensor] = []
        keep = {f"blocks.{layer}.attn.hook_z": lambda x: z.append(x.clone())}
        with intervened(model, {hook: lambda _: seen[hook], **keep}):
            model(rest.resid_pre, start_at_layer=layer, stop_at_layer=layer + 1)
        return z[0]

    intact = rest.losses(None, where).mean()
    for name, hook in there.items():
        found[name] = float(rest.losses(put(hook), where).mean() - intact)
    return found
