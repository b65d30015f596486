"""Damage is believed only when it is seen several times: it may have happened on the way.

A few reads at once tell a broken answer from a broken object, which is enough for what is only read. Where a checkpoint
would be condemned by it, the reads go over several seconds and through other connections (`believed`): a proxy or a
cache on the way that gives wrong bytes gives them again for a while.
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
"""Before each further look at a checkpoint that seems damaged."""


def confirmed(read: Callable[[], T]) -> T:
    """`read()`, again while it raises `CorruptCheckpoint`, a few times."""
    for _ in range(READ_ATTEMPTS - 1):
        try:
            return read()
        except CorruptCheckpoint:
            continue
    return read()


def believed(store: Store, read: Callable[[Store], T], clock: Clock | None = None) -> T:
    """`read(store)`; while it raises `CorruptCheckpoint` again after seconds, each time through new connections."""
    clock = clock or SystemClock()
    for pause_s in PAUSES_S:
        try:
            return read(store)
        except CorruptCheckpoint as error:
            logger.warning("%s; looking again in %.0f s", error.message, pause_s)
        clock.sleep(pause_s)
        store = store.afresh()
    return read(store)


def read_record(store: Store, key: str, record: type[R]) -> R:
    """Read and parse one record; raises `ObjectMissing` or `CorruptCheckpoint`."""
    return confirmed(lambda: parse(record, store.get(key).data, f"{store.url}/{key}"))


def read_if_there(store: Store, key: str, record: type[R]) -> R | None:
    """`read_record`, or None where there is no such object."""
    try:
        return read_record(store, key, record)
    except ObjectMissing:
        return None
