"""How a pretrained model's heads share the copying of repeated text, before and after gating.

Each layer that copies is replaced by blocks trained from several seeds, and by controls. What each
head carries is measured by intervention, on random tokens that are repeated.
"""

import dataclasses
import functools
import warnings
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any, ClassVar

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
from gated_interp.checkpoints.checkpoint import load, save
from gated_interp.core.config import Config, positive
from gated_interp.core.errors import GatedInterpError, GatedInterpWarning
from gated_interp.core.files import write_table
from gated_interp.core.seeds import derive
from gated_interp.core.streams import Stream
from gated_interp.experiments.processes import in_processes
from gated_interp.experiments.single import state_of
from gated_interp.experiments.store import Row, Store
from gated_interp.experiments.study import Key, fill
from gated_interp.metrics.predictions import kl_divergence, next_token_loss
from gated_interp.metrics.reconstruction import l0, squared_error, unexplained, variation
from gated_interp.models.language_model import TextTransformer
from gated_interp.models.toy import HookedTransformer
from gated_interp.replacements.replacement import active
from gated_interp.replacements.splice import require_layer, splice, unsplice
from gated_interp.tasks.mixture import RandomRepeats, with_repeats
from gated_interp.tasks.text import TextTask
from gated_interp.training.activations import ActivationStore, capture
from gated_interp.training.fit import fit_replacement
from gated_interp.training.state import fingerprint

ORIGINAL = "original"
MODEL, STORE, SCORES = "original.safetensors", "activations", "scores.csv"
# The loss at a position rises by this much (nats) without the layer: there it copies.
COPIES = 0.5
METHODS: dict[str, dict[str, Any]] = {
    "gated": {},
    "ungated": {"method": "ungated"},
    "gates alone": {"method": "gates alone"},
    "overlap alone": {"method": "overlap alone"},
    # Copies as close as those of a gated block start; more noise than that leaves nothing of them.
    "topk": {"method": "topk", "expansion": 2, "k": 2, "init": "duplicate", "noise": 0.01},
    "random start": {"init": "random"},
}
"""Ours and its controls, as settings of :func:`~gated_interp.training.fit.fit_replacement`."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CopyingConfig(Config):
    """What the study trains and measures.

    Attributes:
        steps: of each block, 1,024 positions each.
        finetune: further steps on the model's predictions.
        fvu: the error that may stay of what a layer writes.
        sequences: captured for training.
        n_positions: tokens in each of these.
        period: random tokens, that are then repeated once, on which effects are measured.
        repeats, texts: sequences of these and of held-out text that are measured on.
        chosen: repeated sequences that decide in which order heads are added; others than measured.
    """

    steps: int = 500
    finetune: int = 0
    fvu: float = 0.1
    sequences: int = 1400
    n_positions: int = 128
    period: int = 25
    repeats: int = 12
    texts: int = 16
    chosen: int = 6

    def problems(self) -> list[GatedInterpError]:
        names = [f.name for f in dataclasses.fields(self) if f.name != "finetune"]
        return positive(self, *names)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CopyingRow(Row):
    """A layer as it is (method ``original``), or a block in its place.

    Attributes:
        layer, method, seed: which; -1 is no seed.
        heads: of the block.
        fvu, fvu_text: of what the layer writes on repeats and on text, first positions left out.
        gates_per_pair: open gates per causal pair on repeats; the heads, where there are no gates.
        active: heads that write more than a tenth of a typical write, mean over positions.
        loss: on the second time that random tokens are said (nats); ``loss_original``, the
            original's; ``loss_off``, with every head of the layer mean-ablated in the original.
        kl_text: of the original's predictions on held-out text (nats per position); ``kl_off``, of
            the original with the layer mean-ablated.
        loss_text, loss_text_original: on held-out text.
        carriers: the smallest number of heads that carry 90% of the layer's effect on the loss,
            every other head mean-ablated; ``top1`` and ``top2``, what the first and the first two
            carry; ``top2_low`` and ``top2_high``, a 95% interval over sequences.
        necessary2: what is lost without these two, of the same effect.
        spread: over how many heads Shapley values are spread; ``effect``, their sum (nats).
        participation_text, participation_repeats, participation_copies: medians over held-out text,
            over the second time, and over the positions of it where the original's layer copies.
        alone_text, alone_copies: the share of positions at which one head writes 90%.
        prefix_matching: the largest of a head.
        keys, queries, values, gates: how much the loss rises where these alone read the stream as
            it is without the previous-token head (nats); missing where none comes before.
        seconds: of the training.
    """

    KEY: ClassVar[tuple[str, ...]] = ("layer", "method", "seed")
    ORDER: ClassVar[tuple[str, ...]] = ("layer", "method", "seed")

    layer: int
    method: str
    seed: int
    heads: int
    fvu: float
    fvu_text: float
    gates_per_pair: float
    active: float
    loss: float
    loss_original: float
    loss_off: float
    kl_text: float
    kl_off: float
    loss_text: float
    loss_text_original: float
    effect: float
    carriers: int | None
    top1: float
    top2: float
    top2_low: float
    top2_high: float
    necessary2: float
    spread: float
    participation_text: float
    participation_repeats: float
    participation_copies: float
    alone_text: float
    alone_copies: float
    prefix_matching: float
    keys: float
    queries: float
    values: float
    gates: float
    seconds: float

    def __str__(self) -> str:
        return (
            f"Layer {self.layer}, {self.method}, seed {self.seed}: the best two heads carry "
            f"{self.top2:.0%} of the copying, loss {self.loss:.3f} ({self.loss_original:.3f} "
            f"originally), KL {self.kl_text:.4f} on text."
        )


def copying_study(
    model: HookedTransformer,
    out: Path | str,
    layers: Sequence[int],
    *,
    methods: Sequence[str] = ("gated",),
    seeds: int = 3,
    first_seed: int = 0,
    text: str | Path = "austen",
    workers: int | None = None,
    say: Callable[[str], None] = lambda _: None,
    progress: bool = False,
    **settings: Any,
) -> pd.DataFrame:
    """Take the copying of repeated text apart, layer by layer, and measure who carries it.

    Every row is kept when it is done; the same call goes on where an earlier one was stopped, and
    further layers, methods and seeds join those that are there.

    Args:
        out: gets ``copying.csv`` (see :class:`CopyingRow`), ``copying-runs.csv`` (a row for each
            head of each), ``scores.csv`` (induction scores of the model's heads), the blocks, and
            the captured activations.
        layers: of any model with a tokenizer and rotary or no positions that is deep enough to
            copy.
        methods: of :data:`METHODS`.
        seeds, first_seed: blocks of each.
        text: what blocks are trained and measured on besides random tokens.
        workers: processes, of one thread each; all cores unless given.
        settings: fields of :class:`CopyingConfig`.

    Returns:
        The rows of these layers, methods and seeds, and of the originals.
    """
    config = CopyingConfig(**settings)
    wanted = sorted(set(layers))
    for layer in wanted:
        require_layer(model, layer)
    for method in methods:
        if method not in METHODS:
            raise GatedInterpError("unknown-name", what="method", name=method, choices=[*METHODS])
    if not isinstance(model, TextTransformer) or model.task is None:
        raise GatedInterpError("study-needs-text")
    task = TextTask(text, config.n_positions, model.task.tokenizer)
    notes: dict[str, Any] = {"text": task.identity, "config": config.to_dict()}
    notes["model"] = fingerprint(model, trained=True)
    keys: list[Key] = [(layer, ORIGINAL, -1) for layer in wanted]
    keys += [
        (layer, method, first_seed + i)
        for i in range(seeds)
        for method in methods
        for layer in wanted
    ]
    store = Store(out, "copying", CopyingRow, notes, with_runs=True).read()
    out = Path(out)

    def made(missing: Sequence[Key]) -> Generator[tuple[CopyingRow, pd.DataFrame]]:
        save(model, out / MODEL)
        seed = derive(0, Stream.CHOSEN_REPEATS)
        scores = induction_scores(model, _repeats(model, config, config.chosen, seed))
        write_table(scores, out / SCORES)
        trained = sorted({key[0] for key in missing if key[1] != ORIGINAL})
        if trained:
            capture(
                model,
                wanted,
                out / STORE / "-".join(map(str, wanted)),
                with_repeats(task),
                sequences=config.sequences,
                progress=progress,
                say=say,
            )
        place = (str(out), tuple(wanted), task, config)
        jobs = [(key, _made, (*place, *key)) for key in missing]
        for _, (row, heads) in in_processes(jobs, workers):
            yield CopyingRow.of(row), heads

    fill(store, keys, made, unit="blocks", say=say)
    table = store.frame()
    here = [key in keys for key in table[["layer", "method", "seed"]].itertuples(index=False)]
    return table[here].reset_index(drop=True)


@functools.lru_cache(maxsize=1)
def _opened(path: str) -> HookedTransformer:
    """The model; a process that does several jobs opens it once."""
    return load(path)


def _made(
    folder: str,
    captured: tuple[int, ...],
    task: TextTask,
    config: CopyingConfig,
    layer: int,
    method: str,
    seed: int,
) -> tuple[dict[str, Any], pd.DataFrame]:
    """Train a block and measure it, or the original; called in another process."""
    model, key = _opened(str(Path(folder, MODEL))), {"layer": layer, "method": method, "seed": seed}
    spliced, seconds = model, 0.0
    if method != ORIGINAL:
        path = Path(folder, f"L{layer}-{method.replace(' ', '-')}-seed{seed}.safetensors")
        state = state_of(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", GatedInterpWarning)
            result = fit_replacement(
                model,
                layer,
                ActivationStore.open(Path(folder, STORE, "-".join(map(str, captured)))),
                seed=seed,
                steps=config.steps,
                finetune=config.finetune,
                fvu=config.fvu,
                checkpoint=state,
                resume=state if state.is_file() else None,
                checkpoint_every=200,
                progress=False,
                **METHODS[method],
            )
        result.model.save_pretrained(path)
        write_table(result.history, path.with_name(f"{path.stem}-history.csv"))
        state.unlink(missing_ok=True)
        spliced, seconds = splice(model, layer, result.model), result.seconds
    row, heads = measured(spliced, layer, task, config)
    which = pd.DataFrame([key] * len(heads))
    return {**key, **row, "seconds": seconds}, pd.concat([which, heads], axis=1)


def _repeats(model: HookedTransformer, config: CopyingConfig, n: int, seed: int) -> Batch:
    assert isinstance(model, TextTransformer)
    assert model.task is not None
    source = RandomRepeats(model.cfg.d_vocab, 2 * config.period + 1, model.task.bos)
    return Batch.of(model, source.sample(n, seed).tokens)


@torch.no_grad()
def measured(
    model: HookedTransformer, layer: int, task: TextTask, config: CopyingConfig
) -> tuple[dict[str, Any], pd.DataFrame]:
    """The row of what stands at ``layer``, without what names it, and a row for each of its heads.

    Interventions are measured on repeated random tokens; the order in which heads are added was
    chosen on others.
    """
    original = unsplice(model) if _spliced(model, layer) else model
    repeats = _repeats(model, config, config.repeats, derive(0, Stream.MEASURED_REPEATS))
    again = torch.zeros_like(repeats.tokens, dtype=torch.bool)
    again[:, config.period + 1 : -1] = True
    text = Batch.of(model, task.part("test").sample(config.texts, derive(0, Stream.TEST)).tokens)
    asked: dict[str, Any] = {"positions": again, "seed": 0}
    chosen = _repeats(model, config, config.chosen, derive(0, Stream.CHOSEN_REPEATS))
    first = head_effects(model, layer, chosen, **asked | {"positions": again[: len(chosen)]})
    effects = head_effects(model, layer, repeats, order=first.order, **asked)
    there, off = _losses(Rest(original, layer, repeats), again)
    copies = torch.zeros_like(again)
    copies[again] = off - there > COPIES
    ours, theirs = Rest(model, layer, text), Rest(original, layer, text)
    row: dict[str, Any] = {
        "heads": effects.off.shape[1],
        "loss": float(effects.intact.mean()),
        "loss_original": float(there.mean()),
        "loss_off": float(off.mean()),
        "effect": float(effects.effect.mean()),
        **_text(ours, theirs),
        **_written(model, original, layer, repeats, text),
        **_carried(effects, model, layer, repeats, again),
        **_geometry(head_sharing(model, layer, text), "text"),
        **_geometry(head_sharing(model, layer, repeats), "repeats", again),
        **_geometry(head_sharing(model, layer, repeats), "copies", copies),
        **path_effects(model, layer, repeats, again),
    }
    scores = induction_scores(model, chosen)
    scores = scores[scores["layer"] == layer].drop(columns=["layer", "head"])
    heads = effects.table().iloc[:-1].reset_index(drop=True)
    rank = {h: i for i, h in enumerate(effects.order)}
    heads = heads.assign(order=[rank[h] for h in range(len(heads))])
    row["prefix_matching"] = float(scores["prefix_matching"].max())
    return row, pd.concat([heads, scores.reset_index(drop=True)], axis=1)


def _spliced(model: HookedTransformer, layer: int) -> bool:
    from gated_interp.replacements.replacement import Replacement

    return isinstance(model.blocks[layer].attn, Replacement)


def _losses(
    rest: Rest, where: Bool[Tensor, "batch pos"]
) -> tuple[Float[Tensor, " position"], Float[Tensor, " position"]]:
    """The loss at each position of ``where``, as it is and with the layer mean-ablated."""
    tokens = rest.batch.tokens
    following = torch.cat([tokens[:, 1:], tokens[:, :1]], 1)[where]
    mean = rest.z[rest.batch.later].mean(0).expand_as(rest.z)
    found = [
        -rest.logits(z, where).log_softmax(-1).gather(-1, following[:, None])[:, 0]
        for z in (rest.z, mean)
    ]
    return found[0], found[1]


def _text(ours: Rest, theirs: Rest) -> dict[str, float]:
    """Predictions on text: as the layer is, and of the original with and without it."""
    batch, totals = (
        theirs.batch,
        dict.fromkeys(("kl_text", "kl_off", "loss_text", "loss_text_original"), 0.0),
    )
    mean = theirs.z[batch.later].mean(0)
    for i in range(len(batch)):
        rows = slice(i, i + 1)
        intact, now = theirs.logits(rows=rows), ours.logits(rows=rows)
        off = theirs.logits(lambda z: mean.expand_as(z), rows=rows)
        tokens = batch.tokens[rows]
        totals["kl_text"] += float(kl_divergence(intact, now).mean())
        totals["kl_off"] += float(kl_divergence(intact, off).mean())
        totals["loss_text"] += float(next_token_loss(now, tokens).mean())
        totals["loss_text_original"] += float(next_token_loss(intact, tokens).mean())
    return {name: total / len(batch) for name, total in totals.items()}


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


def _carried(
    effects: HeadEffects,
    model: HookedTransformer,
    layer: int,
    repeats: Batch,
    again: Bool[Tensor, "batch pos"],
) -> dict[str, Any]:
    """What the first heads carry; missing where the layer's effect is within noise of zero."""
    nothing = float("nan")
    names = ("top1", "top2", "top2_low", "top2_high", "necessary2", "spread")
    if not effects.matters:
        return {"carriers": None, **dict.fromkeys(names, nothing)}
    carried = effects.carriers_table().set_index("heads")
    two = effects.order[:2]
    rest = Rest(model, layer, repeats)
    mean = rest.z[repeats.counted].mean(0)

    def without(z: Tensor) -> Tensor:
        z = z.clone()
        z[:, :, two] = mean[two]
        return z

    tokens = repeats.tokens
    following = torch.cat([tokens[:, 1:], tokens[:, :1]], 1)[again]
    logits = rest.logits(without, again)
    now = -logits.log_softmax(-1).gather(-1, following[:, None]).mean()
    lost = float(now - effects.intact.mean()) / float(effects.effect.mean())
    return {
        "carriers": effects.carriers(),
        "top1": float(carried["share"][1]),
        "top2": float(carried["share"][2]),
        "top2_low": float(carried["share_low"][2]),
        "top2_high": float(carried["share_high"][2]),
        "necessary2": lost,
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
def path_effects(
    model: HookedTransformer, layer: int, batch: Batch, where: Bool[Tensor, "batch pos"]
) -> dict[str, float]:
    """How the loss rises where only keys (queries, values, gates) miss the previous-token head.

    The head of an earlier layer that attends most to the token before is mean-ablated; what the
    layer's keys then are is put into a run in which everything else is as it was, and so on. (Path
    patching, with every route from that head to the layer open.)
    """
    names = {"queries": "hook_q", "keys": "hook_k", "values": "hook_v", "gates": "hook_gate_scores"}
    hooks = {name: f"blocks.{layer}.attn.{hook}" for name, hook in names.items()}
    there = {name: hook for name, hook in hooks.items() if hook in model.hook_dict}
    found = dict.fromkeys(names, float("nan"))
    scores = induction_scores(model, batch)
    before = scores[scores["layer"] < layer]
    if not len(before):
        return found
    sender = before.sort_values("previous_token").iloc[-1]
    z = f"blocks.{int(sender['layer'])}.attn.hook_z"
    head = int(sender["head"])

    def without(x: Tensor) -> Tensor:
        x = x.clone()
        x[:, :, head] = x[:, 1:, head].mean((0, 1))
        return x

    seen: dict[str, Tensor] = {}
    keeping = {hook: functools.partial(seen.__setitem__, hook) for hook in there.values()}
    with intervened(model, {z: without, **keeping}):
        batch.logits(model, return_type=None, stop_at_layer=layer + 1)
    rest, following = Rest(model, layer, batch), batch.tokens.roll(-1, 1)[where]

    def loss(edits: dict[str, Any]) -> float:
        values: list[Tensor] = []
        with intervened(
            model, edits | {f"blocks.{layer}.attn.hook_z": lambda x: values.append(x.clone())}
        ):
            model(rest.resid_pre, start_at_layer=layer, stop_at_layer=layer + 1)
        logits = rest.logits(values[0], where)
        return float(-logits.log_softmax(-1).gather(-1, following[:, None]).mean())

    intact = loss({})
    for name, hook in there.items():
        found[name] = loss({hook: lambda _, hook=hook: seen[hook]}) - intact
    return found
