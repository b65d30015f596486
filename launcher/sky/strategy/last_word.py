"""Decide whether a failed job ends its run. Only its trainer's own report does; other failures are the machine's.

A supervisor killed by the kernel, a driver that ran out of memory, an environment that doesn't even start: another
machine may get past it, as an earlier one did. The bound on machines in a row without a new step
(`launcher.policy.machine_work`) applies to all of them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from checkpoints.errors import UserError
from checkpoints.run_log.event_kinds import AttemptEnded, AttemptStarted
from checkpoints.run_log.event_log import Event, of_kind
from checkpoints.run_log.event_order import end_of_run
from launcher.policy.run_history import machines, on_machine
from trainer.errors import EXIT_FAILED, EXIT_PREEMPTED, EXIT_STOPPED

logger = logging.getLogger("sky.notus")

READ_S = 20.0
"""Timeout for reading the diary: SkyPilot calls this on the event loop of all its jobs."""
SIGNALLED = 128
"""Exit codes above this are a signal's number plus 128."""


def ends_the_run(exit_codes: Sequence[int] | None, read: Callable[[], list[Event]]) -> bool:
    """Does a job that failed with these codes end its run? `read` reads the run's diary.

    False if the diary can't be read: the next search for a machine waits for it, and ends the run if it says so.
    """
    codes = set(exit_codes or ())
    if codes and codes <= {UserError.exit_code, EXIT_STOPPED}:
        return True
    if any(code == EXIT_PREEMPTED or code > SIGNALLED for code in codes):
        return False
    events = _read(read)
    return events is not None and (_has_ended(events) if codes == {EXIT_FAILED} else not _has_begun(events))


def _has_ended(events: list[Event]) -> bool:
    """Has the trainer recorded its end, or did no attempt begin? Code 1 may also be an interpreter's import error."""
    spells = machines(events)
    its_own = on_machine(events, spells, len(spells) - 1) if spells else events
    return bool(of_kind(its_own, AttemptEnded)) or end_of_run(events) is not None or not _has_begun(events)


def _has_begun(events: list[Event]) -> bool:
    """Has any attempt begun? If not, the set-up, usually the user's own, may never work."""
    return bool(of_kind(events, AttemptStarted))


def _read(read: Callable[[], list[Event]]) -> list[Event] | None:
    reader = ThreadPoolExecutor(1)
    try:
        return reader.submit(read).result(READ_S)
    except Exception as error:  # bucket clients raise many kinds
        logger.warning("notus: could not read why the job failed: %s", error)
        return None
    finally:
        reader.shutdown(wait=False)
