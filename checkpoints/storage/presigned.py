"""GET straight into existing memory, by presigned URLs or with a token.

obstore returns fresh memory for everything it reads, and touching fresh pages costs several times what the network
does (storage-facts: 1.7-1.9 CPU-s/GB, a raw range GET 0.25). Here the kernel writes into the final buffer. Retries and
unexpected responses are left to obstore: callers fall back to it.
"""

from __future__ import annotations

import http.client
import ssl
import threading
import weakref
from collections.abc import Callable
from typing import NamedTuple
from urllib.parse import urlsplit

from checkpoints.storage.base import PIECE_BYTES, Seen

CONNECT_S = 5.0
TIMEOUT_S = 30.0
"""How long the connection may be silent."""


class Request(NamedTuple):
    """What it takes to GET an object."""

    url: str
    headers: dict[str, str]


class UnexpectedAnswer(OSError):
    """A response that is neither the bytes nor a clear 'no such object'."""


class SignedReader:
    """Keeps idle connections for the next read, and closes them when it is garbage-collected.

    A host that can't be reached at the first try is not tried again: behind a proxy, which obstore uses and we don't,
    every chunk would wait `CONNECT_S` for nothing.
    """

    def __init__(self, sign: Callable[[str], Request]) -> None:
        self._sign = sign  # the request for a key; raises OSError if there is none
        self._idle: list[tuple[str, http.client.HTTPConnection]] = []
        self._reachable: dict[str, bool] = {}
        self._lock = threading.Lock()
        weakref.finalize(self, _close_all, self._idle)

    def read_into(self, key: str, target: memoryview, seen: Seen) -> int:
        """Fill `target` from the start of the object, as far as it goes; return the object's size.

        `seen` as in `Store.read_into`.

        Raises:
            FileNotFoundError: 404.
            OSError: anything else that isn't a plain response; read it another way.
        """
        url, headers = self._sign(key)
        parts = urlsplit(url)
        host = f"{parts.scheme}://{parts.netloc}"
        connection = self._take(host) or self._connect(host)
        try:
            path = f"{parts.path}?{parts.query}" if parts.query else parts.path
            connection.request("GET", path, headers={**headers, "Range": f"bytes=0-{len(target) - 1}"})
            size_bytes = _receive(connection.getresponse(), target, key, seen)
        except BaseException as error:
            connection.close()
            if isinstance(error, http.client.HTTPException):
                raise UnexpectedAnswer(f"{key}: {error}") from error
            raise
        with self._lock:
            self._idle.append((host, connection))
        return size_bytes

    def _take(self, host: str) -> http.client.HTTPConnection | None:
        with self._lock:
            for index, (known, _) in enumerate(self._idle):
                if known == host:
                    return self._idle.pop(index)[1]
        return None

    def _connect(self, host: str) -> http.client.HTTPConnection:
        if not self._reachable.get(host, True):
            raise UnexpectedAnswer(f"{host} could not be reached before")
        connection = _connection(host)
        try:
            connection.connect()
        except OSError:
            self._reachable.setdefault(host, False)  # if it was reached before, this is transient
            raise
        self._reachable[host] = True
        connection.timeout = TIMEOUT_S
        connection.sock.settimeout(TIMEOUT_S)
        return connection


def _connection(host: str) -> http.client.HTTPConnection:
    scheme, _, netloc = host.partition("://")
    if scheme == "https":
        return http.client.HTTPSConnection(netloc, timeout=CONNECT_S, context=ssl.create_default_context())
    return http.client.HTTPConnection(netloc, timeout=CONNECT_S)


def _close_all(idle: list[tuple[str, http.client.HTTPConnection]]) -> None:
    for _, connection in idle:
        connection.close()


def _receive(answer: http.client.HTTPResponse, target: memoryview, key: str, seen: Seen) -> int:
    if answer.status == 404:
        answer.read()
        raise FileNotFoundError(key)
    content_range = answer.getheader("Content-Range", "")
    if answer.status != 206 or "/" not in content_range:
        raise UnexpectedAnswer(f"{key}: HTTP {answer.status}")
    size_bytes = int(content_range.rsplit("/", 1)[1])
    position, wanted = 0, min(size_bytes, len(target))
    while position < wanted:
        count = answer.readinto(target[position : min(wanted, position + PIECE_BYTES)])
        if not count:
            raise UnexpectedAnswer(f"{key}: the response ended after {position} of {wanted} bytes")
        seen(target[position : position + count])
        position += count
    answer.read()
    return size_bytes
