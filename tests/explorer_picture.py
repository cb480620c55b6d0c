"""Take the docs' pictures of pages: ``make explorer-picture`` and ``make gated-language-model``."""

import argparse
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from playwright.sync_api import sync_playwright

sys.path.insert(0, str(Path(__file__).parent / "browser"))
from explorer_page import ExplorerPage
from servers import CHROMIUM, FLAGS, explored

WIDTH, TOP = 1200, 900


@contextmanager
def new_page(height: int = 500) -> Iterator[Any]:
    """A page of the browser, of the width of all pictures."""
    browser = next(filter(None, map(shutil.which, CHROMIUM)))
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=browser, args=FLAGS)
        page = chromium.new_page(viewport={"width": WIDTH, "height": height})
        page.set_default_timeout(300_000)  # slow machines draw it too
        yield page
        chromium.close()


def take(out: Path, model: str = "2H3ST-gated", most: int | None = None, link: str = "") -> None:
    """The explorer of a shipped model as it opens.

    Args:
        out: a PNG.
        model: its name.
        most: the height of the picture; the whole page unless given.
        link: the state that it opens in; the first example unless given.
    """
    with (
        tempfile.TemporaryDirectory() as folder,
        explored(model, Path(folder)) as address,
        new_page() as page,
    ):
        page.goto(f"{address}#{link}" if link else address)
        ExplorerPage(page)  # waits until it is drawn
        clip = None if most is None else {"x": 0, "y": 0, "width": WIDTH, "height": most}
        page.screenshot(path=out, full_page=True, clip=clip)


def take_report(html: Path, out: Path, card: Path) -> None:
    """The beginning of a report, and the first card of a gated head in it.

    Args:
        html: the report.
        out, card: PNGs.
    """
    with new_page(TOP) as page:
        page.goto(html.resolve().as_uri())
        page.screenshot(path=out)
        page.locator("article.card[id^=block]").first.screenshot(path=card)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path, help="a picture of the explorer, or of the report")
    parser.add_argument("--model", default="2H3ST-gated", help="whose explorer")
    parser.add_argument("--most", type=int, help="height of the explorer's picture")
    parser.add_argument("--link", default="", help="the state that the explorer opens in")
    parser.add_argument("--report", type=Path, help="a report's page, instead of the explorer")
    parser.add_argument("--card", type=Path, help="also a picture of the report's first gated card")
    asked = parser.parse_args()
    if asked.report is None:
        take(asked.out, asked.model, asked.most, asked.link)
    else:
        take_report(asked.report, asked.out, asked.card)
