"""The scores of attribution methods on known circuits, against an AUROC from ranks."""

import pandas as pd
import pytest

from gated_interp.checkpoints.known import known_circuit
from gated_interp.experiments.known_scores import ABLATIONS, HEADS, PATHS, measured, scores

NAME = "compiled-count"


def by_ranks(sizes: dict, truth: list) -> float:
    """The AUROC as the Mann-Whitney statistic: ranks of the true names, ties at their mean."""
    ranks = pd.Series(sizes.values(), index=pd.Index(sizes, tupleize_cols=False)).rank()
    inside = [name in truth for name in sizes]
    n, others = sum(inside), len(sizes) - sum(inside)
    return (ranks[inside].sum() - n * (n + 1) / 2) / (n * others)


@pytest.mark.parametrize(
    ("method", "of"),
    [("exact, resample", "nodes"), ("EAP", "nodes"), ("EAP", "edges"), ("EAP-IG inputs", "edges")],
)
def test_scores_are_those_of_ranks(method, of):
    circuit = known_circuit(NAME)
    sizes, forward, _ = scores(circuit, circuit.pairs(32, 1), method, of)
    (row,) = (r for r in measured(NAME, method, of, 1) if r["of"] == of)
    truth = circuit.edges if of == "edges" else circuit.nodes
    assert row["auroc"] == pytest.approx(by_ranks(sizes, truth))
    assert row["random"] == pytest.approx(0.5, abs=0.1)
    assert row["forward"] == forward
    if of == "nodes":
        (row,) = (r for r in measured(NAME, method, of, 1) if r["of"] == "heads")
        heads = {name: size for name, size in sizes.items() if "H" in name}
        assert row["auroc"] == pytest.approx(by_ranks(heads, truth))


def test_a_head_is_ranked_by_what_its_path_carries():
    circuit = known_circuit("compiled-previous-token")
    pairs = circuit.pairs(8, 0)
    sizes, *_ = scores(circuit, pairs, PATHS, "nodes")
    nodes, *_ = scores(circuit, pairs, HEADS[len(ABLATIONS) - 1], "nodes")
    assert max(sizes, key=sizes.get) == "L0H0"
    # Nothing but the MLP, which this model lacks or does not use, is behind its heads.
    assert sizes["L0H0"] == pytest.approx(nodes["L0H0"], rel=0.05)
