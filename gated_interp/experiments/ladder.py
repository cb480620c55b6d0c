"""The adversary's ladder of every replacement that ships.

``python -m gated_interp.experiments.ladder figures/ladder.csv`` measures it. Started again, it goes
on where it was.
"""

import dataclasses
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd
import torch

from gated_interp import plots
from gated_interp.analysis.adversary import RUNGS, adversary_ladder
from gated_interp.checkpoints.checkpoint import load
from gated_interp.core.files import write_table
from gated_interp.experiments.seeds import HELD_OUT_SEED
from gated_interp.experiments.store import read_table
from gated_interp.models.toy import HookedTransformer
from gated_interp.plots import save_figures
from gated_interp.replacements.splice import splice, unsplice
from gated_interp.tasks.text import TextTask

SEED = 0
TOYS = ("2H3ST-gated", "3H4ST-gated", "4H5ST-gated")
TEXT = "austen-2l-gated"
TOY_PROMPTS, PROMPTS, POSITIONS = 64, 8, 32
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
    drawn(path, table, shown, title)
    return table


def drawn(path: Path, table: pd.DataFrame, ladders: dict[str, pd.DataFrame], title: str) -> None:
    figure = plots.adversary_ladder(ladders, title=title)
    save_figures({path.with_suffix(""): (figure, table)}, ["svg"])


if __name__ == "__main__":
    torch.set_num_threads(1)
    measure_shipped(Path(sys.argv[1]))
