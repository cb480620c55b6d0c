"""One self-contained page of everything that views show, each with its numbers to download.

Figures are SVG pictures: they need no script, scale, print, and a whole page stays far below 5 MB.
Where they are to say numbers under the mouse, the page brings plotly's script, packed (2 MB instead
of 4.8), and draws them when it is opened.
"""

import base64
import gzip
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from gated_interp.plots.fonts import font_face, loaded_script
from gated_interp.plots.head_page import cards
from gated_interp.plots.page import characters
from gated_interp.plots.paper import composed, painted
from gated_interp.plots.templates import rendered
from gated_interp.views.shown import TOPICS, Shown, cells, csv_of

GENERATOR = "gated-interp report"
# What a page may do at all: nothing is fetched, and without figures to draw nothing is run.
ALLOWED = "default-src 'none'; img-src data:; font-src data:; style-src 'unsafe-inline'"
RUNS_SCRIPTS = f"{ALLOWED}; script-src 'unsafe-inline'"
# A figure is made for paper; on a screen it may be this much larger.
LARGER = 1.35
# How cells of numbers begin, which stand to the right; words stand to the left.
NUMBER = re.compile(r"[-+−]?\d|-$")


def report_page(
    title: str,
    lead: Sequence[str],
    sections: Mapping[str, Sequence[Shown]],
    points: Sequence[Any] = (),
    warnings: Sequence[str] = (),
    *,
    interactive: bool = False,
) -> str:
    """The whole page, which needs nothing else.

    Args:
        title: its title and heading.
        lead: paragraphs below the conclusion.
        sections: by topic (see :data:`~gated_interp.views.shown.TOPICS`), what views show.
        points: the conclusion, each with a ``label``, ``words`` and the ``link`` of its numbers.
        warnings: stand above it.
        interactive: figures are drawn by the page, and say numbers under the mouse.
    """
    figures = [s.figure for section in sections.values() for s in section if s.figure is not None]
    scripted = interactive and bool(figures)
    images = [] if scripted else [painted(composed(figure), "svg") for figure in figures]
    svgs = iter(images)
    return rendered(
        "report.html.j2",
        title=title,
        lead=lead,
        points=points,
        warnings=warnings,
        generator=GENERATOR,
        policy=RUNS_SCRIPTS if scripted else ALLOWED,
        sections=[
            {"anchor": topic, "title": TOPICS[topic], "parts": [_part(s, svgs) for s in section]}
            for topic, section in sections.items()
        ],
        faces=font_face(characters(*figures)) if scripted else "",
        font_loaded=loaded_script(),
        plotly=_base64(gzip.compress(get_plotlyjs().encode(), mtime=0)) if scripted else "",
    )


def _part(shown: Shown, svgs: Iterator[bytes]) -> dict[str, Any]:
    stem = f"{shown.name}-{shown.side}" if shown.side else shown.name
    part: dict[str, Any] = {
        # Not the stem alone: a section may have it as its anchor.
        "id": "shown-" + re.sub(r"[^\w-]+", "-", stem),
        "title": shown.title,
        "words": shown.words,
        "folded": shown.folded,
        "sides": None,
        "figure": None,
        "table": None,
    }
    if shown.cards is not None:
        return part | {"sides": cards(**shown.cards)}
    part["downloads"] = [
        {"name": f"{name}.csv", "csv": _base64(csv_of(table).encode())}
        for name, table in shown.tables(stem).items()
    ]
    if shown.figure is not None:
        width, height = int(shown.figure.layout.width), int(shown.figure.layout.height)
        part |= {"width": width, "height": height, "most": round(LARGER * width)}
        svg = next(svgs, None)
        part["figure"] = (
            {"svg": "", "json": _in_script(shown.figure)} if svg is None else {"svg": _base64(svg)}
        )
    if shown.face is not None:
        rows = cells(shown.face)
        part["table"] = {
            "columns": list(map(str, shown.face.columns)),
            "rows": rows,
            "numeric": [all(map(NUMBER.match, column)) for column in zip(*rows, strict=True)],
        }
    return part


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode("ascii")


def _in_script(fig: go.Figure) -> str:
    """The figure as JSON that no tag can end."""
    words = json.dumps(json.loads(fig.to_json()))
    return words.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
