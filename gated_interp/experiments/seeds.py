"""One shape, many seeds: toys, gated blocks on those that learnt, verdicts, faithfulness."""

import dataclasses
import math
import time
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pandas as pd

from gated_interp.analysis.faithfulness import faithfulness
from gated_interp.analysis.verdict import Verdict, verdict
from gated_interp.core.errors import GatedInterpError
from gated_interp.core.seeds import derive
from gated_interp.core.streams import Stream
from gated_interp.experiments.behaviour import firm_lead, holder_measures, kept_answers
from gated_interp.experiments.recipes import Recipe
from gated_interp.models.toy import HookedTransformer
from gated_interp.replacements.splice import splice, unsplice
from gated_interp.tasks.skip_trigrams import SkipTrigramTask
from gated_interp.tasks.task import ProbedTask
from gated_interp.training.stacked.runs import GatedRun, train_gated_runs, train_toys

# Seeds in one stack: enough to share every product, few enough to stay in the cache. Past the
# cache a run costs twice as much: 32 heads are best trained 8 runs at a time, 8 heads 32.
MOST_RUNS, LEAST_RUNS, HEADS_IN_CACHE = 32, 4, 256
# Sub-streams of a seed, and the seed of the sequences every run is measured on.
HELD_OUT_SEED, HELD_OUT = 4242, 500
# A toy is firm when C leads by at least this many logits in 99% of each trigram's examples. Under
# toys that lead by less, the block's own small error makes some of them wrong.
FIRM_LEAD = 0.1
# The selection loss averages over the last logged steps: one step is noisy.
LAST_ROWS = 10


# What the run to show is picked by, and whether small values of it come first.
SELECTION = {"kept": False, "selection_loss": True}
# Of a run's holders, and of what is left without them and with nothing else.
OF_HOLDERS = (
    "purity",
    "open_there",
    "fvu_without_holders",
    "kl_without_holders",
    "accuracy_without_holders",
    "fvu_only_holders",
    "kl_only_holders",
    "accuracy_only_holders",
)


@dataclasses.dataclass(frozen=True)
class ToyOutcome:
    """A trained toy of one seed, or a model whose weights are written down.

    Attributes:
        lead: by how many logits C leads in all but 1% of the examples of the trigram where that is
            least; below 0 where the toy has not learnt one.
        loss: next-token cross-entropy at the end of its training.
        layer: whose attention blocks stand in for.
    """

    seed: int
    model: HookedTransformer = dataclasses.field(repr=False)
    verdict: Verdict
    lead: float
    loss: float
    layer: int = 0

    @property
    def firm(self) -> bool:
        """It has learnt every trigram, with a lead to spare."""
        return not self.verdict.not_learnt and self.lead >= FIRM_LEAD


@dataclasses.dataclass(frozen=True)
class GatedOutcome:
    """A trained gated block of one seed, spliced into its toy (``unsplice`` gives that back).

    Attributes:
        toy_seed: the toy it was trained on.
        fvu, l0, cross_entropy, original_cross_entropy, kl: on held-out sequences.
        kept: of the examples that the toy answers with C, the share that the model with the block
            does too, of the trigram where that is least.
        purity: mean over holders of the share of what each writes (energy, ordinary sequences) that
            falls where its trigram is answered; NaN without holders, and, as all that follows, of a
            model of several layers.
        open_there: mean over holders of the share of their open gates that lie there.
        fvu_without_holders, kl_without_holders, accuracy_without_holders: with every holder
            zero-ablated; ``..._only_holders`` with every other head zero-ablated.
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
    kept: float
    purity: float
    open_there: float
    fvu_without_holders: float
    kl_without_holders: float
    accuracy_without_holders: float
    fvu_only_holders: float
    kl_only_holders: float
    accuracy_only_holders: float
    selection_loss: float
    history: pd.DataFrame = dataclasses.field(repr=False)

    def row(self) -> dict[str, Any]:
        """What a table of runs has of this one."""
        found = self.verdict
        return {
            "seed": self.seed,
            "toy_seed": self.toy_seed,
            "clean": found.clean,
            "success": found.success,
            "learnt": len(found.learnt),
            "held": sum(len(heads) == 1 for heads in found.holders.values()),
            "distributed": len(found.distributed),
            **{name: getattr(self, name) for name in MEASURES},
        }


MEASURES = tuple(f.name for f in dataclasses.fields(GatedOutcome) if f.type is float)


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
        clean = sum(run.verdict.clean for run in self.gated)
        runs = f"{clean} of {len(self.gated)} gated runs are clean"
        return f"SeedsOutcome({learnt} of {len(self.toys)} toys learnt, {runs})"

    @property
    def selected(self) -> GatedOutcome:
        """The run to show: of those that keep most of their toy's answers (``kept``), the one with
        the lowest selection loss.

        The rule sees behaviour and the loss, no verdict.

        Raises:
            GatedInterpError: no toy learnt its task, so no block was trained.
        """
        if not self.gated:
            raise GatedInterpError("no-toy-learnt", n=len(self.toys))
        return min(self.gated, key=lambda run: (-run.kept, run.selection_loss))

    def table(self) -> pd.DataFrame:
        """One row per gated run, see :meth:`GatedOutcome.row`."""
        return pd.DataFrame([g.row() for g in self.gated])

    def toy_table(self) -> pd.DataFrame:
        """One row per toy."""
        return pd.DataFrame(
            [
                {
                    "seed": t.seed,
                    "learnt_all": not t.verdict.not_learnt,
                    "firm": t.firm,
                    "clean": t.verdict.clean,
                    "lead": t.lead,
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
    gated = recipe.block.heads(n_heads)
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
    """Toys of all ``seeds``, then as many gated runs on them (see :func:`assigned`), stacked.

    Args:
        toys: what :func:`train_toy_seeds` gave for these seeds, where they are trained already.

    Examples:
        >>> quick = Recipe(steps=2, toy_steps=2, n_sequences=20, batch_size=10)
        >>> train_seeds(2, SkipTrigramTask(n_trigrams=3), quick, seeds=range(2))
        SeedsOutcome(0 of 2 toys learnt, 0 of 0 gated runs are clean)
    """
    started = time.perf_counter()
    if toys is None:
        toys = train_toy_seeds(n_heads, task, recipe, seeds, progress=progress)
    originals = assigned(toys, seeds)
    gated = (
        train_gated_seeds(task, recipe, seeds, originals, progress=progress) if originals else []
    )
    return SeedsOutcome(toys, gated, time.perf_counter() - started)


def assigned(toys: Sequence[ToyOutcome], seeds: Sequence[int]) -> list[ToyOutcome]:
    """The toy that the gated run of each seed stands in for; none where no toy learnt.

    The i-th seed gets the i-th firm toy (starting over when they run out), so that as many
    different toys as possible are tried; where none is firm, of those that learnt.
    """
    learnt = [t for t in toys if t.firm] or [t for t in toys if not t.verdict.not_learnt]
    return [learnt[i % len(learnt)] for i in range(len(seeds))] if learnt else []


def train_gated_seeds(
    task: ProbedTask,
    recipe: Recipe,
    seeds: Sequence[int],
    originals: Sequence[ToyOutcome],
    *,
    progress: bool = False,
) -> list[GatedOutcome]:
    """The gated run of each seed on its toy, stacked and measured.

    Where the recipe makes several attempts, a seed's run is the one with the lowest
    :func:`selection_loss`.
    """
    runs, histories = _best_attempts(originals, task, recipe, seeds, progress)
    tokens = task.sample(HELD_OUT, HELD_OUT_SEED).tokens
    gated = []
    for seed, toy, run, history in zip(seeds, originals, runs, histories, strict=True):
        model = splice(toy.model, toy.layer, run.block)
        measured = {k: float(v) for k, v in faithfulness(model, tokens=tokens).measures().items()}
        found = verdict(model, task, layer=toy.layer)
        measured |= dict.fromkeys(OF_HOLDERS, math.nan)
        if model.cfg.n_layers == 1:
            measured |= holder_measures(model, task, found, n=HELD_OUT, seed=HELD_OUT_SEED)
        measured["kept"] = kept_answers(toy.model, model, task, seed=HELD_OUT_SEED)
        gated.append(
            GatedOutcome(
                seed=seed,
                toy_seed=toy.seed,
                model=model,
                verdict=found,
                selection_loss=selection_loss(history, recipe),
                history=history,
                **measured,
            )
        )
    return gated


def _best_attempts(
    originals: Sequence[ToyOutcome],
    task: ProbedTask,
    recipe: Recipe,
    seeds: Sequence[int],
    progress: bool,
) -> tuple[list[GatedRun], list[pd.DataFrame]]:
    """For each seed the run with the lowest selection loss of ``recipe.attempts``, trained."""
    kept: list[tuple[float, GatedRun, pd.DataFrame]] = []
    for attempt in range(recipe.attempts):
        streams = (Stream.ATTEMPT, attempt) if attempt else (Stream.GATED,)
        runs = [
            recipe.gated_run(toy.model, task, derive(seed, *streams), toy.layer)
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
    runs = [recipe.toy_run(n_heads, task, derive(s, Stream.TOY)) for s in seeds]
    trained = train_toys(runs, progress=progress)
    return [
        ToyOutcome(
            s,
            r.model,
            verdict(r.model, task),
            firm_lead(r.model, task, seed=HELD_OUT_SEED),
            last(r.history, "cross_entropy"),
        )
        for s, r in zip(seeds, trained, strict=True)
    ]


def selection_loss(history: pd.DataFrame, recipe: Recipe) -> float:
    """The full loss at the end of training, in units of the original's variance."""
    end = history.tail(LAST_ROWS).mean()
    variance = end["reconstruction"] / end["fvu"]
    config = recipe.training
    alpha = config.alpha * (variance if config.alpha_unit == "variance" else 1.0)
    penalties = alpha * end["penalty"] + config.overlap * end["overlap"]
    return float((end["reconstruction"] + penalties) / variance)


def last(history: pd.DataFrame, column: str) -> float:
    """The mean of ``column`` over the last logged steps."""
    return float(history[column].tail(LAST_ROWS).mean())


def original_of(run: GatedOutcome) -> HookedTransformer:
    """The toy a gated run stands in for."""
    return unsplice(run.model)
