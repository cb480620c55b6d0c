"""How well a model predicts, and how far a spliced model is from the one it came from."""

import dataclasses
import functools
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import ExitStack

import torch
from jaxtyping import Float
from torch import Tensor

from gated_interp.analysis.heads import head_counts, intervened
from gated_interp.analysis.replacements import Edits, other_rows
from gated_interp.analysis.rest import nothing_read
from gated_interp.anatomy.batch import Batch, Mask, Tokens, logit_rows
from gated_interp.core.errors import GatedInterpError
from gated_interp.core.renamed import layer_first
from gated_interp.core.seeds import generator
from gated_interp.metrics.predictions import (
    log_probabilities,
    loss_and_kl_by_position,
    next_token_loss,
    row_means,
)
from gated_interp.metrics.reconstruction import (
    open_gates,
    squared_error,
    unexplained,
    variation,
    writes_at,
)
from gated_interp.models.toy import HookedTransformer
from gated_interp.replacements.splice import chosen_layer, originals, require_layer, unsplice
from gated_interp.tasks.task import ProbedTask

DEAD = 1e-3
"""A head whose writes are at most this much of the largest head's is dead."""

ABLATIONS = ("zero", "mean", "resample")
"""What takes the place of a layer's output, to compare a block with."""


@dataclasses.dataclass(frozen=True, repr=False)
class Faithfulness:
    """Per-sequence parts, so that any set of sequences can be summed up (or bootstrapped).

    Attributes:
        l0: ``[sequence]``, open gates per causal (query, key) pair, all heads of the layers.
        cross_entropy: ``[sequence]``, of the model, next token, nats.
        original_cross_entropy: ``[sequence]``, of the original; ``None`` where nothing is spliced.
        kl: ``[sequence]``, KL of the original's prediction from the model's, nats.
        squared_error, variation: ``[sequence]``, of the layers' outputs: against the original
            layer's from the same input; of the original's about its mean. Summed over layers.
        ce_zero, ce_mean, ce_resample: ``[sequence]``, cross-entropy of the original with these
            layers' outputs zero, their mean, or those of another sequence at the same positions;
            ``None`` where the model's task has known answers. The last is ``None`` where rows are
            of several lengths too, or where there is only one.
        kl_zero, kl_mean, kl_resample: ``[sequence]``, KL of the original's prediction from that of
            each.
    """

    l0: Float[Tensor, " sequence"]
    cross_entropy: Float[Tensor, " sequence"]
    original_cross_entropy: Float[Tensor, " sequence"] | None = None
    kl: Float[Tensor, " sequence"] | None = None
    squared_error: Float[Tensor, " sequence"] | None = None
    variation: Float[Tensor, " sequence"] | None = None
    ce_zero: Float[Tensor, " sequence"] | None = None
    ce_mean: Float[Tensor, " sequence"] | None = None
    ce_resample: Float[Tensor, " sequence"] | None = None
    kl_zero: Float[Tensor, " sequence"] | None = None
    kl_mean: Float[Tensor, " sequence"] | None = None
    kl_resample: Float[Tensor, " sequence"] | None = None

    def __repr__(self) -> str:
        values = ", ".join(f"{name}={v.item():.4g}" for name, v in self.measures().items())
        return f"Faithfulness({len(self.l0)} sequences: {values})"

    def measures(
        self, weights: Float[Tensor, "replicate sequence"] | None = None
    ) -> dict[str, Float[Tensor, " replicate"]]:
        """The measures on these sequences, or on each weighted replicate of them.

        - ``l0``: mean number of open gates (above 0.001) per causal (query, key) pair; 0 to the
          heads of the layers. A head without gates counts as always open.
        - ``cross_entropy``: of the model, nats per token, from 0.
        - ``original_cross_entropy``: the same of the original.
        - ``kl``: KL(original || model), nats per position; 0 is the same predictions.
        - ``fvu``: ``sum |output - original output|^2 / sum |original output - its mean|^2``; 0 is
          perfect, 1 no better than a constant, above 1 worse.
        - ``ce_difference``, and for each of ``zero``, ``mean`` and ``resample`` ablation ``ce_…``,
          ``ce_recovered_…``, ``kl_…`` and ``kl_recovered_…``: see :func:`loss_recovered`.

        All but the first two need a spliced block, the last ones text.
        """
        n = self.l0.shape[0]
        w = torch.ones(1, n) if weights is None else weights
        w = w.to(self.l0) / w.sum(1, keepdim=True).to(self.l0)
        found = {"l0": w @ self.l0, "cross_entropy": w @ self.cross_entropy}
        for name, each in (
            ("original_cross_entropy", self.original_cross_entropy),
            ("kl", self.kl),
        ):
            if each is not None:
                found[name] = w @ each
        if self.squared_error is not None and self.variation is not None:
            found["fvu"] = unexplained(w @ self.squared_error, w @ self.variation)
        if self.ce_zero is None or self.kl is None:
            return found
        ce, original, kl = (found[k] for k in ("cross_entropy", "original_cross_entropy", "kl"))
        found["ce_difference"] = ce - original
        for how in ABLATIONS:
            ce_off, kl_off = getattr(self, f"ce_{how}"), getattr(self, f"kl_{how}")
            if ce_off is not None and kl_off is not None:
                found[f"ce_{how}"] = off = w @ ce_off
                found[f"ce_recovered_{how}"] = _share(off - ce, off - original)
                found[f"kl_{how}"] = off = w @ kl_off
                found[f"kl_recovered_{how}"] = 1 - _share(kl, off)
        return found


def _share(part: Tensor, whole: Tensor) -> Tensor:
    """``part / whole``; missing (NaN) where an ablation costs nothing that could be recovered."""
    return (part / whole).where(whole != 0, torch.nan)


@layer_first
@torch.no_grad()
def faithfulness(
    model: HookedTransformer,
    layer: int | None = None,
    tokens: Tokens | None = None,
    *,
    attention_mask: Mask | None = None,
    seed: int = 0,
) -> Faithfulness:
    """Predictions of ``model``, against the model as it was before blocks were spliced in.

    Args:
        layer: against the model as it was before this one was; ``None`` is every spliced layer
            (where none is, every layer).
        attention_mask: ``[batch pos]``, 1 at tokens and 0 at padding, which is not counted.
        seed: of the sequences that outputs are taken from (``resample``).

    Raises:
        GatedInterpError: no such layer, or tokens the model cannot read.

    Examples:
        >>> from gated_interp.models.toy import ToyConfig, build_toy
        >>> toy = build_toy(ToyConfig(n_trigrams=1, n_heads=3))
        >>> faithfulness(toy, tokens=torch.tensor([[3, 0, 1, 2]])).measures()["l0"].item()
        3.0
    """
    if layer is not None:
        require_layer(model, layer)
    batch = Batch.of(model, tokens, attention_mask)
    batch.require_loss()
    spliced = sorted(originals(model))
    layers = [layer] if layer is not None else spliced or list(range(model.cfg.n_layers))
    text = not isinstance(getattr(model, "task", None), ProbedTask)
    compared = set(layers) <= set(spliced)
    return _measured(model, batch, layers, gates=True, compared=compared, text=text, seed=seed)


@layer_first
@torch.no_grad()
def loss_recovered(
    model: HookedTransformer,
    layers: Sequence[int] | None = None,
    tokens: Tokens | None = None,
    *,
    attention_mask: Mask | None = None,
    seed: int = 0,
) -> dict[str, float]:
    """What blocks in the place of attention cost a model's predictions, beside nothing there.

    As is usual for sparse dictionaries of attention outputs (Kissane et al., 2024).

    Args:
        layers: against the model as it was before these were spliced; ``None`` is all that are.
        attention_mask: ``[batch pos]``, 1 at tokens and 0 at padding, which is not counted.
        seed: of the sequences that outputs are taken from (``resample``).

    Returns:
        Nats per token, means over ``tokens``: ``ce`` of the model, ``ce_original``, ``ce_zero``,
        ``ce_mean`` and ``ce_resample`` of the original with the layers' attention outputs
        (``hook_attn_out``) zero, their mean over ``tokens``, or those of another sequence at the
        same positions (left out where rows are of several lengths, or where there is only one);
        ``ce_difference = ce - ce_original``; ``ce_recovered_zero = (ce_zero - ce) / (ce_zero -
        ce_original)``, the others likewise: 1 is all of it, 0 no better than that ablation, below 0
        worse. ``kl``: KL(original || model), per position; ``kl_zero`` and the others of the
        original with that ablation, and ``kl_recovered_zero = 1 - kl / kl_zero``. What is recovered
        of an ablation that costs nothing at all is missing (NaN).

    Raises:
        GatedInterpError: nothing was spliced there, or tokens the model cannot read.

    Examples:
        >>> from gated_interp.models.toy import ToyConfig, build_toy
        >>> from gated_interp.replacements.gated_attention import GatedAttention
        >>> from gated_interp.replacements.splice import splice
        >>> toy = build_toy(ToyConfig(n_trigrams=1, n_heads=3))
        >>> spliced = splice(toy, 0, GatedAttention.from_attention(toy.blocks[0].attn))
        >>> found = loss_recovered(spliced, tokens=torch.tensor([[3, 0, 1, 2]]))
        >>> found["ce"] - found["ce_original"] == found["ce_difference"]
        True
    """
    batch = Batch.of(model, tokens, attention_mask)
    batch.require_loss()
    layers = sorted(originals(model)) if layers is None else layers
    if not layers:
        raise GatedInterpError("nothing-spliced")
    # Nobody asks for gates, so blocks need not make them all at once.
    found = _measured(model, batch, layers, gates=False, compared=True, text=True, seed=seed)
    measures = found.measures()
    new = {"cross_entropy": "ce", "original_cross_entropy": "ce_original"}
    return {new.get(k, k): v.item() for k, v in measures.items() if k not in ("l0", "fvu")}


def _measured(
    model: HookedTransformer,
    batch: Batch,
    layers: Sequence[int],
    *,
    gates: bool,
    compared: bool,
    text: bool,
    seed: int,
) -> Faithfulness:
    """The parts of the measures; with the originals' where ``compared``, and ablations of text.

    Without ``gates`` all of them count as open.
    """
    opened = {i: f"blocks.{i}.attn.hook_gate" for i in layers}
    outs = {i: f"blocks.{i}.hook_attn_out" for i in layers}
    names = [*outs.values(), *(opened.values() if gates else ())]
    heads = head_counts(model)
    # Layers before a spliced one are the same in both models, so both read the same input.
    original = functools.reduce(unsplice, layers, model) if compared else model
    alone = len(layers) == 1
    befores = {i: original if alone else unsplice(model, i) for i in layers} if compared else {}
    each: dict[str, list[Tensor]] = defaultdict(list)
    targets: dict[int, list[Tensor]] = defaultdict(list)
    outputs: dict[int, list[Tensor]] = defaultdict(list)
    for part in batch.split(logit_rows(batch, model.cfg.d_vocab_out)):
        logits, seen = part.cache(model, names)
        l0 = torch.zeros(len(part), dtype=torch.float64, device=logits.device)
        for i, name in opened.items():
            l0 += open_gates(seen[name], real=part.real) if name in seen else heads[i]
        each["l0"].append(l0)
        if not compared:
            each["cross_entropy"].append(_loss(logits, part))
            continue
        intact, own = part.cache(original, list(outs.values()))
        error = torch.zeros_like(l0)
        for i, before in befores.items():
            there = own
            if not alone:
                _, there = part.cache(before, outs[i], stop_at_layer=i + 1)
            targets[i].append(there[outs[i]])
            outputs[i].append(own[outs[i]])
            here = part.counted[..., None]
            error += squared_error(seen[outs[i]].double() * here, there[outs[i]].double() * here)
        each["squared_error"].append(error)
        each["original_cross_entropy"].append(_loss(intact, part))
        loss, kl = _loss_and_kl(log_probabilities(intact), logits, part)
        each["cross_entropy"].append(loss)
        each["kl"].append(kl)
    found = {name: torch.cat(parts) for name, parts in each.items()}
    if compared:
        whole = [torch.cat(parts).double() for parts in targets.values()]
        found["variation"] = torch.stack([_variation(target, batch) for target in whole]).sum(0)
        if text:
            written = {i: torch.cat(parts) for i, parts in outputs.items()}
            found |= _ablated(original, batch, written, seed)
    return Faithfulness(**found)


def _variation(target: Float[Tensor, "batch pos d_model"], batch: Batch) -> Tensor:
    mean = batch.mean(target)
    return variation(target.where(batch.counted[..., None], mean), mean)


def _loss(logits: Float[Tensor, "batch pos d_vocab"], batch: Batch) -> Float[Tensor, " batch"]:
    known = batch.known
    return next_token_loss(logits, batch.tokens, known).double()


def _loss_and_kl(
    log_p: Float[Tensor, "batch pos d_vocab"],
    logits: Float[Tensor, "batch pos d_vocab"],
    batch: Batch,
) -> tuple[Float[Tensor, " batch"], Float[Tensor, " batch"]]:
    """:func:`_loss`, and the mean KL divergence from the intact model's log-probabilities."""
    loss, kl = loss_and_kl_by_position(log_p, logits, batch.tokens)
    loss = row_means(loss, batch.known) if loss.shape[1] else loss.new_zeros(len(batch))
    return loss.double(), row_means(kl, batch.real).double()


def _ablated(
    original: HookedTransformer,
    batch: Batch,
    outputs: dict[int, Float[Tensor, "batch pos d_model"]],
    seed: int,
) -> dict[str, Float[Tensor, " sequence"]]:
    """Cross-entropies, and KL, of ``original`` with something in the place of what layers write.

    Args:
        outputs: by layer, what it writes.
    """
    puts = {
        "zero": {i: out.new_zeros(()).expand_as(out) for i, out in outputs.items()},
        "mean": {i: batch.mean(out.double()).to(out).expand_as(out) for i, out in outputs.items()},
    }
    alike = batch.real is None or bool((batch.real == batch.real[:1]).all())
    if alike and len(batch) > 1:
        others = other_rows(len(batch), generator(seed))
        puts["resample"] = {i: out[others.to(out.device)] for i, out in outputs.items()}
    found: dict[str, list[Tensor]] = defaultdict(list)
    rows = logit_rows(batch, original.cfg.d_vocab_out)
    for first in range(0, len(batch), rows):
        part = batch[first : first + rows]
        intact = log_probabilities(part.logits(original))
        for how, values in puts.items():
            with ExitStack() as stack:
                for i, value in values.items():
                    edit: Edits = {
                        f"blocks.{i}.hook_attn_out": _writing(value[first : first + rows])
                    }
                    stack.enter_context(intervened(original, edit))
                    stack.enter_context(nothing_read(original.blocks[i].attn))
                logits = part.logits(original)
            loss, kl = _loss_and_kl(intact, logits, part)
            found[f"ce_{how}"].append(loss)
            found[f"kl_{how}"].append(kl)
    return {name: torch.cat(parts) for name, parts in found.items()}


def _writing(value: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda _output: value


@layer_first
@torch.no_grad()
def dead_heads(
    model: HookedTransformer,
    layer: int | None = None,
    tokens: Tokens | None = None,
    threshold: float = DEAD,
    *,
    attention_mask: Mask | None = None,
) -> list[int]:
    """The heads of ``layer`` that write next to nothing, anywhere in ``tokens``.

    Dead: the root mean square of ``z W_O`` over rows, positions and ``d_model`` is at most
    ``threshold`` times the largest head's. A gated head whose gates never open is dead; where no
    head writes at all, all are.
    """
    layer = chosen_layer(model, layer)
    batch = Batch.of(model, tokens, attention_mask)
    if threshold < 0:
        raise GatedInterpError("is-negative", name="threshold", value=threshold)
    name = f"blocks.{layer}.attn.hook_z"
    _, cache = batch.cache(model, name, stop_at_layer=layer + 1)
    return dead_from(cache[name][batch.counted][None], model.blocks[layer].attn.W_O, threshold)


def dead_from(
    z: Float[Tensor, "batch pos head_index d_head"],
    W_O: Float[Tensor, "head_index d_head d_model"],
    threshold: float = DEAD,
) -> list[int]:
    """The heads that :func:`dead_heads` calls dead, from what stands at ``hook_z``."""
    size = writes_at(z.double(), W_O.double()).mean((0, 1)).sqrt()
    dead: list[int] = (size <= threshold * size.max()).nonzero().flatten().tolist()
    return dead
