"""A figure to files: SVG, PNG or PDF, self-contained HTML, and the CSV it was drawn from."""

import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pandas as pd
import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from gated_interp.core.errors import GatedInterpError
from gated_interp.core.files import write_text, write_whole
from gated_interp.plots.inputs import one_of
from gated_interp.plots.page import interactive_page
from gated_interp.plots.paper import composed, lacking, painted

STATIC = ("svg", "png", "pdf")
FORMATS = (*STATIC, "html")
Data = pd.DataFrame | Mapping[str, pd.DataFrame]


def save_figure(
    fig: go.Figure,
    data: Data,
    path_stem: Path | str,
    formats: Sequence[str] = ("svg", "png", "html"),
    *,
    say: Callable[[str], object] | None = None,
    plotlyjs: str = "inline",
) -> list[Path]:
    """Write ``fig`` in each format, and the CSV it was drawn from, each file whole or not at all.

    SVG, PDF and PNG are drawn without a browser, the same on every machine. Letters are outlines
    in SVG and embedded in PDF; PNG has 288 dots per inch. Every figure of this package can be
    drawn. Of another plotly figure that cannot, HTML is written instead, and one sentence says why.

    Args:
        data: the table, written to ``<stem>.csv``; of several, each to ``<stem>-<name>.csv``.
        path_stem: where, without an ending: ``figures/2H3ST-gates``.
        formats: of ``svg``, ``png``, ``pdf``, ``html``.
        say: takes that sentence; by default it is a Python warning.
        plotlyjs: ``inline`` puts the script into each HTML page (5 MB); ``directory`` writes
            ``plotly.min.js`` once beside the pages, which load it from there.

    Returns:
        The files written.

    Raises:
        GatedInterpError: an unknown format, no table, or a folder that cannot be written.
    """
    return save_figures({path_stem: (fig, data)}, formats, say=say, plotlyjs=plotlyjs)


def save_figures(
    figures: Mapping[Path | str, tuple[go.Figure, Data]],
    formats: Sequence[str] = ("svg", "png", "html"),
    *,
    say: Callable[[str], object] | None = None,
    plotlyjs: str = "inline",
) -> list[Path]:
    """Many figures, ``{path_stem: (fig, data)}``. See :func:`save_figure`.

    Raises:
        GatedInterpError: as :func:`save_figure`, before anything is written.
    """
    unknown = [f for f in formats if f not in FORMATS]
    if unknown or not formats:
        raise GatedInterpError(
            "no-such-format", format=unknown[0] if unknown else "nothing", formats=FORMATS
        )
    one_of("plotlyjs", plotlyjs, ("inline", "directory"))
    tables = {stem: _tables(Path(stem), data) for stem, (_, data) in figures.items()}
    static = [f for f in dict.fromkeys(formats) if f in STATIC]
    written: list[Path] = []
    for stem, (fig, _) in figures.items():
        images, trouble = _images(fig, static)
        for kind, image in images.items():
            written.append(_write_bytes(_with(Path(stem), f".{kind}"), image))
        if "html" in formats or len(images) < len(static):
            written += _write_html(fig, Path(stem), plotlyjs)
        for path, frame in tables[stem].items():
            csv = frame.to_csv(index=False, lineterminator="\n", float_format="%.7g")
            written.append(write_text(path, csv))
        if trouble:
            (say or _warn)(f"{Path(stem).name}: {trouble}")
    return list(dict.fromkeys(written))


def _images(fig: go.Figure, kinds: Sequence[str]) -> tuple[dict[str, bytes], str]:
    """The figure in each format, or none, and a sentence where something is amiss."""
    if not kinds:
        return {}, ""
    try:
        drawing = composed(fig)
    except GatedInterpError as error:
        return {}, str(error)
    missing = lacking(drawing)
    trouble = str(GatedInterpError("no-such-letter", letters=" ".join(missing))) if missing else ""
    return {kind: painted(drawing, kind) for kind in kinds}, trouble


def _tables(stem: Path, data: Data) -> dict[Path, pd.DataFrame]:
    if isinstance(data, pd.DataFrame):
        return {_with(stem, ".csv"): data}
    if not data:
        raise GatedInterpError("figure-without-table", name=stem.name)
    return {_with(stem, f"-{name}.csv" if name else ".csv"): frame for name, frame in data.items()}


def _with(stem: Path, ending: str) -> Path:
    # Not with_suffix: a stem such as "alpha-0.2" has a dot of its own.
    return stem.with_name(stem.name + ending)


def _write_bytes(path: Path, content: bytes) -> Path:
    return write_whole(path, lambda p: p.write_bytes(content))


def _write_html(fig: go.Figure, stem: Path, plotlyjs: str) -> list[Path]:
    name = re.sub(r"\W+", "-", stem.name) or "figure"
    page = interactive_page(fig, name, plotlyjs=plotlyjs)
    files = [write_text(_with(stem, ".html"), page)]
    if plotlyjs == "directory":
        files.append(write_text(stem.parent / "plotly.min.js", get_plotlyjs()))
    return files


def _warn(sentence: str) -> None:
    warnings.warn(sentence, UserWarning, stacklevel=4)
