"""One self-contained page of many figures, tables and cards, each with its numbers to download.

Figures are SVG pictures, drawn by a Chrome or Chromium while the page is made: they need no script,
scale, print, and a whole page stays far below 5 MB. Where no browser is, the page brings plotly's
script, packed (2 MB instead of 4.8), and draws them when it is opened.
"""

import base64
import dataclasses
import gzip
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import pandas as pd
import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from gated_interp.plots.fonts import font_face, loaded_script
from gated_interp.plots.head_page import Read, cards
from gated_interp.plots.page import characters
from gated_interp.plots.save import drawn
from gated_interp.plots.templates import rendered

GENERATOR = "gated-interp report"
# What a page may do at all: nothing is fetched, and without figures to draw nothing is run.
ALLOWED = "default-src 'none'; img-src data:; font-src data:; style-src 'unsafe-inline'"
RUNS_SCRIPTS = f"{ALLOWED}; script-src 'unsafe-inline'"
# A figure is made for paper; on a screen it may be this much larger.
LARGER = 1.35
# How cells of numbers begin, which stand to the right; words stand to the left.
NUMBER = re.compile(r"[-+−—]?\d|—$")


@dataclasses.dataclass(frozen=True)
class Picture:
    """A figure on the page.

    Attributes:
        stem: of its downloads and its anchor.
        fig: the figure.
        alt: what it shows, for who does not see it.
        caption: how it is read.
        tables: what it was drawn from, by a name that is added to ``stem`` (none where it is "").
    """

    stem: str
    fig: go.Figure
    alt: str
    caption: str
    tables: Mapping[str, pd.DataFrame]


@dataclasses.dataclass(frozen=True)
class Table:
    """A table on the page.

    Attributes:
        stem: of its download and its anchor.
        caption: what it says, above it.
        columns: headings; the first column names the rows.
        rows: cells, as they are written.
        numbers: what is downloaded.
        note: below it.
        folded: whether its rows show only when asked for.
    """

    stem: str
    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    numbers: pd.DataFrame
    note: str = ""
    folded: bool = False


@dataclasses.dataclass(frozen=True)
class Cards:
    """Cards of heads on the page.

    Attributes:
        sides: what was read, by a name such as ``original``.
        names: of tokens.
        holds: by side and head, what it holds; see :func:`~gated_interp.plots.head_page.cards`.
    """

    sides: Mapping[str, Read]
    names: Sequence[str]
    holds: Mapping[str, Mapping[int, str]] | None = None


@dataclasses.dataclass(frozen=True)
class Section:
    """A part of the page under a heading.

    Attributes:
        anchor: its id, which links lead to.
        title: its heading.
        words: paragraphs below it.
        parts: what it shows.
    """

    anchor: str
    title: str
    words: Sequence[str]
    parts: Sequence[Picture | Table | Cards]


def report_page(
    title: str,
    lead: Sequence[str],
    sections: Sequence[Section],
    *,
    interactive: bool = False,
    say: Callable[[str], object] = lambda _: None,
) -> str:
    """The whole page, which needs nothing else.

    Args:
        title: its title and heading.
        lead: paragraphs below it.
        sections: in their order.
        interactive: figures are drawn by the page, and say numbers under the mouse.
        say: takes a sentence where no browser drew the figures, so that the page does.
    """
    pictures = [part for s in sections for part in s.parts if isinstance(part, Picture)]
    images: list[bytes] = []
    if pictures and not interactive:
        images, trouble = drawn([(picture.fig, "svg") for picture in pictures])
        if trouble:
            say(
                "No Chrome or Chromium drew the figures (one can be named in BROWSER_PATH); the "
                "page draws them itself when it is opened."
            )
    svgs = iter(images)
    scripted = bool(pictures) and not images
    return rendered(
        "report.html.j2",
        title=title,
        lead=lead,
        generator=GENERATOR,
        policy=RUNS_SCRIPTS if scripted else ALLOWED,
        sections=[
            {
                "anchor": s.anchor,
                "title": s.title,
                "words": s.words,
                "parts": [_part(part, svgs) for part in s.parts],
            }
            for s in sections
        ],
        faces=font_face(characters(*(p.fig for p in pictures))) if scripted else "",
        font_loaded=loaded_script(),
        plotly=_base64(gzip.compress(get_plotlyjs().encode(), mtime=0)) if scripted else "",
    )


def csv_of(table: pd.DataFrame) -> str:
    """A table as the page holds it for download."""
    return table.to_csv(index=False, lineterminator="\n", float_format="%.7g")


def _part(part: Picture | Table | Cards, svgs: Iterator[bytes]) -> dict[str, Any]:
    if isinstance(part, Cards):
        return {"kind": "cards", "sides": cards(part.sides, part.names, part.holds)}
    shown: dict[str, Any] = {"id": _id(part.stem), "caption": part.caption}
    if isinstance(part, Table):
        return shown | {
            "kind": "table",
            "columns": part.columns,
            "rows": part.rows,
            "numeric": [all(map(NUMBER.match, cells)) for cells in zip(*part.rows, strict=True)],
            "note": part.note,
            "folded": part.folded,
            "downloads": [_download(part.stem, part.numbers)],
        }
    stems = {f"{part.stem}-{name}" if name else part.stem: t for name, t in part.tables.items()}
    width, height = int(part.fig.layout.width), int(part.fig.layout.height)
    shown |= {
        "kind": "figure",
        "alt": part.alt,
        "width": width,
        "height": height,
        "most": round(LARGER * width),
        "downloads": [_download(stem, table) for stem, table in stems.items()],
    }
    svg = next(svgs, None)
    if svg is None:
        return shown | {"svg": "", "json": _in_script(part.fig)}
    return shown | {"svg": _base64(svg)}


def _download(stem: str, table: pd.DataFrame) -> dict[str, str]:
    return {"name": f"{stem}.csv", "csv": _base64(csv_of(table).encode())}


def _id(stem: str) -> str:
    # Not the stem alone: a section may have it as its anchor.
    return "shown-" + re.sub(r"[^\w-]+", "-", stem)


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode("ascii")


def _in_script(fig: go.Figure) -> str:
    """The figure as JSON that no tag can end."""
    words = json.dumps(json.loads(fig.to_json()))
    return words.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
