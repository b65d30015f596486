"""The way to the bucket's server, which can be closed to this machine, where the jobs controllers run, and stays open to the
clouds' machines."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Iterator
from socketserver import BaseRequestHandler, ThreadingTCPServer
from urllib.parse import urlsplit

from tests.e2e.cloud.machines import GATEWAY
from tests.support.seaweed import S3Server

PIECE_BYTES = 1 << 16


class Gate(ThreadingTCPServer):
    """Forwards each connection, or resets it. Must be made in the clouds' network."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, server: S3Server) -> None:
        super().__init__((GATEWAY, 0), _Forward)
        target = urlsplit(server.endpoint)
        self.target = (target.hostname, target.port)
        self.closed = False
        self.turned_away = 0
        """Connections from here while it was closed."""
        self._lock = threading.Lock()
        self._from_here: set[socket.socket] = set()

    @property
    def server(self) -> S3Server:
        """The same, by this way."""
        return S3Server(f"http://{GATEWAY}:{self.server_address[1]}")

    def close_it(self) -> None:
        """For this machine. Its open connections end too."""
        with self._lock:
            self.closed = True
            for connection in self._from_here:
                _reset(connection)

    def open_it(self) -> None:
        """As before."""
        with self._lock:
            self.closed = False

    @contextlib.contextmanager
    def passing(self, connection: socket.socket, client: str) -> Iterator[bool]:
        """May it pass? Known here until the end of the block."""
        here = client == GATEWAY
        with self._lock:
            refused = here and self.closed
            if refused:
                self.turned_away += 1
                _reset(connection)
            elif here:
                self._from_here.add(connection)
        try:
            yield not refused
        finally:
            with self._lock:
                self._from_here.discard(connection)


class _Forward(BaseRequestHandler):
    server: Gate

    def handle(self) -> None:
        with self.server.passing(self.request, self.client_address[0]) as passes:
            if not passes:
                return
            with socket.create_connection(self.server.target) as upstream:
                back = threading.Thread(target=_copy, args=(upstream, self.request), daemon=True)
                back.start()
                _copy(self.request, upstream)
                back.join()


def _copy(source: socket.socket, target: socket.socket) -> None:
    """Until one of them ends; then the other ends too."""
    with contextlib.suppress(OSError):
        while piece := source.recv(PIECE_BYTES):
            target.sendall(piece)
    for end in (source, target):
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)


def _reset(connection: socket.socket) -> None:
    """As a firewall ends it."""
    with contextlib.suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def gated(server: S3Server) -> Iterator[Gate]:
    """Open at first."""
    gate = Gate(server)
    thread = threading.Thread(target=gate.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield gate
    finally:
        gate.shutdown()
        gate.server_close()
        thread.join()
