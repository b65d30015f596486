"""Detect whether a local run's launcher is still alive. It keeps a record in the run's folder while it is.

Only the machine that it ran on can check that; on other machines a timeout decides.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator

import psutil

from checkpoints.commit.head import Head
from checkpoints.errors import CorruptCheckpoint, NotusError
from checkpoints.records.manifest import Record
from checkpoints.records.verified_reads import read_if_there
from checkpoints.storage.base import Store
from trainer.runtime.process_tree import is_alive
from trainer.supervisor.supervisor import pid_scope

LAUNCHER_KEY = "launcher.json"


class LauncherRecord(Record):
    """launcher.json: written when a launcher starts on a local run, deleted when it ends."""

    host: str
    pid: int
    pid_scope: str
    started: float
    """Start of the process, in seconds since the epoch: its pid may have been reused."""


@contextlib.contextmanager
def record_launcher(store: Store) -> Iterator[None]:
    """Keep this process's record in the bucket. A failure to write it is ignored."""
    process = psutil.Process()
    record = LauncherRecord(
        host=socket.gethostname(), pid=process.pid, pid_scope=pid_scope(), started=process.create_time()
    )
    with contextlib.suppress(NotusError):
        store.put(LAUNCHER_KEY, record.to_json())
    try:
        yield
    finally:
        with contextlib.suppress(NotusError):
            store.delete(LAUNCHER_KEY)


def no_process_here(store: Store, head: Head | None, *, silent: bool) -> bool:
    """Is it certain that an unfinished run has neither a launcher nor an attempt that still saves?

    `silent`: its heartbeat doesn't change. False if this machine can't know.
    """
    try:
        launcher = read_if_there(store, LAUNCHER_KEY, LauncherRecord)
    except CorruptCheckpoint:
        launcher = None
    attempt_is_gone = head is None or silent or bool(dead_holder(head))
    if launcher is None:  # `notus-train` by hand, or an older launcher: only the attempt can be checked
        return bool(dead_holder(head))
    return is_gone(launcher) and attempt_is_gone


def is_gone(launcher: LauncherRecord) -> bool:
    """Was it a process on this machine that is no longer alive?"""
    if not launcher.pid_scope or launcher.pid_scope != pid_scope():
        return False
    try:
        return not is_alive(launcher.pid) or abs(psutil.Process(launcher.pid).create_time() - launcher.started) > 1.0
    except psutil.NoSuchProcess:
        return True
    except psutil.AccessDenied:
        return False


def dead_holder(head: Head | None) -> str:
    """The id of HEAD's writer if it was a process on this machine that is no longer alive; else ''.

    Only a process of this boot and pid namespace can be checked; for any other holder the lease decides.
    """
    if head is None or not head.writer.pid_scope or head.writer.pid_scope != pid_scope():
        return ""
    return "" if is_alive(head.writer.pid) else head.writer.id
