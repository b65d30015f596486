"""The store of a run that has been claimed: from then on, refused credentials are treated as a transient fault.

Before the claim a refusal means wrong keys, and `AccessDenied` ends the launch at once. After it the same keys have
worked: a token has expired and is about to be refreshed, a clock is off, a policy change hasn't reached every server
of the store. So the call is retried with back-off, and then it is a `StoreError` like any other outage.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import stamina

from checkpoints.errors import AccessDenied, StoreError
from checkpoints.run_log.run_record import open_run
from checkpoints.storage.base import Buffer, Entry, Seen, Store, Stored, ignore

T = TypeVar("T")

REFUSALS = 6
REFUSED_FOR_S = 60.0
"""A refusal is final after this many consecutive tries, or this long. The store's clients retry everything else."""

_retried = stamina.retry(on=AccessDenied, attempts=REFUSALS, timeout=REFUSED_FOR_S, wait_initial=1.0, wait_max=15.0)


class ClaimedStore:
    """The store, with refusals as `StoreError`s."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.bytes_read = 0
        """Bytes read through this store, approximately: several threads count."""

    @property
    def url(self) -> str:
        return self._store.url

    def reconnected(self) -> ClaimedStore:
        return ClaimedStore(_call(self._store.reconnected))

    def get(self, key: str) -> Stored:
        found = _call(lambda: self._store.get(key))
        self.bytes_read += len(found.data)
        return found

    def get_range(self, key: str, start: int, length: int) -> memoryview:
        found = _call(lambda: self._store.get_range(key, start, length))
        self.bytes_read += len(found)
        return found

    def read_into(self, key: str, target: memoryview, seen: Seen = ignore) -> int:
        def counting(piece: memoryview) -> None:
            self.bytes_read += len(piece)
            seen(piece)

        return _call(lambda: self._store.read_into(key, target, counting))

    def create(self, key: str, data: Buffer) -> str:
        return _call(lambda: self._store.create(key, data))

    def swap(self, key: str, data: Buffer, token: str) -> str:
        return _call(lambda: self._store.swap(key, data, token))

    def put(self, key: str, data: Buffer) -> None:
        _call(lambda: self._store.put(key, data))

    def put_file(self, key: str, path: Path) -> None:
        _call(lambda: self._store.put_file(key, path))

    def list(self, prefix: str) -> Iterable[Entry]:
        # The whole listing within the retry: a lazy one would be refused outside it.
        return _call(lambda: list(self._store.list(prefix)))

    def folders(self) -> Sequence[str]:
        return _call(self._store.folders)

    def delete(self, key: str) -> None:
        _call(lambda: self._store.delete(key))


def open_claimed_run(bucket_url: str, name: str, environment: Mapping[str, str] | None = None) -> ClaimedStore:
    """`open_run` for a process of the attempt that holds the run. Raises `StoreError` if credentials are missing."""
    return ClaimedStore(_call(lambda: open_run(bucket_url, name, environment)))


def _call(act: Callable[[], T]) -> T:
    try:
        return _retried(act)()
    except AccessDenied as error:
        raise StoreError(error.message, error.hint) from error
