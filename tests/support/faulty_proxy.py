"""A loopback proxy in front of an S3 server that misbehaves: errors, throttling, resets, stalls, cut and wrong bytes. Seeded."""

from __future__ import annotations

import contextlib
import http.client
import random
import socket
import struct
import threading
import time
from collections import Counter
from typing import NamedTuple
from urllib.parse import urlsplit

from tests.support.loopback import LoopbackServer, QuietHandler

_REFUSALS = {"500": "InternalError", "503": "SlowDown", "429": "TooManyRequests"}
_ANY = (*_REFUSALS, "reset before", "reset after", "stall")
"""`reset after`: the request was carried out and its reply is lost."""
FAULTS = {
    "PUT": (*_ANY, "cut"),
    "POST": (*_ANY, "cut"),
    "GET": (*_ANY, "cut", "wrong bytes"),
    "LIST": (*_ANY, "cut"),  # nobody could tell a wrong name in a listing
    "DELETE": _ANY,
    "HEAD": _ANY,
}
"""What can go wrong with which request. `cut` is the body: of a PUT on its way to the server, of a GET on its way back."""


ANSWERS = {**_REFUSALS, "403": "AccessDenied"}
"""Faults that are an answer of their own, without asking the server. A 403 is no matter of chance."""


class Deed(NamedTuple):
    """What was done to a request."""

    request: str
    fault: str


class FaultyProxy(LoopbackServer):
    """`share` of the requests go wrong, each kind in `FAULTS` as often as the others. Counts what it has done."""

    def __init__(self, target: str, share: float, seed: int, stall_s: float = 0.5) -> None:
        super().__init__(_Handler)
        self.target = urlsplit(target).netloc
        self.share = share
        self.stall_s = stall_s
        self.random = random.Random(seed)
        self.lock = threading.Lock()
        self.done: Counter[Deed] = Counter()
        self._decks: dict[str, list[str]] = {request: [] for request in FAULTS}

    def fate(self, request: str) -> str:
        """The fault of this request, '' = none. From a shuffled deck: a few requests have every kind among them."""
        with self.lock:
            if self.random.random() >= self.share:
                return ""
            deck = self._decks[request]
            if not deck:
                deck += self.random.sample(FAULTS[request], len(FAULTS[request]))
            return deck.pop()

    def put_back(self, request: str, fault: str) -> None:
        """It could not be done to this request; the next one that goes wrong gets it."""
        with self.lock:
            self._decks[request].append(fault)

    def count(self, request: str, fault: str) -> None:
        with self.lock:
            self.done[Deed(request, fault)] += 1


class _Handler(QuietHandler):
    server: FaultyProxy

    def handle_one_request(self) -> None:
        with contextlib.suppress(ConnectionError, BrokenPipeError):
            super().handle_one_request()

    def _forward(self) -> None:
        request = "LIST" if self.command == "GET" and "list-type" in self.path else self.command
        fault = self.server.fate(request)
        size_bytes = int(self.headers.get("Content-Length", 0))
        if fault == "cut" and request in ("PUT", "POST"):
            self.rfile.read(size_bytes // 2)
            return self._reset(request, fault)
        body = self.rfile.read(size_bytes)
        if fault in ANSWERS:
            self.server.count(request, fault)
            return self._answer(int(fault), [], f"<Error><Code>{ANSWERS[fault]}</Code></Error>".encode())
        if fault == "reset before":
            return self._reset(request, fault)
        if fault == "stall":
            self.server.count(request, fault)
            time.sleep(self.server.stall_s)
        answer, headers, data = self._ask(body)
        if fault in ("cut", "wrong bytes") and (answer.status >= 300 or len(data) < 2):
            self.server.put_back(request, fault)  # an answer without an object in it
            fault = "reset after"
        if fault == "reset after":
            return self._reset(request, fault)
        if fault == "cut":
            self._answer(answer.status, headers, data[: len(data) // 2], length=len(data))
            return self._reset(request, fault)
        if fault == "wrong bytes":
            self.server.count(request, fault)
            position = self.server.random.randrange(len(data))
            data = data[:position] + bytes([data[position] ^ 4]) + data[position + 1 :]
        return self._answer(answer.status, headers, data)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _forward

    def _ask(self, body: bytes) -> tuple[http.client.HTTPResponse, list[tuple[str, str]], bytes]:
        """The server's own answer."""
        connection = http.client.HTTPConnection(self.server.target, timeout=60)
        with contextlib.closing(connection):
            connection.request(self.command, self.path, body or None, dict(self.headers))
            answer = connection.getresponse()
            data = answer.read()
        hop_by_hop = ("content-length", "transfer-encoding", "connection")
        headers = [(name, value) for name, value in answer.getheaders() if name.lower() not in hop_by_hop]
        if self.command == "HEAD":
            headers.append(("Content-Length", answer.getheader("Content-Length", "0")))
        return answer, headers, data

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

    def _reset(self, request: str, fault: str) -> None:
        """Close with RST, as a broken middlebox does."""
        self.server.count(request, fault)
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.connection.close()
