"""Show a running attempt: a progress bar on a terminal, otherwise occasional lines. Always on stderr."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from checkpoints.util.command_line import console
from launcher.local.backend import Watcher
from trainer.runtime.attempt_dir import Outcome
from trainer.runtime.attempt_dir import Progress as TrainingProgress
from trainer.runtime.startup_phases import in_words

LINE_EVERY_S = 10.0


@contextlib.contextmanager
def watcher(label: str) -> Iterator[Watcher]:
    """The watcher for the kind of stderr."""
    if not sys.stderr.isatty():
        yield Lines(label)
        return
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}", markup=False),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console(stderr=True)) as progress:
        yield Bar(progress, label)


class Lines:
    """Progress as plain lines."""

    def __init__(self, label: str) -> None:
        self._label = label
        self._attempt = 0
        self._last = (0.0, "")
        self._began = 0.0
        """Start of the phase."""

    def attempt_started(self, number: int) -> None:
        self._attempt = number
        self._echo("started")

    def progress(self, progress: TrainingProgress) -> None:
        at, phase = self._last
        now = time.monotonic()
        changed = progress.phase != phase and "saving" not in (progress.phase, phase)
        if changed:
            self._began = now
        if self._attempt and (changed or now - at > LINE_EVERY_S):
            self._last = (now, progress.phase)
            steps = f", step {progress.step}/{progress.total_steps}" if progress.total_steps else ""
            lasts = "" if changed or progress.total_steps else f", for {now - self._began:.0f} s"
            self._echo(f"{in_words(progress)}{steps}{lasts}")

    def preempted(self, step: int) -> None:
        self._echo(f"killed at step {step}")

    def attempt_ended(self, outcome: Outcome) -> None:
        self._echo(f"{outcome.kind} at step {outcome.step}" + (f": {outcome.message}" if outcome.message else ""))

    def stopping(self) -> None:
        self._echo("saving and stopping; repeat to stop at once")

    def _echo(self, text: str) -> None:
        sys.stderr.write(f"  {self._label}, attempt {self._attempt}: {text}\n")
        sys.stderr.flush()


class Bar:
    """A progress bar, with the attempts' outcomes printed above it."""

    def __init__(self, progress: Progress, label: str) -> None:
        self._progress = progress
        self._lines = Lines(label)
        self._task = progress.add_task(label, total=None, note="starting")

    def attempt_started(self, number: int) -> None:
        self._lines.attempt_started(number)

    def progress(self, progress: TrainingProgress) -> None:
        loss = "" if progress.loss is None else f"  loss {progress.loss:.4f}"
        self._progress.update(
            self._task,
            completed=progress.step,
            total=progress.total_steps or None,
            note=f"{in_words(progress)}{loss}",
        )

    def preempted(self, step: int) -> None:
        self._lines.preempted(step)

    def attempt_ended(self, outcome: Outcome) -> None:
        self._lines.attempt_ended(outcome)

    def stopping(self) -> None:
        self._lines.stopping()
