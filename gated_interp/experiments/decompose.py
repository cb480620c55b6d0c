"""Every layer of a model decomposed over seeds, measured on text held out, and written down."""

import dataclasses
import json
import math
import warnings
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd

from gated_interp.analysis.block_measures import block_measures
from gated_interp.analysis.faithfulness import dead_heads, loss_recovered
from gated_interp.analysis.head_effects import head_effects
from gated_interp.analysis.induction import repeated_random_tokens
from gated_interp.analysis.spare_heads import prune_spare_heads
from gated_interp.anatomy.batch import Batch
from gated_interp.checkpoints.checkpoint import load, save
from gated_interp.checkpoints.opened import open_model
from gated_interp.core.errors import GatedInterpError, GatedInterpWarning
from gated_interp.core.files import require_place, write_text
from gated_interp.core.fingerprint import fingerprint
from gated_interp.core.seeds import derive
from gated_interp.core.streams import Stream
from gated_interp.experiments.backends import connected
from gated_interp.experiments.head_pages import overview_of, write_head_page
from gated_interp.experiments.measured import of_decompose
from gated_interp.experiments.processes import keyed
from gated_interp.experiments.single import history_of, state_of, write_trained
from gated_interp.experiments.store import Row, Store
from gated_interp.experiments.study import Key, fill
from gated_interp.metrics.intervals import mean_interval
from gated_interp.models.pretrained import PretrainedTransformer
from gated_interp.models.toy import HookedTransformer
from gated_interp.replacements.pruning import with_heads
from gated_interp.replacements.replacement import Replacement
from gated_interp.replacements.splice import gated_block, require_layer, splice
from gated_interp.tasks.encoded_text import Part
from gated_interp.tasks.mixture import with_repeats
from gated_interp.tasks.text import TextTask
from gated_interp.training.activations import capture
from gated_interp.training.data import DataSource, Source, data_for, draw, held_out_part, name_of
from gated_interp.training.fit import fit_replacement, fit_settings, steps_and_fvu

# Held-out sequences that results are measured on, and that say which heads are dead.
SEQUENCES = 128
# Sequences of repeated tokens on which the heads of a model of another library are switched off.
REPEATS = 8
# Of these, how many heads are read on.
READ = 64
# Of a model of another library, sequences whose activations are kept for training.
CAPTURED, ACTIVATIONS = 1400, "activations"
NOTES, RESULTS = "decompose.json", "results.json"
ORIGINAL = "original.safetensors"
SAVE_EVERY = 100
MISSED = "missed"


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecomposeRow(Row):
    """A block: its layer and seed, and what was measured of it on held-out text.

    Attributes:
        layer, seed: of the block.
        ce: and what follows, see :func:`~gated_interp.analysis.block_measures.block_measures` and
            :func:`~gated_interp.analysis.faithfulness.loss_recovered` (losses in nats).
        held_share: and ``held_...``; missing of a model of another library, where they say little.
        effect: and ``carriers``, ``top_share``, of such a model: what the layer is worth on
            repeated random tokens (nats), how many heads carry 90% of it, and the largest head's
            Shapley share (:func:`~gated_interp.analysis.head_effects.head_effects`); missing where
            that is within noise of zero.
        heads: before dead and spare ones were pruned.
        seconds: of the training.
        positions: that were trained on.
    """

    KEY: ClassVar[tuple[str, ...]] = ("layer", "seed")

    layer: int
    seed: int
    ce: float
    ce_original: float
    kl: float
    ce_difference: float
    ce_zero: float
    ce_mean: float
    ce_recovered_zero: float
    ce_recovered_mean: float
    fvu: float
    active_per_position: float
    heads: int
    heads_alive: int
    active_original: float
    gates_per_pair: float
    open_share: float
    parameters: int
    seconds: float
    positions: int
    # Since 0.3; missing in the rows of an earlier version.
    ce_resample: float = float("nan")
    ce_recovered_resample: float = float("nan")
    held_share: float = float("nan")
    held_share_original: float = float("nan")
    held_weighted: float = float("nan")
    held_weighted_original: float = float("nan")
    held_entropy: float = float("nan")
    held_entropy_original: float = float("nan")
    held_about_mean: float = float("nan")
    held_about_mean_original: float = float("nan")
    participation: float = float("nan")
    participation_original: float = float("nan")
    alone: float = float("nan")
    alone_original: float = float("nan")
    effect: float = float("nan")
    carriers: int | None = None
    carriers_original: int | None = None
    top_share: float = float("nan")
    top_share_original: float = float("nan")
    kl_zero: float = float("nan")
    kl_mean: float = float("nan")
    kl_resample: float = float("nan")
    kl_recovered_zero: float = float("nan")
    kl_recovered_mean: float = float("nan")
    kl_recovered_resample: float = float("nan")

    def __str__(self) -> str:
        return (
            f"layer {self.layer}, seed {self.seed}: FVU {self.fvu:.3f}, "
            f"{self.ce_recovered_zero:.1%} of the loss recovered, {self._shared}."
        )

    @property
    def _shared(self) -> str:
        if not math.isnan(self.held_share):
            return f"{self.held_share:.1%} of positions held by one head"
        said = f"{self.participation:.1f} heads write at a position"
        said += f" ({self.participation_original:.1f} in the original)"
        if self.carriers is None:
            return said
        return (
            f"{said}, and {self.carriers} carry 90% of the copying of repeated tokens "
            f"({self.carriers_original} in the original)"
        )


@dataclasses.dataclass(frozen=True)
class DecomposeResult:
    """What :func:`decompose` found.

    Attributes:
        runs: one row per layer and seed, and one per seed with ``layer`` -1 for all layers spliced
            at once where there are several: ``layer``, ``seed``, what
            :func:`~gated_interp.analysis.block_measures.block_measures` says, ``positions`` (that
            were trained on), ``seconds``.
        results: what ``results.json`` holds.
        folder: where it lies.
        original: the model that was decomposed.

    Examples:
        >>> runs = pd.DataFrame({"layer": [0, 0, 0], "seed": [0, 1, 2], "fvu": [0.2, 0.1, 0.3]})
        >>> int(DecomposeResult(runs, {}, Path("runs")).median_run(0)["seed"])
        0
    """

    runs: pd.DataFrame
    results: dict[str, Any]
    folder: Path
    original: HookedTransformer | None = None

    def model(self, layer: int, seed: int) -> HookedTransformer:
        """The model with the block of this layer and seed in its place."""
        pretrained = isinstance(self.original, PretrainedTransformer)
        return load(_path(self.folder, layer, seed), base=self.original if pretrained else None)

    def median_run(self, layer: int) -> pd.Series:
        """The run of this layer whose FVU is the median (of an even number the lower one)."""
        runs = self.runs[self.runs["layer"] == layer].sort_values("fvu")
        return runs.iloc[(len(runs) - 1) // 2]

    def median(self, layer: int) -> HookedTransformer:
        """The model of :meth:`median_run`."""
        return self.model(layer, int(self.median_run(layer)["seed"]))


def decompose(
    model: HookedTransformer | Any,
    out: Path | str,
    *,
    layers: Sequence[int] | None = None,
    data: DataSource | None = None,
    method: str = "gated",
    heads: int | None = None,
    fvu: float | None = None,
    steps: int | None = None,
    seeds: int = 3,
    first_seed: int = 0,
    spare: int | float = 0.0,
    sequences: int = SEQUENCES,
    captured: int | None = None,
    workers: int | str | None = None,
    pages: bool = True,
    say: Callable[[str], None] = lambda _: None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
    **settings: Any,
) -> DecomposeResult:
    """Fit stand-ins for the attention of ``layers`` over seeds, and measure them on held-out text.

    Of a gated block, heads that are dead on the validation part, and those that ``spare`` lets go
    there, are pruned; everything is measured on the test part. A run is kept when it is done, and a
    training that was interrupted goes on: given again, the command goes on where it was.

    Args:
        model: what :func:`~gated_interp.checkpoints.opened.open_model` opens. Of a model of another
            library the files in ``out`` hold the blocks alone, and where the model was opened. One
            that was given from memory is nowhere else, so its blocks train in this process alone.
        out: run folder: ``results.json``, ``runs.csv``, for each layer and seed
            ``L0-seed0.safetensors`` (the model with the block) and ``L0-seed0-history.csv``, and
            for each layer ``L0.html``, a page of what its heads do, and those of the run whose FVU
            is the median. It starts from an overview of all layers, ``overview.csv``.
        layers: all unless given.
        data, method, heads, fvu, steps, settings: see
            :func:`~gated_interp.training.fit.fit_replacement`.
        seeds: at least 1, of weights and data, counting up from ``first_seed``.
        spare: by what share of itself the FVU may rise for pruning heads that are hardly missed
            (:func:`~gated_interp.analysis.spare_heads.spare_heads`); 0 prunes dead ones alone.
        sequences: held-out sequences to measure on.
        captured: train from so many sequences whose activations are kept in ``out/activations``
            (:func:`~gated_interp.training.activations.capture`), or from the model in every step if
            0. 1,400 for a model of another library unless given, of its text with repeats
            (:func:`~gated_interp.tasks.mixture.with_repeats`) unless ``data`` are given; else 0.
        workers: processes, all cores unless given; or the address of a Dask scheduler, such as
            ``tcp://127.0.0.1:8786``, whose workers see ``out`` at the same place.
        pages: whether to write the pages of heads.
        say: told a sentence for each run.
        on_progress: told how many runs are done, of how many.

    Raises:
        GatedInterpError: no such layer, method or setting, a model that holds replacements
            already, or a folder that holds another decomposition.

    Examples:
        >>> import tempfile
        >>> from gated_interp.models.toy import ToyConfig, build_toy
        >>> toy = build_toy(ToyConfig(n_trigrams=3, n_heads=2))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     found = decompose(toy, folder, steps=3, seeds=1, sequences=20, workers=1)
        >>> sorted(found.results["layers"]["0"]["median"])[:3]
        ['active_original', 'active_per_position', 'alone']
    """
    out, model = Path(out), open_model(model)
    in_memory = isinstance(model, PretrainedTransformer) and model.place is None
    layers = list(range(model.cfg.n_layers)) if layers is None else sorted(set(layers))
    for layer in layers:
        require_layer(model, layer)
    if not spare >= 0:
        raise GatedInterpError("is-negative", name="spare", value=spare)
    if seeds < 1 or sequences < 1 or not layers:
        raise GatedInterpError(
            "nothing-to-decompose", layers=len(layers), seeds=seeds, sequences=sequences
        )
    deep = isinstance(model, PretrainedTransformer)
    steps, fvu = steps_and_fvu(deep, steps, fvu)
    captured = (CAPTURED if deep else 0) if captured is None else captured
    given = {"method": method, "heads": heads, "fvu": fvu, "steps": steps, **settings}
    source = data_for(model, data)
    read = source
    if captured and data is None and isinstance(source, TextTask):
        read = with_repeats(source)
    config = fit_settings(model, layers[0], data, **given)[1]  # refuses before anything is written
    wanted = [(layer, first_seed + i) for i in range(seeds) for layer in layers]
    for path in (out / ORIGINAL, *(_path(out, *key) for key in wanted)):
        require_place(path)
        require_place(history_of(path))
    notes: dict[str, Any] = {
        "model": fingerprint(model, trained=True),
        "data": name_of(source),
        "settings": given | ({"spare": spare} if spare else {}),
        "sequences": sequences,
        **({"captured": captured} if captured else {}),
    }
    store = Store(
        out, "runs", DecomposeRow, notes, notes_file=NOTES, digits=None, results=[RESULTS]
    ).read()
    total = len(wanted)

    def made(missing: Sequence[Key]) -> Generator[tuple[DecomposeRow, None]]:
        save(model, out / ORIGINAL)
        on_progress(total - len(missing), total)
        own = model if in_memory else None
        trained: Source = read
        if captured:
            how: dict[str, Any] = {"sequences": captured, "say": say, "progress": False}
            trained = capture(model, layers, out.absolute() / ACTIVATIONS, read, **how)
        settings = (source, trained, given, spare, sequences)
        folder = str(out.absolute())  # processes may be in the folder of an earlier call
        jobs = [(key, _fit, (folder, own, *key, *settings)) for key in missing]
        positions = config.steps * config.update_size * _positions(source, model)
        with closing(where.run(keyed, jobs)) as done:
            for n, (_, row) in enumerate(done, total - len(missing) + 1):
                if (missed := row.pop(MISSED)) is not None:
                    which = f"layer {row['layer']}, seed {row['seed']}"
                    warnings.warn(f"{which}: {missed}", GatedInterpWarning, stacklevel=2)
                yield DecomposeRow.of(row | {"positions": positions}), None
                on_progress(n, total)

    alone = in_memory or store.complete(wanted)  # then nothing is left to train
    with connected(1 if alone else workers) as where:
        fill(store, wanted, made, unit="runs", say=say)
    table = store.frame()
    table = table[[key in wanted for key in store.rows]]
    together = _together(model, out, layers, sorted({s for _, s in wanted}), source, sequences)
    runs = pd.concat([table, together]).sort_values(["layer", "seed"], ignore_index=True)
    results = summarised(runs, {"method": method, "fvu_target": fvu, "steps": steps})
    on = f"{sequences} held-out sequences of {_positions(source, model)} tokens ({source})"
    repeats = f"{REPEATS} sequences of repeated random tokens (seed 0), where tokens repeat"
    for layer in results["layers"].values():
        of = of_decompose(layer["median"], on, repeats, [row["seed"] for row in layer["seeds"]])
        layer["measured"] = of
    write_text(out / RESULTS, json.dumps(results, indent=2) + "\n")
    found = DecomposeResult(runs, results, out, model)
    tokens = held_out(model, source, "test", READ)
    if not pages:
        return found
    overview = None
    try:
        overview = overview_of(out, model, tokens)
    except GatedInterpError as error:
        say(f"No overview of all layers: {error}")
    for layer in layers:
        which = found.median(layer), tokens, found.median_run(layer)
        try:
            write_head_page(out, model, *which, overview, layers)
        except GatedInterpError as error:
            say(f"No page of the heads of layer {layer}: {error}")
    return found


def summarised(runs: pd.DataFrame, notes: Mapping[str, Any]) -> dict[str, Any]:
    """``results.json``: per layer its seeds, their median, and an interval of their mean.

    The interval is Student's, 95%, from seed to seed; missing (null) where there is one seed.
    """
    found: dict[str, Any] = {**notes, "layers": {}}
    for layer in sorted({int(layer) for layer in runs["layer"]}):
        numbers = (
            runs[runs["layer"] == layer].drop(columns="layer").set_index("seed").dropna(axis=1)
        )
        ends = {name: mean_interval(values.to_numpy(float)) for name, values in numbers.items()}
        found["layers"]["all" if layer < 0 else str(layer)] = {
            "seeds": numbers.reset_index().to_dict("records"),
            "median": numbers.median().to_dict(),
            **{
                end: {name: None if math.isnan(e[i]) else e[i] for name, e in ends.items()}
                for i, end in enumerate(("low", "high"))
            },
        }
    return found


def _fit(
    folder: str,
    model: HookedTransformer | None,
    layer: int,
    seed: int,
    data: Source,
    trained: Source,
    given: Mapping[str, Any],
    spare: int | float,
    sequences: int,
) -> dict[str, Any]:
    """Train, prune, measure and write one block; called in another process."""
    if model is None and not Path(folder, ORIGINAL).is_file():
        raise GatedInterpError("workers-lack-the-folder", folder=folder)
    model, path = model or load(Path(folder, ORIGINAL)), _path(Path(folder), layer, seed)
    source, state = data_for(model, data), state_of(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", GatedInterpWarning)  # the process that asked for it warns
        result = fit_replacement(
            model,
            layer,
            trained,
            seed=seed,
            checkpoint=state,
            resume=state if state.is_file() else None,
            progress=False,
            **{"checkpoint_every": SAVE_EVERY, "log_every": 10, **given},
        )
    checked = held_out(model, source, "validation", sequences)
    spliced = _pruned(splice(model, layer, result.model), layer, checked, spare)
    deep = isinstance(model, PretrainedTransformer)
    tokens = held_out(model, source, "test", sequences)
    row = {
        "layer": layer,
        "seed": seed,
        **block_measures(spliced, layer, tokens, held=not deep),
        **(_copying(model, spliced, layer) if deep else {}),
        "heads": len(result.model.W_O),
        "seconds": result.seconds,
    }
    known = {n: v for n, v in row.items() if v is not None and math.isfinite(v)}
    write_trained(spliced, path, {"training": result.config.to_dict(), **known}, result.history)
    return {**row, MISSED: result.missed}


def _copying(
    original: HookedTransformer, spliced: HookedTransformer, layer: int
) -> dict[str, float]:
    """How the layer's heads share what it is worth on repeated random tokens, before and after.

    Nothing of a model that names no token to begin a sequence with.
    """
    tokenizer = getattr(original.tokenizer, "bos_token_id", None)
    if getattr(original.task, "bos", None) is None and tokenizer is None:
        return {}
    tokens = repeated_random_tokens(original, REPEATS, seed=derive(0, Stream.MEASURED_REPEATS))
    found: dict[str, float] = {}
    for which, model in (("_original", original), ("", spliced)):
        effects = head_effects(model, layer, tokens, positions="repeats")
        said = effects.summary()
        found |= {f"{n}{which}": said[n] for n in ("carriers", "top_share") if n in said}
        found["effect"] = said["effect"]
    return found


def _pruned(
    model: HookedTransformer, layer: int, tokens: Batch, spare: int | float
) -> HookedTransformer:
    """``model`` without the heads of its gated block that ``tokens`` do not need."""
    block = gated_block(model, layer)
    if block is None:
        return model
    dead, heads = dead_heads(model, layer, tokens), range(len(block.W_O))
    if 0 < len(dead) < len(heads):
        model = splice(model, layer, with_heads(block, [h for h in heads if h not in dead]))
    return prune_spare_heads(model, layer, tokens, spare) if spare else model


def _together(
    model: HookedTransformer,
    out: Path,
    layers: Sequence[int],
    seeds: Sequence[int],
    data: Source,
    sequences: int,
) -> pd.DataFrame:
    """A row per seed with every layer spliced at once, where there are several."""
    if len(layers) < 2:
        return pd.DataFrame()
    tokens = held_out(model, data, "test", sequences)
    rows = []
    for seed in seeds:
        spliced = model
        for layer in layers:
            attn = model.blocks[layer].attn
            block = Replacement.from_pretrained(_path(out, layer, seed), layer, original=attn)
            spliced = splice(spliced, layer, block)
        rows.append({"layer": -1, "seed": seed, **loss_recovered(spliced, tokens=tokens)})
    return pd.DataFrame(rows)


def held_out(model: HookedTransformer, data: Source, part: Part, n: int) -> Batch:
    """Sequences of a text's ``part`` (of another source, from a seed of its own)."""
    validation, test = derive(0, Stream.VALIDATION), derive(0, Stream.TEST)
    seed = validation if part == "validation" else test
    return draw(held_out_part(data, part), n, seed, model)


def _positions(data: Source, model: HookedTransformer) -> int:
    return draw(data, 1, 0, model).tokens.shape[1]


def _path(folder: Path, layer: int, seed: int) -> Path:
    return folder / f"L{layer}-seed{seed}.safetensors"
