"""A hub of models on loopback, as far as ``huggingface_hub`` needs one to move a single file.

Repositories live in memory, each a list of commits (all its files by path). Spoken: create a
repository, check a card, preupload, commit with the file inside it, and ``resolve`` (HEAD and GET).
Refusals carry the real hub's ``X-Error-Code``. The real hub takes safetensors through its
large-file storage instead; which way is the library's business, and not tested here.
"""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

import yaml

TOKEN = "a-token"


class FakeHub:
    """What the server knows: repositories, and every request it got."""

    def __init__(self) -> None:
        self.repositories: dict[str, list[dict[str, bytes]]] = {}
        self.private: dict[str, Any] = {}
        self.requests: list[str] = []
        self.broken_with: int | None = None
        self.endpoint = ""

    def commit_id(self, repo: str, number: int) -> str:
        return hashlib.sha1(f"{repo} {number}".encode()).hexdigest()

    def files_at(self, repo: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        commits = self.repositories[repo]
        named = {self.commit_id(repo, i): files for i, files in enumerate(commits)}
        newest = self.commit_id(repo, len(commits) - 1)
        revision = newest if revision == "main" else revision
        return (revision, named[revision]) if revision in named else None


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: FakeHub

    def log_message(self, *_: Any) -> None:
        """Stay silent."""

    def do_HEAD(self) -> None:
        self.handle_any()

    def do_GET(self) -> None:
        self.handle_any()

    def do_POST(self) -> None:
        self.handle_any()

    def handle_any(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append(f"{self.command} {path}")
        if self.hub.broken_with:
            return self.answer(self.hub.broken_with, b"out of order")
        writes = self.command == "POST"
        if writes and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self.answer(401, b"{}")
        for method, pattern, act in (
            ("POST", r"/api/validate-yaml", self.validate),
            ("POST", r"/api/repos/create", self.create),
            ("POST", r"/api/models/(.+)/preupload/(.+)", self.preupload),
            ("POST", r"/api/models/(.+)/commit/(.+)", self.commit),
            ("GET HEAD", r"/(.+/.+)/resolve/([^/]+)/(.+)", self.resolve),
        ):
            match = re.fullmatch(pattern, path)
            if match and self.command in method:
                return act(body, *match.groups())
        return self.answer(404, b"{}")

    def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def answer_json(self, status: int, value: Any) -> None:
        self.answer(status, json.dumps(value).encode(), Content_Type="application/json")

    def validate(self, body: bytes) -> None:
        """The checker of model cards, as far as its rules are documented."""
        _, block, _ = json.loads(body)["content"].split("---\n", 2)
        said = yaml.safe_load(block)
        errors = []
        names = said.get("base_model") or []
        for name in [names] if isinstance(names, str) else names:
            if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name):
                errors.append(f'"base_model" with value "{name}" is not valid')
        if not all(isinstance(tag, str) for tag in said.get("tags", [])):
            errors.append('"tags" must be strings')
        answer = {"errors": [{"message": e} for e in errors], "warnings": []}
        self.answer_json(400 if errors else 200, answer)

    def create(self, body: bytes) -> None:
        said = json.loads(body)
        repo = f"{said['organization']}/{said['name']}"
        status = 409 if repo in self.hub.repositories else 200
        if status == 200:
            self.hub.repositories[repo] = [{}]
            self.hub.private[repo] = said.get("visibility", said.get("private"))
        self.answer_json(status, {"url": f"{self.hub.endpoint}/{repo}"})

    def preupload(self, body: bytes, repo: str, revision: str) -> None:
        files = [
            {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False}
            for f in json.loads(body)["files"]
        ]
        self.answer_json(200, {"files": files})

    def commit(self, body: bytes, repo: str, revision: str) -> None:
        if repo not in self.hub.repositories:
            return self.answer(404, b"{}", X_Error_Code="RepoNotFound")
        files = dict(self.hub.repositories[repo][-1])
        for line in body.splitlines():
            said = json.loads(line)
            if said["key"] == "file":
                files[said["value"]["path"]] = base64.b64decode(said["value"]["content"])
        self.hub.repositories[repo].append(files)
        oid = self.hub.commit_id(repo, len(self.hub.repositories[repo]) - 1)
        url = f"{self.hub.endpoint}/{repo}/commit/{oid}"
        return self.answer_json(200, {"commitUrl": url, "commitOid": oid})

    def resolve(self, body: bytes, repo: str, revision: str, path: str) -> None:
        if repo not in self.hub.repositories:
            return self.answer(404, b"{}", X_Error_Code="RepoNotFound")
        found = self.hub.files_at(repo, revision)
        if found is None:
            return self.answer(404, b"{}", X_Error_Code="RevisionNotFound")
        commit, files = found
        if path not in files:
            return self.answer(404, b"{}", X_Error_Code="EntryNotFound", X_Repo_Commit=commit)
        etag = f'"{hashlib.sha256(files[path]).hexdigest()}"'
        return self.answer(200, files[path], ETag=etag, X_Repo_Commit=commit)


@contextmanager
def serving() -> Iterator[FakeHub]:
    """A running fake hub on a free loopback port; stopped on the way out, also after a failure."""
    hub = FakeHub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"hub": hub}))
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
