"""Machines, money and work left, read from the run's diary: no state that a process restart could lose.

The strategy writes `machine_up`, `machine_gone`, `no_capacity` and `decided` (attempt 0); the trainer writes the rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime, timedelta
from operator import attrgetter
from typing import NamedTuple

from checkpoints.run_log.causes import GoneCause
from checkpoints.run_log.event_kinds import (
    AttemptEnded,
    AttemptStarted,
    MachineUp,
    Notice,
    PlaceRecord,
    Saved,
    Training,
)
from checkpoints.run_log.event_log import Event, of_kind
from checkpoints.run_log.machine_history import Ended, billed_usd, machines_of, told_by
from checkpoints.run_log.run_record import Heartbeat
from launcher.policy.model import Place

MIN_MEASURED_STEPS = 5
"""Steps of one attempt before its speed counts: the first ones compile and warm up."""
TRUSTED_H = 1 / 6
"""Training time after which an attempt's measured speed fully replaces the assumed one."""

CLOCKS_DIFFER_S = 60.0
"""Largest clock difference between machines, assumed: all of them use a time server."""


class MachineSpell(NamedTuple):
    """A machine that the run had, or has (`until` None)."""

    place: Place
    since: datetime
    until: datetime | None
    ended: Ended | None
    job_status: str = ""
    """SkyPilot's final status of its job."""
    after_attempt: int | None = None
    """Attempts on it have higher numbers; None in a diary of an earlier version."""
    reserve: bool = False
    """When it was requested, the budget could also have paid for finishing on demand."""
    prices: tuple[tuple[datetime, float], ...] = ()
    """Dollars per hour from a moment on, if its price has changed since."""
    start_h: float | None = None
    """Hours from its request to the first new step on it, as the strategy saw it."""
    given_up: datetime | None = None
    """When the first attempt to release it failed."""

    @property
    def usd_per_hour(self) -> float:
        """Its price in the newest price list."""
        return self.prices[-1][1] if self.prices else self.place.price_usd_per_hour

    def hours(self, now: datetime) -> float:
        """Hours billed until its end, or until `now`."""
        return hours_of((self.until or now) - self.since)

    def used_h(self, now: datetime) -> float:
        """Hours until its release was first attempted, if that failed; else as billed."""
        return hours_of(min(self.given_up or now, self.until or now) - self.since)

    def usd(self, now: datetime) -> float:
        """Dollars billed until its end, or until `now`."""
        return billed_usd(self.since, self.until or now, self.place.price_usd_per_hour, self.prices)


def place_data(place: Place) -> PlaceRecord:
    """A place as an event records it."""
    return PlaceRecord(**asdict(place))


_VALUES = attrgetter(*Place.__dataclass_fields__)
"""Faster than by name: a diary may have ten thousand refusals, and each read converts the place of each."""


def place_of(record: PlaceRecord) -> Place:
    """The place recorded in an event."""
    return Place(*_VALUES(record))


def machines(events: Sequence[Event]) -> list[MachineSpell]:
    """The machines of the run, oldest first. The end of the run ends its machine too."""
    return [MachineSpell(place_of(machine.place), *machine[1:]) for machine in machines_of(events)]


def machine_now(spells: Sequence[MachineSpell]) -> MachineSpell | None:
    """The run's current machine, if it has one."""
    return spells[-1] if spells and spells[-1].until is None else None


def began_since(events: Sequence[Event], moment: datetime) -> bool:
    """Has the run got a machine or begun an attempt since then? Allows for clocks that differ."""
    later = moment + timedelta(seconds=CLOCKS_DIFFER_S)
    return any(isinstance(event.payload, MachineUp | AttemptStarted) and event.time > later for event in events)


def spent_usd(spells: Sequence[MachineSpell], now: datetime) -> float:
    """What all machines have cost until now, assuming that each but the first restored a checkpoint."""
    return sum(spell.usd(now) for spell in spells) + sum(spell.place.restore_usd for spell in spells[1:])


def newest_attempt(events: Sequence[Event]) -> int:
    """The highest attempt number in the diary; 0 = none has begun."""
    return max((event.attempt for event in events), default=0)


def on_machine(events: Sequence[Event], spells: Sequence[MachineSpell], number: int) -> list[Event]:
    """The events of the attempts on the machine with this number in `spells`.

    Selected by attempt number, because the machine's clock is not the strategy's; by time in a diary of an earlier
    version.
    """
    spell = spells[number]
    following = spells[number + 1] if number + 1 < len(spells) else None
    if spell.after_attempt is not None:
        last = following.after_attempt if following else None
        return [
            event for event in events if event.attempt > spell.after_attempt and (last is None or event.attempt <= last)
        ]
    until = following.since if following else None
    return [
        event
        for event in events
        if event.attempt > 0 and event.time >= spell.since and (until is None or event.time < until)
    ]


def beat_on_machine(
    heartbeat: Heartbeat | None, events: Sequence[Event], spells: Sequence[MachineSpell]
) -> Heartbeat | None:
    """The heartbeat, if it comes from an attempt on the current machine: a zombie's steps don't count."""
    if heartbeat is None or machine_now(spells) is None:
        return None
    after = spells[-1].after_attempt
    if after is not None:
        return heartbeat if heartbeat.attempt > after else None
    attempts = {event.attempt for event in on_machine(events, spells, len(spells) - 1)}
    return heartbeat if heartbeat.attempt in attempts else None


def why_gone(its_events: Sequence[Event], *, ran: bool = True) -> GoneCause:
    """Why a machine is gone, from the events of its attempts: `preempted`, `moved`, `stopped` (a signal) or `crashed`.

    Without a final event of an attempt it was preempted. `ran`: False if the job is known to have ended without one.
    """
    ended = [attempt for _, attempt in of_kind(its_events, AttemptEnded)]
    if not ended:
        return "preempted" if ran else "never_ran"
    if ended[-1].outcome != "preempted":
        return "crashed"
    return told_by([notice.source for _, notice in of_kind(its_events, Notice)])


class Work(NamedTuple):
    """The training that is left."""

    left_h: float
    """Hours after the last step done: committed, or by the current machine's heartbeat."""
    unsaved_h: float
    """Hours done since the last commit on the current machine: a preemption loses them. Not in `left_h`."""
    measured: bool
    """Based on this run's own speed, not on the assumed hours."""
    whole_h: float
    """Hours of the whole run."""


def work_of(events: Sequence[Event], heartbeat: Heartbeat | None, hours: float) -> Work:
    """The work left, at the run's own speed if it is known, else as a share of the assumed hours.

    `heartbeat` comes from an attempt on the current machine. It is None without a machine, whose uncommitted steps are
    lost.
    """
    total = max((training.total_steps for _, training in of_kind(events, Training)), default=0)
    if heartbeat is not None:
        total = max(total, heartbeat.total_steps)
    if not total:
        return Work(hours, 0.0, measured=False, whole_h=hours)
    committed = committed_step(events)
    done = max(committed, heartbeat.step) if heartbeat is not None else committed
    hours_each = hours_per_step(events, hours / total)
    measured = measured_speed(events) is not None
    return Work(max(0, total - done) * hours_each, (done - committed) * hours_each, measured, total * hours_each)


def work_left_h(events: Sequence[Event], heartbeat: Heartbeat | None, hours: float) -> float:
    """Hours of training left, see `work_of`."""
    return work_of(events, heartbeat, hours).left_h


def committed_step(events: Sequence[Event]) -> int:
    """The last committed step."""
    return max((saved.step for _, saved in of_kind(events, Saved)), default=0)


class Speed(NamedTuple):
    """The speed of one attempt."""

    hours_per_step: float
    trained_h: float
    """Training time that it was measured over."""


def hours_per_step(events: Sequence[Event], assumed: float) -> float:
    """The measured speed, blended with the assumed one while the measurement is short."""
    speed = measured_speed(events)
    if speed is None:
        return assumed
    share = min(1.0, speed.trained_h / TRUSTED_H)
    return share * speed.hours_per_step + (1 - share) * assumed


def measured_speed(events: Sequence[Event]) -> Speed | None:
    """Speed of the newest attempt that trained for long enough, else of the one that trained longest.

    It is measured from the attempt's first step, or its first save, to the snapshot of its last save. Upload time
    doesn't count as training.
    """
    all_saves = of_kind(events, Saved)
    longest: Speed | None = None
    for began, first in reversed(of_kind(events, Training)):
        marks = [(began.time, first.step)]
        marks += [
            (_snapshot_at(event, saved), saved.step) for event, saved in all_saves if event.attempt == began.attempt
        ]
        start = marks[0]
        if len(marks) > 2 and marks[-1][1] - marks[1][1] >= MIN_MEASURED_STEPS:
            start = marks[1]  # the first steps compile and warm up
        if (steps := marks[-1][1] - start[1]) < MIN_MEASURED_STEPS:
            continue
        trained_h = max(0.0, hours_of(marks[-1][0] - start[0]))
        speed = Speed(trained_h / steps, trained_h)
        if trained_h >= TRUSTED_H:
            return speed
        if longest is None or trained_h > longest.trained_h:
            longest = speed
    return longest


def hours_of(span: timedelta) -> float:
    """A time span in hours."""
    return float(span.total_seconds()) / 3600


def _snapshot_at(event: Event, saved: Saved) -> datetime:
    """When the state of a save was taken: training continues during the upload."""
    return event.time - timedelta(seconds=saved.upload_s + saved.commit_s)
