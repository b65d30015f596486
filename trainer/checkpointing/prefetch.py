"""Starts fetching the checkpoint before torch is imported: the imports take longer than a small restore."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import NamedTuple

from checkpoints.commit.head import Head
from checkpoints.commit.retention import Commit
from checkpoints.errors import CorruptCheckpoint
from checkpoints.records.verified_reads import reread_slowly
from checkpoints.restore.reshard import restore_for
from checkpoints.restore.shard_restore import Restored
from checkpoints.storage.base import Store


class _Result(NamedTuple):
    shard: Restored | None
    error: BaseException | None


class Prefetch:
    """Fetches one rank's state from the newest commit in a thread; older ones only on demand."""

    def __init__(self, store: Store, head: Head, rank: int, world_size: int, local: Path | None = None) -> None:
        """`local`: see `checkpoints.restore.shard_restore.restore_shard`."""
        self._store = store
        self._rank = rank
        self._world_size = world_size
        self._local = local
        self._first = head.commits[0] if head.commits else None
        self._result: _Result | None = None
        self._thread = threading.Thread(target=self._fetch, name="prefetch", daemon=True)
        if self._first is not None:
            self._thread.start()

    def load(self, commit: Commit) -> Restored:
        """This rank's state from `commit`; raises `CorruptCheckpoint` or what the store raised."""
        if commit != self._first:
            return self._restore(commit)
        self._thread.join()
        result, self._result = self._result, None
        if result is None or result.shard is None:
            raise (result.error if result and result.error else CorruptCheckpoint("the prefetch returned nothing"))
        return result.shard

    def _fetch(self) -> None:
        assert self._first is not None
        try:
            self._result = _Result(self._restore(self._first), None)
        except BaseException as error:
            self._result = _Result(None, error)

    def _restore(self, commit: Commit) -> Restored:
        return reread_slowly(
            self._store, lambda store: restore_for(store, commit, self._rank, self._world_size, local=self._local)
        )
