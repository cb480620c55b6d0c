"""Benchmarks, as ratios within one run: ``make bench``.

Every time is the smallest of several repeats in this process, on one thread where two things are
compared step by step. The slow twins are in ``slow_twins.py``; where a figure of the post's own
code is quoted it is marked so, with where it was measured.
"""

import argparse
import gc
import json
import random
import resource
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from bench_block_step import bench_block_step, peak_of
from bench_explorer import bench_switches
from bench_package import bench_package
from rich.console import Console
from rich.table import Table
from slow_twins import (
    PlainGatedStep,
    PlainLanguageModel,
    PlainLanguageStep,
    owners_by_every_subset,
    sample_token_by_token,
)
from transformer_lens import HookedTransformerConfig

from gated_interp.analysis.verdict import EXAMPLES, SEED, verdict
from gated_interp.core.files import write_text
from gated_interp.core.threads import one_thread
from gated_interp.experiments.batches import train_batches
from gated_interp.experiments.originals import Toys
from gated_interp.experiments.recipes import RELIABLE
from gated_interp.experiments.seeds import train_gated_seeds
from gated_interp.models.language_model import LanguageModelConfig, build_language_model
from gated_interp.models.toy import ToyConfig, attention_only, build_toy
from gated_interp.replacements.gated_attention import GatedAttention, GatedConfig
from gated_interp.tasks.skip_trigrams import SkipTrigramTask
from gated_interp.training.capture import attention_io
from gated_interp.training.config import TrainConfig
from gated_interp.training.loop import train_gated, train_model
from gated_interp.training.stacked.runs import GatedRun, train_gated_runs

# The post's own code on two cores of the machines this was first measured on, in seconds.
POST = {"generate 100,000": 4.7, "verdict 2 heads": 7.4, "verdict 8 heads": 31.0, "step": 0.050}
POST_STEPS = 100_000
# Of a loop that is timed step by step.
STEPS = 15


def best_of(function: Callable[[], object], repeats: int) -> float:
    """Seconds of the fastest of ``repeats`` calls."""
    times = []
    for _ in range(repeats):
        gc.collect()
        started = time.perf_counter()
        function()
        times.append(time.perf_counter() - started)
    return min(times)


def bench_generator() -> list[dict[str, Any]]:
    """100,000 sequences against a loop per token (timed on 5,000 and scaled)."""
    task = SkipTrigramTask(3)
    ours = best_of(lambda: task.sample(100_000, 0), 5)
    source = random.Random(0)
    loop = best_of(lambda: sample_token_by_token(task, 5_000, source), 3) * 20
    return [
        {
            "what": "100,000 sequences",
            "ours (s)": ours,
            "plain loop (s)": loop,
            "ratio": loop / ours,
            "post (s, quoted)": POST["generate 100,000"],
        }
    ]


def bench_verdict() -> list[dict[str, Any]]:
    """The verdict on 1,000 sequences against one pass per subset of removed heads."""
    rows = []
    for heads, trigrams in ((2, 3), (8, 5), (64, 5)):
        task = SkipTrigramTask(trigrams)
        model = build_toy(ToyConfig(n_trigrams=trigrams, n_heads=heads, seed=1))
        ours = best_of(lambda m=model, t=task: verdict(m, t), 3)  # type: ignore[misc]
        row = {"what": f"verdict, {heads} heads", "ours (s)": ours}
        if heads <= 8:
            batch = task.sample_single(EXAMPLES, SEED)
            loop = best_of(lambda m=model, t=task, b=batch: owners_by_every_subset(m, t, b), 1)  # type: ignore[misc]
            row |= {"plain loop (s)": loop, "ratio": loop / ours}
            row["post (s, quoted)"] = POST[f"verdict {heads} heads"]
        rows.append(row)
    return rows


def _runs(heads: int, trigrams: int, gated: int, count: int, config: TrainConfig) -> list[GatedRun]:
    task = SkipTrigramTask(trigrams)
    made = []
    for seed in range(count):
        toy = build_toy(ToyConfig(n_trigrams=trigrams, n_heads=heads, seed=seed))
        block = GatedAttention(
            GatedConfig(d_model=task.d_vocab, n_heads=gated, value_bias=False, seed=seed)
        )
        made.append(GatedRun(toy, block, config.replace(seed=seed), task))
    return made


def stacked_step(
    heads: int, trigrams: int, gated: int, count: int, batch_size: int, overlap: float = 0.2
) -> tuple[float, int]:
    """Seconds per step of a stack, and positions per run in it (start-up subtracted)."""
    config = TrainConfig.plain(
        steps=1, batch_size=batch_size, overlap=overlap, alpha_unit="variance", data="fixed",
        n_sequences=10 * batch_size, device="cpu", log_every=10_000,
    )  # fmt: skip
    steps = max(12, 1600 // count)

    def run(n: int) -> float:
        runs = _runs(heads, trigrams, gated, count, config.replace(steps=n))
        started = time.perf_counter()
        train_gated_runs(runs, progress=False)
        return time.perf_counter() - started

    seconds = min((run(3 * steps) - run(steps)) / (2 * steps) for _ in range(2))
    v = 2 * trigrams + 2
    return seconds, (batch_size * 11 // v) * v


def bench_steps() -> list[dict[str, Any]]:
    """A training step of 2H3ST with 4 gated heads: plain, hooked, stacked."""
    task = SkipTrigramTask(3)
    toy = build_toy(ToyConfig(n_trigrams=3, n_heads=2, seed=0))
    block = GatedAttention(GatedConfig.reference(d_model=8, n_heads=4))
    tokens = task.sample(1000, 0).tokens
    x = toy.embed(tokens)
    with torch.no_grad():
        target = toy.run_with_cache(tokens)[1]["blocks.0.hook_attn_out"]
    plain_step = PlainGatedStep(block, 5e-4, 0.5)
    plain = best_of(lambda: plain_step(x.detach(), target), 10)
    rows = [_step_row("plain step, 1,000 sequences", plain, 1, 11_000)]

    config = TrainConfig.plain(steps=1, batch_size=1000, device="cpu", log_every=10_000)

    def hooked(n: int) -> float:
        return train_gated(
            toy, GatedAttention(GatedConfig(d_model=8, n_heads=4)),
            config.replace(steps=n), data=task, progress=False,
        ).seconds  # fmt: skip

    rows.append(_step_row("hooked loop, fresh data", (hooked(24) - hooked(4)) / 20, 1, 11_000))
    for count in (1, 8, 64, 256):
        seconds, positions = stacked_step(2, 3, 4, count, 100)
        rows.append(_step_row(f"stacked, R={count}", seconds, count, positions))
    per_position = rows[0]["ns per run and position"]
    for row in rows:
        row["ratio to plain"] = per_position / row["ns per run and position"]
    return rows


def _step_row(what: str, seconds: float, runs: int, positions: int) -> dict[str, Any]:
    return {
        "what": what,
        "ms per step": 1e3 * seconds,
        "us per run": 1e6 * seconds / runs,
        "ns per run and position": 1e9 * seconds / runs / positions,
    }


def bench_language_shape() -> list[dict[str, Any]]:
    """16 heads of 16 dimensions on 32 x 64 tokens: a plain layer, the block, the hooked loop."""
    shape = HookedTransformerConfig(
        n_layers=1, d_model=256, d_vocab=100, n_ctx=64, d_head=16, n_heads=16, attn_only=True,
        normalization_type=None, act_fn="relu", device="cpu",
    )  # fmt: skip
    model = attention_only(shape)
    source = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.05 * torch.randn(parameter.shape, generator=source))
    attn = model.blocks[0].attn
    tokens = torch.randint(100, (32, 64), generator=source)
    x = model.embed(tokens).detach()
    config = GatedConfig(d_model=256, n_heads=16, d_head=16, value_bias=False)
    block = GatedAttention(config)
    how = TrainConfig.plain(
        steps=1, batch_size=32, alpha=0.1, overlap=0.1, device="cpu", log_every=10_000
    )

    def loop(steps: int) -> float:
        return train_gated(
            model, GatedAttention(config), how.replace(steps=steps),
            data=lambda n, _: tokens.repeat(1 + n // 32, 1)[:n], progress=False,
        ).seconds  # fmt: skip

    plain = best_of(lambda: attn(x, x, x).square().mean().backward(), 10)
    own = best_of(lambda: block(x).square().mean().backward(), 10)
    step = min((loop(12) - loop(2)) / 10 for _ in range(3))
    return [
        {"what": what, "ms": 1e3 * seconds, "to the plain layer": seconds / plain,
         "to the block": seconds / own}
        for what, seconds in (
            ("a plain layer, forward and backward", plain),
            ("the gated block, forward and backward", own),
            ("a step of the hooked loop (with the original's forward pass)", step),
        )
    ]  # fmt: skip


class Interleaved:
    """A data source that times the steps of the loop that asks it, and other steps in between.

    Seconds are the processor's, of this process: what else the machine does counts for little.
    """

    def __init__(self, tokens: torch.Tensor, others: dict[str, Callable[[], object]]):
        self.tokens, self.others = tokens, others
        self.began: float | None = None
        self.times: dict[str, list[float]] = {name: [] for name in ("loop", *others)}

    def __call__(self, n: int, _source: torch.Generator) -> torch.Tensor:
        if self.began is not None:
            self.times["loop"].append(time.process_time() - self.began)
        for name, other in self.others.items():
            started = time.process_time()
            other()
            self.times[name].append(time.process_time() - started)
        self.began = time.process_time()
        return self.tokens.repeat(1 + n // len(self.tokens), 1)[:n]

    def seconds(self) -> dict[str, float]:
        """The median of each, without the first two, which warm up."""
        return {name: statistics.median(each[2:] or each) for name, each in self.times.items()}


def language_shape(layers: int = 1, context: int = 64, heads: int = 8) -> LanguageModelConfig:
    """The shape of austen-1l, or of the like."""
    return LanguageModelConfig(
        d_vocab=2048, n_ctx=context, n_layers=layers, d_model=16 * heads, n_heads=heads
    )


def text_like(shape: LanguageModelConfig, batch: int) -> torch.Tensor:
    """Tokens ``[batch pos]``."""
    source = torch.Generator().manual_seed(0)
    return torch.randint(shape.d_vocab, (batch, shape.n_ctx), generator=source)


def bench_train_lm() -> list[dict[str, Any]]:
    """``train-lm``'s loop on 64 sequences, against plain loops of the same model."""
    rows = []
    for layers, context in ((1, 64), (2, 128)):
        shape = language_shape(layers, context)
        tokens = text_like(shape, 4096 // context)
        config = TrainConfig.language(
            steps=STEPS, batch_size=len(tokens), evaluate_every=0, device="cpu"
        )
        plain = PlainLanguageStep(build_language_model(shape), config)
        bare = PlainLanguageStep(PlainLanguageModel(build_language_model(shape)), config)
        data = Interleaved(tokens, {"plain": partial(plain, tokens), "bare": partial(bare, tokens)})
        train_model(build_language_model(shape), config, data=data, progress=False)
        seconds = data.seconds()
        rows.append(
            {
                "what": f"{layers} layers of 8 heads, {len(tokens)} x {context} tokens",
                "loop (tokens/s)": tokens.numel() / seconds["loop"],
                "plain loop": tokens.numel() / seconds["plain"],
                "ratio": seconds["plain"] / seconds["loop"],
                "without TransformerLens": tokens.numel() / seconds["bare"],
                "ratio to it": seconds["bare"] / seconds["loop"],
            }
        )
    return rows


def decomposition_step(
    context: int = 64, heads: int = 8, d_gate: int = 8, tokens: int = 4096
) -> dict[str, float]:
    """Seconds of a step that trains a block of twice the heads, and of parts of it."""
    shape = language_shape(1, context, heads)
    batch = text_like(shape, tokens // context)
    model = build_language_model(shape)

    def block() -> GatedAttention:
        return GatedAttention.from_attention(
            model.blocks[0].attn, 2, init="duplicate", d_gate=d_gate, normalize_weights=False
        )

    config = TrainConfig.plain(
        steps=STEPS, batch_size=len(batch), alpha=0.02, alpha_unit="variance", overlap=0.1,
        fvu_target=0.1, penalty_off=0.0, lr=1e-3, device="cpu",
    )  # fmt: skip
    own, with_penalties = block(), block()
    seen = attention_io(model, batch)
    x = seen.inputs

    def forward_backward() -> None:
        own(*x).square().mean().backward()

    def loss_backward() -> None:
        found = with_penalties.terms(*x)
        shared = with_penalties.overlap_penalty(found.z, 1.0, 1.0)
        (found.output.square().mean() + found.penalty + shared).backward()

    others = {
        "own": forward_backward,
        "loss": loss_backward,
        "original": lambda: attention_io(model, batch),
    }
    data = Interleaved(batch, others)
    train_gated(model, block(), config, data=data, progress=False)
    return data.seconds()


def bench_decompose() -> list[dict[str, Any]]:
    """A decomposition step, with its growth: one layer, twice its heads, both penalties."""
    rows = []
    for context, heads, d_gate in (
        (64, 8, 8), (128, 8, 8), (256, 8, 8), (64, 4, 8), (64, 16, 8), (64, 8, 1), (64, 8, 32),
    ):  # fmt: skip
        seconds = decomposition_step(context, heads, d_gate)
        rows.append(
            {
                "what": f"{heads} heads, context {context}, d_gate {d_gate}",
                "step (ms)": 1e3 * seconds["loop"],
                "tokens/s": 4096 / seconds["loop"],
                "block alone (ms)": 1e3 * seconds["own"],
                "step / block": seconds["loop"] / seconds["own"],
                "its loss (ms)": 1e3 * seconds["loss"],
                "step / loss": seconds["loop"] / seconds["loss"],
                "original (ms)": 1e3 * seconds["original"],
            }
        )
    return rows


def bench_step_memory() -> list[dict[str, Any]]:
    """The tensors of three steps in their fullest moment, weights and moments of Adam included."""
    shape = language_shape()
    tokens = text_like(shape, 64)
    model = build_language_model(shape)
    block = GatedAttention.from_attention(model.blocks[0].attn, 2, init="duplicate", d_gate=8)
    config = TrainConfig.plain(steps=3, batch_size=64, overlap=0.1, device="cpu")
    language = TrainConfig.language(steps=3, batch_size=64, evaluate_every=0, device="cpu")
    data = Interleaved(tokens, {})
    return [
        {"what": what, "MiB": peak_of(function)}
        for what, function in (
            ("train-lm, 64 x 64 tokens",
             lambda: train_model(model, language, data=data, progress=False)),
            ("decomposition, 16 heads of d_gate 8",
             lambda: train_gated(model, block, config, data=data, progress=False)),
        )
    ]  # fmt: skip


def bench_memory() -> list[dict[str, Any]]:
    """32 heads on one sequence of 1,024 tokens, forward and backward, penalty included."""
    block = GatedAttention(GatedConfig(d_model=256, n_heads=32, d_head=16, value_bias=False))
    x = torch.randn(1, 1024, 256, generator=torch.Generator().manual_seed(0))

    def peak() -> float:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20

    before = peak()
    started = time.perf_counter()
    found = block.terms(x, x, x)
    (found.output.square().mean() + found.penalty).backward()  # type: ignore[no-untyped-call]
    seconds = time.perf_counter() - started
    return [
        {
            "what": "terms and gradients",
            "seconds": seconds,
            "GB above what was there": peak() - before,
        }
    ]


def bench_growth() -> list[dict[str, Any]]:
    """How a stacked step's cost grows with heads, trigrams and batch."""
    rows = []
    for heads, trigrams, gated, batch in (
        (2, 3, 4, 100), (2, 3, 8, 100), (2, 3, 16, 100), (4, 5, 16, 100), (6, 8, 24, 100),
        (8, 12, 32, 100), (2, 3, 8, 25), (2, 3, 8, 400),
    ):  # fmt: skip
        seconds, positions = stacked_step(heads, trigrams, gated, 16, batch)
        name = f"{heads}H{trigrams}ST, {gated} gated heads, {batch} sequences"
        rows.append(_step_row(name, seconds, 16, positions))
    return rows


def bench_floor() -> list[dict[str, Any]]:
    """The matrix products of a stacked step alone, forward and backward, against the step."""
    rows = []
    for heads, trigrams, gated in ((2, 3, 4), (4, 5, 16), (8, 12, 32)):
        runs, v = 32, 2 * trigrams + 2
        n = 1100 // v
        shapes = [
            ((runs, v, n, v), (runs, v, v, 2 * gated)),  # counts, tables of all heads
            ((runs, v * n, gated), (runs, gated, v)),  # z W_O
            ((runs, v * n, heads), (runs, heads, v)),  # the original's
            ((runs, v * n, v), (runs, v, gated)),  # back to z
            ((runs, gated, v * n), (runs, v * n, v)),  # back to W_O
            ((runs, v, v, n), (runs, v, n, 2 * gated)),  # back to the tables
        ]
        factors = [(torch.rand(a), torch.rand(b)) for a, b in shapes]
        floor = best_of(lambda f=factors: [a @ b for a, b in f], 10)  # type: ignore[misc]
        seconds, _ = stacked_step(heads, trigrams, gated, runs, 100)
        rows.append(
            {
                "what": f"{heads}H{trigrams}ST, {gated} gated heads, R={runs}",
                "step (ms)": 1e3 * seconds,
                "products alone (ms)": 1e3 * floor,
                "step / floor": seconds / floor,
            }
        )
    return rows


def bench_experiment() -> list[dict[str, Any]]:
    """The 64-seed 2H3ST experiment on all cores, and the time to one clean run."""
    shape = {"2H3ST": (Toys(2, 3), RELIABLE)}
    started = time.perf_counter()
    ((_, _, gated, _),) = train_batches(shape, range(64), train_gated_seeds)
    seconds = time.perf_counter() - started
    clean = sum(g.verdict.clean for g in gated)
    post = POST["step"] * POST_STEPS
    each = seconds / max(clean, 1)
    return [
        {
            "what": "2H3ST, 64 seeds, toys included",
            "seconds": seconds,
            "clean runs": clean,
            "seconds per clean run": each,
            "post, one gated run (s, quoted step x 100,000)": post,
            "ratio": post / each,
        }
    ]


SECTIONS = {
    "The package": bench_package,
    "Memory of a long sequence (one thread)": bench_memory,
    "Generating data": bench_generator,
    "The verdict": bench_verdict,
    "A training step (2H3ST, 4 gated heads, one thread)": bench_steps,
    "Heads as a language model has them (one thread)": bench_language_shape,
    "Training a language model (one thread)": bench_train_lm,
    "Decomposing a layer of it (one thread)": bench_decompose,
    "Memory of a training step (one thread)": bench_step_memory,
    "A step on stored activations, beside Lorsa (one thread)": bench_block_step,
    "A switch of the explorer, in a browser": bench_switches,
    "How a stacked step grows (R = 16, one thread)": bench_growth,
    "Distance from the matrix products alone (one thread)": bench_floor,
    "The whole experiment (all cores)": bench_experiment,
}


def main() -> None:
    """Run the benchmarks, print tables, write them as JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="also write the figures here, as JSON")
    parser.add_argument("--only", help="sections whose name contains this")
    options = parser.parse_args()
    console = Console(width=120)
    console.print(
        f"torch {torch.__version__}, {torch.get_num_threads()} threads. Times are the best of "
        "several repeats in this process; 'quoted' figures were measured elsewhere, on 2 cores."
    )
    found: dict[str, Any] = {}
    for title, section in SECTIONS.items():
        if options.only and options.only.lower() not in title.lower():
            continue
        if "one thread" in title:
            with one_thread():
                rows = section()
        else:
            rows = section()
        found[title] = rows
        table = Table(title=title, title_justify="left")
        names = list(dict.fromkeys(name for row in rows for name in row))
        for name in names:
            table.add_column(name, justify="left" if name == "what" else "right")
        for row in rows:
            table.add_row(*(_shown(row.get(name, "")) for name in names))
        console.print(table)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    console.print(f"Peak memory of this process: {peak:.0f} MiB.")
    found["peak memory (MiB)"] = peak
    if options.out:
        write_text(options.out, json.dumps(found, indent=2) + "\n")


def _shown(value: Any) -> str:
    return f"{value:,.4g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main()
