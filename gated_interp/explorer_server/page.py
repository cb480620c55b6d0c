"""The page's server: answers this machine alone, and keeps no state but the models."""

import html
import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from string import Template
from typing import Any

LONGEST = 2**20  # bytes of a request
# Whatever a label says, the page runs its own script only and asks nobody else for anything.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; font-src 'self'; "
    "img-src data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
# What the page is made of. Read as files: to import their packages would import PyTorch.
PARTS = {
    "explorer/explorer.js": "text/javascript",
    "explorer/explorer.css": "text/css",
    "explorer_server/page.css": "text/css",
    "plots/fonts/LiberationSans-Regular.ttf": "font/ttf",
    "plots/fonts/LiberationSans-Bold.ttf": "font/ttf",
}
Answer = Callable[[dict[str, Any]], bytes]


class PageServer(ThreadingHTTPServer):
    """Serves the explorer's page at once, and its states as soon as a model is there.

    Args:
        address: host and port.
        name: of the model.

    Attributes:
        progress: what is being done while there is no model yet.
        answer: from a request (what is asked for, and ``at``, the state it is asked in) to what the
            page is to show; ``None`` while there is no model.
    """

    daemon_threads = True

    def __init__(self, address: tuple[str, int], name: str):
        super().__init__(address, _Handler)
        self.progress = "Starting …"
        self.answer: Answer | None = None
        self.turn = threading.Lock()  # one state at a time: hooks are the model's
        package = files("gated_interp")
        page = (package / "explorer_server" / "page.html").read_text(encoding="utf-8")
        self.made = {"/": ("text/html", Template(page).substitute(name=html.escape(name)).encode())}
        self.made |= {
            f"/{path.rpartition('/')[2]}": (kind, package.joinpath(path).read_bytes())
            for path, kind in PARTS.items()
        }


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # An answer is sent whole and at once; in pieces it waits for the other side's delay.
    wbufsize = -1
    disable_nagle_algorithm = True
    server: PageServer

    def do_GET(self) -> None:
        """The page and what it is made of."""
        found = self.server.made.get(self.path.partition("?")[0])
        if not self._is_local():
            self._send(403, "text/plain", "This page is for 127.0.0.1 alone.")
        elif found is None:
            self._send(404, "text/plain", "There is no such page.")
        else:
            self._send(200, *found)

    def do_POST(self) -> None:
        """A state, and what is to be shown of it."""
        length = self.headers.get("Content-Length", "")
        # A page of elsewhere can send neither this type nor this origin.
        if not self._is_local() or self.headers.get("Content-Type") != "application/json":
            self._send(403, "text/plain", "This page is for 127.0.0.1 alone.")
        elif not length.isdigit() or int(length) > LONGEST:
            self.close_connection = True
            self._send(413, "text/plain", "That is too much at once.")
        elif self.server.answer is None:
            self.rfile.read(int(length))
            self._send(202, "text/plain", self.server.progress)
        else:
            try:
                request = json.loads(self.rfile.read(int(length)))
                if not isinstance(request, dict):
                    raise ValueError
            except (ValueError, RecursionError):
                self._send(400, "text/plain", "The explorer does not understand this.")
                return
            with self.server.turn:
                found = self.server.answer(request)
            self._send(200, "application/octet-stream", found)

    def _is_local(self) -> bool:
        """Whether it was asked for by this machine's name: no other name may lead here."""
        port = self.server.server_address[1]
        allowed = {f"{host}:{port}" for host in ("127.0.0.1", "localhost")}
        origin = self.headers.get("Origin")
        return self.headers.get("Host") in allowed and (
            origin is None or origin.removeprefix("http://") in allowed
        )

    def _send(self, status: int, kind: str, body: str | bytes) -> None:
        data = body.encode() if isinstance(body, str) else body
        self.send_response(status)
        text = kind.startswith("text/")
        self.send_header("Content-Type", f"{kind}; charset=utf-8" if text else kind)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("Content-Security-Policy", POLICY)
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: the terminal is the reader's."""
