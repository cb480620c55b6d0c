"""How good a ranking of nodes or edges is: against a known circuit, or by what its top carries."""

import dataclasses
import math
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from gated_interp.analysis.attribute.cut import Cutter
from gated_interp.analysis.attribute.graph import Graph
from gated_interp.analysis.attribute.prompts import Metric, Prompts
from gated_interp.analysis.attribute.result import Attributed
from gated_interp.anatomy.batch import Mask, Tokens
from gated_interp.anatomy.nodes import EMBED, nodes_of
from gated_interp.core.errors import GatedInterpError
from gated_interp.core.seeds import generator
from gated_interp.metrics.intervals import ratio_interval
from gated_interp.models.toy import HookedTransformer

SIZES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
"""Circuit sizes, as shares of all nodes or edges (Mueller et al., 2025, arXiv 2504.13151)."""


@dataclasses.dataclass(frozen=True, eq=False)
class RankingScore:
    """How good a ranking is, beside random rankings of the same names.

    Attributes:
        auroc: the chance that a name of the true circuit has a larger absolute score than one
            outside; 1 is perfect, 0.5 random. ``None`` without a truth.
        random_auroc: the mean of random rankings.
        cpr: the area under the faithfulness curve of circuits by signed scores, from the smallest
            size to 1; more is better. ``None`` without a model.
        cmd: the area between the curve of circuits by absolute scores and 1; less is better.
        random_cpr, random_cmd: the means of random rankings.
        curve: a row per size: ``size`` (share of the names), ``n`` (how many), ``faithfulness``
            by absolute scores with ``faithfulness_low`` and ``faithfulness_high`` (95% over
            prompts), ``signed``, by signed scores, and ``random``.
        draws: how many random rankings there are.
    """

    auroc: float | None
    random_auroc: float | None
    cpr: float | None
    cmd: float | None
    random_cpr: float | None
    random_cmd: float | None
    curve: pd.DataFrame | None
    draws: int

    def table(self) -> pd.DataFrame:
        """One row per score that there is: ``score``, ``ranking`` and ``random``."""
        rows = [
            {"score": name, "ranking": value, "random": getattr(self, f"random_{name}")}
            for name in ("auroc", "cpr", "cmd")
            if (value := getattr(self, name)) is not None
        ]
        return pd.DataFrame(rows)


def score_ranking(
    scores: Attributed | Mapping[Any, float],
    truth: Collection[Any] | None = None,
    *,
    model: HookedTransformer | None = None,
    clean: Tokens | None = None,
    corrupted: Tokens | None = None,
    metric: Metric = "loss",
    signed: bool | None = None,
    draws: int = 5,
    seed: int = 0,
    attention_mask: Mask | None = None,
) -> RankingScore:
    """How well a ranking finds the true circuit, or one that does what the model does.

    With ``truth``: the AUROC of absolute scores. With a model and prompts: the faithfulness curve
    of MIB (Mueller et al., 2025, arXiv 2504.13151). The circuit holds the first 0.1%, 0.2%, 0.5%,
    1%, 2%, 5%, 10%, 20%, 50% and 100% of the ranking, rounded down. All other edges carry what they
    carry on the corrupted prompts; of nodes, all edges that leave other heads and MLPs do. Then ::

        faithfulness = (m(circuit) - m(nothing)) / (m(model) - m(nothing))

    with the metric averaged over prompts before the division. CPR is the area under it and CMD the
    area between it and 1, both by trapezoids over the share of names. As there, circuits are chosen
    by signed scores for CPR, and by absolute scores for CMD. Each size of each ranking, random ones
    too, costs a forward pass.

    Args:
        scores: what :func:`attribute_heads` or :func:`attribute_edges` found, or a score for each
            name: ``"L0H1"`` and ``"L0 mlp"``, or ``("L0H1", "L1H0.q")``.
        truth: the names in the true circuit.
        model, clean, corrupted, metric, attention_mask: as for :func:`attribute_edges`. With a
            model, the ranking must have every head (or edge) of it.
        signed: order all circuits by signed scores, those first whose removal moves the metric as
            the corrupted prompts do, or (``False``) all by absolute scores. Unless given, CPR takes
            the one and CMD the other, but both take absolute scores of a mapping.
        draws: random rankings to compare with.
        seed: of these.

    Raises:
        GatedInterpError: heads or edges without a finite score, a truth that is no list of names,
            names others or holds none or all, neither truth nor prompts, no draws, and what
            :func:`attribute_edges` raises.

    Examples:
        >>> found = score_ranking({"L0H0": 0.9, "L0H1": -0.1, "L0H2": 0.0}, ["L0H0"])
        >>> found.auroc
        1.0
    """
    if draws < 1:
        raise GatedInterpError("too-small", name="draws", value=draws, least=1)
    given = _scores(scores)
    if truth is not None and (isinstance(truth, str) or not isinstance(truth, Collection)):
        raise GatedInterpError("truth-not-names", kind=type(truth).__name__)
    if model is not None:
        _require_all(model, given)
    if truth is None and (model is None or clean is None or corrupted is None):
        raise GatedInterpError("no-prompts-for-faithfulness")
    names, source = list(given), generator(seed)
    signs = torch.tensor([given[name] for name in names], dtype=torch.float64)
    size = signs.abs() if not isinstance(scores, Attributed) else scores.absolute.double()
    orders = [torch.randperm(len(names), generator=source) for _ in range(draws)]
    auroc = random_auroc = None
    if truth is not None:
        inside = _inside(names, truth)
        auroc = _auroc(size, inside)
        random_auroc = float(np.mean([_auroc(-o.double(), inside) for o in orders]))
    if model is None or clean is None or corrupted is None:
        return RankingScore(auroc, random_auroc, None, None, None, None, None, draws)
    prompts = Prompts(model, clean, corrupted, metric, attention_mask)
    towards = float((prompts.after - prompts.before).mean().sign())
    by_sign, by_size = (x.argsort(descending=True, stable=True) for x in (signs * towards, size))
    if signed is None:
        signed = None if isinstance(scores, Attributed) else False
    by_sign, by_size = by_size if signed is False else by_sign, by_sign if signed else by_size
    curves = [_curve(prompts, names, o) for o in [by_size, by_sign, *orders]]
    shares = [[ratio_interval(*pair) for pair in curve] for curve in curves]
    mine, by_signs = np.array(shares[0]), np.array(shares[1])[:, 0]
    others = np.array([[each[0] for each in curve] for curve in shares[2:]])
    n = [_count(s, len(names)) for s in SIZES]
    columns = {"size": SIZES, "n": n, "faithfulness": mine[:, 0]}
    columns |= {"faithfulness_low": mine[:, 1], "faithfulness_high": mine[:, 2]}
    frame = pd.DataFrame(columns | {"signed": by_signs, "random": others.mean(0)})
    return RankingScore(
        auroc,
        random_auroc,
        _area(by_signs),
        _area(abs(1 - mine[:, 0])),
        float(np.mean([_area(each) for each in others])),
        float(np.mean([_area(abs(1 - each)) for each in others])),
        frame,
        draws,
    )


def _scores(scores: Attributed | Mapping[Any, float]) -> dict[Any, float]:
    if isinstance(scores, Attributed):
        return dict(zip(scores.names, scores.mean.tolist(), strict=True))
    given = {name: float(value) for name, value in scores.items()}
    if not all(map(math.isfinite, given.values())):
        raise GatedInterpError("array-not-finite", name="The ranking")
    return given


def _require_all(model: HookedTransformer, given: dict[Any, float]) -> None:
    """Refuse a ranking that has no score for a node, or if it is of edges for an edge."""
    of_edges = any(isinstance(name, tuple) for name in given)
    wanted: list[Any] = [*Graph.of(model).edges] if of_edges else [*nodes_of(model)]
    missing = [str(name) for name in wanted if name not in given]
    if missing:
        more = [f"and {len(missing) - 5} more"] if len(missing) > 5 else []
        raise GatedInterpError("ranking-incomplete", missing=missing[:5] + more)
    unknown = [str(name) for name in given if name not in set(wanted)]
    if unknown:
        raise GatedInterpError("truth-of-another-model", unknown=unknown[:5])


def _inside(names: list[Any], truth: Collection[Any]) -> Bool[Tensor, " name"]:
    unknown = [str(name) for name in truth if name not in set(names)]
    if unknown:
        raise GatedInterpError("truth-of-another-model", unknown=unknown[:5])
    found = torch.tensor([name in set(truth) for name in names])
    if not 0 < int(found.sum()) < len(names):
        raise GatedInterpError("truth-without-contrast", n=int(found.sum()), of=len(names))
    return found


def _auroc(size: Float[Tensor, " name"], inside: Bool[Tensor, " name"]) -> float:
    """How often a true name scores higher than another; ties count half."""
    mine, others = size[inside][:, None], size[~inside]
    return float(((mine > others).double() + 0.5 * (mine == others)).mean())


def _count(share: float, of: int) -> int:
    """How many names a share is, rounded down as in MIB."""
    return int(share * of)


def _curve(
    prompts: Prompts, names: list[Any], order: Tensor
) -> list[tuple["np.ndarray", "np.ndarray"]]:
    """For each size what circuit and model differ by from nothing, on each prompt."""
    graph = Graph.of(prompts.model)
    cutter, whole = Cutter(prompts, graph), (prompts.before - prompts.after).double().cpu().numpy()
    done: dict[int, tuple[np.ndarray, np.ndarray]] = {}
    for share in SIZES:
        n = _count(share, len(names))
        if n not in done:
            kept = [names[i] for i in order[:n].tolist()]
            cut = graph.there & ~_circuit(graph, kept)
            values = cutter.metric(cut) if kept else prompts.after
            done[n] = (values - prompts.after).double().cpu().numpy(), whole
    return [done[_count(share, len(names))] for share in SIZES]


def _circuit(graph: Graph, kept: list[Any]) -> Bool[Tensor, "receiver sender"]:
    """The edges of a circuit of these edges, or those that leave these nodes or the embedding."""
    if any(isinstance(name, tuple) for name in kept):
        return graph.mask(kept)
    on = torch.tensor([name in {*kept, EMBED} for name in graph.senders])
    return graph.there & on


def _area(values: "np.ndarray") -> float:
    """Under values at :data:`SIZES`, by trapezoids."""
    steps = np.diff(SIZES)
    return float((steps * (values[1:] + values[:-1]) / 2).sum())
