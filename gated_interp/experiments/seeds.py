"""One shape, many seeds: toys, gated blocks on those that learnt, verdicts, faithfulness."""

import dataclasses
import time
from collections.abc import Sequence
from itertools import pairwise

import pandas as pd

from gated_interp.analysis.faithfulness import faithfulness
from gated_interp.analysis.verdict import Verdict, verdict
from gated_interp.core.errors import GatedInterpError
from gated_interp.core.seeds import derive
from gated_interp.experiments.recipes import Recipe
from gated_interp.models.splice import splice, unsplice
from gated_interp.models.toy import HookedTransformer
from gated_interp.tasks.skip_trigrams import SkipTrigramTask
from gated_interp.training.stacked.runs import GatedRun, train_gated_runs, train_toys

# Seeds in one stack: enough to share every product, few enough to stay in the cache. Past the
# cache a run costs twice as much: 32 heads are best trained 8 runs at a time, 8 heads 32.
MOST_RUNS, LEAST_RUNS, HEADS_IN_CACHE = 32, 4, 256
# Sub-streams of a seed, and the seed of the sequences every run is measured on.
TOY_STREAM, GATED_STREAM, ATTEMPT_STREAM = 21, 22, 23
HELD_OUT_SEED, HELD_OUT = 4242, 500
# The selection loss averages over the last logged steps: one step is noisy.
LAST_ROWS = 10


@dataclasses.dataclass(frozen=True)
class ToyOutcome:
    """A trained toy of one seed."""

    seed: int
    model: HookedTransformer = dataclasses.field(repr=False)
    verdict: Verdict
    loss: float


@dataclasses.dataclass(frozen=True)
class GatedOutcome:
    """A trained gated block of one seed, spliced into its toy (``unsplice`` gives that back).

    Attributes:
        toy_seed: the toy it was trained on.
        fvu, l0, cross_entropy, original_cross_entropy, kl: on held-out sequences.
        selection_loss: reconstruction error plus both penalties at their full weight, over the
            variance of the original's output: what picks the run to show, without its verdict.
        history: of the training.
    """

    seed: int
    toy_seed: int
    model: HookedTransformer = dataclasses.field(repr=False)
    verdict: Verdict
    fvu: float
    l0: float
    cross_entropy: float
    original_cross_entropy: float
    kl: float
    selection_loss: float
    history: pd.DataFrame = dataclasses.field(repr=False)


@dataclasses.dataclass(frozen=True, repr=False)
class SeedsOutcome:
    """All runs of one shape and recipe.

    Attributes:
        seconds: wall-clock time.
    """

    toys: list[ToyOutcome]
    gated: list[GatedOutcome]
    seconds: float

    def __repr__(self) -> str:
        learnt = sum(not toy.verdict.not_learnt for toy in self.toys)
        won = sum(run.verdict.success for run in self.gated)
        runs = f"{won} of {len(self.gated)} gated runs succeeded"
        return f"SeedsOutcome({learnt} of {len(self.toys)} toys learnt, {runs})"

    @property
    def selected(self) -> GatedOutcome:
        """The run to show: the lowest selection loss in the half nearer to its toy (by KL).

        The loss alone favours toys that are easy to write as over blocks that behave as they do.

        Raises:
            GatedInterpError: no toy learnt its task, so no block was trained.
        """
        if not self.gated:
            raise GatedInterpError(
                f"none of {len(self.toys)} toys learnt every trigram, so no gated block was "
                "trained; use more seeds."
            )
        faithful = sorted(self.gated, key=lambda run: run.kl)[: (len(self.gated) + 1) // 2]
        return min(faithful, key=lambda run: run.selection_loss)

    def table(self) -> pd.DataFrame:
        """One row per gated run."""
        return pd.DataFrame(
            [
                {
                    "seed": g.seed,
                    "toy_seed": g.toy_seed,
                    "success": g.verdict.success,
                    "learnt": len(g.verdict.learnt),
                    "distributed": len(g.verdict.distributed),
                    "fvu": g.fvu,
                    "l0": g.l0,
                    "cross_entropy": g.cross_entropy,
                    "original_cross_entropy": g.original_cross_entropy,
                    "kl": g.kl,
                    "selection_loss": g.selection_loss,
                }
                for g in self.gated
            ]
        )

    def toy_table(self) -> pd.DataFrame:
        """One row per toy."""
        return pd.DataFrame(
            [
                {
                    "seed": t.seed,
                    "learnt_all": not t.verdict.not_learnt,
                    "learnt": len(t.verdict.learnt),
                    "distributed": len(t.verdict.distributed),
                    "loss": t.loss,
                }
                for t in self.toys
            ]
        )


def stack_size(n_heads: int, recipe: Recipe) -> int:
    """How many runs of a shape step together at most.

    Examples:
        >>> stack_size(2, Recipe()), stack_size(8, Recipe())
        (32, 8)
    """
    gated = n_heads * recipe.expansion
    return max(LEAST_RUNS, min(MOST_RUNS, HEADS_IN_CACHE // max(gated, 1)))


def stacks(seeds: Sequence[int], n_heads: int, recipe: Recipe) -> list[list[int]]:
    """``seeds``, in order, in as few stacks as :func:`stack_size` allows, all about as long.

    Examples:
        >>> stacks(range(10), 8, Recipe())
        [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]]
    """
    count = -(-len(seeds) // stack_size(n_heads, recipe))
    cuts = [len(seeds) * i // max(count, 1) for i in range(count + 1)]
    return [list(seeds[a:b]) for a, b in pairwise(cuts)]


def train_seeds(
    n_heads: int,
    task: SkipTrigramTask,
    recipe: Recipe,
    seeds: Sequence[int],
    *,
    toys: list[ToyOutcome] | None = None,
    progress: bool = False,
) -> SeedsOutcome:
    """Toys of all ``seeds``, then as many gated runs on the toys that learnt, stacked.

    The gated run of the i-th seed stands in for the i-th learnt toy (starting over when they run
    out), so that as many different toys as possible are tried. Where the recipe makes several
    attempts, a seed's run is the one with the lowest :func:`selection_loss`.

    Args:
        toys: what :func:`train_toy_seeds` gave for these seeds, where they are trained already.

    Examples:
        >>> quick = Recipe(steps=2, toy_steps=2, n_sequences=20, batch_size=10)
        >>> train_seeds(2, SkipTrigramTask(n_trigrams=3), quick, seeds=range(2))
        SeedsOutcome(0 of 2 toys learnt, 0 of 0 gated runs succeeded)
    """
    started = time.perf_counter()
    if toys is None:
        toys = train_toy_seeds(n_heads, task, recipe, seeds, progress=progress)
    learnt = [t for t in toys if not t.verdict.not_learnt]
    if not learnt:
        return SeedsOutcome(toys, [], time.perf_counter() - started)
    originals = [learnt[i % len(learnt)] for i in range(len(seeds))]
    runs, histories = _best_attempts(originals, task, recipe, seeds, progress)
    tokens = task.sample(HELD_OUT, HELD_OUT_SEED).tokens
    gated = []
    for seed, toy, run, history in zip(seeds, originals, runs, histories, strict=True):
        model = splice(toy.model, 0, run.block)
        measured = {k: float(v) for k, v in faithfulness(model, tokens).measures().items()}
        gated.append(
            GatedOutcome(
                seed=seed,
                toy_seed=toy.seed,
                model=model,
                verdict=verdict(model, task),
                selection_loss=selection_loss(history, recipe),
                history=history,
                **measured,
            )
        )
    return SeedsOutcome(toys, gated, time.perf_counter() - started)


def _best_attempts(
    originals: Sequence[ToyOutcome],
    task: SkipTrigramTask,
    recipe: Recipe,
    seeds: Sequence[int],
    progress: bool,
) -> tuple[list[GatedRun], list[pd.DataFrame]]:
    """For each seed the run with the lowest selection loss of ``recipe.attempts``, trained."""
    kept: list[tuple[float, GatedRun, pd.DataFrame]] = []
    for attempt in range(recipe.attempts):
        streams = (ATTEMPT_STREAM, attempt) if attempt else (GATED_STREAM,)
        runs = [
            recipe.gated_run(toy.model, task, derive(seed, *streams))
            for seed, toy in zip(seeds, originals, strict=True)
        ]
        histories = [result.history for result in train_gated_runs(runs, progress=progress)]
        tried = [
            (selection_loss(history, recipe), run, history)
            for run, history in zip(runs, histories, strict=True)
        ]
        pairs = zip(kept or tried, tried, strict=True)
        kept = [min(pair, key=lambda run: run[0]) for pair in pairs]
    return [run for _, run, _ in kept], [history for _, _, history in kept]


def train_toy_seeds(
    n_heads: int,
    task: SkipTrigramTask,
    recipe: Recipe,
    seeds: Sequence[int],
    *,
    progress: bool = False,
) -> list[ToyOutcome]:
    """Toys of all ``seeds``, stacked, with their verdicts."""
    runs = [recipe.toy_run(n_heads, task, derive(s, TOY_STREAM)) for s in seeds]
    trained = train_toys(runs, progress=progress)
    return [
        ToyOutcome(s, r.model, verdict(r.model, task), last(r.history, "cross_entropy"))
        for s, r in zip(seeds, trained, strict=True)
    ]


def selection_loss(history: pd.DataFrame, recipe: Recipe) -> float:
    """The full loss at the end of training, in units of the original's variance."""
    end = history.tail(LAST_ROWS).mean()
    variance = end["reconstruction"] / end["fvu"]
    alpha = recipe.alpha * (variance if recipe.alpha_unit == "variance" else 1.0)
    penalties = alpha * end["penalty"] + recipe.overlap * end["overlap"]
    return float((end["reconstruction"] + penalties) / variance)


def last(history: pd.DataFrame, column: str) -> float:
    """The mean of ``column`` over the last logged steps."""
    return float(history[column].tail(LAST_ROWS).mean())


def original_of(run: GatedOutcome) -> HookedTransformer:
    """The toy a gated run stands in for."""
    return unsplice(run.model)


def merged(parts: Sequence[SeedsOutcome], seconds: float) -> SeedsOutcome:
    """The outcomes of several batches of seeds as one, in the order of their seeds."""
    return SeedsOutcome(
        toys=sorted((t for p in parts for t in p.toys), key=lambda t: t.seed),
        gated=sorted((g for p in parts for g in p.gated), key=lambda g: g.seed),
        seconds=seconds,
    )
