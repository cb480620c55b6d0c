"""Figures in files."""

import html.parser
from pathlib import Path

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import plotly.io as pio
import pytest
from refusals import refuses

from gated_interp.plots import gate_maps, save_figure, save_figures

DATA = pd.DataFrame({"head": ["L0H0", "L0H0"], "gate": [0.1, 1 / 3]})


def figure() -> go.Figure:
    return gate_maps(np.eye(3)[None], ["A", "B1", "</script>"], ["L0H0"], title="Gates")


class Sources(html.parser.HTMLParser):
    """What a page would load."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        wanted = ("src", "href", "data", "action")
        self.found += [v for k, v in attrs if k in wanted and v and tag != "a"]


def sources(page: Path) -> list[str]:
    """What the page loads from elsewhere; what a data URI holds is in the page."""
    reader = Sources()
    reader.feed(page.read_text(encoding="utf-8"))
    return [found for found in reader.found if not found.startswith("data:")]


def test_what_paper_cannot_show_is_written_as_html_and_said(tmp_path: Path) -> None:
    said: list[str] = []
    stem, pie = tmp_path / "new" / "gates-0.2", go.Figure(go.Pie(values=[1, 2]))
    written = save_figure(pie, DATA, stem, ("svg", "png"), say=said.append)
    assert written == [stem.with_name("gates-0.2.html"), stem.with_name("gates-0.2.csv")]
    assert said == [
        "gates-0.2: SVG, PDF and PNG cannot show a trace of type pie, which this figure has. "
        "Use the HTML page instead."
    ]
    assert sorted(p.name for p in stem.parent.iterdir()) == ["gates-0.2.csv", "gates-0.2.html"]
    # For HTML alone nothing is missing.
    save_figure(pie, DATA, stem, ("html",), say=said.append)
    assert len(said) == 1
    with pytest.warns(UserWarning, match="a trace of type pie"):
        save_figure(pie, DATA, stem, ("pdf",))


def test_a_sign_that_no_font_has_is_a_box_and_said(tmp_path: Path) -> None:
    said: list[str] = []
    fig = gate_maps(np.eye(2)[None], ["A", "\u65e5"], ["L0H0"])
    written = save_figure(fig, DATA, tmp_path / "signs", ("svg",), say=said.append)
    assert [p.suffix for p in written] == [".svg", ".csv"]
    assert len(said) == 1
    assert "no sign for \u65e5" in said[0]
    assert 'aria-label="\u25a1"' in written[0].read_text(encoding="utf-8")


def test_csv_holds_the_data_and_several_tables_get_their_names(tmp_path: Path) -> None:
    save_figure(figure(), DATA, tmp_path / "one", ("html",))
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "one.csv"), DATA, rtol=1e-6)
    assert (tmp_path / "one.csv").read_bytes() == b"head,gate\nL0H0,0.1\nL0H0,0.3333333\n"
    tables = {"before": DATA, "after": DATA[:1]}
    written = save_figure(figure(), tables, tmp_path / "two", ("html",))
    assert [p.name for p in written] == ["two.html", "two-before.csv", "two-after.csv"]
    assert len(pd.read_csv(tmp_path / "two-after.csv")) == 1


def test_html_is_self_contained(tmp_path: Path) -> None:
    save_figure(figure(), DATA, tmp_path / "gates", ("html",))
    page = tmp_path / "gates.html"
    assert sources(page) == []
    assert page.stat().st_size > 1_000_000  # the script is inside
    first = page.read_bytes()
    save_figure(figure(), DATA, tmp_path / "gates", ("html",))
    assert page.read_bytes() == first


def test_pages_of_one_folder_can_share_the_script(tmp_path: Path) -> None:
    figures = {tmp_path / name: (figure(), DATA) for name in ("a", "b")}
    written = save_figures(figures, ("html",), plotlyjs="directory")
    names = [p.name for p in written]
    assert names == ["a.html", "plotly.min.js", "a.csv", "b.html", "b.csv"]
    for name in ("a", "b"):
        assert sources(tmp_path / f"{name}.html") == ["plotly.min.js"]
        assert (tmp_path / f"{name}.html").stat().st_size < 100_000


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        ({"formats": ("svg", "gif")}, "no-such-format"),
        ({"formats": ()}, "no-such-format"),
        ({"data": {}}, "figure-without-table"),
        ({"plotlyjs": "cdn"}, "not-one-of"),
    ],
)
def test_bad_input_writes_nothing(tmp_path: Path, arguments: dict[str, object], code: str) -> None:
    given = {"data": DATA, "formats": ("html",), **arguments}
    with refuses(code):
        save_figure(figure(), path_stem=tmp_path / "x", **given)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with refuses("cannot-write"):
        save_figure(figure(), DATA, tmp_path / "file" / "x", ("html",))


def test_shipped_figures_need_no_font_of_the_reader() -> None:
    figures = list((Path(__file__).parents[1] / "figures").glob("*.svg"))
    assert len(figures) > 20
    assert [path.name for path in figures if b"<text" in path.read_bytes()] == []


def test_static_formats_are_the_same_each_time(tmp_path: Path) -> None:
    def say(sentence: str) -> None:
        raise AssertionError(sentence)

    figures = {tmp_path / n / "gates": (figure(), DATA) for n in ("one", "two")}
    written = save_figures(figures, ("svg", "png", "pdf"), say=say)
    assert len(written) == 8
    one, two = tmp_path / "one", tmp_path / "two"
    for kind in ("svg", "png", "pdf"):
        assert (one / f"gates.{kind}").read_bytes() == (two / f"gates.{kind}").read_bytes()
    assert pio.templates.default == "plotly"
