"""Determine the outcome of an interrupted submission: Ctrl-C, a lost connection, a server that went away.

SkyPilot continues a request without its client, so a job may exist, or appear within a minute, although we got no
number. Each submission has an id in the task (`NOTUS_SUBMISSION`), by which the job is searched for a bounded time.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from checkpoints.errors import NotusError
from checkpoints.run_log.event_log import Event
from checkpoints.run_log.launches import newest_launch
from checkpoints.storage.base import Store
from checkpoints.util.clock import Clock, looks
from launcher.policy.run_history import began_since
from launcher.run_identity import RunIdentity
from launcher.sky import client
from launcher.sky.client import Job

logger = logging.getLogger(__name__)

SETTLE_S = 120.0
"""Time for a request that is still active; SkyPilot's own submission takes seconds, a controller's new VM minutes."""
AFTER_S = 10.0
"""Time for a job to appear once its request is over."""
EVERY_S = 5.0


@dataclass(frozen=True)
class Outcome:
    """Outcome of a submission without a job number."""

    state: Literal["taken", "refused", "unknown"]
    """Does SkyPilot have the job? "unknown": it doesn't answer, or the request is still active."""
    job: Job | None = None


def settle(run: RunIdentity, submission: str, error: BaseException, clock: Clock) -> Outcome:
    """Look for the job of this submission. SkyPilot's errors are not raised: "unknown" is an outcome."""
    lost = isinstance(error, client.NotSubmitted)
    request = error.request if isinstance(error, client.NotSubmitted) else ""
    interrupted = isinstance(error, KeyboardInterrupt)  # its request was cancelled, see `client.submit`
    limit_s = SETTLE_S if request else AFTER_S if lost or interrupted else 0.0
    state: Literal["refused", "unknown"] = "unknown"
    for _ in looks(clock, EVERY_S, limit_s):
        over = client.request_state(request) == "over" if request else not lost
        try:
            job = client.find_job(run)
        except NotusError as failure:
            logger.info("looking for the submission: %s", failure.message)
            state = "unknown"
            continue
        if job is not None and job.submission == submission:
            return Outcome("taken", job)
        state = "refused" if over else "unknown"
        if over and not interrupted:
            break
    return Outcome(state)


def late_job(run: RunIdentity, clock: Clock) -> Job | None:
    """The job of a launch from here that was killed during its submission, if SkyPilot is still working on it."""
    for _ in looks(clock, EVERY_S, SETTLE_S):
        was_launching = client.is_launching()  # queried first, so that a launch that ends in between is seen
        job = client.own_job(run)
        if job is not None and not job.over:
            return job
        if not was_launching:
            return None
    return None


def ran_last(store: Store, job: Job, events: Sequence[Event]) -> bool:
    """Was this job, which is over, the newest of the run? If not, another computer has launched the run since.

    Compares the submission that the newest launch recorded. A job without one (plain `sky jobs launch`) is compared by
    the time of its end, although that comes from another machine.
    """
    newest = newest_launch(store)
    if job.submission and newest is not None:
        return job.submission == newest.submission
    return job.ended_at is None or not began_since(events, job.ended_at)
