"""What became of a submission that was interrupted: Ctrl-C, a lost connection, a server that went away.

SkyPilot carries a request on without whoever made it, so a job may be there, or come in a minute, though we got no
number. Each submission has an id that travels in the task (`NOTUS_SUBMISSION`); by it the job is looked for, for a
bounded time.
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
"""For a request that is still under way; SkyPilot's own submission takes seconds, a controller's new VM minutes."""
AFTER_S = 10.0
"""For a job to show up once its request is over."""
EVERY_S = 5.0


@dataclass(frozen=True)
class Outcome:
    """Of a submission that gave no number."""

    state: Literal["taken", "refused", "unknown"]
    """Has SkyPilot got the job? "unknown": it doesn't answer, or the request is still under way."""
    job: Job | None = None


def settle(run: RunIdentity, submission: str, error: BaseException, clock: Clock) -> Outcome:
    """Look for the job of this submission. Raises nothing that SkyPilot says: not knowing is an outcome."""
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
    """The job of a launch from here that was killed at its submission, if SkyPilot is still at work on it."""
    for _ in looks(clock, EVERY_S, SETTLE_S):
        was_launching = client.is_launching()  # before the look: what ends between the two is seen
        job = client.own_job(run)
        if job is not None and not job.over:
            return job
        if not was_launching:
            return None
    return None


def ran_last(store: Store, job: Job, events: Sequence[Event]) -> bool:
    """Was this job, which is over, the newest that the run had? Else another computer launched it since.

    By the submission that the newest launch wrote down. Only for a job without one, of plain `sky jobs launch`, by the
    time of its end, though that is another machine's.
    """
    newest = newest_launch(store)
    if job.submission and newest is not None:
        return job.submission == newest.submission
    return job.ended_at is None or not began_since(events, job.ended_at)
