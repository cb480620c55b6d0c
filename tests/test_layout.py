"""Every figure of the package, as it stands on paper: nothing is cut, nothing overlaps."""

import layout
import pandas as pd
import plotly.graph_objects as go
import pytest
from test_plots import FIGURES

import gated_interp as gi
from gated_interp.experiments import figures
from gated_interp.experiments.sweep import SWEEP
from gated_interp.plots import phase_diagram
from gated_interp.plots import reliability as reliability_plot
from gated_interp.plots.paper import Drawing, Text, composed
from gated_interp.plots.paper.items import Run
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


# Points, of 1/72 inch, below which no journal prints a word.
LEAST = 6.0


def wrong_in(drawing: Drawing) -> list[str]:
    small = [t.words for t in drawing.texts if 0.75 * t.size < LEAST]
    return layout.faults(layout.measure(drawing)) + [f"{words!r} is too small" for words in small]


@pytest.mark.slow
@pytest.mark.parametrize("of", SHAPES)
def test_nothing_of_a_shipped_model_is_cut_or_overlaps(of: str) -> None:
    check(of_shape(of))


def test_nothing_of_many_runs_is_cut_or_overlaps() -> None:
    check(of_studies())


def check(found: dict[str, go.Figure]) -> None:
    wrong = {}
    for name, fig in found.items():
        drawing = composed(fig)
        assert drawing.texts
        assert drawing.panels
        said = wrong_in(drawing) + layout.unnamed(fig.to_plotly_json())
        if said:
            wrong[name] = said
    assert not wrong


@pytest.mark.parametrize("columns", [1, 2])
@pytest.mark.parametrize("name", FIGURES)
def test_every_plot_is_readable_in_one_column_and_in_two(name: str, columns: int) -> None:
    fig = FIGURES[name](title="What this shows, in a few words", columns=columns)
    drawing = composed(fig)
    assert drawing.width / 96 == {1: 3.25, 2: 6.75}[columns]
    assert drawing.height / 96 < 11.0
    assert drawing.title == "What this shows, in a few words"
    assert wrong_in(drawing) == []


def text(words: str, x: float | int, y: float | int, kind: str = "note") -> Text:
    return Text((Run(words, False, "#222222"),), x, y, 12.0, kind=kind)


BROKEN: dict[str, tuple[list[Text], str]] = {
    "a text over the edge": ([text("selected run (15", 280, 60)], "leaves the figure"),
    "two texts": ([text("left", 20, 60), text("right", 30, 60)], "touches"),
    "a legend that cuts": ([text("% of the loading", 10, 50, "legend")], "cut by its legend"),
    "a label half in a panel": ([text("half in", 180, 110)], "crosses the edge"),
    "a tick in a panel": ([text("5", 120, 110, "tick")], "crosses the edge"),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_the_check_sees_a_fault(fault: str) -> None:
    texts, words = BROKEN[fault]
    legend = (0.0, 40.0, 60.0, 52.0) if "legend" in fault else None
    panels = [(80.0, 90.0, 200.0, 170.0)]
    fine = text("fine", 5, 20)
    assert (
        layout.faults(layout.measure(Drawing(300, 200, "white", [fine], panels, legend, ""))) == []
    )
    drawing = Drawing(300, 200, "white", [fine, *texts], panels, legend, "")
    (said,) = layout.faults(layout.measure(drawing))
    assert words in said


def test_the_check_sees_a_legend_over_data() -> None:
    panels, legend = [(80.0, 90.0, 200.0, 170.0)], (90.0, 95.0, 150.0, 115.0)
    drawing = Drawing(300, 200, "white", [], panels, legend, "")
    assert layout.faults(layout.measure(drawing)) == ["the legend lies over data"]
