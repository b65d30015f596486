"""The wish to stop, from wherever it comes, as one flag that all ranks agree on.

Lightning#20806 and others: ranks that decide alone wait for each other for ever. So the flag is all-reduced once a
step, and a rank acts only on the agreed value.
"""

from __future__ import annotations

import signal
import threading
from pathlib import Path
from types import FrameType


class StopRequest:
    """Has somebody asked this attempt to save and stop? A file that appears, or SIGTERM to this process."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._signalled = threading.Event()

    def listen(self) -> None:
        """Take SIGTERM as a request. The first thing that a rank does: imports take seconds."""
        signal.signal(signal.SIGTERM, self._on_signal)

    def _on_signal(self, signum: int, frame: FrameType | None) -> None:
        self._signalled.set()

    def pending(self) -> bool:
        """What this rank knows. Not yet agreed."""
        return self._signalled.is_set() or self._path.exists()


def request_stop(path: Path) -> None:
    """Ask the attempt that watches `path` to save and stop."""
    path.touch()
