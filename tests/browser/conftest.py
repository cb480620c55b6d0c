"""A real browser, a real JupyterLab and the served page."""

import os
import secrets
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from servers import (
    CHROMIUM,
    FLAGS,
    Lab,
    Tab,
    explored,
    free_port,
    process,
    wait_until_answers,
)

WAIT = 90_000  # ms until something is missed: a busy machine answers late


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything in this folder is slow and needs a browser."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.browser)
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    """Headless Chromium; without one the tests skip, and in CI fail."""
    path = next(filter(None, map(shutil.which, CHROMIUM)), None)
    if path is None:
        if os.environ.get("CI") == "true":
            pytest.fail("no Chromium is installed; CI must have one (Debian: apt install chromium)")
        pytest.skip("no Chromium is installed")
    from playwright.sync_api import expect, sync_playwright

    expect.set_options(timeout=WAIT)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        try:
            yield browser
        finally:
            browser.close()


@pytest.fixture
def tab(chromium: Any) -> Iterator[Tab]:
    """An empty page of a fresh profile."""
    context = chromium.new_context(viewport={"width": 1400, "height": 1000})
    context.set_default_timeout(WAIT)
    try:
        yield Tab(context.new_page())
    finally:
        context.close()


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    """JupyterLab on a free port of the loopback interface, over an empty folder."""
    folder, log = tmp_path / "lab", tmp_path / "lab.log"
    folder.mkdir()
    port, token = free_port(), secrets.token_hex(16)
    # Nobody is asked for news, and the first start's question about them does not cover the page.
    settings = folder / "home/settings/@jupyterlab/apputils-extension"
    settings.mkdir(parents=True)
    (settings / "notification.jupyterlab-settings").write_text(
        '{"fetchNews": "false", "checkForUpdates": false}'
    )
    command = [
        *(sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root"),
        *(f"--ServerApp.port={port}", "--ServerApp.port_retries=0", "--ServerApp.ip=127.0.0.1"),
        *(f"--IdentityProvider.token={token}", f"--ServerApp.root_dir={folder}"),
        "--LabApp.expose_app_in_browser=True",
        "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
    ]
    address = f"http://127.0.0.1:{port}/"
    with process(command, folder, log) as running:
        wait_until_answers(f"{address}api?token={token}", running, log)
        yield Lab(folder, address, token)


@pytest.fixture(scope="module")
def served(request: pytest.FixtureRequest, tmp_path_factory: Any) -> Iterator[str]:
    """The address of ``gated-interp explore`` of a model, 2H3ST-gated unless a test names it."""
    with explored(getattr(request, "param", "2H3ST-gated"), tmp_path_factory.mktemp("s")) as where:
        yield where
