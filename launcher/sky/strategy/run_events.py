"""The strategy's view of a run's diary. Each event is read once, and none is lost while the bucket is unavailable."""

from __future__ import annotations

import asyncio
import logging
import threading
from datetime import UTC, datetime, timedelta

from checkpoints.errors import NotusError
from checkpoints.run_log.event_kinds import Payload
from checkpoints.run_log.event_log import Diary, Event, in_order, read_events
from checkpoints.run_log.launches import launch_number_of, take_launch_number
from checkpoints.storage.base import Store
from checkpoints.util.clock import Clock

logger = logging.getLogger("sky.notus")


class RunDiary:
    """The diary of one run, for its strategy."""

    def __init__(self, store: Store, clock: Clock, launch: int = 0, job: str = "") -> None:
        """`job` identifies the job after a restart of its controller, if it has no launch number."""
        self._store, self._clock, self._job = store, clock, job
        self.launch = launch
        """The number of this strategy's launch; 0 = not known yet."""
        self._diary = Diary(store, 0, clock, launch)
        self._known: dict[str, Event] = {}
        self._unwritten: list[Event] = []
        self._writing = threading.Lock()
        self._noted_at = datetime.min.replace(tzinfo=UTC)
        self.was_read = False
        """Has it been read at least once?"""
        self.is_current = False
        """Did the last read succeed?"""

    async def read(self) -> list[Event]:
        """All events. Raises `NotusError` if the bucket doesn't answer."""
        self.is_current = False
        await asyncio.to_thread(self._write_down)
        for event in await asyncio.to_thread(read_events, self._store, lambda key: key not in self._known):
            self._known[event.key] = event
        if not self.launch and (number := await self._number_of_before()):
            self._number(number)  # this process continues a launch that an earlier one has numbered
        self.was_read = self.is_current = True
        return self.known()

    async def _number_of_before(self) -> int:
        newest = max((event.launch for event in self._known.values()), default=0)
        if not newest or not self._job:
            return newest
        return await asyncio.to_thread(launch_number_of, self._store, self._job) or newest

    async def read_before_launch(self) -> list[Event]:
        """All events; a launch without a number doesn't continue an earlier one."""
        launch = self.launch
        events = await self.read()
        if not launch:
            self._number(0)
        return events

    async def begin(self) -> None:
        """Assign a number to a launch without one, as with plain `sky jobs launch`.

        The number separates its events from those of earlier launches, even if clocks are ahead. Raises `NotusError`.
        """
        if not self.launch:
            self._number(await asyncio.to_thread(take_launch_number, self._store, "", self._clock, job=self._job))

    def _number(self, launch: int) -> None:
        self.launch = launch
        self._diary = Diary(self._store, 0, self._clock, launch)

    async def read_if_there(self) -> list[Event]:
        """All events, or those read so far if the bucket doesn't answer. Raises `NotusError` if none were read."""
        try:
            return await self.read()
        except NotusError as error:
            if not self.was_read:
                raise
            logger.warning("notus: the bucket does not answer; using the last known state: %s", error.message)
            return self.known()

    def known(self) -> list[Event]:
        """The events read so far, and those noted since."""
        return in_order(self._known.values())

    async def note(self, payload: Payload) -> None:
        """Record an event. If it can't be written now, it still counts here and is written later.

        A machine that is up must not be lost, or requested twice, because the diary could not be written.
        """
        event = self._diary.compose(payload)
        if event.time <= self._noted_at:  # keep the order, for example if a machine came and went at once
            event = event.model_copy(update={"time": self._noted_at + timedelta(microseconds=1)})
        self._noted_at = event.time
        self._known[event.key] = event
        self._unwritten.append(event)
        try:
            await asyncio.to_thread(self._write_down)
        except NotusError as error:
            logger.warning("notus: could not record %r yet: %s", event.kind, error.message)

    def _write_down(self) -> None:
        """Write pending events, in a thread: all jobs share the event loop, and an unavailable bucket takes minutes.

        One thread at a time: periodic checks continue during a search, each in its own thread.
        """
        with self._writing:
            while self._unwritten:
                self._diary.append(self._unwritten[0])
                self._unwritten.pop(0)
