"""Figures in files: with a browser, without one, and without the network."""

import html.parser
import logging
import os
import re
import socket
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import plotly.io as pio
import pytest
from refusals import refuses

from gated_interp.plots import browser_found, gate_maps, save, save_figure, save_figures

DATA = pd.DataFrame({"head": ["L0H0", "L0H0"], "gate": [0.1, 1 / 3]})


def figure() -> go.Figure:
    return gate_maps(np.eye(3)[None], ["A", "B1", "</script>"], ["L0H0"], title="Gates")


@pytest.fixture
def no_browser(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(save, "browser_found", lambda: None)


@pytest.fixture
def browser() -> str:
    found = browser_found()
    if found is None and not os.environ.get("CI"):
        pytest.skip("no Chrome or Chromium here; static export is not tested")
    assert found, "CI must have a Chrome or Chromium"
    return found


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


def test_html_and_csv_without_a_browser_and_one_sentence(tmp_path: Path, no_browser: None) -> None:
    said: list[str] = []
    stem = tmp_path / "new" / "gates-0.2"
    written = save_figure(figure(), DATA, stem, ("svg", "png"), say=said.append)
    assert written == [stem.with_name("gates-0.2.html"), stem.with_name("gates-0.2.csv")]
    assert len(said) == 1
    assert "install Chromium or Chrome" in said[0]
    assert "SVG, PNG" in said[0]
    assert said[0].count(".") == 1
    assert sorted(p.name for p in stem.parent.iterdir()) == ["gates-0.2.csv", "gates-0.2.html"]
    # For HTML alone nothing is missing.
    save_figure(figure(), DATA, stem, ("html",), say=said.append)
    assert len(said) == 1


def test_the_sentence_is_a_warning_by_default(tmp_path: Path, no_browser: None) -> None:
    with pytest.warns(UserWarning, match="install Chromium"):
        save_figure(figure(), DATA, tmp_path / "gates", ("pdf",))


def test_a_browser_that_fails_is_told_and_the_rest_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(*_: object) -> list[bytes]:
        raise RuntimeError("it crashed.\nwith details")

    monkeypatch.setattr(save, "browser_found", lambda: "chromium")
    monkeypatch.setattr(save, "_render", broken)
    said: list[str] = []
    written = save_figure(figure(), DATA, tmp_path / "gates", ("svg",), say=said.append)
    assert [p.suffix for p in written] == [".html", ".csv"]
    assert "failed in the browser (it crashed)" in said[0]
    assert "\n" not in said[0]


def test_the_drivers_log_is_not_heard_and_the_users_is(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def chatty(jobs: list[object], scale: float) -> list[bytes]:
        logging.getLogger("choreographer.channels.pipe").error("JSONError. Ignoring")
        logging.getLogger("kaleido.kaleido").critical("something")
        logging.getLogger("mine").error("heard")
        return [b"picture"]

    monkeypatch.setattr(save, "_render", chatty)
    monkeypatch.setattr(save, "browser_found", lambda: "chromium")
    assert save.drawn([(figure(), "png")]) == ([b"picture"], "")
    assert caplog.messages == ["heard"]
    logging.getLogger("choreographer.channels.pipe").error("its own user's")
    assert caplog.messages == ["heard", "its own user's"]


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


@pytest.fixture
def gateway(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[bytes]]:
    """Stands where the browser's proxy would be, and notes whatever it asks for."""
    asked: list[bytes] = []
    server = socket.create_server(("127.0.0.1", 0))

    def listen() -> None:
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            with connection:
                connection.settimeout(2)
                asked.append(connection.recv(200))

    thread = threading.Thread(target=listen, daemon=True)
    thread.start()
    monkeypatch.setattr(save, "NO_NETWORK", f"127.0.0.1:{server.getsockname()[1]}")
    yield asked
    server.shutdown(socket.SHUT_RDWR)
    server.close()
    thread.join(5)


def test_shipped_figures_need_no_font_of_the_reader() -> None:
    figures = list((Path(__file__).parents[1] / "figures").glob("*.svg"))
    assert len(figures) > 20
    assert [path.name for path in figures if b"<text" in path.read_bytes()] == []


@pytest.mark.browser
@pytest.mark.slow
def test_static_formats_are_drawn_once_and_again_the_same(
    tmp_path: Path, browser: str, gateway: list[bytes]
) -> None:
    def say(sentence: str) -> None:
        raise AssertionError(sentence)

    figures = {tmp_path / n / "gates": (figure(), DATA) for n in ("one", "two")}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        written = save_figures(figures, ("svg", "png", "pdf", "html"), say=say)
    assert len(written) == 10
    one, two = tmp_path / "one", tmp_path / "two"
    svg = (one / "gates.svg").read_bytes()
    assert svg.startswith(b"<svg")
    assert b'aria-label="&lt;/script&gt;"' in svg
    assert b"<text" not in svg
    assert svg == (two / "gates.svg").read_bytes()
    assert len(svg) < 60_000
    assert (one / "gates.pdf").read_bytes().startswith(b"%PDF")
    png = (one / "gates.png").read_bytes()
    assert png.startswith(b"\x89PNG")
    width, height = (int.from_bytes(png[i : i + 4], "big") for i in (16, 20))
    fig = figure()
    assert (width, height) == (3 * fig.layout.width, 3 * fig.layout.height)
    assert pio.templates.default == "plotly"
    # Chromium itself phones home, into the proxy that nobody answers; our page asks for nothing.
    assert not [g for g in gateway if re.search(rb"plot|mathjax|cdn|jsdelivr|unpkg", g.lower())]
    # And the gateway would have seen it: a figure with a picture from elsewhere asks for it there.
    fig.add_layout_image(source="http://plot.invalid/x.png", x=0, y=1, sizex=1, sizey=1)
    save_figure(fig, DATA, tmp_path / "three", ("png",), say=lambda _: None)
    assert [g for g in gateway if b"plot.invalid" in g]
