"""Take the picture of the running explorer that the README shows: ``make explorer-picture``."""

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import sync_playwright

sys.path.insert(0, str(Path(__file__).parent / "browser"))
from explorer_page import ExplorerPage
from servers import CHROMIUM, FLAGS, explored

WIDTH = 1200


def take(out: Path, model: str = "2H3ST-gated") -> None:
    """The explorer of a shipped model as it opens, whole.

    Args:
        out: a PNG.
        model: its name.
    """
    browser = next(filter(None, map(shutil.which, CHROMIUM)))
    with (
        tempfile.TemporaryDirectory() as folder,
        sync_playwright() as playwright,
        explored(model, Path(folder)) as address,
    ):
        chromium = playwright.chromium.launch(executable_path=browser, args=FLAGS)
        page = chromium.new_page(viewport={"width": WIDTH, "height": 500})
        page.set_default_timeout(300_000)  # slow machines draw it too
        page.goto(address)
        ExplorerPage(page)  # waits until it is drawn
        page.screenshot(path=out, full_page=True)
        chromium.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    take(parser.parse_args().out)
