"""What an attempt does in the bucket while its ranks compute, in a separate thread.

An unavailable bucket blocks each request for minutes. The supervisor must not wait for that: notices, stops, hung ranks
and the budget are its job, and need no bucket.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Protocol

from checkpoints.commit.head import LEASE_S, Head
from checkpoints.errors import Fenced, NotusError
from checkpoints.run_log.event_kinds import Alarm, Payload
from checkpoints.run_log.event_log import Diary, Event
from checkpoints.run_log.run_record import HEARTBEAT_KEY, Heartbeat, read_controller_beat
from checkpoints.run_log.stop_request import Request, read_request
from checkpoints.storage.base import Store
from trainer.runtime.attempt_dir import Scratch
from trainer.runtime.stop_flag import request_stop
from trainer.supervisor.dead_mans_switch import Controller

logger = logging.getLogger(__name__)

TICK_S = 0.5
HEARTBEAT_S = 5.0
CONTROLLER_S = 60.0
JOIN_S = 150.0
"""For the request in flight when the attempt ends; the store's clients give up after two minutes."""


class Renewable(Protocol):
    """The part of a lease that is used here."""

    head: Head

    def renew(self) -> None: ...


class Upkeep:
    """Renews the lease, writes heartbeats, reads requests and the controller's beat, mirrors the log. Started once."""

    def __init__(
        self,
        store: Store,
        lease: Renewable,
        diary: Diary,
        scratch: Scratch,
        *,
        mirrors: Sequence[Callable[[], None]],
        controller: Controller,
    ) -> None:
        """`mirrors`: functions that send what is new in the attempt's files."""
        self._store, self._lease, self._diary, self._scratch = store, lease, diary, scratch
        self._mirrors = mirrors
        self._controller = controller
        self._epoch = lease.head.epoch
        self._unwritten: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="upkeep", daemon=True)
        self._next_renewal = self._next_beat = self._next_look = self._answered_at = time.monotonic()
        self.fenced: Fenced | None = None
        """Set once a successor has the run: nothing of this attempt counts any more."""
        self.request: Request | None = None
        """The stop or move that was requested from this attempt."""

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> bool:
        """End the thread; returns whether it has ended. If not, it may still use the lease."""
        self._ended.set()
        if self._thread.ident is not None:
            self._thread.join(JOIN_S)
        return not self._thread.is_alive()

    def away_s(self, now: float) -> float:
        """Seconds since the bucket's last response."""
        return now - self._answered_at

    def note(self, payload: Payload) -> None:
        """Queue an event with the current time, to be written to the diary when the bucket accepts it."""
        self._unwritten.put(self._diary.compose(payload))

    def check_request(self) -> bool:
        """Is there a request to save and end? If so, request the ranks to stop. Raises what the store raises."""
        request = read_request(self._store)
        if request is None or not request.is_for(self._epoch):
            return False
        self.request = request
        request_stop(self._scratch.stop, request.action)
        return True

    def write_notes(self) -> None:
        """Write the queued events. Raises what the store raises; events that aren't written yet stay queued."""
        while not self._unwritten.empty():
            event = self._unwritten.get()
            try:
                self._diary.append(event)
            except NotusError:
                self._unwritten.put(event)
                raise

    def once(self) -> None:
        """Do whatever is due. Raises `Fenced`, and what the store raises."""
        if (now := time.monotonic()) >= self._next_renewal:
            self._lease.renew()
            self._answered_at = time.monotonic()
            self._next_renewal = now + LEASE_S / 3
        if (now := time.monotonic()) >= self._next_beat:
            self._beat()
            self.check_request()
            self._answered_at = time.monotonic()
            self.write_notes()
            for mirror in self._mirrors:
                mirror()
            self._next_beat = now + HEARTBEAT_S
        if (now := time.monotonic()) >= self._next_look:
            self._look_for_controller()
            self._next_look = now + CONTROLLER_S

    def _run(self) -> None:
        while not self._ended.is_set():
            try:
                self.once()
            except Fenced as error:
                self.fenced = error
                return
            except NotusError as error:
                # The store may be back before the lease expires; a save that fails permanently ends the ranks.
                logger.warning("the bucket does not respond: %s", error.message)
                self._pause()
            except Exception:  # a bucket's client may raise anything, and the lease must not end with this thread
                logger.exception("the bucket does not respond")
                self._pause()
            self._ended.wait(TICK_S)

    def _pause(self) -> None:
        self._next_beat = self._next_renewal = time.monotonic() + HEARTBEAT_S

    def _beat(self) -> None:
        progress = self._scratch.read_progress()
        fields = progress.model_dump(exclude={"save_s"})
        self._store.put(HEARTBEAT_KEY, Heartbeat(attempt=self._epoch, time=datetime.now(UTC), **fields).to_json())

    def _look_for_controller(self) -> None:
        self._controller.look(read_controller_beat(self._store), time.monotonic())
        now = time.monotonic()
        if self._controller.just_fell_silent(now):
            progress = self._scratch.read_progress()
            message = "no sign of life from the controller: this machine enforces the budget by itself"
            logger.warning("%s", message)
            silent_s = round(self._controller.silent_s(now))
            self.note(
                Alarm(about="controller", step=progress.step, phase=progress.phase, stuck_s=silent_s, message=message)
            )
