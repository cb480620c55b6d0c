"""Many shapes and recipes, many seeds each, over processes: toys once, then the gated runs."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from gated_interp.experiments.processes import in_processes
from gated_interp.experiments.recipes import Recipe
from gated_interp.experiments.seeds import (
    ToyOutcome,
    assigned,
    stacks,
    train_toy_seeds,
)
from gated_interp.tasks.skip_trigrams import SkipTrigramTask

T = TypeVar("T")
Shape = tuple[int, SkipTrigramTask, Recipe]
TOY_FIELDS = ("toy_steps", "toy_lr", "toy_lr_decay", "batch_size", "n_sequences", "jitter",
              "jitter_seed")  # fmt: skip


def train_batches(
    shapes: Mapping[Any, Shape],
    seeds: Sequence[int],
    train: Callable[[SkipTrigramTask, Recipe, Sequence[int], Sequence[ToyOutcome]], list[T]],
    *,
    workers: int | None = None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Iterator[tuple[Any, list[ToyOutcome], list[T], float]]:
    """For each key its toys, what ``train`` made of its seeds, and the seconds of one process.

    Toys are trained once for all keys whose heads, task and toy settings agree, so that recipes are
    compared on the same ones; which toy a seed's run stands in for depends on nothing else (see
    :func:`~gated_interp.experiments.seeds.assigned`). A key comes when its last seed is done.

    Args:
        shapes: toy heads, task and recipe by key.
        seeds: one toy and one gated run each.
        train: called in a process with a stack of seeds and their toys.
        workers: processes; all cores unless given.
        on_progress: told how many batches are done, of how many.
    """
    toy_key = {key: _toys_of(shape) for key, shape in shapes.items()}
    toy_jobs = []
    for kind, key in {kind: key for key, kind in toy_key.items()}.items():
        heads, task, recipe = shapes[key]
        alone = recipe.replace(expansion=1)
        toy_jobs += [
            (kind, _timed, (train_toy_seeds, heads, task, recipe, stack))
            for stack in stacks(seeds, heads, alone)
        ]
    # The dearest shapes first, so that no process is left with one at the end.
    order = sorted(shapes, key=lambda key: -shapes[key][0] * shapes[key][1].d_vocab)
    parts = {key: stacks(range(len(seeds)), shapes[key][0], shapes[key][2]) for key in order}
    total = len(toy_jobs) + sum(map(len, parts.values()))
    on_progress(0, total)
    toys: dict[Any, list[ToyOutcome]] = {kind: [] for kind in toy_key.values()}
    seconds = dict.fromkeys([*toys, *order], 0.0)
    done = 0
    for kind, (trained, took) in in_processes(toy_jobs, workers):
        toys[kind] += trained
        seconds[kind] += took
        on_progress(done := done + 1, total)
    jobs = []
    results: dict[Any, dict[int, list[T]]] = {key: {} for key in order}
    for key in order:
        found = sorted(toys[toy_key[key]], key=lambda t: t.seed)
        originals = assigned(found, seeds)
        if not originals:
            done += len(parts[key])
            yield key, found, [], seconds[toy_key[key]]
            continue
        _, task, recipe = shapes[key]
        for i, part in enumerate(parts[key]):
            mine = [seeds[j] for j in part], [originals[j] for j in part]
            jobs.append(((key, i), _timed, (train, task, recipe, *mine)))
    for (key, i), (made, took) in in_processes(jobs, workers):
        results[key][i] = made
        seconds[key] += took
        on_progress(done := done + 1, total)
        if len(results[key]) == len(parts[key]):
            found = sorted(toys[toy_key[key]], key=lambda t: t.seed)
            whole = [each for _, part in sorted(results.pop(key).items()) for each in part]
            yield key, found, whole, seconds[key] + seconds[toy_key[key]]


def _timed(function: Callable[..., T], *args: Any) -> tuple[T, float]:
    started = time.perf_counter()
    return function(*args), time.perf_counter() - started


def _toys_of(shape: Shape) -> Any:
    heads, task, recipe = shape
    return (heads, task, *(getattr(recipe, name) for name in TOY_FIELDS))
