"""One model on the bench: what it does with an example while some of its heads are off."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens import ActivationCache

from gated_interp.analysis.ablation import Method
from gated_interp.analysis.attribution import read_pairs
from gated_interp.analysis.heads import Head, all_heads, head_counts, head_name, intervened
from gated_interp.analysis.overview import DEEP
from gated_interp.analysis.replacements import Edits, Reference, constants, replacements
from gated_interp.analysis.rest import Rest
from gated_interp.anatomy.batch import Batch, logit_rows
from gated_interp.anatomy.stream import (
    RAW_LOGITS,
    Readout,
    Written,
    final_norm,
    logits_of,
    write_norm,
)
from gated_interp.core.precision import wide
from gated_interp.explorer.asked import Asked
from gated_interp.metrics.predictions import leads
from gated_interp.metrics.reconstruction import writes_at
from gated_interp.models.toy import HookedTransformer
from gated_interp.replacements.splice import gated_block
from gated_interp.tasks.task import Probes

PATTERNS = ("attention", "gate", "attention × gate", "value-weighted")
# Sequences that the scales of colours are measured on, where no answers are known.
SCALED, SCALED_DEEP = 16, 4
# Copies of the example, each without another head, that one pass takes.
AT_ONCE = 8
# Positions whose logits are made at once.
POSITIONS = 64
# Of the weights above this share of the largest, so many are paler than the darkest colour.
FAINT, SHARE_BELOW = 0.01, 0.95

Pattern = Float[np.ndarray, "head_index query_pos key_pos"]


@dataclasses.dataclass(frozen=True, eq=False)
class Reading:
    """What one model does with one example, read at one position and in one layer.

    Attributes:
        attention: ``[head_index query_pos key_pos]``, rows sum to 1; ``None`` where the layer has
            none (an autoencoder).
        gates: ``[head_index query_pos key_pos]``, zero for keys behind the query; ``None`` for
            ordinary attention.
        values: ``[head_index key_pos]``, length of the value of each key as its head writes it.
        writes: ``[head_index d_vocab]``, what each head (or what its ablation left in its place)
            writes directly to the logits at the position; a final norm is frozen at its scale.
        direct: ``[d_vocab]``, what reaches the logits there past the heads of the layer.
            ``writes.sum(0) + direct`` are the logits, before an output soft cap.
        logits: ``[d_vocab]``, at the position.
        prediction, probability: the most likely next token, and how likely.
        intact_prediction: the same with every head on.
        probabilities, intact_probabilities: ``[d_vocab]``.
        metric, intact_metric: what is asked, now and with every head on.
        accuracy, intact_accuracy: per case of the task the share of its probes at which its answer
            is strictly on top; empty without known answers.
    """

    attention: Pattern | None
    gates: Pattern | None
    values: Float[np.ndarray, "head_index key_pos"] | None
    writes: Float[np.ndarray, "head_index d_vocab"]
    direct: Float[np.ndarray, " d_vocab"]
    logits: Float[np.ndarray, " d_vocab"]
    prediction: int
    probability: float
    intact_prediction: int
    probabilities: Float[np.ndarray, " d_vocab"]
    intact_probabilities: Float[np.ndarray, " d_vocab"]
    metric: float
    intact_metric: float
    accuracy: dict[int, float]
    intact_accuracy: dict[int, float]

    def pattern(self, kind: str) -> Pattern | None:
        """One of :data:`PATTERNS`; ``None`` where the layer has no such thing."""
        return weights(kind, self.attention, self.gates, self.values)


def weights(kind: str, attention: Any, gates: Any, values: Any) -> Any:
    """The weights ``[… head_index query_pos key_pos]`` that ``kind``, a pattern, means.

    Without gates a head's gated attention is its attention. Value-weighted is gated attention times
    the length of each key's value.
    """
    if kind == "gate" or attention is None:
        return gates
    if kind == "attention":
        return attention
    gated = attention if gates is None else attention * gates
    if kind == "attention × gate":
        return gated
    return None if values is None else gated * values[..., None, :]


@dataclasses.dataclass(frozen=True)
class Scale:
    """The values at the ends of a layer's colours, so that a colour means the same everywhere.

    Attributes:
        write: the largest write to the logits (of a toy also: logit), at the probes or at the last
            position.
        pattern: for each of :data:`PATTERNS`. Of gates, and of a toy's attention, the largest, at
            least 1. Of text only weights between later positions count, as the first one draws
            most attention, and of those the 95th percentile, as a few are far above the rest.
    """

    write: float
    pattern: Mapping[str, float]


class Bench:
    """A model with the batches its readings need.

    Args:
        model: any ``HookedTransformer``, with blocks spliced in or not.
        reference: what ``mean``, ``resample`` and ``optimal`` refer to.
        probes: where the answers are known, what accuracy is measured on.
        resample_seed: of the rows that ``resample`` draws.
    """

    def __init__(
        self,
        model: HookedTransformer,
        reference: Batch | None,
        probes: Probes | None,
        resample_seed: int,
    ):
        self.model, self.device = model, model.embed.W_E.device
        self.counts = head_counts(model)
        self.gated = [gated_block(model, layer) is not None for layer in range(len(self.counts))]
        self.reference = None
        if reference is not None:
            given = reference.tokens.to(self.device), reference.counted.to(self.device)
            self.reference = Batch.of(model, *given, "reference tokens")
        self.probes = None if probes is None else probes.to(self.device)
        self.resample_seed = resample_seed
        self._scales: dict[int, Scale] = {}
        self._readouts: dict[int | None, Readout] = {}
        self._intact: dict[tuple[int, ...], Tensor] = {}
        self._effects: dict[tuple[object, ...], list[float]] = {}
        self._strips: dict[tuple[object, ...], list[list[float]]] = {}
        self._writes: dict[tuple[int, ...], Any] = {}
        self._heads: dict[tuple[float, ...], Tensor] = {}
        self._streams: dict[tuple[object, ...], Tensor] = {}
        self._layers: dict[tuple[object, ...], tuple[Rest, dict[str, Tensor]]] = {}
        self._passes: dict[tuple[object, ...], _Pass] = {}
        self._finals: dict[tuple[int, ...], Tensor] = {}
        self._final_scales: dict[tuple[int, ...], dict[str, Tensor]] = {}
        self._edited: dict[tuple[object, ...], Edits] = {}
        self._accuracies: dict[tuple[frozenset[Head], Method], dict[int, float]] = {}

    @property
    def n_heads(self) -> int:
        """Heads of the first layer."""
        return self.counts[0]

    def head_names(self, layer: int) -> list[str]:
        """The names of a layer's heads."""
        return [head_name((layer, h)) for h in range(self.counts[layer])]

    @torch.no_grad()
    def intact(self, tokens: Sequence[int]) -> Float[Tensor, "pos d_vocab"]:
        """The logits with every head on; of the last few examples they are remembered."""
        found = self._pass(tokens, frozenset(), "zero", 0)
        make = lambda: logits_of(self.model, found.stream)[0]  # noqa: E731
        return kept(self._intact, tuple(tokens), make, 4)

    @torch.no_grad()
    def read(
        self,
        tokens: Sequence[int],
        position: int,
        off: frozenset[Head] = frozenset(),
        method: Method = "zero",
        layer: int = 0,
        asked: Asked | None = None,
    ) -> Reading:
        """What the model does with ``tokens`` while the heads in ``off`` are ablated."""
        row, intact = self.row(tokens), self.intact(tokens)
        asked = asked or Asked("log p", int(intact[position].argmax()), log=True)
        found = self._pass(tokens, off, method, layer)
        cache, here = found.cache, self._at(found, layer, position)
        seen = {n: cache[hook] for n, hook in self._hooks(layer).items() if hook in cache}
        pattern, gates = seen.get("pattern"), seen.get("gate")
        at, before = wide(here["logits"][0, 0]), wide(intact[position])
        writes = self._writes_at(here, layer)
        raw = wide(here[RAW_LOGITS][0, 0])
        where = asked.where(position)
        is_here = where == slice(position, position + 1)
        logits = here["logits"] if is_here else logits_of(self.model, found.stream[:, where])
        lengths = self._value_lengths(cache, layer)
        probabilities, prediction = at.softmax(-1), int(at.argmax())
        return Reading(
            attention=None if pattern is None else _numpy(pattern[0]),
            gates=None if gates is None else _numpy(gates[0].tril()),
            values=None if lengths is None else _numpy(lengths[0]),
            writes=_numpy(writes),
            direct=_numpy(raw - writes.sum(0)),
            logits=_numpy(at),
            prediction=prediction,
            probability=float(probabilities[prediction]),
            intact_prediction=int(before.argmax()),
            probabilities=_numpy(probabilities),
            intact_probabilities=_numpy(before.softmax(-1)),
            metric=float(asked.of(logits, row.tokens, position, intact[where])),
            intact_metric=float(asked.of(intact[None, where], row.tokens, position, intact[where])),
            accuracy=self._accuracy_without(off, method),
            intact_accuracy=self._accuracy(frozenset(), "zero"),
        )

    @torch.no_grad()
    def effects(
        self, tokens: Sequence[int], position: int, method: Method, layer: int, asked: Asked
    ) -> list[float]:
        """By how much what is asked changes without each head of ``layer``, the others on.

        By zero ablation where that is the method, else by mean ablation (the others are too slow
        to try on every head).
        """
        zero = method == "zero" or self.reference is None

        def found() -> list[float]:
            row, where = self.row(tokens).tokens, asked.where(position)
            intact = self.intact(tokens)[where]
            with_it = asked.of(intact[None], row, position, intact)
            # Where many positions are asked for, the readout of a few heads is large already.
            few = max(1, POSITIONS // len(intact))
            without = []
            for some in torch.split(self._each_off(tokens, zero, layer), few):
                logits = logits_of(self.model, some[:, where])
                without.append(asked.of(logits, row.repeat(len(some), 1), position, intact))
            return (torch.cat(without) - with_it).tolist()

        return kept(self._effects, (tuple(tokens), position, zero, layer, asked), found, 256)

    def unmeasured(
        self, tokens: Sequence[int], position: int, method: Method, asked: Asked
    ) -> list[int]:
        """The layers whose :meth:`effects` are not known yet."""
        zero = method == "zero" or self.reference is None
        rest = tuple(tokens), position, zero
        layers = range(len(self.counts))
        return [layer for layer in layers if (*rest, layer, asked) not in self._effects]

    @cached_property
    def heads_behind(self) -> int:
        """How many weights a token meets where every head is left out in turn."""
        blocks = [sum(p.numel() for p in block.parameters()) for block in self.model.blocks]
        return sum(n * sum(blocks[layer:]) for layer, n in enumerate(self.counts))

    def _each_off(
        self, tokens: Sequence[int], zero: bool, layer: int
    ) -> Float[Tensor, "head_index pos d_model"]:
        """The stream behind the last layer without each head; whatever is asked, wherever."""
        put = self._zeros[layer] if zero else self._means[layer]

        def found() -> Tensor:
            rest, streams = self._layer(tokens, layer)[0], []
            for heads in torch.split(torch.arange(len(put), device=self.device), AT_ONCE):
                z = rest.z.repeat(len(heads), 1, 1, 1)
                z[torch.arange(len(heads), device=z.device), :, heads] = put[heads][:, None]
                rows = torch.zeros_like(heads)
                streams.append(rest.stream(z, rows))
            return torch.cat(streams)

        return kept(self._streams, (tuple(tokens), zero, layer), found, 4)

    @torch.no_grad()
    def strip(self, tokens: Sequence[int], position: int, token: int) -> list[list[float]]:
        """By layer, what each head writes directly to the logit of ``token`` at ``position``.

        Relative to the mean over the vocabulary, with every head on and norms at their scale.
        """
        key = (tuple(tokens), position, token)
        return kept(self._strips, key, lambda: self._direct(tokens, position, token))

    def _direct(self, tokens: Sequence[int], position: int, token: int) -> list[list[float]]:
        z, scales = self._written(tokens)
        readout = wide(self.model.unembed.W_U)
        column = readout[:, [token]] - readout.mean(1, keepdim=True)
        final = final_norm(self.model)
        column = column if final is None else final.before(column)
        found = []
        for layer, held in enumerate(z):
            written = Written.of(self.model, layer)
            each = torch.einsum("hd,hdm,mo->h", held[position], written.W_O, column)
            for name in (*final_scales(self.model), *written.scales):
                each = each / scales[name][position]
            found.append(each.tolist())
        return found

    def _written(
        self, tokens: Sequence[int]
    ) -> tuple[list[Float[Tensor, "pos head_index d_head"]], dict[str, Float[Tensor, "pos 1"]]]:
        """Every head's ``z`` on an example, and the scales of the norms behind them."""

        def found() -> Any:
            seen: dict[str, Tensor] = {}
            layers = range(self.model.cfg.n_layers)
            names = [f"blocks.{layer}.attn.hook_z" for layer in layers]
            norms = [name for i in layers for name in Written.of(self.model, i).scales]
            with intervened(self.model, {n: _see(seen, n) for n in [*names, *norms]}):
                stream = self.row(tokens).logits(self.model, stop_at_layer=len(names))
            self._finals[tuple(tokens)] = stream
            scales = {name: seen[name][0] for name in norms}
            scales |= {n: s[0] for n, s in self._final_scale(self.row(tokens), stream).items()}
            return [wide(seen[name][0]) for name in names], scales

        return kept(self._writes, tuple(tokens), found, 4)

    # ---- passes, of which only what stands behind the first switched head is run again

    def _layer(self, tokens: Sequence[int], layer: int) -> tuple[Rest, dict[str, Tensor]]:
        """What stands behind a layer's heads, and what they do, with every head on."""

        def found() -> tuple[Rest, dict[str, Tensor]]:
            seen: dict[str, Tensor] = {}
            with intervened(self.model, self._looks(layer, seen)):
                rest = Rest(self.model, layer, self.row(tokens))
            return rest, seen

        return kept(self._layers, (tuple(tokens), layer), found, 8)

    def _pass(
        self, tokens: Sequence[int], off: frozenset[Head], method: Method, layer: int
    ) -> "_Pass":
        """A pass with the heads in ``off`` ablated, read in ``layer``; the last few are kept."""

        def intact() -> _Pass:
            rest, seen = self._layer(tokens, layer)
            stream = self._stream_of(tokens, rest)
            return _Pass(stream, seen)

        def found() -> _Pass:
            if not off:
                return intact()
            edits = self._edits(off, method)
            first = min(at for at, _ in off)
            own: Any = edits.pop(f"blocks.{first}.attn.hook_z")
            rest, held = self._layer(tokens, first)
            alone = self._alone(tokens, off, method)
            seen: dict[str, Tensor] = {}
            if alone is not None and layer == first:
                stream, seen = alone, dict(held)
            else:
                looks = self._looks(layer, seen) if layer >= first else {}
                with intervened(self.model, edits), intervened(self.model, looks):
                    stream = rest.stream(own)
            if layer == first:  # looked at before the edit
                z = f"blocks.{layer}.attn.hook_z"
                seen[z] = own(seen[z])
            return _Pass(stream, seen if layer >= first else self._layer(tokens, layer)[1])

        key = (tuple(tokens), off, method if off else "zero", layer)
        return kept(self._passes, key, found, 8)

    def _alone(
        self, tokens: Sequence[int], off: frozenset[Head], method: Method
    ) -> Float[Tensor, "batch pos d_model"] | None:
        """The stream without one head alone, if it is known from the effects of its layer."""
        ((layer, head), *others) = off
        known = self._streams.get((tuple(tokens), method == "zero", layer))
        # A norm behind the layer has another scale without the head.
        is_last = set(self.readout(layer).scales) <= {*final_scales(self.model)}
        if known is None or others or method not in ("zero", "mean") or not is_last:
            return None
        return known[head : head + 1]

    def _stream_of(self, tokens: Sequence[int], rest: Rest) -> Float[Tensor, "batch pos d_model"]:
        """The stream behind the last layer with every head on."""

        return kept(self._finals, tuple(tokens), rest.stream, 4)

    def _looks(self, layer: int, seen: dict[str, Tensor]) -> dict[str, Any]:
        """Hooks that keep what the heads of a layer do."""
        behind = {*final_scales(self.model), RAW_LOGITS}
        names = [n for n in self._hooks(layer).values() if n not in behind]
        return {n: _see(seen, n) for n in names if n in self.model.hook_dict}

    def _edits(self, off: frozenset[Head], method: Method) -> Edits:
        """What takes the place of each layer's ``z``; made once for each set of heads."""
        if method == "mean":
            put: Edits = {}
            for layer in {at for at, _ in off}:
                heads = sorted(h for at, h in off if at == layer)
                put[f"blocks.{layer}.attn.hook_z"] = _constant(self._means[layer], heads)
            return put

        def found() -> Edits:
            reference = Reference(self.model, self.reference)
            return replacements(self.model, sorted(off), method, reference, self.resample_seed)

        return dict(kept(self._edited, (off, method), found, 8))

    def _at(self, found: "_Pass", layer: int, position: int) -> dict[str, Tensor]:
        """Logits and what they are read from, at one position."""
        here = slice(position, position + 1)
        seen = {
            n: value[:, here] for n, value in found.cache.items() if n in self.readout(layer).scales
        }
        seen[f"blocks.{layer}.attn.hook_z"] = found.cache[f"blocks.{layer}.attn.hook_z"][:, here]
        names = [*final_scales(self.model), RAW_LOGITS]
        with intervened(self.model, {name: _see(seen, name) for name in names}):
            seen["logits"] = logits_of(self.model, found.stream[:, here])
        return seen

    def _accuracy_without(self, off: frozenset[Head], method: Method) -> dict[int, float]:
        if not off or self.probes is None:
            return self._accuracy(frozenset(), "zero")
        if (off, method) in self._accuracies:
            return self._accuracies[off, method]
        with self.ablated(off, method):
            return self._accuracy(off, method)

    def ablated(self, off: frozenset[Head], method: Method) -> AbstractContextManager[Any]:
        """The model with the heads in ``off`` ablated, for whatever else reads it."""
        return intervened(self.model, self._edits(off, method) if off else {})

    @cached_property
    def _zeros(self) -> list[Float[Tensor, "head_index d_head"]]:
        return [torch.zeros_like(block.attn.W_O[..., 0]) for block in self.model.blocks]

    @cached_property
    def _means(self) -> list[Float[Tensor, "head_index d_head"]]:
        found = constants(
            self.model, all_heads(self.model), "mean", Reference(self.model, self.reference)
        )
        return [
            torch.stack([found[layer, h] for h in range(n)]) for layer, n in enumerate(self.counts)
        ]

    @torch.no_grad()
    def scale(self, layer: int) -> Scale:
        """The largest values of ``layer``, over the probes or else the reference."""
        return kept(self._scales, layer, lambda: self._measured(layer))

    def _measured(self, layer: int) -> Scale:
        if self.probes is not None:
            batch = Batch.of(self.model, self.probes.tokens)
            return self._scale_of(layer, batch, self.probes.row, self.probes.position)
        if self.reference is None:
            return Scale(1.0, dict.fromkeys(PATTERNS, 1.0))
        each = []
        few = SCALED if self.model.cfg.n_layers <= DEEP else SCALED_DEEP
        for part in self.reference[:few].split(
            logit_rows(self.reference, self.model.cfg.d_vocab_out)
        ):
            at = part.counted.long().cumsum(1).argmax(1)  # the last token of each
            rows = torch.arange(len(part), device=self.device)
            each.append(self._scale_of(layer, part, rows, at))
        darkest = {kind: max(scale.pattern[kind] for scale in each) for kind in PATTERNS}
        return Scale(max(scale.write for scale in each), darkest)

    def _scale_of(self, layer: int, batch: Batch, rows: Tensor, at: Tensor) -> Scale:
        hooks = self._hooks(layer)
        names = [name for name in hooks.values() if name in self.model.hook_dict]
        if self.probes is None:  # the logits themselves are not needed
            behind = {*final_scales(self.model), RAW_LOGITS}
            names = [name for name in names if name not in behind]
            _, cache = batch.cache(self.model, names, stop_at_layer=layer + 1)
            cache = dict(cache.items()) | self._final_scale(batch)
        else:
            logits, cache = batch.cache(self.model, names)
        seen = {name: cache[hook] for name, hook in hooks.items() if hook in cache}
        writes = self._logit_writes(cache, layer, rows, at).abs().max()
        if self.probes is not None:
            writes = torch.maximum(writes, wide(logits[rows, at]).abs().max())
        lengths = self._value_lengths(cache, layer)
        found = {k: weights(k, seen.get("pattern"), seen.get("gate"), lengths) for k in PATTERNS}
        darkest = {kind: self._darkest(kind, values, batch) for kind, values in found.items()}
        return Scale(float(writes) or 1.0, darkest)

    def _final_scale(self, batch: Batch, stream: Tensor | None = None) -> dict[str, Tensor]:
        """The scale of the final norm; of the reference it is measured once for all layers."""

        def found() -> dict[str, Tensor]:
            seen: dict[str, Tensor] = {}
            last = self.model.cfg.n_layers
            there = batch.logits(self.model, stop_at_layer=last) if stream is None else stream
            looks: Edits = {name: _see(seen, name) for name in final_scales(self.model)}
            if looks:
                with intervened(self.model, looks):
                    self.model.ln_final(there)
            return seen

        key = tuple(batch.tokens.flatten().tolist())
        return kept(self._final_scales, key, found, 16)

    def _darkest(self, kind: str, values: Tensor | None, batch: Batch) -> float:
        if values is None:
            return 1.0
        if kind == "gate" or (self.probes is not None and kind != "value-weighted"):
            return max(1.0, float(values.max()))
        if self.probes is not None:
            return float(values.max()) or 1.0
        pairs = batch.later[:, None, :, None] & batch.later[:, None, None]
        rest = _numpy(values[pairs.expand_as(values)])
        rest = rest[rest > FAINT * rest.max(initial=0.0)]
        return float(np.quantile(rest, SHARE_BELOW)) if rest.size else 1.0

    def _logit_writes(
        self, cache: Any, layer: int, rows: Any, positions: Any
    ) -> Float[Tensor, "example head_index d_vocab"]:
        """What the heads of ``layer`` write to the logits, norms behind them at their scale."""
        readout, W_O = self.readout(layer), wide(self.model.blocks[layer].attn.W_O)
        z, scale = wide(cache[f"blocks.{layer}.attn.hook_z"]), readout.scale(cache)
        writes = torch.einsum("ehd,hdm->ehm", z[rows, positions], W_O) @ readout.matrix
        return writes / scale[rows, positions][:, None] if isinstance(scale, Tensor) else writes

    def _writes_at(
        self, here: dict[str, Tensor], layer: int
    ) -> Float[Tensor, "head_index d_vocab"]:
        """The same at the one position that is read; a switch leaves most heads what they held."""
        readout, W_O = self.readout(layer), wide(self.model.blocks[layer].attn.W_O)
        z, scale = wide(here[f"blocks.{layer}.attn.hook_z"])[0, 0], readout.scale(here)

        def row(h: int) -> Tensor:
            if not z[h].any():
                return torch.zeros_like(readout.matrix[0])
            make = lambda: z[h] @ W_O[h] @ readout.matrix  # noqa: E731
            return kept(self._heads, (layer, h, *z[h].tolist()), make, 2 * max(self.counts))

        writes = torch.stack([row(h) for h in range(len(z))])
        return writes / scale[0, 0] if isinstance(scale, Tensor) else writes

    def readout(self, layer: int) -> Readout:
        """From writes of ``layer`` to the logits; large, and made once for all like layers."""
        at = None if write_norm(self.model, layer) is None else layer
        return kept(self._readouts, at, lambda: Readout.of(self.model, at), 4)

    def _value_lengths(
        self, cache: Any, layer: int
    ) -> Float[Tensor, "batch head_index key_pos"] | None:
        """How long each key's value is, as its head writes it; ``None`` without attention."""
        attn = self.model.blocks[layer].attn
        if f"blocks.{layer}.attn.hook_v" not in cache:
            return None
        whole = ActivationCache(dict(cache.items()), self.model)
        v = read_pairs(whole, layer, attn)[1]
        found = writes_at(v, wide(attn.W_O)).clamp(min=0).sqrt()
        return found.transpose(1, 2)

    def _accuracy(self, off: frozenset[Head], method: Method) -> dict[int, float]:
        """Of the model as it is now; remembered by what is off, for no example changes it."""
        probes = self.probes
        if probes is None:
            return {}

        def found() -> dict[int, float]:
            logits = Batch.of(self.model, probes.tokens).logits(self.model)
            right = leads(wide(logits[probes.row, probes.position]), probes.target) > 0
            return {b: float(right[probes.case == b].double().mean()) for b in probes.cases}

        return kept(self._accuracies, (off, method if off else "zero"), found, 10**6)

    def row(self, tokens: Sequence[int]) -> Batch:
        """One example as a batch."""
        return Batch.of_rows(self.model, [tokens])

    def _hooks(self, layer: int) -> dict[str, str]:
        """What is read of a layer and behind it; not all of it is everywhere."""
        scales = self.readout(layer).scales
        own = ("pattern", "gate", "gated_pattern", "v", "z")
        found = {n: f"blocks.{layer}.attn.hook_{n}" for n in own}
        return found | {name: name for name in (*scales, RAW_LOGITS)}


@dataclasses.dataclass(frozen=True, eq=False)
class _Pass:
    """The stream behind the last layer, and what the heads of the layer read did."""

    stream: Float[Tensor, "batch pos d_model"]
    cache: dict[str, Tensor]


def final_scales(model: HookedTransformer) -> tuple[str, ...]:
    """The hook points of the final norm's scale; none without a norm."""
    norm = final_norm(model)
    return () if norm is None else (norm.hook_scale,)


def _see(seen: dict[str, Tensor], name: str) -> Callable[[Tensor], None]:
    def look(value: Tensor) -> None:
        seen[name] = value

    return look


def _constant(
    put: Float[Tensor, "head_index d_head"], heads: list[int]
) -> Callable[[Tensor], Tensor]:
    def edit(z: Tensor) -> Tensor:
        z = z.clone()
        z[:, :, heads] = put[heads].to(z)
        return z

    return edit


def kept(store: dict[Any, Any], key: Any, make: Callable[[], Any], most: int = 64) -> Any:
    """What ``make`` gives, remembered in ``store`` with the last ``most`` others."""
    if key not in store:
        while len(store) >= most:
            store.pop(next(iter(store)))
        store[key] = make()
    return store[key]


def _numpy(values: Tensor) -> np.ndarray:
    found: np.ndarray = values.detach().double().cpu().numpy()
    return found
