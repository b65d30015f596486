"""From the run's diary to an observation: the strategy keeps nothing that a restart of its process could lose.

The strategy writes `machine_up`, `machine_gone`, `no_capacity` and `decided` (attempt 0); the trainer writes the rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime
from itertools import pairwise
from typing import Any, NamedTuple

from checkpoints.events import RUN_ENDS, Event
from checkpoints.run import Heartbeat
from launcher.hazard import assumed
from launcher.policy.limits import Limits
from launcher.policy.market import UNSEEN_AGE_H, SpotMarket
from launcher.policy.model import Known, Observation, Place, Running

CLOUD_NOTICES = frozenset({"gcp", "aws", "file"})
"""Sources of a notice that mean a preemption: the others are people, signals and moves."""
MIN_MEASURED_STEPS = 5
"""Of one attempt, before its speed replaces the assumed one: the first steps compile and warm up."""


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
    return Place(**{name: data[name] for name in Place.__dataclass_fields__})


def machines(events: Sequence[Event]) -> list[MachineSpell]:
    """The machines of the run, oldest first. The end of the run ends its machine too."""
    found: list[MachineSpell] = []
    before: datetime | None = None
    for event in events:
        last = found[-1] if found else None
        if event.kind == "planned" and last and last.until is None:
            # A launch finds no machine of an earlier job: it ended after its last word, at a time that nobody wrote.
            found[-1] = last._replace(until=max(last.since, before or last.since), ended="unknown")
        if event.kind == "machine_up":
            since = datetime.fromisoformat(event.data["since"])
            if last and last.until is None:  # its end was never written: the controller was killed in between
                found[-1] = last._replace(until=since, ended="unknown")
            found.append(MachineSpell(place_of(event.data["place"]), since, None, None))
        elif last and found[-1].until is None and (event.kind == "machine_gone" or _ends_run(event)):
            ended = event.data["why"] if event.kind == "machine_gone" else event.kind
            found[-1] = last._replace(until=event.time, ended=ended)
        before = event.time
    return found


def machine_now(spells: Sequence[MachineSpell]) -> MachineSpell | None:
    """The one that the run has, if it has one."""
    return spells[-1] if spells and spells[-1].until is None else None


def spent_usd(spells: Sequence[MachineSpell], now: datetime) -> float:
    """What all machines have cost until now."""
    return sum(_hours((spell.until or now) - spell.since) * spell.place.price_usd_per_hour for spell in spells)


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


def told_by(notices: Sequence[str]) -> str:
    """How to call the end of an attempt that was told to stop, by the sources of its notices: it says "preempted"
    whoever told it."""
    if "move" in notices:
        return "moved"
    return "preempted" if any(source in CLOUD_NOTICES for source in notices) else "stopped"


def observe(
    events: Sequence[Event],
    heartbeat: Heartbeat | None,
    places: Sequence[Place],
    limits: Limits,
    now: datetime,
) -> Observation:
    """What the policy may know at `now`."""
    spells = machines(events)
    current = machine_now(spells)
    refused = _refused_at(events)
    left = None if limits.budget_usd is None else limits.budget_usd - spent_usd(spells, now)
    return Observation(
        places=tuple(_known(place, spells, refused.get(place), now) for place in places),
        work_left_h=work_left_h(events, heartbeat, limits.hours, now),
        restart_h=limits.restart_h,
        running=Running(current.place, _hours(now - current.since)) if current else None,
        deadline_h=None if limits.deadline is None else _hours(limits.deadline - now),
        budget_left_usd=left,
        refusals_in_a_row=_refusals(events),
        moves_in_vain=_moves_in_vain(spells),
        market=None if current or limits.deadline is None else _market(events, places, limits, now),
    )


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


def _ends_run(event: Event) -> bool:
    return event.kind in RUN_ENDS or (event.kind == "attempt_ended" and event.data.get("outcome") == "user_error")


def _hours_per_step(events: Sequence[Event]) -> float | None:
    """Of the newest attempt that trained long enough: from its first step to its last save."""
    for first in reversed([event for event in events if event.kind == "training"]):
        saves = [event for event in events if event.kind == "saved" and event.attempt == first.attempt]
        steps = int(saves[-1].data["step"]) - int(first.data["step"]) if saves else 0
        if steps >= MIN_MEASURED_STEPS:
            return _hours(saves[-1].time - first.time) / steps
    return None


def _known(place: Place, spells: Sequence[MachineSpell], refused: datetime | None, now: datetime) -> Known:
    taken = [spell.until for spell in spells if spell.place == place and spell.ended == "preempted"]
    return Known(place, _ago(taken, now), _ago([refused], now))


def _refused_at(events: Sequence[Event]) -> dict[Place, datetime]:
    """When each place last had nothing."""
    return {
        place_of(data): event.time for event in events if event.kind == "no_capacity" for data in event.data["places"]
    }


def _market(events: Sequence[Event], places: Sequence[Place], limits: Limits, now: datetime) -> SpotMarket | None:
    """Spot as this run has met it: down since the first refusal in a row, else worth a try. None without a choice."""
    spot = [place for place in places if place.spot]
    if not spot or len(spot) == len(places):
        return None
    chain = assumed(len(spot), limits.hazard_h).chain
    refused_since: dict[Place, datetime] = {}
    for event in events:
        if event.kind == "machine_up":
            refused_since.clear()
        elif event.kind == "no_capacity":
            for data in event.data["places"]:
                refused_since.setdefault(place_of(data), event.time)
    if not all(place in refused_since for place in spot):
        return SpotMarket(chain, up=True, age_h=UNSEEN_AGE_H)
    return SpotMarket(chain, up=False, age_h=_hours(now - max(refused_since[place] for place in spot)))


def _refusals(events: Sequence[Event]) -> int:
    """Rounds in which nobody that was asked had a machine, since the last one."""
    count = 0
    for event in events:
        if event.kind == "machine_up":
            count = 0
        elif event.kind == "no_capacity":
            count += 1
    return count


def _moves_in_vain(spells: Sequence[MachineSpell]) -> int:
    count = 0
    for before, after in pairwise(spells):
        if after.place.spot:
            count = 0
        elif before.ended == "moved" and not before.place.spot:
            count += 1
    return count


def _ago(times: Sequence[datetime | None], now: datetime) -> float | None:
    known = [time for time in times if time is not None]
    return _hours(now - max(known)) if known else None


def _hours(span: Any) -> float:
    return float(span.total_seconds()) / 3600
