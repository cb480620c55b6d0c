"""The served explorer: its answers, bad input, and the way it stops. The page: tests/browser."""

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gated_interp.checkpoints.checkpoint import save
from gated_interp.core.errors import GatedInterpError
from gated_interp.explorer_server import serve
from gated_interp.explorer_server.page import PageServer
from gated_interp.models.analytic import manual_model


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return save(manual_model(2, 3).model, tmp_path / "it's a toy.safetensors")


def test_a_port_in_use_gets_a_sentence(file: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(GatedInterpError, match=f"port {port} on 127.0.0.1 cannot be used"):
            serve(file, port=port, open_browser=False)


def test_what_cannot_be_served_gets_a_sentence(file: Path, tmp_path: Path) -> None:
    with pytest.raises(GatedInterpError, match="there is no file"):
        serve(tmp_path / "gone.safetensors", open_browser=False)
    with pytest.raises(GatedInterpError, match="from 0 to 65535"):
        serve(file, port=70000, open_browser=False)


@contextlib.contextmanager
def listening(name: str = "a toy") -> Iterator[PageServer]:
    server = PageServer(("127.0.0.1", 0), name)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def ask(
    server: PageServer, method: str, path: str, body: bytes | None = None, **headers: str
) -> tuple[int, bytes, Any]:
    line = http.client.HTTPConnection("127.0.0.1", server.server_address[1], timeout=30)
    try:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        line.request(method, path, body, named)
        reply = line.getresponse()
        return reply.status, reply.read(), reply.headers
    finally:
        line.close()


def test_the_page_is_there_before_the_model() -> None:
    with listening("<script>alert(1)</script>") as server:
        server.progress = "Loading the model …"
        status, body, headers = ask(server, "GET", "/")
        assert status == 200
        assert b"<h1>Heads of &lt;script&gt;" in body
        assert b"Switch attention heads off" in body
        assert "default-src 'none'" in headers["Content-Security-Policy"]
        for part in ("explorer.js", "explorer.css", "page.css", "LiberationSans-Bold.ttf"):
            assert ask(server, "GET", f"/{part}")[0] == 200
        assert ask(server, "GET", "/../pyproject.toml")[0] == 404
        waiting = ask(server, "POST", "/state", b"{}", Content_Type="application/json")
        assert waiting[:2] == (202, "Loading the model …".encode())


def test_only_the_page_itself_is_answered() -> None:
    kind = {"Content_Type": "application/json"}
    with listening() as server:
        server.answer = lambda request: json.dumps(request).encode()
        port = server.server_address[1]
        assert ask(server, "POST", "/state", b'{"do": 1}', **kind)[:2] == (200, b'{"do": 1}')
        # Another name for this machine, another page, a form.
        assert ask(server, "GET", "/", Host="evil.example")[0] == 403
        assert ask(server, "POST", "/state", b"{}", **kind, Host="evil.example")[0] == 403
        assert ask(server, "POST", "/state", b"{}", **kind, Origin="http://evil.example")[0] == 403
        assert ask(server, "POST", "/state", b"{}", Content_Type="text/plain")[0] == 403
        own = f"http://localhost:{port}"
        assert ask(server, "POST", "/state", b"{}", **kind, Origin=own)[0] == 200
        for bad in (b"", b"[", b"[]", b"\xff", b"[" * 100_000):
            assert ask(server, "POST", "/state", bad, **kind)[0] == 400
        assert ask(server, "POST", "/state", b" " * (2**20 + 1), **kind)[0] == 413


def test_the_page_needs_neither_torch_nor_the_notebook_packages() -> None:
    code = (
        "import sys, gated_interp.explorer_server as s; from gated_interp.explorer_server import "
        "page; page.PageServer(('127.0.0.1', 0), 'x').server_close(); "
        "print(sorted({'torch', 'plotly', 'ipywidgets', 'anywidget'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.slow
@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("loaded", [True, False])
def test_it_answers_and_stops_cleanly(
    file: Path, tmp_path: Path, end: signal.Signals, loaded: bool
) -> None:
    code = (
        "import sys; from gated_interp.explorer_server import serve; "
        "serve(sys.argv[1], open_browser=False)"
    )
    # Its own group, so that the signal reaches it alone, as `kill` would.
    running = subprocess.Popen(
        [sys.executable, "-u", "-c", code, str(file)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "HOME": str(tmp_path)},
    )
    try:
        assert running.stdout is not None
        line = running.stdout.readline()
        assert line.startswith("The explorer is at http://127.0.0.1:")
        port = int(line.split(":")[2].split("/")[0])
        if loaded:
            view = state(port, {"do": "tokens", "value": "BOS A B3", "at": ""})
            assert view["models"][0]["answer"]["predicted"] == "C3"
            asked = {"do": "head", "model": "model", "head": 0, "on": False, "at": view["link"]}
            assert state(port, asked)["models"][0]["answer"]["predicted"] == "C2"
            wrong = state(port, {"do": "tokens", "value": "BOS X", "at": view["link"]})
            assert "'X' is not a token" in wrong["message"]
            assert wrong["link"] == view["link"]
        running.send_signal(end)
        out, err = running.communicate(timeout=60)
    finally:
        running.kill()
        running.communicate()
    assert running.returncode == 0
    assert out == "The explorer stopped.\n"
    assert err == ""


def state(port: int, request: dict[str, object]) -> Any:
    """What the page would be told, once the model is there."""
    until = time.monotonic() + 120
    while time.monotonic() < until:
        line = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        line.request("POST", "/state", json.dumps(request), {"Content-Type": "application/json"})
        reply = line.getresponse()
        body = reply.read()
        line.close()
        if reply.status == 200:
            length = int.from_bytes(body[:4], "little")
            return json.loads(body[4 : 4 + length])
        assert reply.status == 202, body
        time.sleep(0.1)
    raise AssertionError("no model after two minutes")
