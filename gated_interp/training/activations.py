"""What attention layers receive and write, captured once and kept in a folder.

A deep model takes most of the time of a training that runs it in every step. Captured once, the
activations of any number of layers lie on the disk, and a step costs the block alone.
"""

import dataclasses
import json
import os
import shutil
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor
from tqdm.auto import tqdm

from gated_interp.anatomy.batch import Batch
from gated_interp.core.errors import CheckpointError, GatedInterpError
from gated_interp.core.files import refused, write_text
from gated_interp.core.fingerprint import fingerprint
from gated_interp.core.seeds import derive, generator
from gated_interp.core.streams import Stream
from gated_interp.models.toy import HookedTransformer
from gated_interp.replacements.replacement import inputs_of, outputs_of
from gated_interp.training.capture import AttentionIO, require_capturable
from gated_interp.training.data import DataSource, data_for, draw, name_of

Precision = Literal["float16", "bfloat16"]
NOTES, TOKENS, FOCUS, VERSION = "activations.json", "tokens.bin", "focus.bin", 2
# Sequences of one forward pass, which is also after how many the folder is complete up to there.
AT_ONCE = 8
PADDING = -1


@dataclasses.dataclass(frozen=True)
class StoredBatch(Batch):
    """Sequences of a store, by their rows in it."""

    rows: Int[Tensor, " batch"] = dataclasses.field(default_factory=lambda: torch.empty(0).long())

    def __getitem__(self, rows: Any) -> "StoredBatch":
        return dataclasses.replace(self, **self._each(lambda t: t[rows]), rows=self.rows[rows])


@dataclasses.dataclass(frozen=True)
class ActivationStore:
    """Captured activations, mapped into memory where they are touched; see :func:`capture`.

    Attributes:
        folder: where they lie.
        model: the fingerprint of the model they were captured from.
        data: the name of what the model read.
        layers: whose attention was captured.
        sequences, n_positions, d_model: their shape.
        precision: of the numbers.
        seed: of the sequences.

    Examples:
        >>> import tempfile
        >>> from gated_interp.models.toy import ToyConfig, build_toy
        >>> toy = build_toy(ToyConfig(n_trigrams=3, n_heads=2))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     store = capture(toy, 0, folder, sequences=20, progress=False)
        ...     tuple(store.read(0, store.sample(4, seed=0)).output.shape)
        (4, 11, 8)
    """

    folder: Path
    model: str
    data: str
    layers: tuple[int, ...]
    sequences: int
    n_positions: int
    d_model: int
    precision: Precision
    seed: int

    KEPT: ClassVar[tuple[str, ...]] = (
        *("model", "data", "layers", "sequences", "n_positions", "d_model", "precision", "seed"),
    )

    @classmethod
    def open(cls, folder: Path | str) -> "ActivationStore":
        """The store in ``folder``.

        Raises:
            CheckpointError: there is none, it is damaged, or its capture is not finished.
        """
        folder = Path(folder)
        said = _said(folder)
        if said is None:
            raise CheckpointError("no-activations", folder=folder)
        store = _store(folder, said)
        if said["done"] < store.sequences:
            raise CheckpointError(
                "capture-unfinished", folder=folder, done=said["done"], wanted=store.sequences
            )
        for name, size in store.files.items():
            there = (folder / name).stat().st_size if (folder / name).is_file() else 0
            if there != size:
                raise CheckpointError("activations-damaged", path=folder / name, size=size)
        return store

    @property
    def identity(self) -> str:
        """What a training must share with a saved one to go on from it."""
        kept = [f"{name} {getattr(self, name)}" for name in self.KEPT]
        return f"activations of {', '.join(kept)}"

    @property
    def files(self) -> dict[str, int]:
        """The files with numbers and their sizes in bytes."""
        positions = self.sequences * self.n_positions
        sizes = {TOKENS: 4 * positions, FOCUS: positions}
        return sizes | {_file(i): self.bytes_per_layer for i in self.layers}

    @property
    def bytes_per_layer(self) -> int:
        """Inputs and outputs, two bytes a number."""
        return 2 * 2 * self.sequences * self.n_positions * self.d_model

    @cached_property
    def tokens(self) -> Int[Tensor, "sequence pos"]:
        """What the model read; -1 at padding."""
        shape = self.sequences, self.n_positions
        return torch.from_numpy(np.fromfile(self.folder / TOKENS, np.int32).reshape(shape)).long()

    @cached_property
    def focus(self) -> Bool[Tensor, "sequence pos"]:
        """The positions that the data marked; see :class:`~gated_interp.tasks.text.TokenBatch`."""
        shape = self.sequences, self.n_positions
        return torch.from_numpy(np.fromfile(self.folder / FOCUS, np.bool_).reshape(shape))

    def sample(self, n: int, seed: int) -> StoredBatch:
        """``n`` of the sequences, with replacement; the same seed gives the same."""
        return self.batch(torch.randint(self.sequences, (n,), generator=generator(seed)))

    def shuffled(self, size: int, seed: int) -> Callable[[int], StoredBatch]:
        """``size`` sequences for each step; every one is seen once before any is seen again."""
        per_epoch = self.sequences // size
        if not per_epoch:
            raise GatedInterpError("store-smaller-than-batch", n=self.sequences, batch=size)

        def of_step(step: int) -> StoredBatch:
            epoch, number = divmod(step, per_epoch)
            source = generator(derive(seed, Stream.SHUFFLED, epoch))
            order = torch.randperm(self.sequences, generator=source)
            return self.batch(order[number * size : (number + 1) * size])

        return of_step

    def batch(self, rows: Int[Tensor, " batch"]) -> StoredBatch:
        """The sequences of these rows."""
        tokens = self.tokens[rows]
        real = tokens != PADDING
        padded = not bool(real.all())
        return StoredBatch(
            tokens.clamp(min=0),
            real if padded else None,
            padded,
            focus=self.focus[rows],
            rows=rows.to(tokens.device),
        )

    def read(self, layer: int, batch: Batch) -> AttentionIO:
        """What ``layer`` received and wrote on a batch of this store, in float32.

        Raises:
            GatedInterpError: another layer than the captured ones.
        """
        if layer not in self.layers:
            raise GatedInterpError("layer-not-captured", layer=layer, layers=list(self.layers))
        assert isinstance(batch, StoredBatch)
        numbers = self._numbers(layer)[batch.rows.cpu().numpy()]
        given, written = _from_bits(numbers, self.precision).to(batch.tokens.device).unbind(1)
        return AttentionIO(given, given, given, output=written)

    def _numbers(self, layer: int) -> np.ndarray:
        shape = self.sequences, 2, self.n_positions, self.d_model
        return np.memmap(self.folder / _file(layer), np.uint16, "r", shape=shape)

    def require_model(self, model: str) -> None:
        """Refuse another model, by its fingerprint, than the captured one."""
        if model != self.model:
            raise GatedInterpError("activations-of-another-model", folder=self.folder)


def capture(
    model: HookedTransformer,
    layers: int | Sequence[int] | None,
    folder: Path | str,
    data: DataSource | None = None,
    *,
    sequences: int = 1400,
    seed: int = 0,
    precision: Precision = "float16",
    progress: bool = True,
    say: Callable[[str], None] = lambda _: None,
) -> ActivationStore:
    """Run ``model`` once and keep what the attention of some layers receives and writes.

    All layers are captured in one pass, which ends behind the last of them. Every
    :data:`AT_ONCE` sequences the folder is complete up to there: the same call goes on where an
    earlier one was stopped, and opens what is finished.

    Args:
        layers: one, several, or all (``None``).
        folder: made if it is not there; two bytes for each number and sequence, twice ``d_model``
            numbers for each position and layer.
        data: as for :func:`~gated_interp.training.fit.fit_gated`; the model's own unless given.
            For induction, :func:`~gated_interp.tasks.mixture.with_repeats`.
        sequences: how many are drawn.
        seed: of the sequences.
        precision: float16 rounds less; bfloat16 holds numbers beyond 65,504.
        say: told the size before anything is written.

    Raises:
        GatedInterpError: no such layer, a layer whose queries, keys and values read different
            inputs, numbers that ``precision`` does not hold, or a disk without room.
        CheckpointError: a folder that holds other activations.

    Examples:
        >>> import tempfile
        >>> from gated_interp.models.toy import ToyConfig, build_toy
        >>> toy = build_toy(ToyConfig(n_trigrams=3, n_heads=2))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     capture(toy, 0, folder, sequences=20, progress=False).layers
        (0,)
    """
    folder = Path(folder)
    chosen = range(model.cfg.n_layers) if layers is None else layers
    wanted = tuple(sorted({chosen} if isinstance(chosen, int) else set(chosen)))
    for layer in wanted:
        require_capturable(model, layer)
    if not wanted or sequences < 1:
        raise GatedInterpError("nothing-to-capture", layers=len(wanted), sequences=sequences)
    if precision not in get_args(Precision):
        raise GatedInterpError(
            "not-one-of", name="precision", value=precision, choices=get_args(Precision)
        )
    source = data_for(model, data)
    store = ActivationStore(
        folder,
        fingerprint(model, trained=True),
        name_of(source),
        wanted,
        sequences,
        draw(source, 1, derive(seed, Stream.CAPTURED, 0), model).tokens.shape[1],
        model.cfg.d_model,
        precision,
        seed,
    )
    said = _said(folder)
    if said is not None and _store(folder, said) != store:
        raise CheckpointError("other-activations", folder=folder, found=_store(folder, said).data)
    done = 0 if said is None else int(said["done"])
    if done < sequences:
        _require_room(store, done, say)
        _fill(model, store, source, done, progress)
    return ActivationStore.open(folder)


@torch.no_grad()
def _fill(
    model: HookedTransformer, store: ActivationStore, source: Any, done: int, progress: bool
) -> None:
    try:
        store.folder.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            files = {name: stack.enter_context(_opened(store, name, done)) for name in store.files}
            bar = tqdm(total=store.sequences, initial=done, disable=not progress, unit="sequence")
            stack.enter_context(bar)
            while done < store.sequences:
                n = min(AT_ONCE, store.sequences - done)
                seed = derive(store.seed, Stream.CAPTURED, done // AT_ONCE)
                batch = draw(source, n, seed, model)
                if batch.tokens.shape[1] != store.n_positions:
                    raise GatedInterpError(
                        "captured-lengths-differ", n=batch.tokens.shape[1], first=store.n_positions
                    )
                tokens = batch.tokens.masked_fill(~batch.counted, PADDING)
                files[TOKENS].write(tokens.cpu().numpy().astype(np.int32).tobytes())
                none = torch.zeros_like(tokens, dtype=torch.bool)
                focus = none if batch.focus is None else batch.focus
                files[FOCUS].write(focus.cpu().numpy().tobytes())
                for layer, numbers in _captured(model, store.layers, batch).items():
                    bits = _to_bits(numbers, store.precision, layer)
                    files[_file(layer)].write(bits.tobytes())
                for file in files.values():
                    file.flush()
                done += n
                _note(store, done)
                bar.update(n)
    except OSError as error:
        raise refused(store.folder, error) from error


def _captured(model: HookedTransformer, layers: tuple[int, ...], batch: Batch) -> dict[int, Tensor]:
    """Input and output of each layer, ``[batch 2 pos d_model]``, from one forward pass."""
    with ExitStack() as stack:
        attns = {layer: model.blocks[layer].attn for layer in layers}
        given = {i: stack.enter_context(inputs_of(attn)) for i, attn in attns.items()}
        written = {i: stack.enter_context(outputs_of(attn)) for i, attn in attns.items()}
        batch.logits(model, return_type=None, stop_at_layer=max(layers) + 1)
    found = {}
    for i in layers:
        query, key, value = (given[i][-1][f"{name}_input"] for name in ("query", "key", "value"))
        if not (query is key is value or (torch.equal(query, key) and torch.equal(key, value))):
            raise GatedInterpError("captured-inputs-differ", layer=i)
        found[i] = torch.stack([query, written[i][-1]], 1)
    return found


def _opened(store: ActivationStore, name: str, done: int) -> Any:
    """The file, cut to what is complete, to be written on."""
    path = store.folder / name
    file = path.open("r+b" if done and path.is_file() else "wb")
    size = store.files[name] // store.sequences * done
    if file.seek(0, os.SEEK_END) < size:
        file.close()
        raise CheckpointError("activations-damaged", path=path, size=size)
    file.truncate(size)
    file.seek(size)
    return file


def _require_room(store: ActivationStore, done: int, say: Callable[[str], None]) -> None:
    size = sum(store.files.values())
    place = next(p for p in (store.folder, *store.folder.absolute().parents) if p.exists())
    free = shutil.disk_usage(place).free
    needed = size - size // store.sequences * done
    if needed > free:
        raise GatedInterpError(
            "no-room-for-activations", folder=store.folder, needed=needed / 1e9, free=free / 1e9
        )
    say(
        f"Capturing {len(store.layers)} layers of {store.sequences} sequences into {store.folder}: "
        f"{needed / 1e9:.2f} GB, {free / 1e9:.0f} GB are free."
    )


def _said(folder: Path) -> dict[str, Any] | None:
    """What the notes say, or ``None`` where there are none."""
    try:
        said = json.loads((folder / NOTES).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise CheckpointError("activations-damaged", path=folder / NOTES, size=0) from error
    known = {"version", "done", *ActivationStore.KEPT}
    if not isinstance(said, dict) or set(said) != known or said["version"] != VERSION:
        raise CheckpointError("activations-damaged", path=folder / NOTES, size=0)
    return said


def _store(folder: Path, said: dict[str, Any]) -> ActivationStore:
    fields = {name: said[name] for name in ActivationStore.KEPT}
    return ActivationStore(folder, **fields | {"layers": tuple(said["layers"])})


def _note(store: ActivationStore, done: int) -> None:
    kept = {name: getattr(store, name) for name in store.KEPT}
    write_text(store.folder / NOTES, json.dumps({"version": VERSION, "done": done, **kept}))


def _file(layer: int) -> str:
    return f"L{layer}.bin"


def _to_bits(numbers: Tensor, precision: Precision, layer: int) -> np.ndarray:
    held = numbers.to(getattr(torch, precision))
    if not bool(held.isfinite().all()):
        raise GatedInterpError("activations-too-large", layer=layer, precision=precision)
    return held.view(torch.int16).cpu().contiguous().numpy()


def _from_bits(numbers: np.ndarray, precision: Precision) -> Tensor:
    held = torch.from_numpy(np.ascontiguousarray(numbers).view(np.int16))
    return held.view(getattr(torch, precision)).float()
