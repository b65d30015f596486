"""Follow a cloud run from its bucket, with occasional queries to SkyPilot, until it ends or the user leaves."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import NamedTuple, Protocol

from checkpoints.errors import NotusError
from checkpoints.run_log.event_kinds import AttemptEnded, Failed, Finished, Planned, Stopped
from checkpoints.run_log.event_log import Event, read_events
from checkpoints.run_log.run_record import Heartbeat, read_heartbeat
from checkpoints.storage.base import Store
from checkpoints.util.clock import Clock
from launcher.console import echo
from launcher.local.backend import Watcher
from launcher.local.progress import watcher
from launcher.report.event_lines import line_of
from trainer.runtime.attempt_dir import Progress

EVERY_S = 3.0
ASK_SKYPILOT_EVERY_S = 20.0
JOB_CODES = {"FAILED_NO_RESOURCE": 3, "FAILED_SETUP": 2, "FAILED_PRECHECKS": 2}
"""Exit codes of jobs whose diary has no end. A set-up fails because of the task or the machine, a precheck because of
the account or the settings: retrying helps with neither."""


class JobState(Protocol):
    """The state of a managed job."""

    @property
    def status(self) -> str: ...

    @property
    def reason(self) -> str: ...

    @property
    def over(self) -> bool: ...


class End(NamedTuple):
    """How the run ended, or that the user left."""

    code: int
    receipt: bool = False


def follow(store: Store, name: str, ask_job: Callable[[], JobState | None], clock: Clock) -> End:
    """Show what happens until the run ends. Ctrl-C leaves it running."""
    try:
        with watcher(name) as watching:
            return _Follower(store, name, ask_job, clock).run(watching)
    except KeyboardInterrupt:
        echo(f"the run continues. Watch it: notus-launch status {name}; end it: notus-launch stop {name}")
        return End(0)


class _Follower:
    def __init__(self, store: Store, name: str, ask_job: Callable[[], JobState | None], clock: Clock) -> None:
        self._store = store
        self._name = name
        self._ask_job = ask_job
        self._clock = clock
        self._said: set[str] = {event.id for event in read_events(store) if not isinstance(event.payload, Planned)}
        self._status = ""
        self._attempt = 0

    def run(self, watching: Watcher) -> End:
        next_question = self._clock.monotonic()
        while True:
            with contextlib.suppress(NotusError):  # a bucket that doesn't answer now will later
                if (end := self._new_events()) is not None:
                    return end
                if (beat := read_heartbeat(self._store)) is not None:
                    if beat.attempt != self._attempt:
                        self._attempt = beat.attempt
                        watching.attempt_started(beat.attempt)
                    watching.progress(_progress(beat))
            if self._clock.monotonic() >= next_question:
                if (end := self._look_at_job()) is not None:
                    return end
                next_question = self._clock.monotonic() + ASK_SKYPILOT_EVERY_S
            self._clock.sleep(EVERY_S)

    def _new_events(self) -> End | None:
        for event in read_events(
            self._store, lambda key: key.rsplit("-", 1)[-1].removesuffix(".json") not in self._said
        ):
            self._said.add(event.id)
            if text := line_of(event):
                echo(text)
            if (end := end_of(event)) is not None:
                return end
        return None

    def _look_at_job(self) -> End | None:
        try:
            job = self._ask_job()
        except NotusError as error:
            echo(f"{error.message} (the run continues)")
            return None
        if job is None:
            return None
        if job.status != self._status:
            self._status = job.status
            echo(f"SkyPilot: {job.status}" + (f": {job.reason}" if job.reason else ""))
        if not job.over:
            return None
        if (end := self._new_events()) is not None:  # it may have been written in between
            return end
        if job.status == "SUCCEEDED":  # its last event is older than our first read, or could not be written
            return End(0, receipt=True)
        return End(JOB_CODES.get(job.status, 1))


def end_of(event: Event) -> End | None:
    """The end of the run with its exit code, if this event is one."""
    match event.payload:
        case Finished():
            return End(0, receipt=True)
        case Failed(exit_code=code):
            return End(code)
        case Stopped(limit=limit):
            return End(75 if limit is None else 3)
        case AttemptEnded(outcome="user_error"):
            return End(2)
    return None


def _progress(beat: Heartbeat) -> Progress:
    return Progress.model_validate(beat.model_dump(include={"phase", "step", "total_steps", "loss", "done", "of"}))
