"""What an attempt does in the bucket while its ranks compute, in a thread of its own.

A bucket that is away holds each request for minutes. The supervisor must not wait for that: notices, stops, the kill of
ranks that hang and the budget are its affair, and need no bucket.
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
"""For the request on its way when the attempt ends; the store's clients give one up after two minutes."""


class Renewable(Protocol):
    """The lease, as far as it is kept here."""

    head: Head

    def renew(self) -> None: ...


class Upkeep:
    """Renews the lease, beats, hears requests and the controller, mirrors the log. Started once."""

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
        """`mirrors` send what is new in the attempt's files."""
        self._store, self._lease, self._diary, self._scratch = store, lease, diary, scratch
        self._mirrors = mirrors
        self._controller = controller
        self._epoch = lease.head.epoch
        self._unwritten: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="upkeep", daemon=True)
        self._next_renewal = self._next_beat = self._next_look = self._answered_at = time.monotonic()
        self.fenced: Fenced | None = None
        """A successor has the run: nothing of this attempt counts any more."""
        self.request: Request | None = None
        """The stop or move that this attempt was asked for."""

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> bool:
        """Returns whether it has ended: if not, the lease is still in its hands."""
        self._ended.set()
        if self._thread.ident is not None:
            self._thread.join(JOIN_S)
        return not self._thread.is_alive()

    def away_s(self, now: float) -> float:
        """Seconds since the bucket's last answer."""
        return now - self._answered_at

    def note(self, payload: Payload) -> None:
        """An event of now, which goes into the diary when the bucket takes it."""
        self._unwritten.put(self._diary.compose(payload))

    def hear_request(self) -> bool:
        """Is this attempt asked to save and end? The ranks are told as of a notice. Raises what the store raises."""
        request = read_request(self._store)
        if request is None or not request.is_for(self._epoch):
            return False
        self.request = request
        request_stop(self._scratch.stop, request.action)
        return True

    def write_notes(self) -> None:
        """Raises what the store raises; what isn't written yet stays."""
        while not self._unwritten.empty():
            event = self._unwritten.get()
            try:
                self._diary.append(event)
            except NotusError:
                self._unwritten.put(event)
                raise

    def once(self) -> None:
        """Whatever is due. Raises `Fenced`, and what the store raises."""
        if (now := time.monotonic()) >= self._next_renewal:
            self._lease.renew()
            self._answered_at = time.monotonic()
            self._next_renewal = now + LEASE_S / 3
        if (now := time.monotonic()) >= self._next_beat:
            self._beat()
            self.hear_request()
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
                # The store may be back before the lease runs out; a save that fails for good ends the ranks.
                logger.warning("the bucket does not answer: %s", error.message)
                self._pause()
            except Exception:  # a bucket's client raises what it likes, and the lease must not end with this thread
                logger.exception("the bucket does not answer")
                self._pause()
            self._ended.wait(TICK_S)

    def _pause(self) -> None:
        self._next_beat = self._next_renewal = time.monotonic() + HEARTBEAT_S

    def _beat(self) -> None:
        progress = self._scratch.read_progress()
        told = progress.model_dump(exclude={"save_s"})
        self._store.put(HEARTBEAT_KEY, Heartbeat(attempt=self._epoch, time=datetime.now(UTC), **told).to_json())

    def _look_for_controller(self) -> None:
        self._controller.look(read_controller_beat(self._store), time.monotonic())
        now = time.monotonic()
        if self._controller.just_fell_silent(now):
            progress = self._scratch.read_progress()
            logger.warning("the controller is silent: this machine keeps the budget by itself")
            silent_s = round(self._controller.silent_s(now))
            message = "the controller is silent: this machine keeps the budget by itself"
            self.note(
                Alarm(about="controller", step=progress.step, phase=progress.phase, stuck_s=silent_s, message=message)
            )
