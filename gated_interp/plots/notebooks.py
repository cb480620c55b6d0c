"""Figures in notebooks: alive where the notebook runs, still pictures where it is only read."""

import sys

import plotly.io as pio

from gated_interp.plots.save import browser_found


def show_in_notebooks() -> str:
    """Set how a figure that ends a cell is shown, and return the name of plotly's renderer.

    Interactive from plotly's notebook extension, without a script in every output; where a Chrome
    is installed also as PNG, which code hosts show.
    """
    if "google.colab" in sys.modules:
        renderer = "colab"  # has no extension, but a script of its own
    else:
        renderer = "plotly_mimetype+png" if browser_found() else "plotly_mimetype"
        pio.renderers["png"].scale = 1.5
    pio.renderers.default = renderer
    return renderer
