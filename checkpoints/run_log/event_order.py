"""Which events belong to the newest launch, and whether it is over. Pure.

Events are written by several machines, each by its own clock, and read in the order of `event_log.in_order`. A clock
that is off can shift an event within its launch, but not into another. So whether a run is over is decided by all
events of the launch, not by the last one.
"""

from __future__ import annotations

from collections.abc import Sequence

from checkpoints.run_log.event_kinds import AttemptStarted, Finished, MachineUp, Payload, Planned, RunEnd
from checkpoints.run_log.event_log import Event


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
    """How the newest launch of the run ended; None while it is running.

    A numbered launch is over once it has an end event. Without numbers the last turn decides: a plain `sky jobs launch`
    starts again without a plan.
    """
    newest = max((event.launch for event in events), default=0)
    if newest:
        ends = [turn for turn in _turns(of_newest_launch(events)) if isinstance(turn, RunEnd)]
        return ends[-1] if ends else None
    turns = _turns(events)
    return turns[-1] if turns and isinstance(turns[-1], RunEnd) else None


def _turns(events: Sequence[Event]) -> list[Payload]:
    """Starts and ends, without the late ends of a machine that has been replaced.

    Such a machine was cut off: that it stopped or failed doesn't end the run, but that it finished does.
    """
    turns: list[Payload] = []
    replaced = 0
    for event in events:
        match event.payload:
            case MachineUp(after_attempt=after):
                replaced = after or 0
            case RunEnd() if not isinstance(event.payload, Finished) and 0 < event.attempt <= replaced:
                continue
        if isinstance(event.payload, RunEnd | Planned | MachineUp | AttemptStarted):
            turns.append(event.payload)
    return turns
