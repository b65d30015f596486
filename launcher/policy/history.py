"""What the run's diary says: machines, money, work left. Nothing is kept that a restart of a process could lose.

The strategy writes `machine_up`, `machine_gone`, `no_capacity` and `decided` (attempt 0); the trainer writes the rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime, timedelta
from typing import NamedTuple

from checkpoints.causes import GoneCause
from checkpoints.event_kinds import AttemptEnded, AttemptStarted, MachineUp, Notice, PlaceRecord, Saved, Training
from checkpoints.events import Event, of_kind
from checkpoints.machines import Ended, machines_of, told_by
from checkpoints.run import Heartbeat
from launcher.policy.model import Place

MIN_MEASURED_STEPS = 5
"""Of one attempt, before its speed replaces the assumed one: the first steps compile and warm up."""

CLOCKS_DIFFER_S = 60.0
"""At most, by assumption: all of them ask a time server."""


class MachineSpell(NamedTuple):
    """A machine that the run had, or has (`until` None)."""

    place: Place
    since: datetime
    until: datetime | None
    ended: Ended | None
    job_status: str = ""
    """SkyPilot's final status of the job that it was closed with."""


def place_data(place: Place) -> PlaceRecord:
    """A place as an event records it."""
    return PlaceRecord(**asdict(place))


def place_of(record: PlaceRecord) -> Place:
    """The place that an event names."""
    return Place(**{name: getattr(record, name) for name in Place.__dataclass_fields__})


def machines(events: Sequence[Event]) -> list[MachineSpell]:
    """The machines of the run, oldest first. The end of the run ends its machine too."""
    return [MachineSpell(place_of(machine.place), *machine[1:]) for machine in machines_of(events)]


def machine_now(spells: Sequence[MachineSpell]) -> MachineSpell | None:
    """The one that the run has, if it has one."""
    return spells[-1] if spells and spells[-1].until is None else None


def began_since(events: Sequence[Event], moment: datetime) -> bool:
    """Has the run got a machine or begun an attempt since then? Machines' clocks differ, and this one's too."""
    later = moment + timedelta(seconds=CLOCKS_DIFFER_S)
    return any(isinstance(event.payload, MachineUp | AttemptStarted) and event.time > later for event in events)


def spent_usd(spells: Sequence[MachineSpell], now: datetime) -> float:
    """What all machines have cost until now; each but the first restored a checkpoint, as far as is known."""
    hours_usd = sum(hours_of((spell.until or now) - spell.since) * spell.place.price_usd_per_hour for spell in spells)
    return hours_usd + sum(spell.place.restore_usd for spell in spells[1:])


def why_gone(events: Sequence[Event], since: datetime) -> GoneCause:
    """Why the machine that was there `since` then is gone: `preempted`, `moved`, `stopped` (a signal) or `crashed`.

    Without a word of the attempt it was taken away.
    """
    since_up = [event for event in events if event.time >= since]
    ended = [attempt for _, attempt in of_kind(since_up, AttemptEnded)]
    if not ended:
        return "preempted"
    if ended[-1].outcome != "preempted":
        return "crashed"
    return told_by([notice.source for _, notice in of_kind(since_up, Notice)])


def work_left_h(events: Sequence[Event], heartbeat: Heartbeat | None, hours: float, now: datetime) -> float:
    """Hours of training left after what is safely done: measured where the run has a speed, else the assumed share."""
    total = max((training.total_steps for _, training in of_kind(events, Training)), default=0)
    if heartbeat is not None:
        total = max(total, heartbeat.total_steps)
    if not total:
        return hours
    done = max((saved.step for _, saved in of_kind(events, Saved)), default=0)
    alive = heartbeat is not None and (now - heartbeat.time).total_seconds() < 60
    if heartbeat is not None and alive:
        done = max(done, heartbeat.step)
    per_step = _hours_per_step(events)
    return max(0, total - done) * (per_step if per_step is not None else hours / total)


def _hours_per_step(events: Sequence[Event]) -> float | None:
    """Of the newest attempt that trained long enough: from its first step to its last save."""
    all_saves = of_kind(events, Saved)
    for began, first in reversed(of_kind(events, Training)):
        saves = [(event.time, saved.step) for event, saved in all_saves if event.attempt == began.attempt]
        if saves and saves[-1][1] - first.step >= MIN_MEASURED_STEPS:
            time, step = saves[-1]
            return hours_of(time - began.time) / (step - first.step)
    return None


def hours_of(span: timedelta) -> float:
    """A time span in hours."""
    return float(span.total_seconds()) / 3600
