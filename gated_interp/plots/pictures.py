"""Figures in a notebook: interactive where it runs, a picture where it is only read."""

import base64
import json
import os
from collections.abc import Callable
from typing import Any

import plotly.graph_objects as go
import plotly.io as pio
from plotly.io.base_renderers import MimetypeRenderer

from gated_interp.core.errors import GatedInterpError
from gated_interp.plots.paper import composed, painted

RENDERER = "gated_interp"
MIMETYPE = "application/vnd.plotly.v1+json"
# Image pixels per CSS pixel. JupyterLab shows a picture pixel for pixel until the mouse enters it
# and the figure takes its place: it must have the figure's size. Who saves a notebook for readers
# names more, and shows the pictures smaller.
SCALE = "GATED_INTERP_PICTURE_SCALE"
# What plotly chooses in a plain Jupyter; it puts a copy of its 5 MB script into the notebook.
PLAIN_JUPYTER = ("plotly_mimetype", "plotly_mimetype+notebook")


def show_with_pictures() -> str:
    """From now on, show each figure with a PNG beside it, which code hosts display.

    A figure that paper cannot show (one of another package) is shown without it. Outside a plain
    Jupyter (a hosted notebook service, an editor) plotly's own choice for that place stays.

    Returns:
        The name of plotly's default renderer from now on.
    """
    if pio.renderers.default in PLAIN_JUPYTER:
        pio.renderers[RENDERER] = _WithPicture()
        pio.renderers.default = RENDERER
    return str(pio.renderers.default)


def picture_beside(figure: Callable[[], go.Figure]) -> dict[str, str]:
    """``{"image/png": ...}`` of a figure, for what is shown beside it; only if pictures are wanted.

    That is after :func:`show_with_pictures`; else empty.
    """
    if pio.renderers.default != RENDERER:
        return {}
    try:
        image = painted(composed(figure()), "png", float(os.environ.get(SCALE, 1)))
    except GatedInterpError:
        return {}
    return {"image/png": base64.b64encode(image).decode("ascii")}


class _WithPicture(MimetypeRenderer):
    def to_mimebundle(self, fig_dict: dict[str, Any]) -> dict[str, Any]:
        bundle: dict[str, Any] = {MIMETYPE: json.loads(pio.to_json(fig_dict, validate=False))}
        return bundle | picture_beside(lambda: go.Figure(fig_dict))
