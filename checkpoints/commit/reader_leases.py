"""Who reads a checkpoint says so in the bucket, and it is not deleted meanwhile.

Attempts need no such word: only the holder of the run deletes, and it isn't restoring then. Tools read beside it, for
as long as a slow link takes.

Why no clock has to be right for it: a reader first writes its record and then looks whether HEAD still names the
checkpoint. If so, its tombstone comes later than the record, and who collects tombstones lists the records after it
has read them. And a reader that lives writes its record again and again: who collects counts the time in which it stood
still, on a clock of its own, and never reads the time in it.
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
from datetime import datetime, timedelta

from pydantic import Field

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
"""A record that stood still for so long, as the one who collects has seen it, protects nothing more."""
RENEW_S = 1200.0

logger = logging.getLogger(__name__)


class Reader(Record):
    """Somebody who reads checkpoints."""

    version: int = 1
    manifests: tuple[Key, ...]
    until: datetime = Field(description="by the reader's clock: new with each renewal, and for people")
    host: str
    pid: int


@contextlib.contextmanager
def reading(store: Store, commits: Sequence[Commit]) -> Iterator[None]:
    """Keep `commits` in the bucket while the block runs, however long. Without the right to write it only warns.

    Raises `StoreError` if one of them was replaced since HEAD was read.
    """
    key, clock, over = f"{FOLDER}/{uuid.uuid4().hex}.json", SystemClock(), threading.Event()
    try:
        announce(store, key, commits, clock)
    except BucketUnusable as error:
        logger.warning("a run that goes on may delete what is read here: %s", error.message)
        yield
        return
    renewing = threading.Thread(target=_renew, args=(store, key, commits, clock, over), daemon=True)
    renewing.start()
    try:
        yield
    finally:
        over.set()
        renewing.join()
        with contextlib.suppress(NotusError):  # it runs out by itself
            store.delete(key)


def announce(store: Store, key: str, commits: Sequence[Commit], clock: Clock) -> None:
    """Say under `key` that `commits` are being read. Raises `StoreError` if HEAD no longer names one of them."""
    _write(store, key, commits, clock)
    head = read_head(store)
    named = {commit.manifest for commit in head.commits} if head else set()
    for commit in commits:
        if commit.manifest not in named:
            store.delete(key)
            raise StoreError(f"the checkpoint of step {commit.step} has just been replaced", "start again")


def manifests_being_read(store: Store, unchanged: Unchanged) -> set[str]:
    """Keys of the manifests that must not be deleted now. Records of dead readers are deleted.

    `unchanged` is the memory of the one who asks. A record that it hasn't seen before belongs to a living reader.
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
    # Some of its microseconds by chance: a renewal has to be seen, also by a clock that stands still.
    until = clock.now() + VALID + timedelta(microseconds=secrets.randbelow(1_000_000))
    reader = Reader(manifests=manifests, until=until, host=socket.gethostname(), pid=os.getpid())
    store.put(key, reader.to_json())


def _renew(store: Store, key: str, commits: Sequence[Commit], clock: Clock, over: threading.Event) -> None:
    while not over.wait(RENEW_S):
        try:
            _write(store, key, commits, clock)
        except NotusError as error:  # the next time may work; until then the last word is valid
            logger.warning("can't renew the word that %s is read: %s", store.url, error.message)
