"""The conformance matrix: every public function that takes a model, on every kind of model.

A row calls a function and says what it must give, worked out by hooks in float64 (``truth``). A
cell is right, refused in one sentence, wrong (and by how much) or a raw error. A new function is
one more ``@row``; a new kind is one more entry of ``model_kinds.KINDS``.

``what_works`` measures every cell, and writes down what it found.
"""

import base64
import contextlib
import dataclasses
import functools
import io
import itertools
import json
import math
import re
import tempfile
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pandas as pd
import torch
from model_kinds import SEES_POSITIONS, TASK, Column
from torch import Tensor
from truth import Truth, frozen, kl, losses

import gated_interp as gi
from gated_interp.analysis.replacements import other_rows
from gated_interp.core.errors import GatedInterpError, sentences
from gated_interp.core.seeds import derive, generator
from gated_interp.core.streams import Stream

# How far a number may be off, as a share of the largest expected (of one where all are smaller).
TOLERANCE = {"float64": 1e-5, "float32": 1e-5, "bfloat16": 0.04, "float16": 0.006}
GATED = ("gated", SEES_POSITIONS)
RIGHT, REFUSED, WRONG, RAW = "right", "refused", "wrong", "raw"
Numbers = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a cell came to, and by which error (as JSON: its code and fields) or by how much."""

    word: str
    said: str = ""


def _tokens(seed: int, n: int = 4, length: int = 8) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, TASK.d_vocab - 1, (n, length), generator=draw)
    tokens[:, 0] = TASK.bos
    return tokens


TOKENS, SOURCE = _tokens(0), _tokens(1)
TEXT = _tokens(2, 40)  # for what asks how often tokens come
REPEATS = torch.cat([_tokens(3, 3, 6), _tokens(3, 3, 6)[:, 1:]], 1)
ROWS, POSITIONS = torch.tensor([0, 1, 3, 3]), torch.tensor([7, 4, 2, 6])
TARGETS = torch.tensor([1, 5, 0, 6])
QUERY, KEY = 5, 2  # within every local window


class Case:
    """One column's model, made anew for each cell, and what is true of it."""

    def __init__(self, column: Column):
        self.column = column
        self.model = column.build()

    @property
    def truth(self) -> Truth:
        return _truth_of(self.column)

    @property
    def original(self) -> Truth:
        """Of the model without its block."""
        return _truth_of(dataclasses.replace(self.column, block=""))

    @property
    def last(self) -> int:
        return int(self.model.cfg.n_layers) - 1


@functools.lru_cache(4)
def _truth_of(column: Column) -> Truth:
    return Truth(column.build())


@dataclasses.dataclass(frozen=True)
class Row:
    """A function as it is called, and what it must give.

    Attributes:
        function: its public name.
        case: how it is called, where that needs saying.
        call: what it gives on a case, by name: tensors, numbers, words.
        oracle: the same, worked out by hooks.
        applies: whether a column has what the row asks about, as a rotation or a gate.
        tolerance: times that of the column; more than one is explained where it stands.
    """

    function: str
    case: str
    call: Callable[[Case], Numbers]
    oracle: Callable[[Case], Numbers]
    applies: Callable[[Column], bool]
    tolerance: float = 1.0

    def __str__(self) -> str:
        return f"{self.function}: {self.case}" if self.case else self.function


ROWS_OF_MATRIX: list[Row] = []


def anywhere(column: Column) -> bool:
    return True


def with_block(column: Column) -> bool:
    return bool(column.block)


def with_gates(column: Column) -> bool:
    return column.block in GATED


def several_layers(column: Column) -> bool:
    return bool(column.flags["n_layers"] > 1)


def row(
    function: str,
    case: str = "",
    *,
    oracle: Callable[[Case], Numbers],
    applies: Callable[[Column], bool] = anywhere,
    tolerance: float = 1.0,
) -> Callable[[Callable[[Case], Numbers]], Callable[[Case], Numbers]]:
    """Add a row whose ``call`` is the decorated function."""

    def add(call: Callable[[Case], Numbers]) -> Callable[[Case], Numbers]:
        ROWS_OF_MATRIX.append(Row(function, case, call, oracle, applies, tolerance))
        return call

    return add


# Circuits.


def _in_turn(position: int, key: int | None = None) -> Tensor:
    """Sequences with every token at ``position`` (and every token at ``key``)."""
    v = TASK.d_vocab
    tokens = torch.zeros(v * (1 if key is None else v), QUERY + 1, dtype=torch.long)
    tokens[:] = TOKENS[0, : QUERY + 1]
    each = torch.arange(v)
    tokens[:, position] = each if key is None else each.repeat_interleave(v)
    if key is not None:
        tokens[:, key] = each.repeat(v)
    return tokens


def _ov(case: Case) -> Numbers:
    tokens, truth = _in_turn(KEY), case.truth
    z = truth.from_key(0, tokens, KEY, full=True)[:, -1:]
    seen = truth.readout(truth.writes(0, z, None), None)[:, 0]  # [token head logit]
    return {f"head {h}": seen[:, h] for h in range(seen.shape[1])}


@row("ov_circuit", oracle=_ov)
def _(case: Case) -> Numbers:
    heads = len(case.model.blocks[0].attn.W_O)
    return {f"head {h}": gi.ov_circuit(case.model, 0, h, position=KEY).matrix for h in range(heads)}


def _pairs_at(name: str) -> Callable[[Case], Numbers]:
    def oracle(case: Case) -> Numbers:
        tokens, v = _in_turn(QUERY, KEY), TASK.d_vocab
        place = f"blocks.0.attn.{name}"
        scores = case.truth.run(tokens, {}, [place])[place][:, :, QUERY, KEY]
        return {f"head {h}": scores[:, h].view(v, v) for h in range(scores.shape[1])}

    return oracle


@row("qk_circuit", "at two positions", oracle=_pairs_at("hook_attn_scores"))
def _(case: Case) -> Numbers:
    heads = len(case.model.blocks[0].attn.W_O)
    at = {"query_position": QUERY, "key_position": KEY}
    return {f"head {h}": gi.qk_circuit(case.model, 0, h, **at).matrix for h in range(heads)}


@row("gate_circuit", oracle=_pairs_at("hook_gate"), applies=with_gates)
def _(case: Case) -> Numbers:
    heads = len(case.model.blocks[0].attn.W_O)
    at = {"query_position": QUERY, "key_position": KEY}
    return {f"head {h}": gi.gate_circuit(case.model, 0, h, **at).matrix for h in range(heads)}


def _copying(case: Case) -> Numbers:
    """Of the OV circuits in token space, from the embedding alone, without b_V."""
    found, truth, tokens = [], case.truth, _in_turn(0)
    for layer in truth.layers:
        attn = truth.exact.blocks[layer].attn
        with torch.no_grad():
            embedded = truth.exact.embed(tokens[:, :1])
            block = truth.exact.blocks[layer]
            after = case.model.cfg.original_architecture == "Olmo2ForCausalLM"
            x = embedded if after or truth.norm is None else block.ln1(embedded)
            values = torch.einsum("bpm,hmd->bphd", x, attn.W_V)
            matrix = truth.readout(truth.writes(layer, values, None), None)[:, 0]
        for h in range(matrix.shape[1]):
            e = torch.linalg.eigvals(matrix[:, h])
            found.append(float(e.real.sum() / e.abs().sum()))
    return {"copying_score": torch.tensor(found)}


@row("copying_scores", oracle=_copying, tolerance=10)  # eigenvalues magnify rounding
def _(case: Case) -> Numbers:
    return {"copying_score": torch.tensor(gi.copying_scores(case.model)["copying_score"])}


def _compositions(truth: Truth) -> dict[tuple[int, int, int, str], float]:
    """By sender, receiver and kind, from the weights, in full matrices, norms at a scale of one."""
    found = {}

    def of_head(layer: int, h: int, name: str) -> Tensor:
        """A query's or key's weights, with those of a norm of queries or keys."""
        attn = truth.attn(layer)
        weight, norm = getattr(attn, f"W_{name}")[h], getattr(attn, f"{name.lower()}_norm", None)
        if norm is None:
            return weight
        d = weight.shape[1]
        return weight * (norm.w if len(norm.w) == d else norm.w[h * d : (h + 1) * d])

    def ov(layer: int, h: int) -> Tensor:
        written = truth.attn(layer).W_V[h] @ truth.attn(layer).W_O[h]
        return truth.into_stream(layer, written[None], None)[0]

    for layer, block in enumerate(truth.exact.blocks):
        N = torch.eye(truth.cfg.d_model).double()
        if truth.norm is not None and truth.cfg.original_architecture is None:
            N = frozen(block.ln1, N[None], None)[0]
        for h in range(truth.heads(layer)):
            qk = N @ of_head(layer, h, "Q") @ of_head(layer, h, "K").T @ N.T
            reads = {"Q": qk, "K": qk.T, "V": N @ ov(layer, h)}
            for early in range(layer):
                for s in range(truth.heads(early)):
                    for kind, read in reads.items():
                        size = ov(early, s).norm() * read.norm()
                        score = float((ov(early, s) @ read).norm() / size)
                        found[early * 100 + s, layer, h, kind] = score
    return found


@row(
    "composition_scores",
    oracle=lambda case: {"score": torch.tensor(list(_compositions(case.truth).values()))},
)
def _(case: Case) -> Numbers:
    return {"score": torch.tensor(gi.composition_scores(case.model)["score"].to_numpy(float))}


@row(
    "predict_from_circuits",
    oracle=lambda case: {"logits": case.truth.seen(TOKENS)["logits"]},
)
def _(case: Case) -> Numbers:
    return {"logits": gi.predict_from_circuits(case.model, TOKENS)}


# Attribution.


def _at(x: Tensor) -> Tensor:
    return x[ROWS, POSITIONS]


def _to_target(x: Tensor, rows: Tensor, positions: Tensor, targets: Tensor) -> Tensor:
    """The logit of each example's target, ``[example ...]``."""
    at = x[rows, positions]
    index = targets.view(-1, *[1] * (at.ndim - 1)).expand(*at.shape[:-1], 1)
    return at.gather(-1, index)[..., 0]


def _components(
    truth: Truth, tokens: Tensor, rows: Tensor, positions: Tensor, targets: Tensor
) -> dict[str, Tensor]:
    seen, read = truth.seen(tokens), {}
    read["embed"] = truth.readout(seen["hook_embed"], seen)
    if truth.cfg.positional_embedding_type == "standard":
        read["pos_embed"] = truth.readout(seen["hook_pos_embed"], seen)
    for layer in truth.layers:
        b_O = truth.attn(layer).b_O.detach().expand(*tokens.shape, -1)
        read[f"L{layer} b_O"] = truth.readout(truth.into_stream(layer, b_O, seen), seen)
        heads = truth.logit_writes(layer, tokens)
        read |= {f"L{layer}H{h}": heads[:, :, h] for h in range(heads.shape[2])}
        if not truth.cfg.attn_only:
            read[f"L{layer} mlp"] = truth.readout(seen[f"blocks.{layer}.hook_mlp_out"], seen)
    read["bias"] = truth.bias().expand(*tokens.shape, -1)
    return {name: _to_target(x, rows, positions, targets) for name, x in read.items()}


def _attribution(case: Case) -> Numbers:
    found = _components(case.truth, TOKENS, ROWS, POSITIONS, TARGETS)
    logits = case.truth.seen(TOKENS)["unembed.hook_out"]
    return {**found, "logit": _to_target(logits, ROWS, POSITIONS, TARGETS)}


@row("logit_attribution", oracle=_attribution)
def _(case: Case) -> Numbers:
    found = gi.logit_attribution(case.model, TOKENS, ROWS, POSITIONS, TARGETS)
    parts = dict(zip(found.components, found.values.unbind(1), strict=True))
    return {**parts, "logit": found.logits}


def _by_key(
    truth: Truth, tokens: Tensor, rows: Tensor, positions: Tensor, targets: Tensor
) -> Tensor:
    """What each head writes to a logit from each key, ``[example head key]``, all layers."""
    seen, layers = truth.seen(tokens), []
    for layer in truth.layers:
        keys = []
        for key in range(tokens.shape[1]):
            z = truth.from_key(layer, tokens, key, full=False)
            logits = truth.readout(truth.writes(layer, z, seen), seen)
            keys.append(_to_target(logits, rows, positions, targets))
        layers.append(torch.stack(keys, -1))
    return torch.cat(layers, 1)


@row(
    "source_attribution",
    oracle=lambda case: {"value": _by_key(case.truth, TOKENS, ROWS, POSITIONS, TARGETS)},
)
def _(case: Case) -> Numbers:
    return {"value": gi.source_attribution(case.model, TOKENS, ROWS, POSITIONS, TARGETS)}


def _edge(case: Case) -> Numbers:
    truth, layer = case.truth, case.last
    seen, at = truth.seen(TOKENS), (1, 1, QUERY, KEY)
    z = truth.from_key(layer, TOKENS, KEY, full=False)
    write = truth.readout(truth.writes(layer, z, seen), seen)[1, QUERY, 1, 5]
    score = seen[f"blocks.{layer}.attn.hook_attn_scores"][at]
    return {"score": score, "sum of the parts": score, "write": write}


@row("qk_attribution", oracle=_edge)
def _(case: Case) -> Numbers:
    found = gi.qk_attribution(case.model, case.last, 1, TOKENS, QUERY, KEY, row=1, target=5)
    parts = found.score
    whole = float(parts.pairs.sum()) + sum(parts.beside.values())
    values = {"score": parts.total, "sum of the parts": whole, "write": found.written}
    return {name: torch.tensor(value) for name, value in values.items()}


BATCH = TASK.sample_single(20, seed=0)


def _edges(case: Case) -> Numbers:
    at = BATCH.example, BATCH.destination_pos, BATCH.trigram + TASK.n_trigrams
    keys = _by_key(case.truth, BATCH.tokens, *at)
    whole = _to_target(case.truth.seen(BATCH.tokens)["unembed.hook_out"], *at)
    held = torch.nn.functional.one_hot(BATCH.tokens[BATCH.example], TASK.d_vocab).double()
    values = torch.einsum("ehk,ekv->ehv", keys, held)
    mine = [BATCH.trigram == b for b in TASK.trigrams]
    return {
        "value": torch.stack([values[m].mean(0) for m in mine]),
        "direct": torch.stack([(whole - keys.sum((1, 2)))[m].mean() for m in mine]),
        "logit": torch.stack([whole[m].mean() for m in mine]),
    }


def _lead(logits: Tensor, _tokens: Tensor | None = None) -> Tensor:
    """How far a token's logit is ahead of another's at the last position."""
    return logits[:, -1, 1] - logits[:, -1, 2]


def _slope(model: Any, tokens: Tensor, edits: Callable[[float], dict[str, Any]]) -> Tensor:
    """Of the lead, as all that is edited moves a little towards the other prompts, by hooks."""
    step, found = 1e-4, []
    for size in (step, -step):
        hooks = [(name, edit) for name, edit in edits(size).items()]
        with torch.no_grad():
            found.append(_lead(model.run_with_hooks(tokens, fwd_hooks=hooks)))
    return (found[0] - found[1]) / (2 * step)


def _node_slopes(case: Case) -> Numbers:
    """The slope at each head and MLP, in float64."""
    truth, found = case.truth, {}
    here, other = truth.seen(TOKENS), truth.seen(SOURCE)

    def towards(name: str, head: int | None) -> Callable[[float], dict[str, Any]]:
        def at(size: float) -> dict[str, Any]:
            def edit(x: Tensor, hook: Any) -> Tensor:
                moved, part = x.clone(), slice(None) if head is None else (..., head, slice(None))
                moved[part] += size * (other[name] - here[name])[part]
                return moved

            return {name: edit}

        return at

    for name, place, head in _nodes(truth):
        found[name] = _slope(truth.exact, TOKENS, towards(place, head))
    return found


def _nodes(truth: Truth) -> list[tuple[str, str, int | None]]:
    found: list[tuple[str, str, int | None]] = []
    for layer in truth.layers:
        z = f"blocks.{layer}.attn.hook_z"
        found += [(f"L{layer}H{h}", z, h) for h in range(truth.heads(layer))]
        if not truth.cfg.attn_only:
            found.append((f"L{layer} mlp", f"blocks.{layer}.hook_mlp_out", None))
    return found


def _exact_nodes(case: Case) -> Numbers:
    """The change as each head or MLP holds what it holds on the other prompts."""
    truth, found = case.truth, {}
    intact, other = _lead(truth.seen(TOKENS)["logits"]), truth.seen(SOURCE)
    for name, place, head in _nodes(truth):
        at = slice(None) if head is None else (..., head, slice(None))

        def edit(x: Tensor, place: str = place, at: Any = at) -> Tensor:
            x = x.clone()
            x[at] = other[place][at].to(x)
            return x

        found[name] = _lead(truth.logits(TOKENS, {place: edit})) - intact
    return found


def _by_name(found: Any) -> Numbers:
    return dict(zip(found.names, found.scores.T, strict=True))


def full_precision(column: Column) -> bool:
    """Slopes are of float32 or float64: in 16 bits rounding moves more than a small step."""
    return column.dtype in ("float32", "float64")


@row(
    "attribute_heads", "exact", oracle=_exact_nodes, tolerance=3
)  # a small difference of two leads, which 16 bits round
def _(case: Case) -> Numbers:
    return _by_name(gi.attribute_heads(case.model, TOKENS, SOURCE, _lead))


@row(
    "attribute_heads", "AtP*", oracle=_node_slopes, applies=full_precision, tolerance=100
)  # gradients in float32, slopes by differences
def _(case: Case) -> Numbers:
    return _by_name(gi.attribute_heads(case.model, TOKENS, SOURCE, _lead, method="AtP*"))


def _write_slopes(case: Case) -> Numbers:
    """The slope at what each head and MLP writes, a norm behind attention at its scale."""
    truth, found = case.truth, {}
    here, other = truth.seen(TOKENS), truth.seen(SOURCE)
    for name, place, head in _nodes(truth):
        layer, moved = int(place.split(".")[1]), other[place] - here[place]
        if head is not None:
            place = f"blocks.{layer}.hook_attn_out"
            written = moved[:, :, head] @ truth.attn(layer).W_O[head].detach()
            moved = truth.into_stream(layer, written, here)

        def at(size: float, place: str = place, moved: Tensor = moved) -> dict[str, Any]:
            return {place: lambda x, hook: x + size * moved}

        found[name] = _slope(truth.exact, TOKENS, at)
    return found


@row(
    "attribute_edges", "EAP", oracle=_write_slopes, applies=full_precision, tolerance=100
)  # what leaves a head or an MLP adds up to its slope
def _(case: Case) -> Numbers:
    edges = gi.attribute_edges(case.model, TOKENS, SOURCE, _lead, method="EAP")
    found: Numbers = {}
    for (sender, _), score in zip(edges.names, edges.scores.T, strict=True):
        found[sender] = found.get(sender, 0) + score
    del found["embed"]
    return found


def _direct(case: Case) -> Numbers:
    """The change as only the logits read a head's or MLP's write on the other prompts."""
    truth, last = case.truth, f"blocks.{case.last}.hook_resid_post"
    here, other, found = truth.seen(TOKENS), truth.seen(SOURCE), {}
    for name, place, head in _nodes(truth):
        moved = other[place] - here[place]
        if head is not None:
            moved = moved[:, :, head] @ truth.attn(int(place.split(".")[1])).W_O[head].detach()
        after = truth.logits(TOKENS, {last: lambda x, moved=moved: x + moved.to(x)})
        found[name] = _lead(after) - _lead(here["logits"])
    return found


@row("attribute_edges", "exact", oracle=_direct, tolerance=3)  # likewise
def _(case: Case) -> Numbers:
    edges = gi.attribute_edges(case.model, TOKENS, SOURCE, _lead, method="exact")
    found = dict(zip(edges.names, edges.scores.T, strict=True))
    return {
        sender: score
        for (sender, receiver), score in found.items()
        if receiver == "logits" and sender != "embed"
    }


@row("edge_loadings", oracle=_edges)
def _(case: Case) -> Numbers:
    found = gi.edge_loadings(case.model, BATCH, TASK)
    return {"value": found.values, "direct": found.direct, "logit": found.logits}


# Ablation.


def _without(truth: Truth, tokens: Tensor, heads: dict[tuple[int, int], Tensor]) -> Tensor:
    """Logits with these heads' z replaced."""
    edits = {}
    for layer in {i for i, _ in heads}:

        def edit(z: Tensor, layer: int = layer) -> Tensor:
            z = z.clone()
            for (i, head), value in heads.items():
                if i == layer:
                    z[:, :, head] = value.to(z)
            return z

        edits[f"blocks.{layer}.attn.hook_z"] = edit
    return truth.logits(tokens, edits)


def _z(truth: Truth, tokens: Tensor, layer: int, head: int) -> Tensor:
    return truth.seen(tokens)[f"blocks.{layer}.attn.hook_z"][:, :, head]


def _put(truth: Truth, method: str, layer: int, head: int) -> Tensor:
    z = _z(truth, SOURCE, layer, head)
    if method == "zero":
        return torch.zeros_like(z[0, 0])
    if method == "mean":
        return z.mean((0, 1))
    draw = torch.randint(len(SOURCE), (len(TOKENS),), generator=torch.Generator().manual_seed(5))
    return z[draw]


def _all_heads(truth: Truth) -> list[tuple[int, int]]:
    return [(layer, h) for layer in truth.layers for h in range(truth.heads(layer))]


def _ablations(method: str) -> Callable[[Case], Numbers]:
    def oracle(case: Case) -> Numbers:
        truth, found = case.truth, {}
        intact, every = truth.seen(TOKENS)["logits"], _all_heads(truth)
        sets = {f"L{i}H{h}": [(i, h)] for i, h in every} | {"all heads": every}
        for name, heads in sets.items():
            put = {(i, h): _put(truth, method, i, h) for i, h in heads}
            after = _without(truth, TOKENS, put)
            if truth.cfg.d_vocab_out == truth.cfg.d_vocab:
                found[f"{name} loss"] = losses(after, TOKENS).mean()
            found[f"{name} kl"] = kl(intact, after).mean()
        return found

    return oracle


def _ablated(case: Case, method: str, **given: Any) -> Numbers:
    table = gi.ablate(case.model, TOKENS, method=method, **given)
    return {
        f"{heads} {metric}": torch.tensor(value)
        for heads, metric, value in table[["heads", "metric", "ablated"]].itertuples(index=False)
    }


@row("ablate", "zero", oracle=_ablations("zero"))
def _(case: Case) -> Numbers:
    return _ablated(case, "zero")


@row("ablate", "mean", oracle=_ablations("mean"))
def _(case: Case) -> Numbers:
    return _ablated(case, "mean", reference_tokens=SOURCE)


@row("ablate", "resample", oracle=_ablations("resample"))
def _(case: Case) -> Numbers:
    return _ablated(case, "resample", reference_tokens=SOURCE, seed=5)


# The best constant has no closed form; that it costs no more than zeros and means can be checked.
@row("without_heads", "optimal", oracle=lambda case: {"no worse": True})
def _(case: Case) -> Numbers:
    few = TOKENS[:2, :4]
    with gi.without_heads(case.model, ["L0H1"], "optimal", reference_tokens=few) as model:
        after = model(few).detach().double()
    truth, intact = case.truth, case.truth.seen(few)["logits"]
    found = float(kl(intact, after).mean())
    least = min(
        float(kl(intact, _without(truth, few, {(0, 1): put})).mean())
        for put in (torch.zeros(()), _z(truth, few, 0, 1).mean((0, 1)))
    )
    return {"no worse": found <= least * (1 + 10 * TOLERANCE[case.column.dtype]) + 1e-6}


@row(
    "without_heads",
    oracle=lambda case: {
        "logits": _without(
            case.truth,
            TOKENS,
            {
                (0, 1): _put(case.truth, "mean", 0, 1),
                (case.last, 0): _put(case.truth, "mean", case.last, 0),
            },
        )
    },
)
def _(case: Case) -> Numbers:
    heads = ["L0H1", f"L{case.last}H0"]
    with gi.without_heads(case.model, heads, "mean", reference_tokens=SOURCE) as model:
        return {"logits": model(TOKENS)}


@functools.lru_cache(1)
def _subsets(column: Column) -> tuple[Tensor, int]:
    """The loss of every subset of the last layer's heads, the others' z zero."""
    truth = _truth_of(column)
    layer = truth.cfg.n_layers - 1
    n, found = truth.heads(layer), []
    for subset in range(2**n):
        put = {(layer, h): torch.zeros(()) for h in range(n) if not subset >> h & 1}
        found.append(losses(_without(truth, TOKENS, put), TOKENS).mean())
    return torch.stack(found), n


def _few_heads(column: Column) -> bool:
    """A block of many heads in the only layer makes too many subsets to try in a test."""
    return column.flags["n_layers"] > 1 or column.block in ("", *GATED)


@row(
    "subset_values",
    "the loss on tokens",
    oracle=lambda case: {"loss": _subsets(case.column)[0]},
    applies=_few_heads,
)
def _(case: Case) -> Numbers:
    return {"loss": gi.subset_values(case.model, TOKENS, layer=case.last).values["loss"][0]}


def _shapley(case: Case) -> Numbers:
    value, n = _subsets(case.column)
    orders = list(itertools.permutations(range(n)))
    gain = torch.zeros(n).double()
    for order in orders:
        seen = 0
        for h in order:
            gain[h] += value[seen | 1 << h] - value[seen]
            seen |= 1 << h
    return {"value": gain / len(orders)}


@row("shapley", oracle=_shapley, applies=_few_heads)
def _(case: Case) -> Numbers:
    return {"value": torch.tensor(gi.shapley(case.model, TOKENS, layer=case.last)["value"])}


def _effects(case: Case) -> Numbers:
    value, n = _subsets(case.column)
    every = 2**n - 1
    return {
        "off": torch.stack([value[every ^ 1 << h] - value[every] for h in range(n)]),
        "alone": torch.stack([value[0] - value[1 << h] for h in range(n)]),
        "shapley": -_shapley(case)["value"],
    }


@row("head_effects", oracle=_effects, applies=_few_heads)
def _(case: Case) -> Numbers:
    found = gi.head_effects(case.model, case.last, TOKENS, method="zero")
    return {name: getattr(found, name).mean(0) for name in ("off", "alone", "shapley")}


def _pair_gains(case: Case) -> Numbers:
    value, n = _subsets(case.column)
    v, found = value - value[0], torch.zeros(n, n).double()
    for i, j in itertools.product(range(n), repeat=2):
        both = v[1 << i | 1 << j]
        found[i, j] = both if i == j else both - v[1 << i] - v[1 << j]
    return {"loss": found}


@row("pair_interactions", oracle=_pair_gains, applies=_few_heads)
def _(case: Case) -> Numbers:
    return {"loss": gi.pair_interactions(case.model, TOKENS, layer=case.last)["loss"][0]}


# Patching.


def _sharing(centred: bool) -> Callable[[Case], Numbers]:
    """From what each head writes, [batch pos head d_model], one head after the other."""

    def oracle(case: Case) -> Numbers:
        seen = case.truth.seen(TOKENS)
        writes = case.truth.writes(0, seen["blocks.0.attn.hook_z"], seen)[:, 1:]
        if centred:
            writes = writes - writes.flatten(0, 1).mean(0)
        whole = writes.sum(2)
        heads = range(writes.shape[2])
        length = torch.stack([writes[:, :, h].norm(dim=-1) for h in heads], -1)
        share = torch.stack([(writes[:, :, h] * whole).sum(-1) for h in heads], -1)
        share = share / (whole * whole).sum(-1, keepdim=True)
        number = length.sum(-1) ** 2 / (length**2).sum(-1)
        lost = 1 - whole.norm(dim=-1) / length.sum(-1)
        return {"length": length, "share": share, "number": number, "cancelled": lost}

    return oracle


def _shared(case: Case, centred: bool) -> Numbers:
    found = gi.head_sharing(case.model, 0, TOKENS, centred=centred)
    return {
        "length": found.length[:, 1:],
        "share": found.share[:, 1:],
        "number": found.participation[:, 1:],
        "cancelled": found.cancellation[:, 1:],
    }


@row("head_sharing", oracle=_sharing(False))
def _(case: Case) -> Numbers:
    return _shared(case, False)


@row("head_sharing", "without means", oracle=_sharing(True))
def _(case: Case) -> Numbers:
    return _shared(case, True)


def _has(name: str, layer: int) -> Callable[[Column], bool]:
    """Whether a model has the hook point at that layer, at all."""

    def applies(column: Column) -> bool:
        if layer >= column.flags["n_layers"]:
            return False
        rotary = column.flags.get("positional_embedding_type") == "rotary"
        gate = "gate" in name
        own = layer > 0 or not column.block
        if name == "hook_attn_in" and "n_key_value_heads" in column.flags:
            return False  # TransformerLens refuses such a model to be made
        if column.block == "autoencoder" and not own and name not in ("hook_z",):
            return False
        there = (rotary and own) or "rot" not in name
        return there and (not gate or with_gates(column))

    return applies


# By the hook point: where its heads are, and what a model must be told to make it.
HEAD_AXES = {
    "hook_q": 2,
    "hook_k": 2,
    "hook_v": 2,
    "hook_z": 2,
    "hook_rot_q": 2,
    "hook_rot_k": 2,
    "hook_result": 2,
    "hook_attn_scores": 1,
    "hook_pattern": 1,
    "hook_gate": 1,
    "hook_gated_pattern": 1,
    "hook_q_input": 2,
    "hook_k_input": 2,
    "hook_v_input": 2,
    "hook_attn_in": 2,
}
SWITCHES = {
    "hook_result": "use_attn_result",
    "hook_q_input": "use_split_qkv_input",
    "hook_k_input": "use_split_qkv_input",
    "hook_v_input": "use_split_qkv_input",
    "hook_attn_in": "use_attn_in",
}
# With heads' inputs split, TransformerLens runs these modules, not the block's attention alone.
OF_BLOCK = ("hook_q_input", "hook_k_input", "hook_v_input", "hook_attn_in")


def _place(name: str, layer: int) -> str:
    return f"blocks.{layer}.{'' if name in OF_BLOCK else 'attn.'}{name}"


def _switched(model: Any, name: str) -> Any:
    if name in SWITCHES:
        setattr(model.cfg, SWITCHES[name], True)
    return model


@functools.lru_cache(4)
def _truth_with(column: Column, switch: str) -> Truth:
    model = column.build()
    setattr(model.cfg, switch, True)
    return Truth(model)


def _switched_truth(column: Column, name: str) -> Truth:
    return _truth_with(column, SWITCHES[name]) if name in SWITCHES else _truth_of(column)


def _patched(name: str, layer: int) -> Callable[[Case], Numbers]:
    def oracle(case: Case) -> Numbers:
        truth, place = _switched_truth(case.column, name), _place(name, layer)
        source, axis, found = truth.run(SOURCE, {}, [place])[place], HEAD_AXES[name], {}
        for head in (0, 1, source.shape[axis] - 1, None):

            def edit(x: Tensor, head: int | None = head) -> Tensor:
                x = x.clone()
                where = [slice(None)] * 4
                if head is not None:
                    where[axis] = head
                x[tuple(where)] = source[tuple(where)].to(x)
                return x

            found[f"head {head}"] = truth.logits(TOKENS, {place: edit})
        return found

    return oracle


def _patch_rows(name: str, layer: int) -> None:
    @row(
        "activation_patch",
        f"{name} of layer {layer}",
        oracle=_patched(name, layer),
        applies=_has(name, layer),
    )
    def _(case: Case) -> Numbers:
        model, place, found = _switched(case.model, name), _place(name, layer), {}
        last = len(model.blocks[layer].attn.W_O) - 1
        for head in (0, 1, last, None):
            given = {} if head is None else {"head": head}
            logits = gi.activation_patch(model, TOKENS, SOURCE, place, **given)
            found[f"head {head}"] = logits
        return found


for _name in ("hook_q", "hook_k", "hook_v", "hook_z", "hook_attn_scores", "hook_pattern"):
    _patch_rows(_name, 0)
for _name in ("hook_gate", "hook_gated_pattern"):
    _patch_rows(_name, 0)
for _name in ("hook_result", "hook_rot_q", "hook_rot_k", *OF_BLOCK):
    _patch_rows(_name, 1)


def _stream_patched(case: Case) -> Numbers:
    place, truth = "blocks.0.hook_resid_post", case.truth
    source = truth.seen(SOURCE)[place]

    def edit(x: Tensor) -> Tensor:
        x = x.clone()
        x[:, 3] = source[:, 3].to(x)
        return x

    return {"logits": truth.logits(TOKENS, {place: edit})}


@row("activation_patch", "the stream at one position", oracle=_stream_patched)
def _(case: Case) -> Numbers:
    place = "blocks.0.hook_resid_post"
    return {"logits": gi.activation_patch(case.model, TOKENS, SOURCE, place, position=3)}


def _path(
    truth: Truth,
    tokens: Tensor,
    source: Tensor,
    sender: tuple[int, int],
    receiver: str,
    head: int | None,
) -> Tensor:
    """Logits where the receiver alone sees the sender's z of the source; MLPs are frozen too."""
    seen, z = truth.seen(tokens), _z(truth, source, *sender)
    frozen = [f"blocks.{i}.attn.hook_z" for i in truth.layers]
    if not truth.cfg.attn_only:
        frozen += [f"blocks.{i}.hook_mlp_out" for i in truth.layers]

    def keep(name: str) -> Callable[[Tensor], Tensor]:
        kept = seen[name].clone()
        if name == f"blocks.{sender[0]}.attn.hook_z":
            kept[:, :, sender[1]] = z
        return lambda x: kept.to(x)

    edits = {name: keep(name) for name in frozen if name != receiver}
    arrived = truth.run(tokens, edits, [receiver])[receiver]

    def deliver(x: Tensor) -> Tensor:
        x = x.clone()
        where = (slice(None),) if head is None else (slice(None), slice(None), head)
        x[where] = arrived[where].to(x)
        return x

    return truth.logits(tokens, {receiver: deliver})


def _path_rows(receiver: str, applies: Callable[[Column], bool], heads: tuple[Any, ...]) -> None:
    @row(
        "path_patch",
        f"to {receiver.split('.')[-1]}",
        oracle=lambda case: {
            f"{s} to {h}": _path(case.truth, TOKENS, SOURCE, (0, s), receiver, h)
            for s in (0, 1)
            for h in heads
        },
        applies=applies,
    )
    def _(case: Case) -> Numbers:
        found = {}
        for s, h in itertools.product((0, 1), heads):
            given = {} if h is None else {"receiver_head": h}
            logits = gi.path_patch(case.model, TOKENS, SOURCE, (0, s), receiver, **given)
            found[f"{s} to {h}"] = logits
        return found


for _name in ("hook_q", "hook_k", "hook_v"):
    _path_rows(f"blocks.1.attn.{_name}", several_layers, (0, 1))
_path_rows("blocks.1.hook_resid_post", several_layers, (None,))
_path_rows(
    "blocks.0.hook_mlp_out",
    lambda c: not c.flags["attn_only"] and not c.flags["parallel_attn_mlp"],
    (None,),
)


def _effects(case: Case) -> Numbers:
    truth = case.truth
    intact, source = (truth.seen(t)["logits"][:, 6, 3].mean() for t in (TOKENS, SOURCE))
    logits = [
        _without(truth, TOKENS, {(0, h): _z(truth, SOURCE, 0, h)})[:, 6, 3].mean()
        for h in range(truth.heads(0))
    ]
    return {"logit": torch.stack(logits), "intact": intact, "source": source}


@row("patch_effects", oracle=_effects)
def _(case: Case) -> Numbers:
    name = "blocks.0.attn.hook_z"
    found = gi.patch_effects(case.model, TOKENS, SOURCE, [name], position=6, target=3)
    logit = torch.tensor(found["logit"])
    return {
        "logit": logit,
        "intact": torch.tensor(found["intact"][0]),
        "source": torch.tensor(found["source"][0]),
    }


# What heads attend to and copy.


def _induction(truth: Truth, tokens: Tensor) -> Numbers:
    found: dict[str, list[Tensor]] = {"prefix": [], "per copy": [], "previous": []}
    n = tokens.shape[1]
    after = torch.zeros(len(tokens), n, n)
    for b, q, k in itertools.product(range(len(tokens)), range(n), range(1, n)):
        after[b, q, k] = float(k <= q and tokens[b, k - 1] == tokens[b, q])
    repeats = after.any(-1).sum()
    for layer in truth.layers:
        pattern = truth.seen(tokens)[truth.pattern_name(layer)]
        matched = (pattern * after[:, None]).sum((0, 2, 3))
        found["prefix"] += [matched / repeats]
        found["per copy"] += [matched / after.sum()]
        before = [pattern[:, :, q, q - 1] for q in range(1, n)]
        found["previous"] += [torch.stack(before).mean((0, 1))]
    return {name: torch.cat(parts) for name, parts in found.items()}


SCORES = {"prefix": "prefix_matching", "per copy": "per_copy", "previous": "previous_token"}


@row("induction_scores", oracle=lambda case: _induction(case.truth, REPEATS))
def _(case: Case) -> Numbers:
    found = gi.induction_scores(case.model, REPEATS)
    return {name: torch.tensor(found[column]) for name, column in SCORES.items()}


# Tokens are drawn, not measured: what is checked is that each sequence is its own repeat.
@row("repeated_random_tokens", oracle=lambda case: {"repeats": True, "bos": True})
def _(case: Case) -> Numbers:
    found = gi.text.repeated_random_tokens(case.model, 5, bos=TASK.bos)
    copy_of = found[:, 1:].view(5, 2, -1)
    return {
        "repeats": bool((copy_of[:, 0] == copy_of[:, 1]).all()) and len(set(found[0].tolist())) > 5,
        "bos": bool((found[:, 0] == TASK.bos).all()),
    }


def _drawn(n: int, seed: int) -> Tensor:
    """Behind BOS all other tokens in an order of each sequence's own."""
    order = torch.rand(n, TASK.d_vocab, generator=torch.Generator().manual_seed(seed))
    order[:, TASK.bos] = 2.0
    return torch.cat([torch.full((n, 1), TASK.bos), order.argsort(-1)[:, : TASK.d_vocab - 1]], 1)


def _copies(truth: Truth) -> Tensor:
    """How far each head raises the token that it attends to."""
    tokens, found = _drawn(4, 0), []
    seen = truth.seen(tokens)
    for layer in truth.layers:
        own = every = torch.zeros(truth.heads(layer)).double()
        pattern = seen[truth.pattern_name(layer)]
        if truth.norm is not None:
            pattern = pattern / seen["ln_final.hook_scale"][:, None]
        for key in range(1, tokens.shape[1]):
            z = truth.from_key(layer, tokens, key, full=True)
            # A norm behind the attention divides by what it divides by at the query.
            scale = {n: a[:, 1:] for n, a in seen.items() if a.ndim == 3}
            each = truth.readout(truth.writes(layer, z[:, 1:], scale), None)
            index = tokens[:, None, None, 1:].expand(-1, *each.shape[1:3], -1)
            raised = each.gather(-1, index)
            raised = (raised - raised.mean(-1, keepdim=True)).clamp(min=0)
            weight = pattern[:, :, 1:, key].transpose(1, 2)
            own = own + (weight * raised[..., key - 1]).sum((0, 1))
            every = every + (weight * raised.sum(-1)).sum((0, 1))
        found.append(2 * own / every - 1)
    return torch.cat(found)


def _head_scores(case: Case) -> Numbers:
    truth = case.truth
    repeated = gi.text.repeated_random_tokens(case.model, 4, seed=0, bos=TASK.bos)
    found = _induction(truth, repeated)
    found["previous"] = _induction(truth, TOKENS)["previous"]
    found["copying"] = _copies(truth)
    ov = _copying(case)["copying_score"]
    narrow = [truth.attn(i).W_O.shape[1] == 1 for i, _ in _all_heads(truth)]
    found["ov_copying"] = torch.where(torch.tensor(narrow), math.nan, ov)
    scores = _compositions(truth)
    for kind in "QKV":
        most = [
            max((v for k, v in scores.items() if k[1:] == (i, h, kind)), default=math.nan)
            for i, h in _all_heads(truth)
        ]
        found[kind] = torch.tensor(most)
    return found


@row("head_scores", oracle=_head_scores, tolerance=10)  # of eigenvalues, as copying_scores
def _(case: Case) -> Numbers:
    table = gi.head_scores(case.model, TOKENS, n=4, bos=TASK.bos)
    found = {name: torch.tensor(table[column]) for name, column in SCORES.items()}
    found["copying"] = torch.tensor(table["copying"])
    found["ov_copying"] = torch.tensor(table["ov_copying"])
    # What random heads would score depends on shapes alone.
    pairs = gi.composition_scores(case.model)
    for kind in "QKV":
        excess = torch.tensor(table[f"{kind.lower()}_composition"].to_numpy(dtype=float))
        usual = []
        for _layer, _head, best in table[["layer", "head", f"{kind.lower()}_sender"]].values:
            mine = pairs.query("receiver_layer == @_layer and receiver_head == @_head")
            names = [
                f"L{i}H{h}"
                for i, h in mine[["sender_layer", "sender_head"]].itertuples(index=False)
            ]
            at = dict(zip(names, mine["expected"], strict=True))
            usual.append(at.get(best, math.nan))
        found[kind] = excess + torch.tensor(usual)
    return found


def _worth(truth: Truth, tokens: Tensor, first: int) -> tuple[Tensor, Tensor]:
    """By what the loss from a position on rises with the mean of heads' z put in: of each layer's
    heads at once, and of each head."""
    mean = {(i, h): _z(truth, tokens, i, h).mean((0, 1)) for i, h in _all_heads(truth)}
    intact = losses(truth.seen(tokens)["logits"], tokens)[:, first:].mean()

    def rises(sets: list[list[tuple[int, int]]]) -> Tensor:
        after = [_without(truth, tokens, {head: mean[head] for head in heads}) for heads in sets]
        return torch.stack([losses(a, tokens)[:, first:].mean() for a in after]) - intact

    layers = [[head for head in mean if head[0] == layer] for layer in truth.layers]
    return rises(layers), rises([[head] for head in mean])


def _overview(case: Case) -> Numbers:
    truth, found = case.truth, {}
    repeated = gi.text.repeated_random_tokens(case.model, 3, seed=0, bos=TASK.bos)
    found["layers"], found["heads"] = _worth(truth, TOKENS, 0)
    again = (repeated.shape[1] - 1) // 2 + 1
    found["layers repeats"], found["heads repeats"] = _worth(truth, repeated, again)
    found["prefix"] = _induction(truth, repeated)["prefix"]
    before, first = [], []
    for layer in truth.layers:
        pattern = truth.seen(TOKENS)[truth.pattern_name(layer)]
        before += [pattern.diagonal(-1, 2, 3)[..., 1:].mean((0, 2))]
        first += [pattern[:, :, 2:, 0].mean((0, 2))]
    return {**found, "previous": torch.cat(before), "first": torch.cat(first)}


@row("head_overview", oracle=_overview)
def _(case: Case) -> Numbers:
    found = gi.head_overview(case.model, TOKENS, n=3, bos=TASK.bos)
    columns = {"heads": "effect", "heads repeats": "effect_repeats", "prefix": "prefix_matching"}
    columns |= {"previous": "previous_token", "first": "first_token"}
    return {
        "layers": torch.tensor(found.layers["effect"]),
        "layers repeats": torch.tensor(found.layers["effect_repeats"]),
        **{name: torch.tensor(found.table[column]) for name, column in columns.items()},
    }


def _paths(case: Case) -> Numbers:
    truth = case.truth
    tokens = gi.text.repeated_random_tokens(case.model, 3, seed=0, bos=TASK.bos)
    seed = derive(0, Stream.PATH_SOURCE)
    other = gi.text.repeated_random_tokens(case.model, 3, seed=seed, bos=TASK.bos)
    half = (tokens.shape[1] - 1) // 2
    intact, found = -losses(truth.seen(tokens)["logits"], tokens)[:, half + 1 :].mean(1), {}
    for sender in (0, 2):
        for name, hook in {"K": "hook_k", "Q": "hook_q", "V": "hook_v"}.items():
            logits = _path(truth, tokens, other, (0, sender), f"blocks.1.attn.{hook}", 1)
            after = -losses(logits, tokens)[:, half + 1 :].mean(1)
            found[f"L0H{sender} {name}"] = (intact - after).mean()
    return found


@row("induction_paths", oracle=_paths, applies=several_layers)
def _(case: Case) -> Numbers:
    found = gi.induction_paths(case.model, "L1H1", ["L0H0", "L0H2"], n=3, bos=TASK.bos)
    named = found[["sender", "input", "effect"]].itertuples(index=False)
    return {f"{sender} {name}": torch.tensor(effect) for sender, name, effect in named}


# What heads say on text.


def _held(a: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Top token, sole holder (-1: none) and effect, by the definition; ``a``: [pos head token]."""
    tops, holders, effects = [], [], []
    for here in a:
        whole = here.sum(0)
        c = int(whole.argmax())
        lead = here[:, c : c + 1] - here
        others = [t for t in range(len(whole)) if t != c]
        keeps = []
        for h in range(len(here)):
            worst = lead[h].clamp(min=0) + lead.clamp(max=0).sum(0)
            if bool((worst[others] > 0).all()):
                keeps.append(h)
        effect = whole[c] - whole.mean()
        tops.append(c)
        holders.append(keeps[0] if len(keeps) == 1 and effect > 0 else -1)
        effects.append(float(effect))
    return torch.tensor(tops), torch.tensor(holders), torch.tensor(effects)


def _text_holders(truth: Truth, layer: int, about_mean: bool, tokens: Tensor) -> Numbers:
    seen = truth.seen(tokens)
    z = seen[f"blocks.{layer}.attn.hook_z"]
    if about_mean:
        z = z - z[:, 1:].mean((0, 1))
    a = truth.readout(truth.writes(layer, z, seen), seen).flatten(0, 1)
    top, holder, effect = (x.view(tokens.shape) for x in _held(a))
    return {"top": top, "holder": holder, "effect": effect}


@row(
    "text_holders",
    oracle=lambda case: {
        f"{layer} {mean} {name}": value
        for layer in case.truth.layers
        for mean in (False, True)
        for name, value in _text_holders(case.truth, layer, mean, TOKENS).items()
    },
)
def _(case: Case) -> Numbers:
    found = {}
    for layer, mean in itertools.product(range(case.last + 1), (False, True)):
        held = gi.text_holders(case.model, layer, TOKENS, about_mean=mean)
        for name in ("top", "holder", "effect"):
            found[f"{layer} {mean} {name}"] = getattr(held, name)
    return found


def _read(case: Case) -> Numbers:
    truth, layer, v = case.truth, 0, TASK.d_vocab
    seen = truth.seen(TOKENS)
    z = seen["blocks.0.attn.hook_z"]
    heads, writes = z.shape[2], truth.writes(layer, z, seen)
    length = writes.norm(dim=-1)
    typical = writes.sum(2).square().sum(-1).mean().sqrt()
    intact = losses(truth.seen(TOKENS)["logits"], TOKENS).mean()
    held = _text_holders(truth, layer, False, TOKENS)
    said = truth.logit_writes(layer, TOKENS).argmax(-1)
    roles = {r: torch.zeros(heads, v).double() for r in ("source", "destination", "output")}
    for key in range(TOKENS.shape[1]):
        z_of = truth.from_key(layer, TOKENS, key, full=False, picked=False)
        read = truth.writes(layer, z_of, seen)
        by_row = read.norm(dim=-1)[:, 1:].sum(1)  # [batch head]
        for b in range(len(TOKENS)):
            roles["source"][:, TOKENS[b, key]] += by_row[b]
    for b, q in itertools.product(range(len(TOKENS)), range(1, TOKENS.shape[1])):
        roles["destination"][:, TOKENS[b, q]] += length[b, q]
        for h in range(heads):
            roles["output"][h, said[b, q, h] if said.shape[-1] else 0] += length[b, q, h]
    found: Numbers = {
        "active": (length > 1e-3 * typical)[:, 1:].double().mean((0, 1)),
        "share": length.square().sum((0, 1)) / length.square().sum(),
        "effect": torch.stack(
            [
                losses(_without(truth, TOKENS, {(0, h): torch.zeros(())}), TOKENS).mean() - intact
                for h in range(heads)
            ]
        ),
        "held": torch.stack([(held["holder"][:, 1:] == h).double().mean() for h in range(heads)]),
        "longest": length[:, 1:].amax((0, 1)),
    }
    for role, totals in roles.items():
        for h in range(heads):
            share = totals[h] / totals[h].sum().clamp(min=1e-12)
            found[f"{role} {h}"] = share
    return found


@row("read_heads", oracle=_read)
def _(case: Case) -> Numbers:
    # From the first layer, because a spliced block is there.
    names = [str(i) for i in range(TASK.d_vocab)]
    read = gi.read_heads(case.model, 0, TOKENS, names=names, top=TASK.d_vocab, contexts=1)
    table = read.table.sort_values("head")
    found = {
        name: torch.tensor(table[name].to_numpy()) for name in ("active", "share", "effect", "held")
    }
    heads = len(table)
    longest = torch.zeros(heads).double()
    for head, length in read.contexts[["head", "length"]].itertuples(index=False):
        longest[head] = length
    found["longest"] = longest
    for role, h in itertools.product(("source", "destination", "output"), range(heads)):
        mine = read.details[(read.details["role"] == role) & (read.details["head"] == h)]
        share = torch.zeros(TASK.d_vocab).double()
        for token, value in mine[["token", "share"]].itertuples(index=False):
            share[int(token)] = value
        found[f"{role} {h}"] = share
    return found


class Unchecked(Exception):
    """The function gives numbers where the matrix has nothing to hold them to."""


def _plain_scores(column: Column) -> bool:
    """Whether an attention score hangs on the two tokens alone, up to a mean of positions."""
    flags = column.flags
    odd = ("use_local_attn", "use_attention_sinks", "use_logn_attn", "attention_dir")
    learned = flags.get("positional_embedding_type", "standard") in ("standard", "shortformer")
    if column.block:
        return column.block != SEES_POSITIONS
    return learned and not any(flags.get(name) for name in odd)


def _trigrams(case: Case) -> Numbers:
    """By the formula that the function says, in full; positions and scales in the mean."""
    if not _plain_scores(case.column):
        raise Unchecked(
            "scores hang on more than the two tokens, and numbers are given all the same"
        )
    truth, tokens = case.truth, TEXT
    seen, model = truth.seen(tokens), truth.exact
    counts = tokens.flatten().bincount(minlength=TASK.d_vocab).double()
    attn, block = model.blocks[0].attn, model.blocks[0]
    own, kind = not case.column.block, truth.cfg.positional_embedding_type
    with torch.no_grad():
        e = model.embed(torch.arange(TASK.d_vocab)[None])[0]
        place = torch.zeros_like(e[0])
        if kind in ("standard", "shortformer"):
            place = model.pos_embed.W_pos[: tokens.shape[1]].mean(0)
        after = truth.cfg.original_architecture is not None

        def normed(x: Tensor) -> Tensor:
            if truth.norm is None or after:
                return x
            scale = seen["blocks.0.ln1.hook_scale"].flatten()
            sums = torch.zeros(TASK.d_vocab).double().index_add(0, tokens.flatten(), scale)
            mean = torch.where(counts > 0, sums / counts, scale.mean())[:, None]
            handle = block.ln1.hook_scale.register_forward_hook(lambda *_: mean[None])
            try:
                return block.ln1(x[None])[0]
            finally:
                handle.remove()

        values = normed(e)
        reads = values + place if kind == "shortformer" else normed(e + place)
        # Of every head, [token head d_head], as TransformerLens goes on with them.
        q, k, v = (
            torch.einsum("tm,hmd->thd", x, getattr(attn, f"W_{n}")) + getattr(attn, f"b_{n}")
            for n, x in (("Q", reads), ("K", reads), ("V", values))
        )
        if not own or truth.cfg.clip_qkv is None:
            v = v - attn.b_V  # left out by the function, unless it is clipped with the values
        if own and getattr(attn, "q_norm", None) is not None:
            flat = after and len(attn.q_norm.w) > q.shape[2]
            q, k = (
                norm(x.flatten(1) if flat else x).view(x.shape)
                for norm, x in ((attn.q_norm, q), (attn.k_norm, k))
            )
        if own and truth.cfg.clip_qkv is not None:
            clip = truth.cfg.clip_qkv
            q, k, v = (x.clamp(-clip, clip) for x in (q, k, v))
        cap = truth.cfg.attn_scores_soft_cap if own else -1
        behind = ["ln_final", "blocks.0.ln1_post", *(["blocks.0.ln1"] if after else [])]
        scales = [seen[f"{n}.hook_scale"] for n in behind if f"{n}.hook_scale" in seen]
        final = torch.stack(scales).prod(0).mean() if scales else 1.0
        found: Numbers = {}
        for h in range(truth.heads(0)):
            qk = q[:, h] @ k[:, h].T / attn.attn_scale
            qk = cap * (qk / cap).tanh() if cap > 0 else qk
            usual = (qk + (counts / counts.sum()).log()).logsumexp(1, keepdim=True)
            keys = (tokens.shape[1] + 1) / 2
            attention = (qk - usual - math.log(keys - 1)).sigmoid()
            gate = torch.ones_like(qk)
            if case.column.block == "gated":
                gq = reads @ attn.W_gate_Q[h] + attn.b_gate_Q[h]
                gk = reads @ attn.W_gate_K[h] + attn.b_gate_K[h]
                gate = (gq @ gk.T).clamp(0, 1)
            written = truth.into_stream(0, (v[:, h] @ attn.W_O[h])[None], None)
            ov = (truth.readout(written, None) / final)[0]
            found[str(h)] = (qk, attention, gate, ov - ov.mean(-1, keepdim=True))
    return found


def _skip_trigrams_truth(case: Case) -> Numbers:
    """Each row's numbers by the formula, for the rows that the function gives."""
    tables = _trigrams(case)
    table = gi.text.skip_trigrams(case.model, 0, TEXT, top=3, sources=3, least=1)
    rows = []
    ids = ["head", "source_id", "destination_id", "out_id"]
    for head, source, destination, out in table[ids].itertuples(index=False):
        qk, attention, gate, ov = tables[str(head)]
        numbers = [float(t[destination, source]) for t in (qk, attention, gate)]
        numbers.append(float(ov[source, out]))
        rows.append((head, source, destination, out, *numbers, math.prod(numbers[1:])))
    columns = [*ids, "qk", "attention", "gate", "ov", "strength"]
    return {"rows": pd.DataFrame(rows, columns=columns)}


@row("skip_trigrams", oracle=_skip_trigrams_truth)
def _(case: Case) -> Numbers:
    table = gi.text.skip_trigrams(case.model, 0, TEXT, top=3, sources=3, least=1)
    columns = ["head", "source_id", "destination_id", "out_id", "qk", "attention", "gate", "ov"]
    return {"rows": table[[*columns, "strength"]]}


# The explorer.


def _explored(case: Case) -> Numbers:
    truth, found = case.truth, {}
    tokens, position = TOKENS[:1], 3
    seen = truth.seen(tokens)
    # The next token, or where outputs are no tokens the likeliest output.
    told = case.model.cfg.d_vocab_out == case.model.cfg.d_vocab
    asked = tokens[0, position + 1] if told else seen["logits"][0, position].argmax()
    before = seen["logits"].log_softmax(-1)[0, position, asked]
    for layer in truth.layers:
        writes = truth.logit_writes(layer, tokens)[0, position]
        found[f"{layer} writes"] = writes
        found[f"{layer} direct"] = seen["unembed.hook_out"][0, position] - writes.sum(0)
        after = [
            _without(truth, tokens, {(layer, h): torch.zeros(())}).log_softmax(-1)
            for h in range(truth.heads(layer))
        ]
        at = torch.stack(after)[:, 0, position, asked]
        found[f"{layer} effects"] = at - before
    return {**found, "probabilities": seen["logits"][0, position].softmax(-1)}


@row("HeadExplorer", oracle=_explored)
def _(case: Case) -> Numbers:
    explorer, found = gi.HeadExplorer(case.model, tokens=TOKENS), {}
    which = "gated" if "gated" in explorer.readings else "model"
    for layer in range(case.last + 1):
        explorer.set_layer(layer)
        explorer.show_example(0)
        explorer.set_position(3)
        reading = explorer.readings[which]
        found[f"{layer} writes"] = torch.tensor(reading.writes)
        found[f"{layer} direct"] = torch.tensor(reading.direct)
        effects = explorer.session.effects(explorer.state)[which]
        found[f"{layer} effects"] = torch.tensor(effects)
    return {**found, "probabilities": torch.tensor(reading.probabilities)}


# Tasks with known answers.


def _right(logits: Tensor, probes: Any) -> Tensor:
    """Per case the share of its probes at which the answer is strictly on top."""
    at = logits[probes.row, probes.position]
    target = probes.target[:, None]
    others = at.scatter(-1, target, -math.inf).amax(-1)
    right = (at.gather(-1, target)[:, 0] > others).double()
    return torch.stack([right[probes.case == b].mean() for b in probes.cases])


def _nothing(truth: Truth, heads: list[tuple[int, int]]) -> dict[tuple[int, int], Tensor]:
    return {head: torch.zeros(()) for head in heads}


N = 30


def _all_holders(case: Case) -> Numbers:
    truth, probes = case.truth, TASK.probes(N, 42)
    layer, every = case.last, _all_heads(truth)
    mine = [head for head in every if head[0] == layer]

    def accuracy(off: list[tuple[int, int]]) -> Tensor:
        return _right(_without(truth, probes.tokens, _nothing(truth, off)), probes)

    alone = [accuracy([head for head in every if head != h]) for h in mine]
    return {
        "accuracy": accuracy([]),
        "alone": torch.stack(alone, 1),
        "without": torch.stack([accuracy([h]) for h in mine], 1),
    }


@row("holders", oracle=_all_holders)
def _(case: Case) -> Numbers:
    found = gi.holders(case.model, TASK, layer=case.last, n=N)
    return {name: getattr(found, name) for name in ("accuracy", "alone", "without")}


# A random model has learnt nothing and so has no owners; its accuracies can be checked.
@row(
    "verdict",
    oracle=lambda case: {
        "accuracy": _right(
            case.truth.seen(TASK.probes(N, 42).tokens)["logits"], TASK.probes(N, 42)
        ),
        "learnt": True,
    },
)
def _(case: Case) -> Numbers:
    found = gi.verdict(case.model, TASK, layer=case.last, n=N)
    return {
        "accuracy": torch.tensor(list(found.accuracy.values())),
        "learnt": found.learnt == [b for b, share in found.accuracy.items() if share > 0.99],
    }


def _loadings(case: Case) -> Numbers:
    truth, probes = case.truth, TASK.probes(N, 42)
    writes = truth.logit_writes(case.last, probes.tokens)[probes.row, probes.position]
    index = probes.target[:, None, None].expand(-1, writes.shape[1], 1)
    mine = writes.gather(-1, index)[..., 0]
    others = (writes.sum(-1) - mine) / (writes.shape[-1] - 1)
    each = mine - others
    return {"loading": torch.stack([each[probes.case == b].mean(0) for b in probes.cases])}


@row("loading_matrix", oracle=_loadings)
def _(case: Case) -> Numbers:
    return {"loading": gi.loading_matrix(case.model, TASK, layer=case.last, n=N)}


@row("superposition_report", oracle=_loadings)
def _(case: Case) -> Numbers:
    found = gi.superposition_report(case.model, TASK, n=N, replicates=2)
    mine = found[found["measure"] == "loading"].pivot(
        index="trigram", columns="head", values="value"
    )
    return {"loading": torch.tensor(mine.to_numpy(dtype=float))}


@row(
    "false_alarms",
    oracle=lambda case: {
        "share": _right(case.truth.seen(TASK.foils(N, 42).tokens)["logits"], TASK.foils(N, 42))
    },
)
def _(case: Case) -> Numbers:
    return {"share": torch.tensor(list(gi.false_alarms(case.model, TASK, n=N).values()))}


# Replacements and how faithful they are.


def _fvu(case: Case) -> Tensor:
    """Unexplained variance of layer 0's output; both models read the same there."""
    out = "blocks.0.hook_attn_out"
    target, got = (t.seen(TOKENS)[out] for t in (case.original, case.truth))
    return (got - target).square().sum() / (target - target.mean((0, 1))).square().sum()


def _layer_replaced(truth: Truth) -> dict[str, Tensor]:
    """Logits with layer 0's attention output zero, its mean, or that of another sequence."""
    out = "blocks.0.hook_attn_out"
    seen = truth.seen(TOKENS)[out]
    others = other_rows(len(TOKENS), generator(0))
    puts = {"zero": torch.zeros_like(seen), "mean": seen.mean((0, 1)), "resample": seen[others]}
    return {
        how: truth.logits(TOKENS, {out: lambda x, put=put: put.to(x).expand_as(x)})
        for how, put in puts.items()
    }


def _recovered(case: Case) -> Numbers:
    before, after = (t.seen(TOKENS)["logits"] for t in (case.original, case.truth))
    ce, original = (losses(x, TOKENS).mean() for x in (after, before))
    found = {"ce": ce, "ce_original": original, "kl": kl(before, after).mean()}
    for how, logits in _layer_replaced(case.original).items():
        off, far = losses(logits, TOKENS).mean(), kl(before, logits).mean()
        found |= {f"ce_{how}": off, f"ce_recovered_{how}": (off - ce) / (off - original)}
        found |= {f"kl_{how}": far, f"kl_recovered_{how}": 1 - found["kl"] / far}
    return found


def _gates_open(case: Case) -> Tensor:
    if case.column.block not in GATED:
        return torch.tensor(float(case.truth.heads(0)))
    gate = case.truth.seen(TOKENS)["blocks.0.attn.hook_gate"]
    n = TOKENS.shape[1]
    causal = torch.ones(n, n).tril().bool()
    return (gate > 1e-3).double()[..., causal].sum() / (len(TOKENS) * causal.sum())


# Ratios magnify rounding by as much as their denominators are small.
@row("loss_recovered", oracle=_recovered, applies=with_block, tolerance=10)
def _(case: Case) -> Numbers:
    found = gi.loss_recovered(case.model, TOKENS)
    return {name: torch.tensor(found[name]) for name in found if name != "ce_difference"}


def _faithful(case: Case) -> Numbers:
    if case.column.block:
        return {**_recovered(case), "fvu": _fvu(case), "l0": _gates_open(case)}
    heads = sum(case.truth.heads(i) for i in case.truth.layers)
    loss = losses(case.truth.seen(TOKENS)["logits"], TOKENS).mean()
    return {"ce": loss, "l0": torch.tensor(float(heads))}


@row("faithfulness", oracle=_faithful, tolerance=10)
def _(case: Case) -> Numbers:
    found = {n: v[0] for n, v in gi.faithfulness(case.model, TOKENS).measures().items()}
    names = {"cross_entropy": "ce", "original_cross_entropy": "ce_original"}
    return {names.get(n, n): v for n, v in found.items() if n != "ce_difference"}


def _rungs(case: Case) -> Numbers:
    before, after = case.original.seen(TOKENS)["logits"], case.truth.seen(TOKENS)["logits"]
    zeroed = case.original.logits(TOKENS, {"blocks.0.hook_attn_out": torch.zeros_like})
    return {"nothing opened": kl(before, after).mean(), "layer zeroed": kl(before, zeroed).mean()}


@row("adversary_ladder", oracle=_rungs, applies=with_block, tolerance=10)
def _(case: Case) -> Numbers:
    found = gi.adversary_ladder(case.model, 0, TOKENS, seed=0, rungs=(1,), draws=1)
    return {n: found.kl[n].double().mean() for n in ("nothing opened", "layer zeroed")}


def _decomposed(case: Case) -> Numbers:
    found = {**_recovered(case), "fvu": _fvu(case), "gates_per_pair": _gates_open(case)}
    for which, truth in {"": case.truth, "_original": case.original}.items():
        held = _text_holders(truth, 0, False, TOKENS)
        mine = (held["holder"][:, 1:] >= 0).double()
        found[f"held_share{which}"] = mine.mean()
        weight = held["effect"][:, 1:]
        found[f"held_weighted{which}"] = (mine * weight).sum() / weight.sum()
        about = _text_holders(truth, 0, True, TOKENS)["holder"][:, 1:]
        found[f"held_about_mean{which}"] = (about >= 0).double().mean()
    found["heads"] = torch.tensor(float(case.truth.heads(0)))
    return found


@row("block_measures", oracle=_decomposed, applies=with_block, tolerance=10)
def _(case: Case) -> Numbers:
    found = gi.block_measures(case.model, 0, TOKENS)
    names = [*_recovered(case), "fvu", "gates_per_pair", "heads"]
    names += [
        f"held_{n}{w}" for w in ("", "_original") for n in ("share", "weighted", "about_mean")
    ]
    return {name: torch.tensor(float(found[name])) for name in names}


def _block_by_hand(column: Column) -> Numbers:
    """Logits of the original model where its attention gives what the block's formula says."""
    truth, block = Truth(dataclasses.replace(column, block="").build()), _truth_of(column).attn(0)

    def picked(z: Tensor) -> Tensor:
        """Of the heads of each position those whose writes are longest."""
        length = torch.einsum("bphd,hdm->bphm", z, block.W_O).norm(dim=-1)
        k = block.config.k
        return z * (length >= length.topk(k).values[..., -1:])[..., None]

    def output(_module: Any, _args: Any, inputs: dict[str, Tensor], own: Tensor) -> Tensor:
        if column.block == "autoencoder":
            z = ((own - block.b_O) / block.config.output_scale) @ block.W_E.T + block.b_E
            z = picked(z.relu()[..., None])
            return torch.einsum("bphd,hdm->bpm", z, block.W_O) + block.b_O
        x, y = inputs["query_input"], inputs["value_input"]
        q, k = (
            torch.einsum("bpm,hmd->bhpd", x, getattr(block, f"W_{n}"))
            + getattr(block, f"b_{n}")[:, None]
            for n in "QK"
        )
        v = torch.einsum("bpm,hmd->bhpd", y, block.W_V) + block.b_V[:, None]
        scores = q @ k.mT / q.shape[-1] ** 0.5
        hidden = torch.ones_like(scores, dtype=torch.bool).triu(1)
        pattern = scores.masked_fill(hidden, -math.inf).softmax(-1)
        if column.block == "gated":
            gq, gk = (
                torch.einsum("bpm,hmd->bhpd", x, getattr(block, f"W_gate_{n}"))
                + getattr(block, f"b_gate_{n}")[:, None]
                for n in "QK"
            )
            pattern = pattern * (gq @ gk.mT).clamp(0, 1)
        z = (pattern @ v).transpose(1, 2)
        z = z if column.block == "gated" else picked(z)
        return torch.einsum("bphd,hdm->bpm", z, block.W_O) + block.b_O

    attn = truth.run_on.blocks[0].attn
    with torch.no_grad(), _output(attn, output):
        return {"logits": truth.run(TOKENS, {}, ())["logits"]}


@contextlib.contextmanager
def _output(module: Any, hook: Callable[..., Tensor]) -> Iterator[None]:
    handle = module.register_forward_hook(hook, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


# Rotated gates are worked out by hand in test_gate_rotary.
@row(
    "splice",
    oracle=lambda case: _block_by_hand(case.column),
    applies=lambda column: with_block(column) and column.block != SEES_POSITIONS,
)
def _(case: Case) -> Numbers:
    model = case.column.original()
    return {"logits": gi.splice(model, 0, case.model.blocks[0].attn)(TOKENS)}


def _intact(case: Case) -> Numbers:
    return {"logits": case.original.seen(TOKENS)["logits"]}


def _no_block(column: Column) -> bool:
    return not column.block


@row("unsplice", oracle=_intact, applies=with_block)
def _(case: Case) -> Numbers:
    return {"logits": gi.unsplice(case.model)(TOKENS)}


@row("GatedAttention.from_attention", "a copy, spliced", oracle=_intact, applies=_no_block)
def _(case: Case) -> Numbers:
    attn = case.model.blocks[0].attn
    given = {"init": "duplicate", "noise": 0, "gate": "open", "normalize_weights": False}
    block = gi.GatedAttention.from_attention(attn, **given)
    return {"logits": gi.splice(case.model, 0, block)(TOKENS)}


# What b_V writes is added up and rounded once more, which in half precision shows.
@row(
    "GatedAttention.from_attention",
    "no value bias",
    oracle=_intact,
    applies=_no_block,
    tolerance=3,
)
def _(case: Case) -> Numbers:
    given = {"init": "duplicate", "noise": 0, "gate": "open", "normalize_weights": False}
    block = gi.GatedAttention.from_attention(case.model.blocks[0].attn, value_bias=False, **given)
    return {"logits": gi.splice(case.model, 0, block)(TOKENS)}


def _pruned(case: Case) -> Any:
    block = case.model.blocks[0].attn
    with torch.no_grad():
        block.W_gate_Q[1], block.b_gate_Q[1] = 0, 0
    return case.model


@row(
    "prune_dead_heads",
    oracle=lambda case: {
        "logits": _without(case.truth, TOKENS, {(0, 1): torch.zeros(())}),
        "kept": "[0, 2, 3, 4]",
    },
    applies=with_gates,
)
def _(case: Case) -> Numbers:
    found = gi.prune_dead_heads(_pruned(case))
    return {"logits": found.model(TOKENS), "kept": str(found.kept)}


# Which heads are spare is searched for; that the error rises by no more than asked can be checked.
@row("prune_spare_heads", oracle=lambda case: {"rises": True, "fewer": True}, applies=with_gates)
def _(case: Case) -> Numbers:
    found = gi.prune_spare_heads(case.model, TOKENS, rise=1.0)
    out = "blocks.0.hook_attn_out"
    target = case.original.seen(TOKENS)[out]
    errors = [
        float((Truth(m).seen(TOKENS)[out] - target).square().sum()) for m in (case.model, found)
    ]
    return {
        "rises": errors[1] <= 2 * errors[0] * (1 + 10 * TOLERANCE[case.column.dtype]),
        "fewer": len(found.blocks[0].attn.W_O) < len(case.model.blocks[0].attn.W_O),
    }


def _tokens_again(n: int, draw: torch.Generator) -> Tensor:
    return TOKENS[torch.arange(n) % len(TOKENS)]


def _training_row(function: str, method: str, train: Callable[..., Any]) -> None:
    # The block hardly moves at this learning rate, so the FVU of the first step is that of the
    # block that comes out.
    numbers: dict[int, Numbers] = {}

    def oracle(case: Case) -> Numbers:
        return numbers.pop(id(case))

    @row(function, method, oracle=oracle, applies=_no_block, tolerance=10)
    def _(case: Case) -> Numbers:
        settings = {"steps": 1, "lr": 1e-12, "batch_size": len(TOKENS)}
        found = train(case, settings)
        spliced = Truth(gi.splice(case.model, 0, found.model.eval()))
        # A block is held to what the attention returns, before a norm behind it.
        target, got = case.original.returned(TOKENS), spliced.returned(TOKENS)
        fvu = (got - target).square().sum() / (target - target.mean((0, 1))).square().sum()
        both = (case.original.seen(TOKENS)["logits"], spliced.seen(TOKENS)["logits"])
        expected = {"fvu": fvu, "kl": kl(*both).mean()}
        numbers[id(case)] = {n: v for n, v in expected.items() if n in found.history}
        return {n: torch.tensor(found.history[n][0]) for n in numbers[id(case)]}


def _fit(case: Case, settings: dict[str, Any], method: str) -> Any:
    fit = gi.fit_replacement if method == SAE else gi.fit_gated
    return fit(case.model, 0, _tokens_again, method=method, progress=False, **settings)


SAE = "sae on output"
for _name in ("gated", "ungated", SAE):
    function = "fit_replacement" if _name == SAE else "fit_gated"
    _training_row(function, _name, functools.partial(_fit, method=_name))


def _train(case: Case, settings: dict[str, Any]) -> Any:
    """A block that is no copy of anything."""
    block = dataclasses.replace(case.column, block="gated").build().blocks[0].attn
    config = gi.TrainConfig.fit(**settings, seed=0)
    return gi.train_gated(case.model, block, config, layer=0, data=_tokens_again, progress=False)


_training_row("train_gated", "", _train)


def _stores(column: Column) -> bool:
    """One of each kind, in full precision: what a store holds is rounded to float16."""
    return column.dtype == "float32" and not column.mlps and not column.block


@row(
    "capture",
    oracle=lambda case: {
        "tokens": TOKENS,
        "input": case.truth.received(TOKENS),
        "output": case.truth.returned(TOKENS),
    },
    applies=_stores,
    tolerance=50,  # float16 rounds by up to 4.9e-4 of a number
)
def _(case: Case) -> Numbers:
    with tempfile.TemporaryDirectory() as folder:
        how = {"sequences": len(TOKENS), "progress": False}
        store = gi.capture(case.model, 0, folder, _tokens_again, **how)
        kept = store.read(0, store.batch(torch.arange(len(TOKENS))))
        return {"tokens": store.tokens, "input": kept.query_input, "output": kept.output}


@row(
    "train_model",
    oracle=lambda case: {"loss": losses(case.truth.seen(TOKENS)["logits"], TOKENS).mean()},
    applies=_no_block,
)
def _(case: Case) -> Numbers:
    config = gi.TrainConfig.toy(steps=1, batch_size=len(TOKENS))
    found = gi.train_model(case.model, config, data=_tokens_again, progress=False)
    return {"loss": torch.tensor(found.history["cross_entropy"][0])}


@row("save", oracle=lambda case: {"logits": case.truth.seen(TOKENS)["logits"]})
def _(case: Case) -> Numbers:
    with tempfile.TemporaryDirectory() as folder:
        return {"logits": gi.load(gi.save(case.model, f"{folder}/m.safetensors"))(TOKENS)}


# The report's own figures are other rows; that they arrive on its page can be checked. What it
# says in words (the largest entries of circuits) is not.


def _reported(case: Case) -> Numbers:
    truth = case.truth
    held = _text_holders(truth, 0, False, TOKENS)["holder"][:, 1:]
    z = truth.seen(TOKENS)["blocks.0.attn.hook_z"]
    energy = truth.writes(0, z, truth.seen(TOKENS)).square().sum((0, 1, 3))
    intact = losses(truth.seen(TOKENS)["logits"], TOKENS).mean()
    heads = range(truth.heads(0))
    off = [_without(truth, TOKENS, {(0, h): torch.zeros(())}) for h in heads]
    scores = _copying(case)["copying_score"][: len(heads)]
    return {
        "held": torch.stack([(held == h).double().mean() for h in heads]),
        "share": energy / energy.sum(),
        "effect": torch.stack([losses(x, TOKENS).mean() - intact for x in off]),
        "copying": scores,
    }


def _reports(column: Column) -> bool:
    """A page takes seconds, so there is one of each kind."""
    return column.dtype == "float32" and not column.mlps and not column.block


@row("report", oracle=_reported, applies=_reports, tolerance=10)
def _(case: Case) -> Numbers:
    with tempfile.TemporaryDirectory() as folder:
        given = {"tokens": TOKENS, "names": [str(i) for i in range(TASK.d_vocab)]}
        out = gi.report(case.model, f"{folder}/page.html", layer=0, interactive=True, **given)
        page = out.read_text(encoding="utf-8")
    embedded = re.findall(r'download="([^"]*)" href="data:text/csv;base64,([^"]*)"', page)
    tables = {name: pd.read_csv(io.BytesIO(base64.b64decode(csv))) for name, csv in embedded}
    model = tables["model.csv"].sort_values("head")
    found = {n: torch.tensor(model[n].to_numpy()) for n in ("held", "share", "effect")}
    circuits = tables["circuits-model.csv"]["copying_score"]
    return {**found, "copying": torch.tensor(circuits.to_numpy())}


# Outcomes.


def outcome(row: Row, column: Column) -> Outcome:
    """What the cell comes to."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", gi.GatedInterpWarning)  # trainings of a few steps
        case = Case(column)
        try:
            found = row.call(case)
        except GatedInterpError as error:
            said = str(error)
            fine = error.code in sentences() and "\n" not in said and said.endswith(".")
            return (
                Outcome(REFUSED, json.dumps([error.code, error.fields]))
                if fine
                else (Outcome(RAW, said))
            )
        except Exception as error:
            return Outcome(RAW, f"{type(error).__name__}: {error}".split("\n")[0])
        try:
            expected = row.oracle(case)
        except Unchecked as error:
            return Outcome(WRONG, str(error))
    off = difference(found, expected)
    tolerance = row.tolerance * TOLERANCE[column.dtype]
    worst = max(off, key=lambda name: (math.isnan(off[name]), off[name]), default="")
    if worst and not off[worst] <= tolerance:
        return Outcome(WRONG, f"{worst} is off by {off[worst]:.2g}")
    return Outcome(RIGHT, f"{off[worst] / tolerance:.2g}" if worst else "")


def difference(found: Numbers, expected: Numbers) -> dict[str, float]:
    """By name, how far what was found is off, as a share of the largest expected, or of one."""
    if found.keys() != expected.keys():
        lacks = [*(expected.keys() - found.keys()), *(f"not {n}" for n in found.keys() - expected)]
        return {f"{', '.join(map(str, sorted(lacks)))} missing:": math.inf}
    return {name: _off(found[name], expected[name]) for name in expected}


def _off(found: Any, expected: Any) -> float:
    if isinstance(expected, pd.DataFrame):
        found, expected = (torch.tensor(x.to_numpy(dtype=float)) for x in (found, expected))
    if isinstance(expected, str | bool):
        return 0.0 if found == expected else math.inf
    found, expected = (torch.as_tensor(x).detach().double() for x in (found, expected))
    if found.shape != expected.shape:
        return math.inf
    if not expected.numel():
        return 0.0
    if bool((found.isnan() != expected.isnan()).any()):
        return math.inf
    miss = (found - expected).abs().nan_to_num(0.0, posinf=math.inf)
    miss = torch.where(found == expected, 0.0, miss)
    return float(miss.max() / expected.nan_to_num(0.0).abs().max().clamp(min=1.0))
