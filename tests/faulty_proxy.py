"""A loopback proxy in front of an S3 server that misbehaves: errors, resets, stalls, cut and wrong bytes. Seeded."""

from __future__ import annotations

import contextlib
import http.client
import random
import socket
import struct
import threading
import time
from collections import Counter
from urllib.parse import urlsplit

from tests.loopback import LoopbackServer, QuietHandler


class FaultyProxy(LoopbackServer):
    """`share` of the requests go wrong, one of the ways in `_FAULTS`. Counts what it did."""

    def __init__(self, target: str, share: float, seed: int) -> None:
        super().__init__(_Handler)
        self.target = urlsplit(target).netloc
        self.share = share
        self.random = random.Random(seed)
        self.lock = threading.Lock()
        self.done: Counter[str] = Counter()

    def fate(self) -> str:
        with self.lock:
            fate = self.random.choice(_FAULTS) if self.random.random() < self.share else "fine"
            self.done[fate] += 1
            return fate


_FAULTS = ("500", "503", "reset before", "reset after", "stall", "cut", "wrong bytes")
"""`reset after`: the request was carried out and its reply is lost."""


class _Handler(QuietHandler):
    server: FaultyProxy

    def handle_one_request(self) -> None:
        with contextlib.suppress(ConnectionError, BrokenPipeError):
            super().handle_one_request()

    def _forward(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        fate = self.server.fate()
        if fate in ("500", "503"):
            return self._answer(int(fate), [], b"<Error><Code>InternalError</Code></Error>")
        if fate == "reset before":
            return self._reset()
        if fate == "stall":
            time.sleep(0.5)
        connection = http.client.HTTPConnection(self.server.target, timeout=60)
        with contextlib.closing(connection):
            connection.request(self.command, self.path, body or None, dict(self.headers))
            answer = connection.getresponse()
            data = answer.read()
        if fate == "reset after":
            return self._reset()
        headers = [
            (k, v)
            for k, v in answer.getheaders()
            if k.lower() not in ("content-length", "transfer-encoding", "connection")
        ]
        if self.command == "HEAD":
            headers.append(("Content-Length", answer.getheader("Content-Length", "0")))
        if self.command == "GET" and data and fate == "wrong bytes" and "list-type" not in self.path:
            position = self.server.random.randrange(len(data))
            data = data[:position] + bytes([data[position] ^ 4]) + data[position + 1 :]
        if self.command == "GET" and len(data) > 1 and fate == "cut":
            self._answer(answer.status, headers, data[: len(data) // 2], length=len(data))
            return self._reset()
        return self._answer(answer.status, headers, data)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _forward

    def _answer(self, status: int, headers: list[tuple[str, str]], data: bytes, length: int | None = None) -> None:
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        if self.command != "HEAD":
            self.send_header("Content-Length", str(len(data) if length is None else length))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)
            self.wfile.flush()

    def _reset(self) -> None:
        """Close with RST, as a broken middlebox does."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.connection.close()
