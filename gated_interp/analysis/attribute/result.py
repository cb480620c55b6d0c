"""What an attribution found: a score of each node or edge and prompt."""

import dataclasses
import warnings
from typing import TypeVar

import numpy as np
import pandas as pd
from jaxtyping import Float
from torch import Tensor

from gated_interp.analysis.attribute.graph import Edge
from gated_interp.analysis.attribute.prompts import Prompts
from gated_interp.core.errors import GatedInterpWarning
from gated_interp.metrics.intervals import mean_interval

INCOMPLETE = 0.05
"""Warn where integrated attributions miss more than this share of the metric's change."""


@dataclasses.dataclass(frozen=True, eq=False)
class Attributed:
    """How much the metric changes where a node or an edge is taken away, or an estimate of it.

    Attributes:
        names: of nodes, such as ``L0H1`` and ``L0 mlp``, or of edges, ``(sender, receiver)``.
        scores: ``[batch name]``, signed, in units of the metric, for each prompt. Below zero where
            the metric falls without it. One row where a method scores all prompts together.
        absolute: ``[name]``, the size to rank by: the size of the mean score, unless the method
            has a size of its own.
        method, metric: their names.
        forward, backward: passes of all prompts through the whole model. A method that runs again
            some prompts counts a share.
        change: ``[prompt]``, of the metric from clean to corrupted prompts; ``None`` without these.
        complete: the share of the change that integrated scores add up to; 1 is all of it.
            ``None`` of methods that do not integrate.
    """

    names: list[str] | list[Edge]
    scores: Float[Tensor, "batch name"]
    absolute: Float[Tensor, " name"]
    method: str
    metric: str
    forward: float
    backward: float
    change: Float[Tensor, " prompt"] | None = None
    complete: float | None = None

    def __repr__(self) -> str:
        what = "edges" if self.names and isinstance(self.names[0], tuple) else "nodes"
        passes = f"{self.forward:.3g} forward and {self.backward:.3g} backward passes"
        return f"{type(self).__name__}({len(self.names)} {what}, {self.method}, {passes})"

    @property
    def mean(self) -> Float[Tensor, " name"]:
        """The signed score, averaged over prompts."""
        return self.scores.mean(0)

    @property
    def ranking(self) -> list[str] | list[Edge]:
        """Names from the largest absolute score to the smallest."""
        order = self.absolute.argsort(descending=True, stable=True).tolist()
        return [self.names[i] for i in order]

    def table(self) -> pd.DataFrame:
        """One row per node or edge, the largest absolute score first.

        Columns: ``node``, or ``sender`` and ``receiver``; ``score``, the signed mean over prompts,
        with ``score_low`` and ``score_high`` (95%, Student's t over prompts, missing of one
        prompt); ``absolute``; ``n`` prompts.
        """
        rows = []
        for i in self.absolute.argsort(descending=True, stable=True).tolist():
            values = self.scores[:, i].double().numpy()
            low, high = mean_interval(values)
            name = self.names[i]
            row: dict[str, object] = (
                {"node": name} if isinstance(name, str) else dict(zip(SIDES, name, strict=True))
            )
            row |= {"score": float(np.mean(values)), "score_low": low, "score_high": high}
            rows.append(row | {"absolute": float(self.absolute[i]), "n": len(values)})
        return pd.DataFrame(rows)

    def to_frame(self) -> pd.DataFrame:
        """The same as :meth:`table`."""
        return self.table()


SIDES = ("sender", "receiver")


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class HeadAttribution(Attributed):
    """Scores of every head and MLP; see :func:`attribute_heads`.

    Attributes:
        inputs: of ``AtP*``, the scores of each head's queries, keys and values, such as ``L0H1.q``.
            Keys and values that heads share are named ``L0KV0.k`` and ``L0KV0.v``.
        roles: of ``causal head gating``, a row per head: ``node``, how far it is ``facilitating``,
            ``irrelevant`` and ``interfering`` (each 0 to 1), and ``role``, the largest of these.
    """

    inputs: "HeadAttribution | None" = None
    roles: pd.DataFrame | None = None


class EdgeAttribution(Attributed):
    """Scores of every edge; see :func:`attribute_edges`."""


Kind = TypeVar("Kind", bound=Attributed)


def found(
    kind: type[Kind],
    names: list[str] | list[Edge],
    scores: Float[Tensor, "batch name"],
    prompts: Prompts,
    method: str,
    *,
    absolute: Float[Tensor, " name"] | None = None,
    complete: float | None = None,
) -> Kind:
    """The result; warns where integrated scores do not add up to what they should."""
    scores, change, cost = scores.detach().cpu(), None, prompts.cost
    if prompts.corrupted is not None:
        change = (prompts.after - prompts.before).cpu()
    if complete is not None and not abs(complete - 1) <= INCOMPLETE:
        said = (
            f"the scores of {method} add up to {complete:.2f} of the change that they should; take "
            "more steps, or the exact method, before you trust them."
        )
        warnings.warn(said, GatedInterpWarning, stacklevel=4)
    return kind(
        names,
        scores,
        scores.mean(0).abs() if absolute is None else absolute.detach().cpu(),
        method,
        prompts.name,
        round(cost.forward, 6),
        round(cost.backward, 6),
        change,
        complete,
    )


def share_of(total: Float[Tensor, " batch"], change: Float[Tensor, " batch"]) -> float:
    """How much of the mean change the mean total is."""
    return float(total.mean() / change.mean()) if bool(change.mean() != 0) else float("nan")
