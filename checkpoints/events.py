"""The run's diary: one create-once JSON object an event, so that nothing that happened can be overwritten or lost."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Literal

from pydantic import Field

from checkpoints.clock import Clock, SystemClock
from checkpoints.confirm import read_record
from checkpoints.errors import NotusError
from checkpoints.manifest import Record
from checkpoints.parallel import parallel_map
from checkpoints.store import Store
from checkpoints.upload import put_once

logger = logging.getLogger(__name__)

Kind = Literal[
    "planned",  # the launcher has chosen where to run
    "attempt_started",  # a machine runs; says where and at what price
    "claimed",  # the attempt holds the run (epoch)
    "resumed",  # state is restored (step, from which checkpoint, seconds)
    "damaged",  # a checkpoint failed verification and was passed over
    "training",  # the first step of this attempt is done: the start-up ends here
    "evaluated",  # step and metrics
    "saved",  # a checkpoint is committed (step, bytes, seconds)
    "notice",  # a preemption was announced, or the user asked to stop
    "exported",  # the model is in final/
    "pushed",  # the model is on the Hub
    "attempt_ended",  # the attempt is over (outcome, exit code, last step)
    "preempted",  # the machine was taken away
    "finished",  # the run is done
    "failed",  # the run has given up, and why
    "stopped",  # the user stopped it; it can go on
    "decided",  # the launcher's policy: what it does next, and why
    "machine_up",  # a machine runs the job (place, since when it is paid)
    "machine_gone",  # it is given back or was taken away (why)
    "no_capacity",  # places that had no machine, and what their clouds said
    "alarm",  # the run makes no progress
    "false_recovery",  # SkyPilot thought the machine dead, and it is not
    "compared",  # bit-exactness against an uninterrupted run
]


RUN_ENDS: frozenset[Kind] = frozenset({"finished", "failed", "stopped"})
"""After one of these nothing more happens to a run by itself."""


class Event(Record):
    """One thing that happened."""

    version: Literal[1] = 1
    time: datetime
    id: str
    kind: Kind
    attempt: int = Field(ge=0, description="0 = the launcher, before the first attempt")
    launch: int = Field(default=0, ge=0, description="number of the launch (launches.py); 0 = unknown")
    data: dict[str, Any] = Field(default_factory=dict)

    @property
    def key(self) -> str:
        return f"events/{self.time.astimezone(UTC):%Y%m%dT%H%M%S.%fZ}-{self.id}.json"


class Diary:
    """Writes events of one process."""

    def __init__(self, store: Store, attempt: int, clock: Clock | None = None, launch: int = 0) -> None:
        self._store = store
        self._attempt = attempt
        self._clock = clock or SystemClock()
        self._launch = launch

    def write(self, kind: Kind, /, **data: Any) -> Event:
        """Append an event; durable when this returns."""
        event = self.compose(kind, **data)
        self.append(event)
        return event

    def compose(self, kind: Kind, /, **data: Any) -> Event:
        """An event of now, not yet in the diary."""
        return Event(
            time=self._clock.now(),
            id=uuid.uuid4().hex[:12],
            kind=kind,
            attempt=self._attempt,
            launch=self._launch,
            data=data,
        )

    def append(self, event: Event) -> None:
        """Write it; again is harmless."""
        put_once(self._store, event.key, event.to_json())

    def try_write(self, kind: Kind, /, **data: Any) -> None:
        """`write`, where a missing line in the diary is better than what would be lost by an error."""
        try:
            self.write(kind, **data)
        except NotusError as error:
            logger.warning("could not note %r in the diary: %s", kind, error.message)


def read_events(store: Store, wanted: Callable[[str], bool] = lambda key: True) -> list[Event]:
    """All events of a run in time order."""
    keys = [entry.key for entry in store.list("events") if wanted(entry.key)]
    events = parallel_map(lambda key: read_record(store, key, Event), keys, 16)
    return sorted(events, key=lambda event: (event.time, event.id))
