"""A figure to files: SVG, PNG or PDF, self-contained HTML, and the CSV it was drawn from."""

import asyncio
import logging
import re
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from gated_interp.core.errors import GatedInterpError
from gated_interp.core.files import write_text, write_whole
from gated_interp.plots.inputs import one_of
from gated_interp.plots.page import DrawingPage, interactive_page

STATIC = ("svg", "png", "pdf")
FORMATS = (*STATIC, "html")
Data = pd.DataFrame | Mapping[str, pd.DataFrame]
# 3 image pixels per CSS pixel of 1/96 inch: 288 dots per inch.
PNG_SCALE = 3
SECONDS_TO_START, SECONDS_PER_IMAGE = 60.0, 60.0
# A proxy that nobody answers: Chromium asks for updates, accounts and the time by itself, and a
# figure might name a picture elsewhere; with this nothing leaves the machine.
NO_NETWORK = "127.0.0.1:9"


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

    Static formats are drawn by a Chrome or Chromium, without network. Where none works, HTML and
    CSV are written all the same, and one sentence says how to get the others.

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
    """Many figures, ``{path_stem: (fig, data)}``, with one start of the browser.

    See :func:`save_figure`.

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
    jobs = [(stem, f) for stem in figures for f in static]
    images, trouble = drawn([(figures[stem][0], f) for stem, f in jobs])

    written: list[Path] = []
    for (stem, kind), image in zip([] if trouble else jobs, images, strict=True):
        written.append(_write_bytes(_with(Path(stem), f".{kind}"), image))
    for stem, (fig, _) in figures.items():
        if "html" in formats or trouble:
            written += _write_html(fig, Path(stem), plotlyjs)
        for path, frame in tables[stem].items():
            csv = frame.to_csv(index=False, lineterminator="\n", float_format="%.7g")
            written.append(write_text(path, csv))
    if trouble:
        (say or _warn)(trouble)
    return list(dict.fromkeys(written))


def browser_found() -> str | None:
    """The Chrome or Chromium that draws static figures, or ``None``.

    ``BROWSER_PATH`` names one; otherwise the usual names and places are searched.
    """
    from choreographer.browsers.chromium import Chromium

    found = Chromium.find_browser(skip_local=False)
    return str(found) if found and Path(found).is_file() else None


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


def drawn(
    jobs: Sequence[tuple[go.Figure, str]], scale: float | int = PNG_SCALE
) -> tuple[list[bytes], str]:
    """Each figure in its format, or else a sentence that says why there are none.

    Args:
        scale: PNG pixels per CSS pixel.
    """
    if not jobs:
        return [], ""
    advice = "install Chromium or Chrome (or name one in BROWSER_PATH) and run this again"
    kinds = ", ".join(dict.fromkeys(kind.upper() for _, kind in jobs))
    if browser_found() is None:
        return [], f"HTML and CSV are written; for {kinds}, {advice}."
    result: list[bytes] = []
    trouble: list[str] = []

    def work() -> None:
        try:
            limit = SECONDS_TO_START + SECONDS_PER_IMAGE * len(jobs)
            with _quiet():
                result.extend(asyncio.run(asyncio.wait_for(_render(jobs, scale), limit)))
        except Exception as error:  # whatever ails the browser, the other files are still written
            reason = str(error.args[0] if error.args else type(error).__name__)
            reason = reason.splitlines()[0].split(". ")[0].rstrip(".")
            trouble.append(
                f"HTML and CSV are written; {kinds} failed in the browser ({reason}): {advice}."
            )

    # A thread of its own, as a notebook already runs an event loop in this one.
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join()
    return ([], trouble[0]) if trouble else (result, "")


async def _render(jobs: Sequence[tuple[go.Figure, str]], scale: float | int) -> list[bytes]:
    import kaleido

    images = []
    async with kaleido.Kaleido(
        n=1,
        timeout=SECONDS_PER_IMAGE,
        page_generator=DrawingPage([fig for fig, _ in jobs]),
        proxy_server=NO_NETWORK,
    ) as browser:
        for fig, kind in jobs:
            options = {"format": kind, "scale": scale if kind == "png" else 1}
            image = await browser.calc_fig(_with_fixed_ids(fig), opts=options)
            images.append(_fixed_svg(image) if kind == "svg" else image)
    return images


@contextmanager
def _quiet() -> Iterator[None]:
    """What the browser's driver logs stays off stderr: what matters of it is an exception too."""
    import kaleido  # noqa: F401  # first: whoever names its loggers decides of which kind they are

    loggers = [logging.getLogger(name) for name in ("choreographer", "kaleido")]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)


def _with_fixed_ids(fig: go.Figure) -> dict[str, Any]:
    """The figure with numbered traces, which plotly otherwise names at random in the SVG."""
    spec: dict[str, Any] = fig.to_dict()
    spec["data"] = [{**trace, "uid": f"{i:06x}"} for i, trace in enumerate(spec["data"])]
    return spec


def _fixed_svg(image: bytes) -> bytes:
    """The SVG with plotly's random page number replaced, so that equal figures give equal files."""
    svg = image.decode("utf-8")
    page = re.search(r'id="defs-([0-9a-f]{6})"', svg)
    if page:
        svg = re.sub(rf"(?<=[a-z-]){page[1]}(?![0-9a-f]{{2}}\b)", "000000", svg)
    return svg.encode("utf-8")


def _warn(sentence: str) -> None:
    warnings.warn(sentence, UserWarning, stacklevel=4)
