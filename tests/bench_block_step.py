"""A step that trains a block on stored activations, beside Lorsa and beside the block alone.

Lorsa is the module of OpenMOSS' package ``llamascopium``, with its own loss, at as many parameters
and on the same activations. The package is not among what development needs; to get the module::

    .venv/bin/python -m pip install --no-deps --target runs/lorsa llamascopium==2.0.0b34
    PYTHONPATH=runs/lorsa make bench

Without it the rows of Lorsa say so, and everything else is measured.
"""

import dataclasses
import importlib
import importlib.util
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from transformer_lens import HookedTransformer, HookedTransformerConfig

from gated_interp.replacements.gated_attention import GatedAttention
from gated_interp.training.activations import ActivationStore, capture
from gated_interp.training.config import TrainConfig
from gated_interp.training.loop import train_gated
from gated_interp.training.objectives import autocast

# The shape of a layer of SmolLM2-135M, in which every head has keys of its own here.
D_MODEL, HEADS, D_HEAD = 576, 9, 64
BATCH, POSITIONS = 8, 128
ROUNDS = 9
VOCABULARY = 2048
GOAL_BARE, GOAL_CAPTURE = 1.3, 1.1
BARE, STEP = "the block alone, forward and backward", "a step that trains it"
# With or without the loss for dead heads.
LORSA = {"a step of Lorsa, K = 16": False, "the same, with its loss for dead heads": True}
HOOK_IN, HOOK_OUT = "in", "out"
HOW_TO_GET_IT = "-m pip install --no-deps --target runs/lorsa llamascopium==2.0.0b34"
ABSENT = f"llamascopium is not installed (.venv/bin/python {HOW_TO_GET_IT})"


def lorsa_module() -> Any | None:
    """``llamascopium.models.lorsa``, or nothing where the package is not there.

    The package's own first lines are left out: they import what training in a cluster needs.
    """
    if (spec := importlib.util.find_spec("llamascopium")) is None:
        return None
    sys.modules.setdefault("llamascopium", importlib.util.module_from_spec(spec))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it has decorators for GPUs
        return importlib.import_module("llamascopium.models.lorsa")


def lorsa_of(module: Any, parameters: int, k: int) -> nn.Module:
    """A Lorsa for the layer, of the largest size that has at most ``parameters``."""
    own = HEADS * (2 * D_MODEL * D_HEAD + 2 * D_HEAD) + D_MODEL  # queries, keys, output bias
    values = (parameters - own) // (2 * D_MODEL + 1)
    config = module.LorsaConfig(
        d_model=D_MODEL, expansion_factor=(values - values % HEADS) / D_MODEL, act_fn="topk",
        top_k=k, hook_point_in=HOOK_IN, hook_point_out=HOOK_OUT, n_qk_heads=HEADS,
        d_qk_head=D_HEAD, rotary_dim=D_HEAD, rotary_adjacent_pairs=False, n_ctx=POSITIONS,
        norm_activation="inference", device="cpu", dtype=torch.float32,
    )  # fmt: skip
    lorsa: nn.Module = module.LowRankSparseAttention(config)
    lorsa.init_parameters()
    return lorsa


def lorsa_step(lorsa: Any, x: Tensor, y: Tensor, auxiliary: bool = False) -> Callable[[], object]:
    """A training step with its own loss, and optionally with that for dead heads."""
    adam = torch.optim.Adam(lorsa.parameters(), lr=4e-4)
    batch = {HOOK_IN: x, HOOK_OUT: y}
    # As if half of the heads had not been active for long.
    dead = torch.arange(lorsa.cfg.d_sae) % 2 == 0
    extra = (
        {"auxk_coefficient": 1 / 32, "update_dead_statistics": lambda *_: dead} if auxiliary else {}
    )

    def step() -> None:
        adam.zero_grad()
        lorsa.compute_loss(batch, return_aux_data=False, **extra).backward()
        adam.step()

    return step


def layer_of() -> HookedTransformer:
    """Two layers of the shape, the second the one to take apart, with random weights."""
    shape = HookedTransformerConfig(
        n_layers=2, d_model=D_MODEL, n_heads=HEADS, d_head=D_HEAD, d_mlp=4 * D_MODEL,
        d_vocab=VOCABULARY, n_ctx=POSITIONS, act_fn="silu", gated_mlp=True,
        normalization_type="RMSPre", positional_embedding_type="rotary", rotary_dim=D_HEAD,
        device="cpu", seed=0,
    )  # fmt: skip
    return HookedTransformer(shape)


class Turns:
    """Functions that are called in turns, and the processor's seconds of this process for each.

    What else the machine does counts for little.
    """

    def __init__(self, functions: Mapping[str, Callable[[], object]]):
        self.functions = functions
        self.times: dict[str, list[float]] = {name: [] for name in functions}

    def __call__(self) -> None:
        for name, function in self.functions.items():
            started = time.process_time()
            function()
            self.times[name].append(time.process_time() - started)

    def seconds(self) -> dict[str, float]:
        return {name: settled(times) for name, times in self.times.items()}


def settled(times: list[float]) -> float:
    """The median, without the first two, which warm up."""
    return statistics.median(times[2:] or times)


def peak_of(function: Callable[[], object]) -> float:
    """MiB of tensors that ``function`` holds in its fullest moment, beside those there before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        function()
    events = [e for e in seen.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = accumulate(e.nbytes() for e in sorted(events, key=lambda e: e.start_ns()))
    return max(held) / 2**20


class TimedStore(ActivationStore):
    """A store that times the steps of the loop that reads it, and calls ``between`` in between."""

    times: list[float]
    between: Callable[[], object]

    @classmethod
    def of(cls, store: ActivationStore, between: Callable[[], object]) -> "TimedStore":
        fields = dataclasses.fields(store)
        timed = cls(**{field.name: getattr(store, field.name) for field in fields})
        vars(timed).update(times=[], between=between)
        return timed

    def shuffled(self, size: int, seed: int) -> Callable[[int], Any]:
        batch_of = super().shuffled(size, seed)
        began: list[float] = []

        def of_step(step: int) -> Any:
            if began:
                self.times.append(time.process_time() - began.pop())
            self.between()
            began.append(time.process_time())
            return batch_of(step)

        return of_step


def bench_block_step() -> list[dict[str, Any]]:
    """A step of 8 x 128 tokens, 18 heads of 64 with gates of 8: tokens per second, and memory."""
    model, module = layer_of(), lorsa_module()
    with tempfile.TemporaryDirectory() as folder:
        store = capture(model, 1, folder, random_tokens, sequences=8 * BATCH, progress=False)
        rows = [
            row
            for precision in ("float32", "bfloat16")
            for row in steps_of(model, store, precision, module)
        ]
    if module is None:
        rows.append({"what": f"Lorsa: {ABSENT}"})
    return [*rows, bench_capture(model)]


def random_tokens(n: int, source: torch.Generator) -> Tensor:
    """Tokens ``[batch pos]``."""
    return torch.randint(VOCABULARY, (n, POSITIONS), generator=source)


def steps_of(
    model: HookedTransformer, store: ActivationStore, precision: Any, module: Any | None
) -> list[dict[str, Any]]:
    """The loop's step between the others, all in one run."""
    config = TrainConfig.pretrained(
        steps=ROUNDS + 1,
        batch_size=BATCH,
        precision=precision,
        fvu_target=0.5,
        log_every=10_000,
        device="cpu",
    )
    seen = store.read(1, store.batch(torch.arange(BATCH)))
    x, y = seen.value_input, seen.output
    bare = block_for(model)

    def in_precision(function: Callable[[], object]) -> Callable[[], object]:
        def called() -> None:
            with autocast(config, x.device):
                function()

        return called

    others = {BARE: in_precision(lambda: bare(x).square().mean().backward())}
    if module is not None:
        parameters = sum(p.numel() for p in bare.parameters())
        for name, auxiliary in LORSA.items():
            lorsa = lorsa_of(module, parameters, 16)
            others[name] = in_precision(lorsa_step(lorsa, x, y, auxiliary))
    turns = Turns(others)
    timed = TimedStore.of(store, turns)
    train_gated(model, block_for(model), config, layer=1, data=timed, progress=False)
    seconds = {STEP: settled(timed.times), **turns.seconds()}
    short = config.replace(steps=2)
    peaks = {STEP: peak_of(lambda: train_gated(
        model, block_for(model), short, layer=1, data=store, progress=False))}  # fmt: skip
    peaks |= {name: peak_of(function) for name, function in others.items()}
    return [
        {
            "what": f"{what}, {precision}",
            "tokens/s": BATCH * POSITIONS / seconds[what],
            "to the block": seconds[what] / seconds[BARE],
            **({"goal": GOAL_BARE} if what == STEP else {}),
            **({"speed to Lorsa": seconds[next(iter(LORSA))] / seconds[what]} if module else {}),
            "MiB": peaks[what],
        }
        for what in (BARE, STEP, *(LORSA if module else ()))
    ]


def block_for(model: HookedTransformer) -> GatedAttention:
    """Two copies of each head, of its own width, with gates of 8 dimensions."""
    return GatedAttention.from_attention(
        model.blocks[1].attn, 2, init="duplicate", d_gate=8, normalize_weights=False
    )


def bench_capture(model: HookedTransformer) -> dict[str, Any]:
    """Both layers captured into a folder, against the bare forward pass that ends behind them."""
    batches = 12
    parts = random_tokens(batches * BATCH, torch.Generator().manual_seed(0)).split(BATCH)

    @torch.no_grad()
    def forward() -> None:
        for part in parts:
            model(part, return_type=None, stop_at_layer=2)

    def captured() -> None:
        with tempfile.TemporaryDirectory() as folder:
            how = {"data": random_tokens, "sequences": batches * BATCH, "progress": False}
            capture(model, None, folder, **how)

    turns = Turns({"forward": forward, "captured": captured})
    for _ in range(5):
        turns()
    seconds = turns.seconds()
    return {
        "what": "capture of two layers into a folder, to the bare forward pass",
        "tokens/s": batches * BATCH * POSITIONS / seconds["captured"],
        "to the forward pass": seconds["captured"] / seconds["forward"],
        "goal": GOAL_CAPTURE,
    }
