"""Take the picture of the running explorer that the README shows: ``make explorer-picture``."""

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import sync_playwright

sys.path.insert(0, str(Path(__file__).parent / "browser"))
from servers import CHROMIUM, FLAGS, free_port, process, wait_until_answers

SIZE = {"width": 1000, "height": 860}


def take(out: Path, model: str = "2H3ST-gated") -> None:
    """The explorer of a shipped model as it opens.

    Args:
        out: a PNG.
        model: its name.
    """
    browser = next(filter(None, map(shutil.which, CHROMIUM)))
    port = free_port()
    command = [
        *(sys.executable, "-m", "gated_interp.cli", "explore", model),
        *("--no-browser", "--port", str(port)),
    ]
    with tempfile.TemporaryDirectory() as name, sync_playwright() as playwright:
        folder = Path(name)
        with process(command, folder, folder / "log") as running:
            wait_until_answers(f"http://127.0.0.1:{port}/", running, folder / "log")
            chromium = playwright.chromium.launch(executable_path=browser, args=FLAGS)
            page = chromium.new_page(viewport=SIZE)
            page.set_default_timeout(300_000)  # slow machines draw it too
            page.goto(f"http://127.0.0.1:{port}/")
            page.locator(".gi-explorer .js-plotly-plot .cartesianlayer").first.wait_for()
            page.wait_for_timeout(1000)  # until what is drawn has settled
            page.screenshot(path=folder / "explorer.png")
            chromium.close()
        shutil.copy(folder / "explorer.png", out)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    take(parser.parse_args().out)
