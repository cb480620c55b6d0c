"""Attribution of heads and edges, against hooks and TransformerLens' split inputs."""

import warnings

import numpy as np
import pytest
import torch
from closeness import assert_close
from refusals import refuses
from transformer_lens import HookedTransformer, HookedTransformerConfig

import gated_interp as gi
from gated_interp.analysis.attribute.cut import Cutter
from gated_interp.analysis.attribute.edges import EDGE_METHODS
from gated_interp.analysis.attribute.graph import Graph
from gated_interp.analysis.attribute.nodes import HEAD_METHODS
from gated_interp.analysis.attribute.prompts import Prompts
from gated_interp.analysis.attribute.stream import receiver_gradients, watch
from gated_interp.models.analytic_tasks import induction_model
from gated_interp.replacements.gated_attention import GatedAttention
from gated_interp.replacements.splice import splice

SMALL = {
    "n_layers": 2,
    "d_model": 24,
    "n_ctx": 7,
    "d_head": 6,
    "n_heads": 4,
    "d_vocab": 11,
    "d_mlp": 20,
}
KINDS = {
    "plain": {"normalization_type": None, "act_fn": "gelu"},
    "LN": {"normalization_type": "LN", "act_fn": "gelu"},
    "attention only": {"normalization_type": "LNPre", "attn_only": True},
    "parallel": {"normalization_type": "LN", "act_fn": "gelu", "parallel_attn_mlp": True},
    "rotary, grouped, RMS": {
        "normalization_type": "RMS",
        "act_fn": "silu",
        "gated_mlp": True,
        "n_key_value_heads": 2,
        "positional_embedding_type": "rotary",
        "rotary_dim": 6,
    },
}


def model_of(kind: str, seed: int = 0) -> HookedTransformer:
    kind_of = {**SMALL, **KINDS[kind], "seed": seed, "dtype": torch.float64}
    model = HookedTransformer(HookedTransformerConfig(**kind_of))
    with torch.no_grad():
        source = torch.Generator().manual_seed(seed)
        for weight in model.parameters():
            weight.copy_(torch.randn(weight.shape, generator=source) * 0.3)
            if weight.ndim == 1:
                weight.add_(1)
    return model.eval()


def prompts_of(n: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    source = torch.Generator().manual_seed(5)
    return tuple(torch.randint(0, 11, (n, 5), generator=source) for _ in range(2))


def difference(logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """A logit difference at the last position."""
    return logits[:, -1, 3] - logits[:, -1, 7]


def gradients(model, clean, corrupted, graph):
    prompts = Prompts(model, clean, corrupted, difference)
    seen = watch(prompts, prompts.clean, {}, receivers=graph)
    grads = prompts.gradients(prompts.values(seen.logits), list(seen.at.values()))
    found = torch.zeros(*clean.shape, len(graph.receivers), model.cfg.d_model)
    found = found.to(model.W_E)
    for where, each in receiver_gradients(
        model, graph, seen, dict(zip(seen.at, grads, strict=True))
    ):
        found[:, :, where] = each
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_by_hand_are_those_of_split_inputs(kind):
    model, (clean, corrupted) = model_of(kind), prompts_of()
    graph = Graph.of(model)
    mine = gradients(model, clean, corrupted, graph)
    model.set_use_split_qkv_input(True)
    if not model.cfg.attn_only:
        model.set_use_hook_mlp_in(True)
    kept = {}

    def keep(x, hook):
        x.retain_grad()
        kept[hook.name] = x

    names = [
        n for n in model.hook_dict if n.endswith(("_input", "hook_mlp_in", "1.hook_resid_post"))
    ]
    logits = model.run_with_hooks(clean, fwd_hooks=[(name, keep) for name in names])
    difference(logits, clean).sum().backward()
    for layer, inputs in enumerate(graph.inputs):
        for role, where in inputs.items():
            theirs = kept[f"blocks.{layer}.hook_{role}_input"].grad
            assert theirs.abs().max() > 1e-3
            assert_close(mine[:, :, where], theirs, roundings=2000, scale=10.0)
    for layer, (_, receiver) in graph.mlps.items():
        assert_close(
            mine[:, :, receiver],
            kept[f"blocks.{layer}.hook_mlp_in"].grad,
            roundings=2000,
            scale=10.0,
        )
    assert_close(mine[:, :, -1], kept["blocks.1.hook_resid_post"].grad, roundings=2000, scale=10.0)


GATED = {"gated": "attention only", "gates that see positions": "rotary, grouped, RMS"}


def gated_model(kind: str = "gated") -> HookedTransformer:
    """Two attention layers, the second replaced by heads whose gates are half open."""
    model = model_of(GATED[kind])
    sees = {"d_gate": 3, "gate_rotary": 2} if kind != "gated" else {}
    block = GatedAttention.from_attention(model.blocks[1].attn, gate="tanh", **sees).double()
    with torch.no_grad():
        source = torch.Generator().manual_seed(3)
        for name in ("W_gate_Q", "W_gate_K"):
            weight = getattr(block, name)
            weight.copy_(torch.randn(weight.shape, generator=source) * 0.3)
    return splice(model, 1, block)


@pytest.mark.parametrize("kind", [*KINDS, *GATED])
def test_receivers_gradients_add_up_to_those_of_writers(kind):
    """All that a sender does goes through receivers, so its edges add up to its node."""
    model, (clean, corrupted) = gated_model(kind) if kind in GATED else model_of(kind), prompts_of()
    edges = gi.attribute_edges(model, clean, corrupted, difference, method="EAP")
    nodes = gi.attribute_heads(model, clean, corrupted, difference, method="attribution patching")
    assert kind not in GATED or ("L0H1", "L1H5.gate_k") in edges.names
    for i, name in enumerate(nodes.names):
        mine = [k for k, (sender, _) in enumerate(edges.names) if sender == name]
        assert_close(edges.scores[:, mine].sum(1), nodes.scores[:, i], roundings=2000, scale=10.0)
    by_edges = gi.attribute_heads(model, clean, corrupted, difference, method="EAP")
    assert_close(by_edges.mean, nodes.mean, roundings=2000, scale=10.0)
    assert (by_edges.absolute >= by_edges.mean.abs() - 1e-6).all()


@pytest.mark.parametrize("kind", [*KINDS, *GATED])
def test_all_edges_cut_is_the_corrupted_run_and_none_the_clean_one(kind):
    model, (clean, corrupted) = gated_model(kind) if kind in GATED else model_of(kind), prompts_of()
    prompts, graph = Prompts(model, clean, corrupted, difference), Graph.of(model)
    cutter = Cutter(prompts, graph)
    assert_close(
        cutter.metric(~graph.there), difference(model(clean), clean), roundings=2000, scale=10.0
    )
    wanted = difference(model(corrupted), clean)
    assert_close(cutter.metric(graph.there), wanted, roundings=2000, scale=10.0)
    # Every edge that leaves one head cut is that head patched; MLPs likewise.
    nodes = gi.attribute_heads(model, clean, corrupted, difference)
    for i, name in enumerate(nodes.names):
        cut = torch.zeros_like(graph.there)
        cut[:, graph.senders.index(name)] = True
        change = cutter.metric(cut) - prompts.before
        assert_close(change, nodes.scores[:, i], roundings=2000, scale=10.0)


@pytest.mark.parametrize("kind", [*KINDS, *GATED])
def test_an_edge_estimated_by_its_gradient_is_its_slope(kind):
    """Each edge alone: EAP is the exact score of a change that is tiny, over its size."""
    model, (clean, corrupted) = (
        gated_model(kind) if kind in GATED else model_of(kind),
        prompts_of(2),
    )
    prompts, graph = Prompts(model, clean, corrupted, difference), Graph.of(model)
    cutter = Cutter(prompts, graph)
    small = 1e-5
    intact = Prompts(model, clean, clean + 0, lambda x, t: x[:, -1, 0])
    from gated_interp.analysis.attribute.stream import observed

    here = observed(intact, intact.clean)
    cutter.other = {n: here[n] + small * (cutter.other[n] - here[n]) for n in here}
    edges = gi.attribute_edges(model, clean, corrupted, difference, method="EAP")
    pairs = graph.there.nonzero().tolist()
    for i in range(0, len(pairs), 7):
        cut = torch.zeros_like(graph.there)
        cut[tuple(pairs[i])] = True
        slope = (cutter.metric(cut) - prompts.before) / small
        assert torch.allclose(slope, edges.scores[:, i], atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("ablation", ["zero", "mean", "resample"])
def test_exact_nodes_are_runs_with_hooks(ablation):
    model, (clean, corrupted) = model_of("LN"), prompts_of()
    found = gi.attribute_heads(model, clean, corrupted, difference, ablation=ablation)
    cache = model.run_with_cache(corrupted if ablation == "resample" else clean)[1]

    def edit(x, hook):
        held = cache[hook.name]
        held = {"zero": held * 0, "resample": held, "mean": held.mean(0).expand_as(held)}[ablation]
        x = x.clone()
        if hook.name.endswith("hook_z"):
            x[:, :, 2] = held[:, :, 2]
        else:
            x[:] = held
        return x

    for hook, name in (("attn.hook_z", "L1H2"), ("hook_mlp_out", "L1 mlp")):
        logits = model.run_with_hooks(clean, fwd_hooks=[(f"blocks.1.{hook}", edit)])
        change = difference(logits, clean) - difference(model(clean), clean)
        mine = found.scores[:, found.names.index(name)]
        assert_close(mine, change.detach(), roundings=2000, scale=10.0)
    assert len(found.names) == 2 * 5
    assert found.backward == 0
    assert found.forward == (12 if ablation == "resample" else 13)


def test_integrated_activations_are_exact_where_one_head_makes_the_change():
    """A layer of one head: the integral of its gradient is what patching it does."""
    truth = induction_model()
    clean, corrupted = (truth.task.sample(6, seed=s).tokens for s in (0, 1))
    exact = gi.attribute_heads(truth.model, clean, corrupted)
    edges = gi.attribute_heads(
        truth.model, clean, corrupted, method="EAP-IG activations", steps=100
    )
    assert torch.allclose(edges.mean, exact.mean, atol=0.02, rtol=0.02)
    assert abs(edges.complete - 1) < 0.02


def test_integrated_inputs_add_up_to_the_change():
    model, (clean, corrupted) = model_of("LN"), prompts_of()
    found = gi.attribute_edges(model, clean, corrupted, difference, steps=60)
    mine = [i for i, (sender, _) in enumerate(found.names) if sender == "embed"]
    wanted = (difference(model(corrupted), clean) - difference(model(clean), clean)).detach()
    assert torch.allclose(found.scores[:, mine].sum(1), wanted, atol=0.02, rtol=0.02)
    assert_close(found.change, wanted, roundings=2000, scale=10.0)
    truth = induction_model()
    tokens = [truth.task.sample(6, seed=s).tokens for s in (0, 1)]
    with pytest.warns(gi.GatedInterpWarning, match="add up to"):
        gi.attribute_edges(truth.model, *tokens, steps=2)


def test_acdc_keeps_the_edges_of_the_circuit():
    truth = induction_model()
    clean, corrupted = (truth.task.sample(6, seed=s).tokens for s in (0, 1))
    found = gi.attribute_edges(truth.model, clean, corrupted, method="ACDC", thresholds=[0.01, 0.1])
    kept = {name for name, size in zip(found.names, found.absolute, strict=True) if size > 0}
    circuit = {("embed", "L0H0.v"), ("L0H0", "L1H0.k"), ("embed", "L1H0.v"), ("L1H0", "logits")}
    assert circuit <= kept
    assert len(kept) < len(found.names)
    assert set(np.unique(found.absolute.numpy().round(3))) <= {
        0.0,
        np.float32(0.01),
        np.float32(0.1),
    }


def test_many_parts_are_as_one(monkeypatch):
    model, (clean, corrupted) = model_of("LN"), prompts_of(5)
    answers = torch.arange(5)

    def metric(logits, tokens):  # which holds an answer for each prompt
        return logits[torch.arange(5), -1, answers]

    def all_of() -> list[torch.Tensor]:
        heads = gi.attribute_heads(model, clean, corrupted, metric, ablation="mean")
        edges = gi.attribute_edges(model, clean, corrupted, metric, method="EAP")
        assert edges.forward == 3
        assert edges.backward == 1
        return [heads.scores, edges.scores]

    whole = all_of()
    monkeypatch.setattr("gated_interp.analysis.attribute.prompts.NUMBERS", 1)
    for mine, theirs in zip(all_of(), whole, strict=True):
        assert_close(mine, theirs, roundings=2000, scale=10.0)


def test_tables_have_intervals_signs_and_sizes():
    model, (clean, corrupted) = model_of("plain"), prompts_of(4)
    table = gi.attribute_heads(model, clean, corrupted, difference).table()
    assert table.columns.tolist() == ["node", "score", "score_low", "score_high", "absolute", "n"]
    assert (table["score_low"] <= table["score"]).all()
    assert table["absolute"].is_monotonic_decreasing
    assert (table["score"] < 0).any()
    edges = gi.attribute_edges(model, clean, corrupted, difference, method="EAP").to_frame()
    assert edges.columns[:2].tolist() == ["sender", "receiver"]


def test_rankings_are_scored_against_a_truth():
    scores = {"L0H0": 0.9, "L0H1": -0.5, "L0H2": 0.1, "L0H3": 0.5}
    assert gi.score_ranking(scores, ["L0H0", "L0H1"]).auroc == 0.875  # a tie counts half
    many = gi.score_ranking(scores, ["L0H0"], draws=400)
    assert abs(many.random_auroc - 0.5) < 0.08
    assert many.table()["score"].tolist() == ["auroc"]


def test_rankings_are_scored_by_what_their_circuits_carry():
    truth = induction_model()
    tokens = dict(
        zip(
            ("clean", "corrupted"),
            (truth.task.sample(9, seed=s).tokens for s in (0, 1)),
            strict=False,
        )
    )
    edges = gi.attribute_edges(truth.model, **tokens, method="exact")
    found = gi.score_ranking(edges, model=truth.model, **tokens, draws=3)
    assert found.curve["faithfulness"].iloc[-1] == pytest.approx(1, abs=1e-5)
    assert found.curve["n"].tolist() == [0, 0, 0, 0, 0, 0, 1, 2, 6, 12]
    assert found.cpr > found.random_cpr
    assert found.cmd < found.random_cmd
    f, s, x = (found.curve[name].to_numpy() for name in ("faithfulness", "signed", "size"))
    assert found.cpr == pytest.approx(((s[1:] + s[:-1]) / 2 * np.diff(x)).sum())
    g = abs(1 - f)
    assert found.cmd == pytest.approx(((g[1:] + g[:-1]) / 2 * np.diff(x)).sum())
    assert (f[:6] == 0).all()  # a share of less than one edge is no edge
    for signed, name in ((True, "signed"), (False, "faithfulness")):
        both = gi.score_ranking(edges, model=truth.model, **tokens, draws=1, signed=signed).curve
        assert (both["signed"] == both["faithfulness"]).all()
        assert both["signed"].to_numpy() == pytest.approx(found.curve[name].to_numpy())
    nodes = gi.attribute_heads(truth.model, **tokens)
    by_node = gi.score_ranking(nodes, ["L1H0"], model=truth.model, **tokens, draws=2)
    assert by_node.curve["faithfulness"].iloc[-1] == pytest.approx(1, abs=1e-5)
    assert by_node.auroc is not None
    assert by_node.cpr is not None


EVERY = [(gi.attribute_heads, m) for m in HEAD_METHODS]
EVERY += [(gi.attribute_edges, m) for m in EDGE_METHODS]
FLAT = ("attribution patching", "AtP*", "EAP")
SLOPES = (*FLAT, "EAP-IG inputs", "EAP-IG activations", "causal head gating")


@pytest.mark.parametrize(("function", "method"), EVERY)
def test_each_method_refuses_what_it_cannot_be_asked(function, method):
    model, (clean, corrupted) = model_of("LN"), prompts_of()

    def asked(metric=difference, first=clean, second=corrupted):
        function(model, first, second, metric, method=method)

    for second in (corrupted[:, :3], corrupted[:2]):
        with refuses("batches-differ-in-shape"):
            asked(second=second)
    with refuses("tokens-not-a-table"):
        asked(first=[[1, 2, 3], [1, 2]])
    with refuses("metric-constant"):
        asked(lambda x, t: x[:, 0, 0] * 0)
    with refuses("metric-constant"):
        asked(second=clean)
    with refuses("metric-not-per-prompt"):
        asked(lambda x, t: x.mean())
    with refuses("array-not-finite"):
        asked(lambda x, t: x[:, -1, 0] * float("nan"))
    if method in SLOPES:
        with refuses("metric-without-gradient"):
            asked(lambda x, t: x[:, -1].argmax(-1).double())
        with refuses("metric-without-gradient"):
            asked(lambda x, t: x[:, -1, 0].detach())
    if method in FLAT:
        with refuses("metric-flat-at-clean"):
            asked("kl")


def test_bad_input_is_refused_in_a_sentence():
    model, (clean, corrupted) = model_of("LN"), prompts_of()
    heads, edges = gi.attribute_heads, gi.attribute_edges
    with refuses("batches-differ-in-shape"):
        heads(model, clean, corrupted[:, :3], difference)
    with refuses("no-corrupted-prompts"):
        heads(model, clean, metric=difference)
    with refuses("metric-constant"):
        edges(model, clean, corrupted, lambda x, t: x[:, 0, 0] * 0)
    with refuses("metric-constant-without"):
        heads(model, clean, metric=lambda x, t: x[:, 0, 0] * 0, ablation="zero")
    with refuses("metric-not-per-prompt"):
        heads(model, clean, corrupted, lambda x, t: x.mean())
    with refuses("metric-without-gradient"):
        edges(model, clean, corrupted, lambda x, t: x[:, -1].argmax(-1).double())
    flat = model(clean).detach()
    for method, call in (("EAP", edges), ("EAP", heads), ("attribution patching", heads)):
        with refuses("metric-flat-at-clean"):
            call(model, clean, corrupted, "kl", method=method)
        with refuses("metric-flat-at-clean"):
            call(
                model, clean, corrupted, lambda x, t: (x - flat).square().sum((1, 2)), method=method
            )
    with refuses("not-a-whole-number"):
        edges(model, clean, corrupted, steps=0)
    with refuses("thresholds-not-positive"):
        edges(model, clean, corrupted, method="ACDC", thresholds=[])
    scores = dict.fromkeys(heads(model, clean, corrupted, difference).names, 1.0)
    with refuses("truth-of-another-model"):
        gi.score_ranking(scores, ["L7H0"])
    with refuses("truth-of-another-model"):  # edges for nodes
        gi.score_ranking(scores, [("L0H0", "L1H0.q")])
    with refuses("truth-of-another-model"):  # a ranking of another model
        gi.score_ranking({**scores, "L7H0": 1.0}, ["L0H0"], model=model)
    with refuses("truth-not-names"):
        gi.score_ranking(scores, "L0H0")
    with refuses("array-not-finite"):
        gi.score_ranking({**scores, "L0H0": float("nan")}, ["L0H0"])
    with refuses("truth-without-contrast"):
        gi.score_ranking(scores, [])
    with refuses("too-small", name="draws"):
        gi.score_ranking(scores, ["L0H0"], draws=0)
    with refuses("no-prompts-for-faithfulness"):
        gi.score_ranking(scores)
    del scores["L1H2"]
    with refuses("ranking-incomplete", missing=["L1H2"]):
        gi.score_ranking(scores, ["L0H0"], model=model)
    with refuses("truth-of-another-model", unknown=["L1H2"]):  # without a model
        gi.score_ranking(scores, ["L0H0", "L1H2"])


def test_integrated_kl_is_taken():
    model, (clean, corrupted) = model_of("LN"), prompts_of()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", gi.GatedInterpWarning)
        found = gi.attribute_heads(model, clean, corrupted, "kl", method="EAP-IG inputs", steps=20)
    assert (found.change >= 0).all()
    assert found.absolute.max() > 0
