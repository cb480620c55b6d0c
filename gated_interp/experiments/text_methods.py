"""Every way to replace a language model's attention, over its knob, on the same text and seeds."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from gated_interp.core.errors import GatedInterpError
from gated_interp.core.files import write_table
from gated_interp.experiments.decompose import decompose
from gated_interp.experiments.store import read_table
from gated_interp.models.toy import HookedTransformer
from gated_interp.plots import held_frontier, save_figures
from gated_interp.training.data import DataSource

TABLE, FIGURE = "methods-runs.csv", "methods"


@dataclasses.dataclass(frozen=True)
class Point:
    """A method at one value of its knob.

    Attributes:
        label: the line that it is a point of.
        method: of :data:`~gated_interp.training.methods.METHODS`.
        knob: name and value of what is varied; ``None`` where there is nothing to vary.
        settings: further ones.
    """

    label: str
    method: str
    knob: tuple[str, int | float] | None = None
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def folder(self) -> str:
        """The name of its run folder."""
        return "-".join([self.label, *map(str, self.knob or ())]).replace(" ", "-").replace(",", "")


def _over(name: str, values: Sequence[int | float], method: str) -> list[Point]:
    return [Point(method, method, (name, value)) for value in values]


# Each as `gated-interp decompose` trains it: the same share of the error in predictions for all, so
# that a target is the same, and of heads that start as copies as many and as wide ones.
FVU = (0.04, 0.07, 0.12, 0.2)
POINTS = [
    *_over("fvu", FVU, "gated"),
    *_over("fvu", FVU, "overlap alone"),
    *_over("fvu", FVU[::2], "gates alone"),
    *_over("fvu", FVU[:1], "query-key gates"),
    *_over("k", (4, 16), "sae on output"),
    *_over("k", (16,), "topk"),
    *_over("heads", (32,), "top1"),
    Point("ungated", "ungated"),
]


def compare_methods(
    model: HookedTransformer,
    out: Path | str,
    layer: int = 0,
    *,
    data: DataSource | None = None,
    points: Sequence[Point] = POINTS,
    seeds: int = 3,
    first_seed: int = 0,
    steps: int = 1200,
    sequences: int = 128,
    workers: int | str | None = None,
    formats: Sequence[str] = ("svg", "png"),
    say: Callable[[str], None] = lambda _: None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> pd.DataFrame:
    """Fit every point over seeds: a row per run in ``out/methods-runs.csv``, and a figure.

    A point is a :func:`~gated_interp.experiments.decompose.decompose` in a folder of its own, so
    started again the command goes on where it was.

    Args:
        points: methods, each at a value of its knob.
        data, seeds, first_seed, steps, sequences, workers: see ``decompose``.
        formats: of the figure.
        say, on_progress: told a sentence for each run; how many points are done, of how many.

    Returns:
        The whole table: ``method`` (the label), ``knob`` and ``value``, and the columns of
        ``decompose``.

    Raises:
        GatedInterpError: as ``decompose``, or a folder with methods at another layer.
    """
    out, parts = Path(out), []
    if (out / TABLE).is_file() and {*read_table(out / TABLE, ["layer"])["layer"]} != {layer}:
        raise GatedInterpError("methods-at-another-layer", path=out, layer=layer)
    for n, point in enumerate(points):
        on_progress(n, len(points))
        settings: dict[str, Any] = dict([point.knob] if point.knob else (), **point.settings)
        found = decompose(
            model,
            out / point.folder,
            layers=[layer],
            data=data,
            method=point.method,
            seeds=seeds,
            first_seed=first_seed,
            steps=steps,
            sequences=sequences,
            workers=workers,
            pages=False,
            say=lambda said, label=point.label: say(f"{label}, {said}"),  # type: ignore[misc]
            **settings,
        )
        knob, value = point.knob or ("", float("nan"))
        named = found.runs.assign(method=point.label, knob=knob, value=value)
        parts.append(named[["method", "knob", "value", *found.runs.columns]])
        write_table(pd.concat(parts, ignore_index=True), out / TABLE)
    on_progress(len(points), len(points))
    table = pd.concat(parts, ignore_index=True)
    draw_methods(table, out, formats, say=say)
    return table


def draw_methods(
    runs: pd.DataFrame,
    out: Path,
    formats: Sequence[str] = ("svg", "png"),
    *,
    say: Callable[[str], object] | None = None,
) -> list[Path]:
    """Draw medians over seeds of ``runs`` (see :func:`compare_methods`) to ``out/methods.*``.

    What recovers less than 85% of the loss stands in the table alone: nobody would put it there,
    and on its scale the others could not be told apart.
    """
    columns = ["ce_recovered_zero", "held_share", "active_per_position"]
    keys = ["method", "knob", "value"]
    medians = runs.groupby(keys, sort=False, dropna=False)[columns].median().reset_index()
    drawn = medians[medians["ce_recovered_zero"] > 0.85]
    original = float(runs["held_share_original"].median())
    figure = held_frontier(
        drawn,
        original,
        title="Positions that one head alone holds, by method",
        goals=[(0.99, 0.13), (0.95, 0.5)],
    )
    return save_figures({out / FIGURE: (figure, drawn)}, formats, say=say)
