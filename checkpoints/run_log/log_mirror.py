"""A growing local file mirrored into the bucket as create-once segments named by their offset.

Object stores can't append. A segment `logs/a0001/000000004096` holds the bytes from offset 4096 on. Whoever has the
file (the attempt, or after its death the launcher on the same machine) can send what is missing; twice is harmless.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from checkpoints.errors import AlreadyExists
from checkpoints.storage.base import Store

SEGMENT_BYTES = 4 << 20


class Journal:
    """Mirrors one file. Not thread-safe."""

    def __init__(self, store: Store, prefix: str, path: Path) -> None:
        self._store = store
        self._prefix = prefix
        self._path = path
        self._sent_bytes: int | None = None

    def sync(self, *, whole: bool = False) -> None:
        """Send what is new; `whole` also sends a last line without a newline."""
        if self._sent_bytes is None:
            self._sent_bytes = _mirrored_bytes(self._store, self._prefix)
        if not self._path.exists():
            return
        with self._path.open("rb") as file:
            file.seek(self._sent_bytes)
            while data := file.read(SEGMENT_BYTES):
                if not whole and len(data) < SEGMENT_BYTES:
                    data = data[: data.rfind(b"\n") + 1]
                if not data:
                    return
                try:
                    self._store.create(f"{self._prefix}/{self._sent_bytes:012d}", data)
                    self._sent_bytes += len(data)
                except AlreadyExists:  # ours, with its reply lost, or the same bytes from another process
                    self._sent_bytes = _mirrored_bytes(self._store, self._prefix)
                file.seek(self._sent_bytes)


def read_journal(store: Store, prefix: str, start: int = 0) -> Iterator[bytes]:
    """Yield the mirrored bytes from offset `start` on, one segment at a time."""
    for entry in store.list(prefix):
        offset = int(entry.key.rsplit("/", 1)[-1])
        if offset + entry.size_bytes > start:
            yield store.get(entry.key).data[max(0, start - offset) :]


def _mirrored_bytes(store: Store, prefix: str) -> int:
    return max((int(entry.key.rsplit("/", 1)[-1]) + entry.size_bytes for entry in store.list(prefix)), default=0)
