"""Pictures beside figures and explorers in notebooks."""

import base64
import struct

import plotly.graph_objects as go
import plotly.io as pio
import pytest

from gated_interp.explorer import HeadExplorer
from gated_interp.models.analytic import manual_model
from gated_interp.plots import pictures
from gated_interp.plots.paper import composed
from gated_interp.plots.pictures import MIMETYPE, RENDERER, picture_beside, show_with_pictures

FIGURE = go.Figure(go.Bar(y=[1, 2]), layout={"width": 320, "height": 240})
WIDGET = "application/vnd.jupyter.widget-view+json"


@pytest.fixture
def drawings(monkeypatch):
    """Plain Jupyter, where a figure is drawn as the bytes of its scale; what was drawn."""
    seen = []

    def paint(drawing, kind, scale):
        seen.append((drawing, kind))
        return str(scale).encode()

    monkeypatch.setattr(pictures, "painted", paint)
    before = pio.renderers.default
    pio.renderers.default = "plotly_mimetype+notebook"
    yield seen
    pio.renderers.default = before


def decoded(bundle):
    return base64.b64decode(bundle["image/png"])


def test_a_figure_is_shown_with_its_picture(drawings):
    assert show_with_pictures() == pio.renderers.default == RENDERER
    bundle = pio.renderers[RENDERER].to_mimebundle(FIGURE.to_dict())
    assert set(bundle) == {MIMETYPE, "image/png"}
    assert bundle[MIMETYPE]["data"][0]["y"] == [1, 2]
    # At its own size: it gives way to the live figure when the mouse comes.
    assert decoded(bundle) == b"1.0"
    assert [kind for _, kind in drawings] == ["png"]


def test_who_saves_notebooks_may_have_sharper_pictures(drawings, monkeypatch):
    show_with_pictures()
    monkeypatch.setenv(pictures.SCALE, "2")
    assert decoded(picture_beside(lambda: FIGURE)) == b"2.0"


def test_what_paper_cannot_show_is_shown_alone(drawings):
    show_with_pictures()
    pie = go.Figure(go.Pie(values=[1, 2]))
    assert set(pio.renderers[RENDERER].to_mimebundle(pie.to_dict())) == {MIMETYPE}
    assert picture_beside(lambda: pie) == {}
    assert drawings == []


def test_elsewhere_plotlys_own_choice_stays(drawings):
    pio.renderers.default = "png"
    assert show_with_pictures() == pio.renderers.default == "png"
    assert picture_beside(lambda: FIGURE) == {}
    assert drawings == []


def test_an_explorer_has_a_picture_only_where_pictures_are_wanted(drawings):
    truth = manual_model(2, 3)
    explorer = HeadExplorer(truth.model, truth.task)
    assert set(explorer._repr_mimebundle_()) == {"text/plain", WIDGET}
    assert drawings == []
    show_with_pictures()
    assert set(explorer._repr_mimebundle_()) == {"text/plain", WIDGET, "image/png"}
    ((drawing, _),) = drawings
    assert drawing.texts == composed(explorer.snapshot()).texts


def test_a_real_picture_has_the_size_of_the_figure():
    before = pio.renderers.default
    pio.renderers.default = "plotly_mimetype"
    try:
        show_with_pictures()
        image = decoded(pio.renderers[RENDERER].to_mimebundle(FIGURE.to_dict()))
    finally:
        pio.renderers.default = before
    assert image.startswith(b"\x89PNG")
    assert struct.unpack(">II", image[16:24]) == (320, 240)
