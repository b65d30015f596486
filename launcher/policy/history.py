"""What the run's diary says: machines, money, work left. Nothing is kept that a restart of a process could lose.

The strategy writes `machine_up`, `machine_gone`, `no_capacity` and `decided` (attempt 0); the trainer writes the rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from checkpoints.events import Event
from checkpoints.machines import machines_of, told_by
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
    ended: str | None


def place_data(place: Place) -> dict[str, Any]:
    """A place as an event tells it."""
    return asdict(place)


def place_of(data: dict[str, Any]) -> Place:
    """Back from an event."""
    return Place(**{name: data[name] for name in Place.__dataclass_fields__ if name in data})


def machines(events: Sequence[Event]) -> list[MachineSpell]:
    """The machines of the run, oldest first. The end of the run ends its machine too."""
    return [MachineSpell(place_of(place), since, until, ended) for place, since, until, ended in machines_of(events)]


def machine_now(spells: Sequence[MachineSpell]) -> MachineSpell | None:
    """The one that the run has, if it has one."""
    return spells[-1] if spells and spells[-1].until is None else None


def began_since(events: Sequence[Event], moment: datetime) -> bool:
    """Has the run got a machine or begun an attempt since then? Machines' clocks differ, and this one's too."""
    later = moment + timedelta(seconds=CLOCKS_DIFFER_S)
    return any(event.kind in ("machine_up", "attempt_started") and event.time > later for event in events)


def spent_usd(spells: Sequence[MachineSpell], now: datetime) -> float:
    """What all machines have cost until now; each but the first restored a checkpoint, as far as is known."""
    hours_usd = sum(hours_of((spell.until or now) - spell.since) * spell.place.price_usd_per_hour for spell in spells)
    return hours_usd + sum(spell.place.restore_usd for spell in spells[1:])


def why_gone(events: Sequence[Event], since: datetime) -> str:
    """Why the machine that was there `since` then is gone: `preempted`, `moved`, `stopped` (a signal) or `crashed`.

    Without a word of the attempt it was taken away.
    """
    since_up = [event for event in events if event.time >= since]
    ended = [event for event in since_up if event.kind == "attempt_ended"]
    if not ended:
        return "preempted"
    if ended[-1].data.get("outcome") != "preempted":
        return "crashed"
    return told_by([event.data["source"] for event in since_up if event.kind == "notice"])


def work_left_h(events: Sequence[Event], heartbeat: Heartbeat | None, hours: float, now: datetime) -> float:
    """Hours of training left after what is safely done: measured where the run has a speed, else the assumed share."""
    total = max((event.data.get("total_steps", 0) for event in events if event.kind == "training"), default=0)
    if heartbeat is not None:
        total = max(total, heartbeat.total_steps)
    if not total:
        return hours
    done = max((event.data["step"] for event in events if event.kind == "saved"), default=0)
    alive = heartbeat is not None and (now - heartbeat.time).total_seconds() < 60
    if heartbeat is not None and alive:
        done = max(done, heartbeat.step)
    per_step = _hours_per_step(events)
    return max(0, total - done) * (per_step if per_step is not None else hours / total)


def _hours_per_step(events: Sequence[Event]) -> float | None:
    """Of the newest attempt that trained long enough: from its first step to its last save."""
    for first in reversed([event for event in events if event.kind == "training"]):
        saves = [event for event in events if event.kind == "saved" and event.attempt == first.attempt]
        steps = int(saves[-1].data["step"]) - int(first.data["step"]) if saves else 0
        if steps >= MIN_MEASURED_STEPS:
            return hours_of(saves[-1].time - first.time) / steps
    return None


def hours_of(span: timedelta) -> float:
    """A time span in hours."""
    return float(span.total_seconds()) / 3600
