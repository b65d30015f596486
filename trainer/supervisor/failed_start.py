"""Records a machine that failed before it could begin an attempt in the run's diary, which decides about the next one.

Applies `trainer.supervisor.restart_policy` for the trainer before its claim and for the set-up of a VM. The latter runs

    python -m trainer.failed_start COMMAND LOG

COMMAND is what failed, and the last lines of the file LOG are the reason. Exit codes: 0 = another machine may succeed;
`SET_UP_GAVE_UP` = the run has used up its failed starts; anything else: the diary could not be read.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

from checkpoints.commit.head import read_head
from checkpoints.errors import UserError
from checkpoints.run_log.event_kinds import Failed, SetupFailed
from checkpoints.run_log.event_log import Diary, read_events
from checkpoints.run_log.run_record import open_run
from checkpoints.storage.base import Store
from trainer.errors import EXIT_FAILED, SET_UP_GAVE_UP
from trainer.supervisor.restart_policy import MAX_FAILED_STARTS, gives_up

LAST_LINES = 12
MESSAGE_CHARS = 2000
PRICE = "NOTUS_PRICE_USD_H"
"""Environment variable: the price of this machine. The NOTUS strategy sets it at each launch."""


def conducted(environment: Mapping[str, str]) -> bool:
    """Does the NOTUS strategy manage this machine? It limits what is paid without progress.

    SkyPilot's own strategies start another machine for each exit code 75, without a limit. If the diary can't be read
    there is no count, so then only a run under the NOTUS strategy may request another machine.
    """
    return bool(environment.get(PRICE))


def note_failed_start(store: Store, message: str, command: str) -> bool:
    """Record a failed start, and the end of the run if it was one too many; returns whether to try another machine.

    Raises what the store raises.
    """
    head = read_head(store)
    diary = Diary(store, 0)
    diary.write(SetupFailed(message=message, command=command, after=head.epoch if head else 0))
    if not gives_up(read_events(store)):
        return True
    diary.write(Failed(message=gave_up_because(f"{command}: {message}"), exit_code=EXIT_FAILED))
    return False


def gave_up_because(message: str) -> str:
    """The final message of the run."""
    return f"gave up after {MAX_FAILED_STARTS} failed starts in a row without a new checkpoint: {message}"


def last_lines(path: Path) -> str:
    """The end of a log, for the diary."""
    try:
        lines = path.read_text(errors="replace").splitlines()
    except OSError:
        return ""
    return "\n".join([line for line in lines if line.strip()][-LAST_LINES:])[-MESSAGE_CHARS:]


def main() -> int:
    """Report a failed command of the set-up."""
    command, log = sys.argv[1], Path(sys.argv[2])
    message = last_lines(log) or "no output"
    sys.stderr.write(f"notus: the set-up failed at: {command}\n")
    bucket, run = os.environ.get("NOTUS_BUCKET"), os.environ.get("NOTUS_RUN")
    if not bucket or not run:
        raise UserError("the task has no NOTUS_BUCKET or no NOTUS_RUN", "see docs/how-to/real-cloud.md")
    again = note_failed_start(open_run(bucket, run), message, command)
    sys.stderr.write(f"notus: {'another machine may succeed' if again else gave_up_because(message)}\n")
    return 0 if again else SET_UP_GAVE_UP
