"""Does a job that failed end its run? Only where its trainer said so: what else ends a job is its machine's affair.

A supervisor that the kernel killed, a driver that ran out of memory, an environment that doesn't even start: another
machine may get past it, as an earlier one did, and the bound on machines in a row without a new step
(`launcher.policy.machine_work`) holds for all of them.
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
"""For the diary: SkyPilot asks on the event loop of all its jobs."""
SIGNALLED = 128
"""A shell adds the signal's number to it."""


def ends_the_run(exit_codes: Sequence[int] | None, read: Callable[[], list[Event]]) -> bool:
    """Is it over with the run of a job that failed with these codes? `read` reads the run's diary.

    Where the diary can't be read it isn't: the next search for a machine waits for it, and ends with what it says.
    """
    codes = set(exit_codes or ())
    if codes and codes <= {UserError.exit_code, EXIT_STOPPED}:
        return True
    if any(code == EXIT_PREEMPTED or code > SIGNALLED for code in codes):
        return False
    events = _read(read)
    return events is not None and (_has_ended(events) if codes == {EXIT_FAILED} else not _has_begun(events))


def _has_ended(events: list[Event]) -> bool:
    """Code 1 is that of a trainer that gave up, and has noted it, and of an interpreter that falls over an import."""
    spells = machines(events)
    its_own = on_machine(events, spells, len(spells) - 1) if spells else events
    return bool(of_kind(its_own, AttemptEnded)) or end_of_run(events) is not None or not _has_begun(events)


def _has_begun(events: list[Event]) -> bool:
    """What no machine has got past may be a set-up that can't work: the user's own, as a rule."""
    return bool(of_kind(events, AttemptStarted))


def _read(read: Callable[[], list[Event]]) -> list[Event] | None:
    reader = ThreadPoolExecutor(1)
    try:
        return reader.submit(read).result(READ_S)
    except Exception as error:  # a bucket's client raises what it likes
        logger.warning("notus: could not read why the job failed: %s", error)
        return None
    finally:
        reader.shutdown(wait=False)
