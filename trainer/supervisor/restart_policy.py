"""When a failure is worth another machine, and when it ends the run. Pure: decided from the run's diary alone.

One rule, on this machine and in a cloud. An attempt that crashed after it had committed a new step is started again, as
often as it takes. A *failed start* crashed before that, or its machine never began an attempt: after three in a row the
run gives up. A machine that is taken away is neither.

What every machine would meet (recipe, data, code) ends the run at once. An error that an earlier attempt with the
same input got past isn't of that kind, whatever its class: it is this machine's. Nor is a run that another
attempt holds, on a rented machine: the holder may be a zombie that dies meanwhile.
"""

from __future__ import annotations

from collections.abc import Sequence

from checkpoints.errors import NotusError, RunHeld, UserError
from checkpoints.run_log.event_kinds import AttemptEnded, AttemptStarted, Planned, RunEnd, Saved, SetupFailed, Training
from checkpoints.run_log.event_log import Event, in_order, of_kind
from trainer.errors import MachineFault, TaskError
from trainer.runtime.attempt_dir import BEFORE_TRAINING, Phase

MAX_FAILED_STARTS = 3
"""In a row: as many machines may be paid for nothing."""


def failed_starts(events: Sequence[Event]) -> int:
    """The number of failed starts in a row up to now."""
    committed = {event.attempt for event, _ in of_kind(events, Saved)}
    count = 0
    for event in _by_attempt(events):
        match event.payload:
            case Saved() | RunEnd() | Planned():  # progress; or the user launches again, maybe with the cause fixed
                count = 0
            case SetupFailed():
                count += 1
            case AttemptEnded(outcome="failed"):
                count += event.attempt not in committed
    return count


def gives_up(events: Sequence[Event]) -> bool:
    """Has the run had its failed starts?"""
    return failed_starts(events) >= MAX_FAILED_STARTS


def of_this_machine(error: NotusError, events: Sequence[Event], inputs: str, *, rented: bool = False) -> bool:
    """May another machine get past an error that came before this one had claimed the run?

    `inputs` identifies what this machine was given, see `trainer.data.input_hash`. `rented`: nobody sits before it who
    could choose another name, so a run that is held (by a predecessor that is dying, as a rule) is worth another try.
    """
    if isinstance(error, TaskError):
        return False
    if rented and isinstance(error, RunHeld):
        return True
    return isinstance(error, MachineFault) or not isinstance(error, UserError) or passed_before(events, inputs)


def passed_before(
    events: Sequence[Event], inputs: str, *, attempt: int | None = None, phase: Phase = "starting", step: int = 0
) -> bool:
    """Did an attempt before `attempt` (None: any) get past the point where this one met an error?

    Only attempts with the same `inputs` count: a user who launches again may have changed recipe, data or code. During
    training the point is a step, because a loss that is no number comes back at the same step on every machine.
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
    """In the order of the attempts, which HEAD counts: the machines' clocks differ.

    A machine that began no attempt names the last one before it. What the launcher writes names none, and stays where
    its launch, or its time, puts it.
    """
    newest, placed = 0, []
    for index, event in enumerate(in_order(events)):
        newest = max(newest, event.attempt)
        told = event.payload.after if isinstance(event.payload, SetupFailed) else None
        after = event.attempt or (newest if told is None else told)
        placed.append((after, event.attempt == 0, index, event))
    return [event for *_, event in sorted(placed, key=lambda place: place[:3])]
