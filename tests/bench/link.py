"""A narrow link on loopback: connections to a server whose bytes all pass at one bandwidth, in each direction."""

from __future__ import annotations

import contextlib
import socket
import socketserver
import threading
import time
from collections.abc import Iterator

PIECE_BYTES = 64 << 10


class _Bandwidth:
    """Shared by all connections, as in a network card."""

    def __init__(self, bytes_per_second: float) -> None:
        self._bytes_per_second = bytes_per_second
        self._free_at = 0.0
        self._lock = threading.Lock()

    def take(self, size_bytes: int) -> None:
        with self._lock:
            self._free_at = max(self._free_at, time.monotonic()) + size_bytes / self._bytes_per_second
            wait_s = self._free_at - time.monotonic()
        if wait_s > 0:
            time.sleep(wait_s)


class _Link(socketserver.ThreadingTCPServer):
    daemon_threads = True

    def __init__(self, target: tuple[str, int], bytes_per_second: float) -> None:
        super().__init__(("127.0.0.1", 0), _Connection)
        self.target = target
        self.up, self.down = (_Bandwidth(bytes_per_second) for _ in range(2))


class _Connection(socketserver.BaseRequestHandler):
    server: _Link

    def handle(self) -> None:
        with socket.create_connection(self.server.target) as far:
            threading.Thread(target=_pass_on, args=(far, self.request, self.server.down), daemon=True).start()
            _pass_on(self.request, far, self.server.up)


def _pass_on(source: socket.socket, target: socket.socket, bandwidth: _Bandwidth) -> None:
    with contextlib.suppress(OSError):
        while piece := source.recv(PIECE_BYTES):
            bandwidth.take(len(piece))
            target.sendall(piece)
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_WR)


@contextlib.contextmanager
def narrow_link(port: int, bytes_per_second: float) -> Iterator[int]:
    """Yields the port that leads to `port`."""
    with _Link(("127.0.0.1", port), bytes_per_second) as link:
        threading.Thread(target=link.serve_forever, args=(0.02,), daemon=True).start()
        yield link.server_address[1]
        link.shutdown()
