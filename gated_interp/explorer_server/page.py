"""The page's server: answers this machine alone, one state at a time, and keeps none."""

import asyncio
import html
import json
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Executor
from contextlib import asynccontextmanager
from importlib.resources import files
from string import Template
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.routing import Route

from gated_interp.explorer.script import script

HOST = "127.0.0.1"
LONGEST = 2**20  # bytes of a request
# Whatever a label says, the page runs its own script only and asks nobody else for anything.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; font-src 'self'; "
    "img-src data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = [("Content-Security-Policy", POLICY), ("Cache-Control", "no-store")]
HEADERS += [("X-Content-Type-Options", "nosniff")]
# What the page is made of.
PARTS = {
    "explorer/explorer.css": "text/css",
    "explorer_server/page.css": "text/css",
    "plots/fonts/gated-interp.ttf": "font/ttf",
    "plots/fonts/gated-interp-Bold.ttf": "font/ttf",
}
REFUSALS = {
    400: "The explorer does not understand this request. Reload the page and try again.",
    403: f"The explorer answers only its own page, opened at {HOST} on this computer.",
    404: "There is no such page. The explorer's page is at the address without a path.",
    413: "The explorer reads at most 1 MB at once. Shorten the text, or choose a smaller file.",
    415: "The explorer reads JSON only. Send the request as application/json.",
    503: "The explorer has stopped. Start it again with gated-interp explore.",
}
Answer = Callable[[dict[str, Any]], bytes]


def page_server(name: str, port: int, answer: Answer, worker: Executor) -> uvicorn.Server:
    """The server of the explorer's page; its ``run`` takes a socket that listens at ``port``.

    Args:
        name: of the model.
        answer: from a request (what is asked for, and ``at``, the state it is asked in) to what the
            page is to show.
        worker: where ``answer`` runs; with one thread, as hooks are the model's.
    """
    package = files("gated_interp")
    page = Template((package / "explorer_server" / "page.html").read_text(encoding="utf-8"))
    text = page.substitute(name=html.escape(name)).encode(errors="replace")
    made: dict[str, Response] = {"/": HTMLResponse(text)}
    for path, kind in PARTS.items():
        part = Response(package.joinpath(path).read_bytes(), media_type=kind)
        made[f"/{path.rpartition('/')[2]}"] = part
    made["/explorer.js"] = Response(script().encode(), media_type="text/javascript")
    allowed = {f"{host}:{port}" for host in (HOST, "localhost")}

    def require_local(request: Request) -> None:
        """No other name may lead here, and no other page may ask."""
        host = request.headers.get("Host", "")
        origin = request.headers.get("Origin", host).removeprefix("http://")
        if not {host, origin} <= allowed:
            raise HTTPException(403)

    async def get(request: Request) -> Response:
        require_local(request)
        if request.scope["path"] not in made:
            raise HTTPException(404)
        return made[request.scope["path"]]

    async def state(request: Request) -> Response:
        require_local(request)
        kind = request.headers.get("Content-Type", "").partition(";")[0].strip().lower()
        if kind != "application/json":  # another page can send other types without asking
            raise HTTPException(415)
        try:
            asked = json.loads(await _body(request))
        except (ValueError, RecursionError) as error:
            raise HTTPException(400) from error
        if not isinstance(asked, dict):
            raise HTTPException(400)
        try:
            found = await asyncio.get_running_loop().run_in_executor(worker, answer, asked)
        except asyncio.CancelledError as stop:
            raise HTTPException(503) from stop
        except BaseException as problem:  # a panic in a tokenizer is no Exception
            what = f"{type(problem).__name__}: {problem}".partition("\n")[0]
            said = f"The explorer cannot show this ({what}). Reload the page, or try another state."
            raise HTTPException(500, said) from problem
        return Response(found, media_type="application/octet-stream")

    @asynccontextmanager
    async def silent(app: Starlette) -> AsyncIterator[None]:
        """Nothing is said of those who break off or send what is no request."""
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: None)
        yield

    app = Starlette(
        routes=[Route("/state", state, methods=["POST"]), Route("/{path:path}", get)],
        exception_handlers={HTTPException: _refused},
        lifespan=silent,
    )
    return uvicorn.Server(
        uvicorn.Config(
            app,
            # Named, so that nothing else that is installed takes their place.
            loop="asyncio",
            http="h11",
            ws="none",
            lifespan="on",
            # Nothing is logged: the terminal is the reader's.
            log_config=None,
            log_level="critical",
            server_header=False,
            headers=HEADERS,
            timeout_keep_alive=3600,  # closed sooner, a line may close just as the page asks
            timeout_graceful_shutdown=2,  # seconds for those who still ask when it stops
        )
    )


async def _body(request: Request) -> bytes:
    """All that is sent, where it is not too long; Starlette's own limit has no sentence."""
    said = request.headers.get("Content-Length", "")
    too_long, body = said.isdecimal() and int(said) > LONGEST, bytearray()
    if not too_long:
        async for part in request.stream():
            body += part
            too_long = len(body) > LONGEST
            if too_long:
                break
    if too_long:
        raise HTTPException(413)
    return bytes(body)


async def _refused(request: Request, problem: Exception) -> Response:
    assert isinstance(problem, HTTPException)
    said = REFUSALS.get(problem.status_code, problem.detail)
    return PlainTextResponse(said.encode(errors="replace"), problem.status_code, problem.headers)
