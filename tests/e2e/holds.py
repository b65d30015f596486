"""Where a run is to stand still: a file for its machines, which `sky_hook` reads before rank 0 goes on.

A folder of this machine is mounted on all machines. A hold is for one attempt: whoever comes to it first writes its
mark, and a later attempt of the same run passes by.
"""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path

from trainer.runtime.attempt_dir import Phase


class Hold:
    """One run's; the files are `RUN` and, as soon as an attempt is held, `RUN.held`."""

    def __init__(self, folder: Path, run: str) -> None:
        self._file = folder / run
        self._mark = folder / f"{run}.held"

    def set(self, phase: Phase, step: int) -> None:
        """From now on rank 0 of the next attempt to come there waits in `phase`, once it has done `step`."""
        self.release()
        temporary = self._file.with_name(f".{self._file.name}.{os.getpid()}")
        temporary.write_text(json.dumps({"phase": phase, "step": step}))
        temporary.replace(self._file)

    def release(self) -> None:
        """It goes on."""
        for path in (self._file, self._mark):
            with contextlib.suppress(FileNotFoundError):
                path.unlink()

    @property
    def holds(self) -> bool:
        """Does an attempt stand still?"""
        return self._mark.exists()
