"""Exact resume for any training loop in one process: claim, restore, save, in a dozen lines.

    with Checkpointer("s3://bucket/prefix", "my-run") as checkpoints:
        saved = checkpoints.restore()
        if saved is not None:
            model.load_state_dict(saved["model"])
            optimizer.load_state_dict(saved["optimizer"])
        for step in range(checkpoints.step + 1, steps + 1):
            loss = forward_and_backward(...)
            checkpoints.wait_copied()  # the last save's copy ran during forward and backward
            optimizer.step()
            if step % 10 == 0:
                checkpoints.save(step, {"model": model.state_dict(), "optimizer": optimizer.state_dict()})

A runnable example: docs/examples/plain_loop.py. The loop decides what goes into the state: without the generators'
states and the position in the data a resume isn't exact. Limitation: single-process only. For what several ranks must
agree on see `trainer.checkpointing.distributed_saver`.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import uuid
from collections.abc import Mapping
from types import TracebackType
from typing import Any

from checkpoints.commit.head import LEASE_S, PATIENCE_S, Lease, Writer, read_head
from checkpoints.commit.retention import Retention
from checkpoints.errors import Fenced, NotusError, UserError
from checkpoints.records.verified_reads import reread_slowly
from checkpoints.restore.shard_restore import newest_good, restore_shard
from checkpoints.run_log.run_record import open_run
from checkpoints.save.saver import Saver
from checkpoints.save.uploader_messages import Setup
from checkpoints.snapshot.shared_memory import RunMemory, SharedBuffer
from checkpoints.storage.probe import probe
from checkpoints.util.keys import check_run_name

logger = logging.getLogger(__name__)


class Checkpointer:
    """The state of a single-process training in a bucket. Use it as a context manager.

    Renews the lease of the run in a thread; if another process takes over the run, the next call raises `Fenced`.

    Args:
        bucket: s3://..., gs://... or a folder that exists.
        run: name of the run in it; reuse a name to resume that run.
        keep: how many of the newest checkpoints to keep, plus one as the fallback.
        wait_s: how long to check whether a predecessor that did not release the run is alive; it counts as dead after
            64 s without a change of HEAD. There is no wait for one that ended cleanly.
        predecessor_gone: id of a writer that is known to be dead, which skips that check.
    """

    def __init__(
        self, bucket: str, run: str, *, keep: int = 1, wait_s: float = PATIENCE_S, predecessor_gone: str = ""
    ) -> None:
        self._store = open_run(bucket, check_run_name(run))
        probe(self._store)
        writer = Writer(id=uuid.uuid4().hex, host=socket.gethostname(), pid=os.getpid())
        before = read_head(self._store)
        self._lease = Lease.claim(self._store, writer, wait_s=wait_s, gone=predecessor_gone)
        self._predecessor = before.writer.id if before else ""
        self._memory = RunMemory(self._store.url)
        self._memory.remove_dead(keep=self._predecessor)
        head = self._lease.head
        setup = Setup(
            bucket=bucket,
            run=run,
            rank=0,
            world_size=1,
            writer_id=writer.id,
            epoch=head.epoch,
            retention=Retention(newest=keep + 1),
        )
        self._memory.hold(writer.id)
        buffer = SharedBuffer(self._memory.snapshot(writer.id, 0), fallback=self._memory.fallback(writer.id, 0))
        self._saver = Saver(setup, buffer)
        self._fenced: Fenced | None = None
        self._ended = threading.Event()
        self._renewing = threading.Thread(target=self._renew, name="lease", daemon=True)
        self._renewing.start()
        self.step = 0
        """Step of the restored state; 0 before."""

    def __enter__(self) -> Checkpointer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.close()
        except NotusError as failure:
            if error is None:
                raise
            logger.warning("while closing: %s", failure.message)  # the first error is the one that is raised

    def restore(self) -> dict[str, Any] | None:
        """The newest good state as it was saved, or None for a new run. Tensors are views of one buffer.

        Damaged checkpoints are skipped with a warning. Raises `NoGoodCheckpoint` if all are damaged.
        """
        local = self._memory.left_by(self._predecessor, 0)
        shard, damaged = newest_good(
            self._lease.head.commits,
            lambda commit: reread_slowly(self._store, lambda store: restore_shard(store, commit, 0, local=local)),
        )
        self._memory.remove_dead()
        for commit, fault in damaged:
            logger.warning("skipped the checkpoint of step %d, which is damaged: %s", commit.step, fault)
        if damaged:
            self._lease.discard(damaged)
        if shard is None:
            return None
        self.step = self._saver.newest_step = shard.manifest.step
        return shard.trees()

    def save(self, step: int, state: Mapping[str, Any], *, wait: bool = False) -> bool:
        """Start to save; returns whether it was started (not if the last save is still in flight).

        `wait`: wait for the previous save, and until this one is committed. Raises `Fenced`, `UserError`, or with
        `wait` a `StoreError`; without it, a failed save is a warning at the next call.
        """
        self._check()
        if wait:
            self._saver.wait()
            self._check()
        if self._saver.poll() or not self._saver.save(step, state):
            return False
        if wait:
            self._saver.wait()
            failure = self._saver.failure
            self._check()
            if failure is not None:
                failure.raise_error()
        return True

    def wait_copied(self) -> None:
        """Wait for the copy. Call it before anything changes the tensors that are being saved."""
        self._saver.wait_copied()

    def close(self) -> None:
        """Finish the save in flight, and release the run.

        Raises the error of the last save: `Fenced`, `UserError`, `StoreError`. Everything is released anyway.
        """
        try:
            self._saver.wait()
            if self._saver.failure is not None:
                self._saver.failure.raise_error()
        finally:
            self._ended.set()
            self._renewing.join()
            self._saver.close()
            self._memory.forget(self._lease.head.writer.id)
            try:
                self._lease.release()
            except NotusError as error:
                logger.warning("could not release the lease: %s", error.message)

    def _check(self) -> None:
        self._saver.poll()
        if self._fenced is not None:
            raise self._fenced
        failure, self._saver.failure = self._saver.failure, None
        if failure is None:
            return
        try:
            failure.raise_error()
        except (Fenced, UserError):
            raise
        except NotusError as error:
            logger.warning("the save of step %d failed: %s", failure.step, error.message)

    def _renew(self) -> None:
        while not self._ended.wait(LEASE_S / 3):
            try:
                self._lease.renew()
            except Fenced as error:
                self._fenced = error
                return
            except NotusError as error:
                logger.warning("the bucket does not respond: %s", error.message)
