"""A Hub on loopback, for the real client: models, data sets, whoami, and W&B's one question.

It answers as the Hub does, with its headers: the client tells a gated model from a missing one by `X-Error-Code`.
"""

from __future__ import annotations

import base64
import contextlib
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class HubServer:
    """What is there, and who may see it."""

    models: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Their config.json."""
    sets: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Their card's `dataset_info`."""
    gated: set[str] = field(default_factory=set)
    people: dict[str, dict[str, Any]] = field(default_factory=dict)
    """By token."""
    admitted: set[str] = field(default_factory=set)
    """Tokens that may see what is gated."""
    keys: dict[str, str] = field(default_factory=dict)
    """W&B's, and whose they are."""
    broken: bool = False
    """Every answer is a 503."""
    url: str = ""
    asked: list[str] = field(default_factory=list)

    @contextlib.contextmanager
    def running(self) -> Iterator[HubServer]:
        """On a free port of loopback."""
        handler = type("Handler", (_Handler,), {"hub": self})
        server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            server.shutdown()
            server.server_close()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    hub: HubServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        self.hub.asked.append(self.path)
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if self.hub.broken:
            return self._say(503, {"error": "down"})
        if token and token not in self.hub.people:
            return self._say(401, {"error": "Invalid credentials in Authorization header"})
        path = self.path.partition("?")[0].strip("/")
        if path == "api/whoami-v2":
            return self._say(200, self.hub.people[token]) if token else self._say(401, {"error": "who?"})
        for kind, known in (("models", self.hub.models), ("datasets", self.hub.sets)):
            if path.startswith(f"api/{kind}/"):
                return self._info(path.removeprefix(f"api/{kind}/"), kind, known, token)
        name, _, rest = path.partition("/resolve/")
        if name not in self.hub.models:
            return self._say(404, {"error": "no"}, error="RepoNotFound")
        return self._file(self.hub.models[name], rest, name, token)

    def do_POST(self) -> None:
        length = int(self.headers.get("Content-Length", 0))
        assert b"viewer" in self.rfile.read(length)
        _, _, coded = (self.headers.get("Authorization") or "").partition("Basic ")
        key = base64.b64decode(coded).decode().removeprefix("api:")
        if self.hub.broken:
            return self._say(503, {"error": "down"})
        if key not in self.hub.keys:
            return self._say(401, {"errors": ["no"]})
        return self._say(200, {"data": {"viewer": {"username": self.hub.keys[key]}}})

    def _info(self, rest: str, kind: str, known: dict[str, dict[str, Any]], token: str) -> None:
        rest = rest.removesuffix("/auth-check") if (checked := rest.endswith("/auth-check")) else rest
        name, _, revision = rest.partition("/revision/")
        if name not in known:  # to whoever has no token the Hub doesn't tell what is missing from what is private
            if not token:
                return self._say(401, {"error": "Invalid username or password."})
            return self._say(404, {"error": "Repository not found"}, error="RepoNotFound")
        if revision not in ("", "main"):
            return self._say(404, {"error": "Invalid rev id"}, error="RevisionNotFound")
        if checked and name in self.hub.gated and token not in self.hub.admitted:
            return self._say(403, {"error": "gated"}, error="GatedRepo")
        told: dict[str, Any] = {"id": name, "sha": COMMIT, "gated": "manual" if name in self.hub.gated else False}
        return self._say(200, told | ({"cardData": {"dataset_info": known[name]}} if kind == "datasets" else {}))

    def _file(self, config: dict[str, Any], rest: str, name: str, token: str) -> None:
        if name in self.hub.gated and token not in self.hub.admitted:
            return self._say(403, {"error": "gated"}, error="GatedRepo")
        if not rest.endswith("/config.json") or not config:
            return self._say(404, {"error": "no such file"}, error="EntryNotFound")
        return self._say(200, config, etag=f'"{abs(hash(json.dumps(config)))}"')

    def _say(self, status: int, told: dict[str, Any], error: str = "", etag: str = "") -> None:
        body = json.dumps(told).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("X-Repo-Commit", COMMIT)
        if etag:
            self.send_header("ETag", etag)
        if error:
            self.send_header("X-Error-Code", error)
        if "error" in told:
            self.send_header("X-Error-Message", str(told["error"]))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
