"""Folders of attempts on this machine: a lock shows which attempts are alive, and the next one removes the others.

A launcher or an attempt that is killed can't clean up. Its folder may hold a base model and an exported one, 14 GB each
for 7B. The kernel releases a dead process's lock, so the next attempt here, of any run, can tell.
"""

from __future__ import annotations

import contextlib
import shutil
import time
from pathlib import Path

from checkpoints.util import owner_locks

TEXTS = (".txt", ".json")
"""What is kept of a failed attempt: its log and its own records."""
TEXTS_KEPT_S = 7 * 86400.0
UNLOCKED_KEPT_S = 86400.0
"""A folder without a lock is just being created, or was left by an older version."""


def release(folder: Path, *, keep_texts: bool = False) -> None:
    """Remove the folder of an attempt that is over, optionally keeping its text files."""
    owner_locks.release(folder)
    _remove(folder, keep_texts=keep_texts)


def sweep(root: Path, pattern: str) -> None:
    """Remove what dead attempts have left in the folders of `root` that match `pattern`.

    Text files of attempts that ended by themselves are removed after a week, everything else immediately.
    """
    for folder in root.glob(pattern):
        with contextlib.suppress(OSError):  # another user's, or another process was faster
            _sweep(folder)
        if folder.parent != root:
            with contextlib.suppress(OSError):  # not empty
                folder.parent.rmdir()


def _sweep(folder: Path) -> None:
    age_s = time.time() - folder.stat().st_mtime
    if not (folder / owner_locks.LOCK).exists():
        if age_s > UNLOCKED_KEPT_S:
            _remove(folder)
        return
    with owner_locks.dead(folder) as dead:
        if dead:
            _remove(folder, keep_texts=(folder / "result.json").exists() and age_s < TEXTS_KEPT_S)


def _remove(folder: Path, *, keep_texts: bool = False) -> None:
    if not keep_texts:
        shutil.rmtree(folder, ignore_errors=True)
        return
    for path in list(folder.iterdir()) if folder.is_dir() else ():
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        elif path.suffix not in TEXTS and path.name != owner_locks.LOCK:
            path.unlink(missing_ok=True)
