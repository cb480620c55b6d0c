"""Two programs planted into the same two heads: does a block give each one a head of its own?

``python -m gated_interp.experiments.shared_heads runs/known-heads figures`` measures all: first the
settings, on seeds that no result is measured on.
"""

import dataclasses
import math
import sys
import time
import warnings
from collections.abc import Generator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from gated_interp.analysis.carriers import Carriers, carriers
from gated_interp.analysis.faithfulness import faithfulness
from gated_interp.core.errors import GatedInterpWarning
from gated_interp.core.files import write_table
from gated_interp.core.seeds import derive
from gated_interp.core.streams import Stream
from gated_interp.experiments.processes import in_processes
from gated_interp.experiments.store import Row, Store
from gated_interp.experiments.study import Key, fill
from gated_interp.metrics.intervals import mean_interval
from gated_interp.models.program_model import ProgramConfig, ProgramTransformer, build_program
from gated_interp.models.toy import HookedTransformer
from gated_interp.plots.carriers import carried_shares
from gated_interp.replacements.gated_attention import GatedAttention
from gated_interp.replacements.splice import splice
from gated_interp.tasks.program import ProgramTask
from gated_interp.tasks.programs import NONE
from gated_interp.training.config import TrainConfig
from gated_interp.training.fit import fit_replacement
from gated_interp.training.loop import train_model
from gated_interp.training.shared_heads import SharedInterchange
from gated_interp.views.shown import Shown, write_all

TASK = ProgramTask("two-letters")
NODES = {"capital": "L0H0", "small": "L0H1"}
DEGREES = (0.0, 22.5, 45.0)
PLANTING, FITTING, HEADS, BATCH, PROMPTS = 800, 600, 8, 32, 512
TUNED_ON, MEASURED_ON = range(2), range(100, 105)
ORIGINAL, COPIES = "original", "copies, not trained"
DRAWN = (ORIGINAL, "gated", "gates alone", "ungated + overlap", "topk copies")

Settings = Mapping[str, Any]
TRIED: dict[str, tuple[str, tuple[Settings, ...]]] = {
    "gated": (
        "gated",
        ({}, {"overlap": 1.0, "fvu": 0.1}, {"overlap": 3.0}, {"overlap": 3.0, "heads": 4}),
    ),
    "gates alone": ("gates alone", ({}, {"alpha": 0.1}, {"alpha": 0.3})),
    "head gates": ("head gates", ({}, {"overlap": 3.0}, {"overlap": 3.0, "alpha": 0.3})),
    "ungated + overlap": ("ungated + overlap", ({}, {"overlap": 1.0}, {"overlap": 3.0})),
    "topk copies": ("topk copies", ({"k": 1}, {"k": 2}, {"k": 1, "lr": 0.01})),
    "ungated": ("ungated", ({},)),
    "gated, random start": ("gated", ({"init": "random", "normalize_weights": False},)),
    "ungated, random start": ("ungated", ({"init": "random", "normalize_weights": False},)),
}
"""By name in the table, the method of the registry and the settings that it was tried with."""
CHOSEN = {"gates alone": 1, "head gates": 1, "ungated + overlap": 2, "topk copies": 2}
"""Which of the settings tried is measured; the first, unless said. On the seeds of the search no
setting gave each program a head of its own, so the largest product of ``share`` and ``pure`` won.
"""
PANELS = {"pure": "purity of heads", "share": "share in first head"}
"""Columns that are drawn, and how they are called."""
MEASURED = ("gated", "gates alone", "ungated + overlap", "topk copies", "gated, random start")
"""Methods that are measured on unused seeds. The others came close to nobody in the search."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SharedRow(Row):
    """A model with two programs in the same heads, or one with a block in their place.

    Attributes:
        degrees, seed, method, tried: the rotation, the seed of everything, and the settings.
        heads: of the layer.
        share_capital: of the head that has most of that program, by interchange of single heads;
            ``share`` the mean of both programs.
        needed_capital: heads that have 90% of it.
        same_head: whether one head has most of both.
        pure: how far each head works for one program alone; half if all work for both alike.
        own: whether each program has 90% in a head of its own.
        cross: what swapping one program's first head does to the other, relative to the distance of
            the prompts; the larger of both.
        at_once, swapped, kept: see :class:`~gated_interp.analysis.carriers.Carriers`; the lower of
            both.
        loss_capital: nats where it is asked, among all tokens; ``accuracy`` of both.
        fvu: of the layer's output at all positions.
        planted: of the original, the accuracy with one variable's subspace interchanged; missing
            of blocks.
        seconds: of the training.
    """

    KEY: ClassVar[tuple[str, ...]] = ("degrees", "seed", "method", "tried")

    degrees: float
    seed: int
    method: str
    tried: int
    heads: int
    share: float
    share_capital: float
    share_small: float
    needed_capital: int
    needed_small: int
    same_head: bool
    pure: float
    own: bool
    cross: float
    at_once: float
    swapped: float
    kept: float
    loss_capital: float
    loss_small: float
    accuracy: float
    fvu: float
    planted: float
    seconds: float

    def __str__(self) -> str:
        return (
            f"{self.degrees:g} degrees, seed {self.seed}, {self.method}: the first heads have "
            f"{self.share_capital:.0%} and {self.share_small:.0%}."
        )


def plant_shared(
    degrees: float | int, seed: int, steps: int = PLANTING
) -> tuple[ProgramTransformer, SharedInterchange]:
    """A model of one layer with both programs in its first two heads, and how it was trained.

    Its four heads have four dimensions each; two have nothing to do.
    """
    shape = ProgramConfig(
        program=TASK.program, n_layers=1, d_model=32, n_heads=4, d_head=4, d_mlp=0, seed=seed
    )
    model = build_program(shape)
    config = TrainConfig.planted(seed=seed, steps=steps, batch_size=64, log_every=steps)
    objective = SharedInterchange(model, NODES, config, degrees)
    train_model(model, config, objective=objective, progress=False)
    return model, objective


def letters(n: int, seed: int) -> tuple[Tensor, Tensor, dict[str, tuple[Tensor, Tensor, Tensor]]]:
    """Pairs of prompts with the same questions and other letters.

    Returns:
        Clean and corrupted prompts ``[prompt pos]``, and by variable where it is asked
        ``[prompt pos]`` and the right and the wrong letter of each prompt.
    """
    clean, corrupted = (TASK.sample(n, derive(seed, Stream.PLANTED, i)).tokens for i in (0, 1))
    corrupted[:, -2:] = clean[:, -2:]
    found = [TASK.rule.run(tokens) for tokens in (clean, corrupted)]
    there = {name: found[0][name] != NONE for name in NODES}
    right, wrong = ({name: v[name][there[name]] for name in NODES} for v in found)
    differ = torch.stack([right[name] != wrong[name] for name in NODES]).all(0)
    asked = {n: (there[n][differ], right[n][differ], wrong[n][differ]) for n in NODES}
    return clean[differ], corrupted[differ], asked


def measured(model: HookedTransformer, seed: int) -> tuple[Carriers, dict[str, float]]:
    """Who carries each program, and how well they are answered."""
    clean, corrupted, asked = letters(PROMPTS, seed)

    def metric(there: Tensor, right: Tensor, wrong: Tensor) -> Any:
        def ahead(logits: Tensor) -> Tensor:
            here = logits[there]
            return (here.gather(1, right[:, None]) - here.gather(1, wrong[:, None]))[:, 0]

        return ahead

    found = carriers(model, 0, clean, corrupted, {n: metric(*said) for n, said in asked.items()})
    with torch.no_grad():
        logits = model(clean)
    losses = {
        f"loss_{name}": cross_entropy(logits[there], right).item()
        for name, (there, right, _) in asked.items()
    }
    correct = [(logits[there].argmax(-1) == right) for there, right, _ in asked.values()]
    return found, losses | {"accuracy": torch.cat(correct).float().mean().item()}


def row_of(
    degrees: float | int,
    seed: int,
    method: str,
    tried: int,
    model: HookedTransformer,
    **said: float,
) -> dict[str, Any]:
    """What a row says of a model, with or without a block."""
    found, answers = measured(model, seed)
    by_name = {
        f"{what}_{name}": values[i].item()
        for what, values in (("share", found.share), ("needed", found.needed))
        for i, name in enumerate(found.variables)
    }
    return {
        "degrees": degrees,
        "seed": seed,
        "method": method,
        "tried": tried,
        "heads": found.effects.shape[1],
        "share": found.share.mean().item(),
        **by_name,
        "same_head": len(set(found.first.tolist())) == 1,
        "pure": found.pure,
        "own": found.own,
        "cross": found.cross.max().item(),
        "at_once": found.at_once.min().item(),
        "swapped": found.swapped.min().item(),
        "kept": found.kept.min().item(),
        **answers,
        **{"fvu": 0.0, "planted": math.nan, "seconds": 0.0, **said},
    }


def all_rows(
    degrees: float | int,
    seed: int,
    methods: Sequence[tuple[str, int]],
    planting: int = PLANTING,
    fitting: int = FITTING,
) -> list[dict[str, Any]]:
    """Plant, replace the layer by each method, and measure; called in another process."""
    torch.set_num_threads(1)
    began = time.perf_counter()
    model, objective = plant_shared(degrees, seed, planting)
    seconds = time.perf_counter() - began
    planted = subspace_accuracy(objective, seed)
    rows = [row_of(degrees, seed, ORIGINAL, 0, model, planted=planted, seconds=seconds)]
    copies = GatedAttention.from_attention(
        model.blocks[0].attn, HEADS // 4, init="duplicate", noise=0.0, d_gate=8, seed=seed
    )
    rows.append(row_of(degrees, seed, COPIES, 0, splice(model, 0, copies)))
    held_out = TASK.sample(PROMPTS, derive(seed, Stream.PLANTED, 2)).tokens
    for name, tried in methods:
        method, settings = TRIED[name][0], TRIED[name][1][tried]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", GatedInterpWarning)  # its error is in the table
            result = fit_replacement(
                model,
                0,
                method=method,
                seed=seed,
                progress=False,
                **{"heads": HEADS, "width": 1, "steps": fitting, "batch_size": BATCH, **settings},
            )
        block = splice(model, 0, result.model)
        fvu = faithfulness(block, tokens=held_out).measures()["fvu"].item()
        said = {"fvu": fvu, "seconds": result.seconds}
        rows.append(row_of(degrees, seed, name, tried, block, **said))
    return rows


@torch.no_grad()
def subspace_accuracy(objective: SharedInterchange, seed: int) -> float:
    """The lowest accuracy over variables, one's subspace and all idle heads interchanged."""
    tokens = TASK.sample(PROMPTS, derive(seed, Stream.PLANTED, 3)).tokens
    idle = torch.ones(PROMPTS, len(objective.idle), dtype=torch.bool)
    found = []
    for i in range(len(NODES)):
        which = torch.full((PROMPTS,), i)
        _, logits, wanted, _ = objective.passes(tokens, which, idle)
        there = (wanted != NONE)[:, -2:]
        found.append((logits.argmax(-1) == wanted)[:, -2:][there].float().mean().item())
    return min(found)


def run(
    out: Path | str,
    *,
    tune: bool = False,
    degrees: Sequence[float | int] | None = None,
    seeds: Sequence[int] | None = None,
    planting: int = PLANTING,
    fitting: int = FITTING,
    workers: int | None = None,
    say: Any = lambda _: None,
) -> pd.DataFrame:
    """Add the rows that ``out/shared-heads.csv`` lacks, or of ``shared-heads-tuning.csv``.

    Args:
        tune: try every setting, at 45 degrees, on seeds of its own.
        degrees, seeds: instead of the usual ones.
        planting, fitting: steps of a training of a model and of a block.
        workers: processes; all cores unless given.
        say: told a sentence for each row.
    """
    degrees = degrees or (DEGREES[-1:] if tune else DEGREES)
    seeds = seeds or (TUNED_ON if tune else MEASURED_ON)
    methods = [
        (name, i)
        for name in (TRIED if tune else MEASURED)
        for i in (range(len(TRIED[name][1])) if tune else [CHOSEN.get(name, 0)])
    ]
    notes = {"planting": planting, "fitting": fitting, "tried": TRIED}
    name = "shared-heads-tuning" if tune else "shared-heads"
    store = Store(out, name, SharedRow, notes).read()
    every = [(ORIGINAL, 0), (COPIES, 0), *methods]
    wanted: list[Key] = [(d, s, *m) for s in seeds for d in degrees for m in every]

    def made(missing: Sequence[Key]) -> Generator[tuple[SharedRow, None]]:
        models = dict.fromkeys(key[:2] for key in missing)
        jobs = [(key, all_rows, (*key, methods, planting, fitting)) for key in models]
        for _, rows in in_processes(jobs, workers):
            for row in rows:
                if tuple(row[k] for k in SharedRow.KEY) in missing:
                    yield SharedRow.of(row), None

    fill(store, wanted, made, unit="rows", say=say)
    return store.frame()


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """What is drawn: means for each angle and method, with intervals over seeds."""
    rows = []
    for column, measure in PANELS.items():
        for (degrees, method), found in table.groupby(["degrees", "method"], sort=False):
            values = found[column].to_numpy(float)
            low, high = mean_interval(values)
            row = {"degrees": degrees, "method": method, "measure": measure}
            rows.append(row | {"value": values.mean(), "low": low, "high": min(high, 1.0)})
    return pd.DataFrame(rows)


def draw(table: pd.DataFrame, out: Path | str) -> None:
    """Write the figure of the study, and the rows that it is drawn from."""
    title = "Gates separate the programs, but spread most of them over two or three heads"
    figure = partial(carried_shares, summary(table), DRAWN, title=title)
    shown = Shown("shared-heads", title, "A point is a mean over seeds.", table, figure)
    write_all({Path(out) / shown.name: shown}, ("svg",))


if __name__ == "__main__":
    folder, figures = sys.argv[1:3]
    searched = run(folder, tune=True, workers=2, say=print)
    write_table(searched, Path(figures) / "shared-heads-tuning.csv", "%.4g")
    draw(run(folder, workers=2, say=print), figures)
