"""Servers and pages for tests in a browser; all end with the test, also a failed one."""

import os
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

CHROMIUM = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
READY = 300.0  # seconds a server may take to answer


class Tab:
    """A page and everything it complained of or asked for."""

    def __init__(self, page: Any):
        self.page = page
        self.complaints: list[str] = []
        self.hosts: set[str] = set()
        page.on("console", self._hear)
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("request", lambda request: self._ask(request.url))
        page.on("websocket", lambda channel: self._ask(channel.url))

    def _hear(self, message: Any) -> None:
        if message.type == "error":
            self.complaints.append(message.text)

    def _ask(self, url: str) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("data", "blob", "file", "about"):
            self.hosts.add(parts.hostname or url)

    def assert_quiet(self, hosts: set[str]) -> None:
        """Nothing complained, and nobody but ``hosts`` was asked for anything."""
        assert not self.complaints, self.complaints
        assert self.hosts == hosts


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def process(
    command: list[str], folder: Path, log: Path, threads: int = 1
) -> Iterator["subprocess.Popen[bytes]"]:
    """A command with Jupyter folders of its own, ended however the block is left."""
    home = folder / "home"
    home.mkdir(exist_ok=True)
    environment = {
        **os.environ,
        "HOME": str(home),
        "PYTHONUNBUFFERED": "1",
        "OMP_NUM_THREADS": str(threads),
        "IPYTHONDIR": str(home / "ipython"),
        **{
            f"JUPYTER_{kind}_DIR": str(home / kind.lower())
            for kind in ("CONFIG", "DATA", "RUNTIME")
        },
        "JUPYTERLAB_SETTINGS_DIR": str(home / "settings"),
        "JUPYTERLAB_WORKSPACES_DIR": str(home / "workspaces"),
    }
    with log.open("wb") as out:
        running = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=out, stderr=subprocess.STDOUT
        )
        try:
            yield running
        finally:
            running.terminate()  # both servers then end their kernels
            try:
                running.wait(20)
            except subprocess.TimeoutExpired:
                running.kill()
                running.wait()


def wait_until_answers(url: str, running: "subprocess.Popen[bytes]", log: Path) -> None:
    """Return once ``url`` is answered.

    Raises:
        AssertionError: with the server's log, where it ended or took too long.
    """
    end = time.monotonic() + READY
    while time.monotonic() < end and running.poll() is None:
        try:
            urllib.request.urlopen(url, timeout=5).close()
            return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(0.2)
    raise AssertionError(f"{url} is not answered:\n{log.read_text(errors='replace')[-3000:]}")


@contextmanager
def explored(model: str | Path, folder: Path, threads: int = 1) -> Iterator[str]:
    """The address of ``gated-interp explore`` of a model; its page may still wait for the model."""
    log = folder / "explore.log"
    # It takes a free port itself: one found here may be gone by the time that it listens.
    command = [sys.executable, "-m", "gated_interp.cli", "explore", str(model), "--no-browser"]
    with process(command, folder, log, threads) as running:
        end = time.monotonic() + READY
        while not (said := re.search(r"http://127\.0\.0\.1:\d+/", log.read_text())):
            assert running.poll() is None, log.read_text()
            assert time.monotonic() < end, log.read_text()
            time.sleep(0.2)
        yield said[0]


class Lab:
    """A JupyterLab over one folder."""

    def __init__(self, folder: Path, address: str, token: str):
        self.folder, self.address, self.token = folder, address, token

    def open(self, tab: Tab, notebook: str) -> None:
        """Open a notebook of the folder and wait for its kernel."""
        tab.page.goto(f"{self.address}lab/tree/{notebook}?token={self.token}")
        tab.page.wait_for_function(
            """() => {
              const open = window.jupyterapp?.shell.currentWidget;
              return open?.context?.isReady
                && open.sessionContext.session?.kernel?.status === 'idle';
            }"""
        )

    def run_all(self, tab: Tab) -> list[list[str]]:
        """Run every cell from the menu; the kinds of output of each code cell, in order."""
        tab.page.locator(".lm-MenuBar-itemLabel", has_text="Run").first.click()
        tab.page.get_by_text("Run All Cells", exact=True).click()
        tab.page.wait_for_function(
            """() => {
              const open = window.jupyterapp.shell.currentWidget;
              const cells = [...open.content.model.cells].filter(c => c.type === 'code');
              return cells.every(c => c.executionCount && c.executionState === 'idle')
                && open.sessionContext.session.kernel.status === 'idle';
            }""",
            timeout=180_000,
        )
        outputs: list[list[str]] = tab.page.evaluate(
            """() => [...window.jupyterapp.shell.currentWidget.content.model.cells]
              .filter(c => c.type === 'code')
              .map(c => c.outputs.toJSON().map(o => o.output_type))"""
        )
        return outputs
