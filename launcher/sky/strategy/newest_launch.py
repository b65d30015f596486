"""What the diary says of the newest launch and its machine: questions that the strategy asks it. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from checkpoints.run_log.event_kinds import (
    AttemptEnded,
    AttemptStarted,
    Decided,
    MachineGone,
    MachineUp,
    Planned,
    ReleaseFailed,
    RunEnd,
)
from checkpoints.run_log.event_log import Event, of_kind
from checkpoints.run_log.event_order import of_newest_launch
from launcher.policy.run_history import machines, on_machine


def attempt_now(events: Sequence[Event]) -> int | None:
    """The attempt that the newest machine began, unless it has ended."""
    spells = machines(events)
    its_events = on_machine(events, spells, len(spells) - 1) if spells else []
    begun = [event.attempt for event, _ in of_kind(its_events, AttemptStarted)]
    ended = {event.attempt for event, _ in of_kind(events, AttemptEnded)}
    return max(begun) if begun and max(begun) not in ended else None


def since_machine(events: Sequence[Event]) -> list[Event]:
    """The events after the newest machine came."""
    ups = [place for place, event in enumerate(events) if isinstance(event.payload, MachineUp)]
    return list(events[ups[-1] + 1 :]) if ups else list(events)


def is_noted_as_gone(events: Sequence[Event]) -> bool:
    """The newest machine."""
    return bool(of_kind(since_machine(events), MachineGone))


def release_due(events: Sequence[Event]) -> ReleaseFailed | None:
    """The last failure to give the newest machine back, while it is still up."""
    failed = [failure for _, failure in of_kind(since_machine(events), ReleaseFailed)]
    return failed[-1] if failed and not is_noted_as_gone(events) else None


def was_decided(events: Sequence[Event], what: str) -> bool:
    """Was the last wish to the newest machine the same?"""
    wishes = [decided.action for _, decided in of_kind(since_machine(events), Decided)]
    return bool(wishes) and wishes[-1] == what


def is_planned(events: Sequence[Event]) -> bool:
    """Does the newest launch begin with a plan, and has nothing happened since?"""
    turns = [e.payload for e in of_newest_launch(events) if isinstance(e.payload, RunEnd | Planned | MachineUp)]
    return bool(turns) and isinstance(turns[-1], Planned)
