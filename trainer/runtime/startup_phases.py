"""The phases of an attempt before it trains: what people read, what is counted, and how long nothing may move.

In nearly all of them something moves all the time: modules are imported, rows are tokenised, bytes are fetched. So the
limit is not on how long a phase takes (a first download may take an hour) but on how long nothing of it moves, on a
rented machine and on the user's own. Then the attempt has failed, and counts as a failed start
(`trainer.supervisor.restart_policy`). In "starting" there is no rank yet that could report: its limit is on the phase
itself.
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
"""How often what moves is looked at."""
MIB = 20
"""Bits."""
ALARM_SHARE = 0.5
"""Of a limit: after so much of it an alarm is raised."""


class Traits(NamedTuple):
    """Of a phase."""

    words: str
    """For people."""
    quiet_s: float
    """For so long nothing may move."""
    unit: str = ""
    """Of what is counted."""


BEFORE: dict[Phase, Traits] = {
    "starting": Traits("starting the ranks", 1800.0),
    "importing": Traits("importing the libraries", 900.0, "modules"),
    "compiling": Traits("compiling DeepSpeed's operator, once for this machine", 1800.0, "files"),
    "preparing data": Traits("preparing data", 1800.0, "rows"),
    "loading the model": Traits("loading the model", 1800.0),
    "reference log-probs": Traits("computing the reference's log-probs", 1800.0, "rows"),
    "restoring": Traits("restoring the checkpoint", 1800.0),
}
"""Several times the longest silences seen on a slow machine: a C++ file that compiles for 4 min beside other work, a
model that is put together for minutes."""


class Count(NamedTuple):
    """How far a phase is; `of` 0 = how much it will be isn't known."""

    done: int = 0
    of: int = 0


def quiet_limit_s(phase: Phase) -> float | None:
    """None once the attempt trains: a step of a large model on a CPU may take its time."""
    return BEFORE[phase].quiet_s if phase in BEFORE else None


def phase_in_words(phase: str, done: int = 0, of: int = 0) -> str:
    """`preparing data (43,000 of 61,966 rows)`. Takes any text for a phase: an older attempt has others."""
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
    """Says what rank 0 is doing: at each change, and while a phase before the training moves."""

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
        """Another phase, or another step. `count` tells how far the phase is."""
        with self._lock:
            self._progress, self._count = progress, count
            self._scratch.write_progress(progress)
        if progress.phase not in BEFORE:
            self._ended.set()

    def look(self) -> None:
        """Write what has moved since the last look."""
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
            with contextlib.suppress(OSError):  # a full disk is told by whoever needs it
                self.look()


def modules() -> Count:
    """Python modules that are imported."""
    return Count(len(sys.modules))


def compiled_in(folder: Path) -> Count:
    """Files that a compiler has written there."""
    return Count(sum(1 for path in folder.rglob("*") if path.suffix in (".o", ".so")))


def activity(processes: Sequence[Path] | None = None) -> int:
    """A number that grows while any rank of this machine reads, writes or imports.

    It adds up MiB to and from files and disks (a mapped file shows up only as a disk read), page faults that had to
    wait for a disk, and this rank's modules. What this thread reads and writes is left out: otherwise looking would be
    what moves.
    """
    moved_bytes, faults = -_io_bytes(Path("/proc/thread-self")), 0
    for process in ranks_here() if processes is None else processes:
        moved_bytes += _io_bytes(process)
        with contextlib.suppress(OSError, ValueError, IndexError):
            faults += int((process / "stat").read_text().rpartition(")")[2].split()[9])  # field 12: majflt
    return (moved_bytes >> MIB) + faults + len(sys.modules)


def _io_bytes(process: Path) -> int:
    """0 for one that is gone, or on a kernel that doesn't tell."""
    try:
        fields = dict(line.split(": ") for line in (process / "io").read_text().splitlines())
        return sum(int(fields[name]) for name in ("rchar", "wchar", "read_bytes"))
    except (OSError, ValueError, KeyError):
        return 0


def ranks_here(proc: Path = Path("/proc")) -> list[Path]:
    """The children of torchrun, whose one this process is. One of them may fetch for all."""
    parent = os.getppid()
    try:
        told = (proc / f"{parent}/task/{parent}/children").read_text().split()
    except OSError:  # a kernel that doesn't tell
        told = []
    return [proc / pid for pid in told] or [proc / "self"]


class Tally:
    """Counts rows in several processes: each appends a byte for so many of them to one file."""

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
        """Rows of all processes, in hundreds."""
        try:
            return self._path.stat().st_size * self.ROWS_A_BYTE
        except OSError:
            return 0
