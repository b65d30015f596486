"""One rank's saves: copied in the background, uploaded and committed by another process. No collective calls.

    save()          encodes small values, starts the copy of the tensors in a thread, and returns
    wait_copied()   before the tensors change: parameters and optimizer state don't until the next optimizer.step()
    poll()          now and then: reads the uploader's results
    wait()          until the save in flight is done or has failed

One save is in flight at a time, so one buffer is enough. Only `wait` waits for the network.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple, TypeVar

from checkpoints.errors import StoreError, TornState
from checkpoints.records.save_keys import save_prefix
from checkpoints.save.uploader_client import UploaderClient
from checkpoints.save.uploader_messages import Done, Job, Setup
from checkpoints.snapshot.shared_memory import SharedBuffer
from checkpoints.snapshot.snapshot import Plan

T = TypeVar("T")

SMOOTHING = 0.3
"""Weight of the newest save in the measured costs: one slow upload doesn't mean a new bandwidth."""


class SaveCosts(NamedTuple):
    """What the saves of this rank cost, measured and smoothed."""

    stall_s: float
    """How long training stalls."""
    copy_s: float
    """How long the snapshot takes, in the background."""
    size_bytes: int
    bytes_per_second: float
    """Upload bandwidth."""

    @property
    def upload_s(self) -> float:
        return self.size_bytes / self.bytes_per_second


class Saver:
    """Saves this rank's state. Not thread-safe."""

    def __init__(
        self,
        setup: Setup,
        buffer: SharedBuffer,
        copy_scope: Callable[[], AbstractContextManager[None]] = contextlib.nullcontext,
    ) -> None:
        """`copy_scope` surrounds the copy in its thread, for example with a separate CUDA stream."""
        self._setup = setup
        self._buffer = buffer
        self._copy_scope = copy_scope
        self._uploader = UploaderClient(setup)
        self._preparing: threading.Thread | None = None
        self._copying: threading.Thread | None = None
        self._copy_error: BaseException | None = None
        self._in_flight: Job | None = None
        self._number = 0
        self._stall_s = self._stall_of_save_s = 0.0
        self._copy_s = self._submitted_at = 0.0
        self.failure: Done | None = None
        """The last save, if it failed; whoever handles it resets it to None."""
        self.newest_step = -1
        """The newest step that is saved or in flight."""
        self.done_count = 0
        """How many saves have succeeded."""
        self.undelivered: list[dict[str, Any]] = []
        """Metrics lines that no successful save has included yet: they go with the next one."""
        self.costs: SaveCosts | None = None
        """None before the first save is done."""

    @property
    def size_bytes(self) -> int | None:
        """Size of this rank's state at its last save; None before the first save."""
        return self._in_flight.size_bytes if self._in_flight else self.costs.size_bytes if self.costs else None

    @property
    def copy_s(self) -> float:
        """Seconds that the last copy took; 0 before there was one."""
        return self._copy_s

    @property
    def busy(self) -> bool:
        """Is a save in flight, as of the last `poll`?"""
        return self._in_flight is not None

    def prepare(self, trees: Mapping[str, Any]) -> None:
        """Allocate the memory for saves of `trees` in the background: its first touch costs about 15 times the copy.

        Otherwise the first save does that, and the next optimizer step waits. That save then reports any error.
        """
        size_bytes = Plan.of(dict(trees)).size_bytes
        self._preparing = threading.Thread(target=self._reserve, args=(size_bytes,), name="prefault", daemon=True)
        self._preparing.start()

    @property
    def is_prepared(self) -> bool:
        """Is the memory of `prepare` allocated?"""
        return self._preparing is None or not self._preparing.is_alive()

    def save(
        self,
        step: int,
        trees: Mapping[str, Any],
        *,
        reason: str = "interval",
        fingerprint: Mapping[str, Any] | None = None,
        metrics: Sequence[dict[str, Any]] = (),
    ) -> bool:
        """Start to save the state of `step`; False if that or a newer one is already saved.

        Args:
            step: the step that `trees` belongs to.
            trees: file name -> nested dicts, lists and tuples of numbers, strings and tensors. No tensor in it may
                change before `wait_copied` returns.
            reason: why it is saved: interval, epoch, stop, final.
            fingerprint: what has to be equal for an exact resume.
            metrics: lines for the run's metrics, durable before the commit; if the save fails they go with the next.

        Raises:
            TypeError: something in `trees` isn't plain data.
            RuntimeError: a save is in flight: `poll` or `wait` first.
        """
        if step <= self.newest_step:
            return False
        if self._in_flight is not None:
            raise RuntimeError("a save is in flight: wait for it, or poll until it is done")
        started = time.monotonic()
        plan = Plan.of(dict(trees))
        self.undelivered += metrics
        self._number += 1
        self.newest_step = step
        self._in_flight = Job(
            number=self._number,
            step=step,
            prefix=save_prefix(self._setup.epoch, step, self._setup.writer_id, self._number),
            buffer=str(self._buffer.path),
            size_bytes=plan.size_bytes,
            trees=plan.trees,
            tensors=plan.tensors,
            metrics=tuple(self.undelivered),
            reason=reason,
            fingerprint=dict(fingerprint or {}),
        )
        self._copying = threading.Thread(target=self._copy, args=(plan, self._in_flight), name="snapshot", daemon=True)
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
        error, self._copy_error = self._copy_error, None
        if error is None:
            return
        job = self._in_flight
        if isinstance(error, TornState) and job is not None:  # only this save fails; training continues
            failed = Done(number=job.number, step=job.step, error="torn", message=error.message, hint=error.hint)
            self._record(failed)
            return
        self._in_flight = None  # it never reached the uploader: there would be no result
        self.newest_step = -1
        raise error

    @property
    def uploader_pid(self) -> int:
        """PID of the uploader process."""
        return self._uploader.pid

    def poll(self) -> bool:
        """Read the uploader's results without waiting; returns `busy`. See `failure`."""
        if self._copying is not None and not self._copying.is_alive():
            self.wait_copied()  # raises an error of the copy, which the uploader doesn't know
        if self._in_flight is not None and (done := self._result_of(self._in_flight, self._uploader.poll)) is not None:
            self._record(done)
        return self.busy

    def wait(self) -> None:
        """Wait until the save in flight is done or has failed. See `failure`."""
        self.wait_copied()
        if self._in_flight is not None:
            self._record(self._result_of(self._in_flight, self._uploader.wait))

    def give_up(self) -> None:
        """Drop the save in flight. The previous checkpoint stays the newest."""
        self.wait_copied()
        if self._in_flight is not None:
            with contextlib.suppress(StoreError):  # the uploader is dead; `wait` reports it
                self._uploader.abandon(self._in_flight.number)
            self._record(self._result_of(self._in_flight, self._uploader.wait))
        self.failure = None

    def in_flight_bytes(self) -> int:
        """How many bytes of the save in flight are not in the store yet. Only complete chunks count."""
        return self._in_flight.size_bytes - self._sent_bytes if self._in_flight is not None else 0

    def bytes_per_second(self) -> float | None:
        """Upload bandwidth: as measured so far, else that of the one in flight; None if there is no measurement."""
        if self.costs is not None:
            return self.costs.bytes_per_second
        if self._in_flight is None or not self._sent_bytes:
            return None
        return self._sent_bytes / max(time.monotonic() - self._submitted_at, 1e-3)

    @property
    def _sent_bytes(self) -> int:
        sent = self._uploader.sent
        return sent.sent_bytes if self._in_flight is not None and sent.number == self._in_flight.number else 0

    @property
    def save_s(self) -> float | None:
        """Duration of a save, from its start to its last byte in the store; None before the first one is done."""
        return None if self.costs is None else self.costs.stall_s + self.costs.copy_s + self.costs.upload_s

    def take_stall_s(self) -> float:
        """Seconds that training stalled for saves since the last call."""
        stall_s, self._stall_s = self._stall_s, 0.0
        return stall_s

    def count_stall(self, seconds: float) -> None:
        """Add time that training stalled for the save in flight, for example while the state was captured."""
        self._stall_s += seconds
        self._stall_of_save_s += seconds

    def close(self) -> None:
        """Let the uploader finish, and free the shared memory."""
        self._uploader.close()
        if self._preparing is not None:
            self._preparing.join()
        self._buffer.unlink()

    def _copy(self, plan: Plan, job: Job) -> None:
        """Runs in the snapshot thread: copy, then submit to the uploader."""
        try:
            if self._preparing is not None:
                self._preparing.join()
            started = time.monotonic()
            with self._copy_scope():
                plan.copy(self._buffer.reserve(plan.size_bytes))
            self._submitted_at = time.monotonic()
            self._copy_s = self._submitted_at - started
            with contextlib.suppress(StoreError):  # the uploader is dead; `poll` reports it
                self._uploader.submit(job.model_copy(update={"buffer": str(self._buffer.path)}))  # it may have moved
        except BaseException as error:
            self._copy_error = error

    def _reserve(self, size_bytes: int) -> None:
        with contextlib.suppress(OSError), self._copy_scope():  # no space: the save reports it
            self._buffer.reserve(size_bytes)

    def _result_of(self, job: Job, read: Callable[[], T]) -> T | Done:
        """Return the result of `read`, or a failed save if the uploader was killed (out of memory, for example).

        The next save then has a new uploader.
        """
        try:
            return read()
        except StoreError as error:
            self._uploader.close()
            self._uploader = UploaderClient(self._setup)
            return Done(number=job.number, step=job.step, error="failed", message=error.message, hint=error.hint)

    def _record(self, done: Done) -> None:
        job, self._in_flight = self._in_flight, None
        if done.error:
            self.failure = done
            self.newest_step = -1  # the step isn't saved after all
        else:
            self.done_count += 1
            del self.undelivered[: len(job.metrics) if job else 0]
            self._measure(done)

    def _measure(self, done: Done) -> None:
        stall_s, self._stall_of_save_s = self._stall_of_save_s, 0.0
        new = SaveCosts(stall_s, self._copy_s, done.size_bytes, done.size_bytes / max(done.upload_s, 1e-3))
        if self.costs is not None:
            old = self.costs
            new = new._replace(
                stall_s=_smooth(old.stall_s, new.stall_s),
                bytes_per_second=_smooth(old.bytes_per_second, new.bytes_per_second),
            )
        self.costs = new


def _smooth(old: float, new: float) -> float:
    return (1 - SMOOTHING) * old + SMOOTHING * new
