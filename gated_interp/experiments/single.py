"""One toy, or one gated block, trained by the hooked loop and written with its history.

The settings that are not given are those of a recipe, as in the main job.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from gated_interp.analysis.faithfulness import faithfulness
from gated_interp.analysis.verdict import Verdict, verdict
from gated_interp.checkpoints.checkpoint import load, save
from gated_interp.core.config import Config
from gated_interp.core.errors import GatedInterpError
from gated_interp.core.files import require_place, write_table
from gated_interp.core.launch import is_main
from gated_interp.experiments.recipes import RELIABLE, recipe_named
from gated_interp.experiments.seeds import HELD_OUT, HELD_OUT_SEED
from gated_interp.models.toy import HookedTransformer, ToyTransformer
from gated_interp.replacements.splice import gated_block, splice
from gated_interp.tasks.skip_trigrams import SkipTrigramTask
from gated_interp.tasks.task import Task
from gated_interp.training.loop import train_gated, train_model
from gated_interp.training.stacked.runs import GatedRun, ToyRun
from gated_interp.training.trackers import Tracker

STATE = ".state"


@dataclasses.dataclass(frozen=True)
class Trained:
    """A model that was trained and written.

    Attributes:
        path: its checkpoint; the history lies beside it as ``<stem>-history.csv``.
        measures: cross-entropy, L0 and, of a gated block, FVU and KL, on held-out sequences.
    """

    model: HookedTransformer
    verdict: Verdict
    measures: dict[str, float]
    history: pd.DataFrame
    path: Path


def toy_settings(n_heads: int, n_trigrams: int, seed: int = 0, **given: Any) -> ToyRun:
    """What trains a toy: the main job's settings, except those that are given.

    Args:
        **given: fields of :class:`~gated_interp.models.toy.ToyConfig` or of
            :class:`~gated_interp.training.config.TrainConfig`; ``None`` leaves one as it is.

    Examples:
        >>> toy_settings(2, 3, lr=0.01).config.lr
        0.01
    """
    run = RELIABLE.toy_run(n_heads, SkipTrigramTask(n_trigrams), seed)
    model, rest = changed(run.model, given)
    config, unknown = changed(run.config, rest)
    refuse(unknown)
    return ToyRun(model, config)


def gated_settings(
    toy: HookedTransformer,
    task: SkipTrigramTask,
    seed: int = 0,
    *,
    recipe: str = "reliable",
    n_heads: int | None = None,
    duplicate: bool = False,
    noise: float = 0.01,
    **given: Any,
) -> GatedRun:
    """What trains a gated block on ``toy``: a recipe's settings, except those that are given.

    Args:
        n_heads: gated heads; the recipe's multiple of the toy's unless given.
        duplicate: start from copies of the toy's heads plus ``noise``.
        **given: fields of the :class:`~gated_interp.experiments.recipes.Recipe` by their short
            names or paths; ``None`` leaves one as it is, and an ``fvu_target`` of 0 means none.
    """
    heads = int(toy.blocks[0].attn.W_Q.shape[0])
    given = {name: value for name, value in given.items() if value is not None}
    if given.get("fvu_target") == 0:
        given["fvu_target"] = None
    # Of a history's rows a recipe says nothing.
    rows = {n: given.pop(n) for n in ("log_every", "evaluate_every") if n in given}
    if duplicate:
        # What a recipe leaves open (weights normalised, an output bias) is as copies need it.
        given |= {"from_original": True, "init": "duplicate", "noise": noise}
    chosen = recipe_named(recipe, heads, task.n_trigrams).replace(n_heads=n_heads, **given)
    run = chosen.gated_run(toy, task, seed)
    return dataclasses.replace(run, config=run.config.replace(**rows))


def run_toy(
    run: ToyRun,
    path: Path | str,
    *,
    resume: bool = False,
    progress: bool = False,
    tracker: Tracker | None = None,
) -> Trained:
    """Train a toy and write it to ``path``.

    The state of the training lies beside it as ``<path>.state`` until it ends.

    Args:
        resume: go on from that state.
    """
    state = state_for(path, resume)
    result = train_model(
        run.model,
        run.config,
        checkpoint=state,
        resume=state if resume else None,
        progress=progress,
        tracker=tracker,
    )
    return _written(result.model, run.model.task, result.history, run.config, Path(path))


def run_gated(
    run: GatedRun,
    path: Path | str,
    *,
    resume: bool = False,
    progress: bool = False,
    tracker: Tracker | None = None,
) -> Trained:
    """Train a gated block and write its toy with the block to ``path``; see :func:`run_toy`."""
    state = state_for(path, resume)
    result = train_gated(
        run.original,
        run.block,
        run.config,
        data=run.task,
        checkpoint=state,
        resume=state if resume else None,
        progress=progress,
        tracker=tracker,
    )
    model = splice(run.original, 0, result.model)
    return _written(model, run.task, result.history, run.config, Path(path))


def load_toy(source: str) -> ToyTransformer:
    """The toy in a checkpoint file, or of that name."""
    model = load(source)
    if not isinstance(model, ToyTransformer):
        raise GatedInterpError(
            "not-a-skip-trigram-toy", source=source, task=type(model.task).__name__
        )
    if gated_block(model) is not None:
        raise GatedInterpError("already-gated", source=source)
    return model


def state_of(path: Path | str) -> Path:
    """Where the state of the training of ``path`` lies."""
    path = Path(path)
    return path.with_name(path.name + STATE)


def history_of(path: Path) -> Path:
    """Where the history of the training of ``path`` lies."""
    return path.with_name(path.stem + "-history.csv")


def state_for(path: Path | str, resume: bool) -> Path:
    """:func:`state_of`, once everything can be written that a training of ``path`` writes."""
    path, state = Path(path), state_of(path)
    for place in (path, state, history_of(path)):
        require_place(place)
    if resume and not state.is_file():
        raise GatedInterpError("no-state-to-resume", path=state)
    if not resume and state.is_file():
        raise GatedInterpError("unfinished-training", path=state)
    return state


def _written(
    model: HookedTransformer,
    task: Task,
    history: pd.DataFrame,
    config: Config,
    path: Path,
) -> Trained:
    found = verdict(model, task)
    tokens = task.sample(HELD_OUT, HELD_OUT_SEED).tokens
    measures = {k: float(v) for k, v in faithfulness(model, tokens=tokens).measures().items()}
    write_trained(model, path, {"training": config.to_dict(), **measures}, history)
    return Trained(model, found, measures, history, path)


def write_trained(
    model: HookedTransformer, path: Path, notes: dict[str, Any], history: pd.DataFrame
) -> None:
    """Write a model and, as ``<stem>-history.csv``, its training; its state is no longer needed.

    Of several processes only the first does so.
    """
    if not is_main():
        return
    save(model, path, notes=notes)
    write_table(history, history_of(path))
    state_of(path).unlink(missing_ok=True)


def changed(config: Any, given: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """``config`` with those settings that are its own, and the others; ``None`` is not given."""
    own = {f.name for f in dataclasses.fields(config)}
    wanted = {k: v for k, v in given.items() if v is not None}
    mine = {k: v for k, v in wanted.items() if k in own}
    return config.replace(**mine), {k: v for k, v in wanted.items() if k not in own}


def refuse(unknown: Mapping[str, Any]) -> None:
    """Refuse settings that no config has."""
    for name in unknown:
        raise GatedInterpError("no-such-setting", name=name)
