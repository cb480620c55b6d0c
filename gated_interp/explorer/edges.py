"""One cell of an attention picture, taken apart: which earlier components made the score."""

from typing import Any

from gated_interp.analysis.ablation import Method
from gated_interp.analysis.heads import Head
from gated_interp.analysis.qk_attribution import QKAttribution, qk_attribution
from gated_interp.core.errors import GatedInterpError
from gated_interp.explorer.bench import Bench, kept

COMPONENTS, PAIRS = 8, 6


class Edges:
    """The edges of one model's heads that were asked for.

    Args:
        bench: of the model.
    """

    def __init__(self, bench: Bench):
        self.bench = bench
        self._found: dict[tuple[object, ...], QKAttribution | GatedInterpError] = {}

    def of(
        self,
        tokens: tuple[int, ...],
        head: Head,
        edge: tuple[int, int],
        off: frozenset[Head],
        method: Method,
    ) -> QKAttribution | GatedInterpError:
        """Why ``head`` reads the key of ``edge`` at its query, or why that cannot be said.

        With the heads in ``off`` ablated, as the picture is drawn.
        """

        def found() -> QKAttribution | GatedInterpError:
            try:
                with self.bench.ablated(off, method):
                    return qk_attribution(self.bench.model, head, None, [tokens], *edge)
            except GatedInterpError as problem:
                return problem

        return kept(self._found, (tokens, head, edge, off, method), found, 16)


def table_of(found: QKAttribution) -> dict[str, Any]:
    """What is shown of an edge: sums, a table of components and the largest pairs."""
    table = found.table(COMPONENTS)
    columns = [name for name in table if name != "component"]
    scores = {"attention": found.score, "gate": found.gate}
    parts = {name: score for name, score in scores.items() if score is not None}
    return {
        "attention": round(found.attention, 4),
        "openness": None if found.openness is None else round(found.openness, 4),
        "scores": {name: round(score.total, 4) for name, score in parts.items()},
        "beside": [
            [f"{name} score: {what}", round(value, 4)]
            for name, score in parts.items()
            for what, value in score.beside.items()
        ],
        "written": round(found.written, 4),
        "columns": columns,
        "rows": [
            [row["component"], *(round(row[c], 4) for c in columns)]
            for row in table.to_dict("records")
        ],
        "pairs": {name: _largest(found, score.pairs) for name, score in parts.items()},
    }


def _largest(found: QKAttribution, pairs: Any) -> list[list[Any]]:
    """The pairs that add or take most: the components at the query and at the key, and how much."""
    best = pairs.abs().flatten().topk(min(PAIRS, pairs.numel())).indices.tolist()
    where = [divmod(i, pairs.shape[1]) for i in best]
    names = found.components
    return [[names[q], names[k], round(float(pairs[q, k]), 4)] for q, k in where]
