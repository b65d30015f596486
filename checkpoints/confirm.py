"""Damage is believed only when it is seen several times: it may have happened on the way."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from checkpoints.errors import CorruptCheckpoint, ObjectMissing
from checkpoints.manifest import Record, parse
from checkpoints.store import READ_ATTEMPTS, Store

T = TypeVar("T")
R = TypeVar("R", bound=Record)


def confirmed(read: Callable[[], T]) -> T:
    """`read()`, again while it raises `CorruptCheckpoint`, a few times."""
    for _ in range(READ_ATTEMPTS - 1):
        try:
            return read()
        except CorruptCheckpoint:
            continue
    return read()


def read_record(store: Store, key: str, record: type[R]) -> R:
    """Read and parse one record; raises `ObjectMissing` or `CorruptCheckpoint`."""
    return confirmed(lambda: parse(record, store.get(key).data, f"{store.url}/{key}"))


def read_if_there(store: Store, key: str, record: type[R]) -> R | None:
    """`read_record`, or None where there is no such object."""
    try:
        return read_record(store, key, record)
    except ObjectMissing:
        return None
