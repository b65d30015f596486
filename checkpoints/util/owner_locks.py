"""Folders whose owner is alive: it holds a lock in them, which the kernel releases when it dies.

A process that is killed can't clean up. So the next one tries the lock, and may remove what dead owners left.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from checkpoints.errors import StoreError

LOCK = "lock"
MOST_RACES = 100
"""Consecutive races with processes that remove dead owners' folders."""

_held: dict[Path, int] = {}


def _release_all() -> None:
    """Runs in a forked child, such as a data loader's worker: it shares the locks, and may outlive their owner."""
    while _held:
        os.close(_held.popitem()[1])


os.register_at_fork(after_in_child=_release_all)


def hold(folder: Path, *, alone: bool = False) -> None:
    """Create this folder and mark its owner as alive, until `release` or the end of this process.

    Several processes may own it, unless `alone`. Raises `BlockingIOError` if another one owns it and `alone` is set.
    """
    for _ in range(MOST_RACES):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o600)
        except FileNotFoundError:
            continue  # removed between its creation and the lock
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB if alone else fcntl.LOCK_SH)
        except BlockingIOError:
            os.close(descriptor)
            raise
        if os.fstat(descriptor).st_nlink:
            release(folder)
            _held[folder] = descriptor
            return
        os.close(descriptor)
    raise StoreError(f"{folder} is removed as often as it is created")


def release(folder: Path) -> None:
    """Release the folder's lock; does nothing if this process doesn't hold it."""
    descriptor = _held.pop(folder, None)
    if descriptor is not None:
        os.close(descriptor)


@contextlib.contextmanager
def dead(folder: Path) -> Iterator[bool]:
    """Are all owners of the folder dead? None can take it while the block runs. Raises `OSError`."""
    descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            free = False
        else:
            free = True
        yield free
    finally:
        os.close(descriptor)
