"""Figures on paper: SVG, PDF and PNG of a plotly figure, without a browser.

Plotly's own script needs a browser. What our figures use of plotly is little, and every panel is
placed to the pixel. So this reads the figure's JSON, works out where each line, letter and cell
goes (:func:`composed`), and has matplotlib paint that (:func:`painted`). What it does not know is
refused, never left out.
"""

from gated_interp.plots.paper.compose import composed
from gated_interp.plots.paper.items import Drawing, Text
from gated_interp.plots.paper.letters import lacking
from gated_interp.plots.paper.paint import painted

__all__ = ["Drawing", "Text", "composed", "lacking", "painted"]
