"""The adversary's ladder of every replacement that ships, and of blocks trained against it.

``python -m gated_interp.experiments.ladder shipped figures/ladder.csv`` measures the first and goes
on where it was. ``trained`` in place of ``shipped`` measures the second at several weights, and
``trained-again`` at the setting that was chosen among those of ``trained-pilot``.
"""

import copy
import dataclasses
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from gated_interp import plots
from gated_interp.analysis.adversary import RUNGS, adversary_ladder
from gated_interp.analysis.faithfulness import faithfulness
from gated_interp.analysis.sharing import head_sharing
from gated_interp.analysis.verdict import verdict
from gated_interp.checkpoints.checkpoint import load
from gated_interp.core.errors import GatedInterpError
from gated_interp.core.files import write_table
from gated_interp.core.seeds import derive
from gated_interp.core.streams import Stream
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
from gated_interp.metrics.intervals import mean_interval
from gated_interp.models.toy import HookedTransformer
from gated_interp.plots import save_figures
from gated_interp.replacements.splice import splice, unsplice
from gated_interp.tasks.skip_trigrams import SkipTrigramTask
from gated_interp.tasks.text import TextTask
from gated_interp.training.config import TrainConfig
from gated_interp.training.stacked.runs import GatedRun, train_gated_runs

SEED = 0
TOYS = ("2H3ST-gated", "3H4ST-gated", "4H5ST-gated")
TEXT = "austen-2l-gated"
TOY_PROMPTS, PROMPTS, POSITIONS = 64, 8, 32
# Of toys trained against an adversary: 2 heads, 3 trigrams.
HEADS, TASK, FURTHER, TOYS_TRAINED = 2, SkipTrigramTask(n_trigrams=3), 1200, 32
RUNG = ("rung", "kl", "kl_low", "kl_high")


@dataclasses.dataclass(frozen=True)
class Asked:
    """A model whose replacements are opened: those in ``layer``, or all together."""

    name: str
    layer: int | None
    of: Callable[[], tuple[HookedTransformer, torch.Tensor]]

    @property
    def where(self) -> str:
        return "all" if self.layer is None else str(self.layer)


def shipped() -> Iterator[Asked]:
    """Every replacement that ships, on prompts that none was trained on."""
    for name in TOYS:
        yield Asked(name, 0, lambda name=name: _toy(name))  # type: ignore[misc]
    for layer in (0, 1, None):
        yield Asked(TEXT, layer, lambda layer=layer: _text(layer))  # type: ignore[misc]


def _toy(name: str) -> tuple[HookedTransformer, torch.Tensor]:
    model = load(name)
    return model, model.task.sample(TOY_PROMPTS, seed=HELD_OUT_SEED).tokens


def _text(layer: int | None) -> tuple[HookedTransformer, torch.Tensor]:
    """With the block of one layer, or of all, on test text."""
    model = load(TEXT)
    task = model.task
    assert isinstance(task, TextTask)
    tokens = task.part("test").sample(PROMPTS, seed=HELD_OUT_SEED).tokens[:, :POSITIONS]
    if layer is not None:
        model = splice(unsplice(model), layer, model.blocks[layer].attn)
    return model, tokens


def ladder_of(asked: Asked) -> pd.DataFrame:
    """The rungs of one model."""
    model, tokens = asked.of()
    found = adversary_ladder(model, asked.layer, tokens, seed=SEED, rungs=RUNGS)
    table = found.table().assign(shut=found.shut)
    table.insert(0, "model", asked.name)
    table.insert(1, "layer", asked.where)
    return table


def measure_shipped(path: Path) -> pd.DataFrame:
    """All that :func:`shipped` names, into ``path``; what is there already is kept.

    Raises:
        GatedInterpError: ``path`` is no such table.
    """
    parts = []
    if path.is_file():
        there = read_table(path, ["model", "layer", *RUNG])
        parts = [there.assign(layer=there["layer"].astype(str))]
    done = {(m, w) for part in parts for m, w in zip(part["model"], part["layer"], strict=True)}
    for asked in shipped():
        if (asked.name, asked.where) not in done:
            parts.append(ladder_of(asked))
            write_table(pd.concat(parts, ignore_index=True), path)
    table = pd.concat(parts, ignore_index=True)
    shown = {
        str(name) if where == "0" else f"{name}, both layers": rows
        for (name, where), rows in table.groupby(["model", "layer"], sort=False)
        if where == "all" or name in TOYS
    }
    title = "Opening what is shut moves predictions, within 20 steps"
    _draw(path, table, shown, title)
    return table


def _draw(path: Path, table: pd.DataFrame, ladders: dict[str, pd.DataFrame], title: str) -> None:
    figure = plots.adversary_ladder(ladders, title=title)
    save_figures({path.with_suffix(""): (figure, table)}, ["svg"])


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
    _draw(path, table, {n: rungs for n, rungs in shown.items() if n != strength((0, {}))}, title)
    return table


def rungs_of(runs: pd.DataFrame) -> pd.DataFrame:
    """The rungs of several runs, with 95% intervals over them."""
    rows = []
    for rung in ("nothing opened", "opened at random", "20 steps", "layer zeroed"):
        low, high = mean_interval(runs[rung].to_numpy())
        rows.append({"rung": rung, "kl": runs[rung].mean(), "kl_low": low, "kl_high": high})
    return pd.DataFrame(rows)


def main(what: str = "", path: str = "") -> None:
    """Measure what ships or a part of :data:`PARTS` into a CSV, in ``figures/`` unless one is named.

    Raises:
        GatedInterpError: it is neither.
    """
    choices = ["shipped", *PARTS]
    if what not in choices:
        raise GatedInterpError("not-one-of", name="ladder", value=what, choices=choices)
    if what == "shipped":
        measure_shipped(Path(path or "figures/ladder.csv"))
    else:
        measure_trained(Path(path or f"figures/ladder-{what}.csv"), what)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(*sys.argv[1:])
