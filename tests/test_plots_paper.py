"""Figures on paper: what stands where, what is refused, and what the files are like."""

import io
import re
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import matplotlib
import numpy as np
import plotly.graph_objects as go
import pytest
from PIL import Image
from refusals import refuses
from test_plots import FIGURES

from gated_interp.plots.layout import log_axis
from gated_interp.plots.paper import composed, painted
from gated_interp.plots.paper.colors import rgba, scaled
from gated_interp.plots.paper.items import Cells, Marks, Outline
from gated_interp.plots.style import SIGNED, TEMPLATE


def figure(*traces: object, **layout: object) -> go.Figure:
    given = {"template": TEMPLATE, "width": 300, "height": 200, **layout}
    return go.Figure(traces, {"margin": {"l": 50, "r": 50, "t": 50, "b": 50}, **given})


def items(fig: go.Figure, kind: type) -> list:
    return [item for item in composed(fig).items if isinstance(item, kind)]


def words(fig: go.Figure, kind: str) -> list[str]:
    return [text.words for text in composed(fig).texts if text.kind == kind]


# ---- where things stand


def test_points_and_lines_stand_at_their_values() -> None:
    look = {"marker": {"color": "#112233", "symbol": "square", "size": 7}}
    ends = {"xaxis": {"range": [0, 10]}, "yaxis": {"range": [0, 1]}}
    fig = figure(go.Scatter(x=[0, 5, None, 10], y=[0, 0.5, None, 1], **look), **ends)
    (marks,) = items(fig, Marks)
    np.testing.assert_allclose(marks.points[[0, 1, 3]], [[50, 150], [150, 100], [250, 50]])
    assert np.isnan(marks.points[2]).all()
    assert (marks.symbol, marks.size, marks.fill) == ("square", 7, "#112233")
    assert any(
        line.stroke == "#112233" and np.array_equal(line.points, marks.points, equal_nan=True)
        for line in items(fig, Outline)
    )


def test_logarithmic_values_and_their_ticks() -> None:
    axis = log_axis([0.01, 100.0], "y")
    low, high = axis["range"]
    fig = figure(go.Scatter(x=[0, 1], y=[0.01, 100.0], mode="markers"), yaxis=axis)
    (marks,) = items(fig, Marks)
    at = [150 - 100 * (p - low) / (high - low) for p in (-2, 2)]
    np.testing.assert_allclose(marks.points[:, 1], at)
    assert {"0.01", "1", "100"} <= set(words(fig, "tick"))
    # A line across stands at a value, and is part of what the axis spans.
    line = {"type": "line", "xref": "x domain", "x0": 0, "x1": 1, "yref": "y", "y0": 100.0}
    line |= {"y1": 100.0, "line": {"color": "#445566"}}
    fig = figure(go.Scatter(x=[0], y=[1.0]), yaxis={"type": "log"}, shapes=[line])
    (rule,) = [item for item in items(fig, Outline) if item.stroke == "#445566"]
    assert 50 < rule.points[0, 1] < 60
    assert rule.points[:, 0].tolist() == [50, 250]


def test_bars_side_by_side_stacked_and_from_a_base() -> None:
    x, color = ["a", "b"], {"color": "#112233"}
    two = [go.Bar(x=x, y=[1.0, 2.0], marker=color), go.Bar(x=x, y=[3.0, 4.0], marker=color)]

    def boxes(*traces: go.Bar, **layout: object) -> np.ndarray:
        fig = figure(*traces, yaxis={"range": [0, 10]}, **layout)
        filled = [i.points for i in items(fig, Outline) if i.fill == "#112233"]
        return np.array([[*p.min(0), *p.max(0)] for p in filled])

    grouped = boxes(*two, barmode="group", bargap=0)
    np.testing.assert_allclose(grouped[:, [0, 2]], [[50, 100], [150, 200], [100, 150], [200, 250]])
    np.testing.assert_allclose(grouped[:, 1], 150 - 10 * np.array([1, 2, 3, 4]))
    stacked = boxes(*two, barmode="stack", bargap=0)
    np.testing.assert_allclose(stacked[:, [1, 3]], [[140, 150], [130, 150], [110, 140], [90, 130]])
    based = boxes(go.Bar(x=[0], y=[2], base=[5], width=1, marker=color), barmode="overlay")
    np.testing.assert_allclose(based, [[50, 80, 250, 100]])


def test_intervals_end_at_their_values() -> None:
    error = {"type": "data", "symmetric": False, "array": [1.0], "arrayminus": [2.0],
             "color": "#445566", "thickness": 1, "width": 2}  # fmt: skip
    fig = figure(go.Scatter(x=[0], y=[5.0], error_y=error), yaxis={"range": [0, 10]})
    (bar,) = [item for item in items(fig, Outline) if item.stroke == "#445566"]
    assert np.nanmin(bar.points[:, 1]) == pytest.approx(90)
    assert np.nanmax(bar.points[:, 1]) == pytest.approx(120)


@pytest.mark.parametrize("upwards", [False, True])
def test_cells_have_their_colours_the_first_row_where_its_axis_has_it(upwards: bool) -> None:
    z, ends = [[-1.0, 0.0], [0.5, float("nan")]], [-0.5, 1.5]
    scale = {"colorscale": SIGNED, "cmin": -1, "cmax": 1}
    fig = figure(go.Heatmap(z=z, coloraxis="coloraxis"), coloraxis={**scale, "colorbar": bar()},
                 yaxis={"range": ends if upwards else ends[::-1]})  # fmt: skip
    cells = items(fig, Cells)[0]
    assert cells.frame == (50, 50, 250, 150)
    rows = cells.colors[::-1] if upwards else cells.colors
    assert tuple(rows[0, 0]) == pytest.approx(rgba(SIGNED[0][1]))
    assert tuple(rows[0, 1]) == (1, 1, 1, 1)  # white at zero
    assert rows[1, 1, 3] == 0  # nothing where there is no value
    # And so in the picture.
    image = np.asarray(Image.open(io.BytesIO(painted(composed(fig), "png", 1))).convert("RGB"))
    first = image[125, 100] if upwards else image[75, 100]
    np.testing.assert_allclose(first / 255, rgba(SIGNED[0][1])[:3], atol=0.01)


def bar() -> dict[str, object]:
    place = {"x": 1.02, "y": 0.5, "len": 90, "lenmode": "pixels", "thickness": 8, "ticklen": 2}
    return {**place, "outlinewidth": 0.5, "outlinecolor": "#666666", "title": {"text": "nats"}}


def test_colours_between_stops_are_mixed_and_beyond_the_ends_kept() -> None:
    scale = [[0, "#000000"], [1, "#FFFFFF"]]
    found = scaled(np.array([-5.0, 0.5, 9.0]), scale, 0.0, 1.0)
    np.testing.assert_allclose(found[:, 0], [0, 0.5, 1])
    assert rgba("rgba(255,0,0,0.5)") == (1, 0, 0, 0.5)
    assert rgba("teal") == rgba("#008080")


def test_marked_up_words() -> None:
    note = {"text": '<b>a</b> &lt;b&gt; <span style="color:#0072B2">c</span><br>$x^2$',
            "x": 0.5, "y": 0.5, "xref": "paper", "yref": "paper", "showarrow": False}  # fmt: skip
    first, second = composed(figure(go.Bar(y=[1]), annotations=[note])).texts[-2:]
    assert [(r.words, r.bold) for r in first.runs] == [("a", True), (" <b> ", False), ("c", False)]
    assert first.runs[2].color == "#0072B2"
    assert second.words == "$x^2$"
    assert first.y < 100 < second.y


def test_axis_numbers_have_one_precision_and_a_true_minus() -> None:
    fig = figure(go.Scatter(x=[0, 1], y=[-1.0, 1.0]), yaxis={"range": [-1, 1], "nticks": 5})
    assert words(fig, "tick")[-5:] == ["−1.0", "−0.5", "0.0", "0.5", "1.0"]
    fig = figure(go.Scatter(x=[0, 20000], y=[0, 1e-5], mode="lines"))
    assert {"0", "10k", "20k"} <= set(words(fig, "tick"))
    assert "1e−5" in words(fig, "tick")


# ---- what is refused


@pytest.mark.parametrize(
    ("fig", "what"),
    [
        (figure(go.Pie(values=[1])), "a trace of type pie"),
        (
            figure(go.Scatter(x=[1], y=[1], line={"shape": "spline"})),
            "shape of a trace of type scatter, line",
        ),
        (figure(go.Scatter(x=[1], y=[1], marker={"size": [1]})), "marks that differ in size"),
        (figure(go.Scatter(y=[1], marker={"symbol": "asterisk"})), "a mark of shape asterisk"),
        (figure(go.Heatmap(z=[[1]])), "a heat map without a colour axis"),
        (figure(go.Heatmap(z=[[1]], coloraxis="coloraxis")), "a colour axis without cmax"),
        (
            figure(go.Bar(y=[1]), annotations=[{"text": "a", "x": 0, "y": 0}]),
            "an annotation with an arrow",
        ),
        (figure(go.Bar(y=[1]), polar={"bgcolor": "red"}), "polar"),
        (figure(go.Bar(y=[1]), xaxis={"rangeslider": {"visible": True}}), "rangeslider of xaxis"),
    ],
)
def test_what_is_not_known_is_refused(fig: go.Figure, what: str) -> None:
    with refuses("figure-not-on-paper", what=what):
        composed(fig)


# ---- files


FEW = ("before_after", "ablation", "overview")


@pytest.mark.parametrize("name", FEW)
def test_files_have_the_width_of_a_column_and_bring_their_font(name: str) -> None:
    drawing = composed(FIGURES[name](title="A title", columns=1))
    svg = painted(drawing, "svg").decode()
    assert re.search(r'<svg [^>]*width="234pt"', svg)  # 3.25 inches
    assert "<text" not in svg
    assert "<title>A title</title>" in svg
    assert 'aria-label="A title"' in svg
    assert len(svg) < 100_000
    pdf = painted(drawing, "pdf")
    assert b"/MediaBox [ 0 0 234 " in pdf
    fonts = set(re.findall(rb"/BaseFont /[A-Z]+\+([\w-]+)", pdf))
    assert b"gated-interp" in fonts
    assert fonts <= {b"gated-interp", b"gated-interp-Bold"}
    assert b"/Type3" not in pdf  # which some journals refuse
    png = painted(drawing, "png")
    assert struct.unpack(">II", png[16:24]) == (3 * 312, int(3 * drawing.height))


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(FIGURES) - set(FEW)))
def test_every_figure_is_painted(name: str) -> None:
    svg = painted(composed(FIGURES[name]()), "svg").decode()
    assert re.search(r'<svg [^>]*width="486pt"', svg)  # 6.75 inches
    assert "<text" not in svg


def test_matplotlibs_user_keeps_their_settings_and_has_no_part_in_ours() -> None:
    drawing = composed(FIGURES["gate_maps"]())
    plain = painted(drawing, "svg")
    chosen = {"text.usetex": True, "svg.fonttype": "none", "lines.linewidth": 9, "font.size": 3}
    with matplotlib.rc_context(chosen):
        before = dict(matplotlib.rcParams)
        assert painted(drawing, "svg") == plain
        assert dict(matplotlib.rcParams) == before


def test_drawing_opens_no_window_and_composing_needs_no_matplotlib() -> None:
    code = """
import sys
from gated_interp.plots import gate_maps
from gated_interp.plots.paper import composed, painted
drawing = composed(gate_maps([[[1.0]]], ["A"], ["L0H0"]))
print("matplotlib" in sys.modules)
painted(drawing, "png")
print("matplotlib.pyplot" in sys.modules)
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["False", "False"]


def test_letters_of_a_pdf_are_text() -> None:
    pdf = painted(composed(figure(go.Bar(y=[1]), title={"text": "Find me"})), "pdf")
    pages = [zlib.decompress(part) for part in re.findall(rb"stream\r?\n(.*?)endstream", pdf, re.S)
             if part[:1] == b"x"]  # fmt: skip
    assert any(b"Tj" in page or b"TJ" in page for page in pages)


def test_figures_that_ship_are_as_wide_as_columns() -> None:
    found = sorted((Path(__file__).parents[1] / "figures").glob("*.svg"))
    heads = {path.name: path.read_text(encoding="utf-8")[:600] for path in found}
    assert len(heads) > 20
    wrong = {name for name, head in heads.items()
             if not re.search(r'<svg [^>]*width="(234|486)pt"', head)}  # fmt: skip
    assert not wrong
