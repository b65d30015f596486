"""SIGKILL at a chosen point inside a trainer or its uploader: "the second chunk is half written", "HEAD comes next".

A test puts `ENVIRONMENT` and `Kill.environment()` into a trainer's environment; its uploader inherits them. Each process
counts the operations that the kill is about, and the one in which the last of them is met does the deed.
"""

from __future__ import annotations

import functools
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Literal, NamedTuple

import psutil

from tests.support.paths import ROOT

ENVIRONMENT = {"PYTHONPATH": f"{Path(__file__).with_name('kill_points')}:{ROOT}"}
_KILL, _TRAINER = "NOTUS_TEST_KILL", "NOTUS_TEST_TRAINER"

Role = Literal["trainer", "uploader"]
Operation = Literal["create", "swap", "get", "read_into", "delete", "copy", "open_shared"]


class Kill(NamedTuple):
    """At the `count`-th of the `operations` of `role` on keys with that prefix; at no operation: after `delay_s`."""

    zone: str
    role: Role
    operations: tuple[Operation, ...] = ()
    key: str = ""
    count: int = 1
    when: Literal["before", "during", "after"] = "during"
    delay_s: float = 0.0
    """From the start of the operation, for `during`: it may be undone, half done, or done and not reported."""
    victims: Literal["self", "partner", "both"] = "self"
    """Of a trainer the partner is its uploader, of an uploader its trainer. The one that is no victim goes on."""

    def environment(self, deed: Path) -> dict[str, str]:
        """What the trainer needs; `deed` exists as soon as the kill has come to its point."""
        return {_KILL: json.dumps([*self, str(deed)])}


def arm() -> None:
    """In the process: watch the operations. Also lets tombstones expire at once, so that there is something to collect."""
    role: Role = "uploader" if "checkpoints.save.uploader" in sys.orig_argv else "trainer"
    if role == "trainer":
        os.environ[_TRAINER] = str(os.getpid())
    if _KILL in os.environ:
        *fields, deed = json.loads(os.environ[_KILL])
        kill = Kill(*fields)
        if kill.role == role:
            _Executioner(kill, Path(deed)).start()
    from checkpoints.commit import garbage_collection

    collect = garbage_collection.collect
    garbage_collection.collect = lambda store, lease, now: collect(store, lease, _later(now))


def _later(now: datetime) -> datetime:
    """Far behind every tombstone's time: in seconds of testing none of them would come."""
    return now + timedelta(hours=1)


class _Executioner:
    def __init__(self, kill: Kill, deed: Path) -> None:
        self._kill = kill
        self._deed = deed
        self._left = kill.count
        self._lock = threading.Lock()  # the uploader sends several chunks at once

    def start(self) -> None:
        if not self._kill.operations:
            threading.Thread(target=self._do, daemon=True).start()
            return
        from checkpoints.snapshot import shared_memory, state_tree
        from checkpoints.storage.filesystem import FolderStore

        for name in {"create", "swap", "get", "read_into", "delete"} & {*self._kill.operations}:
            self._watch(FolderStore, name, lambda store, key, *rest: key)
        if "copy" in self._kill.operations:
            self._watch(state_tree.Leaf, "copy_to", lambda leaf, target: leaf.name)
        if "open_shared" in self._kill.operations:
            self._watch(shared_memory, "open_shared", lambda path, size_bytes: path.name)

    def _watch(self, owner: Any, name: str, key_of: Callable[..., str]) -> None:
        original = getattr(owner, name)

        @functools.wraps(original)
        def watched(*arguments: Any) -> Any:
            if not self._is_it(key_of(*arguments)):
                return original(*arguments)
            if self._kill.when != "after":
                self._begin()
            try:
                return original(*arguments)
            finally:
                if self._kill.when == "after":
                    self._begin()
                if self._kill.victims != "partner":
                    time.sleep(60)  # until the kill is here: nothing may happen after the operation

        setattr(owner, name, watched)

    def _is_it(self, key: str) -> bool:
        with self._lock:
            self._left -= key.startswith(self._kill.key)
            return self._left == 0 and key.startswith(self._kill.key)

    def _begin(self) -> None:
        if self._kill.when == "during" and self._kill.victims != "partner":
            threading.Thread(target=self._do, daemon=True).start()
        else:
            self._do()

    def _do(self) -> None:
        time.sleep(self._kill.delay_s)
        partner = self._partner() if self._kill.victims != "self" else None
        if self._kill.victims == "partner" and partner is None:
            return
        self._deed.touch()
        if partner is not None:
            os.kill(partner, signal.SIGKILL)
        if self._kill.victims != "partner":
            os.kill(os.getpid(), signal.SIGKILL)

    def _partner(self) -> int | None:
        """None: it hasn't started, or is dead already; then the parent is somebody who may not be killed."""
        if self._kill.role == "trainer":
            return next((child.pid for child in psutil.Process().children()), None)
        trainer = int(os.environ[_TRAINER])
        return trainer if os.getppid() == trainer else None
