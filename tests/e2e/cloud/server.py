"""The process that is both clouds: `python -m tests.e2e.cloud.server ROOT FOLDER HOLDS`, inside the clouds' network namespace.

The control API below /control/ is for the tests: GET state; POST capacity, shortage, quota, weather (slow boots, rate limits,
broken GPUs, machines that can't be given back; each replaces what was set), preempt, partition, lose, find, bury.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from http.server import ThreadingHTTPServer
from pathlib import Path
from types import FrameType
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from tests.e2e.cloud import lambda_api
from tests.e2e.cloud.gcp_api import Gcp
from tests.e2e.cloud.machines import API_PORT, GATEWAY, NamespaceMachines
from tests.e2e.cloud.world import Machine, World
from tests.support.loopback import QuietHandler

METADATA_PORT = 80


class Handler(QuietHandler):
    """Both clouds' APIs and the control API."""

    world: World
    gcp: Gcp

    def _handle(self) -> None:
        parts = urlsplit(self.path)
        path, query = unquote(parts.path), dict(parse_qsl(parts.query))
        size = int(self.headers.get("Content-Length") or 0)
        raw = self.rfile.read(size) if size else b""
        try:
            body = json.loads(raw) if raw else {}
        except ValueError:
            body = {}  # the token request is a form
        try:
            answer = self._answer(path, query, body)
        except Exception as error:
            answer = 500, {"error": {"code": 500, "message": repr(error)}}
        if answer is None:
            answer = 404, {"error": {"code": 404, "message": f"not emulated: {self.command} {path}"}}
        status, content = answer
        self.world.note("request", method=self.command, path=path, status=status)
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = do_HEAD = _handle

    def _answer(self, path: str, query: dict[str, str], body: dict[str, Any]) -> tuple[int, Any] | None:
        if path.startswith("/control/"):
            return self._control(path.removeprefix("/control/"), body)
        if path.startswith("/api/v1/"):
            return lambda_api.handle(self.world, self.command, path.removeprefix("/api/v1/"), body, self.headers)
        return self.gcp.handle(self.command, path, query, body)

    def _control(self, path: str, body: dict[str, Any]) -> tuple[int, Any]:
        world = self.world
        match path:
            case "state":
                with world.lock:
                    machines = [vars(machine) for machine in (*world.alive.values(), *world.gone)]
                    return 200, {"machines": machines, "events": [e for e in world.events if e["kind"] != "request"]}
            case "requests":
                return 200, [event for event in world.events if event["kind"] == "request"]
            case "capacity":
                world.capacity = body
            case "shortage":  # beside what is short already
                world.capacity |= body
            case "quota":
                world.quotas = body
            case "weather":
                world.boot_s, world.throttled = body.get("boot_s", 0.0), body.get("throttled", 0)
                world.broken, world.kept = body.get("broken", []), body.get("kept", [])
            case "preempt":
                world.preempt(world.alive[body["id"]], notice=body["notice"])
            case "lose":
                world.lose(world.alive[body["id"]])
            case "find":
                world.find()
            case "bury":
                world.bury()
            case "partition":
                world.partition(world.alive[body["id"]], cut=body["cut"])
        return 200, {}


class Metadata(QuietHandler):
    """Google's metadata server; a machine is known by its address."""

    world: World

    def do_GET(self) -> None:
        machine = self._machine()
        if machine is None or self.headers.get("Metadata-Flavor") != "Google":
            self._send(403, b"")
        elif urlsplit(self.path).path.endswith("/instance/preempted"):
            self._send(200, b"TRUE" if machine.preempted else b"FALSE")
        else:
            self._send(404, b"")

    def _machine(self) -> Machine | None:
        return next((m for m in self.world.of("gcp") if m.ip == self.client_address[0]), None)

    def _send(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Metadata-Flavor", "Google")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def main() -> None:
    """Serve until SIGTERM; then every machine ends."""
    root, folder, holds = map(Path, sys.argv[1:])
    world = World(NamespaceMachines(root, folder, holds))
    Handler.world = Metadata.world = world
    Handler.gcp = Gcp(world)

    def stop(signum: int, frame: FrameType | None) -> None:
        threading.Thread(target=_close, args=(world,)).start()

    signal.signal(signal.SIGTERM, stop)
    metadata = ThreadingHTTPServer((GATEWAY, METADATA_PORT), Metadata)
    threading.Thread(target=metadata.serve_forever, daemon=True).start()
    ThreadingHTTPServer(("0.0.0.0", API_PORT), Handler).serve_forever()


def _close(world: World) -> None:
    world.close()
    os._exit(0)


if __name__ == "__main__":
    main()
