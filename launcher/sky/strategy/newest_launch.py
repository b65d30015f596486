"""Queries on the diary about the newest launch and its machine, for the strategy. Pure."""

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
    """The newest machine's attempt, unless it has ended."""
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
    """Is the newest machine recorded as gone?"""
    return bool(of_kind(since_machine(events), MachineGone))


def release_due(events: Sequence[Event]) -> ReleaseFailed | None:
    """The last failed release of the newest machine, if it is still up."""
    failed = [failure for _, failure in of_kind(since_machine(events), ReleaseFailed)]
    return failed[-1] if failed and not is_noted_as_gone(events) else None


def was_decided(events: Sequence[Event], what: str) -> bool:
    """Was the last request to the newest machine the same?"""
    actions = [decided.action for _, decided in of_kind(since_machine(events), Decided)]
    return bool(actions) and actions[-1] == what


def is_planned(events: Sequence[Event]) -> bool:
    """Is the newest launch planned, without anything having happened since?"""
    turns = [e.payload for e in of_newest_launch(events) if isinstance(e.payload, RunEnd | Planned | MachineUp)]
    return bool(turns) and isinstance(turns[-1], Planned)
