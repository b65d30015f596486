"""Folders whose owner lives: it holds a lock in them, which the kernel takes back when it dies.

Who is killed can't clean up. So whoever comes next asks the lock, and may remove what the dead have left.
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
"""With removers of the dead, in a row."""

_held: dict[Path, int] = {}


def _let_all_go() -> None:
    """In a forked child, such as a data loader's worker: it shares the locks, and may outlive the one they tell of."""
    while _held:
        os.close(_held.popitem()[1])


os.register_at_fork(after_in_child=_let_all_go)


def hold(folder: Path, *, alone: bool = False) -> None:
    """Say that the owner of this folder, which is created, lives, until `let_go` or this process's end.

    Several processes may own one, unless `alone`. Raises `BlockingIOError` where another one owns it and `alone` is
    asked for.
    """
    for _ in range(MOST_RACES):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o600)
        except FileNotFoundError:
            continue  # removed between its making and its locking
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB if alone else fcntl.LOCK_SH)
        except BlockingIOError:
            os.close(descriptor)
            raise
        if os.fstat(descriptor).st_nlink:
            let_go(folder)
            _held[folder] = descriptor
            return
        os.close(descriptor)
    raise StoreError(f"{folder} is removed as often as it is made")


def let_go(folder: Path) -> None:
    """Its owner is done with it; nothing happens where this process holds no lock."""
    descriptor = _held.pop(folder, None)
    if descriptor is not None:
        os.close(descriptor)


@contextlib.contextmanager
def dead(folder: Path) -> Iterator[bool]:
    """Is nobody alive who owns the folder? While the block runs nobody can become its owner. Raises `OSError`."""
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
