"""The order of events that were written by several machines, each by its own clock. Pure.

A launch's number says which launch comes first; `planned` is a launch's first event, whatever the launching machine's
clock says. Only within a launch do times decide, and there a clock that is off can shift a line but not a turn: whether
a run is over is asked of the launch, not of the last line.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from checkpoints.event_kinds import AttemptStarted, MachineUp, Planned, RunEnd
from checkpoints.events import Event


def in_order(events: Iterable[Event]) -> list[Event]:
    """By launch, then by time. An event without a launch's number belongs to the newest launch before it."""
    numbered: list[tuple[int, Event]] = []
    newest = 0
    for event in sorted(events, key=lambda event: (event.time, event.id)):
        newest = max(newest, event.launch)
        numbered.append((event.launch or newest, event))
    numbered.sort(key=lambda pair: (pair[0], pair[0] > 0 and not isinstance(pair[1].payload, Planned)))
    return [event for _, event in numbered]


def of_newest_launch(events: Sequence[Event]) -> list[Event]:
    """The events since the newest launch began; all of a run that was never launched by number or plan."""
    newest = max((event.launch for event in events), default=0)
    begins = [
        place
        for place, event in enumerate(events)
        if isinstance(event.payload, Planned) and (not newest or event.launch == newest)
    ]
    if not begins and newest:
        begins = [place for place, event in enumerate(events) if event.launch == newest]
        return list(events[begins[0] :])
    return list(events[begins[-1] :]) if begins else list(events)


def end_of_run(events: Sequence[Event]) -> RunEnd | None:
    """How the newest launch of the run ended; None while it goes on.

    A numbered launch is over once one of its events says so. Without numbers the last turn decides: a plain `sky jobs
    launch` begins again without a plan.
    """
    newest = max((event.launch for event in events), default=0)
    if newest:
        ends = [event.payload for event in of_newest_launch(events) if isinstance(event.payload, RunEnd)]
        return ends[-1] if ends else None
    turns = [
        event.payload for event in events if isinstance(event.payload, RunEnd | Planned | MachineUp | AttemptStarted)
    ]
    return turns[-1] if turns and isinstance(turns[-1], RunEnd) else None
