"""Lines for people from a run's diary."""

from __future__ import annotations

import re
from collections.abc import Iterable

from checkpoints.run_log.event_kinds import (
    Alarm,
    AttemptEnded,
    Damaged,
    DataPrepared,
    Decided,
    Failed,
    FalseRecovery,
    MachineGone,
    MachineUp,
    NoCapacity,
    Notice,
    ReleaseFailed,
    Resumed,
    SetupFailed,
    Stopped,
    Training,
)
from checkpoints.run_log.event_log import Event, of_kind
from launcher.policy.model import Place
from launcher.policy.run_history import place_of

QUOTA = re.compile(r"quota|limit:? ?exceeded|max\w*countexceeded", re.IGNORECASE)
GCP_LIMIT = re.compile(r"Quota '[^']+' exceeded\. Limit: [\d.]+")
SOLD_OUT = re.compile(
    r"exhausted|insufficient\w*.?\w*.?capacity|not (have )?enough (resources|capacity)", re.IGNORECASE
)
SHOWN = 3
"""Places named for each answer."""
WORDS = 120
"""Characters shown of other answers."""


def line_of(event: Event) -> str | None:
    """An event as one line; None if it isn't shown."""
    match event.payload:
        case Decided(action=action, reason=reason, first=first):
            return f"{action}: {reason}" + (f"; first {first}" if first else "")
        case MachineUp(place=record):
            return f"machine: {place_of(record)}, ${record.price_usd_per_hour:.2f}/h"
        case MachineGone() as gone:
            where = f": {place_of(gone.place)}" if gone.place else ""
            return f"machine gone ({gone.cause_or_status}){where}{_after_colon(gone.said[:WORDS])}"
        case NoCapacity() as refusal:
            return f"no machine in {len(refusal.places)} places: {_refusals(refusal)}"
        case SetupFailed(message=message, command=command):
            return f"the set-up failed{f' ({command})' if command else ''}: {message}"
        case ReleaseFailed(place=record, message=message, tries=tries):
            return f"{place_of(record)} could not be released ({tries} tries) and is still billed: {message}"
        case FalseRecovery():
            return "SkyPilot considered the machine dead, but it is training: nothing is restarted"
        case Alarm() as alarm:
            return _alarm(alarm)
        case Damaged(message=message):
            return f"a line of the diary is damaged: {message}"
        case DataPrepared() as data:
            return left_out_line(data)
        case Resumed(step=step):
            return f"attempt {event.attempt} resumes from step {step}"
        case Training(step=step, total_steps=total, links=links):
            return f"attempt {event.attempt}: first step done ({step}/{total})" + "".join(f"; {link}" for link in links)
        case Notice(source=source):
            return f"attempt {event.attempt}: asked to stop ({source}); saving"
        case AttemptEnded(step=step, outcome=outcome, message=message):
            return f"attempt {event.attempt} ended at step {step}: {outcome}{_after_colon(message)}"
        case Failed(message=message, hint=hint):
            return f"failed: {message or 'no reason given'}" + (f" ({hint})" if hint else "")
        case Stopped(reason=reason):
            return f"stopped: {reason or 'on request'}; the state is saved"
    return None


def data_line(events: Iterable[Event]) -> str | None:
    """The line on rows left out, from the newest attempt that prepared the data."""
    prepared = [data for _, data in of_kind(events, DataPrepared)]
    return left_out_line(prepared[-1]) if prepared else None


def left_out_line(data: DataPrepared) -> str | None:
    """Which rows of the data aren't trained; None if all are."""
    if not data.left_out:
        return None
    reasons = []
    for group in data.left_out:
        more = ", ..." if group.rows > len(group.where) > 0 else ""
        reasons.append(f"{group.rows} {group.reason}" + (f" ({', '.join(group.where)}{more})" if group.where else ""))
    return f"{sum(group.rows for group in data.left_out)} of {data.rows} rows are left out: {'; '.join(reasons)}"


def _after_colon(words: str) -> str:
    return f": {words}" if words else ""


def _alarm(alarm: Alarm) -> str:
    if alarm.about != "progress":
        return f"alarm ({alarm.about}){_after_colon(alarm.message)}"
    stuck = f"no new step for {alarm.stuck_s / 60:.0f} min (step {alarm.step}, {alarm.phase})"
    return stuck + _after_colon(alarm.message)


def _refusals(refusal: NoCapacity) -> str:
    """The answers with the places that gave them, cheapest first."""
    if refusal.answers is None:  # from an earlier version
        return "; ".join(refusal.reasons[:SHOWN]) or "no reason given"
    groups: dict[str, list[Place]] = {}
    for place, answer in zip(refusal.places, refusal.answers, strict=True):
        groups.setdefault(_shorten(answer), []).append(place_of(place))
    return "; ".join(f"{answer}: {_name_places(group)}" for answer, group in groups.items())


def _shorten(message: str) -> str:
    if QUOTA.search(message):
        limit = GCP_LIMIT.search(message)
        return f"over quota ({limit[0]})" if limit else "over quota"
    return "sold out" if SOLD_OUT.search(message) else message[:WORDS] or "no reason given"


def _name_places(places: list[Place]) -> str:
    """The cheapest places, with zone and price."""
    cheapest = sorted(places, key=lambda place: place.price_usd_per_hour)
    named = ", ".join(
        f"{place.where} ({'spot, ' if place.spot else ''}${place.price_usd_per_hour:.2f}/h)"
        for place in cheapest[:SHOWN]
    )
    return named + (f" and {len(places) - SHOWN} more" if len(places) > SHOWN else "")
