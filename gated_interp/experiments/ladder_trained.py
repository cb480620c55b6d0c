"""The adversary's ladder of blocks that were trained against the adversary.

``python -m gated_interp.experiments.ladder_trained trained`` measures several weights, and
``trained-again`` the setting that was chosen among those of ``trained-pilot``, each into a CSV of
``figures/``. ``frontier`` draws both.
"""

import copy
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from gated_interp.analysis.adversary import adversary_ladder
from gated_interp.analysis.faithfulness import faithfulness
from gated_interp.analysis.sharing import head_sharing
from gated_interp.analysis.verdict import verdict
from gated_interp.core.errors import GatedInterpError
from gated_interp.core.files import write_table
from gated_interp.core.seeds import derive
from gated_interp.core.streams import Stream
from gated_interp.experiments.ladder import SEED, TOY_PROMPTS, drawn
from gated_interp.experiments.recipes import RELIABLE
from gated_interp.experiments.seeds import (
    HELD_OUT,
    HELD_OUT_SEED,
    GatedOutcome,
    assigned,
    train_gated_seeds,
    train_toy_seeds,
)
from gated_interp.experiments.store import read_table
from gated_interp.metrics.intervals import clustered, mean_interval
from gated_interp.models.toy import HookedTransformer
from gated_interp.plots import save_figures
from gated_interp.plots.ladder import ladder_frontier
from gated_interp.replacements.splice import splice, unsplice
from gated_interp.tasks.skip_trigrams import SkipTrigramTask
from gated_interp.training.config import TrainConfig
from gated_interp.training.stacked.runs import GatedRun, train_gated_runs

# Toys of 2 heads and 3 trigrams.
HEADS, TASK, FURTHER, TOYS_TRAINED = 2, SkipTrigramTask(n_trigrams=3), 1200, 32
Setting = tuple[float, dict[str, Any]]
"""Weight of the error with opened gates, and what else of the training differs. The weight 0 is as
many further steps without an adversary."""
WEIGHTS: list[Setting] = [(weight, {}) for weight in (0.0, 0.02, 0.1, 0.3, 1.0)]
GENTLE = {"lr": 0.005, "factor_floor": 0.005, "steps": 2 * FURTHER}
"""The penalties may fall further, so that the FVU stays where it was, in longer and smaller steps.
"""
CHOSEN: list[Setting] = [(0.0, GENTLE), (0.02, GENTLE)]
TRIED: list[Setting] = [
    (0.02, {}),
    (0.02, {"factor_floor": 0.001}),
    (0.02, {"factor_floor": 0.001, "fvu_target": 0.015}),
    (0.02, {"factor_floor": 0.001, "lr": 0.01}),
    (0.01, {"factor_floor": 0.001}),
    (0.02, {"factor_floor": 0.001, "steps": 2400}),
    (0.0, {"factor_floor": 0.001}),
    (0.02, {"lr": 0.01}),
    (0.02, {"lr": 0.005}),
    (0.02, {"lr": 0.01, "factor_floor": 0.03}),
    (0.02, {"lr": 0.005, "factor_floor": 0.03}),
    (0.02, {"lr": 0.01, "steps": 2400}),
    (0.02, {"lr": 0.005, "factor_floor": 0.005}),
    (0.02, {"lr": 0.005, "factor_floor": 0.005, "steps": 2400}),
    (0.02, {"lr": 0.01, "factor_floor": 0.005, "steps": 2400}),
    (0.02, {"lr": 0.005, "factor_floor": 0.01, "steps": 2400}),
]
PARTS: dict[str, tuple[int, range, list[Setting]]] = {
    "trained-pilot": (51_000, range(51_000, 51_004), TRIED),
    "trained": (51_000, range(51_004, 51_016), WEIGHTS),
    "trained-again": (51_032, range(51_032, 51_048), CHOSEN),
}
"""The first seed of the toys, seeds of the blocks, and settings. Toys go to seeds in order from the
first on. Those of the pilot are no other's."""
AS_TRAINED = "as trained"


def strength(setting: Setting) -> str:
    """What a setting is called in tables.

    Examples:
        >>> strength((0.02, {"lr": 0.005}))
        'weight 0.02, lr=0.005'
    """
    weight, changes = setting
    return ", ".join([f"weight {weight:g}", *(f"{name}={x:g}" for name, x in changes.items())])


def further(setting: Setting, seed: int) -> TrainConfig:
    """Further steps of the reliable recipe, in each of which an adversary opens closed gates."""
    weight, changes = setting
    given: dict[str, Any] = {
        "steps": FURTHER,
        "penalty_ramp": 0.0,
        "opened_share": 1.0,
        "opened_steps": 1,
        "opened_weight": weight,
        "seed": derive(seed, Stream.LADDER_TRAINED),
    }
    return RELIABLE.training.replace(**given | changes)


def measured(run: GatedOutcome, model: HookedTransformer, called: str) -> dict[str, Any]:
    """A row: the ladder, and how faithful and how clean the block is, on held-out sequences."""
    held_out, prompts = (TASK.sample(n, HELD_OUT_SEED).tokens for n in (HELD_OUT, TOY_PROMPTS))
    rungs = adversary_ladder(model, 0, prompts, seed=SEED, rungs=(20,)).kl
    shared = head_sharing(model, 0, held_out).table().set_index("measure")["mean"]
    found = faithfulness(model, tokens=held_out).measures()
    return {
        "strength": called,
        "seed": run.seed,
        "toy_seed": run.toy_seed,
        "clean": verdict(model, TASK).clean,
        **{name: float(found[name]) for name in ("fvu", "kl", "l0")},
        "participation": shared["participation"],
        **{rung: float(kl.double().mean()) for rung, kl in rungs.items()},
    }


def against(base: Sequence[GatedOutcome], settings: Sequence[Setting]) -> pd.DataFrame:
    """Each block as it is and after further steps of every setting: a row each."""
    models = [(run, run.model, AS_TRAINED) for run in base]
    runs = []
    for setting in settings:
        for run in base:
            block = copy.deepcopy(run.model.blocks[0].attn)
            runs.append(GatedRun(unsplice(run.model), block, further(setting, run.seed), TASK))
            models.append((run, splice(unsplice(run.model), 0, block), strength(setting)))
    train_gated_runs(runs, progress=False)
    return pd.DataFrame([measured(*each) for each in models])


def measure_trained(path: Path, part: str = "trained") -> pd.DataFrame:
    """The blocks of toys against an adversary, into ``path``.

    Args:
        part: of :data:`PARTS`.
    """
    first, seeds, settings = PARTS[part]
    toys = train_toy_seeds(HEADS, TASK, RELIABLE, range(first, first + TOYS_TRAINED))
    originals = assigned(toys, range(first, seeds.stop))[-len(seeds) :]
    table = against(train_gated_seeds(TASK, RELIABLE, seeds, originals), settings)
    if part == "trained-pilot":
        write_table(table, path)
        return table
    shown = {str(n): rungs_of(rows) for n, rows in table.groupby("strength", sort=False)}
    title = "Training against an adversary leaves it little to open"
    drawn(path, table, {n: rungs for n, rungs in shown.items() if n != strength((0, {}))}, title)
    return table


def rungs_of(runs: pd.DataFrame) -> pd.DataFrame:
    """The rungs of several runs, with 95% intervals over their toys."""
    rows = []
    rungs = ["nothing opened", "opened at random", "20 steps", "layer zeroed"]
    for rung, kl in over_toys(runs, rungs).items():
        low, high = mean_interval(kl.to_numpy())
        rows.append({"rung": rung, "kl": kl.mean(), "kl_low": low, "kl_high": high})
    return pd.DataFrame(rows)


def over_toys(runs: pd.DataFrame, columns: Sequence[str]) -> pd.DataFrame:
    """The means of each toy's runs: two seeds that got one toy are no two samples."""
    return runs.groupby("toy_seed")[[*columns]].mean()


MEASURES = {"clean": "clean blocks", "fvu": "FVU", "participation": "participation"}


def frontier_of(runs: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """The ladder against each of :data:`MEASURES`, for ``plots.ladder.ladder_frontier``.

    Means and intervals are over toys.

    Args:
        runs: tables of :func:`against`, by the name of their adversary.
    """
    rows = []
    for name, every in runs.items():
        for called, found in every.groupby("strength", sort=False):
            said = str(called)
            control = said == AS_TRAINED or said.startswith("weight 0,") or said == "weight 0"
            series = said if said == AS_TRAINED else f"{name}, no adversary" if control else name
            of = over_toys(found, ["20 steps", *MEASURES])
            kl = of["20 steps"]
            end = dict(zip(("kl_low", "kl_high"), mean_interval(kl.to_numpy()), strict=True))
            for measure, words in MEASURES.items():
                values = of[measure].astype(float)
                low, high = mean_interval(values.to_numpy())
                if measure == "clean":
                    values = found["clean"].astype(float)
                    low, high = clustered(found["clean"].tolist(), found["toy_seed"].tolist())
                row: dict[str, Any] = {"series": series, "setting": said, "measure": words}
                row |= {"value": values.mean(), "low": low, "high": high, "kl": kl.mean()}
                rows.append(row | end)
    return pd.DataFrame(rows)


def draw_frontier(folder: Path) -> None:
    """``ladder-frontier.csv`` and its figure, from the tables in ``folder``."""
    names = {"trained": "further steps", "trained-again": "FVU held"}
    runs = {said: read_table(folder / f"ladder-{part}.csv") for part, said in names.items()}
    table = frontier_of(runs)
    figure = ladder_frontier(table, title="Training against the adversary closes what it opened")
    save_figures({folder / "ladder-frontier": (figure, table)}, ["svg"])


def main(what: str = "", path: str = "") -> None:
    """Measure a part of :data:`PARTS` into a CSV, in ``figures/`` unless one is named, or draw.

    Raises:
        GatedInterpError: there is no such part.
    """
    if what == "frontier":
        draw_frontier(Path(path or "figures"))
        return
    if what not in PARTS:
        raise GatedInterpError("not-one-of", name="part", value=what, choices=[*PARTS, "frontier"])
    measure_trained(Path(path or f"figures/ladder-{what}.csv"), what)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(*sys.argv[1:])
