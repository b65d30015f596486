"""Readers of a checkpoint leave a lease in the bucket, so that it is not deleted meanwhile.

Attempts need none: only the holder of the run deletes, and it isn't restoring then. Tools read in parallel, for as long
as a slow link takes.

This needs no correct clock. A reader first writes its record and then checks whether HEAD still names the checkpoint.
If so, its tombstone is later than the record, and the collector lists the records after it has read the tombstones. A
live reader renews its record regularly: the collector measures how long it was unchanged, on its own clock, and never
uses the time in it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import socket
import threading
import uuid
from collections.abc import Iterator, Sequence
from datetime import timedelta

from pydantic import AwareDatetime, Field

from checkpoints.commit.head import read_head
from checkpoints.commit.retention import Commit
from checkpoints.errors import BucketUnusable, CorruptCheckpoint, NotusError, StoreError
from checkpoints.records.manifest import Key, Record
from checkpoints.records.verified_reads import read_if_there
from checkpoints.storage.base import Store
from checkpoints.util.clock import Clock, SystemClock
from checkpoints.util.stillness import Unchanged

FOLDER = "readers"
VALID = timedelta(hours=1)
"""A record that the collector has seen unchanged for this long no longer protects anything."""
RENEW_S = 1200.0

logger = logging.getLogger(__name__)


class Reader(Record):
    """A process that reads checkpoints."""

    version: int = 1
    manifests: tuple[Key, ...]
    until: AwareDatetime = Field(description="by the reader's clock: new with each renewal, and for people")
    host: str
    pid: int


@contextlib.contextmanager
def reading(store: Store, commits: Sequence[Commit]) -> Iterator[None]:
    """Keep `commits` in the bucket while the block runs, however long. Without write permission it only warns.

    Raises `StoreError` if one of them was replaced since HEAD was read.
    """
    key, clock, over = f"{FOLDER}/{uuid.uuid4().hex}.json", SystemClock(), threading.Event()
    try:
        announce(store, key, commits, clock)
    except BucketUnusable as error:
        logger.warning("if the run is active, it may delete what is read here: %s", error.message)
        yield
        return
    renewing = threading.Thread(target=_renew, args=(store, key, commits, clock, over), daemon=True)
    renewing.start()
    try:
        yield
    finally:
        over.set()
        renewing.join()
        with contextlib.suppress(NotusError):  # it expires by itself
            store.delete(key)


def announce(store: Store, key: str, commits: Sequence[Commit], clock: Clock) -> None:
    """Record under `key` that `commits` are being read. Raises `StoreError` if HEAD no longer names one of them."""
    _write(store, key, commits, clock)
    head = read_head(store)
    named = {commit.manifest for commit in head.commits} if head else set()
    for commit in commits:
        if commit.manifest not in named:
            store.delete(key)
            raise StoreError(f"the checkpoint of step {commit.step} has just been replaced", "start again")


def manifests_being_read(store: Store, unchanged: Unchanged) -> set[str]:
    """Keys of the manifests that must not be deleted now. Records of dead readers are deleted.

    `unchanged` is the caller's memory. A record that it hasn't seen before belongs to a live reader.
    """
    found: set[str] = set()
    for entry in store.list(FOLDER):
        try:
            reader = read_if_there(store, entry.key, Reader)
        except CorruptCheckpoint:
            reader = None
        if reader is not None and unchanged.seconds(entry.key, reader.until.isoformat()) < VALID.total_seconds():
            found.update(reader.manifests)
        else:
            store.delete(entry.key)
    return found


def _write(store: Store, key: str, commits: Sequence[Commit], clock: Clock) -> None:
    manifests = tuple(commit.manifest for commit in commits)
    # Random microseconds: a renewal has to be visible, even if the clock stands still.
    until = clock.now() + VALID + timedelta(microseconds=secrets.randbelow(1_000_000))
    reader = Reader(manifests=manifests, until=until, host=socket.gethostname(), pid=os.getpid())
    store.put(key, reader.to_json())


def _renew(store: Store, key: str, commits: Sequence[Commit], clock: Clock, over: threading.Event) -> None:
    while not over.wait(RENEW_S):
        try:
            _write(store, key, commits, clock)
        except NotusError as error:  # the next try may work; until then the last record is valid
            logger.warning("can't renew the lease for reading %s: %s", store.url, error.message)
