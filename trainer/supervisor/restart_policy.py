"""When a failure is worth another machine, and when it ends the run. Pure: decided from the run's diary alone.

One rule, on this machine and in a cloud. An attempt that crashed after it had committed a new step is restarted, as
often as necessary. A *failed start* crashed before that, or its machine never began an attempt: after three in a row
the run gives up. A machine that is taken away is neither.

An error that every machine would have (recipe, data, code) ends the run at once. If an earlier attempt with the same
input got past it, it is this machine's fault, whatever its class. A run that another attempt holds doesn't end either,
on a rented machine: the holder may be a zombie that dies meanwhile.
"""

from __future__ import annotations

from collections.abc import Sequence

from checkpoints.errors import NotusError, RunHeld, UserError
from checkpoints.run_log.event_kinds import AttemptEnded, AttemptStarted, Planned, RunEnd, Saved, SetupFailed, Training
from checkpoints.run_log.event_log import Event, in_order, of_kind
from trainer.errors import MachineFault, TaskError
from trainer.runtime.attempt_dir import BEFORE_TRAINING, Phase

MAX_FAILED_STARTS = 3
"""In a row: that many machines may be paid for without progress."""


def failed_starts(events: Sequence[Event]) -> int:
    """The current number of consecutive failed starts."""
    committed = {event.attempt for event, _ in of_kind(events, Saved)}
    count = 0
    for event in _by_attempt(events):
        match event.payload:
            case Saved() | RunEnd() | Planned():  # progress; or the user launched again, maybe with the cause fixed
                count = 0
            case SetupFailed():
                count += 1
            case AttemptEnded(outcome="failed"):
                count += event.attempt not in committed
    return count


def gives_up(events: Sequence[Event]) -> bool:
    """Has the run used up its failed starts?"""
    return failed_starts(events) >= MAX_FAILED_STARTS


def of_this_machine(error: NotusError, events: Sequence[Event], inputs: str, *, rented: bool = False) -> bool:
    """May another machine get past an error that occurred before this one had claimed the run?

    `inputs` identifies what this machine was given, see `trainer.data.input_hash`. `rented`: no user is present who
    could choose another name, so a run that is held (usually by a dying predecessor) is worth another try.
    """
    if isinstance(error, TaskError):
        return False
    if rented and isinstance(error, RunHeld):
        return True
    return isinstance(error, MachineFault) or not isinstance(error, UserError) or passed_before(events, inputs)


def passed_before(
    events: Sequence[Event], inputs: str, *, attempt: int | None = None, phase: Phase = "starting", step: int = 0
) -> bool:
    """Did an attempt before `attempt` (None: any) get past the point where this one failed?

    Only attempts with the same `inputs` count: a user who launches again may have changed recipe, data or code. During
    training the point is a step, because a non-finite loss recurs at the same step on every machine.
    """
    earlier = {
        event.attempt
        for event, started in of_kind(events, AttemptStarted)
        if inputs and started.inputs == inputs and (attempt is None or event.attempt < attempt)
    }
    mine = [event for event in events if event.attempt in earlier]
    if phase in BEFORE_TRAINING:
        return any(isinstance(event.payload, Training | Saved) for event in mine)
    return any(
        isinstance(event.payload, Training | Saved | AttemptEnded) and event.payload.step > step for event in mine
    )


def _by_attempt(events: Sequence[Event]) -> list[Event]:
    """Sort events by attempt, as counted by HEAD, because the machines' clocks differ.

    A machine that began no attempt records the last one before it. The launcher's events have none, and are ordered by
    launch or time.
    """
    newest, placed = 0, []
    for index, event in enumerate(in_order(events)):
        newest = max(newest, event.attempt)
        recorded = event.payload.after if isinstance(event.payload, SetupFailed) else None
        after = event.attempt or (newest if recorded is None else recorded)
        placed.append((after, event.attempt == 0, index, event))
    return [event for *_, event in sorted(placed, key=lambda entry: entry[:3])]
