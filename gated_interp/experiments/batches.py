"""Many shapes and recipes, many seeds each, in parallel: toys once, then the gated runs."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from gated_interp.experiments.backends import in_parallel
from gated_interp.experiments.originals import Originals
from gated_interp.experiments.recipes import Recipe
from gated_interp.experiments.seeds import (
    ToyOutcome,
    assigned,
    stacks,
)
from gated_interp.tasks.task import ProbedTask

T = TypeVar("T")
Shape = tuple[Originals, Recipe]
TOY_FIELDS = ("toy_steps", "toy_lr", "toy_lr_decay", "batch_size", "n_sequences", "jitter",
              "jitter_seed")  # fmt: skip


def train_batches(
    shapes: Mapping[Any, Shape],
    seeds: Sequence[int],
    train: Callable[[ProbedTask, Recipe, Sequence[int], Sequence[ToyOutcome]], list[T]],
    *,
    workers: int | str | None = None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Iterator[tuple[Any, list[ToyOutcome], list[T], float]]:
    """For each key its toys, what ``train`` made of its seeds, and the seconds of one process.

    Toys are trained once for all keys whose heads, task and toy settings agree, so that recipes are
    compared on the same ones; which toy a seed's run stands in for depends on nothing else (see
    :func:`~gated_interp.experiments.seeds.assigned`). A key comes when its last seed is done.

    Args:
        shapes: original models and recipe by key.
        seeds: one toy and one gated run each.
        train: called in a process with a stack of seeds and their toys.
        workers: processes, all cores unless given; or the address of a Dask scheduler.
        on_progress: told how many batches are done, of how many.
    """
    toy_key = {key: _toys_of(shape) for key, shape in shapes.items()}
    toy_jobs = []
    for kind, key in {kind: key for key, kind in toy_key.items()}.items():
        originals, recipe = shapes[key]
        alone = recipe.replace(expansion=1)
        toy_jobs += [
            (kind, _timed, (originals.outcomes, recipe, stack))
            for stack in stacks(seeds, originals.heads, alone)
        ]
    # The dearest shapes first, so that no process is left with one at the end.
    heads = {key: originals.heads for key, (originals, _) in shapes.items()}
    tasks = {key: originals.task for key, (originals, _) in shapes.items()}
    order = sorted(shapes, key=lambda key: -heads[key] * tasks[key].d_vocab)
    parts = {key: stacks(range(len(seeds)), heads[key], shapes[key][1]) for key in order}
    total = len(toy_jobs) + sum(map(len, parts.values()))
    on_progress(0, total)
    toys: dict[Any, list[ToyOutcome]] = {kind: [] for kind in toy_key.values()}
    seconds = dict.fromkeys([*toys, *order], 0.0)
    done = 0
    for kind, (trained, took) in in_parallel(toy_jobs, workers):
        toys[kind] += trained
        seconds[kind] += took
        on_progress(done := done + 1, total)
    jobs = []
    results: dict[Any, dict[int, list[T]]] = {key: {} for key in order}
    for key in order:
        found = sorted(toys[toy_key[key]], key=lambda t: t.seed)
        stood_for = assigned(found, seeds)
        if not stood_for:
            done += len(parts[key])
            yield key, found, [], seconds[toy_key[key]]
            continue
        for i, part in enumerate(parts[key]):
            mine = [seeds[j] for j in part], [stood_for[j] for j in part]
            jobs.append(((key, i), _timed, (train, tasks[key], shapes[key][1], *mine)))
    for (key, i), (made, took) in in_parallel(jobs, workers):
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
    originals, recipe = shape
    return (originals, *(getattr(recipe, name) for name in TOY_FIELDS))
