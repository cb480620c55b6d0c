"""Figures hold what they were given, look alike, and refuse what does not fit."""

import itertools
import re

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import plotly.io as pio
import pytest
import torch
from refusals import refuses

from gated_interp.analysis.ablation import ablate
from gated_interp.models.analytic import manual_model
from gated_interp.plots import (
    TEMPLATE,
    WIDTHS,
    Holdings,
    ablation_bars,
    adversary_ladder,
    attention_patterns,
    attribution_scores,
    before_after,
    circuit_maps,
    copying_controls,
    copying_shares,
    frontier,
    gate_maps,
    head_effects,
    head_overview,
    head_roles_figure,
    held_frontier,
    loading_matrix,
    loss_curves,
    phase_diagram,
    qk_attribution,
    reliability,
    shapley_and_interactions,
    style,
    sweep_curves,
    wiring_diagram,
)
from gated_interp.plots.carriers import carried_shares
from gated_interp.plots.frontier import frontier_point
from gated_interp.plots.ladder import ladder_frontier
from gated_interp.plots.layout import log_axis

RNG = np.random.default_rng(0)
HEADS = ["L0H0", "L0H1", "L0H2"]
TOKENS = ["A", "B1", "B2", "C1", "BOS"]
GATES = RNG.random((3, 5, 5))
OV, QK = RNG.normal(size=(2, 3, 5, 5))
PATTERN = np.tril(RNG.random((3, 7, 7)))
PATTERN /= PATTERN.sum(-1, keepdims=True)
POSITIONS = ["BOS", "A", "C1", "B1", "C1", "A", "B2"]
ROWS = {1: "A…B1→C1", 2: "A…B2→C2"}
TILES = {(0, 0): 0.1, (0, 1): -0.2, (1, 0): float("nan"), (1, 1): 0.5}


def before() -> Holdings:
    return Holdings("toy", ["L0H0", "L0H1"], [[0.9, 0.1], [0.4, 0.6]], {1: [0], 2: []})


def after(**changes: object) -> Holdings:
    shares = [[0.0, 0.97, 0.03], [1.0, 0.0, 0.0]]
    given = {"holders": {1: [1], 2: [0]}, "dead": [2], **changes}
    return Holdings("gated block", HEADS, shares, **given)


def history(runs: int) -> pd.DataFrame:
    parts = []
    for run in range(runs):
        fall = np.exp(-np.arange(6) / 2) * (1 + run)
        columns = {"loss": fall, "fvu": fall / 2, "penalty": fall * 0, "l0": fall / 3}
        parts.append(pd.DataFrame({"step": np.arange(6) * 10, **columns, "run": run}))
    return pd.concat(parts, ignore_index=True)


def results() -> pd.DataFrame:
    columns = ["experiment", "recipe", "runs", "clean", "low", "high", "fvu"]
    rows = [
        ["2H3ST", "ours", 64, 64, 0.94, 1.0, 0.01],
        ["2H3ST", "reference", 64, 2, 0.01, 0.11, 0.6],
        ["3H4ST", "ours", 64, 48, 0.63, 0.84, 0.02],
    ]
    return pd.DataFrame(rows, columns=columns)


def points(methods: tuple[str, ...] = ("gated", "topk", "top1")) -> pd.DataFrame:
    rows = [
        {"task": task, "method": method, "knob": knob, "clean_rate": 0.5 + 0.1 * i, "low": 0.3,
         "high": 0.9, "fvu": 0.01 * (knob + i), "active_per_position": 3.0 / knob}
        for task in ("2H3ST", "3H4ST")
        for i, method in enumerate(methods)
        for knob in ((2, 1) if method != "top1" else (1,))
    ]  # fmt: skip
    return pd.DataFrame(rows)


def worth(n: int) -> pd.DataFrame:
    effect = np.arange(n) / 10
    ends = {"effect": effect, "effect_low": effect - 0.05, "effect_high": effect + 0.02}
    return pd.DataFrame({"head": range(n), **ends})


def held() -> pd.DataFrame:
    rows = [["gated", 0.99, 0.1, 7.0], ["gated", 0.95, 0.4, 3.0], ["topk", 0.97, 0.05, 8.0]]
    columns = ["method", "ce_recovered_zero", "held_share", "active_per_position"]
    return pd.DataFrame(rows, columns=columns)


def holding(n: int) -> pd.DataFrame:
    return pd.DataFrame({"head": range(n), "held": np.arange(n) / 100})


def places() -> pd.DataFrame:
    rows = [["original", 0.0, np.nan, np.nan, 3.0, 3.0], ["block", 0.02, 0.018, 0.023, 4.5, 1.2]]
    columns = ["name", "fvu", "low", "high", "active_per_position", "gates_per_pair"]
    return pd.DataFrame(rows, columns=columns)


def beside() -> pd.DataFrame:
    rows = [["topk", 0.3, 1.0, 24.0], ["topk", 0.1, 2.0, 24.0], ["gated", 0.01, 5.0, 2.0]]
    columns = ["method", "fvu", "active_per_position", "gates_per_pair"]
    return pd.DataFrame(rows, columns=columns)


def copied() -> pd.DataFrame:
    rows = [["original", -1, 4, 0.6, 2.0, 0.0], ["gated", 10, 2, 0.95, 2.01, 0.004]]
    table = pd.DataFrame(rows, columns=["method", "seed", "carriers", "top2", "loss", "kl_text"])
    ends = {"top2_low": table["top2"] - 0.1, "top2_high": table["top2"] + 0.1}
    return table.assign(layer=17, loss_original=2.0, **ends)


def carrying() -> pd.DataFrame:
    return pd.concat([copied().assign(share=share) for share in (0.6, 0.3, 0.1)])


def rungs(more: float) -> pd.DataFrame:
    names = ["nothing opened", "opened at random", "20 steps", "layer zeroed", "random weights"]
    table = pd.DataFrame({"rung": names, "kl": [0.01 * more, 0.1, 0.3 * more, 2.0, 5.0]})
    return table.assign(kl_low=table["kl"] * 0.8, kl_high=table["kl"] * 1.2)


def phases() -> pd.DataFrame:
    nan = np.nan
    rows = [[1, 1, 1.0, 0.0, 0.5, 1.0], [1, 3, 0.0, nan, nan, nan], [2, 2, 0.75, 0.5, 0.0, 0.25]]
    names = ["heads", "trigrams", "learnt", "distributed", "clean_rate", "success"]
    return pd.DataFrame(rows, columns=names)


def sweep() -> pd.DataFrame:
    rows = [["2H3ST", 0.2, 0.5, 0.4, 0.6, 0.02], ["2H3ST", 0.1, 0.25, 0.2, 0.4, 0.01]]
    return pd.DataFrame(rows, columns=["experiment", "alpha", "success", "low", "high", "fvu"])


def effects() -> pd.DataFrame:
    rows = [
        {"heads": h, "method": m, "trigram": t, "change": c, "low": c - 0.5, "high": c + 0.25}
        for t in (1, 2)
        for i, h in enumerate(["L0H0", "L0H1", "L0H0+L0H1"])
        for j, m in enumerate(["zero", "mean", "resample", "optimal"])
        for c in [-(i + 1.0) * (j + 2) * t]
    ]
    return pd.DataFrame(rows)


FIGURES = {
    "gate_maps": lambda **k: gate_maps(GATES, TOKENS, HEADS, **k),
    "circuit_maps": lambda **k: circuit_maps(OV, QK, TOKENS, HEADS, gates=GATES, **k),
    "attention": lambda **k: attention_patterns(
        PATTERN, POSITIONS, HEADS, gated=PATTERN * 0.5, **k
    ),
    "loadings": lambda **k: loading_matrix(
        {"before": OV[0, :2], "after": QK[0, :2, :3]},
        list(ROWS.values()),
        {"before": TOKENS, "after": HEADS},
        **k,
    ),
    "before_after": lambda **k: before_after(before(), after(), ROWS, **k),
    "loss": lambda **k: loss_curves(history(5), selected=3, **k),
    "sweep": lambda **k: sweep_curves(sweep(), **k),
    "reliability": lambda **k: reliability(results(), target=0.95, **k),
    "frontier": lambda **k: frontier(points(), **k),
    "head_effects": lambda **k: head_effects({"original": worth(3), "block": worth(20)}, **k),
    "overview": lambda **k: head_overview(
        {"text": TILES, "repeats": TILES}, whole={"text": [0.3, -0.1], "repeats": [0.2, 0.0]},
        marks={"induction": [(1, 1)], "first token": [(0, 0)]}, layers=[0], layer=1, **k,
    ),
    "head_holdings": lambda **k: head_effects(
        {"original": holding(3), "block": holding(20)}, measure="held", **k
    ),
    "point": lambda **k: frontier_point(places(), beside(), **k),
    "held": lambda **k: held_frontier(held(), 0.03, goals=[(0.99, 0.13)], **k),
    "copying": lambda **k: copying_shares(copied(), carrying(), **k),
    "controls": lambda **k: copying_controls(copied(), **k),
    "edge": lambda **k: qk_attribution(
        {name: (OV[0, :3, :4] - i, [*HEADS[:2], "others"], [*TOKENS[:3], "others"])
         for i, name in enumerate(("attention score", "gate score"))},
        {"embed": 0.3, "L0H12": -0.1, "L0 b_O": 0.0}, **k,
    ),
    "ladder": lambda **k: adversary_ladder({"gated": rungs(1.0), "TopK": rungs(3.0)}, **k),
    "ladder frontier": lambda **k: ladder_frontier(
        pd.DataFrame([
            {"series": s, "setting": f"{s} {y}", "measure": m, "value": y / 9, "low": 0, "high": 1,
             "kl": y, "kl_low": y / 2, "kl_high": 2 * y}
            for s in ("as trained", "further steps") for m in ("clean blocks", "FVU")
            for y in (0.1, 1.0, 2.0)
        ]), **k,
    ),
    "attribution": lambda **k: attribution_scores(
        pd.DataFrame([
            {"method": m, "source": s, "of": o, "auroc": a, "random": 0.5, "forward": 3,
             "backward": 1}
            for o in ("heads", "edges") for s, a in (("compiled", 0.4), ("planted", 0.9))
            for m in ("exact", "EAP")
        ]), published={"EAP": 0.73, "none of these": 0.1}, **k,
    ),
    "carried": lambda **k: carried_shares(
        pd.DataFrame([
            {"degrees": d, "method": m, "measure": w, "value": v, "low": v - 0.1, "high": 1.0}
            for d in (0.0, 22.5, 45.0) for w in ("purity of heads", "share in first head")
            for m, v in (("original", 0.5), ("ungated + overlap", 0.9))
        ]), ["original", "ungated + overlap"], **k,
    ),
    "phases": lambda **k: phase_diagram(phases(), **k),
    "ablation": lambda **k: ablation_bars(effects(), panel="trigram", **k),
    "shapley": lambda **k: shapley_and_interactions([1.0, -2.0, 0.5], OV[0, :3, :3], HEADS, **k),
    "roles": lambda **k: head_roles_figure(
        [[0.5, 0.01, 0.0], [0.0, 0.0, 0.3], [0.19, 0.0, 0.0]], ["A", "B1", "other"], HEADS,
        {"FVU": {"all heads": 0.02, "holders only": 0.5},
         "trigrams answered": {"all heads": 1.0, "holders only": 0.97}},
        percent=["trigrams answered"], marks={1: "C1"}, **k,
    ),
    "wiring": lambda **k: wiring_diagram(
        PATTERN[:, -1], OV[:, 0], POSITIONS, HEADS, TOKENS, gate=GATES[:, :, :1].repeat(7, 2)[:, 0],
        predicted=3, **k,
    ),
}  # fmt: skip


# Axes whose name stands once, under a row of panels or above one.
NAMED_ONCE = {
    "gate_maps": {"key token"},
    "circuit_maps": {"OV: output token, QK and gate: key token"},
    "attention": {"key position"},
    "loss": {"loss", "gate penalty"},
    "reliability": {"recipe"},
    "roles": {"where each head writes"},
}


def axes_of(fig: go.Figure) -> list[object]:
    return [fig.layout[name] for name in fig.layout if re.fullmatch(r"[xy]axis\d*", name)]


def heat(fig: go.Figure) -> list[np.ndarray]:
    return [np.asarray(t.z, dtype=float) for t in fig.data if t.type == "heatmap"]


@pytest.mark.parametrize("columns", [1, 2])
@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_has_the_look_and_names_its_axes(name: str, columns: int) -> None:
    fig = FIGURES[name](title="What <it> shows", columns=columns)
    assert fig.layout.template == go.Figure(layout={"template": TEMPLATE}).layout.template
    assert fig.layout.width == WIDTHS[columns]
    assert fig.layout.title.text == "What &lt;it&gt; shows"
    axes = axes_of(fig)
    assert axes
    for axis in axes:
        # An axis that shows labels says what they are; inner panels show neither.
        shows = axis.visible is not False and axis.showticklabels is not False
        notes = {a.text for a in fig.layout.annotations}
        assert bool(axis.title.text) <= shows
        assert bool(axis.title.text) or not shows or NAMED_ONCE[name] & notes


@pytest.mark.parametrize("name", FIGURES)
def test_panels_lie_inside_the_figure_and_apart(name: str) -> None:
    fig = FIGURES[name]()
    boxes = []
    for key in fig.layout:
        if re.fullmatch(r"xaxis\d*", key):
            x, y = fig.layout[key].domain, fig.layout["y" + key[1:]].domain
            assert 0 <= x[0] < x[1] <= 1
            assert 0 <= y[0] < y[1] <= 1
            boxes.append((*x, *y))
    for i, a in enumerate(boxes):
        for b in boxes[:i]:
            apart = a[0] >= b[1] or b[0] >= a[1] or a[2] >= b[3] or b[2] >= a[3]
            assert apart, (a, b)


def test_the_default_template_of_plotly_is_left_alone() -> None:
    assert TEMPLATE in pio.templates
    assert pio.templates.default == "plotly"
    assert go.Figure().layout.template != pio.templates[TEMPLATE]


def luminance(color: str) -> float:
    r, g, b = (int(color[i : i + 2], 16) / 255 for i in (1, 3, 5))
    return 0.2126 * r + 0.7152 * g + 0.0722 * b


def test_ramps_darken_steadily_and_the_signed_one_is_white_at_zero() -> None:
    for scale in (style.GATE, style.ATTENTION, style.FRACTION):
        values = [luminance(c) for _, c in scale]
        assert all(a - b > 0.1 for a, b in itertools.pairwise(values))
    assert [p for p, _ in style.SIGNED] == [0, 0.25, 0.5, 0.75, 1]
    assert style.SIGNED[2][1] == "#FFFFFF"
    values = [luminance(c) for _, c in style.SIGNED]
    assert values[0] < values[1] < values[2] > values[3] > values[4]


def test_gate_maps_hold_the_gates_on_a_fixed_range() -> None:
    fig = gate_maps(torch.tensor(GATES), TOKENS, HEADS)
    np.testing.assert_array_equal(heat(fig), GATES)
    assert (fig.layout.coloraxis.cmin, fig.layout.coloraxis.cmax) == (0, 1)
    assert fig.layout.xaxis.labelalias == {str(i): t for i, t in enumerate(TOKENS)}
    titles = [a.text for a in fig.layout.annotations]
    assert titles == [*HEADS, "key token"]
    wide = gate_maps(2 * GATES, TOKENS, HEADS)
    assert wide.layout.coloraxis.cmax == pytest.approx(2 * GATES.max())


def test_marks_stand_in_colour_beside_their_heads() -> None:
    fig = gate_maps(GATES, TOKENS, HEADS, marks={1: "<C1>"})
    words = [a.text for a in fig.layout.annotations]
    assert words[:3] == [
        HEADS[0],
        f'<b>{HEADS[1]} <span style="color:#0072B2">&lt;C1&gt;</span></b>',
        HEADS[2],
    ]


@pytest.mark.parametrize(("heads", "tokens"), [(8, 8), (12, 10), (16, 12)])
def test_every_token_of_the_shipped_shapes_is_named(heads: int, tokens: int) -> None:
    names, words = [f"L0H{h}" for h in range(heads)], [f"t{t}" for t in range(tokens)]
    maps = RNG.random((heads, tokens, tokens))
    for fig in (gate_maps(maps, words, names), circuit_maps(maps, maps, words, names, gates=maps)):
        named = [len(a.tickvals) for a in axes_of(fig) if a.showticklabels]
        assert set(named) == {tokens}


def test_full_rows_of_panels_stand_equally_far_apart() -> None:
    maps = RNG.random((16, 12, 12))
    fig = gate_maps(maps, [f"t{t}" for t in range(12)], [f"L0H{h}" for h in range(16)])
    tops = sorted({round(a.domain[1], 4) for a in axes_of(fig) if a.title.text == "query token"})
    assert len(tops) == 4
    assert np.diff(tops) == pytest.approx([tops[1] - tops[0]] * 3, abs=1e-3)


def test_circuit_maps_are_signed_around_zero_and_gates_are_not() -> None:
    fig = circuit_maps(OV, QK, TOKENS, HEADS, gates=GATES)
    np.testing.assert_array_equal(heat(fig), np.concatenate([OV, QK, GATES]))
    for axis, values in ((fig.layout.coloraxis, OV), (fig.layout.coloraxis2, QK)):
        assert axis.cmax == np.abs(values).max() == -axis.cmin
        assert axis.colorscale[2] == (0.5, "#FFFFFF")
    assert fig.layout.coloraxis3.cmin == 0
    assert len(heat(circuit_maps(OV, QK, TOKENS, HEADS))) == 6


def test_attention_and_gated_attention_share_one_range() -> None:
    fig = attention_patterns(PATTERN, POSITIONS, HEADS, gated=PATTERN * 0.25)
    np.testing.assert_array_equal(heat(fig), np.concatenate([PATTERN, PATTERN * 0.25]))
    assert fig.layout.coloraxis.cmax == fig.layout.coloraxis2.cmax == 1


@pytest.mark.parametrize("n_heads", [1, 2, 3, 5, 7, 8, 13, 32])
def test_any_number_of_heads_fits_the_page(n_heads: int) -> None:
    gates = RNG.random((n_heads, 26, 26))
    names = [f"L0H{h}" for h in range(n_heads)]
    tokens = [f"t{i}" for i in range(26)]
    fig = gate_maps(gates, tokens, names)
    np.testing.assert_array_equal(heat(fig), gates)
    assert fig.layout.height < 9.5 * 96
    # Labels are thinned where they would overlap, and always start with the first.
    axis = fig.layout.yaxis
    panel = fig.layout.height * (axis.domain[1] - axis.domain[0])
    assert axis.tickvals[0] == 0
    line = style.SMALL if axis.tickfont.size == style.SMALL else style.CROWDED
    assert (len(axis.tickvals) - 1) * line < panel


def test_loading_matrix_shares_one_scale_centred_on_zero() -> None:
    left, right = np.array([[0.5, -3.0]]), np.array([[1.0, 2.0, -0.5]])
    fig = loading_matrix(
        {"before": left, "after": right}, ["A…B1→C1"], {"before": HEADS[:2], "after": HEADS}
    )
    np.testing.assert_array_equal(heat(fig)[0], left)
    np.testing.assert_array_equal(heat(fig)[1], right)
    assert (fig.layout.coloraxis.cmin, fig.layout.coloraxis.cmax) == (-3, 3)


def test_before_after_draws_holders_shared_and_dead_heads() -> None:
    fig = before_after(before(), after(), ROWS)

    def cells(axis: str) -> dict[str, list[tuple[int, float]]]:
        bars = [t for t in fig.data if t.type == "bar" and t.xaxis == axis]
        return {t.name.split(",")[0]: list(zip(t.base, t.x, strict=True)) for t in bars}

    # (top of the row, head)
    assert cells("x") == {"holds it": [(-0.5, 0)], "shares it": [(0.5, 0), (0.5, 1)]}
    assert cells("x2") == {"holds it": [(-0.5, 1), (0.5, 0)], "dead head": [(-0.5, 2), (0.5, 2)]}
    shown = [t.name for t in fig.data if t.showlegend]
    assert len(shown) == len(set(shown)) == 3
    words = [a.text for a in fig.layout.annotations]
    assert "A…B2→C2 held by no single head" in words
    assert "each of 2 trigrams held by one head" in words
    assert {"90", "10", "40", "60", "97"} <= set(words)
    assert words.count("no single head") == 1
    assert fig.layout.yaxis.title.text == "trigram"
    other = before_after(before(), after(), ROWS, word="question")
    assert "each of 2 questions held by one head" in [a.text for a in other.layout.annotations]
    assert other.layout.yaxis.title.text == "question"


def test_before_after_says_what_is_not_learnt() -> None:
    lost = Holdings("toy", HEADS[:2], [[0.5, 0.5], [0.5, 0.5]], {1: [], 2: []}, [2])
    fig = before_after(lost, after(), ROWS)
    words = [a.text for a in fig.layout.annotations]
    assert "A…B1→C1 held by no single head, 1 not learnt" in words
    assert "not learnt" in words


def test_loss_curves_draw_each_run_the_median_and_the_selected_one() -> None:
    table = history(3)
    fig = loss_curves(table, selected=2, quantities=["loss"])
    by_name = {t.name: t for t in fig.data if t.x[0] is not None}
    every = by_name["3 runs"]
    steps = np.arange(6) * 10.0
    assert [x for x in every.x if x is not None] == list(steps) * 3
    assert [y for y in every.y if y is not None] == pytest.approx(table["loss"].tolist())
    assert list(by_name["median"].y) == pytest.approx(table[table["run"] == 1]["loss"].tolist())
    mine = by_name["run 2, the one that other figures show"]
    assert list(mine.y) == pytest.approx(table[table["run"] == 2]["loss"].tolist())
    assert fig.layout.yaxis.type == "log"
    assert loss_curves(table, quantities=["penalty"]).layout.yaxis.type is None


def test_loss_curves_of_one_run_leave_out_what_is_not_there() -> None:
    fig = loss_curves(history(1)[["step", "loss"]])
    (line,) = fig.data
    assert list(line.y) == pytest.approx(history(1)["loss"].tolist())
    assert fig.layout.xaxis.title.text == "training step"
    assert [a.text for a in fig.layout.annotations] == ["loss"]


def test_sweep_curves_are_in_the_order_of_alpha() -> None:
    fig = sweep_curves(sweep())
    rate, fvu = fig.data
    assert list(rate.x) == [0.1, 0.2]
    assert list(rate.y) == [0.25, 0.5]
    assert list(rate.error_y.array) == pytest.approx([0.15, 0.1])
    assert list(rate.error_y.arrayminus) == pytest.approx([0.05, 0.1])
    assert list(fvu.y) == [0.01, 0.02]
    assert fig.layout.yaxis.title.text == "successful runs (post)"
    clean = sweep_curves(sweep().assign(clean_rate=[0.4, 0.2]))
    assert list(clean.data[0].y) == [0.2, 0.4]
    assert clean.layout.yaxis.title.text == "clean runs"


def test_reliability_places_rates_intervals_and_counts() -> None:
    fig = reliability(results(), target=0.95)
    rate, fvu = fig.data
    # Rows: 2H3ST, its two recipes, 3H4ST, its one.
    assert list(fig.layout.yaxis.ticktext) == [
        "<b>2H3ST</b>", "ours", "reference", "<b>3H4ST</b>", "ours"
    ]  # fmt: skip
    assert list(rate.y) == list(fvu.y) == [1, 2, 4]
    assert list(rate.x) == [1.0, 2 / 64, 0.75]
    assert list(rate.error_x.arrayminus) == pytest.approx([0.06, 2 / 64 - 0.01, 0.12])
    assert list(rate.error_x.array) == pytest.approx([0.0, 0.11 - 2 / 64, 0.09])
    assert list(fvu.x) == [0.01, 0.6, 0.02]
    assert fvu.error_x.array is None
    words = {a.text for a in fig.layout.annotations}
    assert {"64 of 64", "2 of 64", "48 of 64", "target 95%"} <= words
    assert 0.95 in {s.x0 for s in fig.layout.shapes}
    assert fig.layout.xaxis.range[0] < 0


def test_a_frontier_has_two_panels_a_task_and_a_line_for_each_method_over_its_knob() -> None:
    fig = frontier(points())
    assert len(fig.data) == 2 * 2 * 3
    gated = [t for t in fig.data if t.name == "gated"]
    assert list(gated[0].x) == [0.01, 0.02]  # knob 1, then 2
    assert list(gated[0].y) == [0.5, 0.5]
    assert list(gated[0].error_y.array) == pytest.approx([0.4, 0.4])
    assert list(gated[1].x) == [3.0, 1.5]
    assert list(gated[1].y) == [0.01, 0.02]
    assert [t.showlegend for t in gated] == [True, False, False, False]
    assert {t.mode for t in fig.data if t.name == "top1"} == {"markers"}
    looks = {(t.name, t.line.color, t.marker.symbol) for t in fig.data}
    assert len(looks) == len({c for _, c, _ in looks}) == len({s for *_, s in looks}) == 3
    assert {"<b>2H3ST</b>", "<b>3H4ST</b>"} <= {a.text for a in fig.layout.annotations}


@pytest.mark.parametrize("named", [None, ("c", "h")])
def test_a_frontier_of_many_methods_names_a_few_and_draws_the_others_grey(named) -> None:
    table = points(tuple("abcdefghijk"))
    rates = dict(zip("abcdefghijk", np.arange(11) / 10, strict=True))
    table["clean_rate"] = table["method"].map(rates)
    fig = frontier(table, named=named)
    assert sorted(t.name for t in fig.data if t.showlegend) == [*(named or "hijk"), "other methods"]
    assert len({t.line.color for t in fig.data if t.name == "other methods"}) == 1
    # Under the mouse each still has its name.
    assert {t.hovertemplate.split("<extra>")[1][0] for t in fig.data} == set("abcdefghijk")
    assert fig.layout.title.text.startswith("6 of 11 methods")


def test_heads_stand_by_their_effect_on_one_scale_with_their_intervals() -> None:
    fig = FIGURES["head_effects"]()
    few, many = fig.data
    assert list(few.x) == ["2", "1", "0"]
    assert list(few.y) == [0.2, 0.1, 0.0]
    assert list(few.error_y.array) == pytest.approx([0.02] * 3)
    assert list(few.error_y.arrayminus) == pytest.approx([0.05] * 3)
    assert fig.layout.yaxis2.matches == "y"
    assert len(many.x) == 20
    assert fig.layout.xaxis2.showticklabels is False
    named = head_effects({"original": worth(3), "block": worth(16)}, layer=4)
    assert list(named.data[0].x) == ["L4H2", "L4H1", "L4H0"]
    assert (named.layout.xaxis.tickangle, named.layout.xaxis2.tickangle) == (0, -90)
    notes = {a.text for a in fig.layout.annotations}
    assert "<b>block</b>: 20 heads, by effect" in notes


def test_what_one_head_holds_is_drawn_beside_the_originals_and_the_goals() -> None:
    fig = FIGURES["held"]()
    gated = [t for t in fig.data if t.name == "gated"]
    assert [list(t.x) for t in gated] == [[0.95, 0.99], [3.0, 7.0]]
    assert [list(t.y) for t in gated] == [[0.4, 0.1]] * 2
    assert {s.y0 for s in fig.layout.shapes} == {0.03}
    (goal,) = [t for t in fig.data if t.name == "goal"]
    assert (*goal.x, *goal.y) == (0.99, 0.13)
    assert fig.layout.yaxis.range == fig.layout.yaxis2.range


def test_what_is_as_good_as_exact_stands_at_the_edge_of_a_frontier_with_its_own_number() -> None:
    table = points()
    table.loc[table["method"] == "top1", "fvu"] = 1e-14
    fig = frontier(table)
    exact = [t for t in fig.data if t.name == "top1"]
    assert [list(t.x if i % 2 == 0 else t.y) for i, t in enumerate(exact)] == [[0.001]] * 4
    assert {t.customdata[0][1] for t in exact} == {1e-14}
    assert fig.layout.xaxis.title.text == "FVU (0.001: that or less)"
    assert frontier(points()).layout.xaxis.title.text == "FVU"


def test_reliability_of_one_recipe_looks_closely_and_shows_both_intervals() -> None:
    table = results().query("recipe == 'ours'").assign(fvu_low=0.005, fvu_high=[0.02, 0.05])
    fig = reliability(table)
    assert list(fig.layout.yaxis.ticktext) == ["2H3ST", "3H4ST"]
    assert list(fig.data[1].error_x.array) == pytest.approx([0.01, 0.03])
    assert list(fig.data[1].error_x.arrayminus) == pytest.approx([0.005, 0.015])
    assert 0.45 < fig.layout.xaxis.range[0] < 0.63


def test_phase_diagram_tells_zero_from_not_run_from_undefined() -> None:
    fig = phase_diagram(phases())
    learnt, distributed, clean, success = heat(fig)
    nan = np.nan
    np.testing.assert_array_equal(learnt, [[1, nan, 0], [nan, 0.75, nan]])
    np.testing.assert_array_equal(distributed, [[0, nan, nan], [nan, 0.5, nan]])
    np.testing.assert_array_equal(clean, [[0.5, nan, nan], [nan, 0, nan]])
    np.testing.assert_array_equal(success, [[1, nan, nan], [nan, 0.25, nan]])
    texts = [t.text for t in fig.data if t.type == "heatmap"]
    assert [list(row) for row in texts[0]] == [["100", "", "0"], ["", "75", ""]]
    hatched = [t for t in fig.data if t.name == "not run"]
    assert len(hatched) == 4
    for bars in hatched:
        cells = {(b + 0.5, x) for b, x in zip(bars.base, bars.x, strict=True)}
        assert cells == {(0, 1), (1, 0), (1, 2)}
        assert bars.marker.pattern.shape == "/"
    marked = [t for t in fig.data if t.name == "no toy learnt them"]
    assert [(t.x[0], t.y[0]) for t in marked] == [(2, 0)] * 3
    assert [t.showlegend for t in marked] == [True, False, False]


def test_narrow_cells_leave_off_what_their_colour_says() -> None:
    many = pd.DataFrame({"heads": 1, "trigrams": range(1, 13), "learnt": [0, 0.5, 1] * 4})
    (text,) = [t.text[0] for t in phase_diagram(many, columns=1).data if t.type == "heatmap"]
    assert list(text) == ["", "50", ""] * 4


def test_ablation_bars_stand_side_by_side_with_their_intervals() -> None:
    table = effects()
    fig = ablation_bars(table[table["trigram"] == 2])
    assert [t.name for t in fig.data] == ["zero", "mean", "resample", "optimal"]
    assert fig.layout.barmode == "group"
    for j, bars in enumerate(fig.data):
        assert list(bars.x) == [0, 1, 2]
        assert list(bars.y) == [-2.0 * (i + 1) * (j + 2) for i in range(3)]
        assert list(bars.error_y.array) == pytest.approx([0.25] * 3)
        assert list(bars.error_y.arrayminus) == pytest.approx([0.5] * 3)
    panels = ablation_bars(table, panel="trigram")
    assert len(panels.data) == 8
    assert panels.layout.yaxis.range == panels.layout.yaxis2.range


def test_ablation_bars_take_the_ablation_table_as_it_is() -> None:
    """Of bare tokens, of a batch with cases, and of a metric of one's own."""
    truth = manual_model(2, 3)
    batch = truth.task.sample(60, seed=0)

    def longest(logits: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
        return logits.amax(-1)

    tables = {
        "loss": ablate(truth.model, batch.tokens),
        "kl": ablate(truth.model, batch.tokens, [(0, 1)], method="zero"),
        "accuracy": ablate(truth.model, batch),
        "longest": ablate(truth.model, batch.tokens, metric=longest),
    }
    for metric, effects in tables.items():
        assert ablation_bars(effects).data  # some metric, without a word
        fig = ablation_bars(effects, metric=metric)
        wanted = effects[effects["metric"] == metric]
        got = [y for bars in fig.data for y in bars.y]
        assert got == wanted["change"].tolist()
        assert len(fig.data) == (3 if metric == "accuracy" else 1)  # a panel for each case
    units = [ablation_bars(t).layout.yaxis.title.text for t in tables.values()]
    assert units == ["increase of the loss (nats)"] * 3 + ["longest"]
    with refuses("no-such-metric", metric="losses"):
        ablation_bars(tables["loss"], metric="losses")


def test_roles_show_shares_and_what_is_left() -> None:
    fig = FIGURES["roles"]()
    assert heat(fig)[0].tolist() == [[0.5, 0.01, 0.0], [0.0, 0.0, 0.3], [0.19, 0.0, 0.0]]
    assert list(fig.data[0].text[0]) == ["50%", "1%", ""]
    assert [list(bar.x) for bar in fig.data[1:]] == [[0.02, 0.5], [1.0, 0.97]]
    said = {a.text for a in fig.layout.annotations}
    assert {"0.02", "0.5", "100%", "97%"} <= said
    assert "C1" in fig.layout.yaxis.labelalias["1"]


@pytest.mark.parametrize(
    ("energy", "left", "code"),
    [
        ([[1.5]], {"FVU": {"nothing": 0.1}}, "values-out-of-range"),
        ([[0.5]], {}, "ablations-do-not-match"),
        ([[0.5]], {"FVU": {"nothing": 0.1}, "KL": {"holders": 0.1}}, "ablations-do-not-match"),
    ],
)
def test_roles_refuse_what_does_not_fit(energy, left, code) -> None:
    with refuses(code):
        head_roles_figure(energy, ["A"], ["L0H0"], left)


def test_few_heads_fill_the_shapley_figure() -> None:
    fig = shapley_and_interactions([1.0, 2.0], np.eye(2), ["L0H0", "L0H1"])
    margin, width = fig.layout.margin, fig.layout.width
    reach = margin.l + fig.layout.xaxis2.domain[1] * (width - margin.l - margin.r)
    assert 0 < width - reach < 70  # the colour bar's place


def test_a_trace_of_an_interaction_looks_like_one() -> None:
    fig = shapley_and_interactions([3.0, 0.1], [[0, 0.005], [0.005, 0]], ["L0H0", "L0H1"])
    assert (fig.layout.coloraxis.cmin, fig.layout.coloraxis.cmax) == pytest.approx((-0.3, 0.3))


def test_shapley_bars_and_a_blank_diagonal() -> None:
    pairs = np.array([[9.0, 0.5, -2.0], [0.5, 9.0, 1.0], [-2.0, 1.0, 9.0]])
    fig = shapley_and_interactions(
        [1.0, -2.0, 0.5], pairs, HEADS, low=[0.5, -3, 0], high=[2, -1, 1]
    )
    assert list(fig.data[0].y) == [1.0, -2.0, 0.5]
    assert list(fig.data[0].error_y.array) == [1.0, 1.0, 0.5]
    assert list(fig.data[0].error_y.arrayminus) == [0.5, 1.0, 0.5]
    (shown,) = heat(fig)
    np.testing.assert_array_equal(shown, np.where(np.eye(3) > 0, np.nan, pairs))
    assert (fig.layout.coloraxis.cmin, fig.layout.coloraxis.cmax) == (-2, 2)


def test_wires_are_as_thick_as_what_they_carry() -> None:
    pattern, gate = np.array([[0.75, 0.25], [0.0, 1.0]]), np.array([[1.0, 0.5], [1.0, 0.0]])
    effects = np.array([[4.0, -2.0], [0.0, 1.0]])
    fig = wiring_diagram(pattern, effects, ["A", "B1"], HEADS[:2], ["x", "y"], gate=gate)
    ribbons = {t.name: t for t in fig.data if t.fill == "toself"}

    def thickness(name: str) -> list[float]:
        parts, part = [], []
        for y in ribbons[name].y:
            if y is None:
                parts.append(part)
                part = []
            else:
                part.append(y)
        return [abs(p[0] - p[-1]) for p in parts]

    attended, passed = thickness("attention"), thickness("let through by the gate")
    assert np.divide(attended, attended[0]) == pytest.approx([1, 1 / 3, 4 / 3], rel=0.02)
    assert np.divide(passed, attended[0]) == pytest.approx([1, 1 / 6], rel=0.02)
    raised, lowered = thickness("raises the logit"), thickness("lowers the logit")
    assert np.divide(raised, raised[0]) == pytest.approx([1, 1 / 4], rel=0.02)
    assert np.divide(lowered, raised[0]) == pytest.approx([1 / 2], rel=0.02)
    said = next(t.text for t in fig.data if t.mode == "markers")
    assert said[0] == "L0H0 on A: attention 0.750, gate 1.000"


def test_the_predicted_tokens_wires_stand_out() -> None:
    effects = np.array([[4.0, -2.0], [0.0, 1.0]])
    fig = wiring_diagram(np.eye(2), effects, ["A", "B1"], HEADS[:2], ["x", "y"], predicted=1)
    colors = {t.name: t.fillcolor for t in fig.data if t.fill == "toself" and t.x[0] is not None}
    assert colors["raises the logit of y"] != colors["raises another logit"]
    assert colors["lowers the logit of y"] == "#CF6F14"


def test_wiring_leaves_out_the_least_of_many_heads_and_says_so() -> None:
    heads = [f"L0H{h}" for h in range(20)]
    effects = np.ones((20, 14))
    effects[7], effects[:, 3] = 5.0, 0.01
    fig = wiring_diagram(
        np.full((20, 2), 0.5),
        effects,
        ["A", "B1"],
        heads,
        [f"t{v}" for v in range(14)],
        predicted=3,
    )
    words = " ".join(a.text for a in fig.layout.annotations)
    assert "4 heads and 2 output tokens" in words
    assert "L0H7" in words
    assert "<b>t3 " in words  # the predicted one stays, however small


def test_labels_are_shown_literally() -> None:
    fig = gate_maps([[[0.0, 1.0], [0.5, 0.0]]], ["<b>x</b>", "&lt;"], ["</script>"])
    assert fig.layout.xaxis.labelalias == {"0": "&lt;b&gt;x&lt;/b&gt;", "1": "&amp;lt;"}
    assert fig.layout.annotations[0].text == "&lt;/script&gt;"


BAD = {
    "a misshapen array": (
        lambda: gate_maps(GATES[0], TOKENS, HEADS),
        "array-wrong-shape",
    ),
    "an empty array": (lambda: gate_maps(GATES[:0], TOKENS, []), "array-wrong-shape"),
    "too few head labels": (lambda: gate_maps(GATES, TOKENS, HEADS[:2]), "wrong-number-of-labels"),
    "one string for labels": (lambda: gate_maps(GATES, TOKENS, "abc"), "wrong-number-of-labels"),
    "too many token labels": (
        lambda: gate_maps(GATES, [*TOKENS, "x"], HEADS),
        "wrong-number-of-labels",
    ),
    "negative gates": (lambda: gate_maps(-GATES, TOKENS, HEADS), "values-out-of-range"),
    "NaN": (lambda: gate_maps(GATES * np.nan, TOKENS, HEADS), "array-not-finite"),
    "a ragged list": (lambda: gate_maps([[[1.0]], [[1.0, 2.0]]], [], []), "not-an-array"),
    "a tensor with gradient": (
        lambda: gate_maps(torch.zeros(3, 5, 5, requires_grad=True), TOKENS, HEADS),
        "not-an-array",
    ),
    "a map that is not square": (
        lambda: gate_maps(GATES[:, :4], TOKENS, HEADS),
        "pattern-not-square",
    ),
    "circuits of different heads": (
        lambda: circuit_maps(OV, QK[:2], TOKENS, HEADS),
        "array-wrong-shape",
    ),
    "attention above 1": (
        lambda: attention_patterns(2 * PATTERN, POSITIONS, HEADS),
        "values-out-of-range",
    ),
    "panels that differ": (
        lambda: loading_matrix({"a": OV[0]}, TOKENS, {"b": TOKENS}),
        "panels-do-not-match",
    ),
    "loadings of other rows": (
        lambda: loading_matrix(
            {"a": OV[0], "b": OV[0, :2]}, TOKENS, {"a": TOKENS, "b": TOKENS}
        ),
        "array-wrong-shape",
    ),
    "a share above 1": (
        lambda: before_after(
            Holdings("toy", HEADS[:1], [[1.5], [1.0]], {}), after(), ROWS
        ),
        "values-out-of-range",
    ),
    "a head that is not there": (
        lambda: before_after(before(), after(dead=[3]), ROWS),
        "figure-names-no-such-head",
    ),
    "a representation that is not there": (
        lambda: before_after(before(), after(not_learnt=[7]), ROWS),
        "no-such-representation",
    ),
    "no representations": (lambda: before_after(before(), after(), {}), "no-representations"),
    "a history without steps": (
        lambda: loss_curves(history(1).drop(columns="step")),
        "column-missing",
    ),
    "an empty history": (lambda: loss_curves(history(1)[:0]), "table-empty"),
    "a history of nothing": (
        lambda: loss_curves(history(1)[["step"]]),
        "nothing-to-draw-of-history",
    ),
    "a run that is not there": (lambda: loss_curves(history(2), selected=9), "no-such-run"),
    "alpha zero": (lambda: sweep_curves(sweep().assign(alpha=0.0)), "alpha-not-positive"),
    "more clean runs than runs": (
        lambda: reliability(results().assign(runs=1)),
        "more-clean-than-runs",
    ),
    "a recipe twice": (lambda: reliability(pd.concat([results()] * 2)), "reliability-row-twice"),
    "a cell twice": (lambda: phase_diagram(pd.concat([phases()] * 2)), "phase-cell-twice"),
    "a fraction above 1": (
        lambda: phase_diagram(phases().assign(learnt=2.0)),
        "values-out-of-range",
    ),
    "phases of nothing": (
        lambda: phase_diagram(phases()[["heads", "trigrams"]]),
        "nothing-to-draw-of-phase",
    ),
    "two rows for one bar": (
        lambda: ablation_bars(pd.concat([effects()] * 2)),
        "two-rows-for-one-bar",
    ),
    "half an interval": (
        lambda: shapley_and_interactions([1.0], [[0.0]], ["a"], low=[0.0]),
        "one-end-of-interval",
    ),
    "a prediction outside": (
        lambda: wiring_diagram(PATTERN[:, -1], OV[:, 0], POSITIONS, HEADS, TOKENS, predicted=5),
        "prediction-outside-outputs",
    ),
}  # fmt: skip


@pytest.mark.parametrize("values", [[0.01], [0.009, 0.016], [0.02, 3.0], [1e-9, 1.0], [0.3, 0.3]])
def test_log_axes_hold_their_values_and_at_least_one_label(values: list[float]) -> None:
    axis = log_axis(values, "FVU")
    low, high = axis["range"]
    assert low < np.log10(min(values)) <= np.log10(max(values)) < high
    shown = [v for v in axis["tickvals"] if low <= np.log10(v) <= high]
    assert 1 <= len(shown) <= 8
    assert all(
        float(t.replace("−", "-")) == pytest.approx(v)
        for t, v in zip(axis["ticktext"], axis["tickvals"], strict=True)
    )


def test_a_figure_spans_one_or_two_columns() -> None:
    with refuses("bad-figure-width"):
        style.width_of(3)


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_in_one_sentence(name: str) -> None:
    draw, code = BAD[name]
    with refuses(code) as caught:
        draw()
    sentence = str(caught.value)
    assert sentence.endswith(".")
    assert "\n" not in sentence


def test_a_point_stands_at_its_numbers_and_the_original_at_the_edge():
    fig = FIGURES["point"]()
    block = [t for t in fig.data if t.name == "block"]
    assert [(*t.x, *t.y) for t in block] == [(4.5, 0.02), (1.2, 0.02)]
    assert block[0].error_y.array[0] == pytest.approx(0.003)
    assert block[0].error_y.arrayminus[0] == pytest.approx(0.002)
    assert [t.y[0] for t in fig.data if t.name == "original"] == [0.001] * 2
    assert [list(t.x) for t in fig.data if t.name == "topk"] == [[1.0, 2.0], [24.0, 24.0]]


def test_heads_stand_by_what_they_hold():
    fig = FIGURES["head_holdings"]()
    assert list(fig.data[0].y) == [0.02, 0.01, 0.0]
    assert fig.layout.yaxis.title.text == "positions it alone holds"
    with refuses("column-missing", column="effect"):
        head_effects({"original": holding(3)})


def test_an_edge_is_drawn_signed_and_white_at_zero_with_its_sum() -> None:
    fig = FIGURES["edge"]()
    for i, name in enumerate(("coloraxis", "coloraxis2")):
        limit = np.abs(OV[0, :3, :4] - i).max()
        assert (fig.layout[name].cmin, fig.layout[name].cmax) == (-limit, limit)
        assert fig.layout[name].colorscale[2] == (0.5, "#FFFFFF")
    assert list(fig.data[2].x) == [0.3, -0.1, 0.0]
    colors = fig.data[2].marker.color
    assert colors[0] == colors[2] != colors[1]
    said = " ".join(note.text for note in fig.layout.annotations)
    assert f"{OV[0, :3, :4].sum():.2f}" in said
    assert "0.20" in said
    with refuses("nothing-named"):
        qk_attribution({})


def test_a_ladder_draws_what_stands_beside_it_as_lines() -> None:
    fig = FIGURES["ladder"]()
    assert list(fig.data[0].x) == ["nothing opened", "opened at random", "20 steps"]
    assert sorted(shape.line.dash for shape in fig.layout.shapes) == ["dash", "dash", "dot", "dot"]
    assert fig.layout.yaxis.type == "log"
    with refuses("nothing-named"):
        adversary_ladder({})
