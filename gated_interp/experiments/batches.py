"""Many shapes and recipes, many seeds each, in parallel: toys once, then the gated runs."""

import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from gated_interp.experiments.backends import Backend, connected
from gated_interp.experiments.originals import Originals
from gated_interp.experiments.processes import Job, keyed
from gated_interp.experiments.recipes import Recipe
from gated_interp.experiments.seeds import (
    ToyOutcome,
    assigned,
    stacks,
)
from gated_interp.tasks.task import ProbedTask

T = TypeVar("T")
Shape = tuple[Originals, Recipe]
# Stacks of toys for each process that are trained before the first gated run on them. More keep
# processes busier, fewer give the first rows sooner, which an interruption then leaves.
AHEAD = 4


def train_batches(
    shapes: Mapping[Any, Shape],
    seeds: Sequence[int],
    train: Callable[[ProbedTask, Recipe, Sequence[int], Sequence[ToyOutcome]], list[T]],
    *,
    workers: int | str | Backend | None = None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Generator[tuple[Any, list[ToyOutcome], list[T], float]]:
    """For each key its toys, what ``train`` made of its seeds, and the seconds of one process.

    Toys are trained once for all keys whose heads, task and toy settings agree, so that recipes are
    compared on the same ones; which toy a seed's run stands in for depends on nothing else (see
    :func:`~gated_interp.experiments.seeds.assigned`). A key comes when its last seed is done.

    Args:
        shapes: original models and recipe by key.
        seeds: one toy and one gated run each.
        train: called in a process with a stack of seeds and their toys.
        workers: see :func:`connected`.
        on_progress: told how many batches are done, of how many.
    """
    if not shapes:
        return
    # The dearest shapes first, so that no process is left with one at the end.
    cost = {key: originals.heads * originals.task.d_vocab for key, (originals, _) in shapes.items()}
    order = sorted(shapes, key=lambda key: -cost[key])
    parts = {key: stacks(range(len(seeds)), shapes[key][0].heads, shapes[key][1]) for key in order}
    toy_jobs: dict[Any, list[Any]] = {}
    keys: dict[Any, list[Any]] = {}
    for key in order:
        originals, recipe = shapes[key]
        kind = _toys_of(shapes[key])
        keys.setdefault(kind, []).append(key)
        toy_jobs[kind] = [
            (kind, _timed, (originals.outcomes, recipe, stack))
            for stack in stacks(seeds, originals.heads, recipe.replace(expansion=1))
        ]
    done, total = 0, sum(map(len, toy_jobs.values())) + sum(map(len, parts.values()))
    on_progress(done, total)
    with connected(workers) as where:
        for kinds in _together(toy_jobs, AHEAD * where.processes):
            toys: dict[Any, list[ToyOutcome]] = {kind: [] for kind in kinds}
            seconds = dict.fromkeys(kinds, 0.0)
            these = [job for kind in kinds for job in toy_jobs[kind]]
            for kind, (trained, took) in where.run(keyed, these):
                toys[kind] += trained
                seconds[kind] += took
                on_progress(done := done + 1, total)
            jobs: list[Job] = []
            results: dict[Any, dict[int, list[T]]] = {}
            found: dict[Any, list[ToyOutcome]] = {}
            for kind in kinds:
                toys[kind].sort(key=lambda toy: toy.seed)
                stood_for = assigned(toys[kind], seeds)
                for key in keys[kind]:
                    found[key], seconds[key] = toys[kind], seconds[kind]
                    if not stood_for:
                        done += len(parts[key])
                        yield key, found[key], [], seconds[key]
                        continue
                    results[key] = {}
                    jobs += _jobs(key, shapes[key], parts[key], train, seeds, stood_for)
            for (key, i), (made, took) in where.run(keyed, jobs):
                results[key][i] = made
                seconds[key] += took
                on_progress(done := done + 1, total)
                if len(results[key]) == len(parts[key]):
                    whole = [each for _, part in sorted(results.pop(key).items()) for each in part]
                    yield key, found[key], whole, seconds[key]


def _jobs(
    key: Any,
    shape: Shape,
    parts: Sequence[Sequence[int]],
    train: Callable[..., list[T]],
    seeds: Sequence[int],
    stood_for: Sequence[ToyOutcome],
) -> list[Job]:
    """A job for each stack of a key's gated runs, named by the key and the stack's number."""
    originals, recipe = shape
    jobs: list[Job] = []
    for i, part in enumerate(parts):
        mine = [seeds[j] for j in part], [stood_for[j] for j in part]
        jobs.append(((key, i), _timed, (train, originals.task, recipe, *mine)))
    return jobs


def _together(jobs: Mapping[Any, list[Any]], least: int) -> Iterator[list[Any]]:
    """The keys of ``jobs``, in order, so many together as have at least so many jobs."""
    group: list[Any] = []
    for key in jobs:
        group.append(key)
        if sum(len(jobs[k]) for k in group) >= least:
            yield group
            group = []
    if group:
        yield group


def _timed(function: Callable[..., T], *args: Any) -> tuple[T, float]:
    started = time.perf_counter()
    return function(*args), time.perf_counter() - started


def _toys_of(shape: Shape) -> Any:
    originals, recipe = shape
    return originals, recipe.original, recipe.jitter, recipe.jitter_seed
