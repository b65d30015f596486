"""The keeper of a rank's state: copy it beside the training, have it uploaded and committed, and restore it.

    save()          encodes small values, starts the copy of the tensors in a thread, and returns
    wait_copied()   before the next optimizer.step(): parameters and optimizer state don't change until then
    poll()          each step: what did the uploader process say?
    settle()        a save is in flight and has to be decided now (before the next one, a stop, the end)

One save is in flight at a time, so one buffer is enough. Nothing here waits for the network, except `settle`.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import torch.distributed as dist

from checkpoints.errors import Fenced, NotusError, StoreError, UserError
from checkpoints.events import Diary
from checkpoints.head import Head, Lease
from checkpoints.restore import RestoredShard, newest_good
from checkpoints.shm import SharedBuffer
from checkpoints.snapshot import Plan
from checkpoints.store import Store
from checkpoints.upload import save_prefix
from checkpoints.uploader import Done, Job, Setup, UploaderClient
from trainer.emergency import Choice, Situation, choose, worst
from trainer.prefetch import Prefetch

logger = logging.getLogger(__name__)

MAX_FAILED_SAVES = 5
"""So many saves in a row may fail before the run does: training without a memory is not worth its price."""
SETTLE_POLL_S = 0.01
SMOOTHING = 0.3


class Pending(NamedTuple):
    """What a rank knows about its save in flight. Not yet agreed between ranks."""

    busy: bool
    failed: bool


class SaveCosts(NamedTuple):
    """Measured."""

    stall_s: float
    """Training stands still."""
    upload_s: float
    """Beside the training."""


class Keeper:
    """Saves and restores this rank's state. Collective: `restore`, `settle`, `resolve_failure`,
    `give_up`, `choose`."""

    def __init__(
        self,
        store: Store,
        head: Head,
        setup: Setup,
        buffer: SharedBuffer,
        copy_scope: Callable[[], AbstractContextManager[None]] = contextlib.nullcontext,
    ) -> None:
        self._store = store
        self._head = head
        self._setup = setup
        self._buffer = buffer
        self._copy_scope = copy_scope
        self._uploader = UploaderClient(setup)
        self._copying: threading.Thread | None = None
        self._copy_error: BaseException | None = None
        self._in_flight: int | None = None
        self._failure: Done | None = None
        self._failures_in_a_row = 0
        self._number = 0
        self._newest = -1
        self._stall_s = 0.0
        self._stall_of_save_s = 0.0
        self._mean_stall_s = 0.0
        self._copy_s = 0.0
        self._last_size_bytes = 0
        self._submitted_at = 0.0
        self._bytes_per_second: float | None = None

    def restore(self, prefetch: Prefetch) -> RestoredShard | None:
        """The newest checkpoint that is good on every rank, or None for a run without one.

        Damaged ones are named in the log and in the diary, and leave HEAD.
        """
        started = time.monotonic()
        shard, damaged = newest_good(self._head.commits, prefetch.load, self._gather_faults)
        for commit, fault in damaged:
            logger.warning("checkpoint of step %d is damaged and passed over: %s", commit.step, fault)
        if shard is not None:
            self._newest = shard.manifest.step
        if self._setup.rank == 0:
            diary = Diary(self._store, self._head.epoch)
            for commit, fault in damaged:
                diary.write("damaged", step=commit.step, manifest=commit.manifest, fault=fault)
            if damaged:
                Lease.adopt(self._store, self._head.writer.id, self._head.epoch).discard([c for c, _ in damaged])
            if shard is not None:
                waited_s = round(time.monotonic() - started, 3)
                diary.write("resumed", step=self._newest, size_bytes=shard.manifest.size_bytes, waited_s=waited_s)
        return shard

    # --- saving -------------------------------------------------------------------------------------------------

    def save(
        self,
        step: int,
        trees: dict[str, Any],
        *,
        reason: str,
        fingerprint: dict[str, Any],
        metrics: Sequence[dict[str, Any]],
    ) -> bool:
        """Start to save the state of `step`; False if it is saved already (an epoch's end that is also an interval's).

        The tensors in `trees` must not change before `wait_copied` returns. No other save may be in flight.
        """
        if step <= self._newest:
            return False
        started = time.monotonic()
        assert self._in_flight is None
        self._newest = step
        self._number += 1
        plan = Plan.of(trees)
        job = Job(
            number=self._number,
            step=step,
            prefix=save_prefix(self._setup.epoch, step, self._setup.writer_id, self._number),
            buffer=str(self._buffer.path),
            size_bytes=plan.size_bytes,
            trees=plan.trees,
            tensors=plan.tensors,
            metrics=tuple(metrics),
            reason=reason,
            fingerprint=fingerprint,
        )
        self._in_flight = self._number
        self._last_size_bytes = plan.size_bytes
        self._copying = threading.Thread(target=self._copy, args=(plan, job), name="snapshot", daemon=True)
        self._copying.start()
        self.count_stall(time.monotonic() - started)
        return True

    def wait_copied(self) -> None:
        """Wait until the snapshot is complete. Call it before anything changes the tensors."""
        if self._copying is None:
            return
        started = time.monotonic()
        self._copying.join()
        self._copying = None
        self.count_stall(time.monotonic() - started)
        if self._copy_error is not None:
            raise self._copy_error

    def give_up(self) -> None:
        """Drop the save in flight, on every rank: there is no time for it. The previous checkpoint stays the newest."""
        self.wait_copied()
        if self._in_flight is not None:
            self._uploader.abandon(self._in_flight)
            done = self._uploader.wait()
            self._in_flight = None
            if done.error:
                self._newest = -1
        self._failure = None

    def choose(self, seconds_left: float | None) -> Choice:
        """Agree on what to do in the time that is left."""
        size_bytes = float(self._last_size_bytes)
        rate = self._bytes_per_second
        in_flight = 0.0
        if self.poll().busy:
            sent = (time.monotonic() - self._submitted_at) * (rate or 0.0)
            in_flight = max(0.0, size_bytes - sent)
        mine = Situation(seconds_left, self._copy_s, size_bytes, in_flight, rate)
        return choose(worst(self._gather(mine)))

    @property
    def costs(self) -> SaveCosts | None:
        """What the saves of this rank cost, smoothed; None before the first one is done."""
        if self._bytes_per_second is None:
            return None
        return SaveCosts(stall_s=self._mean_stall_s, upload_s=self._last_size_bytes / self._bytes_per_second)

    def take_stall_s(self) -> float:
        """Seconds that training stood still for saving since the last call."""
        stall_s, self._stall_s = self._stall_s, 0.0
        return stall_s

    def count_stall(self, seconds: float) -> None:
        """Add time that training stood still for the save in flight, the capture of the state for example."""
        self._stall_s += seconds
        self._stall_of_save_s += seconds

    def poll(self) -> Pending:
        """Look what the uploader has said, without waiting."""
        if self._in_flight is not None and (done := self._uploader.poll()) is not None:
            self._note(done)
        return Pending(busy=self._in_flight is not None, failed=self._failure is not None)

    def settle(self) -> None:
        """Wait for the save in flight and agree on what became of it.

        Raises:
            Fenced, UserError: on every rank.
            StoreError: the save failed; the previous checkpoint still is the newest.
        """
        self.wait_copied()
        started = time.monotonic()
        # Together and in small steps: rank 0 commits only when all have uploaded, so a rank that failed has to be
        # heard while rank 0 still waits.
        while True:
            pending = self._gather(self.poll())
            if any(rank.failed for rank in pending) or not any(rank.busy for rank in pending):
                break
            time.sleep(SETTLE_POLL_S)
        self._stall_s += time.monotonic() - started
        error = self._agree_on_failure()
        if error is not None:
            raise error

    def resolve_failure(self) -> None:
        """Some rank's save has failed (all ranks know): give it up together and train on.

        Raises:
            Fenced, UserError: on every rank.
            StoreError: too many saves have failed in a row.
        """
        self.wait_copied()
        error = self._agree_on_failure()
        if error is None:
            return
        if isinstance(error, Fenced | UserError) or self._failures_in_a_row >= MAX_FAILED_SAVES:
            raise error
        logger.warning("a save failed, training goes on: %s", error.message)

    def close(self) -> None:
        """Let the uploader end, and give the shared memory back."""
        self._uploader.close()
        self._buffer.unlink()

    def _copy(self, plan: Plan, job: Job) -> None:
        """In the snapshot thread: copy, then tell the uploader."""
        try:
            started = time.monotonic()
            with self._copy_scope():
                plan.copy(self._buffer.reserve(plan.size_bytes))
            self._submitted_at = time.monotonic()
            self._copy_s = self._submitted_at - started
            self._uploader.submit(job)
        except BaseException as error:
            self._copy_error = error

    def _note(self, done: Done) -> None:
        self._in_flight = None
        if done.error:
            self._failure = done
        else:
            self._failures_in_a_row = 0
            self._measure(done)

    def _measure(self, done: Done) -> None:
        """Smooth over a few saves: one slow upload is no new bandwidth."""
        rate = done.size_bytes / max(done.upload_s, 1e-3)
        old = self._bytes_per_second
        self._bytes_per_second = rate if old is None else (1 - SMOOTHING) * old + SMOOTHING * rate
        self._mean_stall_s = (
            self._stall_of_save_s
            if old is None
            else (1 - SMOOTHING) * self._mean_stall_s + SMOOTHING * self._stall_of_save_s
        )
        self._stall_of_save_s = 0.0

    def _agree_on_failure(self) -> NotusError | None:
        """Gather all ranks' failures; leave no rank waiting; return the worst, the same on every rank."""
        failures = [failure for failure in self._gather(self._failure) if failure is not None]
        if not failures:
            return None
        if self._in_flight is not None:
            self._uploader.abandon(self._in_flight)
            self._note(self._uploader.wait())
        self._failure = None
        self._failures_in_a_row += 1
        self._newest = -1  # the step isn't saved after all
        order = ("fenced", "user_error", "failed", "abandoned")
        return _as_error(min(failures, key=lambda failure: order.index(failure.error)))

    def _gather_faults(self, fault: str) -> list[str]:
        return [f"rank {rank}: {text}" for rank, text in enumerate(self._gather(fault)) if text]

    def _gather(self, value: Any) -> list[Any]:
        values: list[Any] = [None] * self._setup.world_size
        dist.all_gather_object(values, value)
        return values


def _as_error(done: Done) -> NotusError:
    try:
        done.raise_error()
    except NotusError as error:
        return error
    return StoreError("a save failed without a reason")
