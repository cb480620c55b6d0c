"""A step that trains a block on stored activations, beside Lorsa and beside the block alone.

Lorsa is the module of OpenMOSS' package ``llamascopium``, with its own loss, at as many parameters
and on the same activations. The package is not among what development needs; to get the module::

    .venv/bin/python -m pip install --no-deps --target runs/lorsa llamascopium==2.0.0b34
    PYTHONPATH=runs/lorsa make bench

Without it the rows of Lorsa say so, and everything else is measured.
"""

import importlib
import importlib.util
import statistics
import sys
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
from gated_interp.training.capture import attention_io

# The shape of a layer of SmolLM2-135M, in which every head has keys of its own here.
D_MODEL, HEADS, D_HEAD = 576, 9, 64
BATCH, POSITIONS = 8, 128
ROUNDS = 9
GOAL_BARE, GOAL_CAPTURE = 1.3, 1.1
HOOK_IN, HOOK_OUT = "in", "out"
ABSENT = "llamascopium is not installed; tests/bench_block_step.py says how to get it"


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


def layer_of(positions: int = POSITIONS) -> HookedTransformer:
    """Two layers of the shape, the second the one to take apart, with random weights."""
    shape = HookedTransformerConfig(
        n_layers=2, d_model=D_MODEL, n_heads=HEADS, d_head=D_HEAD, d_mlp=4 * D_MODEL, d_vocab=2048,
        n_ctx=positions, act_fn="silu", gated_mlp=True, normalization_type="RMSPre",
        positional_embedding_type="rotary", rotary_dim=D_HEAD, device="cpu", seed=0,
    )  # fmt: skip
    return HookedTransformer(shape)


def alternated(functions: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """The median of each one's seconds, called in turns; the first two turns warm up.

    Seconds are the processor's, of this process: what else the machine does counts for little.
    """
    times: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            started = time.process_time()
            function()
            times[name].append(time.process_time() - started)
    return {name: statistics.median(each[2:] or each) for name, each in times.items()}


def peak_of(function: Callable[[], object]) -> float:
    """MiB of tensors that ``function`` holds in its fullest moment, beside those there before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        function()
    events = [e for e in seen.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = accumulate(e.nbytes() for e in sorted(events, key=lambda e: e.start_ns()))
    return max(held) / 2**20


def bench_block_step() -> list[dict[str, Any]]:
    """A step of 8 x 128 tokens, 18 heads of 64 with gates of 8: tokens per second, and memory."""
    model = layer_of()
    tokens = torch.randint(2048, (BATCH, POSITIONS), generator=torch.Generator().manual_seed(0))
    seen = attention_io(model, 1, tokens)
    x, y = seen.value_input, seen.output

    def block() -> GatedAttention:
        return GatedAttention.from_attention(
            model.blocks[1].attn, 2, init="duplicate", d_gate=8, normalize_weights=False
        )

    bare = block()
    steps: dict[str, Callable[[], object]] = {
        "the block alone, forward and backward": lambda: bare(x).square().mean().backward(),
        "a step that trains it": training_step(block(), x, y),
    }
    names = {
        "a step of Lorsa, K = 16": False,
        "the same, with its loss for dead heads": True,
    }
    if (module := lorsa_module()) is not None:
        parameters = sum(p.numel() for p in bare.parameters())
        for name, auxiliary in names.items():
            steps[name] = lorsa_step(lorsa_of(module, parameters, 16), x, y, auxiliary)
    seconds = alternated(steps, ROUNDS)
    own, *_ = seconds.values()
    rows = [
        {
            "what": what,
            "tokens/s": x.shape[0] * x.shape[1] / seconds[what],
            "to the block": seconds[what] / own,
            "MiB": peak_of(step),
        }
        for what, step in steps.items()
    ]
    rows[1]["goal"] = GOAL_BARE
    if module is None:
        rows += [{"what": f"{name}: {ABSENT}"} for name in names]
    return rows + bench_capture(model, tokens)


def bench_capture(model: HookedTransformer, tokens: Tensor) -> list[dict[str, Any]]:
    """What is captured of a layer, against the bare forward pass up to it."""

    @torch.no_grad()
    def forward() -> None:
        model(tokens, return_type=None, stop_at_layer=2)

    seconds = alternated({"bare": forward, "captured": lambda: attention_io(model, 1, tokens)}, 21)
    return [
        {
            "what": "capture of a layer, against the bare forward pass",
            "tokens/s": tokens.numel() / seconds["captured"],
            "to the forward pass": seconds["captured"] / seconds["bare"],
            "goal": GOAL_CAPTURE,
        }
    ]
