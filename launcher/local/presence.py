"""Is the launcher of a local run still there? It leaves its name in the run's folder while it looks after the run.

Only the machine that it ran on can tell: for any other, time decides.
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
    """launcher.json: written when a launcher takes a local run, deleted when it leaves it."""

    host: str
    pid: int
    pid_scope: str
    started: float
    """When the process began, in seconds since the epoch: another one may have its number by now."""


@contextlib.contextmanager
def looked_after(store: Store) -> Iterator[None]:
    """While this process looks after the run. A bucket that doesn't take the record is no reason not to."""
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
    """Is it certain that nobody looks after a run that isn't over: no launcher, and no attempt that still saves?

    `silent`: its heartbeat stands still. False as well where this machine can't know.
    """
    try:
        launcher = read_if_there(store, LAUNCHER_KEY, LauncherRecord)
    except CorruptCheckpoint:
        launcher = None
    attempt_is_gone = head is None or silent or bool(dead_holder(head))
    if launcher is None:  # `notus-train` by hand, or an older launcher: then only its attempt can be known to be dead
        return bool(dead_holder(head))
    return is_gone(launcher) and attempt_is_gone


def is_gone(launcher: LauncherRecord) -> bool:
    """Was it a process of this machine that no longer lives?"""
    if not launcher.pid_scope or launcher.pid_scope != pid_scope():
        return False
    try:
        return not is_alive(launcher.pid) or abs(psutil.Process(launcher.pid).create_time() - launcher.started) > 1.0
    except psutil.NoSuchProcess:
        return True
    except psutil.AccessDenied:
        return False


def dead_holder(head: Head | None) -> str:
    """The id of HEAD's writer if it was a process of this machine that no longer lives; else ''.

    Only a process of this boot and pid namespace can be judged; for any other holder the lease decides.
    """
    if head is None or not head.writer.pid_scope or head.writer.pid_scope != pid_scope():
        return ""
    return "" if is_alive(head.writer.pid) else head.writer.id
