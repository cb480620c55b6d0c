"""Every figure of the package, drawn where no Arial is: nothing is cut, nothing overlaps."""

from pathlib import Path
from typing import Any

import layout
import pandas as pd
import plotly.graph_objects as go
import pytest
from test_plots import FIGURES

import gated_interp as gi
from gated_interp.experiments import figures
from gated_interp.experiments.sweep import SWEEP
from gated_interp.plots import phase_diagram, save_figure
from gated_interp.plots import reliability as reliability_plot
from gated_interp.plots.fonts import text_width
from gated_interp.plots.save import drawn
from gated_interp.subject import Subject
from gated_interp.views.registry import shown_of

SHAPES = ("2H3ST", "3H4ST", "4H5ST")


def of_shape(shape: str) -> dict[str, go.Figure]:
    """Every kind of figure of a shipped model, and those of its toy."""
    gated = gi.load(f"{shape}-gated")
    subject = Subject.of(gated, name=shape)
    found = {f"{s.name} {s.side}": s.figure for s in shown_of(subject) if s.draw is not None}
    return found | {"training": figures.training_of(history(), 15, shape)[0]}


def history() -> pd.DataFrame:
    columns = ["reconstruction", "fvu", "penalty", "l0"]
    rows = [{"run": r, "step": s, **dict.fromkeys(columns, 1 / (1 + s + r))}
            for r in (3, 15) for s in range(0, 4001, 80)]  # fmt: skip
    return pd.DataFrame(rows)


def of_studies() -> dict[str, go.Figure]:
    """The figures of many runs, from tables as long as the published ones."""
    names = ["reliable", "fixed weights instead of an FVU target", "fewer open gates, higher FVU"]
    columns = ["experiment", "recipe", "runs", "clean", "low", "high", "fvu", "fvu_low",
               "fvu_high"]  # fmt: skip
    rows = [[e, r, 64, 61 - 30 * i, 0.87 - 0.5 * i, 0.98 - 0.3 * i, f, 0.9 * f, 1.2 * f]
            for e in SHAPES for i, r in enumerate([*names, "reference"][:2])
            for f in [0.007 * 9**i]]  # fmt: skip
    table = pd.DataFrame(rows, columns=columns)
    cells = [[h, t, float(t < 3 * h), 1.0 if t < 3 * h else None, 1.0 if t < 3 * h else None]
             for h in range(1, 9) for t in range(1, 13)]  # fmt: skip
    phases = pd.DataFrame(cells, columns=["heads", "trigrams", "learnt", "distributed", "success"])
    sweep = [[h, h + 1, a, 8, 0.5, 0.3, 0.7, 1.0, 0.5, 0.02 * a]
             for h in (2, 3, 4) for a in (0.05, 0.1, 0.2, 0.5)]  # fmt: skip
    swept = pd.DataFrame(sweep, columns=["heads", "trigrams", "alpha", "gated_runs", "success",
                                         "success_low", "success_high", "learnt", "distributed",
                                         "fvu_median"])  # fmt: skip
    return {
        "reliability": figures.reliability_figure(table[table["recipe"] == "reliable"]),
        "recipes": reliability_plot(table, target=0.95, title="Success over seeds, by recipe"),
        "recipes-1": reliability_plot(table, target=0.95, title="Success", columns=1),
        "phase": phase_diagram(phases, title="Toys and gated blocks, by heads and trigrams"),
        "phase-1": phase_diagram(phases, title="Toys and gated blocks", columns=1),
    } | {shown.name: shown.figure for shown in SWEEP.views(swept)}


@pytest.mark.parametrize("of", [*SHAPES, "studies"])
def test_nothing_is_cut_and_nothing_overlaps(tab: Any, of: str) -> None:
    found = of_studies() if of == "studies" else of_shape(of)
    images, trouble = drawn([(fig, "svg") for fig in found.values()])
    assert not trouble
    wrong = {}
    for (name, fig), image in zip(found.items(), images, strict=True):
        assert b"<text" not in image, f"{name} needs a font"
        seen = layout.measure_svg(tab.page, image)
        assert seen["texts"]
        assert seen["panels"]
        said = layout.faults(seen) + layout.unnamed(fig.to_plotly_json())
        if said:
            wrong[name] = said
    assert not wrong


def test_every_plot_is_readable_in_one_column_and_in_two(tab: Any) -> None:
    found = {
        f"{name} in {columns}": draw(title="What this shows, in a few words", columns=columns)
        for name, draw in FIGURES.items()
        for columns in (1, 2)
    }
    images, trouble = drawn([(fig, "svg") for fig in found.values()])
    assert not trouble
    seen = [layout.measure_svg(tab.page, image) for image in images]
    wrong = {name: layout.faults(boxes) for name, boxes in zip(found, seen, strict=True)}
    assert not {name: said for name, said in wrong.items() if said}


def test_what_plotly_writes_by_itself_is_outlined_too(tab: Any) -> None:
    fig = go.Figure(go.Scatter(x=[2e-6, -4e-6], y=[1e7, 3e-4]))
    (image,), _ = drawn([(fig.update_layout(template="gated_interp"), "svg")])
    assert "2μ" in {t["said"] for t in layout.measure_svg(tab.page, image)["texts"]}
    assert b"<text" not in image


def test_a_page_draws_with_the_font_it_brings(tab: Any, tmp_path: Path) -> None:
    found = of_studies()["reliability"]
    save_figure(found, pd.DataFrame({"a": [1]}), tmp_path / "page", ("html",))
    tab.page.goto((tmp_path / "page.html").as_uri())
    tab.page.wait_for_selector(".xtick text")
    assert tab.page.evaluate("document.fonts.check('16px gated-interp')")
    measured = tab.page.evaluate(
        """() => { const t = [...document.querySelectorAll(".annotation-text")]
          .find((t) => t.textContent === "61 of 64"); return t.getComputedTextLength(); }"""
    )
    assert measured == pytest.approx(text_width("61 of 64", 9.5), abs=0.6)
    seen = tab.page.evaluate(f"() => ({layout.MEASURE})(document.querySelector('.svg-container'))")
    assert layout.faults(seen) == []


BROKEN: dict[str, tuple[str, str]] = {
    "a text over the edge": ('<text x="280" y="60">selected run (15</text>', "leaves the figure"),
    "two texts": ('<text x="20" y="60">left</text><text x="30" y="60">right</text>', "touches"),
    "a legend that cuts": (
        '<g class="legend"><rect class="bg" width="60" height="12" y="40" fill="none"/>'
        '<text class="legendtext" x="10" y="50">% of the loading</text></g>',
        "cut by its legend",
    ),
    "a legend over data": (
        '<g class="legend"><rect class="bg" x="90" y="95" width="60" height="20"/></g>',
        "over data",
    ),
    "a label half in a panel": ('<text x="180" y="110">half in</text>', "crosses the edge"),
    "a tick in a panel": ('<text class="xtick" x="120" y="110">5</text>', "crosses the edge"),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_the_check_sees_a_fault(tab: Any, fault: str) -> None:
    drawing, words = BROKEN[fault]
    panel = (
        '<clipPath class="plotclip" id="cxyplot"></clipPath>'
        '<clipPath id="cxy"><rect x="80" y="90" width="120" height="80"/></clipPath>'
    )
    svg = (
        '<svg class="main-svg" width="300" height="200" font-size="12"><defs>'
        f'{panel}</defs><text x="5" y="20">fine</text>{{}}</svg>'
    )
    assert layout.faults(layout.measure_svg(tab.page, svg.format(""))) == []
    (said,) = layout.faults(layout.measure_svg(tab.page, svg.format(drawing)))
    assert words in said
