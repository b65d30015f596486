"""The upload in a separate process, which never holds the trainer's GIL and outlives it just long enough.

A rank's `UploaderClient` starts `python -m checkpoints.save.uploader`, sends it jobs on stdin (JSON lines) and reads
results from its stdout. The bytes are in a shared buffer. Rank 0's uploader also commits: it waits until every rank's
index is in the store, then writes manifest and HEAD. So an uploaded save can still be committed when its ranks are
dead.

When stdin ends, the rank is gone: the uploader finishes what it has, for at most `drain_s`, and exits. It never stays
behind as an orphan: a watchdog thread ends it even if the store hangs.
"""

from __future__ import annotations

import json
import os
import queue
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from checkpoints.commit.claimed_store import open_claimed_run
from checkpoints.commit.garbage_collection import collect, collect_orphans
from checkpoints.commit.head import Lease
from checkpoints.errors import Fenced, NotusError, StoreError, UserError
from checkpoints.records.manifest import Manifest
from checkpoints.run_log.event_kinds import Saved
from checkpoints.run_log.event_log import Diary
from checkpoints.run_log.metrics import write_metrics
from checkpoints.save.shard_upload import upload_shard, uploaded_shards
from checkpoints.save.uploader_messages import Abandon, Done, Job, Sent, Setup
from checkpoints.snapshot.shared_memory import open_shared
from checkpoints.snapshot.snapshot import Snapshot, TensorSpec
from checkpoints.storage.base import Store

NICE = 10
"""Training has priority if both want a core. In an emergency the ranks wait for the upload, so it has the cores."""
_POLL_S = (0.02, 1.0)
"""First and longest pause between two checks whether the other ranks are done."""


class Uploader:
    """The uploader process's side."""

    def __init__(self, setup: Setup, store: Store, inbox: Inbox, report: Callable[[Sent], None]) -> None:
        """`report` is called from several threads, one at a time."""
        self._setup = setup
        self._store = store
        self._inbox = inbox
        self._report = report
        self._sent = threading.Lock()
        self._lease: Lease | None = None
        self._orphans = True
        """May there be any? Left by earlier attempts, until collected, and by abandoned saves."""

    def run(self) -> Iterator[Done]:
        """Process jobs until the rank is gone."""
        while (job := self._inbox.jobs.get()) is not None:
            yield self._do(job)

    def _do(self, job: Job) -> Done:
        try:
            return self._upload_and_commit(job)
        except _Abandoned:
            self._orphans = True
            return Done(number=job.number, step=job.step, error="abandoned", message="the save was given up")
        except NotusError as error:
            self._orphans = True
            return Done(number=job.number, step=job.step, error=_kind(error), message=error.message, hint=error.hint)

    def _upload_and_commit(self, job: Job) -> Done:
        started = time.monotonic()
        try:
            data = open_shared(Path(job.buffer), job.size_bytes)
        except OSError as error:  # a successor on this machine has removed it
            raise StoreError(f"the snapshot of step {job.step} is gone: {error}") from error
        snapshot = Snapshot(job.trees, tuple(TensorSpec(*spec) for spec in job.tensors), data)
        setup = self._setup
        # Before the index: no committed step may lack its metrics.
        write_metrics(self._store, setup.epoch, setup.rank, list(job.metrics))
        upload_shard(
            self._store,
            job.prefix,
            setup.rank,
            snapshot,
            chunk_bytes=setup.chunk_bytes,
            concurrency=setup.concurrency,
            before_chunk=lambda: self._check_abandoned(job),
            after_chunk=self._counter(job),
        )
        uploaded = time.monotonic()
        if self._setup.rank == 0:
            self._commit(job, uploaded - started)
        return Done(
            number=job.number,
            step=job.step,
            size_bytes=job.size_bytes,
            upload_s=uploaded - started,
        )

    def _counter(self, job: Job) -> Callable[[int], None]:
        """Count the bytes sent: with a notice of 30 s they decide whether the upload in flight can be finished."""
        sent_bytes = 0

        def count(size_bytes: int) -> None:
            nonlocal sent_bytes
            with self._sent:
                sent_bytes += size_bytes
                self._report(Sent(number=job.number, sent_bytes=sent_bytes))

        return count

    def _commit(self, job: Job, upload_s: float) -> None:
        setup, started = self._setup, time.monotonic()
        lease = self._lease = self._lease or Lease.adopt(self._store, setup.writer_id, setup.epoch)
        pause, longest = _POLL_S
        while len(shards := uploaded_shards(self._store, job.prefix)) < setup.world_size:
            self._check_abandoned(job)
            time.sleep(pause)
            pause = min(longest, pause * 1.5)
            if pause == longest:
                lease.check()  # a successor deletes a fenced attempt's uploads: they would never be complete
        manifest = Manifest(
            run=setup.run,
            step=job.step,
            epoch=setup.epoch,
            world_size=setup.world_size,
            created_at=datetime.now(UTC),
            reason=job.reason,
            fingerprint=job.fingerprint,
            shards=tuple(shards),
        )
        lease.commit(manifest, setup.retention)
        saved = Saved(
            step=job.step,
            reason=job.reason,
            size_bytes=manifest.size_bytes,
            upload_s=round(upload_s, 3),
            commit_s=round(time.monotonic() - started, 3),
        )
        Diary(self._store, setup.epoch).try_write(saved)
        self._clean_up(lease, job.number)

    def _clean_up(self, lease: Lease, number: int) -> None:
        """Delete what is no longer needed. The save is already durable: if this fails, the next save cleans up."""
        try:
            collect(self._store, lease, datetime.now(UTC))
            if self._orphans:
                collect_orphans(self._store, lease, before_save=number)
                self._orphans = False
        except Fenced:
            raise
        except NotusError as error:
            sys.stderr.write(f"notus: could not delete old checkpoints: {error.message}\n")

    def _check_abandoned(self, job: Job) -> None:
        """Raise `_Abandoned` if the rank abandoned the save, or has been dead for too long."""
        orphaned_at = self._inbox.ended_at
        too_late = orphaned_at is not None and time.monotonic() > orphaned_at + self._setup.drain_s
        if too_late or job.number in self._inbox.abandoned:
            raise _Abandoned


def _kind(error: NotusError) -> Literal["fenced", "user_error", "failed"]:
    match error:
        case Fenced():
            return "fenced"
        case UserError():
            return "user_error"
        case _:
            return "failed"


class _Abandoned(Exception):
    """The save can no longer be completed."""


class Inbox:
    """The rank's messages. A separate thread reads them, so that one is received even during an upload."""

    def __init__(self, lines: Iterable[bytes], drain_s: float) -> None:
        self.jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self.abandoned: set[int] = set()
        self.ended_at: float | None = None
        self._lines = lines
        self._drain_s = drain_s

    def start(self) -> None:
        threading.Thread(target=self._read, name="inbox", daemon=True).start()

    def _read(self) -> None:
        """Read stdin; at its end, give this process `drain_s` before it is killed."""
        try:
            for line in self._lines:
                self._take(line)
        except ValueError:
            pass  # the rank was killed in the middle of a line: ignore it
        finally:
            self.ended_at = time.monotonic()
            self.jobs.put(None)
        time.sleep(self._drain_s)
        os._exit(1)

    def _take(self, line: bytes) -> None:
        data = json.loads(line)
        if "abandon" in data:
            self.abandoned.add(Abandon.model_validate(data).abandon)
        else:
            self.jobs.put(Job.model_validate(data))


def main() -> None:
    """The uploader process."""
    os.nice(NICE)
    setup = Setup.model_validate_json(sys.stdin.buffer.readline())
    inbox = Inbox(sys.stdin.buffer, setup.drain_s)
    inbox.start()
    uploader = Uploader(setup, open_claimed_run(setup.bucket, setup.run), inbox, _send)
    for done in uploader.run():
        _send(done)


def _send(message: Sent | Done) -> None:
    try:
        sys.stdout.write(message.model_dump_json() + "\n")
        sys.stdout.flush()
    except BrokenPipeError:  # the rank is dead; the commit counts anyway
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    main()
