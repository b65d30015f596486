"""The run's diary: one create-once JSON object per event, so that no event can be overwritten or lost."""

from __future__ import annotations

import logging
import os
import re
import uuid
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal, TypeVar, overload

from pydantic import AwareDatetime, Field, ValidationInfo, field_validator, model_serializer

from checkpoints.errors import CorruptCheckpoint, NotusError
from checkpoints.records.manifest import Record
from checkpoints.records.verified_reads import read_record
from checkpoints.records.write_once import put_once
from checkpoints.run_log.event_kinds import KINDS, Damaged, Payload, Planned, RunEnd, payload_of
from checkpoints.storage.base import Store
from checkpoints.util.clock import LONG_AGO, Clock, SystemClock
from checkpoints.util.parallel import parallel_map

logger = logging.getLogger(__name__)

LAUNCH = "NOTUS_LAUNCH"
"""Environment variable of a job: the number of its launch (launches.py)."""

P = TypeVar("P", bound=Payload)

_TIME = "%Y%m%dT%H%M%S.%fZ"
_KEY = re.compile(r"events/(\d{8}T\d{6}\.\d{6}Z)-([\w-]+)\.json")

RUN_ENDS = frozenset(kind for kind, model in KINDS.items() if issubclass(model, RunEnd))
"""The kinds that end a run until it is launched again. They also name its state."""


class Event(Record):
    """One thing that happened. In the bucket the payload is called `data`, see `event_kinds`."""

    version: Literal[1] = 1
    time: AwareDatetime
    id: str
    kind: str
    attempt: int = Field(ge=0, description="0 = the launcher, before the first attempt")
    launch: int = Field(default=0, ge=0, description="number of the launch (launches.py); 0 = unknown")
    payload: Payload = Field(alias="data")

    @field_validator("payload", mode="before")
    @classmethod
    def _of_its_kind(cls, data: Any, info: ValidationInfo) -> Payload:
        return payload_of(info.data.get("kind", ""), data)

    @model_serializer
    def _wire(self) -> dict[str, Any]:
        head = {"version": self.version, "time": self.time, "id": self.id, "kind": self.kind, "attempt": self.attempt}
        numbered = {"launch": self.launch} if self.launch else {}
        return {**head, **numbered, "data": self.payload.wire()}

    @property
    def key(self) -> str:
        return f"events/{self.time.astimezone(UTC):{_TIME}}-{self.id}.json"

    if not TYPE_CHECKING:  # for scripts and tests; mypy refuses it in the packages, where it would hide typos in keys

        @property
        def data(self) -> dict[str, Any]:
            """The payload as it is in the bucket."""
            return self.payload.wire()


class Diary:
    """Writes the events of one process.

    `write` takes a payload, or a kind and its data, which are validated: the second form is for tests and scripts.
    """

    def __init__(self, store: Store, attempt: int, clock: Clock | None = None, launch: int | None = None) -> None:
        """Open the diary for events of `attempt`.

        `launch`: the number of the launch that the events belong to; None = the one that started this process, from
        `NOTUS_LAUNCH` if that is set.
        """
        self._store = store
        self._attempt = attempt
        self._clock = clock or SystemClock()
        self._launch = launch_here() if launch is None else launch

    @overload
    def write(self, what: Payload, /) -> Event: ...
    @overload
    def write(self, what: str, /, **data: Any) -> Event: ...
    def write(self, what: Payload | str, /, **data: Any) -> Event:
        """Append an event; durable when this returns."""
        event = self.compose(_payload(what, data))
        self.append(event)
        return event

    def compose(self, payload: Payload) -> Event:
        """Return an event with the current time, not yet in the diary."""
        now, new_id = self._clock.now(), uuid.uuid4().hex[:12]
        return Event(time=now, id=new_id, kind=payload.kind, attempt=self._attempt, launch=self._launch, data=payload)

    def append(self, event: Event) -> None:
        """Write the event; writing it twice is harmless."""
        put_once(self._store, event.key, event.to_json())

    def try_write(self, payload: Payload) -> None:
        """`write`, if a missing event is better than an error."""
        try:
            self.write(payload)
        except NotusError as error:
            logger.warning("could not write %r to the diary: %s", payload.kind, error.message)


def launch_here() -> int:
    """The number of the launch that started this process; 0 if it isn't in the environment."""
    text = os.environ.get(LAUNCH, "")
    return int(text) if text.isdigit() else 0


def read_events(store: Store, wanted: Callable[[str], bool] = lambda key: True) -> list[Event]:
    """Read all events of a run whose keys are `wanted`, sorted by `in_order`.

    A damaged event is replaced by a `Damaged`, which affects nothing: one event isn't worth losing a run. Objects whose
    key isn't an event's are ignored.
    """
    keys = [entry.key for entry in store.list("events") if wanted(entry.key) and _KEY.fullmatch(entry.key)]
    return in_order(parallel_map(lambda key: _read(store, key), keys, 16))


def _read(store: Store, key: str) -> Event:
    try:
        return read_record(store, key, Event)
    except CorruptCheckpoint as error:
        logger.warning("%s", error.message)
        written, event_id = _KEY.fullmatch(key).groups()  # type: ignore[union-attr]  # see `read_events`
        try:
            time = datetime.strptime(written, _TIME).replace(tzinfo=UTC)
        except ValueError:  # a month of 19
            time = LONG_AGO
        payload = Damaged(message=error.message)
        return Event(time=time, id=event_id, kind=Damaged.kind, attempt=0, data=payload)


def in_order(events: Iterable[Event]) -> list[Event]:
    """Sort by launch, then by time: several machines write, each by its own clock.

    `planned` is a launch's first event, whatever the launching machine's clock shows. An event without a launch number
    belongs to the newest launch before it.
    """
    numbered: list[tuple[int, Event]] = []
    newest = 0
    for event in sorted(events, key=lambda event: (event.time, event.id)):
        newest = max(newest, event.launch)
        numbered.append((event.launch or newest, event))
    numbered.sort(key=lambda pair: (pair[0], pair[0] > 0 and not isinstance(pair[1].payload, Planned)))
    return [event for _, event in numbered]


def of_kind(events: Iterable[Event], model: type[P]) -> list[tuple[Event, P]]:
    """The events of one kind, or of all kinds under a base class such as `AtStep`, each with its payload."""
    return [(event, event.payload) for event in events if isinstance(event.payload, model)]


def _payload(what: Payload | str, data: dict[str, Any]) -> Payload:
    if isinstance(what, Payload):
        return what
    if what not in KINDS:
        raise ValueError(f"the diary has no kind {what!r}; it has {', '.join(KINDS)}")
    return payload_of(what, data)
