"""Re-read before reporting corruption: a bad read may be transient.

A few immediate reads tell a broken response from a broken object (`reread`), which is enough for what is only read. If
a checkpoint would be discarded, the reads are spread over several seconds and use new connections (`reread_slowly`): a
proxy or cache that returns wrong bytes may return them for a while.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeVar

from checkpoints.errors import CorruptCheckpoint, ObjectMissing
from checkpoints.records.manifest import Record, parse
from checkpoints.storage.base import READ_ATTEMPTS, Store
from checkpoints.util.clock import Clock, SystemClock

logger = logging.getLogger(__name__)

T = TypeVar("T")
R = TypeVar("R", bound=Record)

PAUSES_S = (1.0, 4.0)
"""Pauses before each further read of a checkpoint that seems damaged."""


def reread(read: Callable[[], T]) -> T:
    """`read()`, retried a few times while it raises `CorruptCheckpoint`."""
    for _ in range(READ_ATTEMPTS - 1):
        try:
            return read()
        except CorruptCheckpoint:
            continue
    return read()


def reread_slowly(store: Store, read: Callable[[Store], T], clock: Clock | None = None) -> T:
    """`read(store)`, retried while it raises `CorruptCheckpoint`, after seconds and with new connections each time."""
    clock = clock or SystemClock()
    for pause_s in PAUSES_S:
        try:
            return read(store)
        except CorruptCheckpoint as error:
            logger.warning("%s; reading it again in %.0f s", error.message, pause_s)
        clock.sleep(pause_s)
        store = store.reconnected()
    return read(store)


def read_record(store: Store, key: str, record: type[R]) -> R:
    """Read and parse one record; raises `ObjectMissing` or `CorruptCheckpoint`."""
    return reread(lambda: parse(record, store.get(key).data, f"{store.url}/{key}"))


def read_if_there(store: Store, key: str, record: type[R]) -> R | None:
    """`read_record`, or None if there is no such object."""
    try:
        return read_record(store, key, record)
    except ObjectMissing:
        return None
