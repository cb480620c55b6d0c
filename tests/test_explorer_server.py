"""The served explorer: its answers, bad input, and the way it stops. The page: tests/browser."""

import contextlib
import http.client
import json
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from refusals import refuses

from gated_interp.checkpoints.checkpoint import save
from gated_interp.core.errors import GatedInterpError
from gated_interp.explorer.acts import acted
from gated_interp.explorer.session import Session
from gated_interp.explorer_server import explore
from gated_interp.explorer_server.page import Answer, page_server
from gated_interp.explorer_server.serve import _listening
from gated_interp.models.analytic import manual_model

JSON = {"Content_Type": "application/json"}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return save(manual_model(2, 3).model, tmp_path / "it's a toy.safetensors")


def test_a_port_in_use_gets_a_sentence(file: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with refuses("port-unusable", host="127.0.0.1"):
            explore(file, port=port, open_browser=False)


def test_what_cannot_be_served_gets_a_sentence_and_no_address(file: Path, tmp_path: Path) -> None:
    cut, other = tmp_path / "cut.safetensors", tmp_path / "other.safetensors"
    cut.write_bytes(file.read_bytes()[:-5])
    other.write_text("no model")
    said: list[str] = []
    for bad in (tmp_path / "gone.safetensors", cut, other, tmp_path):
        with pytest.raises(GatedInterpError):
            explore(bad, open_browser=False, say=said.append)
    for port in (70000, -1, True):
        with refuses("bad-port"):
            explore(file, port=port, open_browser=False, say=said.append)
    assert said == []


def echo(request: dict[str, Any]) -> bytes:
    return json.dumps(request).encode()


@contextlib.contextmanager
def listening(answer: Answer = echo, name: str = "a toy") -> Iterator[int]:
    """The port of a page whose states ``answer`` makes."""
    with _listening(0) as listener, ThreadPoolExecutor(1) as worker:
        port: int = listener.getsockname()[1]
        server = page_server(name, port, answer, worker)
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            yield port
        finally:
            server.should_exit = True
            thread.join()


def ask(
    port: int, method: str, path: str, body: bytes | None = None, **headers: str
) -> tuple[int, bytes, Any]:
    line = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        line.request(method, path, body, named)
        reply = line.getresponse()
        return reply.status, reply.read(), reply.headers
    finally:
        line.close()


def raw(port: int, *pieces: str, ends: bool = True) -> bytes:
    """Everything that comes back on one connection, until both sides have said all."""
    with socket.create_connection(("127.0.0.1", port), timeout=30) as line:
        for piece in pieces:
            line.sendall(piece.replace("HOST", f"127.0.0.1:{port}").encode())
        if ends:
            line.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: line.recv(65536), b""))


def post(body: str, head: str = "Host: HOST\r\nContent-Type: application/json") -> str:
    return f"POST /state HTTP/1.1\r\n{head}\r\nContent-Length: {len(body)}\r\n\r\n{body}"


def assert_silent(capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> None:
    """Neither was anything written nor logged, which without a handler is written too."""
    assert capfd.readouterr() == ("", "")
    assert not caplog.records


def test_the_page_and_its_parts() -> None:
    with listening(name="<script>alert(1)</script>\udcff") as port:
        status, body, headers = ask(port, "GET", "/?a=b")
        assert status == 200
        assert b"<h1>Heads of &lt;script&gt;" in body
        assert b"Switch attention heads off" in body
        assert headers["Content-Type"] == "text/html; charset=utf-8"
        for part in ("explorer.js", "explorer.css", "page.css", "gated-interp-Bold.ttf"):
            assert ask(port, "GET", f"/{part}")[0] == 200
        assert ask(port, "GET", "/explorer.js")[2]["Content-Type"].startswith("text/javascript")
        for none in ("/../pyproject.toml", "/page.py", "//evil.example", "/%2e%2e/page.py"):
            assert ask(port, "GET", none)[0] == 404
        # Whatever the answer is, nobody else is asked for anything, and nothing is kept.
        for method, path in (("GET", "/"), ("GET", "/no"), ("POST", "/state"), ("PUT", "/state")):
            headers = ask(port, method, path)[2]
            assert headers["Content-Security-Policy"].startswith("default-src 'none'; script-src")
            assert headers["Cache-Control"] == "no-store"
            assert headers["X-Content-Type-Options"] == "nosniff"


def test_only_this_machine_is_listened_to() -> None:
    with _listening(0) as listener:
        assert listener.getsockname()[0] == "127.0.0.1"
        # Else a reply's second piece waits 40 ms for the other side to say that it has the first.
        assert listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_only_the_page_itself_is_answered() -> None:
    asked: list[object] = []

    def answer(request: dict[str, Any]) -> bytes:
        asked.append(request)
        return echo(request)

    with listening(answer) as port:
        foreign = [
            {"Host": "evil.example"},
            {"Host": f"evil.example:{port}"},
            {"Host": f"127.0.0.1:{port + 1}"},
            {"Host": "127.0.0.1"},
            {"Origin": "http://evil.example"},
            {"Origin": f"http://127.0.0.1:{port + 1}"},
            {"Origin": f"https://127.0.0.1:{port}"},
            {"Origin": "null"},
        ]
        for headers in foreign:
            assert ask(port, "POST", "/state", b"{}", **JSON, **headers)[0] == 403
            assert ask(port, "GET", "/", **headers)[0] == 403
        for kind in ("text/plain", "application/x-www-form-urlencoded", "application/jsonx", ""):
            assert ask(port, "POST", "/state", b"{}", Content_Type=kind)[0] == 415
        assert ask(port, "POST", "/state", b"{}")[0] == 415
        assert asked == []
        for kind in ("application/json; charset=utf-8", "Application/JSON;charset=UTF-8"):
            reply = ask(port, "POST", "/state", b'{"do": 1}', Content_Type=kind)
            assert reply[:2] == (200, b'{"do": 1}')
        for host in ("localhost", "127.0.0.1"):
            own = {"Host": f"{host}:{port}", "Origin": f"http://{host}:{port}"}
            assert ask(port, "POST", "/state", b"{}", **JSON, **own)[0] == 200


def test_a_refused_body_is_never_the_next_request() -> None:
    asked: list[object] = []

    def answer(request: dict[str, Any]) -> bytes:
        asked.append(request)
        return b""

    hidden = post('{"do": "hidden"}')
    own = post('{"do": "own"}', "Host: HOST\r\nContent-Type: application/json\r\nConnection: close")
    kind, host = "Content-Type: application/json", "Host: HOST"
    with listening(answer) as port:
        hidden = hidden.replace("HOST", f"127.0.0.1:{port}")  # so that its length is right
        for head in (
            f"{host}\r\nContent-Type: text/plain",
            f"{host}\r\n{kind}\r\nOrigin: http://evil.example",
            f"Host: evil.example\r\n{kind}",
            f"{host}\r\n{kind}",  # it is not JSON
        ):
            replies = raw(port, post(hidden, head), own, ends=False)
            assert replies.count(b"HTTP/1.1 ") == 2
            assert replies.count(b"HTTP/1.1 200") == 1
        for method, path in (("POST", "/no"), ("PUT", "/state"), ("GET", "/"), ("DELETE", "/")):
            first = post(hidden).replace("POST /state", f"{method} {path}", 1)
            assert raw(port, first, own, ends=False).count(b"HTTP/1.1 ") == 2
        long = hidden * (2**20 // len(hidden) + 1)
        raw(port, post(long), own, ends=False)
    assert {str(request) for request in asked} == {"{'do': 'own'}"}


def test_what_is_no_request_gets_a_sentence_and_the_terminal_nothing(
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    head = "POST /state HTTP/1.1\r\nHost: HOST\r\nContent-Type: application/json\r\n"
    head += "Connection: close\r\n"
    with listening() as port:
        for bad in (b"", b"[", b"[]", b"7", b"\xff", b"[" * 100_000, b"9" * 5000, b'{"a":'):
            status, said, _ = ask(port, "POST", "/state", bad, **JSON)
            assert (status, said[-1:]) == (400, b".")
        status, said, _ = ask(port, "POST", "/state", b" " * (2**20 + 1), **JSON)
        assert (status, said[-1:]) == (413, b".")
        for length in ("9" * 5000, "9" * 19, "²", "٣", "-1", "+5", "1 1", "0x3", ""):
            reply = raw(port, f"{head}Content-Length: {length}\r\n\r\n{{}}", ends=False)
            assert reply.startswith(b"HTTP/1.1 4"), length
            assert reply.partition(b"\r\n\r\n")[2], length
        # Without a length nothing is sent.
        assert raw(port, f"{head}\r\n", ends=False).startswith(b"HTTP/1.1 400")
        chunked = f"{head}Transfer-Encoding: chunked\r\n\r\n"
        assert raw(port, chunked, "2\r\n{}\r\n0\r\n\r\n", ends=False).startswith(b"HTTP/1.1 200")
        endless = [f"{2**16:x}\r\n{' ' * 2**16}\r\n"] * 17
        open_ended = chunked.replace("Connection: close\r\n", "")
        replies = raw(port, open_ended, *endless, "0\r\n\r\n", f"{head}\r\n", ends=False)
        assert replies.startswith(b"HTTP/1.1 413")
        assert replies.count(b"HTTP/1.1 400") == 1
        for broken in (f"{chunked}zz\r\n", "\r\n\r\n", "GET\r\n\r\n", "\0" * 100, "A" * 100_000):
            raw(port, broken)
        # What is broken comes after the reply.
        with socket.create_connection(("127.0.0.1", port), timeout=30) as line:
            refused = chunked.replace("Connection: close\r\n", "").replace("/state", "/no")
            line.sendall(refused.replace("HOST", f"127.0.0.1:{port}").encode())
            reply = b""
            while b"Allowed" not in reply.partition(b"\r\n\r\n")[2]:
                reply += line.recv(65536)
            line.sendall(b"zz\r\n")
            assert line.recv(65536) == b""
        upgrade = (
            "Connection: Upgrade, close\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
        )
        request = f"GET / HTTP/1.1\r\nHost: HOST\r\n{upgrade}\r\n"
        assert b" 200 " in raw(port, request, ends=False)
        assert ask(port, "POST", "/state", b"{}", **JSON)[0] == 200
    assert_silent(capfd, caplog)


@pytest.mark.parametrize(
    "problem",
    [OverflowError("int"), KeyError("x"), MemoryError(), RuntimeError("a\udcff\nb"), SystemExit(3)],
)
def test_an_unexpected_error_gets_a_sentence_and_the_terminal_nothing(
    problem: BaseException, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    def answer(request: dict[str, Any]) -> bytes:
        if request:
            raise problem
        return b"fine"

    with listening(answer) as port:
        status, said, _ = ask(port, "POST", "/state", b'{"a": 1}', **JSON)
        assert status == 500
        assert said.startswith(
            f"The explorer cannot show this ({type(problem).__name__}: ".encode()
        )
        assert said.endswith(b"Reload the page, or try another state.")
        assert b"Traceback" not in said
        assert ask(port, "POST", "/state", b"{}", **JSON)[:2] == (200, b"fine")
    assert_silent(capfd, caplog)


def test_whoever_leaves_is_not_talked_about(
    capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    asked = threading.Semaphore(0)

    def answer(request: dict[str, Any]) -> bytes:
        asked.release()
        return b"x" * 2**24

    with listening(answer) as port:
        text = post("{}").replace("HOST", f"127.0.0.1:{port}").encode()
        for sent in (text[:20], text[:-1], text):
            for abrupt in (0, 1):
                with socket.create_connection(("127.0.0.1", port)) as line:
                    line.sendall(sent)
                    if sent is text:
                        assert asked.acquire(timeout=30)
                    linger = struct.pack("ii", abrupt, 0)  # closed by a reset, or as usual
                    line.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        assert ask(port, "POST", "/state", b"{}", **JSON)[0] == 200
    assert_silent(capfd, caplog)


def test_many_at_once_are_all_answered_one_after_another() -> None:
    inside, most, threads = 0, 0, set()

    def answer(request: dict[str, Any]) -> bytes:
        nonlocal inside, most
        threads.add(threading.current_thread())
        inside += 1
        most = max(most, inside)
        time.sleep(0.001)
        inside -= 1
        return echo(request)

    with listening(answer) as port, ThreadPoolExecutor(20) as clients:

        def client(number: int) -> bool:
            said = json.dumps({"do": number}).encode()
            return ask(port, "POST", "/state", said, **JSON)[:2] == (200, said)

        assert all(clients.map(client, range(600)))
    assert most == len(threads) == 1


def test_infinite_numbers_are_not_understood() -> None:
    session = Session(manual_model(2, 3).model)
    for number in ("1e400", "-1e999", "Infinity", "NaN"):
        for field in ("example", "position", "value", "head"):
            for do in ("place", "position", "head", "layer", "open", "step", "tokens", "link"):
                asked = {"position": 1, "example": 1, "head": 0, "model": "model", "on": True}
                asked |= {"do": do, "value": 0, field: json.loads(number)}
                with contextlib.suppress(GatedInterpError):
                    acted(session, session.start, asked)
        wrong = {"do": "place", "position": 0, "example": json.loads(number)}
        with refuses("not-understood"):
            acted(session, session.start, wrong)


def test_the_server_is_imported_where_it_is_needed_and_nothing_heavy_with_it() -> None:
    code = (
        "import sys, gated_interp, gated_interp.cli; "
        "print(sorted({'starlette', 'uvicorn', 'anyio'} & set(sys.modules))); "
        "import gated_interp.explorer_server; "
        "print(sorted({'torch', 'plotly', 'ipywidgets', 'anywidget'} & set(sys.modules)))"
    )
    command = [sys.executable, "-W", "error", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("[]\n[]\n", "")


# A model whose answer takes a second, and which says when it was left alone.
SLOW = """
import sys, time
from gated_interp.explorer_server import explore
module = sys.modules["gated_interp.explorer_server.serve"]
def answer(request):
    print("asked")
    time.sleep(float(sys.argv[1]))
    print("answered")
    return b"{}"
module._answers = lambda *_: answer
explore("a toy", open_browser=False)
"""


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("seconds", [0.5, 3.0])
def test_it_stops_when_the_model_is_done(end: signal.Signals, seconds: float) -> None:
    with running("-W", "error", "-c", SLOW, str(seconds)) as process:
        port = address(process)
        lines = [socket.create_connection(("127.0.0.1", port), timeout=30) for _ in range(6)]
        text = post("{}").replace("HOST", f"127.0.0.1:{port}").encode()
        lines[-1].sendall(text[:-1])  # this one never says all
        lines[-2].sendall(b"POST")
        for line in lines[:-2]:
            line.sendall(text)
        assert process.stdout is not None
        assert process.stdout.readline() == "asked\n"
        process.send_signal(end)
        out, err = process.communicate(timeout=60)
        replies = [line.recv(65536) for line in lines[:-2]]
        for line in lines:
            line.close()
    assert (process.returncode, err) == (0, "")
    said = out.splitlines()
    # Once for each that is not told that the explorer has stopped.
    assert said == [
        *["answered", "asked"] * said.count("asked"),
        "answered",
        "The explorer stopped.",
    ]
    assert all(reply.startswith((b"HTTP/1.1 200", b"HTTP/1.1 503")) for reply in replies)


@contextlib.contextmanager
def running(*args: str) -> "Iterator[subprocess.Popen[str]]":
    """Python, in a group of its own: so a signal reaches it alone, as `kill` would."""
    with subprocess.Popen(
        [sys.executable, "-u", *args], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    ) as process:  # fmt: skip
        try:
            yield process
        finally:
            process.kill()


def address(process: "subprocess.Popen[str]") -> int:
    """The port of the page that the process serves."""
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line.startswith("The explorer is at http://127.0.0.1:")
    return int(line.split(":")[2].split("/")[0])


SERVE = """
import sys
from gated_interp.explorer_server import explore
module = sys.modules["gated_interp.explorer_server.serve"]
load = module._answers
module._answers = lambda *args: print("loading") or load(*args)
explore(sys.argv[1], open_browser=False)
"""


@pytest.mark.slow
@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("clients", [None, 0, 5])
def test_it_answers_and_stops_cleanly(file: Path, end: signal.Signals, clients: int | None) -> None:
    """While it loads, while nobody asks and while five do."""
    with running("-c", SERVE, str(file)) as process, ThreadPoolExecutor(5) as asking:
        assert process.stdout is not None
        assert process.stdout.readline() == "loading\n"
        if clients is not None:
            port = address(process)
            view = state(port, {"do": "tokens", "value": "BOS A B3", "at": ""})
            assert view["models"][0]["answer"]["predicted"] == "C3"
            asked = {"do": "head", "model": "model", "head": 0, "on": False, "at": view["link"]}
            assert state(port, asked)["models"][0]["answer"]["predicted"] == "C2"
            wrong = state(port, {"do": "tokens", "value": "BOS X", "at": view["link"]})
            assert "'X' is not a token" in wrong["message"]
            assert wrong["link"] == view["link"]
            huge = state(port, {"do": "place", "position": 0, "example": float("inf")})
            assert "does not understand" in huge["message"]
            answered = threading.Semaphore(0)

            def go_on() -> None:
                with contextlib.suppress(OSError, http.client.HTTPException, AssertionError):
                    while True:
                        state(port, asked)
                        answered.release()

            for _ in range(clients):
                asking.submit(go_on)
            for _ in range(4 * clients):
                assert answered.acquire(timeout=60)
        process.send_signal(end)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (0, "The explorer stopped.\n", "")


def state(port: int, request: dict[str, object]) -> Any:
    """What the page would be told."""
    status, body, _ = ask(port, "POST", "/state", json.dumps(request).encode(), **JSON)
    assert status == 200, body
    length = int.from_bytes(body[:4], "little")
    return json.loads(body[4 : 4 + length])
