"""What each head writes for, and what is left without the heads that hold something."""

from typing import Any

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from gated_interp.analysis.heads import all_heads, head_counts, intervened
from gated_interp.analysis.holders import EXAMPLES, SEED
from gated_interp.analysis.replacements import Reference, replacements
from gated_interp.core.errors import GatedInterpError
from gated_interp.metrics.predictions import kl_divergence, leads
from gated_interp.metrics.reconstruction import OPEN, fvu, writes_at
from gated_interp.models.toy import HookedTransformer
from gated_interp.replacements.splice import originals, unsplice
from gated_interp.tasks.skip_trigrams import SkipTrigramTask, TrigramBatch
from gated_interp.tasks.task import ProbedTask, Task


@torch.no_grad()
def head_roles(
    model: HookedTransformer,
    task: ProbedTask,
    found: dict[int, list[int]],
    *,
    n: int = EXAMPLES,
    seed: int = SEED,
) -> pd.DataFrame:
    """What each head of a one-layer model writes for, on ordinary sequences.

    Args:
        found: the holders, per trigram.
        n, seed: of the sequences.

    Returns:
        One row per head. ``head``; ``trigram``, the one it holds (missing where it holds none, the
        first of several); ``energy``, its share of the sum over heads and positions of the squared
        length of what each head writes; ``purity``, the share of its own energy that falls where
        its trigram is answered (at its B, an A open before it); ``purity_any``, at any trigram's B
        so; ``open_pairs``, the share of causal (query, key) pairs at which its gate is open (above
        0.001); ``open_there``, the share of those pairs at (its B, the A that it answers),
        of trigrams only.
        Shares are 0 to 1; a head that writes nothing, has no gate or holds nothing has no number.

    Examples:
        >>> from gated_interp.models.analytic import manual_model
        >>> truth = manual_model(2, 3)
        >>> roles = head_roles(truth.model, truth.task, {1: [0], 2: [1], 3: []}, n=200)
        >>> roles["energy"].round(1).tolist()
        [0.5, 0.5]
    """
    batch, energy, answered, gates = _writes(model, task, n, seed)
    totals = energy.sum((0, 1))
    gate = None if gates is None else gates > OPEN
    causal = torch.ones(2 * answered.shape[1:], dtype=torch.bool).tril()
    rows: list[dict[str, float | None]] = []
    for h in range(head_counts(model)[0]):
        held = [b for b, heads in found.items() if h in heads]
        row: dict[str, float | None] = {"head": h, "trigram": held[0] if held else None}
        row["energy"] = _share(totals[h], totals.sum())
        own = energy[..., h]
        row["purity"] = _share(own[answered == held[0]].sum(), totals[h]) if held else None
        row["purity_any"] = _share(own[answered > 0].sum(), totals[h])
        row["open_pairs"] = row["open_there"] = None
        if gate is not None:
            is_open = gate[:, h] & causal.to(gate.device)
            row["open_pairs"] = float(is_open.sum() / (answered.shape[0] * causal.sum()))
            if held and isinstance(batch, TrigramBatch):
                mine = batch.trigram == held[0]
                place = (batch.example[mine], batch.destination_pos[mine], batch.source_pos[mine])
                row["open_there"] = _share(is_open[place].sum(), is_open.sum())
        rows.append(row)
    numbers = ["energy", "purity", "purity_any", "open_pairs", "open_there"]
    types = {"trigram": "Int64", **dict.fromkeys(numbers, "float64")}
    return pd.DataFrame(rows).astype(types)


@torch.no_grad()
def energy_by_place(
    model: HookedTransformer, task: ProbedTask, *, n: int = EXAMPLES, seed: int = SEED
) -> pd.DataFrame:
    """Where each head of a one-layer model writes, on ordinary sequences.

    Args:
        n, seed: of the sequences.

    Returns:
        One row per head (its index), one column per kind of position: where each case is answered,
        by its name (of trigrams ``A`` and, an A open before it, ``B1``, ``B2`` …); ``other``. Each
        cell is a share of the sum over heads and positions of the squared length of what each head
        writes; all cells sum to 1 (to 0 where no head writes).

    Examples:
        >>> from gated_interp.models.analytic import manual_model
        >>> truth = manual_model(2, 3)
        >>> energy_by_place(truth.model, truth.task, n=200).columns.tolist()
        ['A', 'B1', 'B2', 'B3', 'other']
    """
    batch, energy, answered, _ = _writes(model, task, n, seed)
    if isinstance(task, SkipTrigramTask):
        places = {"A": batch.tokens.to(answered.device) == task.source}
        places |= {f"B{b}": answered == b for b in task.trigrams}
    else:
        places = {name: answered == b for b, name in task.cases.items()}
    places["other"] = ~torch.stack(list(places.values())).any(0)
    whole = float(energy.sum()) or 1.0
    parts = {name: (energy[there].sum(0) / whole).cpu().numpy() for name, there in places.items()}
    return pd.DataFrame(parts).rename_axis("head")


def _writes(
    model: HookedTransformer, task: ProbedTask, n: int, seed: int
) -> tuple[
    Any,
    Float[Tensor, "batch pos head_index"],
    Int[Tensor, "batch pos"],
    Float[Tensor, "batch head_index query_pos key_pos"] | None,
]:
    """Sequences, the squared lengths that heads write, the trigram that is answered (0 for none)
    and the gates, where there are any.
    """
    _require_one_layer(model, task)
    batch, device = task.sample(n, seed), model.embed.W_E.device
    names = {"z": "blocks.0.attn.hook_z", "gate": "blocks.0.attn.hook_gate"}
    _, cache = model.run_with_cache(
        batch.tokens.to(device), names_filter=list(names.values()), return_cache_object=False
    )
    energy = writes_at(cache[names["z"]], model.blocks[0].attn.W_O).double().clamp(min=0)
    return batch, energy, task.answered(batch).to(device), cache.get(names["gate"])


@torch.no_grad()
def what_remains(
    model: HookedTransformer,
    task: ProbedTask,
    found: dict[int, list[int]],
    *,
    n: int = EXAMPLES,
    seed: int = SEED,
) -> pd.DataFrame:
    """What a one-layer model still does without its holders, and with nothing but them.

    Args:
        found: the holders, per trigram.
        n, seed: of the ordinary sequences.

    Returns:
        Three rows, ``ablated`` being ``nothing``, ``holders`` (every head that holds a trigram
        zero-ablated) and ``others`` (every other head). Columns: ``heads`` (how many are ablated);
        ``fvu``, fraction of the variance of the original layer's output left unexplained; ``kl``,
        KL(original || model) in nats per position; ``accuracy``, share of trigrams answered with
        C, and ``worst``, that of the worst trigram. Of a model without a splice the original is
        the model itself.

    Examples:
        >>> from gated_interp.models.analytic import manual_model
        >>> truth = manual_model(2, 3)
        >>> found = {1: [0], 2: [1], 3: []}
        >>> what_remains(truth.model, truth.task, found, n=200)["accuracy"].tolist()
        [1.0, 0.0, 1.0]
    """
    _require_one_layer(model, task)
    batch, device = task.sample(n, seed), model.embed.W_E.device
    tokens, answered = batch.tokens.to(device), task.answered(batch).to(device)[:, :-1]
    original = unsplice(model) if originals(model) else model
    name = "blocks.0.hook_attn_out"
    intact, cache = original.run_with_cache(tokens, names_filter=name)
    target = cache[name].double()
    log_p = intact.log_softmax(-1)
    row, position = answered.nonzero(as_tuple=True)
    case, c = answered[row, position], tokens[row, position + 1]
    hold = {(0, h) for heads in found.values() for h in heads}
    sets = {
        "nothing": [],
        "holders": [h for h in all_heads(model) if h in hold],
        "others": [h for h in all_heads(model) if h not in hold],
    }
    rows = []
    for ablated, heads in sets.items():
        with intervened(model, replacements(model, heads, "zero", Reference(model, None))):
            logits, after = model.run_with_cache(tokens, names_filter=name)
        right = (leads(logits[row, position], c) > 0).double()
        by_trigram = torch.stack([right[case == b].mean() for b in task.cases])
        rows.append(
            {
                "ablated": ablated,
                "heads": len(heads),
                "fvu": float(fvu(after[name].double(), target)),
                "kl": float(kl_divergence(log_p, logits.log_softmax(-1)).mean()),
                "accuracy": float(right.mean()),
                "worst": float(by_trigram.min()),
            }
        )
    return pd.DataFrame(rows)


def _share(part: Tensor, whole: Tensor) -> float | None:
    return float(part / whole) if whole > 0 else None


def _require_one_layer(model: HookedTransformer, task: Task) -> None:
    if model.cfg.n_layers != 1 or model.cfg.d_vocab != task.d_vocab:
        raise GatedInterpError(
            "needs-one-layer-of-task",
            layers=model.cfg.n_layers,
            tokens=model.cfg.d_vocab,
            task=getattr(task, "described", task),
            wanted=task.d_vocab,
        )
