"""The machines that a run has had, from its diary."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Literal, NamedTuple

from checkpoints.run_log.causes import GoneCause
from checkpoints.run_log.event_kinds import (
    AttemptEnded,
    Failed,
    Finished,
    MachineGone,
    MachineUp,
    Payload,
    PlaceRecord,
    Planned,
    PriceChanged,
    ReleaseFailed,
    Stopped,
    UnderWay,
)
from checkpoints.run_log.event_log import Event

CLOUD_NOTICES = frozenset({"gcp", "aws", "file"})
"""Sources of a notice that mean a preemption. The others are people, signals and moves."""

Ended = Literal[GoneCause, "finished", "failed", "user_error"]
"""Why a machine is gone, or how the run on it ended."""


class Machine(NamedTuple):
    """A machine that the run had, or has (`until` None)."""

    place: PlaceRecord
    since: datetime
    until: datetime | None
    ended: Ended | None
    job_status: str = ""
    """SkyPilot's final status of the job that it ended with."""
    after_attempt: int | None = None
    """Attempts on it have higher numbers."""
    reserve: bool = False
    """When it was requested, the budget could also pay for finishing on demand."""
    prices: tuple[tuple[datetime, float], ...] = ()
    """Later price changes: from when, and dollars per hour."""
    start_h: float | None = None
    """From its request to the first new step on it, as the strategy saw it."""
    given_up: datetime | None = None
    """When the first try to release it failed: it is of no use from then on, and billed until it is gone."""

    def cost_usd(self, now: datetime) -> float:
        """Cost until its end, or until `now`."""
        return billed_usd(self.since, self.until or now, self.place.price_usd_per_hour, self.prices)


def billed_usd(
    since: datetime, until: datetime, usd_per_hour: float, prices: Sequence[tuple[datetime, float]]
) -> float:
    """The cost of a machine whose price may change over time."""
    usd, begin = 0.0, since
    for moment, price in prices:
        usd += max(0.0, (min(moment, until) - begin).total_seconds()) / 3600 * usd_per_hour
        begin, usd_per_hour = max(begin, min(moment, until)), price
    return usd + max(0.0, (until - begin).total_seconds()) / 3600 * usd_per_hour


def machines_of(events: Sequence[Event]) -> list[Machine]:
    """The run's machines, oldest first.

    The end of the run also ends its machine, until the strategy has recorded when it was actually released; that time
    then counts. A machine that could not be released is still billed.
    """
    found: list[Machine] = []
    before: datetime | None = None
    unconfirmed = False
    for event in events:
        last = found[-1] if found else None
        is_up = last is not None and last.until is None
        match event.payload:
            case Planned() if last and is_up:
                # The machine of an earlier job is gone at a new launch: it ended after its last event, at an unknown
                # time.
                found[-1] = last._replace(until=max(last.since, before or last.since), ended="unknown")
            case MachineUp(place=place, since=since, after_attempt=after, reserve=reserve):
                if last and is_up:  # its end was never recorded: the controller was killed in between
                    found[-1] = last._replace(until=since, ended="unknown")
                found.append(Machine(place, since, None, None, after_attempt=after, reserve=reserve))
                unconfirmed = False
            case UnderWay(hours=hours) if last and is_up:
                found[-1] = last._replace(start_h=hours)
            case PriceChanged(place=place) if last and is_up:
                found[-1] = last._replace(prices=(*last.prices, (event.time, place.price_usd_per_hour)))
            case MachineGone(why=why, job_status=job_status) if last and (is_up or unconfirmed):
                kept = last.ended if unconfirmed and last.ended else why
                found[-1] = last._replace(until=event.time, ended=kept, job_status=job_status)
                unconfirmed = False
            case ReleaseFailed() if last and (is_up or unconfirmed):
                found[-1] = last._replace(until=None, given_up=last.given_up or event.time)
            case payload if last and is_up and not _is_of_earlier(event, last) and (ended := _run_end(payload)):
                found[-1] = last._replace(until=event.time, ended=ended)
                unconfirmed = True
        before = event.time
    return found


def _is_of_earlier(event: Event, machine: Machine) -> bool:
    """Is the event from an earlier machine? One that was cut off may still run; its end isn't its successor's."""
    return 0 < event.attempt <= (machine.after_attempt or 0)


def told_by(notices: Sequence[str]) -> Literal["moved", "preempted", "stopped"]:
    """Return what to call the end of an attempt that was stopped by notices, from their sources.

    The attempt's own outcome is "preempted" in all three cases.
    """
    if "move" in notices:
        return "moved"
    return "preempted" if any(source in CLOUD_NOTICES for source in notices) else "stopped"


def _run_end(payload: Payload) -> Ended | None:
    match payload:
        case Finished():
            return "finished"
        case Failed():
            return "failed"
        case Stopped():
            return "stopped"
        case AttemptEnded(outcome="user_error"):
            return "user_error"
    return None
