"""The phases of an attempt before it trains: their labels, what they count, and how long they may make no progress.

In nearly all of them something changes all the time: modules are imported, rows tokenized, bytes fetched. So the limit
is not on how long a phase takes (a first download may take an hour) but on how long nothing changes, on a rented
machine as well as on the user's own. Beyond it the attempt has failed, and counts as a failed start
(`trainer.supervisor.restart_policy`). In "starting" there is no rank yet that could report, so its limit is on the
phase itself.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from trainer.runtime.attempt_dir import Phase, Progress, Scratch

EVERY_S = 1.0
"""How often progress is checked."""
MIB = 20
"""Bits of a shift to MiB."""
ALARM_SHARE = 0.5
"""Share of a limit after which an alarm is raised."""


class Traits(NamedTuple):
    """The properties of a phase."""

    words: str
    """For people."""
    quiet_s: float
    """How long it may make no progress."""
    unit: str = ""
    """What is counted."""


BEFORE: dict[Phase, Traits] = {
    "starting": Traits("starting the ranks", 1800.0),
    "importing": Traits("importing the libraries", 900.0, "modules"),
    "compiling": Traits("compiling DeepSpeed's operator, once for this machine", 1800.0, "files"),
    "preparing data": Traits("preparing data", 1800.0, "rows"),
    "loading the model": Traits("loading the model", 1800.0),
    "reference log-probs": Traits("computing the reference's log-probs", 1800.0, "rows"),
    "restoring": Traits("restoring the checkpoint", 1800.0),
}
"""Several times the longest pauses seen on a slow machine: a C++ file that compiles for 4 min beside other work, a
model that takes minutes to assemble."""


class Count(NamedTuple):
    """The progress of a phase; `of` 0 = the total isn't known."""

    done: int = 0
    of: int = 0


def quiet_limit_s(phase: Phase) -> float | None:
    """The phase's limit; None during training: a step of a large model on a CPU may take long."""
    return BEFORE[phase].quiet_s if phase in BEFORE else None


def phase_in_words(phase: str, done: int = 0, of: int = 0) -> str:
    """`preparing data (43,000 of 61,966 rows)`. Accepts any text as the phase: older attempts have others."""
    traits = BEFORE.get(phase)  # type: ignore[call-overload]
    if traits is None:
        return phase
    if not done or not traits.unit:
        return str(traits.words)
    count = f"{done:,} of {of:,}" if of else f"{done:,}"
    return f"{traits.words} ({count} {traits.unit})"


def in_words(progress: Progress) -> str:
    """What an attempt is doing, for people."""
    return phase_in_words(progress.phase, progress.done, progress.of)


class PhaseReport:
    """Reports what rank 0 is doing, at each change, and while a phase before training makes progress."""

    def __init__(self, scratch: Scratch, moved: Callable[[], int] = lambda: 0) -> None:
        """`moved`: bytes that this rank has read from the bucket."""
        self._scratch = scratch
        self._moved = moved
        self._lock = threading.Lock()
        self._progress = Progress(phase="starting")
        self._count: Callable[[], Count] = Count
        self._ended = threading.Event()
        threading.Thread(target=self._run, name="phases", daemon=True).start()

    def begin(self, progress: Progress, count: Callable[[], Count] = Count) -> None:
        """Begin another phase, or another step. `count` returns the phase's progress."""
        with self._lock:
            self._progress, self._count = progress, count
            self._scratch.write_progress(progress)
        if progress.phase not in BEFORE:
            self._ended.set()

    def look(self) -> None:
        """Write the progress since the last call."""
        with self._lock:
            if self._progress.phase not in BEFORE:
                return
            count = self._count()
            moved = activity() + (self._moved() >> MIB)
            seen = self._progress.model_copy(update={**count._asdict(), "moved": moved})
            if seen != self._progress:
                self._progress = seen
                self._scratch.write_progress(seen)

    def _run(self) -> None:
        while not self._ended.wait(EVERY_S):
            with contextlib.suppress(OSError):  # a full disk is reported by whatever needs it
                self.look()


def modules() -> Count:
    """How many Python modules are imported."""
    return Count(len(sys.modules))


def compiled_in(folder: Path) -> Count:
    """How many files a compiler has written there."""
    return Count(sum(1 for path in folder.rglob("*") if path.suffix in (".o", ".so")))


def activity(processes: Sequence[Path] | None = None) -> int:
    """A number that grows while any rank of this machine reads, writes or imports.

    The sum of MiB to and from files and disks (a mapped file shows up only as a disk read), page faults that had to
    wait for a disk, and this rank's modules. What this thread reads and writes is subtracted: otherwise checking would
    count as progress.
    """
    moved_bytes, faults = -_io_bytes(Path("/proc/thread-self")), 0
    for process in ranks_here() if processes is None else processes:
        moved_bytes += _io_bytes(process)
        with contextlib.suppress(OSError, ValueError, IndexError):
            faults += int((process / "stat").read_text().rpartition(")")[2].split()[9])  # field 12: majflt
    return (moved_bytes >> MIB) + faults + len(sys.modules)


def _io_bytes(process: Path) -> int:
    """Bytes that a process has read and written; 0 if it is gone, or the kernel doesn't report them."""
    try:
        fields = dict(line.split(": ") for line in (process / "io").read_text().splitlines())
        return sum(int(fields[name]) for name in ("rchar", "wchar", "read_bytes"))
    except (OSError, ValueError, KeyError):
        return 0


def ranks_here(proc: Path = Path("/proc")) -> list[Path]:
    """The children of torchrun, of which this process is one. One of them may download for all."""
    parent = os.getppid()
    try:
        children = (proc / f"{parent}/task/{parent}/children").read_text().split()
    except OSError:  # a kernel without that file
        children = []
    return [proc / pid for pid in children] or [proc / "self"]


class Tally:
    """Counts rows in several processes: each appends a byte per `ROWS_A_BYTE` rows to one file."""

    ROWS_A_BYTE = 100

    def __init__(self, path: Path) -> None:
        self._path = path
        self._rows = 0

    def add(self) -> None:
        """One row is done."""
        self._rows += 1
        if self._rows % self.ROWS_A_BYTE == 0:
            with contextlib.suppress(OSError), self._path.open("ab") as file:  # it is only a display
                file.write(b".")

    def read(self) -> int:
        """Rows of all processes, rounded down to hundreds per process."""
        try:
            return self._path.stat().st_size * self.ROWS_A_BYTE
        except OSError:
            return 0
