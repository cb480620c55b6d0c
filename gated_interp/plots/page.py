"""The page of an interactive figure, with the package's font loaded before it measures."""

import html
import json

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from gated_interp.plots.fonts import font_face, loaded_script


def interactive_page(fig: go.Figure, div_id: str, *, plotlyjs: str) -> str:
    """A whole HTML page of ``fig`` that needs no network and no font.

    Args:
        plotlyjs: ``inline`` or ``directory``, as in :func:`save_figure`.
    """
    figure = fig.to_html(
        include_plotlyjs=False,
        include_mathjax=False,
        full_html=False,
        div_id=div_id,
        config={"displaylogo": False},
    )
    library = (
        f"<script>{get_plotlyjs()}</script>"
        if plotlyjs == "inline"
        else '<script src="plotly.min.js" charset="utf-8"></script>'
    )
    words = fig.layout.title.text or div_id
    title = html.unescape(words.replace("<br>", " "))
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><link rel="icon" href="data:,">
<title>{html.escape(title)}</title>
<style>{font_face(characters(fig))}</style>
{library}
<script>
// Drawn earlier, a figure would be laid out for another font.
const newPlot = Plotly.newPlot;
Plotly.newPlot = (...figure) => {loaded_script()}.then(() => newPlot(...figure));
</script>
</head><body>{figure}</body></html>
"""


def characters(*figures: go.Figure) -> set[str]:
    """Every character that occurs in the figures."""
    plain = (json.dumps(json.loads(f.to_json()), ensure_ascii=False) for f in figures)
    return {c for words in plain for c in html.unescape(words)}
