"""A request to stop, from any source, as one flag that all ranks agree on.

Lightning#20806 and others: ranks that decide alone deadlock. So the flag is all-reduced once per step, and a rank acts
only on the agreed value.
"""

from __future__ import annotations

import signal
import threading
import uuid
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType

from pydantic import BaseModel, ConfigDict, ValidationError


class Stop(BaseModel):
    """A request to stop, as stored in the stop file."""

    model_config = ConfigDict(frozen=True)

    source: str
    deadline: datetime | None = None
    """When the machine will be gone; None = no hurry."""


class StopRequest:
    """A request to this attempt to save and stop: a file that appears, or SIGTERM to this process."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._signalled = threading.Event()

    def listen(self) -> None:
        """Treat SIGTERM as a request. The first thing that a rank does: imports take seconds."""
        signal.signal(signal.SIGTERM, self._on_signal)

    def _on_signal(self, signum: int, frame: FrameType | None) -> None:
        self._signalled.set()

    def pending(self) -> bool:
        """Has this rank seen a request? Not yet agreed with the others."""
        return self._signalled.is_set() or self._path.exists()

    def seconds_left(self) -> float | None:
        """Seconds until the machine is gone; None if there is no hurry, or the time is unknown."""
        stop = read_stop(self._path)
        if stop is None or stop.deadline is None:
            return None
        return (stop.deadline - datetime.now(UTC)).total_seconds()


def request_stop(path: Path, source: str = "user", deadline: datetime | None = None) -> None:
    """Request the attempt that watches `path` to save and stop.

    The first request counts, unless a later one has an earlier deadline: a SIGTERM without a deadline must not hide a
    notice of 30 s. Safe in a signal handler and from several threads.
    """
    known = read_stop(path)
    if known is not None and (deadline is None or (known.deadline is not None and known.deadline <= deadline)):
        return
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    temporary.write_text(Stop(source=source, deadline=deadline).model_dump_json())
    temporary.replace(path)


def read_stop(path: Path) -> Stop | None:
    """The request, or None."""
    try:
        return Stop.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValidationError:
        return Stop(source="file")  # created by hand
