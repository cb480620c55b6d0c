"""How a pretrained model's heads share the copying of repeated text, before and after gating.

Each layer that copies is replaced by blocks trained from several seeds, and by controls. What each
head carries is measured by intervention, on random tokens that are repeated
(:mod:`gated_interp.experiments.copying_measures`).
"""

import dataclasses
import functools
import warnings
from collections.abc import Generator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd

from gated_interp.analysis.induction import induction_scores
from gated_interp.checkpoints.checkpoint import load, save
from gated_interp.core.errors import GatedInterpError, GatedInterpWarning
from gated_interp.core.files import write_table
from gated_interp.core.fingerprint import fingerprint
from gated_interp.core.seeds import derive
from gated_interp.core.streams import Stream
from gated_interp.experiments.backends import connected
from gated_interp.experiments.copying_measures import CopyingConfig, measured, repeats_of
from gated_interp.experiments.processes import keyed
from gated_interp.experiments.single import state_of
from gated_interp.experiments.store import Row, Store
from gated_interp.experiments.study import Key, Progress, Say, fill
from gated_interp.models.language_model import TextTransformer
from gated_interp.models.toy import HookedTransformer
from gated_interp.replacements.splice import require_layer, splice
from gated_interp.tasks.mixture import with_repeats
from gated_interp.tasks.text import TextTask
from gated_interp.training.activations import ActivationStore, capture
from gated_interp.training.fit import fit_replacement

ORIGINAL, TWO_HEADS = "original", "topk copies"
MODEL, STORE, SCORES = "original.safetensors", "activations", "scores.csv"
METHODS: dict[str, dict[str, Any]] = {
    "gated": {},
    "ungated": {"method": "ungated"},
    "gates alone": {"method": "gates alone"},
    "overlap alone": {"method": "overlap alone"},
    TWO_HEADS: {"method": TWO_HEADS},
    "random start": {"init": "random"},
}
"""Blocks and controls, as settings of :func:`~gated_interp.training.fit.fit_replacement`."""


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
    methods: Sequence[str] = (TWO_HEADS,),
    seeds: int = 3,
    first_seed: int = 0,
    text: str | Path = "austen",
    workers: int | str | None = None,
    say: Say = lambda _: None,
    on_progress: Progress = lambda done, total: None,
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
        workers: processes, of one thread each; all cores unless given; or the address of a Dask
            scheduler, such as ``tcp://127.0.0.1:8786``, whose workers see ``out`` as we do.
        on_progress: told how many blocks are done, of how many.
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
    blocks = [key for key in keys if key[1] != ORIGINAL]

    def tell_count() -> None:
        on_progress(sum(key in store.rows for key in blocks), len(blocks))

    def made(missing: Sequence[Key]) -> Generator[tuple[CopyingRow, pd.DataFrame]]:
        tell_count()
        save(model, out / MODEL)
        seed = derive(0, Stream.CHOSEN_REPEATS)
        scores = induction_scores(model, repeats_of(model, config, config.chosen, seed))
        write_table(scores, out / SCORES)
        trained = sorted({key[0] for key in missing if key[1] != ORIGINAL})
        captured = _captured(out, trained) if trained else ()
        if trained:
            capture(
                model,
                captured,
                _activations(out, captured),
                with_repeats(task),
                sequences=config.sequences,
                progress=progress,
                say=say,
            )
        place = (str(out.absolute()), captured, task, config)
        jobs = [(key, _made, (*place, *key)) for key in missing]
        with closing(where.run(keyed, jobs)) as done:
            for _, (row, heads) in done:
                yield CopyingRow.of(row), heads
                tell_count()

    with connected(1 if store.complete(keys) else workers) as where:
        fill(store, keys, made, unit="blocks", say=say)
    table = store.frame()
    here = [key in keys for key in table[["layer", "method", "seed"]].itertuples(index=False)]
    return table[here].reset_index(drop=True)


def _activations(folder: Path | str, layers: Sequence[int]) -> Path:
    return Path(folder, STORE, "-".join(map(str, layers)))


def _captured(folder: Path, layers: Sequence[int]) -> tuple[int, ...]:
    """The layers of a store that has been captured and holds ``layers``; else ``layers``."""
    for place in sorted(folder.glob(f"{STORE}/*")):
        there = tuple(int(name) for name in place.name.split("-") if name.isdecimal())
        if set(layers) <= set(there):
            return there
    return tuple(layers)


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
    if not Path(folder, MODEL).is_file():
        raise GatedInterpError("workers-lack-the-folder", folder=folder)
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
                ActivationStore.open(_activations(folder, captured)),
                seed=seed,
                steps=config.steps,
                finetune=config.finetune,
                focus_weight=config.focus_weight,
                fvu=config.fvu,
                checkpoint=state,
                resume=state if state.is_file() else None,
                checkpoint_every=200,
                progress=False,
                **METHODS[method],
            )
        result.model.save_pretrained(path)
        write_table(result.history, path.with_name(f"{path.stem}-history.csv"))
        for left in (state, Path(f"{state}.finetune")):
            left.unlink(missing_ok=True)
        spliced, seconds = splice(model, layer, result.model), result.seconds
    row, heads = measured(spliced, layer, task, config)
    which = pd.DataFrame([key] * len(heads))
    return {**key, **row, "seconds": seconds}, pd.concat([which, heads], axis=1)
