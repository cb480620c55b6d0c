"""All heads of a model as tables of HTML, which need no browser to be drawn: layers across."""

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import pandas as pd

from gated_interp.core.written import change, head_name
from gated_interp.plots.overview import DARKEST

PANELS = {"effect": "on text", "effect_repeats": "on repeated random tokens"}
"""The columns of effects, and what they were measured on."""
SIGNS = {"induction": "◆", "previous token": "◂", "first token": "·"}
"""The signs of marked heads; of several the first is shown."""
RISES, FALLS, EMPTY = "0, 114, 178", "222, 138, 62", "#f1f1f1"
DARK = 0.6


@runtime_checkable
class Overview(Protocol):
    """What :func:`~gated_interp.analysis.overview.head_overview` returns."""

    @property
    def table(self) -> pd.DataFrame: ...
    @property
    def layers(self) -> pd.DataFrame: ...
    @property
    def marks(self) -> list[list[str]]: ...


def head_grids(
    overview: Overview, layer: int | None = None, pages: Collection[int] = ()
) -> list[dict[str, Any]]:
    """What ``head_page.html.j2`` draws each panel from: a column for each layer, first all of it.

    Args:
        layer: the one that is framed.
        pages: the layers that have a page of their own, which their numbers link to.
    """
    table, found = overview.table, []
    heads = list(zip(table["layer"], table["head"], strict=True))
    marks = dict(zip(heads, overview.marks, strict=True))
    layers, down = list(overview.layers.index), range(int(table["head"].max()) + 1)
    for column, name in PANELS.items():
        effects = dict(zip(heads, table[column].astype(float), strict=True))
        whole = overview.layers[column].astype(float)
        sizes = np.abs([x for x in (*effects.values(), *whole) if math.isfinite(x)])
        if not len(sizes):
            continue
        limit = max(float(np.quantile(sizes, DARKEST if len(sizes) > 50 else 1.0)), 1e-12)
        rows = [("all", [_tile(f"all of layer {i}", whole[i], (), limit) for i in layers])]
        rows += [(str(h), [_head((i, h), effects, marks, limit) for i in layers]) for h in down]
        columns = [{"layer": i, "here": i == layer, "linked": i in pages} for i in layers]
        found.append({"name": name, "columns": columns, "rows": rows})
    return found


def _head(
    head: tuple[int, int],
    effects: Mapping[tuple[int, int], float],
    marks: Mapping[tuple[int, int], Sequence[str]],
    limit: float,
) -> dict[str, str]:
    if head not in effects:  # layers may have fewer heads than others
        return {"tip": "", "color": "transparent", "ink": "", "sign": ""}
    return _tile(head_name(head), effects[head], marks[head], limit)


def _tile(name: str, effect: float, marks: Sequence[str], limit: float) -> dict[str, str]:
    measured = math.isfinite(effect)
    share = min(1.0, abs(effect) / limit) if measured else 0.0
    color = f"rgba({RISES if effect > 0 else FALLS}, {share:.2f})" if measured else EMPTY
    said = [f"{change(effect)} nats" if measured else "not measured", *marks]
    return {
        "tip": f"{name}: {', '.join(said)}",
        "color": color,
        "ink": "#fff" if share > DARK and effect > 0 else "",
        "sign": next((sign for word, sign in SIGNS.items() if word in marks), ""),
    }
