"""The status of a run, from the bucket alone."""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import datetime

from pydantic import BaseModel, ConfigDict

from checkpoints.commit.head import Head, read_head
from checkpoints.run_log.event_kinds import (
    Alarm,
    AttemptEnded,
    AttemptStarted,
    Damaged,
    Decided,
    Failed,
    FalseRecovery,
    Finished,
    MachineGone,
    MachineUp,
    NoCapacity,
    Payload,
    Planned,
    Preempted,
    ReleaseFailed,
    RunEnd,
    Saved,
    SetupFailed,
    Training,
)
from checkpoints.run_log.event_log import RUN_ENDS, Event, of_kind, read_events
from checkpoints.run_log.event_order import end_of_run
from checkpoints.run_log.run_record import Heartbeat, read_heartbeat, read_run_if_valid
from checkpoints.storage.base import Store
from launcher.errors import UnknownRun
from launcher.local.presence import no_process_here
from launcher.policy.run_history import machine_now, machines, spent_usd
from launcher.report.event_lines import data_line, line_of

ABANDONED = "waiting for a launcher"
ABANDONED_S = 1800.0
"""A recovery takes minutes; after this long, probably no launcher is trying."""

SILENCE_S = 120.0
"""A running attempt without a heartbeat for this long is called silent: the machine may be gone."""

_BETWEEN: Mapping[type[Payload], str] = {
    Planned: "waiting",
    NoCapacity: "waiting for a machine",
    MachineUp: "starting",
}
_STATE_EVENTS: tuple[type[Payload], ...] = (*_BETWEEN, RunEnd, AttemptStarted, Preempted, AttemptEnded, MachineGone)

_TROUBLE = (Damaged, NoCapacity, Alarm, FalseRecovery, SetupFailed, ReleaseFailed, Failed)
_NEWS = (*_TROUBLE, RunEnd, MachineUp, Training, Saved)

_STATE_OF_JOB = {
    **dict.fromkeys(
        ("failed", "failed_setup", "failed_prechecks", "failed_no_resource", "failed_controller"), "failed"
    ),
    "cancelled": "stopped",
}
"""State from SkyPilot's final job status, if no process could write the end."""

OVER = frozenset({*RUN_ENDS, "damaged"})
"""States in which nothing more happens without the user."""


class RunStatus(BaseModel):
    """One line of `notus-launch status`."""

    model_config = ConfigDict(frozen=True)

    run: str
    recipe: str
    state: str
    attempt: int | None
    phase: str | None
    done: int = 0
    """The phase's counter, see `trainer.runtime.startup_phases`."""
    of: int = 0
    step: int
    total_steps: int
    saved_step: int | None
    loss: float | None
    silent_s: float | None
    where: str | None = None
    """The cloud machine that it is on."""
    cost_usd: float = 0.0
    """Cost of all its machines until now."""
    note: str | None = None
    """What prevents it from running, or needs attention."""
    data: str | None = None
    """Which rows of the data set aren't trained; None = all are."""
    in_cloud: bool = False
    """Was it launched in a cloud by `notus-launch`, or with the NOTUS strategy?"""
    job: str | None = None
    """SkyPilot's job and its status; None = not queried, or no answer."""
    job_says: str = ""

    @classmethod
    def damaged(cls, run: str) -> RunStatus:
        """The status of a run whose HEAD or diary can't be read."""
        return cls(
            run=run,
            recipe="",
            state="damaged",
            attempt=None,
            phase=None,
            step=0,
            total_steps=0,
            saved_step=None,
            loss=None,
            silent_s=None,
        )

    def abandoned(self, why: str) -> RunStatus:
        """The status of a local run without a launcher: it was killed, or its machine was restarted."""
        note = f"{why}; to resume: launch --name {self.run} again"
        return self.model_copy(update={"state": ABANDONED, "phase": None, "note": note})


def read_status(store: Store, name: str, now: datetime) -> RunStatus:
    """The status of a run; raises `UnknownRun`."""
    record = read_run_if_valid(store)
    events = read_events(store)
    if record is None and not events:  # with plain SkyPilot, run.json is written later, by the trainer
        raise UnknownRun(f"there is no run {name!r} in {store.url.rsplit('/', 1)[0]}", "list them: notus-launch runs")
    recipe = record.recipe_name if record else ""
    head = read_head(store)
    status = derive_status(name, recipe, head, read_heartbeat(store), events, now)
    if status.in_cloud or status.state in OVER:
        return status
    silent_s = math.inf if status.silent_s is None else status.silent_s
    if no_process_here(store, head, silent=silent_s >= SILENCE_S):
        return status.abandoned("its launcher on this machine is gone")
    if status.state == "silent" and silent_s >= ABANDONED_S:
        return status.abandoned(f"no sign of life for more than {ABANDONED_S / 60:.0f} min")
    return status


def derive_status(
    name: str,
    recipe: str,
    head: Head | None,
    heartbeat: Heartbeat | None,
    events: list[Event],
    now: datetime,
) -> RunStatus:
    """The pure part of `read_status`."""
    last = next((event for event in reversed(events) if isinstance(event.payload, _STATE_EVENTS)), None)
    silent_s = max(0.0, (now - heartbeat.time).total_seconds()) if heartbeat else None
    end = end_of_run(events)  # regardless of later events about its machine
    state = end.kind if end is not None else _state(last, heartbeat, silent_s, now)
    spells = machines(events)
    current = machine_now(spells)
    attempts = [event.attempt for event, _ in of_kind(events, AttemptStarted)]
    return RunStatus(
        run=name,
        recipe=recipe,
        state=state,
        attempt=attempts[-1] if attempts else None,
        phase=heartbeat.phase if heartbeat and state == "running" else None,
        done=heartbeat.done if heartbeat and state == "running" else 0,
        of=heartbeat.of if heartbeat and state == "running" else 0,
        step=max(heartbeat.step if heartbeat else 0, _last_step(events)),
        total_steps=heartbeat.total_steps if heartbeat else 0,
        saved_step=head.commits[0].step if head and head.commits else None,
        loss=heartbeat.loss if heartbeat else None,
        silent_s=silent_s,
        where=str(current.place) if current else None,
        cost_usd=spent_usd(spells, now),
        note=_note(events),
        data=data_line(events),
        in_cloud=any(isinstance(event.payload, Planned | Decided | MachineUp) for event in events),
    )


def _note(events: list[Event]) -> str | None:
    """The latest event as a line, if it is about trouble."""
    news = [event for event in events if isinstance(event.payload, _NEWS)]
    return line_of(news[-1]) if news and isinstance(news[-1].payload, _TROUBLE) else None


def _state(last: Event | None, heartbeat: Heartbeat | None, silent_s: float | None, now: datetime) -> str:
    if last is None:
        return "waiting"
    match last.payload:
        case RunEnd():
            return last.kind
        case Planned() | NoCapacity() | MachineUp() as between:  # the strategy is searching for a machine
            return _BETWEEN[type(between)]
        case AttemptStarted():
            if heartbeat is not None and heartbeat.attempt == last.attempt and silent_s is not None:
                return "running" if silent_s < SILENCE_S else "silent"
            return "starting" if (now - last.time).total_seconds() < SILENCE_S else "silent"
        case AttemptEnded(outcome="user_error"):
            return "failed"  # never retried
        case MachineGone(job_status=status) if status in _STATE_OF_JOB:
            return _STATE_OF_JOB[status]
    # Another attempt is due. After a while without one, probably no launcher is there to start it.
    return "recovering" if (now - last.time).total_seconds() < ABANDONED_S else ABANDONED


def _last_step(events: list[Event]) -> int:
    ended = [event.payload.step for event in events if isinstance(event.payload, AttemptEnded | Finished)]
    return ended[-1] if ended else 0
